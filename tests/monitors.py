"""What monitoring programs report about a host that refuses mail: ``python tests/monitors.py`` prints the table.

deploy/README.md has the table between ``<!-- monitors -->`` and ``<!-- /monitors -->``, and the configuration that it
takes in blocks of its own. A cell is what a program reports about one server: a responder in each mode; one that
hangs, so that only the kernel accepts connections; and a mail server that accepts mail, which a monitor should notice.
"""

import contextlib
import csv
import io
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from faults import stopped
from misbehaving import FIN, LISTEN, serving
from support import MODES, PATIENCE, require, require_tools, starting

__all__ = ["README", "monitor_table", "shown_table"]

README = Path(__file__).parent.parent / "deploy" / "README.md"

#: Where Debian has the plugins of the package monitoring-plugins-basic.
PLUGINS = Path("/usr/lib/nagios/plugins")
#: The exit statuses of a plugin (Monitoring Plugins Development Guidelines, 2.3).
STATUSES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
#: The seconds that each monitor waits for a server that hangs.
TIMEOUT = 2

#: What a mail server replies to a connection and to each command of a client that says EHLO, MAIL and QUIT.
ACCEPTING = (b"220 mx.example\r\n", LISTEN, b"250 mx.example\r\n", LISTEN, b"250 Ok\r\n", LISTEN, b"221 Bye\r\n", FIN)

#: Asks the server at a port of 127.0.0.1, which is in a mode, and returns what it reports.
Ask = Callable[[int, str], str]


def block(language: str) -> str:
    """Return the one block of deploy/README.md in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert isinstance(text, str)
    return text


def plugin(*command: str) -> Ask:
    """Return what runs a plugin; ``{port}`` and ``{mode}`` are filled in."""

    def ask(port: int, mode: str) -> str:
        name, *arguments = (argument.format(port=port, mode=mode) for argument in command)
        done = subprocess.run([str(PLUGINS / name), *arguments], capture_output=True, timeout=PATIENCE, check=False)
        return STATUSES[done.returncode]

    return ask


def zabbix(key: str) -> Ask:
    """Return what asks Zabbix's agent for an item; the server's simple checks are the same code."""

    def ask(port: int, _mode: str) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as configuration:
            configuration.write(f"Hostname=test\nServer=127.0.0.1\nLogType=console\nTimeout={TIMEOUT}\n")
            configuration.flush()
            command = ("zabbix_agentd", "--config", configuration.name, "--test", key.format(port=port))
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
        value = re.search(r"\[[a-z]\|(\d)\]", done.stdout)
        assert value, done.stdout
        return value[1]

    return ask


def haproxy(*lines: str, backend: str = "") -> Ask:
    """Return what has haproxy check a server, by a backend of its own or one of deploy/README.md."""

    def ask(port: int, _mode: str) -> str:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "socket")
            check = [f"    {line}" for line in lines] if lines else _backend(backend)
            server = f"    server one 127.0.0.1:{port} check inter 100ms rise 1 fall 1"
            text = [_HAPROXY.format(path=path, timeout=TIMEOUT), "backend checked", *check, server, ""]
            (configuration := Path(directory, "haproxy.cfg")).write_text("\n".join(text))
            with subprocess.Popen(("haproxy", "-db", "-f", str(configuration)), stderr=subprocess.DEVNULL) as process:
                try:
                    return _haproxy_status(path)
                finally:
                    process.kill()

    return ask


_HAPROXY = """
global
    stats socket {path}
defaults
    mode tcp
    timeout connect {timeout}s
    timeout check {timeout}s
    timeout server {timeout}s
"""


def _backend(name: str) -> list[str]:
    """Return the lines of a backend in deploy/README.md but for the server's."""
    found = re.search(rf"^backend {name} .*\n((?:    .*\n)+)", block("haproxy"), re.MULTILINE)
    assert found
    return [line for line in found[1].splitlines() if not line.startswith("    server ")]


def _haproxy_status(path: Path) -> str:
    """Return the state of the server once its first check is complete."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as control:
            control.connect(str(path))
            control.sendall(b"show stat\n")
            rows = csv.DictReader(io.StringIO(control.makefile().read().lstrip("# ")))
            (server,) = (row for row in rows if row["svname"] == "one")
            if server["check_status"] not in {"INI", ""} and not server["check_status"].startswith("*"):
                return server["status"]
        time.sleep(0.02)
    raise TimeoutError("haproxy has not checked the server")


class Blackbox:
    """A prometheus-blackbox-exporter with the modules of deploy/README.md, and one that only connects."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        modules = block("yaml").replace("timeout: 5s", f"timeout: {TIMEOUT}s")
        (directory / "blackbox.yml").write_text(f"{modules}  tcp_connect:\n    prober: tcp\n")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        command = (
            *("prometheus-blackbox-exporter", f"--config.file={directory}/blackbox.yml"),
            f"--web.listen-address={self._address}",
        )
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(process.kill)

    def module(self, name: str) -> Ask:
        """Return what asks for ``probe_success`` by a module."""

        def ask(port: int, _mode: str) -> str:
            query = urllib.parse.urlencode({"target": f"127.0.0.1:{port}", "module": name})
            value = re.search(r"^probe_success (\d)$", self._get(f"/probe?{query}"), re.MULTILINE)
            assert value
            return value[1]

        return ask

    def _get(self, path: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with urllib.request.urlopen(f"http://{self._address}{path}", timeout=PATIENCE) as response:
                    text: str = response.read().decode()
                    return text
            except OSError:  # it has not started yet
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def probes(blackbox: Blackbox) -> Mapping[str, Ask]:
    """Return every way of asking, by its name in the table."""
    smtp = ("check_smtp", "-H", "127.0.0.1", "-p", "{port}", "-t", str(TIMEOUT))
    tcp = ("check_tcp", "-H", "127.0.0.1", "-p", "{port}", "-t", str(TIMEOUT))
    nullsmtpd = shutil.which("nullsmtpd", path=Path(sys.executable).parent)
    require(nullsmtpd, "the command nullsmtpd beside this Python")
    check = ("negate", "-w", "CRITICAL", str(nullsmtpd), "check", "--timeout", str(TIMEOUT), "--mode", "{mode}")
    return {
        "`check_tcp`": plugin(*tcp),
        "`check_tcp -e 521`": plugin(*tcp, "-e", "521"),
        "`check_smtp`": plugin(*smtp),
        "`check_smtp -e 521`": plugin(*smtp, "-e", "521"),
        "`check_smtp -C 'MAIL FROM:<>' -R 521`": plugin(*smtp, "-C", "MAIL FROM:<>", "-R", "521"),
        "`nullsmtpd check --mode MODE`, by `negate`": plugin(*check, "127.0.0.1:{port}"),
        "haproxy, `check`": haproxy("option tcp-check"),
        "haproxy, `option smtpchk`": haproxy("option smtpchk EHLO haproxy.example"),
        "haproxy, backend `refuses`": haproxy(backend="refuses"),
        "haproxy, backend `refuses_mail`": haproxy(backend="refuses_mail"),
        "blackbox, `prober: tcp`": blackbox.module("tcp_connect"),
        "blackbox, module `refuses`": blackbox.module("refuses"),
        "blackbox, module `refuses_mail`": blackbox.module("refuses_mail"),
        "Zabbix, `net.tcp.service[tcp,HOST,25]`": zabbix("net.tcp.service[tcp,127.0.0.1,{port}]"),
        "Zabbix, `net.tcp.service[smtp,HOST]`": zabbix("net.tcp.service[smtp,127.0.0.1,{port}]"),
    }


COLUMNS = (*(f"`{mode}`" for mode in MODES), "process hangs", "mail is accepted")


def monitor_table() -> Iterator[Sequence[str]]:
    """Ask everything about every server; yield the rows of the table."""
    require((PLUGINS / "check_smtp").exists(), "monitoring-plugins-basic")
    require_tools("haproxy", "prometheus-blackbox-exporter", "zabbix_agentd")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = stack.enter_context(starting(directory))
        servers = [(mode, start("--mode", mode).address[1]) for mode in MODES]
        hanging = start()
        stack.enter_context(stopped(hanging))
        servers.append((MODES[0], hanging.address[1]))
        yield ("probe", *COLUMNS)
        asked = probes(Blackbox(stack))
        # Most of them wait for the server that hangs. The one that accepts mail serves one client at a time.
        pool = stack.enter_context(ThreadPoolExecutor(len(asked)))
        rows = {
            name: [
                pool.submit(ask, port, mode)
                for mode, port in (*servers, (MODES[0], stack.enter_context(serving(*ACCEPTING)).port))
            ]
            for name, ask in asked.items()
        }
        for name, cells in rows.items():
            yield (name, *(cell.result() for cell in cells))


def shown_table() -> list[list[str]]:
    """Return the rows of the table in deploy/README.md."""
    found = re.search(r"^<!-- monitors -->\n(.*?)^<!-- /monitors -->$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert found
    head, _, *rows = found[1].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]


if __name__ == "__main__":
    for number, row in enumerate(monitor_table()):
        print(f"| {' | '.join(row)} |")  # noqa: T201 - the result
        if not number:
            print(f"|{' --- |' * len(row)}")  # noqa: T201 - the result
