"""The packet filters in deploy/, between hosts that are network namespaces: who gets the line, and what it leaves."""

import collections
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hosts import CLIENT, SERVER_4, SERVER_6, Host, connected_hosts, open_host
from support import PATIENCE, Start, require_root, require_tools

FOLDER = Path(__file__).parents[2] / "deploy" / "nftables"
NFT, REDIRECT, IPTABLES = FOLDER / "nullsmtpd.nft", FOLDER / "nullsmtpd-redirect.nft", FOLDER / "iptables.sh"

#: What each ruleset allows one source: connections at once, and further ones a second.
BURST, RATE = 50, 10

each_ruleset = pytest.mark.parametrize("rules", [NFT, REDIRECT, IPTABLES], ids=lambda path: path.name)
each_untracked = pytest.mark.parametrize("rules", [NFT, IPTABLES], ids=lambda path: path.name)

#: A stranger's table that makes the kernel track connections, and touches none.
TRACKER = "table inet tracker { chain input { type filter hook input priority 0; ct state established accept; }; }"

Outcomes = dict[str, dict[str, int]]


class Net:
    """A server with nullsmtpd, and a client with many addresses."""

    def __init__(self, server: Host, client: Host, start: Start) -> None:
        self.server = server
        self.client = client
        self._start = start

    def serve(self, host: Host, port: int) -> None:
        """Run nullsmtpd there, for both families."""
        self._start(prefix=host.prefix, listen=f":{port}", count=2)

    def load(self, rules: Path) -> None:
        """Load a ruleset on the server, and start nullsmtpd on the port that it is for."""
        load(self.server, rules)
        self.serve(self.server, 2525 if rules == REDIRECT else 25)

    def knock(
        self,
        *sources: str,
        rounds: int = 1,
        to: str = "",
        port: int = 25,
        by: Host | None = None,
        patience: float = PATIENCE,
    ) -> Outcomes:
        """Connect once a round from each source; return what became of each source's clients."""
        target = to or (SERVER_6 if ":" in sources[0] else SERVER_4)
        knocks = (sys.executable, str(Path(__file__).parents[1] / "knocks.py"))
        outcomes: Outcomes = json.loads(
            (by or self.client).run(*knocks, target, str(port), str(patience), str(rounds), *sources)
        )
        return outcomes


def load(host: Host, rules: Path | str) -> None:
    """Load a ruleset, a file or the text of one for nft, as a file's first line says."""
    if isinstance(rules, str):
        host.run("nft", "-f", "-", stdin=rules)
    elif rules.suffix == ".sh":
        host.run("sh", str(rules))
    else:
        host.run("nft", "-f", str(rules))


def tracked(host: Host) -> int:
    """Return how many connections the host keeps track of."""
    return int(host.run("sysctl", "-n", "net.netfilter.nf_conntrack_count"))


def entries(host: Host) -> str:
    """Return what the host knows of the IPv4 connections that it keeps track of, a line each."""
    return host.run("sh", "-c", "conntrack -L 2>/dev/null")


def ruleset(host: Host) -> str:
    """Return all rules of a host, without what they counted, and nft's warning that some are iptables'."""
    return host.run("sh", "-c", "nft --stateless list ruleset 2>/dev/null")


def sources_4(count: int) -> list[str]:
    return [f"198.18.{number // 250}.{number % 250 + 1}" for number in range(count)]


def sources_6(count: int) -> list[str]:
    """Return addresses of as many networks of 64 bits."""
    return [f"2001:db8:c:{number:x}::1" for number in range(count)]


def all_whole(sources: list[str], rounds: int) -> Outcomes:
    """Return what is to become of clients that all get the line."""
    return {source: {"whole line": rounds} for source in sources}


@pytest.fixture
def net(start: Start) -> Iterator[Net]:
    require_root()
    require_tools("unshare", "nsenter", "ip", "nft", "iptables", "ip6tables", "conntrack", "sysctl")
    with connected_hosts() as (server, client):
        yield Net(server, client, start)


@each_ruleset
def test_line_arrives_over_both_families(net: Net, rules: Path) -> None:
    """Whoever connects to port 25 gets the line, by IPv4 and by IPv6."""
    net.load(rules)
    for source in (CLIENT, *sources_4(3), *sources_6(3)):
        assert net.knock(source, rounds=5) == {source: {"whole line": 5}}


@each_ruleset
@pytest.mark.parametrize("sources", [sources_4, sources_6], ids=["IPv4", "IPv6"])
def test_flooding_source_is_limited_and_others_are_not(
    net: Net, rules: Path, sources: Callable[[int], list[str]]
) -> None:
    """A source gets its burst and its rate, and a reset beyond that; another one meanwhile gets all it asks for."""
    net.load(rules)
    flooding, other = sources(2)
    began = time.monotonic()
    outcomes = net.knock(*[flooding] * 20, other, rounds=BURST - 10)
    elapsed = time.monotonic() - began
    assert outcomes[other] == {"whole line": BURST - 10}
    assert set(outcomes[flooding]) == {"whole line", "refused"}
    assert BURST <= outcomes[flooding]["whole line"] <= BURST + RATE * elapsed + 1


@each_ruleset
def test_one_network_of_64_bits_is_one_source(net: Net, rules: Path) -> None:
    """Who has a /64 has 2^64 addresses, and no more connections than who has one."""
    net.load(rules)
    outcomes = net.knock(*(f"2001:db8:c:1::{number:x}" for number in range(1, 16 * BURST)))
    verdicts = collections.Counter(verdict for each in outcomes.values() for verdict in each)
    assert set(verdicts) == {"whole line", "refused"}
    assert BURST <= verdicts["whole line"] < 8 * BURST


@each_untracked
def test_ten_thousand_connections_leave_no_entry(net: Net, rules: Path) -> None:
    """Of 10,000 connections none is tracked; the same host without the rules tracks every one."""
    load(net.server, TRACKER)
    net.load(rules)
    for sources in (sources_4(125), sources_6(125)):
        assert net.knock(*sources, rounds=40) == all_whole(sources, 40)
    assert tracked(net.server) == 0

    net.server.run("nft", "flush", "ruleset")
    load(net.server, TRACKER)
    for sources in (sources_4(50), sources_6(50)):
        assert net.knock(*sources, rounds=2) == all_whole(sources, 2)
    assert tracked(net.server) == 200


@each_untracked
def test_a_host_that_asks_itself_is_neither_limited_nor_tracked(net: Net, rules: Path) -> None:
    """A check from the host itself may come as often as it likes, and leaves no entry either."""
    load(net.server, TRACKER)
    net.load(rules)
    for address in ("127.0.0.1", "::1", SERVER_4, SERVER_6):
        assert net.knock(address, to=address, rounds=3 * BURST, by=net.server) == {address: {"whole line": 3 * BURST}}
    assert tracked(net.server) == 0


@each_ruleset
def test_other_ports_and_outbound_mail_are_not_touched(net: Net, rules: Path) -> None:
    """A service on another port, and other hosts' port 25, are reached without a limit, and tracked as before."""
    load(net.server, TRACKER)
    load(net.server, rules)
    net.serve(net.server, 26)
    net.serve(net.client, 25)
    many = 3 * BURST
    assert net.knock(CLIENT, port=26, rounds=many) == {CLIENT: {"whole line": many}}
    assert tracked(net.server) == many
    assert net.knock(SERVER_4, to=CLIENT, by=net.server, rounds=many) == {SERVER_4: {"whole line": many}}
    assert tracked(net.server) == 2 * many


@each_ruleset
def test_forwarded_connections_are_not_touched(net: Net, rules: Path) -> None:
    """A router that has the rules lets others' connections to others' port 25 pass, and tracks them as before."""
    load(net.server, TRACKER)
    load(net.server, rules)
    with open_host() as beyond:
        net.server.run("sh", "-e", "-c", _FORWARD, "sh", str(beyond.pid))
        net.serve(beyond, 25)
        outcomes = net.knock(CLIENT, to="203.0.113.2", rounds=3 * BURST)
    assert outcomes == {CLIENT: {"whole line": 3 * BURST}}
    # One that is tracked from the answer on only, because the SYN was not, has its addresses the other way round.
    whole = re.findall(rf" src={CLIENT} dst=203.0.113.2 sport=\d+ dport=25 src=", entries(net.server))
    assert len(whole) == tracked(net.server) == 3 * BURST


# A second cable, from the server to a third host, which is reached through it; 192.0.2.1 is the client.
_FORWARD = f"""
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add name beyond type veth peer name cable netns "$1"
ip address add 203.0.113.1/24 dev beyond
ip link set beyond up
nsenter --target="$1" --net sh -e <<END
ip address add 203.0.113.2/24 dev cable
ip link set cable up
ip route add {CLIENT} via 203.0.113.1
END
"""


@each_ruleset
def test_loading_twice_is_harmless(net: Net, rules: Path) -> None:
    """The second time changes nothing, and a stranger's table is there as before."""
    load(net.server, TRACKER)
    load(net.server, rules)
    once = ruleset(net.server)
    load(net.server, rules)
    assert sorted(ruleset(net.server).splitlines()) == sorted(once.splitlines())
    assert "table inet tracker" in once


def test_each_nft_ruleset_replaces_the_other(net: Net) -> None:
    """A host changes from one to the other by loading it."""
    load(net.server, NFT)
    direct = ruleset(net.server)
    load(net.server, REDIRECT)
    assert "redirect to :2525" in ruleset(net.server)
    load(net.server, NFT)
    assert ruleset(net.server) == direct


def test_iptables_rules_can_be_removed(net: Net) -> None:
    """With `remove` nothing of them is left, and that they are not there is no error."""
    for _ in range(2):
        load(net.server, IPTABLES)
        net.server.run("sh", str(IPTABLES), "remove")
        net.server.run("sh", str(IPTABLES), "remove")
        for command in ("iptables-save", "ip6tables-save"):
            assert "NULLSMTPD" not in net.server.run(command)


@pytest.mark.parametrize("rules", [NFT, REDIRECT], ids=lambda path: path.name)
def test_all_sources_together_are_limited(net: Net, rules: Path) -> None:
    """What comes beyond the common limit is dropped without a word, from whichever source, and leaves no entry."""
    text, found = re.subn(r"over \d+/second burst 4096", "over 1/hour burst 40", rules.read_text())
    assert found == 1
    load(net.server, text)
    net.serve(net.server, 2525 if rules == REDIRECT else 25)
    sources = sources_4(40)
    assert net.knock(*sources) == all_whole(sources, 1)
    before = tracked(net.server)
    assert net.knock("198.18.9.9", patience=0.5) == {"198.18.9.9": {"TimeoutError after b''": 1}}
    assert re.search(r"counter packets [1-9]\d* bytes \d+ drop", net.server.run("nft", "list", "ruleset"))
    assert tracked(net.server) == before


@pytest.mark.parametrize("table", ["raw", "filter"])
def test_iptables_rules_that_were_left_by_half_are_replaced(net: Net, table: str) -> None:
    """A load that failed between the tables left one of them; the next one makes it whole, and twice of nothing."""
    load(net.server, IPTABLES)
    whole = net.server.run("iptables-save").count("NULLSMTPD")
    for command in ("iptables", "ip6tables"):
        net.server.run(command, "-t", table, "-F")
        net.server.run(command, "-t", table, "-X")
    assert 0 < net.server.run("iptables-save").count("NULLSMTPD") < whole
    load(net.server, IPTABLES)
    assert net.server.run("iptables-save").count("NULLSMTPD") == whole


@pytest.mark.parametrize("rules", [NFT, REDIRECT], ids=lambda path: path.name)
def test_a_full_set_shuts_nobody_out(net: Net, rules: Path) -> None:
    """When a flood from many addresses has filled the set, further sources still get the line."""
    load(net.server, rules.read_text().replace("size 65536", "size 4"))
    net.serve(net.server, 2525 if rules == REDIRECT else 25)
    for sources in (sources_4(100), sources_6(100)):
        assert net.knock(*sources) == all_whole(sources, 1)
    assert net.server.run("nft", "list", "set", "inet", "nullsmtpd", "sources4").count("expires") == 4


def test_redirected_beside_a_stateful_firewall(net: Net) -> None:
    """The rule that the file names lets in who was redirected, and nobody who goes to 2525 past the limits."""
    net.load(REDIRECT)
    (advice,) = re.findall(r"^#     (tcp .* accept)", REDIRECT.read_text(), re.MULTILINE)
    load(net.server, STATEFUL.format(incoming="", outgoing=""))
    assert net.knock(CLIENT, patience=0.5) == {CLIENT: {"TimeoutError after b''": 1}}
    load(net.server, STATEFUL.format(incoming=advice, outgoing=""))
    assert net.knock(CLIENT) == {CLIENT: {"whole line": 1}}
    assert net.knock(CLIENT, port=2525, patience=0.5) == {CLIENT: {"TimeoutError after b''": 1}}


def test_limits_of_the_redirection_stand_alone_for_a_published_port(net: Net) -> None:
    """Without its last two chains the file limits who comes to a port that something else redirects."""
    limits, found = re.subn(r"\tchain prerouting .*(?=^})", "", REDIRECT.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert found == 1
    load(net.server, limits)
    load(net.server, PUBLISHED)
    net.serve(net.server, 2525)
    outcome = net.knock(CLIENT, rounds=4 * BURST)[CLIENT]
    assert set(outcome) == {"whole line", "refused"}
    assert outcome["whole line"] >= BURST


PUBLISHED = (
    "table inet engine { chain nat { type nat hook prerouting priority dstnat; tcp dport 25 redirect to :2525; }; }"
)


def test_beside_a_stateful_firewall(net: Net) -> None:
    """One that drops what it does not know lets the line through with the two rules that the file names."""
    net.load(NFT)
    advice = re.findall(r"^#     (tcp .* accept)", NFT.read_text(), re.MULTILINE)
    assert len(advice) == 2
    for incoming, outgoing in (("tcp dport 25 ct state new accept", ""), (advice[0], "")):
        load(net.server, STATEFUL.format(incoming=incoming, outgoing=outgoing))
        assert net.knock(CLIENT, patience=0.5) == {CLIENT: {"TimeoutError after b''": 1}}
    load(net.server, STATEFUL.format(incoming=advice[0], outgoing=advice[1]))
    assert net.knock(CLIENT) == {CLIENT: {"whole line": 1}}


STATEFUL = """
table inet stateful
delete table inet stateful
table inet stateful {{
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
        {incoming}
    }}
    chain output {{
        type filter hook output priority 0; policy drop;
        ct state established,related accept
        {outgoing}
    }}
}}
"""


def test_redirected_connections_fill_the_table_as_the_arithmetic_says(net: Net) -> None:
    """Each leaves one entry for 120 s after its end; one that is over the limit leaves none."""
    net.load(REDIRECT)
    sources = sources_4(25)
    assert net.knock(*sources, rounds=40) == all_whole(sources, 40)
    left = re.findall(r"tcp +6 (\d+) TIME_WAIT .* dport=25 .* sport=2525 ", entries(net.server))
    assert len(left) == tracked(net.server) == 1000
    seconds = int(net.server.run("sysctl", "-n", "net.netfilter.nf_conntrack_tcp_timeout_time_wait"))
    assert all(int(each) <= seconds for each in left)
    for text in (REDIRECT.read_text(), NFT.read_text()):
        assert f"{262_144 // seconds:,} connections a second" in text

    flood = net.knock(CLIENT, rounds=6 * BURST)[CLIENT]
    assert flood["refused"] > 0
    assert tracked(net.server) == 1000 + flood["whole line"]
