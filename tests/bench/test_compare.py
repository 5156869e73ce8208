"""`bench compare`: every server at every rate, in one table, one chart and one file."""

import itertools
import socket
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from benching import ROOT, TINY, bench
from support import require_tools

from bench import documents, servers


def test_compare_measures_every_arm_at_every_rate(tmp_path: Path) -> None:
    """`compare` writes one table that fits a terminal, and JSON with the commit, from which the chart is made."""
    require_tools("cc")
    arms = ("--arms", "nullsmtpd,c-loop,uvloop", "--rates", "50,200,closed")
    text, found = bench("compare", *arms, *TINY, json_path=tmp_path / "c.json")
    results = {(one["rate"], one["server"]): one for one in found["results"]}
    assert set(results) == set(itertools.product(("50", "200", "closed"), ("nullsmtpd", "c-loop", "uvloop")))
    for (rate, arm), one in results.items():
        assert one["started"] == {"50": 10, "200": 40}.get(rate, one["started"]) > 0
        assert one["lost"] == 0
        assert one["cpu_us"]["median"] > 0
        assert one["ratio"]["values"] == 2
        assert one["ratio"]["median"] == 1 or arm != "nullsmtpd"
    assert "commit" in found["machine"]
    assert max(map(len, text.splitlines())) <= 80
    assert documents.table_and_notes(**found["report"]).startswith("| rate | server | CPU µs |")
    words = {element.text for element in ET.fromstring(documents.chart(found)).iter()}  # noqa: S314 - our own
    assert {"nullsmtpd", "c-loop", "uvloop", "50/s", "200/s", "closed loop"} <= words


def test_compare_varies_what_nullsmtpd_has_to_keep(tmp_path: Path) -> None:
    """Measured with idle clients, with several addresses, and in several processes that share a port; all answer."""
    arms = ["nullsmtpd", "idle=0", "idle=40", "addresses=1", "addresses=2", "instances=1", "instances=2"]
    bounds = ("--arms", ",".join(arms), "--rates", "200,closed")
    text, found = bench("compare", *bounds, *TINY, json_path=tmp_path / "c.json")
    assert [(one["rate"], one["server"]) for one in found["results"]] == [
        *itertools.product(("200", "closed"), arms),
    ]
    assert all(one["started"] > 0 and one["lost"] == 0 for one in found["results"])
    assert found["base"] == "nullsmtpd"
    assert max(map(len, text.splitlines())) <= 80


def test_idle_clients_that_a_server_does_not_keep_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with clients lingering are none when the server has closed them."""
    from bench import command

    arm = servers.nullsmtpd("--linger", "0", name="20 idle")._replace(idle=20)
    monkeypatch.setitem(servers.ARMS, "nullsmtpd", arm)
    arguments = ("compare", "--arms", "nullsmtpd", *TINY)
    with monkeypatch.context() as context:
        context.setattr("signal.signal", lambda *_: None)  # this process keeps its handlers
        assert command.run(arguments) == 1


def test_sweep_measures_instances_on_one_port(tmp_path: Path) -> None:
    """It is `compare` with other servers and rates."""
    _, found = bench("sweep", "--rates", "200", *TINY, json_path=tmp_path / "s.json")
    assert [one["server"] for one in found["results"]] == ["instances=1", "instances=2"]
    assert {one["lost"] for one in found["results"]} == {0}


def test_compare_measures_a_whole_dialogue(tmp_path: Path) -> None:
    """The modes with a dialogue are compared beside smtp-sink."""
    require_tools("smtp-sink")
    _, found = bench("compare", "--dialogue", "--rates", "200,closed", *TINY, json_path=tmp_path / "c.json")
    assert {one["server"] for one in found["results"]} == {"mode-session", "mode-mail", "smtp-sink"}
    assert {one["rate"] for one in found["results"]} == {"200", "closed"}
    assert {one["lost"] for one in found["results"]} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arms", "nullsmtpd,mode-mail"), "--arms: a line and a dialogue are different units of work"),
        (("--arms", "postfix"), "--arms: unknown 'postfix'; there are nullsmtpd, nginx, c-loop, uvloop, mode-mail"),
        (("--arms", ""), "unknown ''"),
        (("--arms", "instances=0"), "--arms: '0' is not a whole number from 1 to 64"),
        (("--arms", "instances=1,,instances=2"), "--arms: unknown ''"),
        (("--arms", "idle"), "--arms: '' is not a whole number from 0"),
        (("--arms", "idle=1000000"), "--arms needs 1,002,048 open files"),
        (("--arms", "idle=-1"), "--arms: '-1' is not a whole number from 0"),
        (("--rates", "50,fast"), "--rates: 'fast' is not a number from 0.001 to 1000000"),
        (("--arms", "addresses=0"), "--arms: '0' is not a whole number from 1 to 64"),
        (("--rounds", "0"), "--rounds: '0' is not a whole number"),
        (("--seconds", "0"), "--seconds: '0' is not a number from 0.001 to 1000000"),
        (("--clients", "-5"), "--clients: '-5' is not a whole number"),
        (("--clients", "1000000"), "--clients needs 1,000,000 open files"),
        (("--json", "/nowhere/c.json"), "cannot write to /nowhere/c.json"),
    ],
)
def test_a_wrong_argument_of_compare_is_one_clear_line(arguments: tuple[str, ...], message: str) -> None:
    """What cannot be measured is named before anything is started; exit status 2."""
    text, _ = bench("compare", *arguments, status=2)
    assert message in text
    assert text.count("\n") == 1


def test_the_process_of_nginx_that_answers_is_measured(tmp_path: Path) -> None:
    """Nginx answers in a child of the process that was started: measured in that one, it would be free."""
    require_tools("nginx")
    with servers.running(servers.ARMS["nginx"]) as server:
        with socket.create_connection(server.targets[0]) as client:
            assert client.recv(512)  # the child is there, then
        master, worker = server.pids
        assert server.processes[0].pid == master != worker
    _, found = bench("compare", "--arms", "nginx", "--rates", "400", *TINY, json_path=tmp_path / "c.json")
    assert found["results"][0]["lost"] == 0
    assert found["results"][0]["cpu_us"]["median"] > 1


def test_a_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is not installed is left out, with the reason; when nothing is left, that is an error."""
    monkeypatch.setenv("PATH", str(tmp_path))
    text, _ = bench("compare", "--arms", "c-loop", *TINY, status=1)
    assert text == "bench: nothing to measure; no cc (Debian package gcc)\n"
    arms = ("--arms", "nullsmtpd,c-loop", "--rates", "closed")
    text, found = bench("compare", *arms, *TINY, json_path=tmp_path / "c.json")
    assert {one["server"] for one in found["results"]} == {"nullsmtpd"}
    assert found["missing"] == {"c-loop": "no cc (Debian package gcc)"}
    assert "Missing: c-loop: no cc (Debian package gcc)." in text


def test_a_server_that_does_not_come_up_is_reported_in_its_own_words() -> None:
    """The message has what the server printed."""
    with (
        pytest.raises(RuntimeError, match="unknown argument '--no-such'"),
        servers.running(servers.nullsmtpd("--no-such", "1")),
    ):
        pytest.fail("it started")


def test_every_command_of_the_readme_is_one_that_can_be_run() -> None:
    """bench/README.md names the commands that regenerate its figures; their arguments are valid."""
    from bench import command

    lines = (ROOT / "bench/README.md").read_text().replace("\\\n", " ").splitlines()
    commands = [
        line.partition("python -m bench ")[2].split() for line in lines if line.startswith(".venv/bin/python -m bench ")
    ]
    assert len(commands) > 5
    for arguments in commands:
        assert command.parser().parse_args(arguments)
