"""The kernel settings in deploy/, in network namespaces, each of which has its own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import Host, open_host
from support import Start, require_root, require_tools, run_clients

SETTINGS = Path(__file__).parents[2] / "deploy" / "sysctl.d" / "nullsmtpd.conf"


@pytest.fixture
def host() -> Iterator[Host]:
    require_root()
    require_tools("unshare", "nsenter", "ip", "nstat", "ss", "sysctl")
    with open_host() as opened:
        yield opened


def test_the_kernel_accepts_every_setting(host: Host) -> None:
    """Each is accepted without a message, and reads back as it was written."""
    wanted = re.findall(r"^(\S+) = (\d+)$", SETTINGS.read_text(), re.MULTILINE)
    assert len(wanted) == 4
    host.run("sysctl", "--quiet", "--load", str(SETTINGS))
    assert [(name, host.run("sysctl", "-n", name).strip()) for name, _ in wanted] == wanted


def test_a_longer_backlog_takes_both_the_setting_and_the_option(host: Host, start: Start) -> None:
    """The queue of the listening socket is as long as the lower of the two."""
    for settings, backlog, length in (
        ("/dev/null", 16384, 4096),
        (str(SETTINGS), 4096, 4096),
        (str(SETTINGS), 16384, 16384),
    ):
        host.run("sysctl", "--quiet", "--load", settings)
        daemon = start("--backlog", str(backlog), prefix=host.prefix)
        queue = host.run("ss", "-Hltn", f"sport = :{daemon.address[1]}").split()[2]
        assert int(queue) == length


def test_connections_beyond_the_time_wait_buckets_lose_nothing(host: Host, start: Start) -> None:
    """With room for ten sockets in TIME_WAIT, two thousand clients that speak first still read the whole line."""
    host.run("sysctl", "--quiet", "net.ipv4.tcp_max_tw_buckets=10")
    daemon = start(prefix=host.prefix)
    outcomes = run_clients(daemon.address, "sends_quit_first", 2000, 50, prefix=host.prefix)
    assert outcomes == {"whole line": 2000}
    overflows = host.run("nstat", "-asz", "TcpExtTCPTimeWaitOverflow").split()[-2]
    assert int(overflows) > 1000
