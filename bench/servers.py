"""The servers that are measured: how each is found, started on its own CPU, recognised as ready, and ended."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench import process
from bench.client import DIALOGUE

__all__ = [
    "ARMS",
    "BACKLOG",
    "DIALOGUES",
    "LINE",
    "PEERS",
    "ROOM",
    "Arm",
    "MissingError",
    "Server",
    "is_there",
    "nullsmtpd",
    "refused_at_mail",
    "running",
    "varied",
]

LINE = "521 Host does not accept mail"

#: The default of nullsmtpd, and of every other server here, so that none is given more room than another.
BACKLOG = 4096

#: Open files of a server beside those of its idle clients: those of the clients that are measured, and its own.
ROOM = 2048

_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/postfix/sbin"]
)
_NGINX_STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"
_CONTROL = Path(__file__).with_name("control.py")
_CONTROL_C = Path(__file__).with_name("control.c")
_PORTS = range(20000, 32000)  # below the kernel's default range for clients, net.ipv4.ip_local_port_range
_PATIENCE = 20.0
_GRACE = 5.0  # seconds from SIGTERM to SIGKILL


class MissingError(Exception):
    """A server cannot be had on this machine; the message says what it would take."""


class Arm(NamedTuple):
    """One kind of server. ``command`` makes a command line from the ports and a directory for its files."""

    name: str
    what: str
    command: Callable[[list[int], Path], list[str]]
    needs: Callable[[], object] = lambda: None  # raises MissingError
    #: Whether a child of the process that is started does the work (nginx).
    in_child: bool = False
    #: The process says on stdout that it is ready, and listens nowhere.
    silent: bool = False
    #: What its clients say, each after the reply to the one before, and what the replies begin with.
    commands: tuple[bytes, ...] = ()
    expect: tuple[bytes, ...] = (b"521",)
    #: How many addresses it listens on.
    addresses: int = 1
    #: How many clients stay connected to it while others are measured, idle.
    held: int = 0


class Server:
    """A running server."""

    def __init__(self, arm: Arm, started: subprocess.Popen[bytes], ports: list[int], ready_ms: float) -> None:
        """Note what `running` has started."""
        self.arm = arm
        self.process = started
        self.targets = tuple(("127.0.0.1", port) for port in ports)
        self.ready_ms = ready_ms

    @property
    def family(self) -> list[int]:
        """All processes of it that there are now."""
        return [self.process.pid, *process.children(self.process.pid)]

    @property
    def pids(self) -> list[int]:
        """Those whose work is the server's answer."""
        return self.family[1:] if self.arm.in_child else self.family

    def descriptors(self) -> int:
        """Return how many files it has open."""
        return process.descriptors(self.pids)

    def settle(self, quiet: float = 0.4, patience: float = 3.0) -> None:
        """Wait until the number of descriptors has not changed for ``quiet`` seconds.

        What closing a connection costs belongs to that connection, and nullsmtpd may take 0.25 s to look at the last.
        """
        deadline = time.monotonic() + patience
        count, since = -1, time.monotonic()
        while time.monotonic() < min(since + quiet, deadline):
            now = process.descriptors(self.pids)
            if now != count:
                count, since = now, time.monotonic()
            time.sleep(0.05)


def _tool(name: str, package: str) -> str:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise MissingError(f"no {name} (Debian package {package})")
    return path


def _nullsmtpd(*arguments: str) -> Callable[[list[int], Path], list[str]]:
    def command(ports: list[int], directory: Path) -> list[str]:
        listen = [word for port in ports for word in ("--listen", f"127.0.0.1:{port}")]
        return [sys.executable, "-m", "nullsmtpd", *listen, *arguments]

    return command


def _control(kind: str) -> Callable[[list[int], Path], list[str]]:
    # -P: the directory of control.py has modules of this package in it, which are none of its business.
    def command(ports: list[int], directory: Path) -> list[str]:
        return [sys.executable, "-P", str(_CONTROL), kind, str(ports[0]), str(BACKLOG)]

    return command


def _bare(ports: list[int], directory: Path) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", "import posix, time; posix.write(1, b'.'); time.sleep(86400)"]


def _c(ports: list[int], directory: Path) -> list[str]:
    binary = directory / "control"
    subprocess.run([_tool("cc", "gcc"), "-O2", "-Wall", "-o", binary, _CONTROL_C], check=True)
    return [str(binary), str(ports[0]), str(BACKLOG)]


def _find_nginx() -> tuple[str, str]:
    """Return the program and the line of configuration that loads its stream module, empty if it is built in."""
    nginx = _tool("nginx", "nginx")
    if Path(_NGINX_STREAM).exists():
        return nginx, f"load_module {_NGINX_STREAM};"
    built = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=False).stderr.split()
    if "--with-stream" not in built:
        raise MissingError("nginx has no stream module (Debian package libnginx-mod-stream)")
    return nginx, ""


def _nginx(ports: list[int], directory: Path) -> list[str]:
    nginx, load = _find_nginx()
    configuration = directory / "nginx.conf"
    configuration.write_text(
        f"""{load}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
events {{ worker_connections 8192; multi_accept on; }}
stream {{
    access_log off;
    server {{ listen 127.0.0.1:{ports[0]} backlog={BACKLOG}; return "{LINE}\\r\\n"; }}
}}
"""
    )
    return [nginx, "-p", str(directory), "-c", str(configuration)]


def _smtp_sink(*options: str) -> Callable[[list[int], Path], list[str]]:
    # -m: as many clients at once as the others take; it would leave all beyond 256 waiting.
    def command(ports: list[int], directory: Path) -> list[str]:
        switch = ["-u", "nobody"] if os.geteuid() == 0 else []
        sink = _tool("smtp-sink", "postfix")
        return [sink, *switch, "-m", str(BACKLOG), *options, f"127.0.0.1:{ports[0]}", str(BACKLOG)]

    return command


# What smtp-sink(1) must not announce, so that it offers about what nullsmtpd offers: 8BITMIME, ENHANCEDSTATUSCODES.
_PLAIN = ("-a", "-C", "-F", "-N", "-p")


def nullsmtpd(*arguments: str, name: str = "nullsmtpd") -> Arm:
    """Return nullsmtpd with these options, beside where it listens."""
    return Arm(name, " ".join(["nullsmtpd", *arguments]), _nullsmtpd(*arguments))


def varied(lingers: Sequence[float], held: Sequence[int], addresses: Sequence[int]) -> list[Arm]:
    """Return nullsmtpd with each ``--linger``, with each number of idle clients, with each number of addresses.

    Idle clients linger for an hour, with room for those that are measured: all must be there until the last round.
    """
    arms = [nullsmtpd("--linger", f"{seconds:g}", name=f"linger {seconds:g}") for seconds in lingers]
    for count in held:
        room = ("--linger", "3600", "--max-lingering", str(count + ROOM))
        arms.append(nullsmtpd(*room, name=f"{count} idle")._replace(held=count))
    plural = {1: "1 address"}
    arms += [nullsmtpd(name=plural.get(count, f"{count} addresses"))._replace(addresses=count) for count in addresses]
    return arms


#: What `compare` and `soak` measure, nullsmtpd first.
ARMS = {
    arm.name: arm
    for arm in (
        Arm("nullsmtpd", "nullsmtpd, default options", _nullsmtpd()),
        Arm("nginx", "nginx stream return, one worker, multi_accept", _nginx, _find_nginx, in_child=True),
        Arm("c-loop", "control.c: accept4, send, shutdown, close", _c, lambda: _tool("cc", "gcc")),
        Arm("uvloop", "uvloop Protocol, write and close", _control("uvloop")),
        Arm("asyncio", "stdlib asyncio Protocol, write and close", _control("asyncio")),
    )
}


def refused_at_mail(reply: str = "521") -> tuple[bytes, ...]:
    """Return what the replies to `DIALOGUE` begin with, the greeting's first.

    The mail is refused with ``reply``, and QUIT is answered (RFC 5321 §4.1.1.10). Whether the greeting and EHLO are
    refused already is the server's choice.
    """
    return b"", b"", reply.encode("ascii"), b"221"


def _dialogue(
    name: str, what: str, command: Callable[[list[int], Path], list[str]], needs: Callable[[], object] = lambda: None
) -> Arm:
    return Arm(name, what, command, needs, commands=DIALOGUE, expect=refused_at_mail())


#: What `compare --dialogue` measures: another unit of work, so never in one table with `ARMS`.
DIALOGUES = {
    arm.name: arm
    for arm in (
        _dialogue("mode-session", "nullsmtpd --mode session", _nullsmtpd("--mode", "session")),
        _dialogue(
            "mode-mail", "nullsmtpd --mode mail", _nullsmtpd("--mode", "mail", "--hostname", "mail.bench.example")
        ),
        _dialogue(
            "smtp-sink",
            "Postfix smtp-sink -f MAIL -B",
            _smtp_sink(*_PLAIN, "-h", "mail.bench.example", "-f", "MAIL", "-B", f"521 5.3.2 {LINE[4:]}"),
            lambda: _tool("smtp-sink", "postfix"),
        ),
    )
}

#: What `footprint` measures beside nullsmtpd and nginx.
PEERS = {
    arm.name: arm
    for arm in (
        Arm("empty-uvloop", "uvloop, one listening socket, nothing else", _control("empty")),
        Arm("python", "python3 -I -S, asleep", _bare, silent=True),
    )
}


def is_there(arm: Arm) -> str | None:
    """Return why an arm is missing on this machine, or None."""
    try:
        arm.needs()
    except MissingError as missing:
        return str(missing)
    return None


@contextlib.contextmanager
def running(arm: Arm, *, addresses: int = 1, cpus: set[int] | None = None) -> Iterator[Server]:
    """Start a server on ``addresses`` ports of 127.0.0.1, pinned to ``cpus``, and end it afterwards.

    Raises `RuntimeError` with the server's own words if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        ports = _free_ports(addresses)
        command = arm.command(ports, Path(name))
        log_path = Path(name, "log")
        with log_path.open("wb") as log, _pinned(cpus):
            begun = time.perf_counter()
            # A session of its own: Ctrl-C is for us, and we end it then.
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if arm.silent else log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
            )
        try:
            _wait_until_ready(arm, started, ports, log_path)
            ready_ms = (time.perf_counter() - begun) * 1000
            if arm.in_child:
                _wait_for_child(arm, started)
            yield Server(arm, started, ports, ready_ms)
        finally:
            _end(started)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("NULLSMTPD_")}


@contextlib.contextmanager
def _pinned(cpus: set[int] | None) -> Iterator[None]:
    """Start what is started meanwhile on ``cpus``: a child inherits them, with all its threads."""
    if cpus is None or sys.platform != "linux":
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _wait_until_ready(arm: Arm, started: subprocess.Popen[bytes], ports: list[int], log_path: Path) -> None:
    if started.stdout is not None:
        started.stdout.read(1)
        return
    deadline = time.monotonic() + _PATIENCE
    for port in ports:
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if started.poll() is not None or time.monotonic() > deadline:
                said = log_path.read_text(errors="replace").strip()
                raise RuntimeError(f"{arm.name} does not listen: {said[-400:] or 'no word of why'}")
            time.sleep(0.0005)


def _wait_for_child(arm: Arm, started: subprocess.Popen[bytes]) -> None:
    """Wait for the process that does the work: nginx listens before it forks."""
    deadline = time.monotonic() + _PATIENCE
    while not process.children(started.pid):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{arm.name} has no worker")
        time.sleep(0.001)


def _end(started: subprocess.Popen[bytes]) -> None:
    started.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        started.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    if started.stdout is not None:
        started.stdout.close()


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"not {count} free ports in {_PORTS}")
