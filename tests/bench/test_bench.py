"""The load and cost harness: each command within tiny bounds, and what its numbers rest on; no time is asserted."""

import importlib.util
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from misbehaving import FIN, HOLD, LISTEN, RESET, serving
from support import LINE, PATIENCE, Daemon, require_root, require_tools

if not os.environ.get("CI"):  # in CI nothing may be missing
    if sys.platform != "linux":
        pytest.skip("needs Linux: what a process costs is read from /proc", allow_module_level=True)
    if importlib.util.find_spec("hdrh") is None:
        pytest.skip("needs the dependency group `bench`", allow_module_level=True)

from bench import client, command, compare, footprint, load, relay, relay_rcpt, servers, soak, sweep
from bench.client import Plan
from bench.latency import Latencies
from bench.outcomes import Ending, Outcome, classify, classify_dialogue, is_whole
from bench.spread import ratios, spread

ROOT = Path(__file__).parents[2]
TOTAL = "whole line + FIN"
WHOLE_DIALOGUE = "whole dialogue + FIN"


def bench(tmp_path: Path, *arguments: str, status: int = 0) -> tuple[str, dict[str, Any]]:
    """Run a command, expect its exit status, return what it printed and its JSON."""
    path = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, "--json", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr, json.loads(path.read_text()) if path.exists() else {}


def bench_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """Run a command in this process, where a test can shorten what it waits for; return its JSON."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
    path = tmp_path / "bench.json"
    assert command.run([*arguments, "--json", str(path)]) == status
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def at(daemon: Daemon) -> str:
    host, port = daemon.address
    return f"{host}:{port}"


# load


def test_closed_loop_load_counts_every_connection_once(daemon: Daemon, tmp_path: Path) -> None:
    """`load --clients` starts as many connections as asked for, and each has one outcome and one time."""
    text, found = bench(
        tmp_path, "load", at(daemon), *("--clients", "8", "--connections", "300", "--early", "0.5", "--processes", "2")
    )
    assert found["outcomes"][TOTAL] == found["started"] == found["completed"] == sum(found["outcomes"].values()) == 300
    assert [found[name]["count"] for name in ("connect_us", "first_octet_us", "fin_us")] == [300] * 3
    assert found["generator"]["late_us"]["count"] == 0
    assert int(daemon.stats()["connections"]) == 300
    assert "time to FIN" in text
    assert "ListenDrops" in text
    assert found["machine"]["python"]


def test_open_loop_load_offers_its_rate_and_counts_from_the_schedule(daemon: Daemon, tmp_path: Path) -> None:
    """`load --rate` starts rate x duration connections and says how late each of them started."""
    _, found = bench(tmp_path, "load", at(daemon), *("--rate", "200", "--duration", "1", "--processes", "2"))
    assert found["outcomes"][TOTAL] == found["started"] == 200
    assert found["offered_rate"] == 200
    assert found["generator"]["late_us"]["count"] == 200


def test_a_stall_of_the_generator_leaves_no_connection_out(daemon: Daemon) -> None:
    """What was due while the generator stood still is started all the same, and counts from when it was due."""
    looks: list[bool] = []

    def stopped() -> bool:
        if not looks:
            time.sleep(0.6)  # beyond the end of the plan
        looks.append(True)
        return False

    tally = client.run(Plan((daemon.address,), rate=100, seconds=0.5), stopped)
    assert tally.outcomes == {Outcome.LINE_FIN: 50}
    assert tally.late.count == tally.fin.count == 50
    assert (tally.late.percentile(50) or 0) > 250_000  # microseconds


def test_a_closed_loop_has_no_more_clients_than_asked_for(daemon: Daemon) -> None:
    """A process without a client of its own stays out of it: its share would be a plan without a limit."""
    plan = Plan((daemon.address,), clients=1, connections=20, max_open=1)
    with load.generators(2) as group:
        tally, _ = group.run(plan)
    assert tally.outcomes == {Outcome.LINE_FIN: 20}
    assert tally.at_limit == 0  # only an open loop looks at it


@pytest.mark.parametrize("mode", ["session", "mail"])
def test_a_whole_dialogue_is_one_unit_of_load(mode: str, tmp_path: Path) -> None:
    """`load --dialogue` is refused by either mode at or before MAIL, takes its leave, and is counted once."""
    arguments = ("--dialogue", "--clients", "8", "--connections", "100", "--processes", "2")
    with servers.running(servers.nullsmtpd("--mode", mode)) as server:
        text, found = bench(tmp_path, "load", "{}:{}".format(*server.targets[0]), *arguments)
    assert found["unit"] == "dialogue"
    assert found["outcomes"][WHOLE_DIALOGUE] == found["completed"] == sum(found["outcomes"].values()) == 100
    assert [found[name]["count"] for name in ("connect_us", "first_octet_us", "fin_us")] == [100] * 3
    assert WHOLE_DIALOGUE in text


def test_a_burst_that_finds_the_server_busy_is_answered_to_the_last(tmp_path: Path) -> None:
    """Clients that all connect before the first is served wait in the listen queue; none is dropped, none is lost."""
    with servers.running(servers.nullsmtpd()) as server:
        server.settle()  # nobody else in its queue
        server.process.send_signal(signal.SIGSTOP)  # what a busy server looks like to its listen queue
        resume = Resume(server)
        resume.start()
        target = "{}:{}".format(*server.targets[0])
        _, found = bench(tmp_path, "load", target, "--clients", "1000", "--connections", "1000", "--timeout", "60")
        resume.join()
    assert resume.queue == 1000
    assert found["outcomes"][TOTAL] == 1000


class Resume(threading.Thread):
    """Lets a stopped server go on once 1,000 clients wait, or when patience ends; ``queue``: how many there were."""

    def __init__(self, server: servers.Server) -> None:
        super().__init__()
        self._server = server
        self.queue = 0

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.queue < 1000 and time.monotonic() < deadline:
            time.sleep(0.01)
            self.queue = listen_queue(self._server.targets[0][1])
        self._server.process.send_signal(signal.SIGCONT)


def listen_queue(port: int) -> int:
    """Return how many connections wait to be accepted: the receive queue of a socket that listens (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return next(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A")


def two_clients(*deeds: bytes | str, **plan: Any) -> Counter[Outcome]:  # noqa: ANN401 - the fields of a Plan
    """Have two connections, one after the other, to a server that does this; return their outcomes."""
    timeout = 0.3 if HOLD in deeds else PATIENCE
    with serving(*deeds) as server:
        targets = (("127.0.0.1", server.port),)
        outcomes = client.run(Plan(targets, clients=1, connections=2, timeout=timeout, **plan), lambda: False).outcomes
    assert outcomes.total() == 2
    return outcomes


@pytest.mark.parametrize(
    ("deeds", "outcome"),
    [
        ((b"220 hi\r\n", LISTEN, b"250-hi\r\n250 8BITMIME\r\n", LISTEN, LINE, LISTEN, b"221 bye\r\n"), WHOLE_DIALOGUE),
        ((LINE, LISTEN), "EOF within the dialogue"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, LINE, LISTEN, b"221 by"), "EOF within the dialogue"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, b"250 ok\r\n", LISTEN, b"221 bye\r\n"), "wrong octets"),
        ((b"220 hi\r\n250 hi\r\n",), "wrong octets"),
        ((b"220 hi\r\n", LISTEN, b"250 hi\r\n", LISTEN, LINE, LISTEN, b"221 bye\r\n221 bye\r\n"), "wrong octets"),
    ],
)
def test_load_tells_dialogues_apart(deeds: tuple[bytes | str, ...], outcome: str) -> None:
    """A dialogue is whole when mail is refused and QUIT is answered, each with one reply; how it ended is told else."""
    seen = two_clients(*deeds, FIN, commands=client.DIALOGUE, expect=servers.refused_at_mail())
    assert [one.of_dialogue for one in seen] == [outcome]


@pytest.mark.parametrize(
    ("deeds", "outcome"),
    [
        ((LINE[:10], FIN), "EOF without line"),
        ((FIN,), "EOF without line"),
        ((b"220 welcome\r\n", FIN), "wrong octets"),
        ((RESET,), "RST without line"),
        ((LINE, RESET), "whole line + RST"),
        ((HOLD,), "timed out"),
    ],
)
def test_load_tells_outcomes_apart(deeds: tuple[bytes | str, ...], outcome: str) -> None:
    """Whatever a server does wrong has an outcome of its own."""
    assert [one.value for one in two_clients(*deeds)] == [outcome]


def test_load_counts_refused_connections(tmp_path: Path) -> None:
    """A port where nobody listens gives the outcome `refused`, and the run ends by itself."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{nobody.getsockname()[1]}"
        _, found = bench(tmp_path, "load", target, "--connections", "20")
    assert found["outcomes"]["refused"] == found["started"] == 20


@pytest.mark.parametrize("target", ["192.0.2.1:25", "[2001:db8::1]:25", "0.0.0.0:25"])
def test_load_refuses_a_target_that_is_not_loopback(target: str, tmp_path: Path) -> None:
    """Another host is not loaded unless the user says that they run it."""
    text, found = bench(tmp_path, "load", target, status=2)
    assert "--yes-i-run-this-server" in text
    assert not found
    assert load.resolve(target, allow_any=True).port == 25


def test_ctrl_c_reports_what_there_was(daemon: Daemon, tmp_path: Path) -> None:
    """SIGINT to the whole group, as a terminal sends it, ends a run at once with its report and no traceback."""
    path = tmp_path / "bench.json"
    arguments = ["load", at(daemon), "--rate", "100", "--duration", "60", "--processes", "2", "--json", str(path)]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        daemon.wait_for(lambda: int(daemon.stats()["connections"]) > 20, "some load")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert err == "bench: interrupted: this is what there was until then\n"
    assert "time to FIN" in out
    assert json.loads(path.read_text())["outcomes"][TOTAL] > 10  # the server counts them before they do


# compare


TINY = ("--rounds", "2", "--seconds", "0.1", "--clients", "4")


def test_compare_measures_every_arm_at_every_rate(tmp_path: Path) -> None:
    """`compare` writes one table that fits a terminal, the same as Markdown, a chart, and JSON with the commit."""
    require_tools("cc")
    markdown, chart = tmp_path / "table.md", tmp_path / "chart.svg"
    files = ("--markdown", str(markdown), "--chart", str(chart))
    rates = ("--rates", "50,200,closed")
    text, found = bench(
        tmp_path, "compare", "--arms", "nullsmtpd,c-loop,uvloop", "--base", "c-loop", *rates, *TINY, *files
    )
    results = {(one["rate"], one["server"]): one for one in found["results"]}
    assert set(results) == set(itertools.product(("50", "200", "closed"), ("nullsmtpd", "c-loop", "uvloop")))
    for (rate, arm), one in results.items():
        assert one["started"] == {"50": 10, "200": 40}.get(rate, one["started"]) > 0
        assert one["lost"] == 0
        assert one["cpu_us"]["median"] > 0
        assert one["ratio"]["values"] == 2
        assert one["ratio"]["median"] == 1 or arm != "c-loop"
    assert "commit" in found["machine"]
    assert max(map(len, text.splitlines())) <= 80
    assert "| nullsmtpd |" in markdown.read_text()
    words = {element.text for element in ET.parse(chart).iter()}  # noqa: S314 - our own
    assert {"nullsmtpd", "c-loop", "uvloop", "50/s", "200/s", "closed loop"} <= words


def test_compare_varies_what_nullsmtpd_has_to_keep(tmp_path: Path) -> None:
    """Idle clients, addresses and the linger time each make one more arm, beside what they are compared with."""
    varied = ("--linger", "0", "--lingering", "0,40", "--addresses", "2")
    _, found = bench(
        tmp_path, "compare", "--arms", "nullsmtpd", "--base", "nullsmtpd", *varied, "--rates", "closed", *TINY
    )
    arms = [one["server"] for one in found["results"]]
    assert arms == ["nullsmtpd", "linger 0", "0 idle", "40 idle", "2 addresses"]
    assert [one["lost"] for one in found["results"]] == [0] * len(arms)


def test_idle_clients_that_a_server_does_not_keep_are_an_error() -> None:
    """Figures with clients lingering are none when the server has closed them."""
    arm = servers.nullsmtpd("--linger", "0", name="5 idle")._replace(held=20)
    settings = compare.Settings("5 idle", (compare.CLOSED,), 1, 0.1, 4)
    with pytest.raises(RuntimeError, match="has closed some of its idle clients"):
        compare.compare([arm], settings)


def test_compare_measures_a_whole_dialogue(tmp_path: Path) -> None:
    """`compare --dialogue` has the modes with a dialogue beside smtp-sink, and no server that sends a single line."""
    require_tools("smtp-sink")
    _, found = bench(tmp_path, "compare", "--dialogue", *TINY)
    assert found["unit"] == "dialogue"
    assert {one["server"] for one in found["results"]} == {"mode-session", "mode-mail", "smtp-sink"}
    assert {one["rate"] for one in found["results"]} == {"200", "closed"}
    assert {one["lost"] for one in found["results"]} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dialogue", "--arms", "nullsmtpd"), "unknown nullsmtpd; there are mode-session, mode-mail, smtp-sink"),
        (("--arms", "postfix"), "unknown postfix; there are nullsmtpd, nginx"),
        (("--base", "c-loop", "--arms", "nginx"), "unknown c-loop; there are nginx"),
        (("--dialogue", "--linger", "0"), "leave out --dialogue"),
        (("--lingering", "90000000"), "--lingering 90000000 needs 90,002,048 open files"),
        (("--rates", "50,fast"), "--rates"),
        (("--addresses", "0"), "--addresses"),
    ],
)
def test_what_compare_cannot_measure_is_one_clear_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """An arm that does not exist, or that has no place in this table, is named before anything is started."""
    text, _ = bench(tmp_path, "compare", *arguments, status=2)
    assert message in text


def test_compare_measures_the_nginx_worker(tmp_path: Path) -> None:
    """Nginx's cost is that of the process that answers, not of the one that was started."""
    require_tools("nginx")
    _, found = bench(tmp_path, "compare", "--arms", "nginx", "--rates", "400", *TINY)
    assert found["results"][0]["lost"] == 0
    assert found["results"][0]["cpu_us"]["median"] > 1


def test_nginx_is_measured_once_its_worker_is_there() -> None:
    """Nginx listens before it forks: whoever measures too early measures nothing, and would call it free."""
    require_tools("nginx")
    for _ in range(5):
        with servers.running(servers.ARMS["nginx"]) as server:
            assert len(server.pids) == 1
            assert server.pids != [server.process.pid]


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is not installed is left out, with the reason, and is no error."""
    monkeypatch.setattr(servers, "_PATH", str(tmp_path))
    found = bench_here(monkeypatch, tmp_path, "compare", "--arms", "nullsmtpd,nginx", "--rates", "closed", *TINY)
    assert {one["server"] for one in found["results"]} == {"nullsmtpd"}
    assert found["missing"] == {"nginx": "no nginx (Debian package nginx)"}


def test_a_server_that_does_not_come_up_is_one_line(tmp_path: Path) -> None:
    """A server that fails to start is reported in its own words."""
    with (
        pytest.raises(RuntimeError, match="unknown argument '--no-such'"),
        servers.running(servers.nullsmtpd("--no-such", "1")),
    ):
        pytest.fail("it started")


# sweep, footprint, soak


def test_sweep_raises_the_rate_and_the_work(tmp_path: Path) -> None:
    """`sweep` offers rising rates, and measures cost with sockets held open and with more addresses."""
    _, found = bench(
        tmp_path,
        *("sweep", "--first-rate", "50", "--factor", "2", "--steps", "2", "--step", "0.4", "--rounds", "1"),
        *("--connections", "40", "--clients", "4", "--lingering", "0,50,90000000", "--addresses", "2"),
    )
    assert [step["offered"] for step in found["rate"]][:2] in ([50, 100], [50])
    assert found["rate"][0]["started"] > 0
    assert [point["held"] for point in found["lingering"]] == [0, 50, 90000000]
    assert [bool(point.get("rounds")) for point in found["lingering"]] == [True, True, False]
    assert "open files" in found["lingering"][2]["missing"]
    assert [point["rounds"][0]["answered"] for point in found["addresses"]] == [40]


def test_footprint_compares_with_an_empty_uvloop_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`footprint` tells memory, start and idle wake-ups of each server that is here, in relation to an empty one."""
    monkeypatch.setattr(footprint, "_QUIET", 0.1)  # how idle it is, is not asserted
    found = bench_here(monkeypatch, tmp_path, "footprint", "--starts", "1", "--idle", "0.3")
    measured = found["servers"]
    assert {"nullsmtpd", "empty-uvloop", "python"} <= set(measured)
    assert measured["empty-uvloop"]["rss_ratio"]["median"] == 1
    assert 0 < measured["python"]["rss_ratio"]["median"] < measured["nullsmtpd"]["rss_ratio"]["median"]
    assert measured["nullsmtpd"]["wakeups"] is not None
    assert measured["nullsmtpd"]["descriptors"] > 3
    assert "wake-ups" in capsys.readouterr().out


@pytest.mark.parametrize(("arm", "status"), [("nullsmtpd", 0), ("asyncio", 1)])
def test_soak_fails_a_server_that_loses_lines(
    arm: str, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Clients of every habit: nullsmtpd passes; one that closes without waiting fails those that speak twice."""
    monkeypatch.setattr(soak, "_SILENT", 0.1)  # a soak of seconds need not wait for them
    arguments = ("soak", "--duration", "0.5", "--rate", "80", "--arm", arm)
    found = bench_here(monkeypatch, tmp_path, *arguments, status=status)
    assert set(found["clients"]) == set(soak.BEHAVIOURS)
    assert bool(found["failures"]) == ("speaks twice" in found["lost"]) == bool(status)


def test_soak_fails_a_server_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes no notice of SIGTERM is a failure like any other, and is killed."""
    monkeypatch.setattr(soak, "_PATIENCE", 1.0)
    monkeypatch.setattr(servers, "_GRACE", 0.1)
    asyncio_arm = servers.ARMS["asyncio"]

    def command(ports: list[int], directory: Path) -> list[str]:
        return ["sh", "-c", "trap '' TERM; exec \"$@\"", "sh", *asyncio_arm.command(ports, directory)]

    found = soak.soak(asyncio_arm._replace(name="deaf", command=command), duration=0.2, rate=5)
    assert "SIGTERM did not end deaf within 1 s" in found.failures


# relay


def bench_relay(tmp_path: Path, *arguments: str) -> tuple[str, dict[str, list[dict[str, float]]]]:
    """Run it for two small rounds; return what it printed and its rounds."""
    text, found = bench(tmp_path, "relay", "--rounds", "2", "--each", "50", "--clients", "2", *arguments)
    return text, found["rounds"]


def test_lookups_are_measured_cached_and_uncached_beside_a_fixed_reply(tmp_path: Path) -> None:
    """Only what was not asked for before costs the name server something."""
    require_tools("dnsmasq")
    text, rounds = bench_relay(tmp_path, "--markdown", str(tmp_path / "table.md"))
    assert set(rounds) == {"fixed reply", "cached", "uncached"}
    for series in rounds.values():
        assert [one["count"] for one in series] == [50, 50]
        assert all(one["cpu_us"] > 0 and one["p99_us"] >= one["p50_us"] > 0 for one in series)
    assert all(one["name_server_us"] > 0 for one in rounds["uncached"])
    assert all(one["name_server_us"] < 1 for one in rounds["cached"])
    assert "CPU: of the server, per lookup" in text
    assert (tmp_path / "table.md").read_text().startswith("| arm |")


def test_a_whole_rcpt_is_measured_with_each_way_to_look(tmp_path: Path) -> None:
    """Postfix without a look, with its own and with ours; each reply is checked on the way, 556 among them."""
    require_tools("dnsmasq", "postfix", "unshare", "ip")
    require_root()
    text, rounds = bench_relay(tmp_path, "--rcpt")
    looks = ("no look", "reject_unknown_recipient_domain", "nullsmtpd relay")
    assert set(rounds) == {f"{look}, {kind}" for look in looks for kind in ("plain", "null MX")}
    assert all(one["cpu_us"] > 0 for series in rounds.values() for one in series)
    assert "per RCPT" in text


def a_round(cpu_us: float) -> relay.Round:
    return relay.Round(cpu_us, 3000, 1000, 50, 0.0, 1000.0, 50.0, 99.0)


def test_a_relay_comparison_that_was_interrupted_has_a_table() -> None:
    """Ctrl-C comes in the midst of a round: an arm has one more than its base, and is compared as far as both go."""
    found = relay.Comparison({relay.BASE: [a_round(10)], "cached": [a_round(20), a_round(30)]}, interrupted=True)
    rows = relay.rows_of(found, relay.BASE)
    assert [row[relay.HEAD.index("ratio")] for row in rows] == ["1.00 (1.00-1.00)", "2.00 (2.00-2.00)"]


@pytest.mark.parametrize("deeds", [(FIN,), (b"220 hi\r\n", LISTEN, b"250-hi\r\n", FIN), (b"421 too busy\r\n",)])
def test_a_postfix_that_takes_no_mail_is_an_error(deeds: tuple[bytes | str, ...]) -> None:
    """It closes, within a reply even, or says anything but yes: there is nothing to measure or to wait for."""
    with (
        serving(*deeds) as server,
        pytest.raises(RuntimeError, match="Postfix"),
        relay_rcpt._in_transaction(("127.0.0.1", server.port)),
    ):
        pytest.fail("it is in a transaction")


# what the numbers rest on


def test_growth_of_memory_is_seen() -> None:
    """A steady leak shows, an early rise to a plateau does not, and a few samples prove nothing."""
    assert soak.growth([1000 + 100 * n for n in range(40)]) == 2000
    assert soak.growth([1000 + min(n, 5) for n in range(40)]) == 0
    assert soak.growth([1000] * 8) is None


def test_the_knee_has_a_reason() -> None:
    """The generator's own limit comes before what the server did; a first step has no p99 to be compared with."""
    step = sweep.Step(1000, 1000, 990, 0, 50, 100, 20, 0.2, 0.5, None)
    assert sweep.knee_reason(step, None, []) is None
    assert "11.0 times" in (
        sweep.knee_reason(sweep.Step(*(1000, 1000, 990, 0, 50, 1100, 20, 0.2, 0.5, None)), 100, []) or ""
    )
    slow = sweep.Step(1000, 1000, 900, 0, 50, 100, 20, 0.2, 0.5, None)
    assert "90.0%" in (sweep.knee_reason(slow, 100, []) or "")
    assert "generator" in (sweep.knee_reason(slow, 100, ["it was busy"]) or "")


@given(st.binary(max_size=40), st.sampled_from(Ending))
def test_octets_that_begin_no_reply_are_wrong(data: bytes, ending: Ending) -> None:
    """Invariant: data is answered, cut off or wrong; and it is answered only if a CRLF ends it."""
    outcome = classify(data, ending, b"521")
    if outcome in {Outcome.LINE_FIN, Outcome.LINE_RESET}:
        assert data.startswith(b"521")
        assert data.endswith(b"\r\n")
    if data[:3] != b"521"[: len(data)]:
        assert outcome is Outcome.WRONG


@given(
    st.lists(st.from_regex(r"[ -~]{0,20}", fullmatch=True), max_size=3), st.from_regex(r"[ -~]{0,20}", fullmatch=True)
)
def test_every_cut_of_a_reply_is_told_from_the_whole(more: list[str], last: str) -> None:
    """Invariant: a reply of any number of lines is whole at its end and nowhere before; with more after it, wrong."""
    reply = "".join(f"521-{text}\r\n" for text in more).encode() + f"521 {last}\r\n".encode()
    assert classify(reply, Ending.FIN, b"521") is Outcome.LINE_FIN
    assert classify(reply, Ending.RESET, b"521") is Outcome.LINE_RESET
    for cut in range(len(reply)):
        assert classify(reply[:cut], Ending.FIN, b"521") is Outcome.EOF
    assert classify(reply + b"521 again\r\n", Ending.FIN, b"521") is Outcome.WRONG


@given(st.lists(st.from_regex(r"[0-9]{3} [ -~]{0,20}", fullmatch=True), min_size=4, max_size=4), st.data())
def test_every_cut_of_a_dialogue_is_told_from_the_whole(lines: list[str], data: st.DataObject) -> None:
    """Invariant: a dialogue is whole after its last reply and nowhere before; with more after it, wrong."""
    replies = [f"{line}\r\n".encode() for line in lines]
    expect = [reply[:3] for reply in replies]
    assert all(is_whole(reply) and not is_whole(reply[:-1]) for reply in replies)
    assert classify_dialogue(replies, b"", Ending.FIN, expect) is Outcome.LINE_FIN
    assert classify_dialogue(replies, b"", Ending.RESET, expect) is Outcome.LINE_RESET
    assert classify_dialogue(replies, b"2", Ending.FIN, expect) is Outcome.WRONG
    said = data.draw(st.integers(0, 3))
    rest = replies[said][: data.draw(st.integers(0, len(replies[said]) - 1))]
    assert classify_dialogue(replies[:said], rest, Ending.FIN, expect) is Outcome.EOF
    assert classify_dialogue(replies[:said], rest, Ending.TIMEOUT, expect) is Outcome.TIMEOUT


@given(st.lists(st.integers(0, 10**11)), st.integers(1, 5))
def test_merged_histograms_are_the_histogram_of_all(durations: list[int], parts: int) -> None:
    """Invariant: it makes no difference which process has recorded a duration."""
    merged = Latencies()
    for part in range(parts):
        merged.add(Latencies(durations[part::parts]))
    assert merged.summary() == Latencies(durations).summary()
    assert merged.count == len(durations)
    if durations:
        assert merged.maximum == max(durations)
        exact = sorted(durations)[max(0, -(-len(durations) // 2) - 1)] / 1000
        assert merged.percentile(50) == pytest.approx(exact, rel=0.002, abs=0.13)


@given(st.lists(st.floats(0.001, 1e6), min_size=1), st.floats(0.001, 1e3))
def test_a_spread_lies_within_its_values(values: list[float], factor: float) -> None:
    """Invariant: low <= median <= high, all within the values, in any order; a constant ratio is found exactly."""
    found = spread(values)
    assert found
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert spread(random.Random(1).sample(values, len(values))) == found
    ratio = spread(ratios([value * factor for value in values], values))
    assert ratio
    assert ratio.median == pytest.approx(factor)
    assert ratio.high - ratio.low == pytest.approx(0, abs=factor * 1e-6)
