"""No client that stays to read loses the line, whatever it did first: thousands of each kind against a real process."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, require_root, require_tools, run_clients, starting

from bench.behaviours import BEHAVIOURS, LEAVE, LEFT, WHOLE

COUNT = 2000


@pytest.fixture(scope="module")
def both_families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with the default options on 127.0.0.1 and ::1, for the whole module."""
    with starting(tmp_path_factory.mktemp("clients")) as start:
        yield start("--listen", "[::1]:0", count=2)


@pytest.mark.parametrize("family", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_every_client_reads_the_whole_line_and_the_fin(both_families: Daemon, behaviour: str, family: str) -> None:
    """Thousands of connections of each behaviour on each family, hundreds at a time; who stays to read gets it."""
    address = next(address for address in both_families.addresses() if address[0] == family)
    # A crowd that sends a MiB each is one busy process: fewer at once, or it needs longer than it is drained for.
    count, at_once = {"blasts_1_mib": (COUNT // 2, 200), "stays_silent": (COUNT, COUNT)}.get(behaviour, (COUNT, 500))
    outcome = LEFT if LEAVE in BEHAVIOURS[behaviour] else WHOLE
    assert run_clients(address, behaviour, count, at_once) == {outcome: count}


def test_more_blasting_clients_than_drains_all_read_the_line(start: Start) -> None:
    """Clients that find no drain free linger on until there is one."""
    daemon = start("--max-lingering", "400")  # a quarter of that may drain at once: 100
    assert run_clients(daemon.address, "blasts_1_mib", 300, 300) == {"whole line": 300}
    assert int(daemon.stats()["drained"]) > 100


STEPS = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=200).map(lambda octets: ("send", octets)),
        st.integers(1, 100_000).map(lambda size: ("send", b"x" * size)),
        st.sampled_from([("pause", 0.001), ("pause", 0.01), ("read", 1), ("read", 10), ("half-close", 0)]),
    ),
    max_size=8,
)


@given(steps=STEPS)
@settings(max_examples=300)
def test_any_order_of_client_behaviour_ends_with_the_line(
    both_families: Daemon, steps: list[tuple[str, float | bytes]]
) -> None:
    """Invariant: whatever is sent, in whatever order with pauses, reads and a half-close, the line comes whole."""
    received = b""
    can_send = True
    with connect(both_families.address) as client:
        for step, argument in steps:
            if isinstance(argument, bytes):
                if can_send:
                    client.sendall(argument)
            elif step == "pause":
                time.sleep(argument)
            elif step == "read":
                received += client.recv(int(argument))
            elif can_send:
                client.shutdown(socket.SHUT_WR)
                can_send = False
        while octets := client.recv(4096):
            received += octets
    assert received == LINE


@pytest.fixture
def namespace() -> Iterator[str]:
    """Return the name of a new network namespace with a loopback interface, removed afterwards."""
    require_root()
    require_tools("ip", "nft")
    name = f"nullsmtpd-{time.monotonic_ns()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("behaviour", ["waits_for_the_line", "writes_twice", "polls_so_error", "blasts_64_kib"])
def test_lost_segments_lose_no_line(start: Start, namespace: str, behaviour: str, host: str) -> None:
    """With one in ten of the server's segments dropped on its way, every client still reads the whole line."""
    inside = ["ip", "netns", "exec", namespace]
    daemon = start(listen=f"{f'[{host}]' if ':' in host else host}:2525", prefix=inside)
    rules = """
        table inet loss {
            counter lost { }
            chain input {
                type filter hook input priority 0;
                tcp sport 2525 numgen random mod 10 == 0 counter name lost drop
            }
        }
    """
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)
    outcomes = run_clients((host, 2525), behaviour, COUNT, COUNT, patience=120, prefix=inside)
    assert outcomes == {"whole line": COUNT}
    lost = subprocess.run([*inside, "nft", "-j", "list", "counters"], capture_output=True, check=True).stdout
    packets = next(item["counter"]["packets"] for item in json.loads(lost)["nftables"] if "counter" in item)
    assert packets > COUNT / 10, "the rule dropped nothing, so this test tested nothing"
    assert daemon.stats()["connections"] == str(COUNT)
