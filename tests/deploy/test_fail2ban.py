"""deploy/fail2ban with the real fail2ban: what the real daemon logs is matched, and whoever it names is banned."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from faults import stopped
from support import LINE, MODES, PATIENCE, Daemon, Start, connect, require, require_root, require_tools

from nullsmtpd.runtime.log import log

DEPLOY = Path(__file__).parents[2] / "deploy" / "fail2ban"
INSTALLED = Path("/etc/fail2ban")
JOURNAL_REMOTE = Path("/lib/systemd/systemd-journal-remote")

# Connects so many times from one address to another and says what it heard at last. Run in the network of the daemon.
CLIENT = """
import socket, sys
source, host, port, count = sys.argv[1:]
try:
    for _ in range(int(count)):
        with socket.create_connection((host, int(port)), timeout=5, source_address=(source, 0)) as client:
            heard = client.recv(99)
    print(heard)
except OSError as error:
    print(type(error).__name__)
"""


def matched(log_or_journal: Path | str, mode: str = "early") -> list[str]:
    """Return the addresses that the filter finds there, sorted, each once for every line that it matches."""
    require_tools("fail2ban-regex")
    given = [str(log_or_journal), f"{DEPLOY}/filter.d/nullsmtpd.conf[mode={mode}]"]
    result = subprocess.run(
        ["fail2ban-regex", "--out", "ip", *given],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return sorted(result.stdout.split())


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
        f"_BOOT_ID={'1' * 32}\n_HOSTNAME=host\n_SYSTEMD_UNIT={unit}\nSYSLOG_IDENTIFIER=nullsmtpd\n_PID=12\n"
        f"MESSAGE={line}\n\n"
        for unit in ("nullsmtpd.service", "other.service")
        for number, line in enumerate(log_of_hasty_and_polite_clients(start).splitlines())
    )
    subprocess.run(
        [JOURNAL_REMOTE, "--output", tmp_path / "x.journal", "-"],
        input=export.encode(),
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    assert matched(f"systemd-journal[journalfiles={tmp_path / 'x.journal'}]") == ["127.0.0.1", "::1"]


def test_addresses_of_every_form_are_found(tmp_path: Path) -> None:
    """Link-local ones with their interface, and the ones that look odd."""
    peers = ["192.0.2.1:1", "[2001:db8::1]:65535", "[fe80::1%eth0.5]:25", "[1:2:3:4:5:6:7:8]:9"]
    file = tmp_path / "access.log"
    line = "2026-11-23T20:00:00.000Z connection peer={} local=[::1]:25 mode=mail spoke_first=yes\n"
    file.write_text("".join(line.format(peer) for peer in peers))
    assert matched(file) == sorted(["192.0.2.1", "2001:db8::1", "fe80::1", "1:2:3:4:5:6:7:8"])


def test_no_line_of_another_event_passes_for_an_access_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever gets into a value of ours, even a whole access line, nobody is banned for it."""
    forged = "2026-11-23T20:00:00.000Z connection peer=192.0.2.66:1 local=192.0.2.1:25 mode=close spoke_first=yes"
    for value in (forged, f"\n{forged}\n", f'"\r\n{forged}', f"nullsmtpd[1]: {forged}", forged.partition(" ")[2]):
        log("internal-error", message=value)
    file = tmp_path / "access.log"
    lines = capfd.readouterr().err
    file.write_text("".join(f"{line}\n" for line in lines.splitlines() if " internal-error " in line))
    assert lines.count(" internal-error ") == 5
    assert matched(file, "all") == []


@pytest.fixture
def ban(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that runs fail2ban with the jails of deploy/ on a log file.

    Its action notes each ban as a line ``JAIL ADDRESS`` in the file returned, besides what ``also`` names.
    """
    require_tools("fail2ban-server", "fail2ban-client")
    started: list[subprocess.Popen[bytes]] = []

    def run(log_path: Path, also: str = "", prefix: Sequence[str] = ()) -> Path:
        configuration, bans = tmp_path / "fail2ban", tmp_path / "bans"
        shutil.copytree(INSTALLED, configuration, ignore=shutil.ignore_patterns("defaults-debian.conf"))
        shutil.copytree(DEPLOY, configuration, dirs_exist_ok=True)
        (configuration / "action.d" / "note.conf").write_text(
            f'[Definition]\nactionban = echo "<name> <ip>" >> {bans}\n'
        )
        (configuration / "fail2ban.local").write_text("[Definition]\ndbfile = None\nlogtarget = STDOUT\n")
        here = f"backend = polling\nlogpath = {log_path}\n"  # as the shipped file says for where there is no journal
        (configuration / "jail.d" / "zz-test.local").write_text(
            f"[DEFAULT]\nignoreself = false\naction = note\n         {also}\n"
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


def come(daemon: Daemon, source: str, count: int, *, hasty: bool = False) -> None:
    """Connect so many times from an address of loopback, and speak first or not."""
    for _ in range(count):
        with socket.socket() as client:
            client.bind((source, 0))
            if hasty:
                with stopped(daemon):
                    client.connect(daemon.address)
                    client.sendall(b"EHLO x\r\n")
            else:
                client.connect(daemon.address)
            client.settimeout(PATIENCE)
            assert client.recv(99) == LINE


def test_the_jails_ban_who_speaks_first_and_who_comes_too_often(start: Start, ban: Callable[..., Path]) -> None:
    """fail2ban itself reads the log of the daemon: the third early word and the sixtieth visit are too many."""
    daemon = start("--access-log")
    come(daemon, "127.0.0.66", 3, hasty=True)
    come(daemon, "127.0.0.67", 2, hasty=True)
    come(daemon, "127.0.0.68", 60)
    come(daemon, "127.0.0.69", 50)
    bans = ban(access_file(daemon))
    expected = ["nullsmtpd-early 127.0.0.66", "nullsmtpd-often 127.0.0.68"]
    daemon.wait_for(lambda: len(bans.read_text().splitlines()) >= len(expected), "two bans")
    assert sorted(bans.read_text().splitlines()) == expected


def test_a_client_that_is_banned_does_not_come_in_any_more(start: Start, ban: Callable[..., Path]) -> None:
    """With fail2ban's own action for nftables, in a network of the test's own: refused, while others are answered."""
    require_root()
    require_tools("nft", "nsenter", "unshare", "ip")
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    daemon = start("--access-log", prefix=alone, listen="127.0.0.1:25")
    inside = ["nsenter", f"--net=/proc/{daemon.pid}/ns/net"]

    def heard_by(source: str, count: int = 1) -> str:
        command = [*inside, sys.executable, "-c", CLIENT, source, "127.0.0.1", "25", str(count)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()

    bans = ban(access_file(daemon), "nftables[type=multiport, port=smtp, name=%(__name__)s]", inside)
    assert heard_by("127.0.0.66", 60) == str(LINE)
    daemon.wait_for(lambda: bans.read_text() == "nullsmtpd-often 127.0.0.66\n", "a ban")
    daemon.wait_for(lambda: heard_by("127.0.0.66") == "ConnectionRefusedError", "a refusal")
    assert heard_by("127.0.0.67") == str(LINE)
