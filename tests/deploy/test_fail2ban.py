"""deploy/fail2ban with the real fail2ban: the daemon's lines match in every kind of log, and clients are banned."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from faults import stopped
from hosts import CLIENT, SERVER_4, connected_hosts
from support import LINE, MODES, PATIENCE, Daemon, Start, connect, require, require_root, require_tools

from nullsmtpd.runtime.log import log

DEPLOY = Path(__file__).parents[2] / "deploy" / "fail2ban"
README = DEPLOY.parent / "README.md"
INSTALLED = Path("/etc/fail2ban")
JOURNAL_REMOTE = Path("/lib/systemd/systemd-journal-remote")

# Connects so many times from one address to another, and prints what it read at last. Run in a network of the test's.
KNOCK = """
import socket, sys
source, host, port, count = sys.argv[1:]
try:
    for _ in range(int(count)):
        with socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0)) as client:
            received = client.recv(99)
    print(received)
except OSError as error:
    print(type(error).__name__)
"""


def matched(log_or_journal: Path | str, mode: str = "early", out: str = "ip") -> list[str]:
    """Return the addresses that the filter finds there, sorted, once for every line that matches."""
    require_tools("fail2ban-regex")
    given = [str(log_or_journal), f"{DEPLOY}/filter.d/nullsmtpd.conf[mode={mode}]"]
    result = subprocess.run(
        ["fail2ban-regex", "--out", out, *given],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return sorted(result.stdout.splitlines())


def log_of_hasty_and_polite_clients(start: Start, *arguments: str) -> str:
    """Return what a daemon logs to which a client of each family has spoken first, and another has not."""
    daemon = start("--access-log", "--listen", "[::1]:0", *arguments, count=2)
    with stopped(daemon):
        hasty = [connect(address) for address in daemon.addresses()]
        for client in hasty:
            client.sendall(b"EHLO x\r\n")
    for client in (*hasty, *map(connect, daemon.addresses())):
        assert client.recv(4)[1:] in {b"21 ", b"20 "}
        client.close()
    daemon.stats()
    assert daemon.stop() == 0
    assert len(daemon.lines("connection")) == 4
    return daemon.log


@pytest.mark.parametrize("mode", MODES)
def test_the_filter_finds_who_spoke_first(start: Start, tmp_path: Path, mode: str) -> None:
    """Lines of the real daemon: the hasty client of each family, or all of them; no other line matches."""
    file = tmp_path / "access.log"
    file.write_text(log_of_hasty_and_polite_clients(start, "--mode", mode))
    assert matched(file, "early") == ["127.0.0.1", "::1"]
    assert matched(file, "all") == ["127.0.0.1", "127.0.0.1", "::1", "::1"]


def test_the_filter_finds_them_in_the_journal_too(start: Start, tmp_path: Path) -> None:
    """The same lines as a service's, in a journal file: systemd's own tool writes it."""
    require(JOURNAL_REMOTE.exists(), "systemd-journal-remote")
    export = "".join(
        f"__REALTIME_TIMESTAMP={time.time_ns() // 1000 + number}\n__MONOTONIC_TIMESTAMP={number + 1}\n"
        f"_BOOT_ID={'1' * 32}\n_HOSTNAME=host\n_SYSTEMD_UNIT={unit}\n_SYSTEMD_SLICE={slice_}\n"
        f"SYSLOG_IDENTIFIER=nullsmtpd\n_PID=12\nMESSAGE={line}\n\n"
        for unit, slice_ in SERVICES
        for number, line in enumerate(log_of_hasty_and_polite_clients(start).splitlines())
    )
    subprocess.run(
        [JOURNAL_REMOTE, "--output", tmp_path / "x.journal", "-"],
        input=export.encode(),
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert matched(f"systemd-journal[journalfiles={tmp_path / 'x.journal'}]") == ["127.0.0.1"] * 2 + ["::1"] * 2


#: The units of entries in a journal, with their slices: the service, an instance, and another one that is not read.
SERVICES = (
    ("nullsmtpd.service", "system.slice"),
    ("nullsmtpd@1.service", "system-nullsmtpd.slice"),
    ("other.service", "system.slice"),
)


STAMP = "2026-11-23T20:00:00.000Z"
ACCESS = f"{STAMP} connection peer={{peer}} local=192.0.2.1:25 mode=close spoke_first=yes"

#: What a line looks like in the logs that one finds on hosts; `{line}` is the daemon's own.
LOGS = {
    "file": "{line}",
    "syslog": "Nov 23 20:00:01 host nullsmtpd[12]: {line}",
    "syslog, one digit": "Nov  3 20:00:01 host.example.org nullsmtpd[12]: {line}",
    "journalctl --output short-precise": "Nov 23 20:00:01.000001 host nullsmtpd[12]: {line}",
    "journalctl --output short-iso": "2026-11-23T21:00:01+0100 host nullsmtpd[12]: {line}",
    "syslog-ng, chain of hosts": "Nov 23 20:00:01 source@host/relay.example.org nullsmtpd[12]: {line}",
    "syslog-ng, ts-format(full)": "2026 Nov 23 20:00:01 host nullsmtpd[12]: {line}",
    "syslog, docker's image, name and id as the tag": (
        "Nov 23 20:00:01 host registry.example:5000/nullsmtpd:0.2.0/web/0123456789ab[12]: {line}"
    ),
    "rsyslog, received as RFC 5424": "2026-11-23T20:00:01.000001+00:00 host.example nullsmtpd[12] {line}",
    "RFC 3339": "2026-11-23T20:00:01.000001+00:00 host nullsmtpd[12]: {line}",
    "RFC 3339, docker's tag": "2026-11-23T21:00:01+01:00 host 0123456789ab/nullsmtpd[12]: {line}",
    "RFC 3339, a compose service": "2026-11-23T20:00:01.000001+00:00 host deploy-nullsmtpd-1[12]: {line}",
    "RFC 5424": "<30>1 2026-11-23T20:00:01.000001Z host nullsmtpd 12 - - {line}",
    "RFC 5424, docker": "<30>1 2026-11-23T20:00:01Z host nullsmtpd 12 nullsmtpd - {line}",
    "RFC 5424, structured data": '1 2026-11-23T20:00:01+00:00 host nullsmtpd - - [a@1 b="c"][d] {line}',
    "RFC 5424, brackets in a value": '<30>1 2026-11-23T20:00:01Z host nullsmtpd 12 - [a@1 b="[c\\]"] {line}',
    "RFC 5424, rsyslog": "<30>1 2026-11-23T20:00:01.000001+00:00 host nullsmtpd 12 - -  {line}",
    "docker json-file": '{{"log":"{line}\\n","stream":"stderr","time":"2026-11-23T20:00:01.000000001Z"}}',
    "docker json-file, tag": (
        '{{"log":"{line}\\n","stream":"stderr","attrs":{{"tag":"x"}},"time":"2026-11-23T20:00:01.000000001Z"}}'
    ),
    "docker json-file, labels": (
        '{{"log":"{line}\\n","stream":"stderr","attrs":{{"a":"{{\\"b\\":1}}"}},"time":"2026-11-23T20:00:01.000000001Z"}}'
    ),
    "Kubernetes CRI": "2026-11-23T20:00:01.000000001Z stderr F {line}",
    "podman k8s-file": "2026-11-23T21:00:01.000000001+01:00 stderr F {line}",
}


@pytest.mark.parametrize("name", LOGS)
def test_a_line_is_found_in_every_kind_of_log(tmp_path: Path, name: str) -> None:
    """Once, with the client's address and the daemon's own time; a client that waited for the greeting is not early."""
    (file := tmp_path / "log").write_text(LOGS[name].format(line=ACCESS.format(peer="192.0.2.66:40000")) + "\n")
    assert matched(file, out="row") == [f"['192.0.2.66',\t{EPOCH},\t{{'ip4': '192.0.2.66', 'ip6': None}}],"]
    file.write_text(file.read_text().replace("spoke_first=yes", "spoke_first=no"))
    assert matched(file) == []
    assert matched(file, "all") == ["192.0.2.66"]


EPOCH = 1_795_464_000  # STAMP


def test_addresses_of_every_form_are_found(tmp_path: Path) -> None:
    """Link-local ones with their interface, and unusual ones."""
    peers = ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0.5]:25", "[1:2:3:4:5:6:7:8]:9"]
    (file := tmp_path / "access.log").write_text("".join(ACCESS.format(peer=peer) + "\n" for peer in peers))
    assert matched(file) == sorted(["192.0.2.1", "2001:db8::1", "fe80::1", "1:2:3:4:5:6:7:8"])


def test_no_line_of_another_event_passes_for_an_access_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever gets into a value of another event, even a whole access line, in whichever log, nobody is banned."""
    forged = ACCESS.format(peer="192.0.2.66:1")
    for value in (forged, f"\n{forged}\n", f'"\r\n{forged}', f"nullsmtpd[1]: {forged}", forged.partition(" ")[2]):
        log("internal-error", message=value)
    lines = [line for line in capfd.readouterr().err.splitlines() if " internal-error " in line]
    assert len(lines) == 5
    logged = [template.format(line=line.replace('"', '\\"')) for template in LOGS.values() for line in lines]
    (file := tmp_path / "log").write_text("\n".join([*lines, *logged]) + "\n")
    assert matched(file, "all") == []


def test_messages_of_other_programs_do_not_pass_for_an_access_line(tmp_path: Path) -> None:
    """Those that quote what a client sent, or begin with it."""
    forged = ACCESS.format(peer="192.0.2.66:1")
    others = [template.replace("nullsmtpd", "sshd") for template in LOGS.values() if "nullsmtpd" in template]
    lines = [template.format(line=forged) for template in others]
    quoting = (
        "Invalid user {}",
        "GET /?{} HTTP/1.1",
        "x\t{}",
        "  {}",
        "{} ",
        "{} from 192.0.2.7",
        "nullsmtpd: {}",
        "nullsmtpd[1] {}",
        '{{"log":"{}',
        "{}\\n",
    )
    lines += [template.format(line=quote.format(forged)) for template in LOGS.values() for quote in quoting]
    lines += [
        "2026-11-23T20:00:01.1Z stderr P " + forged,
        "kernel: " + forged,
        "host nullsmtpd: host nullsmtpd: " + forged,
    ]
    (file := tmp_path / "log").write_text("\n".join(lines) + "\n")
    assert matched(file, "all") == []


Ban = Callable[..., Path]


@pytest.fixture
def ban(tmp_path: Path) -> Iterator[Ban]:
    """Return a function that runs fail2ban with the jails of deploy/ on a log file.

    Its action appends each ban as a line ``JAIL ADDRESS`` to the file returned, and with ``really`` it bans as well.
    """
    require_tools("fail2ban-server", "fail2ban-client")
    started: list[subprocess.Popen[bytes]] = []

    def run(log_path: Path, *, really: bool = False, prefix: Sequence[str] = ()) -> Path:
        configuration, bans = tmp_path / "fail2ban", tmp_path / "bans"
        shutil.copytree(INSTALLED, configuration, ignore=shutil.ignore_patterns("defaults-debian.conf"))
        shutil.copytree(DEPLOY, configuration, dirs_exist_ok=True)
        (configuration / "action.d" / "note.conf").write_text(
            f'[Definition]\nactionban = echo "<name> <ip>" >> {bans}\n'
        )
        (configuration / "fail2ban.local").write_text("[Definition]\ndbfile = None\nlogtarget = STDOUT\n")
        # As deploy/README.md says for a log in a file: where, and what.
        (override,) = re.findall(r"`/etc/fail2ban/(jail\.d/\S+)`, which is read after", README.read_text())
        here = f"backend = polling\nlogpath = {log_path}\n"
        (configuration / override).write_text(
            f"[DEFAULT]\nignoreself = false\naction = note\n         {'%(action_)s' if really else ''}\n"
            f"[nullsmtpd-early]\n{here}[nullsmtpd-often]\n{here}"
        )
        bans.touch()
        paths = ["-c", configuration, "-s", tmp_path / "socket", "-p", tmp_path / "pid"]
        command = [*prefix, "fail2ban-server", *map(str, paths), "-f", "start"]
        output = (tmp_path / "fail2ban.log").open("wb")
        with output:
            # In another time zone than the daemon's stamps: a filter that took them for local time would find them old.
            started.append(
                subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | {"TZ": "Asia/Tokyo"})
            )
        return bans

    yield run
    for process in started:
        process.terminate()
        process.wait(PATIENCE)


def access_file(daemon: Daemon) -> Path:
    """Return the file that the daemon logs to."""
    return Path(os.readlink(f"/proc/{daemon.pid}/fd/2"))  # noqa: PTH115 - a Path is not what the link holds


def visit(daemon: Daemon, source: str, count: int, *, early: bool = False) -> None:
    """Connect so many times from an address of loopback, and send data before the greeting or not."""
    for _ in range(count):
        with socket.socket() as client:
            client.bind((source, 0))
            if early:
                with stopped(daemon):
                    client.connect(daemon.address)
                    client.sendall(b"EHLO x\r\n")
            else:
                client.connect(daemon.address)
            client.settimeout(PATIENCE)
            assert client.recv(99) == LINE


def test_the_jails_ban_early_talkers_and_frequent_clients(start: Start, ban: Ban) -> None:
    """fail2ban itself reads the log of the daemon: the third early client and the sixtieth connection are banned."""
    daemon = start("--access-log")
    visit(daemon, "127.0.0.66", 3, early=True)
    visit(daemon, "127.0.0.67", 2, early=True)
    visit(daemon, "127.0.0.68", 60)
    visit(daemon, "127.0.0.69", 50)
    bans = ban(access_file(daemon))
    expected = ["nullsmtpd-early 127.0.0.66", "nullsmtpd-often 127.0.0.68"]
    daemon.wait_for(lambda: len(bans.read_text().splitlines()) >= len(expected), "two bans")
    assert sorted(bans.read_text().splitlines()) == expected


@pytest.mark.parametrize("port", [25, 2525])
def test_a_banned_client_is_refused(start: Start, ban: Ban, port: int) -> None:
    """With the jails' own action: on a host that binds port 25, and on one that redirects it to another port."""
    require_root()
    require_tools("nft", "nsenter", "unshare", "ip")
    with connected_hosts() as (server, client):
        daemon = start("--access-log", prefix=server.prefix, listen=f"{SERVER_4}:{port}")
        if port != 25:
            server.run("nft", "-f", "-", stdin=REDIRECTION)

        def read_by(source: str, count: int = 1) -> str:
            return client.run(sys.executable, "-c", KNOCK, source, SERVER_4, "25", str(count)).strip()

        bans = ban(access_file(daemon), really=True, prefix=server.prefix)
        assert read_by("198.18.0.66", 60) == str(LINE)
        daemon.wait_for(lambda: bans.read_text() == "nullsmtpd-often 198.18.0.66\n", "a ban")
        daemon.wait_for(lambda: read_by("198.18.0.66") == "ConnectionRefusedError", "a refusal")
        assert read_by(CLIENT) == str(LINE)


REDIRECTION = (
    "table ip engine { chain nat { type nat hook prerouting priority dstnat; tcp dport 25 redirect to :2525; }; }"
)


def test_fail2ban_accepts_the_configuration_as_it_is_installed(tmp_path: Path) -> None:
    """With Debian's own jail for sshd on a host without rsyslog, and the line of deploy/README.md for it."""
    require_tools("fail2ban-client")
    shutil.copytree(INSTALLED, configuration := tmp_path / "fail2ban")
    shutil.copytree(DEPLOY, configuration, dirs_exist_ok=True)
    (sshd,) = re.findall(
        r"^printf '(.*)' \| sudo tee /etc/fail2ban/jail.d/sshd.local$", README.read_text(), re.MULTILINE
    )
    (configuration / "jail.d" / "sshd.local").write_text(sshd.replace("\\n", "\n"))
    command = ("fail2ban-client", "-c", str(configuration), "--test")
    checked = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "configuration test is successful" in checked.stdout, checked.stderr
