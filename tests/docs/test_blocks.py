"""Every command that the documents show is run as it is printed, and what it prints is compared."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from booted import ADDRESS_4, ADDRESS_6, Booted, booted, copy_source
from child import output
from containers import build_options, podman
from debian import SUITES
from hosts import open_host
from pages import PAGES, ROOT, Block, blocks, matches, packages
from support import require_root, require_tools

SOURCE = "/srv/nullsmtpd"
BLOCK_PATIENCE = 300.0  # seconds: a block may build an image

#: Pages whose blocks are run by a test below, unless a comment names another one or the reason why not.
RUN_HERE = {
    *("README.md", "CONTRIBUTING.md", "bench/README.md"),
    *("deploy/README.md", "deploy/image/README.md", "deploy/relay/README.md"),
}

ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]


class Place(Protocol):
    """Where commands are run."""

    def command(self, script: str) -> list[str]:
        """Return the command that runs a script there, in the directory that the page is about."""


class Host:
    """A bare Debian with systemd, and a clone of this repository."""

    def __init__(self, machine: Booted, directory: str) -> None:
        self.machine = machine
        self._directory = directory

    def command(self, script: str) -> list[str]:
        """Run it as root with a strict umask; a script ends at its first command that fails."""
        return self.machine.command("bash", "-euo", "pipefail", "-c", f"cd {self._directory}\numask 077\n{script}")


class Workshop:
    """A copy of this checkout with the virtual environment that the tests run in, in a network of its own."""

    def __init__(self, network: Sequence[str], directory: Path) -> None:
        self._network = network
        self._directory = directory

    def command(self, script: str) -> list[str]:
        return [*self._network, "bash", "-euo", "pipefail", "-c", f"cd {self._directory}\n{script}"]


class Engine(Workshop):
    """The same, where podman is a container engine by either of its names.

    In the network of this machine it would change the packet filter. An image is built there, since that takes the way
    to this machine's mirrors, which the build is told as secrets.
    """

    def __init__(self, network: Sequence[str], directory: Path, secrets: Path) -> None:
        super().__init__(network, directory)
        programs = secrets / "bin"
        programs.mkdir()
        outside = ("nsenter", f"--net=/proc/{os.getpid()}/ns/net")
        build = shlex.join([*outside, "podman", "build", *build_options(secrets)])
        (programs / "docker").write_text(
            f'#!/bin/sh\ncase $1 in\nbuild) shift; exec {build} "$@" ;;\n*) exec podman "$@" ;;\nesac\n'
        )
        (programs / "docker").chmod(0o755)
        self._programs = programs

    def command(self, script: str) -> list[str]:
        return super().command(f"PATH={self._programs}:$PATH\n{script}")


def run_block(place: Place, block: Block, stack: contextlib.ExitStack) -> None:
    """Run a block as its page says; what runs in the background is ended with ``stack``."""
    if not block.is_run:
        return
    if block.note[0]:
        stack.enter_context(background(place.command(block.text), block.note[1]))
    elif block.language == "sh":
        run(place, block.text, block)
    else:
        for command in block.commands():
            printed = run(place, command.text, block)
            assert matches(command.output, printed), f"{block}: $ {command.text}\n" + "\n".join(printed)


def run(place: Place, script: str, block: Block) -> list[str]:
    """Run a script to its end; return the lines that it printed, and fail where it fails."""
    return output(place.command(script), f"{block}: {script}", patience=BLOCK_PATIENCE).splitlines()


@contextlib.contextmanager
def background(command: Sequence[str], until: str) -> Iterator[None]:
    """Run a command until this text appears in its output, and end it with the block."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + BLOCK_PATIENCE
            while until.encode() not in (output := os.pread(log.fileno(), 1 << 20, 0)):
                assert process.poll() is None, f"{command}: ended with {process.returncode}: {output!r}"
                assert time.monotonic() < deadline, f"{command}: {output!r}"
                time.sleep(0.05)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@contextlib.contextmanager
def host(suite: str, page: str, *tools: str, directory: str = "") -> Iterator[Host]:
    """Boot a host on which the packages of the page can be installed; the tools are there already.

    ``directory``: the one below the clone that the page is about.
    """
    require_root()
    with booted(suite, tools, downloads=packages(page)) as machine:
        copy_source(machine.root / SOURCE.removeprefix("/"))
        yield Host(machine, f"{SOURCE}/{directory}")


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_every_block_of_commands_is_run_or_says_why_not(block: Block) -> None:
    """What runs it has the same commands, or reads the page; a reason is a sentence or part of one."""
    how, what = block.note
    assert not block.is_run or block.page in RUN_HERE
    if how == "run by":
        other = (ROOT / what).read_text()
        assert Path(block.page).name in other or all(line in other for line in block.text.splitlines())
    if how == "not run":
        assert len(what.split()) >= 3


def needs_engine(block: Block) -> bool:
    return re.match(r"(?:\w+=\S+ )*(?:docker|podman) ", block.text) is not None


@pytest.fixture
def network() -> Iterator[tuple[str, ...]]:
    """Return what to put before a command to run it in a network with nothing but loopback."""
    require_root()
    require_tools("nsenter", "unshare")
    with open_host() as host:
        yield host.prefix


@pytest.fixture
def workshop(network: tuple[str, ...], tmp_path: Path) -> Workshop:
    copy_source(tmp_path / "source")
    (tmp_path / "source" / ".venv").symlink_to(sys.prefix)
    return Workshop(network, tmp_path / "source")


@pytest.fixture
def engine(network: tuple[str, ...], tmp_path: Path) -> Iterator[Engine]:
    require_tools("podman", "iptables")
    copy_source(tmp_path / "source")
    (tmp_path / "secrets").mkdir()
    yield Engine(network, tmp_path / "source", tmp_path / "secrets")
    podman("rm", "--force", "--ignore", "--time=0", "nullsmtpd", prefix=network)


# Something has port 25 of one address, as a local mail server has. Argument: the address.
_OCCUPY = """
import socket, sys
with socket.create_server((sys.argv[1], 25)):
    print("listening", flush=True)
    sys.stdin.read()
"""


def files(machine: Booted) -> set[str]:
    """Return the names of the files on the host, less those that systemd and caches change at any time."""
    changing = r"/(?:proc|sys|run|dev|tmp|srv|root|var/(?:cache|log|lib/systemd|lib/apt))/"
    listed = machine.run("find", "/", "-xdev", "-not", "-type", "d", "-not", "-name", "*.pyc").splitlines()
    return {name for name in listed if not re.match(changing, name)}


def assert_in_production(machine: Booted, *addresses: str) -> None:
    """Check what the README promises: the addresses are answered without privileges, and the commands are found."""
    for address in addresses:
        machine.run("nullsmtpd", "check", "--early", address)
    pid = machine.run("systemctl", "show", "--value", "--property=MainPID", "nullsmtpd.service").strip()
    status = machine.run("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)
    for page in ("nullsmtpd", "nullsmtpd-check", "nullsmtpd-relay"):
        machine.run("man", "--where", page)
    assert "Restart=always" not in machine.run("systemctl", "--failed", "--no-pager")
    machine.run("systemctl", "restart", "nullsmtpd.service")
    machine.run("nullsmtpd", "check", addresses[0])


@pytest.mark.parametrize("suite", SUITES)
def test_the_commands_of_the_readme(suite: str) -> None:
    """From `apt` to an answering port 25 and back, on a bare Debian; then again beside a local mail server."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(host(suite, "README.md"))
        machine = place.machine
        before: set[str] = set()
        install, uninstall = (find("README.md", text) for text in ("systemctl enable", "systemctl disable"))
        for block in blocks("README.md"):
            if needs_engine(block):
                continue
            if block == install:
                before = files(machine)
            run_block(place, block, stack)
            if block == install:
                assert_in_production(machine, "127.0.0.1", "::1", ADDRESS_4, ADDRESS_6)
            if block == uninstall:
                assert files(machine) == before

        with background(machine.command("python3", "-c", _OCCUPY, "127.0.0.1"), "listening"):
            assert subprocess.run(place.command(install.text), capture_output=True, check=False).returncode
            # Not by the status of the unit: the process that logs it ends, and journald may not know its unit then.
            assert "Address already in use" in machine.run("journalctl", "-b", "-g", "listening socket")
            assert "python3" in machine.run("ss", "-ltnp", "sport = :25")
            # What the comment of the block says to do then.
            beside_mail_server, count = re.subn("^# listen=", "listen=", install.text, flags=re.MULTILINE)
            assert count == 1
            run(place, beside_mail_server, install)
            assert_in_production(machine, ADDRESS_4, ADDRESS_6)
            machine.run("sh", "-c", "echo NULLSMTPD_ACCESS_LOG=1 >> /etc/default/nullsmtpd")
            run(place, beside_mail_server.replace("mode=close", "mode=mail"), install)
            machine.run("nullsmtpd", "check", "--mode=mail", ADDRESS_4)
            assert " connection peer=" in machine.run("journalctl", "--unit=nullsmtpd.service")
            checked = machine.run("nullsmtpd", "check", "--timeout=1", "127.0.0.1", check=False)
            assert checked.startswith("127.0.0.1:25 bad")
            run(place, uninstall.text, uninstall)
        assert files(machine) == before


def find(page: str, text: str) -> Block:
    """Return the first block of a page with this text."""
    return next(block for block in blocks(page) if text in block.text)


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md", "deploy/image/README.md"])
def test_the_commands_for_containers(page: str, engine: Engine) -> None:
    """Build, run and check."""
    with contextlib.ExitStack() as stack:
        for block in filter(needs_engine, blocks(page)):
            run_block(engine, block, stack)


def test_the_commands_for_deployment() -> None:
    """On a host where the commands of the README have been run, in the order of the page."""
    page = "deploy/README.md"
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(host("bookworm", page, "curl", "python3-venv", "sudo"))
        run_block(place, find("README.md", "systemctl enable"), stack)
        for block in blocks(page):
            if not needs_engine(block):
                run_block(place, block, stack)


# Argument: a request of one netstring.
_QUERY = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect("/run/nullsmtpd/relay")
    client.sendall(sys.argv[1].encode())
    print(client.recv(512).decode())
"""


def test_the_commands_for_relays() -> None:
    """A missing extra is reported at once; with it, the service answers."""
    page = "deploy/relay/README.md"
    install = find(page, "systemctl enable")
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(host("trixie", page, "python3-venv", directory="deploy/relay"))
        without_extra = install.text.replace("[relay]", "")
        assert subprocess.run(place.command(without_extra), capture_output=True, check=False).returncode
        assert "[relay]" in place.machine.run("journalctl", "--unit=nullsmtpd-relay.service")
        for block in blocks(page):
            run_block(place, block, stack)
        assert "NOTFOUND" in place.machine.run("python3", "-c", _QUERY, "18:nullmx example.com,")


def test_the_commands_for_contributors(workshop: Workshop) -> None:
    with contextlib.ExitStack() as stack:
        for block in blocks("CONTRIBUTING.md"):
            run_block(workshop, block, stack)


def test_the_commands_for_a_load_test(workshop: Workshop) -> None:
    with contextlib.ExitStack() as stack:
        for block in blocks("bench/README.md"):
            run_block(workshop, block, stack)
