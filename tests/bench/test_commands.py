"""`bench footprint`, `soak` and `relay`, each within tiny bounds; no time is asserted."""

import asyncio
import itertools
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benching import ROOT, accept_queues, bench
from misbehaving import LISTEN, serving
from support import PATIENCE, require_tools

from bench import behaviours, command, relay, servers, soak

SOAK = ("soak", "--duration", "0.5", "--rate", "92")


def bench_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process, where a test can shorten what it waits for; return its exit status."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
    return command.run(arguments)


def test_instances_that_share_a_port_all_listen_when_the_first_connection_comes() -> None:
    """What is measured is several instances, not the first one alone."""
    with servers.running(servers.nullsmtpd(instances=3)) as server:
        assert len(set(server.pids)) == 3
        assert len(accept_queues(server.targets[0][1])) == 3


def test_what_would_falsify_a_measurement_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of another server, and that compiled modules are not kept: the start would be that of the compiler."""
    monkeypatch.setenv("NULLSMTPD_LINGER", "0")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    with servers.running(servers.ARMS["nullsmtpd"]) as server:
        (pid,) = server.pids
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"NULLSMTPD_LINGER" not in environment
    assert b"PYTHONDONTWRITEBYTECODE" not in environment


def test_footprint_compares_with_an_empty_uvloop_server(tmp_path: Path) -> None:
    """`footprint` has memory and start of each server that is here, in relation to an empty one."""
    text, found = bench(*("footprint", "--starts", "2", "--connections", "3"), json_path=tmp_path / "footprint.json")
    results = {(one["what"], one["server"]): one for one in found["results"]}
    for what in ("RSS, MiB", "private, MiB", "start, ms"):
        assert results[what, "empty"]["ratio"]["median"] == 1
        assert results[what, "nullsmtpd"]["value"]["median"] > 0
        assert results[what, "nullsmtpd"]["value"]["values"] == 2
    assert results["private, MiB", "nullsmtpd"]["value"]["median"] < results["RSS, MiB", "nullsmtpd"]["value"]["median"]
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("arm", "status"), [("nullsmtpd", 0), ("uvloop", 1)])
def test_soak_fails_a_server_that_loses_lines(
    arm: str, status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Clients of every behaviour: nullsmtpd passes; one that closes without waiting fails those that write twice."""
    monkeypatch.setitem(behaviours.BEHAVIOURS, "stays_silent", (0.1,))  # a soak of seconds need not wait for them
    assert bench_here(monkeypatch, *SOAK, "--arm", arm) == status
    out, err = capfd.readouterr()
    assert all(name in out for name in behaviours.BEHAVIOURS)
    assert ("Passed." in out) == (not status)
    assert ("writes_twice: " in err) == bool(status)


def replace_uvloop(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    """Have another server in the place of the arm ``uvloop``."""
    monkeypatch.setitem(servers.ARMS, "uvloop", servers.ARMS["uvloop"]._replace(command=command))


@pytest.mark.parametrize(
    ("prefix", "duration", "message"),
    [
        (("sh", "-c", "trap '' TERM; \"$@\"", "sh"), "0.1", "SIGTERM did not end uvloop within 1 s"),
        (("timeout", "--preserve-status", "-s", "KILL", "1.5"), "60", "uvloop ended by itself, with status "),
    ],
)
def test_soak_fails_a_server_that_does_not_end_or_ends_by_itself(
    prefix: tuple[str, ...],
    duration: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A server that ignores SIGTERM is killed; one that ends in the midst of it is reported with its status."""
    monkeypatch.setattr(soak, "_STOP_TIMEOUT", 1.0)
    monkeypatch.setattr(servers, "_STOP_TIMEOUT", 0.1)
    replace_uvloop(monkeypatch, *prefix, *servers.ARMS["uvloop"].command)
    assert bench_here(monkeypatch, "soak", "--duration", duration, "--rate", "1", "--arm", "uvloop") == 1
    assert message in capfd.readouterr().err


LEAK = """
import contextlib, socket, sys
listener, kept = socket.create_server(("127.0.0.1", int(sys.argv[1]))), []
while True:
    kept.append(listener.accept()[0])
    with contextlib.suppress(OSError):  # who only tries whether it listens has gone
        kept[-1].send(b"521 Host does not accept mail\\r\\n")
        kept[-1].shutdown(socket.SHUT_WR)
"""


def test_soak_fails_a_server_that_keeps_files_open(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that closes no connection is found out, although no client lost its line."""
    monkeypatch.setattr(soak, "_CLOSE_TIMEOUT", 0.1)
    monkeypatch.setattr(behaviours, "BEHAVIOURS", {"blasts_1_mib": (), "waits_for_the_line": ()})
    monkeypatch.setattr(soak, "BEHAVIOURS", {"waits_for_the_line": ()})

    replace_uvloop(monkeypatch, sys.executable, "-c", LEAK, "{port}")
    assert bench_here(monkeypatch, "soak", "--duration", "0.2", "--rate", "10", "--arm", "uvloop") == 1
    assert "bench: open files grew from " in capfd.readouterr().err


def test_soak_keeps_to_the_open_files_that_it_has(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With more clients than open files, a soak is slower; that is no fault of the server."""
    monkeypatch.setattr(soak, "BEHAVIOURS", {"sends_ehlo_first": behaviours.BEHAVIOURS["sends_ehlo_first"]})
    monkeypatch.setattr("resource.getrlimit", lambda _: (70, 70))
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    most: list[int] = []

    async def count(address: tuple[str, int], name: str, timeout: float) -> str:  # noqa: ASYNC109
        most.append(len(asyncio.all_tasks()) - 1)
        return await behaviours.one_client(address, name, timeout)

    monkeypatch.setattr(soak, "one_client", count)
    assert bench_here(monkeypatch, "soak", "--duration", "0.5", "--rate", "1000") == 0
    assert max(most) == 6
    assert "this machine is too slow" in capfd.readouterr().out


def test_ctrl_c_is_no_fault_of_the_server(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A soak that is interrupted, within any task, reports no files that its own clients have left open."""
    calls: list[str] = []

    async def interrupt(address: tuple[str, int], name: str, _: float) -> str:
        calls.append(name)
        if len(calls) > 1:  # the first one is for the files that the server opens once
            assert client.connect_ex(address) == 0
            assert client.recv(512)  # so the server has accepted it, and keeps it open for the linger time
            raise KeyboardInterrupt
        return behaviours.WHOLE

    monkeypatch.setattr(soak, "one_client", interrupt)
    with socket.socket() as client:
        assert bench_here(monkeypatch, *SOAK) == 130
    assert capfd.readouterr().err == "bench: interrupted: this is what there was until then\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_start_leaves_no_server(number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and a terminal that hangs up, each twice, end the servers too."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "footprint", "--starts", "1000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + PATIENCE
        while not (started := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert started
    assert not [pid for pid in started if Path("/proc", pid).exists()]


def test_a_server_that_ends_by_itself_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is measured of a server that has ended would be nothing; the message names server and status."""
    arm = servers.ARMS["nullsmtpd"]
    monkeypatch.setitem(servers.ARMS, "nullsmtpd", arm._replace(command=("timeout", "1", *arm.command)))
    assert bench_here(monkeypatch, "compare", "--arms", "nullsmtpd", "--rates", "50") == 1
    assert "bench: nullsmtpd ended by itself, with status " in capfd.readouterr().err


def test_lookups_are_measured_cached_and_uncached_beside_a_fixed_reply(tmp_path: Path) -> None:
    """`relay` checks every reply, and compares with a server that gives a fixed one."""
    require_tools("dnsmasq")
    bounds = ("--rounds", "2", "--each", "50", "--clients", "2")
    text, found = bench("relay", *bounds, json_path=tmp_path / "relay.json")
    results = {one["lookups"]: one for one in found["results"]}
    assert list(results) == ["fixed reply", "cached", "uncached"]
    assert all(one["started"] == 100 and one["cpu_us"]["median"] > 0 for one in results.values())
    assert results["fixed reply"]["ratio"]["median"] == 1
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("reply", [b"8:PERM no,", b"9:NOTFOUND "])
def test_a_lookup_with_a_wrong_reply_is_an_error(reply: bytes) -> None:
    """Figures of a server that answers wrongly, or not to the end, are none."""
    with serving(reply, LISTEN) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        arm = servers.Server(servers.nullsmtpd(), ())
        lookups = relay.Lookups(arm, [client], itertools.repeat("a.example"), b"9:NOTFOUND ")
        with pytest.raises(RuntimeError, match="instead of"):
            relay.exchange(lookups, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("relay", "--rounds=--"), "--"),
        (("footprint", "--starts", "0"), "--starts: '0' is not a whole number"),
        (("footprint", "--connections", "-1"), "--connections: '-1' is not a whole number from 0"),
        (("soak", "--duration", "0"), "--duration: '0' is not a number from 0.001 to 1000000"),
        (("soak", "--rate", "0"), "--rate: '0' is not a number from 0.001 to 1000000"),
        (("soak", "--arm", "postfix"), "--arm: unknown 'postfix'; there are nullsmtpd, nginx"),
        (("soak", "--arm", "mode-mail"), "--arm: mode-mail takes a dialogue"),
        (("relay", "--rounds", "0"), "--rounds: '0' is not a whole number"),
        (("relay", "--each", "0"), "--each: '0' is not a whole number"),
        (("relay", "--clients", "65"), "--clients: '65' is not a whole number from 1 to 64"),
        (("relay", "--json", "/nowhere/x"), "cannot write to /nowhere/x"),
        (("measure",), "invalid choice: 'measure'"),
        ((), "required: COMMAND"),
    ],
)
def test_a_wrong_argument_of_a_command_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    """Whatever is wrong with an argument is stated before anything is started; exit status 2."""
    text, _ = bench(*arguments, status=2)
    assert message in text
    assert text.count("\n") == 1
