"""Dropping privileges, seen from outside in /proc."""

import contextlib
import grp
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scrapes import WITH_METRICS, scrape
from support import (
    LINE,
    MODES,
    PATIENCE,
    Daemon,
    Start,
    call_as,
    connect,
    read_all,
    require_root,
    require_tools,
    run_cli,
)

from nullsmtpd.runtime.privileges import Account, AccountError, drop_privileges, find_account
from nullsmtpd.runtime.process import warn_if_root

NOBODY = pwd.getpwnam("nobody")
UNUSED = 64_321


def status(daemon: Daemon, field: str) -> list[str]:
    match = re.search(rf"^{field}:(.*)$", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE)
    assert match
    return match[1].split()


@pytest.mark.parametrize(
    ("arguments", "uid", "gid"),
    [
        (["--user", "nobody"], NOBODY.pw_uid, NOBODY.pw_gid),
        (["--user", str(NOBODY.pw_uid)], NOBODY.pw_uid, NOBODY.pw_gid),
        (["--user", "nobody", "--group", "daemon"], NOBODY.pw_uid, grp.getgrnam("daemon").gr_gid),
        (["--user", str(UNUSED), "--group", str(UNUSED)], UNUSED, UNUSED),
        (["--group", "daemon", "--user", "nobody"], NOBODY.pw_uid, grp.getgrnam("daemon").gr_gid),
        (["--user", "nobody", "--mode", "mail"], NOBODY.pw_uid, NOBODY.pw_gid),
    ],
)
def test_privileges_are_dropped_for_good(start: Start, arguments: list[str], uid: int, gid: int) -> None:
    """All user and group ids are the new ones, there are no other groups and no capabilities, and it answers."""
    require_root()
    daemon = start(*arguments)
    assert status(daemon, "Uid") == [str(uid)] * 4
    assert status(daemon, "Gid") == [str(gid)] * 4
    assert status(daemon, "Groups") == [str(gid)]
    for capabilities in ("CapPrm", "CapEff", "CapAmb"):
        assert int(status(daemon, capabilities)[0], 16) == 0
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client).startswith(b"220 " if "mail" in arguments else LINE)
    assert not daemon.lines("running-as-root")
    assert daemon.stop() == 0


def test_a_group_alone_changes_the_group_alone(start: Start) -> None:
    """A process that remains root with another group is what was asked for."""
    require_root()
    daemon = start("--group", "daemon")
    assert status(daemon, "Uid") == ["0"] * 4
    assert status(daemon, "Gid") == [str(grp.getgrnam("daemon").gr_gid)] * 4
    assert status(daemon, "Groups") == [str(grp.getgrnam("daemon").gr_gid)]


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_loaded_after_the_start(start: Start, tmp_path: Path, mode: str) -> None:
    """For no client, signal or scrape, nor at shutdown: another user may not be able to read the files."""
    require_tools("strace")
    daemon = start("--mode", mode, "--access-log", "--linger", "0.2", *WITH_METRICS)
    trace = tmp_path / "trace"
    with subprocess.Popen(["strace", "-p", str(daemon.pid), "-o", trace], stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr
        assert b"attached" in tracer.stderr.readline()
        for sent in (b"QUIT\r\n", b"EHLO x\r\nNOOP\r\nQUIT\r\n", b"x" * (1 << 18)):
            with connect(daemon.address) as client:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(ConnectionResetError):
                    read_all(client)
        assert "nullsmtpd_connections_total" in scrape(daemon)
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_until_idle()
        assert daemon.stop() == 0
    opened = re.findall(r'^open(?:at)?\(.*?"(.*?)"', trace.read_text(), re.MULTILINE)
    assert {path for path in opened if not path.startswith(("/proc/", "/dev/"))} == set()
    assert "/proc/self/stat" in opened


def test_running_as_root_is_warned_of_once(start: Start) -> None:
    """Not if root was chosen by name."""
    require_root()
    assert len(start().lines("running-as-root")) == 1
    assert not start("--user", "root").lines("running-as-root")


def test_an_ordinary_user_is_not_warned(capfd: pytest.CaptureFixture[str]) -> None:
    """A process that was started as such a user needs no --user."""
    require_root()
    assert call_as(UNUSED, lambda: warn_if_root(None)) == "None"
    assert capfd.readouterr().err == ""


def test_sockets_are_bound_before_the_user_changes(start: Start) -> None:
    """A port below 1024 is one that only root may bind."""
    require_root()
    start("--user", "nobody", listen="127.82.1.1:25")
    with connect(("127.82.1.1", 25)) as client:
        assert read_all(client) == LINE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "no-such-user"], "--user: 'no-such-user' does not exist; give a name or a number"),
        (["--group", "no-such-group"], "--group: 'no-such-group' does not exist; give a name or a number"),
        (["--user", str(UNUSED)], f"--user: '{UNUSED}' has no entry in the user database; give --group too"),
        (
            ["--user", "nobody", "--group", "4294967295"],
            "--group: '4294967295' is beyond the range of account numbers; give one below 4294967295",
        ),
        (
            ["--user", "99999999999"],
            "--user: '99999999999' is beyond the range of account numbers; give one below 4294967295",
        ),
    ],
)
def test_an_account_that_does_not_exist_is_an_invalid_option(arguments: list[str], message: str) -> None:
    """One line with the option and the value; status 2."""
    run = run_cli("--listen", "127.0.0.1:0", *arguments)
    assert (run.returncode, run.stderr) == (2, f"nullsmtpd: {message}\n")


def test_only_root_can_change_to_another_account() -> None:
    """To remain the same is no change."""
    require_root()

    def drop(uid: int | None, gid: int | None) -> str:
        return call_as(UNUSED, lambda: drop_privileges(Account(uid, gid)))

    for account in ((NOBODY.pw_uid, NOBODY.pw_gid), (None, NOBODY.pw_gid), (NOBODY.pw_uid, UNUSED), (0, 0)):
        assert drop(*account).startswith("PrivilegeError: [Errno 1] Operation not permitted")
    assert drop(UNUSED, UNUSED) == drop(None, None) == drop(UNUSED, None) == "None"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("setgroups", lambda _: None),
        ("setgid", lambda _: None),
        ("setuid", lambda _: None),
        ("setuid", lambda uid: os.setresuid(uid, uid, 0)),
    ],
)
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_change_that_does_not_take_effect_is_an_error(
    monkeypatch: pytest.MonkeyPatch, platform: str, name: str, change: Callable[[Any], None]
) -> None:
    """Whatever the system calls return, the ids are looked at, and that root cannot be regained is tried."""
    require_root()
    monkeypatch.setattr(os, name, change)
    monkeypatch.setattr(sys, "platform", platform)  # macOS does not tell the saved ids
    outcome = call_as(0, lambda: drop_privileges(Account(NOBODY.pw_uid, NOBODY.pw_gid)))
    assert outcome == "PrivilegeError: [Errno 1] the change did not take effect"


# It may read the interpreter, wherever that is installed.
ORDINARY_USER = (
    *("setpriv", "--reuid=1", "--regid=1", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [
        (ORDINARY_USER, "start as root"),
        (("setpriv", "--bounding-set=-setuid"), "grant CAP_SETUID and CAP_SETGID"),
        (("setpriv", "--bounding-set=-setgid"), "grant CAP_SETUID and CAP_SETGID"),
    ],
)
def test_a_process_that_may_not_change_names_the_options_and_the_remedy(prefix: Sequence[str], remedy: str) -> None:
    """An ordinary user, and root in a container without these capabilities: one line."""
    require_root()
    require_tools(prefix[0])
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0", "--user", "nobody", "--group", "daemon"]
    run = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert run.returncode == 1
    assert re.fullmatch(rf"nullsmtpd: --user nobody --group daemon: [^\n]+; .*{remedy}.*\n", run.stderr)


def test_a_user_namespace_that_denies_setgroups_is_named() -> None:
    """user_namespaces(7): "start as root" would be no help to a process that is root already."""
    require_root()  # clone(2): in a chroot an ordinary user may not create a user namespace
    require_tools("unshare")
    command = [sys.executable, "-m", "nullsmtpd", "--listen", "127.0.0.1:0", "--user", "root", "--group", "root"]
    unshare = ["unshare", "--user", "--map-root-user", *command]  # denies it by default
    run = subprocess.run(unshare, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("nullsmtpd: --user root --group root: ")
    assert "setgroups(2)" in run.stderr
    assert "user namespace" in run.stderr
    assert "start as root" not in run.stderr


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", fullmatch=True))
def test_any_name_is_found_or_refused(name: str) -> None:
    """Invariant: an account in range with a group, or an error that has the option, the value and the reason."""
    try:
        account = find_account(name, None)
    except AccountError as error:
        assert re.fullmatch(rf"user: '{re.escape(name)}' (does not exist|has no entry|is beyond).*", str(error))
    else:
        assert account.uid is not None
        assert account.gid is not None
