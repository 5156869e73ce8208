"""The units in deploy/: what systemd-analyze says of them, and what they do under a systemd of the test's own."""

import contextlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from systemd_machine import ROOT, UNITS, Machine, complaints, exposure, outcomes

METRICS = ROOT / "deploy" / "nullsmtpd-metrics.conf"


def copy_of_units(directory: Path, change: Callable[[str], str]) -> list[Path]:
    """Copy the units, changed and with a command that this machine has: `verify` looks for it."""
    copies = [directory / unit.name for unit in UNITS]
    for unit, copy in zip(UNITS, copies, strict=True):
        copy.write_text(change(unit.read_text()).replace("/opt/nullsmtpd/bin/nullsmtpd", sys.executable))
    return copies


@pytest.mark.parametrize("with_metrics", [False, True])
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path, *, with_metrics: bool) -> None:
    """Not one warning; with the drop-in for --metrics neither."""
    units = copy_of_units(tmp_path, str)
    if with_metrics:
        drop_ins = tmp_path / "nullsmtpd.service.d"
        drop_ins.mkdir()
        shutil.copy(METRICS, drop_ins)
    assert not complaints(units)


def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    """A key that systemd does not know is seen by the check above."""
    units = copy_of_units(tmp_path, lambda text: text.replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in complaints(units)


def test_the_service_is_exposed_to_next_to_nothing(tmp_path: Path) -> None:
    """1.0 at most of 10; a unit that says nothing on it is near 10."""
    assert exposure(UNITS[1]) <= 1.0
    bare = tmp_path / "nullsmtpd.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 9


def test_the_first_connection_starts_the_service(machine: Machine) -> None:
    """The socket unit alone is started; who connects, by IPv4 or IPv6, gets the line."""
    machine.run("systemctl", "stop", "nullsmtpd.service")
    assert machine.state("ActiveState") == "inactive"
    machine.answers("127.0.0.1", "::1")
    assert machine.state("ActiveState") == "active"
    assert 'Status: "Answering on 2 sockets"' in machine.run("systemctl", "status", "nullsmtpd.service")


def test_the_service_is_nobody_and_can_do_nothing(machine: Machine) -> None:
    """A user that exists while it runs, no capability, no new privileges, a seccomp filter, loopback and no more."""
    machine.answers("127.0.0.1")
    pid = machine.state("MainPID")
    status = dict(re.findall(r"^(\w+):\t(\S*)", machine.run("cat", f"/proc/{pid}/status"), re.MULTILINE))
    # systemd.exec(5): the range that DynamicUser= takes from
    assert 61184 <= int(status["Uid"]) <= 65519
    assert 61184 <= int(status["Gid"]) <= 65519
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    links = machine.run("nsenter", f"--target={pid}", "--net", "ip", "-oneline", "link")
    assert re.findall(r"^\d+: (\w+)", links, re.MULTILINE) == ["lo"]
    assert machine.run("readlink", f"/proc/{pid}/ns/net") != machine.run("readlink", "/proc/1/ns/net")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_restarts_under_load_lose_no_connection(machine: Machine, host: str) -> None:
    """While one process ends and the next begins, clients wait in the socket; all of them get the line."""
    restarts = 0
    with machine.clients(host, 4000) as clients:
        while clients.poll() is None:
            machine.run("systemctl", "restart", "nullsmtpd.service")
            restarts += 1
        assert outcomes(clients) == {"whole line": 4000}
    assert restarts >= 3


def test_a_service_that_was_killed_is_back_and_answers_who_came_meanwhile(machine: Machine) -> None:
    """SIGKILL: who connects before the restart waits for it."""
    machine.answers("127.0.0.1")
    restarts = int(machine.state("NRestarts"))
    machine.run("systemctl", "kill", "--signal=KILL", "nullsmtpd.service")
    machine.answers("127.0.0.1", "::1")
    assert int(machine.state("NRestarts")) == restarts + 1


def test_a_service_that_hangs_is_replaced(machine: Machine) -> None:
    """The watchdog is fed while the loop turns; stopped by SIGSTOP it is not, and systemd starts another."""
    with machine.drop_in("[Service]\nWatchdogSec=1\n"):
        fed = machine.state("WatchdogTimestampMonotonic")
        machine.wait_for(lambda: machine.state("WatchdogTimestampMonotonic") != fed, "WATCHDOG=1")
        assert machine.state("NRestarts") == "0"
        machine.run("systemctl", "kill", "--signal=STOP", "nullsmtpd.service")
        machine.answers("127.0.0.1")
        assert machine.state("NRestarts") == "1"
        assert "watchdog" in machine.journal().lower()


def test_a_mistake_in_the_settings_is_told_and_mending_it_is_enough(machine: Machine) -> None:
    """`systemctl restart` fails, the journal has the line that says why, and clients are answered once it is mended."""
    machine.answers("127.0.0.1")
    with contextlib.ExitStack() as mistake, pytest.raises(pytest.fail.Exception, match="is not a number of seconds"):
        mistake.enter_context(machine.drop_in("[Service]\nEnvironment=NULLSMTPD_LINGER=soon\n"))
    machine.answers("127.0.0.1", "::1")


def test_the_drop_in_for_metrics_serves_them_on_loopback(machine: Machine) -> None:
    """deploy/nullsmtpd-metrics.conf as it is; port 25 is answered as before."""
    get = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9521/metrics', timeout=20).read().decode())"
    with machine.drop_in(METRICS.read_text()):
        machine.answers("127.0.0.1", "::1")
        served = machine.run("/opt/nullsmtpd/bin/python", "-c", get)
    assert "nullsmtpd_connections_total 2\n" in served
    assert "process_start_time_seconds" in served


def test_it_stops_cleanly_and_leaves_a_readable_journal(machine: Machine) -> None:
    """Exit status 0; the journal has its lines, and no traceback from this or any test before."""
    machine.answers("127.0.0.1")
    machine.run("systemctl", "stop", "nullsmtpd.service")
    assert machine.state("Result") == "success"
    assert machine.state("ExecMainStatus") == "0"
    journal = machine.journal()
    assert re.search(r"Z listening address=0\.0\.0\.0:25$", journal, re.MULTILINE)
    assert re.search(r"Z listening address=\[::\]:25$", journal, re.MULTILINE)
    assert re.search(r"Z stats .*connections=\d+ ", journal)
    assert "Traceback" not in journal
    assert "internal-error" not in journal
