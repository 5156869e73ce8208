"""The chroots that other tests run programs in."""

from pathlib import Path

import pytest
from debian import SUITES, chroot

each_suite = pytest.mark.parametrize("suite", SUITES)


@each_suite
def test_chroot_is_that_release_of_debian(suite: str) -> None:
    """The suite's own files are below its root, with a host name, a user and a network of its own."""
    with chroot(suite, prepare="useradd --create-home alice", hostname="mail.sending.example") as debian:
        assert f"VERSION_CODENAME={suite}\n" in debian.run("cat", "/etc/os-release")
        assert debian.run("hostname") == "mail.sending.example\n"
        assert debian.shell("id --name --user; pwd; cd; pwd", user="alice") == "alice\n/\n/home/alice\n"
        assert debian.run("ls", "/sys/class/net") == "lo\n"


@each_suite
def test_chroot_leaves_nothing_behind(suite: str) -> None:
    """What is written in a chroot is in no later one; its processes and mounts end with it."""
    mounts = Path("/proc/self/mounts").read_text()
    with chroot(suite) as first:
        pid = first.run("sh", "-c", "echo here > /etc/motd; sleep 1000 > /dev/null 2>&1 & echo $!")
        assert (first.root / "etc/motd").read_text() == "here\n"
        assert first.run("cat", f"/proc/{pid.strip()}/comm") == "sleep\n"
        assert Path("/proc/self/mounts").read_text() == mounts
    assert not first.root.exists()
    with chroot(suite) as second:
        assert "here" not in second.run("cat", "/etc/motd", check=False)


def test_command_that_fails_in_a_chroot_is_an_error() -> None:
    """The error has the suite, the status, and what was printed."""
    with chroot("trixie") as debian, pytest.raises(RuntimeError, match=r"trixie: .* ended with 3: oh\n"):
        debian.shell("echo oh >&2; exit 3")
