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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from bench import system
from bench.outcomes import DIALOGUE, GREETING, Script

#: The default of nullsmtpd, and of every other server here, so that none is given more room than another.
BACKLOG = 4096

#: Open files of a server beside those of its idle clients: those of the clients that are measured, and its own.
ROOM = 2048

_PORTS = range(20000, 32000)  # below the kernel's default range for clients, net.ipv4.ip_local_port_range
_START_TIMEOUT = 20.0
_STOP_TIMEOUT = 5.0  # from SIGTERM to SIGKILL
_NGINX_STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"
_SOURCES = Path(__file__).parent
_PATH = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/postfix/sbin"]
)


class Arm(NamedTuple):
    """One kind of server.

    In ``command`` and ``config`` stand ``{port}``, ``{backlog}``, and ``{directory}``, which is for its files.
    ``config`` is written to ``{directory}/config``.
    """

    name: str
    command: tuple[str, ...]
    config: str = ""
    needs: tuple[tuple[str, str], ...] = ()  # programs or files, each with its Debian package
    script: Script = GREETING
    addresses: int = 1  # from 127.0.0.1 on, with one port
    idle: int = 0  # clients that stay connected to it while others are measured
    instances: int = 1  # processes that share the port


@dataclass(eq=False)
class Server:
    """A running server."""

    arm: Arm
    targets: tuple[tuple[str, int], ...]
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    ready_ms: float = 0.0

    @property
    def pids(self) -> list[int]:
        """The processes that were started, and their children. Raises `RuntimeError` if one has ended."""
        for process in self.processes:
            if (status := process.poll()) is not None:
                raise RuntimeError(f"{self.arm.name} ended by itself, with status {status}")
        started = [process.pid for process in self.processes]
        return started + [child for pid in started for child in system.children(pid)]


def missing(arms: Sequence[Arm]) -> dict[str, str]:
    """Return why servers are missing on this machine, by their names."""
    return {
        arm.name: f"no {name} (Debian package {package})"
        for arm in arms
        for name, package in reversed(arm.needs)
        if not (Path(name).is_file() or shutil.which(name, path=_PATH))
    }


def nullsmtpd(*arguments: str, name: str = "nullsmtpd", addresses: int = 1, idle: int = 0, instances: int = 1) -> Arm:
    """Return nullsmtpd with these arguments, beside where it listens."""
    shared = ["--reuse-port"] if instances > 1 else []
    # Idle clients linger for an hour, with room for those that are measured: all must be there until the last round.
    kept = ["--linger=3600", f"--max-lingering={idle + ROOM}"] if idle else []
    listen = [f"--listen=127.0.0.{1 + number}:{{port}}" for number in range(addresses)]
    command = (sys.executable, "-m", "nullsmtpd", *arguments, *shared, *kept, *listen)
    return Arm(name, command, addresses=addresses, idle=idle, instances=instances)


def python(kind: str) -> Arm:
    """Return one of the servers of control.py."""
    # -P: the directory of control.py has modules of this package in it, which could hide others of the same name.
    return Arm(kind, (sys.executable, "-P", f"{_SOURCES}/control.py", kind, "{port}", "{backlog}"))


_NGINX = Arm(
    "nginx",
    ("nginx", "-p", "{directory}", "-c", "{directory}/config"),
    rf"""load_module {_NGINX_STREAM};
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{{{ worker_connections 8192; multi_accept on; }}}}
stream {{{{
    access_log off;
    server {{{{ listen 127.0.0.1:{{port}} backlog={{backlog}}; return "521 Host does not accept mail\r\n"; }}}}
}}}}
""",
    (("nginx", "nginx"), (_NGINX_STREAM, "libnginx-mod-stream")),
)
_BUILD_AND_RUN = 'cc -O2 -Wall -o "$0/control" "$1" && exec "$0/control" "$2" "$3"'
_C_LOOP = Arm(
    "c-loop",
    ("/bin/sh", "-c", _BUILD_AND_RUN, "{directory}", f"{_SOURCES}/control.c", "{port}", "{backlog}"),
    needs=(("cc", "gcc"),),
)
# -m: as many clients at once as the others take. -a to -p: of the extensions, announce no more than nullsmtpd does.
_SMTP_SINK = Arm(
    "smtp-sink",
    (
        *("smtp-sink", *(("-u", "nobody") if os.geteuid() == 0 else ()), "-m", "{backlog}"),
        *("-a", "-C", "-F", "-N", "-p", "-h", "mail.bench.example"),
        *("-f", "MAIL", "-B", "521 5.3.2 Host does not accept mail", "127.0.0.1:{port}", "{backlog}"),
    ),
    needs=(("smtp-sink", "postfix"),),
)

_DIALOGUES = (
    nullsmtpd("--mode", "mail", "--hostname", "mail.bench.example", name="mode-mail"),
    nullsmtpd("--mode", "session", name="mode-session"),
    _SMTP_SINK,
)

#: What `compare` and `soak` know by name.
ARMS = {
    arm.name: arm
    for arm in (nullsmtpd(), _NGINX, _C_LOOP, python("uvloop"), *(arm._replace(script=DIALOGUE) for arm in _DIALOGUES))
}

#: The least that a uvloop daemon can be, for `footprint`.
EMPTY = python("empty")


@contextlib.contextmanager
def running(arm: Arm, cpus: set[int] | None = None) -> Iterator[Server]:
    """Start a server on a free port, on ``cpus`` or the CPUs for servers, and end it afterwards.

    Raises `RuntimeError` if it is missing, and with the server's own words if it does not come up.
    """
    if why := missing([arm]):
        raise RuntimeError(why[arm.name])
    # Python compiles what it may not keep at each start, which is no part of what an installed server takes.
    unwanted = ("NULLSMTPD_", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    environment = inherited | {"PATH": _PATH}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        directory, port = Path(name), _free_port()
        filled = {"port": port, "directory": directory, "backlog": BACKLOG}
        command, log_path = [part.format(**filled) for part in arm.command], directory / "log"
        (directory / "config").write_text(arm.config.format(**filled))
        server = Server(arm, tuple((f"127.0.0.{1 + number}", port) for number in range(arm.addresses)))

        def start(log: IO[bytes]) -> None:
            # A session of its own: Ctrl-C is for this process, which then ends the server.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
            server.processes.append(process)

        begun = time.perf_counter()
        try:
            cpus = cpus or system.server_cpus(arm.instances)
            # In a thread, where no signal handler can leave behind a process that is in no list yet.
            with log_path.open("wb") as log, system.pinned(cpus), ThreadPoolExecutor(1) as thread:
                for _ in range(arm.instances):
                    thread.submit(start, log).result()
            _wait_until_ready(server, log_path)
            server.ready_ms = (time.perf_counter() - begun) * 1000
            yield server
        finally:
            _end(server.processes)


def _wait_until_ready(server: Server, log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    # Of several instances, one that answers does not show that the others listen.
    while not all(map(_answers, server.targets)) or (
        server.arm.instances > 1 and log_path.read_text().count(" listening ") < server.arm.instances
    ):
        if any(process.poll() is not None for process in server.processes) or time.monotonic() > deadline:
            words = log_path.read_text(errors="replace").strip()
            raise RuntimeError(f"{server.arm.name} does not listen: {words[-400:] or 'it gives no reason'}")
        time.sleep(0.0005)


def _answers(target: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(target) == 0


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
    finally:  # also after Ctrl-C
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    raise RuntimeError(f"no free port in {_PORTS}")
