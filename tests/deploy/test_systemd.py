"""The units in deploy/: systemd-analyze finds no fault with them, and they do what they are for under a systemd."""

import contextlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from systemd_machine import ROOT, UNITS, Machine, complaints, exposure, outcomes

METRICS = ROOT / "deploy" / "nullsmtpd-metrics.conf"
FILTER = ROOT / "deploy" / "fail2ban" / "filter.d" / "nullsmtpd.conf"
TEMPLATES = [ROOT / "deploy" / name for name in ("nullsmtpd@.socket", "nullsmtpd@.service")]

#: Reads from a URL, in the machine.
GET = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().decode())"


def copy_of_units(directory: Path, change: Callable[[str], str], units: Sequence[Path] = UNITS) -> list[Path]:
    """Copy the units, changed and with a command that this machine has: `verify` looks for it."""
    copies = [directory / unit.name for unit in units]
    for unit, copy in zip(units, copies, strict=True):
        copy.write_text(change(unit.read_text()).replace("/opt/nullsmtpd/bin/nullsmtpd", sys.executable))
    return copies


@pytest.mark.parametrize("units", [UNITS, TEMPLATES], ids=["units", "templates"])
@pytest.mark.parametrize("with_metrics", [False, True])
def test_systemd_finds_no_fault_with_the_units(tmp_path: Path, units: Sequence[Path], *, with_metrics: bool) -> None:
    """Not one warning, nor with the drop-in for --metrics."""
    copies = copy_of_units(tmp_path, str, units)
    if with_metrics:
        (drop_ins := tmp_path / f"{units[1].name}.d").mkdir()
        shutil.copy(METRICS, drop_ins)
    assert not complaints(copies)


def test_instances_are_confined_like_the_single_service() -> None:
    """Both are one file."""
    assert TEMPLATES[1].resolve() == UNITS[1]


def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    """The check above notices a key that systemd does not know."""
    units = copy_of_units(tmp_path, lambda text: text.replace("WatchdogSec", "WatchdogSecs"))
    assert "WatchdogSecs" in complaints(units)


def test_the_service_has_a_low_exposure_level(tmp_path: Path) -> None:
    """1.0 at most of 10; a unit without any confinement is near 10."""
    assert exposure(UNITS[1]) <= 1.0
    bare = tmp_path / "nullsmtpd.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert exposure(bare) > 9


def test_the_first_connection_starts_the_service(machine: Machine) -> None:
    """Only the socket unit is started; clients that connect by IPv4 and IPv6 get the line."""
    machine.run("systemctl", "stop", "nullsmtpd.service")
    assert machine.state("ActiveState") == "inactive"
    machine.answers("127.0.0.1", "::1")
    assert machine.state("ActiveState") == "active"
    assert 'Status: "Answering on 2 sockets"' in machine.run("systemctl", "status", "nullsmtpd.service")


def test_the_service_has_no_privileges_and_no_network(machine: Machine) -> None:
    """A transient user, no capability, no new privileges, a seccomp filter, and a network with loopback only."""
    machine.answers("127.0.0.1")
    pid = machine.state("MainPID")
    status = dict(re.findall(r"^(\w+):\t(\S*)", machine.run("cat", f"/proc/{pid}/status"), re.MULTILINE))
    # systemd.exec(5): the range of DynamicUser=
    assert 61184 <= int(status["Uid"]) <= 65519
    assert 61184 <= int(status["Gid"]) <= 65519
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    links = machine.run("nsenter", f"--target={pid}", "--net", "ip", "-oneline", "link")
    assert re.findall(r"^\d+: (\w+)", links, re.MULTILINE) == ["lo"]
    assert machine.run("readlink", f"/proc/{pid}/ns/net") != machine.run("readlink", "/proc/1/ns/net")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_restarts_under_load_lose_no_connection(machine: Machine, host: str) -> None:
    """Between one process and the next, connections wait in the socket; all of them get the line."""
    restarts = 0
    with machine.clients(host, 4000) as clients:
        while clients.poll() is None:
            machine.run("systemctl", "restart", "nullsmtpd.service")
            restarts += 1
        assert outcomes(clients) == {"whole line": 4000}
    assert restarts >= 3


def test_a_service_that_was_killed_is_restarted_and_answers_waiting_clients(machine: Machine) -> None:
    """After SIGKILL, clients that connect before the restart wait for it."""
    machine.answers("127.0.0.1")
    restarts = int(machine.state("NRestarts"))
    machine.run("systemctl", "kill", "--signal=KILL", "nullsmtpd.service")
    machine.answers("127.0.0.1", "::1")
    assert int(machine.state("NRestarts")) == restarts + 1


def test_a_service_that_hangs_is_replaced(machine: Machine) -> None:
    """A running event loop notifies the watchdog; one stopped by SIGSTOP does not, and systemd restarts the service."""
    with machine.drop_in("[Service]\nWatchdogSec=1\n"):
        fed = machine.state("WatchdogTimestampMonotonic")
        machine.wait_for(lambda: machine.state("WatchdogTimestampMonotonic") != fed, "WATCHDOG=1")
        assert machine.state("NRestarts") == "0"
        machine.run("systemctl", "kill", "--signal=STOP", "nullsmtpd.service")
        machine.answers("127.0.0.1")
        assert machine.state("NRestarts") == "1"
        assert "watchdog" in machine.journal().lower()


def test_an_invalid_setting_is_reported_and_correcting_it_is_enough(machine: Machine) -> None:
    """`systemctl restart` fails, the journal has the reason, and clients are answered once it is corrected."""
    machine.answers("127.0.0.1")
    with contextlib.ExitStack() as mistake, pytest.raises(pytest.fail.Exception, match="is not a number of seconds"):
        mistake.enter_context(machine.drop_in("[Service]\nEnvironment=NULLSMTPD_LINGER=soon\n"))
    machine.answers("127.0.0.1", "::1")


def test_the_drop_in_for_metrics_serves_them_on_loopback(machine: Machine) -> None:
    """deploy/nullsmtpd-metrics.conf as it is; port 25 is answered as before."""
    with machine.drop_in(METRICS.read_text()):
        machine.answers("127.0.0.1", "::1")
        served = machine.run("/opt/nullsmtpd/bin/python", "-c", GET, "http://127.0.0.1:9521/metrics")
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


@pytest.fixture
def instances(machine: Machine) -> Iterator[Machine]:
    """Run two instances in place of the single service."""
    for template in TEMPLATES:
        machine.write(f"/run/units/{template.name}", template.read_text())
    machine.run("systemctl", "daemon-reload")
    machine.run(
        "systemctl", "start", *(f"nullsmtpd@{number}.{kind}" for number in (1, 2) for kind in ("socket", "service"))
    )
    yield machine
    machine.run(
        "systemctl", "stop", *(f"nullsmtpd@{number}.{kind}" for number in (1, 2) for kind in ("socket", "service"))
    )
    machine.run("systemctl", "start", "nullsmtpd.socket")


def stats(machine: Machine, number: int) -> dict[str, str]:
    """Have an instance log its counters, and return them."""
    journal = ("journalctl", "--no-pager", "--output=cat", f"--unit=nullsmtpd@{number}.service", "--grep=Z stats ")
    before = machine.run(*journal, check=False).count("\n")
    machine.run("systemctl", "kill", "--signal=USR1", f"nullsmtpd@{number}.service")
    machine.wait_for(lambda: machine.run(*journal, check=False).count("\n") > before, "a stats line")
    return dict(field.split("=", 1) for field in machine.run(*journal).splitlines()[-1].split()[2:])


def test_instances_replace_the_single_service_and_share_the_port(instances: Machine) -> None:
    """The socket of the single service is stopped; connections are distributed over the instances."""
    assert instances.run("systemctl", "is-active", "nullsmtpd.socket", check=False) == "inactive\n"
    for host in ("127.0.0.1", "::1"):
        with instances.clients(host, 200) as clients:
            assert outcomes(clients) == {"whole line": 200}
    counts = [int(stats(instances, number)["connections"]) for number in (1, 2)]
    assert sum(counts) == 400
    assert min(counts) > 100


def test_clients_of_one_instance_do_not_notice_that_another_is_killed(instances: Machine) -> None:
    """Under load; at most the one connection that the killed process has just accepted is lost."""
    kills = 0
    with instances.clients("127.0.0.1", 4000) as clients:
        while clients.poll() is None and kills < 3:
            kill_and_wait(instances)
            kills += 1
        outcome = outcomes(clients)
    assert kills
    assert outcome["whole line"] >= 4000 - kills
    assert sum(outcome.values()) == 4000


def kill_and_wait(instances: Machine) -> None:
    """Kill the first instance; wait until the second one has answered clients and the first one is back."""
    restarted = ("systemctl", "show", "--value", "--property=NRestarts", "nullsmtpd@1.service")
    restarts, answered = int(instances.run(*restarted)), int(stats(instances, 2)["connections"])
    instances.run("systemctl", "kill", "--signal=KILL", "nullsmtpd@1.service")
    instances.wait_for(lambda: int(stats(instances, 2)["connections"]) > answered, "clients of the second instance")
    instances.wait_for(lambda: int(instances.run(*restarted)) > restarts, "the restart")


def test_the_journal_of_instances_is_what_fail2ban_reads(instances: Machine) -> None:
    """The filter's match finds the lines of every instance."""
    (match,) = re.findall(r"^journalmatch = (.*)$", FILTER.read_text(), re.MULTILINE)
    lines = instances.run("journalctl", "--no-pager", "--output=json", "--output-fields=_SYSTEMD_UNIT", *match.split())
    assert {f"nullsmtpd@{number}.service" for number in (1, 2)} <= {
        json.loads(line).get("_SYSTEMD_UNIT") for line in lines.splitlines()
    }


def test_an_instance_is_added_under_load(instances: Machine) -> None:
    """A third one takes its share, and no client notices."""
    with instances.clients("127.0.0.1", 2000) as clients:
        instances.run("systemctl", "start", "nullsmtpd@3.socket", "nullsmtpd@3.service")
        try:
            assert outcomes(clients) == {"whole line": 2000}
            assert int(stats(instances, 3)["connections"]) > 0
        finally:
            instances.run("systemctl", "stop", "nullsmtpd@3.socket", "nullsmtpd@3.service")


def test_each_instance_has_a_metrics_port_of_its_own(instances: Machine) -> None:
    """The drop-in with %i in place of the last digit of the port."""
    text = METRICS.read_text().replace("=127.0.0.1:9521", "=127.0.0.1:952%i")
    with instances.drop_in(text, unit="nullsmtpd@.service", restart=["nullsmtpd@1.service", "nullsmtpd@2.service"]):
        for number in (1, 2):
            served = instances.run("/opt/nullsmtpd/bin/python", "-c", GET, f"http://127.0.0.1:952{number}/metrics")
            assert "nullsmtpd_connections_total " in served
