"""The packet filters in deploy/, between hosts that are network namespaces: who gets the line, what is tracked."""

import collections
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from firewalls import (
    BURST,
    IPTABLES,
    NFT,
    RATE,
    REDIRECT,
    TRACKER,
    Net,
    all_whole,
    entries,
    load,
    ruleset,
    sources_4,
    sources_6,
    tracked,
    without_redirection,
)
from firewalls import net as net  # noqa: PLC0414 - a fixture
from hosts import CLIENT, SERVER_4, SERVER_6, open_host

each_ruleset = pytest.mark.parametrize("rules", [NFT, REDIRECT, IPTABLES], ids=lambda path: path.name)
each_untracked = pytest.mark.parametrize("rules", [NFT, IPTABLES], ids=lambda path: path.name)


@each_ruleset
def test_line_arrives_over_both_families(net: Net, rules: Path) -> None:
    """Clients that connect to port 25 get the line, by IPv4 and by IPv6."""
    net.load(rules)
    for source in (CLIENT, *sources_4(3), *sources_6(3)):
        assert net.knock(source, rounds=5) == {source: {"whole line": 5}}


@each_ruleset
@pytest.mark.parametrize("sources", [sources_4, sources_6], ids=["IPv4", "IPv6"])
def test_flooding_source_is_limited_and_others_are_not(
    net: Net, rules: Path, sources: Callable[[int], list[str]]
) -> None:
    """A source may open its burst and its rate, and gets resets beyond; another source is not affected."""
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
    """The 2^64 addresses of a /64 share one limit."""
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
def test_connections_from_the_host_itself_are_neither_limited_nor_tracked(net: Net, rules: Path) -> None:
    """A check that runs on the host may connect at any rate, and leaves no entry either."""
    load(net.server, TRACKER)
    net.load(rules)
    for address in ("127.0.0.1", "::1", SERVER_4, SERVER_6):
        assert net.knock(address, to=address, rounds=3 * BURST, by=net.server) == {address: {"whole line": 3 * BURST}}
    assert tracked(net.server) == 0


@each_ruleset
def test_other_ports_and_outbound_mail_are_not_affected(net: Net, rules: Path) -> None:
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
def test_forwarded_connections_are_not_affected(net: Net, rules: Path) -> None:
    """A router with the rules forwards connections to port 25 of other hosts, and tracks them as before."""
    load(net.server, TRACKER)
    load(net.server, rules)
    with open_host() as beyond:
        net.server.run("sh", "-e", "-c", _FORWARD, "sh", str(beyond.pid))
        net.serve(beyond, 25)
        outcomes = net.knock(CLIENT, to="203.0.113.2", rounds=3 * BURST)
    assert outcomes == {CLIENT: {"whole line": 3 * BURST}}
    # An entry that begins with the reply, because the SYN was untracked, has its addresses the other way round.
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
    """The second load changes nothing, and a table of somebody else stays as it was."""
    load(net.server, TRACKER)
    load(net.server, rules)
    once = ruleset(net.server)
    load(net.server, rules)
    assert sorted(ruleset(net.server).splitlines()) == sorted(once.splitlines())
    assert "table inet tracker" in once


def test_each_nft_ruleset_replaces_the_other(net: Net) -> None:
    """Loading one of them is enough to change over from the other."""
    load(net.server, NFT)
    direct = ruleset(net.server)
    load(net.server, REDIRECT)
    assert "redirect to :2525" in ruleset(net.server)
    load(net.server, NFT)
    assert ruleset(net.server) == direct


def test_iptables_rules_can_be_removed(net: Net) -> None:
    """`remove` leaves nothing of them, and is no error when there is nothing."""
    for _ in range(2):
        load(net.server, IPTABLES)
        net.server.run("sh", str(IPTABLES), "remove")
        net.server.run("sh", str(IPTABLES), "remove")
        for command in ("iptables-save", "ip6tables-save"):
            assert "NULLSMTPD" not in net.server.run(command)


def test_iptables_rules_are_not_loaded_by_mistake(net: Net) -> None:
    """An argument that is not `remove` is an error, and loads nothing."""
    assert net.server.run("sh", "-c", f"sh {IPTABLES} delete 2>/dev/null || echo $?") == "2\n"
    assert "NULLSMTPD" not in net.server.run("iptables-save")


@pytest.mark.parametrize("rules", [NFT, REDIRECT], ids=lambda path: path.name)
def test_all_sources_together_are_limited(net: Net, rules: Path) -> None:
    """Connections beyond the common limit are dropped silently, from whichever source, and leave no entry."""
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
def test_half_of_the_iptables_rules_is_replaced_by_all(net: Net, table: str) -> None:
    """After a load that failed between the tables, the next one installs every rule, and none of them twice."""
    load(net.server, IPTABLES)
    whole = net.server.run("iptables-save").count("NULLSMTPD")
    for command in ("iptables", "ip6tables"):
        net.server.run(command, "-t", table, "-F")
        net.server.run(command, "-t", table, "-X")
    assert 0 < net.server.run("iptables-save").count("NULLSMTPD") < whole
    load(net.server, IPTABLES)
    assert net.server.run("iptables-save").count("NULLSMTPD") == whole


@pytest.mark.parametrize("rules", [NFT, REDIRECT], ids=lambda path: path.name)
def test_a_full_set_refuses_nobody(net: Net, rules: Path) -> None:
    """When a flood from many addresses has filled the set, further sources still get the line."""
    load(net.server, rules.read_text().replace("size 65536", "size 4"))
    net.serve(net.server, 2525 if rules == REDIRECT else 25)
    for sources in (sources_4(100), sources_6(100)):
        assert net.knock(*sources) == all_whole(sources, 1)
    assert net.server.run("nft", "list", "set", "inet", "nullsmtpd", "sources4").count("expires") == 4


def test_redirected_beside_a_stateful_firewall(net: Net) -> None:
    """The rule that the file names accepts redirected clients only, none that connect to 2525 past the limits."""
    net.load(REDIRECT)
    (advice,) = re.findall(r"^#     (tcp .* accept)", REDIRECT.read_text(), re.MULTILINE)
    load(net.server, STATEFUL.format(incoming="", outgoing=""))
    assert net.knock(CLIENT, patience=0.5) == {CLIENT: {"TimeoutError after b''": 1}}
    load(net.server, STATEFUL.format(incoming=advice, outgoing=""))
    assert net.knock(CLIENT) == {CLIENT: {"whole line": 1}}
    assert net.knock(CLIENT, port=2525, patience=0.5) == {CLIENT: {"TimeoutError after b''": 1}}


def test_limits_of_the_redirection_stand_alone_for_a_published_port(net: Net) -> None:
    """Without its last two chains the file limits connections to a port that something else redirects."""
    load(net.server, without_redirection())
    load(net.server, PUBLISHED)
    net.serve(net.server, 2525)
    outcome = net.knock(CLIENT, rounds=4 * BURST)[CLIENT]
    assert set(outcome) == {"whole line", "refused"}
    assert outcome["whole line"] >= BURST


PUBLISHED = (
    "table inet engine { chain nat { type nat hook prerouting priority dstnat; tcp dport 25 redirect to :2525; }; }"
)


def test_beside_a_stateful_firewall(net: Net) -> None:
    """A firewall that drops by default lets the line through with the two rules that the file names."""
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
    """A connection leaves one entry for 120 s after it has closed; one over the limit leaves none."""
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
