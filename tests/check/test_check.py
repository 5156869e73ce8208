"""`nullsmtpd check` against real servers: those that refuse mail properly, and those that do all kinds of things."""

import asyncio
import contextlib
import errno
import importlib
import itertools
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from misbehaving import FIN, HOLD, LISTEN, OCTETS, RESET, Deeds, Server, serving
from support import LINE, PATIENCE, Start, require, require_root, require_tools, run_cli

import nullsmtpd
from nullsmtpd.check.dialogue import ANY, MODES
from nullsmtpd.check.probe import MAX_OCTETS, run_all, tasks_for
from nullsmtpd.cli.arguments import UsageError
from nullsmtpd.cli.check import check_health, run
from nullsmtpd.runtime.sockets import parse_address

GOOD = LINE.decode().rstrip()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server that is told anew what to do by each test, and each example."""
    with serving() as one:
        yield one


def is_one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and text[:-1].isascii() and text[:-1].isprintable()


@pytest.mark.parametrize(
    "reply",
    [
        LINE,
        b"521\r\n",
        b"521 \r\n",
        b"521 \ttab\r\n",
        b"521-Host does\r\n521 not accept mail\r\n",
        b"521-\r\n521\r\n",
        b"521 " + b"x" * 506 + b"\r\n",
    ],
)
def test_rfc5321_4_2_one_whole_521_reply_and_a_fin_is_good(server: Server, reply: bytes) -> None:
    """With text, without, and in several lines (RFC 5321 §4.2.1), up to 512 octets each (§4.5.3.1.5)."""
    server.deeds = [reply, FIN]
    checked = run_cli("check", server.target)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.startswith(f"{server.target} good: '521")
    assert re.search(r", then FIN \(connect \d+\.\d ms, first octet \d+\.\d ms, FIN \d+\.\d ms\)$", checked.stdout)
    assert is_one_line(checked.stdout)


@pytest.mark.parametrize(
    ("deeds", "said"),
    [
        ([FIN], "no data received: '', then FIN"),
        ([LISTEN, RESET], "no data received: '', then a reset"),
        ([HOLD], "no data received: '', not closed within 1 s"),
        ([b"521 Host", FIN], "an incomplete reply: '521 Host', then FIN"),
        ([b"521 Host\r", FIN], r"an incomplete reply: '521 Host\r', then FIN"),
        ([LISTEN, b"521 Host does", RESET], "an incomplete reply: '521 Host does', then a reset"),
        ([b"521 Host does", HOLD], "an incomplete reply: '521 Host does', not closed within 1 s"),
        ([b"521-Host\r\n", FIN], r"an incomplete reply: '521-Host\r\n', then FIN"),
        ([b"521-Host\r\n522 not\r\n", FIN], "not an SMTP reply: "),
        ([LISTEN, LINE, RESET], f"no FIN after the reply: '{GOOD}\\r\\n', then a reset"),
        ([LINE, HOLD], f"no FIN after the reply: '{GOOD}\\r\\n', not closed within 1 s"),
        ([LINE * 2, FIN], "one reply too many: "),
        ([LINE, b"x", FIN], f"octets after the last complete reply: '{GOOD}\\r\\nx', then FIN"),
        ([LINE, b"bye\r\n", FIN], "octets after the last complete reply: "),
        ([b"521 Host\n", FIN], r"not an SMTP reply: '521 Host\n'"),
        ([b"521\tHost\r\n", FIN], "not an SMTP reply: "),
        ([b"521 na\xc3\xafve\r\n", FIN], r"not an SMTP reply: '521 na\xc3\xafve\r\n'"),
        ([b"\x00\x1b[2J\xff\r\n", HOLD], r"not an SMTP reply: '\x00\x1b[2J\xff\r\n'"),
        ([b"SSH-2.0-OpenSSH_9.2\r\n", HOLD], r"not an SMTP reply: 'SSH-2.0-OpenSSH_9.2\r\n'"),
        ([b"x" * 100_000, HOLD], "octets)"),
        ([b"521-x\r\n" * 1000 + b"521 x\r\n", FIN], f"more than {MAX_OCTETS} octets: "),
        ([b"521 " + b"x" * 507 + b"\r\n", FIN], "not an SMTP reply: "),
        ([b"220 mx.example ESMTP\r\n", HOLD], r"the greeting is 220, not 521: '220 mx.example ESMTP\r\n'"),
        ([b"554 No\r\n", HOLD], r"the greeting is 554, not 521: '554 No\r\n'"),
        ([b"421 Later\r\n", FIN], "the greeting is 421, not 521: "),
    ],
)
def test_anything_else_is_bad_and_said_in_one_escaped_line(server: Server, deeds: Deeds, said: str) -> None:
    """Exit status 1, what is wrong, and what was seen."""
    server.deeds = deeds
    early = ["--early"] if LISTEN in deeds else []  # a reset that comes while we connect is seen otherwise
    checked = run_cli("check", *early, server.target, "--timeout", "1" if "not closed" in said else "5")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.startswith(f"{server.target} bad: ")
    assert said in checked.stdout
    assert is_one_line(checked.stdout)


def is_one_521(octets: bytes) -> bool:
    """Tell whether this is one whole 521 reply, as RFC 5321 §4.2 writes it down."""
    reply = re.fullmatch(rb"(521-[\t -~]*\r\n)*521( [\t -~]*)?\r\n", octets)
    return bool(reply) and len(octets) <= MAX_OCTETS and max(map(len, octets.splitlines(keepends=True))) <= 512


def in_chunks(octets: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    return [octets[start:end] for start, end in itertools.pairwise(edges)]


@given(said=OCTETS, cuts=st.lists(st.integers(0, 600), max_size=6), ending=st.sampled_from([FIN, FIN, RESET]))
@example(LINE, [3, 4, 29, 30, 31], FIN)
@example(b"521-" + b"x" * 506 + b"\r\n521\r\n", [511, 512, 513], FIN)
@example(b"521-" + b"x" * 507 + b"\r\n521\r\n", [511, 512, 513], FIN)
@example(b"521-x\r\n" * 584 + b"521 12\r\n", [], FIN)  # 4096 octets
@example(b"521-x\r\n" * 584 + b"521 123\r\n", [], FIN)
def test_good_is_one_whole_521_and_a_fin_and_nothing_else(
    server: Server, said: bytes, cuts: list[int], ending: str
) -> None:
    """Invariant: for any octets in any chunking, good if and only if they are one 521 reply and a FIN; one line."""
    server.deeds = [*in_chunks(said, cuts), ending]
    seen = nullsmtpd.probe("127.0.0.1", server.port, timeout=PATIENCE)
    assert seen.is_good == (is_one_521(said) and ending == FIN)
    assert is_one_line(f"{seen}\n")


def test_no_more_is_read_than_shows_that_it_is_too_much(server: Server) -> None:
    """The most that a refusal may have, and one octet."""
    server.deeds = [b"521-x\r\n" * 10_000, HOLD]
    assert len(nullsmtpd.probe("127.0.0.1", server.port).received) == MAX_OCTETS + 1


@given(said=OCTETS, mode=st.sampled_from([*MODES, ANY]), early=st.booleans())
def test_without_a_fin_nothing_is_good(server: Server, said: bytes, mode: str, *, early: bool) -> None:
    """Invariant: whatever a server says in whatever mode, if it does not close it is bad, and takes no longer."""
    server.deeds = [said, HOLD]
    seen = nullsmtpd.probe("127.0.0.1", server.port, mode=mode, early=early, timeout=0.01)
    assert not seen.is_good
    assert is_one_line(f"{seen}\n")


def test_speaking_first_still_expects_the_whole_line(start: Start) -> None:
    """--early sends EHLO and MAIL in one go, and the responder's line and FIN come all the same."""
    host, port = start().address
    checked = run_cli("check", "--early", f"{host}:{port}")
    assert checked.returncode == 0, checked.stdout
    with serving(LISTEN, LISTEN, LINE, FIN) as server:
        assert run_cli("check", "--early", server.target).returncode == 0
    assert server.heard == [b"EHLO [127.0.0.1]\r\n", b"MAIL FROM:<>\r\n", b""]


@pytest.mark.parametrize("early", [[], ["--early"]])
@pytest.mark.parametrize("mode", MODES)
def test_the_responder_is_found_good_in_each_mode(start: Start, mode: str, early: list[str]) -> None:
    """By --mode, and without HOST by NULLSMTPD_MODE and the other variables that the responder itself reads."""
    env = {"NULLSMTPD_MODE": mode, "NULLSMTPD_TEXT": "Try elsewhere", "NULLSMTPD_LINGER": "1", "NULLSMTPD_USER": ""}
    host, port = start("--mode", mode, "--text", "Try elsewhere").address
    env |= {"NULLSMTPD_LISTEN": f"{host}:{port}"}
    assert run_cli("check", *early, "--mode", mode, f"{host}:{port}").returncode == 0
    checked = run_cli("check", *early, env=env)
    assert checked.returncode == 0, checked.stdout
    assert "521" in checked.stdout
    assert is_one_line(checked.stdout)


@pytest.mark.parametrize(
    ("mode", "deeds", "said"),
    [
        (
            "mail",
            [b"220 a\r\n", LISTEN, b"250 a\r\n", LISTEN, b"250 OK\r\n", HOLD],
            "the reply to MAIL is 250, not 521",
        ),
        ("mail", [b"220 a\r\n", LISTEN, b"550 no\r\n", HOLD], "the reply to EHLO is 550, not 250"),
        ("mail", [b"220 a\r\n", LISTEN, b"250 a\r\n", FIN], "the reply to MAIL is missing"),
        ("mail", [b"220 a\r\n", LISTEN, b"250 a\r\n", LISTEN, LINE, FIN], "the reply to QUIT is missing"),
        ("mail", [b"554 a\r\n", HOLD], "the greeting is 554, not 220"),
        ("mail", [LINE, FIN], "the greeting is 521, not 220"),
        ("session", [LINE, FIN], "the reply to QUIT is missing"),
    ],
)
def test_each_mode_is_held_to_its_dialogue(server: Server, mode: str, deeds: Deeds, said: str) -> None:
    """220, 250, 521 to MAIL, 221 and FIN; else the first reply that is not due, and QUIT instead of waiting."""
    server.deeds = deeds
    checked = run_cli("check", "--mode", mode, server.target)
    assert checked.returncode == 1
    assert said in checked.stdout


@pytest.mark.parametrize("mode", ["session", "mail"])
def test_a_responder_past_its_sessions_is_well(start: Start, mode: str) -> None:
    """Past --max-sessions it gives the answer of close: no reason to restart it, but not what a named host owes."""
    daemon = start("--mode", mode, "--max-sessions", "1")
    host, port = daemon.address
    with socket.create_connection(daemon.address, PATIENCE) as guest:
        assert guest.recv(1)
        env = {"NULLSMTPD_LISTEN": f"{host}:{port}", "NULLSMTPD_MODE": mode}
        assert run_cli("check", env=env).returncode == 0
        assert run_cli("check", "--mode", mode, f"{host}:{port}").returncode == 1


def test_a_text_that_is_set_has_to_be_said(start: Start) -> None:
    """NULLSMTPD_TEXT is what the 521 has to say; without it any text will do."""
    host, port = start("--text", "Closed").address
    env = {"NULLSMTPD_LISTEN": f"{host}:{port}"}
    assert run_cli("check", env=env).returncode == 0
    checked = run_cli("check", env=env | {"NULLSMTPD_TEXT": "Try \u00fc"})
    assert checked.returncode == 1
    assert r"the text of the 521 is not 'Try \xc3\xbc': '521 Closed\r\n', then FIN" in checked.stdout


def test_all_addresses_of_the_environment_have_to_answer(start: Start) -> None:
    """NULLSMTPD_LISTEN is a list; 0.0.0.0 is asked at its loopback address."""
    _, port = start(listen="0.0.0.0:0").address
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    checked = run_cli("check", env={"NULLSMTPD_LISTEN": f"0.0.0.0:{port}"})
    assert checked.returncode == 0
    checked = run_cli("check", env={"NULLSMTPD_LISTEN": f"0.0.0.0:{port},127.0.0.1:{closed}"})
    assert checked.returncode == 1
    good, bad = checked.stdout.splitlines()
    assert good.startswith(f"127.0.0.1:{port} good: ")
    assert bad.startswith(f"127.0.0.1:{closed} bad: connection refused: nothing listens there ")


def test_all_of_both_families_are_asked_at_both_loopback_addresses(start: Start) -> None:
    """:PORT is 127.0.0.1 and ::1, and both have to answer where there are both."""
    require(socket.has_dualstack_ipv6(), "IPv6")
    both = start(listen=":0", count=2)
    _, port = both.address
    checked = run_cli("check", env={"NULLSMTPD_LISTEN": f":{port}"})
    assert checked.returncode == 0
    assert [line.split()[0] for line in checked.stdout.splitlines()] == [f"127.0.0.1:{port}", f"[::1]:{port}"]
    assert run_cli("check", env={"NULLSMTPD_LISTEN": f"[::]:{port}"}).stdout.startswith(f"[::1]:{port} good: ")
    _, alone = start(listen="127.0.0.1:0").address
    assert run_cli("check", env={"NULLSMTPD_LISTEN": f":{alone}"}).returncode == 1


def test_a_host_without_ipv6_is_well_all_the_same(start: Start) -> None:
    """As the responder forgives :PORT a family that the host lacks, so does its health check."""
    require_root()
    require_tools("unshare", "nsenter", "ip")
    without = 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip link set lo up; exec "$@"'
    daemon = start(prefix=("unshare", "--net", "sh", "-c", without, "sh"), listen=":2525")
    checked = subprocess.run(
        ["nsenter", f"--target={daemon.pid}", "--net", sys.executable, "-m", "nullsmtpd", "check"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"NULLSMTPD_LISTEN": ":2525"},
        check=False,
    )
    assert checked.returncode == 0, checked
    assert checked.stdout.startswith("127.0.0.1:2525 good: ")
    assert is_one_line(checked.stdout)


def test_a_health_check_shares_its_time_among_the_addresses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A responder that hangs at each of its addresses is still reported before the container engine kills the check."""
    monkeypatch.setattr("nullsmtpd.cli.check.BUDGET", 0.3)
    server.deeds = [HOLD]
    entries = {"NULLSMTPD_LISTEN": f"{server.target},[::ffff:127.0.0.1]:{server.port},localhost:{server.port}"}
    probes = list(check_health(entries))
    assert len(probes) >= 3
    assert all(seen.timeout == pytest.approx(0.1) for seen in probes)
    assert not any(seen.is_good for seen in probes)
    assert all(seen.timeout == 0.2 for seen in check_health(entries, timeout=0.2))


def test_a_health_check_that_can_ask_nothing_has_not_found_all_well() -> None:
    """A family that the host lacks is forgiven beside another, and not where it is the only one."""
    checked = run_cli("check", env={"NULLSMTPD_LISTEN": "255.255.255.255:25"})
    assert checked.returncode == 1
    assert checked.stdout.startswith("255.255.255.255:25 bad: cannot be reached from this host: ")
    assert is_one_line(checked.stdout)


def test_a_health_check_that_hangs_has_said_what_it_found_before() -> None:
    """Each line is there as soon as its address has answered: a check that is killed leaves those behind."""
    with serving(LINE, FIN) as good, socket.create_server(("127.0.0.1", 0)) as silent:
        listen = f"{good.target},127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "nullsmtpd", "check", "--timeout", "3600"]
        env = os.environ | {"NULLSMTPD_LISTEN": listen}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, bufsize=0) as checking:
            assert checking.stdout
            has_spoken, _, _ = select.select([checking.stdout], [], [], PATIENCE)
            line = checking.stdout.readline().decode() if has_spoken else ""
            checking.kill()
        assert line.startswith(f"{good.target} good: ")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("127.0.0.1", "connection refused: nothing listens there"),
        ("host.invalid", "no address: "),
        ("255.255.255.255", "cannot be reached from this host: "),
        ("x" * 63 + ".invalid", "no address: "),
    ],
)
def test_where_nothing_can_be_reached_one_line_says_why(target: str, said: str) -> None:
    """Connection refused, no such host: exit status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    checked = run_cli("check", f"{target}:{port}")
    assert (checked.returncode, checked.stderr) == (1, "")
    assert checked.stdout.startswith(f"{target}:{port} bad: {said}")
    assert is_one_line(checked.stdout)


def test_a_server_that_does_not_answer_the_syn_is_given_up_on() -> None:
    """A full accept queue drops the SYN: after --timeout seconds that is exit status 1."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        target = f"127.0.0.1:{full.getsockname()[1]}"
        checked = run_cli("check", "--timeout", "0.2", target)
    require(sys.platform == "linux", "Linux, which drops it")
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{target} bad: no answer to the SYN within 0.2 s (end ")


@pytest.mark.parametrize(
    ("arguments", "env", "named"),
    [
        (["--timeout", "0", "x"], {}, "--timeout: '0' is not a number of seconds above 0 and up to 3600"),
        (["--timeout", "1h", "x"], {}, "--timeout: '1h' is not a number of seconds above 0 and up to 3600"),
        (["--timeout"], {}, "--timeout needs a value: --timeout SECONDS"),
        (["--mode", "shy", "x"], {}, "--mode: 'shy' is not a mode; give close, session or mail"),
        (["--port", "65536", "x"], {}, "--port: '65536' is not a port; give a number from 1 to 65535"),
        (["--early=1", "x"], {}, "--early takes no value; leave out '1'"),
        (["--json", "--nosuch", "x"], {}, "unknown argument '--nosuch'; --help lists the options"),
        (["-4", "x"], {}, "'-4'"),
        (["a:b:c"], {}, "HOST: 'a:b:c"),
        ([":25"], {}, "HOST: ':25' is nothing to connect to; give HOST, HOST:PORT or [v6]:PORT"),
        (["x:0"], {}, "HOST: 'x:0' is nothing to connect to"),
        (["[::g]"], {}, "HOST: '[::g]' is not an address"),
        (["fe80::1%\x1b[2J"], {}, r"HOST: 'fe80::1%\x1b[2J' is not an address"),
        (["::1%"], {}, "HOST: '::1%' is not an address"),
        (["x" * 300 + ":25"], {}, f"HOST: '{'x' * 79}... is not an address"),
        ([""], {}, "HOST: ''"),
        (["caf\u00e9.example"], {}, "HOST: 'caf\\xe9.example' is not an address"),
        (["--domain", "[192.0.2.1]"], {}, "--domain: '[192.0.2.1]' is an address literal"),
        (["\x1b[2J\n--nosuch"], {}, "HOST: '\\x1b[2J\\n--nosuch' is not an address"),
        (["--\x1b[2J"], {}, "unknown argument '--\\x1b[2J'; --help lists the options"),
        (
            ["--resolver", "192.0.2.1", "x"],
            {},
            "--resolver is for --domain only; give that too, or leave --resolver out",
        ),
        (["--port", "26"], {}, "--port is for HOST or --domain only"),
        (["--early", "--domain", "x"], {}, "--early is for HOST only"),
        (["--mode", "mail", "--domain", "x"], {}, "--mode is for HOST only"),
        (["--domain", "192.0.2.1"], {}, "--domain: '192.0.2.1' is an IP address"),
        (["--domain", "x", "--resolver", "dns.example"], {}, "--resolver: 'dns.example' is not the address"),
        ([], {"NULLSMTPD_LISTEN": "127.0.0.1:0"}, "NULLSMTPD_LISTEN: '127.0.0.1:0' has port 0"),
        ([], {"NULLSMTPD_LISTEN": "127.0.0.1:1,"}, "NULLSMTPD_LISTEN: '' is not an address"),
        (["--json"], {"NULLSMTPD_LISTEN": "::1:25"}, "NULLSMTPD_LISTEN: '::1:25' is not an address"),
        ([], {"NULLSMTPD_MODE": "shy"}, "NULLSMTPD_MODE: 'shy' is not a mode; give close, session or mail"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_status_2(
    arguments: list[str], env: dict[str, str], named: str
) -> None:
    """The option, the value and what would be right; nothing on stdout."""
    checked = run_cli("check", *arguments, env=env)
    assert (checked.returncode, checked.stdout) == (2, "")
    assert checked.stderr.startswith("nullsmtpd check: ")
    assert named in checked.stderr
    assert is_one_line(checked.stderr)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:{}", "--port {} 127.0.0.1"])
def test_help_version_and_the_forms_of_a_host(text: str) -> None:
    """A host is asked at port 25, at its own port, or at that of --port; --help and --version say what they are."""
    checked = run_cli("check", *text.format(1).split())
    assert checked.stdout.startswith(f"127.0.0.1:{1 if '{}' in text else 25} ")
    usage = run_cli("check", "x:0", "--help").stdout
    assert usage.startswith("usage: nullsmtpd check ")
    assert "exit status:" in usage
    assert run_cli("check", "-h").stdout == usage
    assert run_cli("check", "--version").stdout == f"nullsmtpd {nullsmtpd.__version__}\n"


def test_nagios_takes_a_bad_host_for_critical_with_the_command_of_the_man_page(server: Server) -> None:
    """And nothing of what a server sends is performance data to it: no output has a vertical bar."""
    negate = Path("/usr/lib/nagios/plugins/negate")
    require(negate.exists(), "monitoring-plugins-basic")
    page = Path(__file__).parents[2] / "deploy/man/nullsmtpd-check.1"
    command = re.search(r"^\.Dl negate (.*) nullsmtpd check ", page.read_text(), re.MULTILINE)
    assert command
    server.deeds = [b"521 a|b=1\r\n", FIN]
    for options, status in (([], 0), (["--json"], 0), (["--mode", "mail"], 2)):
        check = [sys.executable, "-m", "nullsmtpd", "check", server.target, *options]
        done = subprocess.run([negate, *command[1].split(), *check], capture_output=True, text=True, check=False)
        assert done.returncode == status, done
        assert "|" not in done.stdout
        assert re.search(r"521 a\\(x7c|u007c)b=1", done.stdout)


def test_several_hosts_are_each_reported_in_their_order(server: Server) -> None:
    """A name with each of its addresses, and an IPv6 address with or without brackets; one that is bad makes it bad."""
    server.deeds = [LINE, FIN]
    checked = run_cli("check", "localhost", "127.0.0.1", "::1", "[::1]", "--port", str(server.port))
    lines = checked.stdout.splitlines()
    assert f"localhost 127.0.0.1:{server.port} good:" in checked.stdout
    assert [line.split()[0] for line in lines[-2:]] == [f"127.0.0.1:{server.port}", f"[::1]:{server.port}"]
    assert checked.returncode == 1
    assert run_cli("check", "127.0.0.1", "127.0.0.2", "--port", str(server.port)).returncode == 1
    assert run_cli("check", server.target, server.target).stdout.count("\n") == 1


def test_json_is_one_line_that_holds_all_that_was_seen(server: Server) -> None:
    """Octets as they came, times in milliseconds, and null for what did not happen."""
    server.deeds = [b"521-a\r\n521 \xff\r\n", FIN]
    checked = run_cli("check", "--json", server.target, "127.0.0.1:1")
    assert checked.returncode == 1
    assert is_one_line(checked.stdout)
    found = json.loads(checked.stdout)
    seen, refused = found.pop("hosts")
    assert found == {"good": False}
    assert 0 < seen.pop("connect_ms") <= seen.pop("first_octet_ms") <= seen.pop("end_ms") < 1000 * PATIENCE
    assert seen.pop("fault").startswith("not an SMTP reply: ")
    assert seen == {
        "host": "127.0.0.1",
        "address": "127.0.0.1",
        "port": server.port,
        "family": "IPv4",
        "good": False,
        "received": "521-a\r\n521 \xff\r\n",
        "replies": [],
        "ending": "left",
    }
    assert (refused["ending"], refused["connect_ms"], refused["received"]) == ("refused", None, "")
    (nowhere,) = json.loads(run_cli("check", "--json", "host.invalid").stdout)["hosts"]
    assert (nowhere["host"], nowhere["address"], nowhere["family"]) == ("host.invalid", None, None)
    server.deeds = [LINE, FIN]
    (good,) = json.loads(run_cli("check", "--json", env={"NULLSMTPD_LISTEN": server.target}).stdout)["hosts"]
    assert (good["good"], good["fault"], good["ending"]) == (True, None, "FIN")
    assert good["replies"] == [{"code": 521, "text": "Host does not accept mail"}]


def imported(*arguments: str, env: dict[str, str]) -> set[str]:
    """Return the modules that a run imports, by itself and not for what measures the tests' coverage."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=bare | env,
        check=False,
    )
    return {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}


def test_the_health_check_loads_next_to_nothing(server: Server) -> None:
    """No event loop, and nothing else that takes long: a container is asked every few seconds."""
    server.deeds = [LINE, FIN]
    env = {"NULLSMTPD_LISTEN": f"{server.target},0.0.0.0:{server.port}", "NULLSMTPD_TEXT": GOOD[4:]}
    assert run_cli("check", env=env).returncode == 0
    ours = imported("-m", "nullsmtpd", "check", env=env) - imported("-c", "import runpy", env={})
    assert "nullsmtpd.check.probe" in ours
    slow = {"argparse", "asyncio", "encodings.idna", "json", "logging", "ssl", "textwrap", "uvloop"}
    assert ours & slow == set()
    full = imported("-m", "nullsmtpd", "check", server.target, env={})
    assert full & {"asyncio", "uvloop", "ssl", "json"} == set()


@given(st.text("0123456789.:[]ax%,- ", max_size=20) | st.sampled_from([":65535", ":65536", "[::1]:25", "h.example:25"]))
def test_the_environment_means_to_the_check_what_it_means_to_the_responder(listen: str) -> None:
    """Invariant: the addresses are those that the responder would listen on, or are refused with the same words."""
    try:
        expected = [parse_address(entry) for entry in listen.split(",")]
    except ValueError as error:
        with pytest.raises(UsageError, match=r"NULLSMTPD_LISTEN: .* (has|is) "):
            check_health({"NULLSMTPD_LISTEN": listen})
        assert str(error)
        return
    if all(port for _, port in expected):
        check_health({"NULLSMTPD_LISTEN": listen})
    else:
        with pytest.raises(UsageError, match="has port 0"):
            check_health({"NULLSMTPD_LISTEN": listen})


def test_check_host_tells_a_program_what_was_seen(server: Server) -> None:
    """The library's functions: a list of what was seen at each address, and errors for what is no question."""
    server.deeds = [LINE, FIN]
    (seen,) = asyncio.run(nullsmtpd.check_host("127.0.0.1", server.port))
    assert isinstance(seen, nullsmtpd.Probe)
    assert seen.is_good
    assert (seen.host, seen.address, seen.port, seen.received) == ("127.0.0.1", "127.0.0.1", server.port, LINE)
    (nowhere,) = asyncio.run(nullsmtpd.check_host("host.invalid", server.port))
    assert nowhere.fault.startswith("no address: ")
    assert (nowhere.host, nowhere.address) == ("host.invalid", "")
    with pytest.raises(ValueError, match=r"is not a mode"):
        asyncio.run(nullsmtpd.check_host("127.0.0.1", mode="shy"))
    with pytest.raises(ValueError, match=r"'host\.example' is not an IP address"):
        nullsmtpd.probe("host.example")
    for port in (-1, 0, 65536, 65536 + server.port):
        with pytest.raises(ValueError, match=f"{port} is not a port"):
            asyncio.run(nullsmtpd.check_host("127.0.0.1", port))


def test_every_public_name_of_the_package_is_there() -> None:
    """What its functions return among them; any other is an AttributeError."""
    package = importlib.import_module("nullsmtpd")  # its __all__ and further names are not in the stub
    assert all(getattr(package, name) for name in package.__all__)
    assert {"Finding", "HostReport", "MX", "Verdict", "probe", "__version__"} <= set(package.__all__)
    with pytest.raises(AttributeError, match="'nosuch'"):
        _ = package.nosuch


def test_a_reader_that_has_gone_changes_no_exit_status(start: Start) -> None:
    """With stdout closed the status still tells."""
    host, port = start().address
    command = f"exec {sys.executable} -m nullsmtpd check {host}:{port} >&-"
    assert subprocess.run(["sh", "-c", command], timeout=PATIENCE, check=False).returncode == 0


def test_json_is_complete_on_a_pipe_that_does_not_block(server: Server) -> None:
    """More than the pipe holds waits for its reader, as on any other pipe."""
    server.deeds = [b"\xff" * MAX_OCTETS, HOLD]
    targets = ["localhost", "127.0.0.1", "::ffff:127.0.0.1"]
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    command = [sys.executable, "-m", "nullsmtpd", "check", "--json", "--port", str(server.port), *targets]
    with reader, subprocess.Popen(command, stdout=writer.fileno()):
        writer.close()
        with reader.makefile("rb") as output:
            hosts = json.loads(output.read())["hosts"]
    assert len(hosts) >= len(targets)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("count", [1, 2])
def test_a_check_that_is_interrupted_has_not_found_all_well(number: signal.Signals, count: int) -> None:
    """The signal ends it at once and silently, threads or not, and not with status 0 as it ends the responder."""
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        targets = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in silent]
        check = [sys.executable, "-m", "nullsmtpd", "check", "--timeout", "3600", *targets]
        command = ["env", "--default-signal=INT", *check]  # a background job ignores it
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as checking:
            for listener in silent:
                listener.settimeout(PATIENCE)
                stack.enter_context(listener.accept()[0])
            checking.send_signal(number)
            try:
                printed, _ = checking.communicate(timeout=PATIENCE)
            finally:
                checking.kill()
            assert (checking.returncode, printed) == (-number, b"")


def test_ctrl_c_ends_a_check_that_is_process_1() -> None:
    """The kernel gives process 1, as in a container, no signal whose action is the default one."""
    require_root()
    require_tools("unshare")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        check = [sys.executable, "-m", "nullsmtpd", "check", "--timeout", "3600", target]
        command = ["env", "--default-signal=INT", "unshare", "--pid", "--fork", "--kill-child", *check]
        with subprocess.Popen(command) as unsharing:
            try:
                connection, _ = silent.accept()
                (child,) = Path(f"/proc/{unsharing.pid}/task/{unsharing.pid}/children").read_text().split()
                os.kill(int(child), signal.SIGINT)
                assert unsharing.wait(PATIENCE) == 128 + signal.SIGINT
                connection.close()
            finally:
                unsharing.kill()


@pytest.mark.usefixtures("no_thread")
def test_where_no_thread_can_be_had_addresses_are_asked_one_after_the_other(server: Server) -> None:
    """A container that may have no more processes still learns of each."""
    server.deeds = [LINE, FIN]
    assert [seen.is_good for seen in run_all(tasks_for([("127.0.0.1", server.port)] * 2, nullsmtpd.probe))] == [
        True,
        True,
    ]


def test_without_descriptors_it_says_so_in_one_line() -> None:
    """Status 1: nothing is known of the domain, and the options were right."""
    checked = subprocess.run(
        [sys.executable, "-m", "nullsmtpd", "check", "--domain", "example.org", "--resolver", "127.0.0.1:1"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (checked.returncode, checked.stdout) == (1, "")
    assert checked.stderr == "nullsmtpd check: cannot run: Too many open files; see the limits of this process\n"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (OSError(errno.ENOBUFS, "No buffer space available"), "No buffer space available"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_a_limit_that_is_reached_is_one_line_and_status_1(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is no fault of the host, of which nothing is known then."""
    monkeypatch.setattr("nullsmtpd.check.probe.socket.socket", Mock(side_effect=error))
    assert run(["127.0.0.1:1"], {}) == 1
    line = f"nullsmtpd check: cannot run: {reason}; see the limits of this process\n"
    assert capfd.readouterr() == ("", line)


@pytest.mark.parametrize("module", ["nullsmtpd.check.domain", "json", "asyncio", "base64"])
def test_a_module_that_cannot_be_imported_is_one_line_and_status_1(module: str) -> None:
    """Only the missing extra is an error of usage; a damaged installation is not."""
    arguments = ["--json", "--domain", "example.org", "--resolver", "127.0.0.1:1"]
    broken = f"import sys; sys.modules[{module!r}] = None"
    program = f"{broken}; from nullsmtpd.cli.check import run; sys.exit(run({arguments}, {{}}))"
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("nullsmtpd check: cannot run: ")
    assert module in ran.stderr
    assert is_one_line(ran.stderr)
