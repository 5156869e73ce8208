"""Clients over real sockets, on a clock of the tests' own."""

import asyncio
import contextlib
import fcntl
import gc
import socket
import struct
import sys
import termios
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import require

from nullsmtpd.nullmx import MX, DNSError, MXAnswer
from nullsmtpd.relay import answers, protocol
from nullsmtpd.relay.answers import Answers, is_excepted, key_domain
from nullsmtpd.relay.counters import Counters, Result
from nullsmtpd.relay.protocol import (
    DRAIN_TIMEOUT,
    IDLE_TIMEOUT,
    MAX_REQUEST_OCTETS,
    REQUEST_TIMEOUT,
    SHUTDOWN_GRACE,
    SHUTDOWN_TIMEOUT,
    Client,
    Clients,
    netstring,
)

NULL_MX, NULL_MX_SENDER = map(netstring, answers.REFUSALS.values())
NOT_FOUND, UNKNOWN_MAP = netstring(answers.NOT_FOUND), netstring(answers.UNKNOWN_MAP)
MALFORMED = netstring(protocol.MALFORMED)


@pytest.fixture(scope="module", autouse=True)
def _frequent_checks() -> Iterator[None]:
    """Find clients past their deadlines whenever any time has passed on the tests' own clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "CHECK_INTERVAL", 0.0001)
        yield


class Peer:
    """The client's end of a connection: ``got`` is what it has read, ``end`` how the connection ended."""

    def __init__(self, clients: Clients) -> None:
        self.connection, self.server_end = socket.socketpair()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)  # macOS: 8 KiB
        self.connection.setblocking(False)
        self.server_end.setblocking(False)
        self.got = b""
        self.end = ""
        clients.admit(self.server_end)

    def sends(self, octets: bytes) -> None:
        """Send all of it, for which there must be room."""
        assert self.connection.send(octets) == len(octets)

    def reads(self) -> bytes:
        """Read what has arrived; return all that has been read so far."""
        with contextlib.suppress(BlockingIOError):
            while not self.end:
                try:
                    octets = self.connection.recv(1 << 16)
                except ConnectionResetError:
                    self.end = "RST"
                else:
                    self.got += octets
                    self.end = "" if octets else "FIN"
        return self.got

    def ending(self) -> str:
        """Read, and return how the connection ended: FIN, RST, or not yet."""
        self.reads()
        return self.end

    def waiting(self) -> int:
        """Return how many octets the server has not read yet."""
        return int(struct.unpack("i", fcntl.ioctl(self.server_end, termios.FIONREAD, bytes(4)))[0])


class Scene:
    """A server whose DNS knows ``null.example`` and others, but nothing while ``held`` is there and not set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = 10) -> None:
        self.now = loop.time()
        loop.time = lambda: self.now  # type: ignore[method-assign]
        self.held: asyncio.Event | None = None
        self.counters = Counters()
        self.answers = Answers(
            self.counters,
            self.look_up,
            cache_size=100,
            max_pending=limit,
            exceptions={"own.example", ".below.example"},
        )
        self.clients = Clients(self.answers, self.counters, limit)
        self.peers: list[Peer] = []

    async def look_up(self, domain: str) -> MXAnswer:
        if self.held:
            await self.held.wait()
        if domain == "dead.example":
            raise DNSError(domain, "SERVFAIL")
        return MXAnswer(domain, (MX(0 if domain == "null.example" else 10, "."),), exists=True, ttl=300)

    def connects(self) -> Peer:
        """Let a client connect."""
        self.peers.append(Peer(self.clients))
        return self.peers[-1]

    async def passes(self, seconds: float) -> None:
        """Let time pass, and everything happen that is due then."""
        self.now += seconds
        await settle()


async def settle() -> None:
    """Let the loop do all that can be done without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


def play(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        it = Scene(asyncio.get_running_loop())
        try:
            await scene(it)
        finally:
            for peer in it.peers:
                peer.connection.close()

    asyncio.run(run())


def asks(key: str, name: str = "nullmx") -> bytes:
    return netstring(f"{name} {key}".encode())


REPLIES = {
    asks("null.example"): NULL_MX,
    asks("x@NULL.example."): NULL_MX,
    asks("x@null.example", "nullmxsender"): NULL_MX_SENDER,
    asks("plain.example"): NOT_FOUND,
    asks("plain.example", "nullmxsender"): NOT_FOUND,
    asks("dead.example"): NOT_FOUND,
    asks("[192.0.2.1]"): NOT_FOUND,
    asks("own.example"): NOT_FOUND,
    netstring(b"other null.example"): UNKNOWN_MAP,
}


@given(
    requests=st.lists(st.sampled_from(list(REPLIES)), max_size=30), size=st.integers(1, 200), malformed=st.booleans()
)
def test_any_requests_in_any_pieces_get_their_replies_in_order(
    *, requests: list[bytes], size: int, malformed: bool
) -> None:
    """Invariant: one reply for each request, in their order, cached or not; then PERM and EOF for malformed input."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        octets = b"".join(requests) + (b"x" if malformed else b"")
        for begin in range(0, len(octets), size):
            client.sends(octets[begin : begin + size])
            await asyncio.sleep(0)  # it is read now
            await asyncio.sleep(0)
        for _ in range(len(requests) + 1):
            await settle()
        assert client.reads() == b"".join(REPLIES[request] for request in requests) + (MALFORMED if malformed else b"")
        assert client.end == ("FIN" if malformed else "")
        assert it.counters.requests == len(requests)

    play(scene)


@given(st.binary(min_size=1, max_size=300))
def test_no_octets_raise_anything(octets: bytes) -> None:
    """Invariant: whatever comes, whole replies are sent, and PERM for malformed input is the last, before EOF."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(octets)
        await settle()
        rest = client.reads()
        while rest:
            reply = next(one for one in (*REPLIES.values(), MALFORMED) if rest.startswith(one))
            rest = rest[len(reply) :]
            assert reply != MALFORMED or not rest
        assert client.got.endswith(MALFORMED) is (client.end == "FIN")

    play(scene)


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        ("null.example", "null.example"),
        ("Bob@Null.Example.", "null.example"),
        ("bob@bücher.example", "xn--bcher-kva.example"),
        ("bob@_dmarc.bücher.example", "_dmarc.xn--bcher-kva.example"),
        ("bob@☃.example", "xn--n3h.example"),
        ("bob@ai", "ai"),
        ("@ai", "ai"),
        ("ai", None),
        ("postmaster", None),
        ("Postmaster.", None),
        ("bücher", None),
        ("", None),
        ("<>", None),
        ("bob@", None),
        ("@", None),
        ("bob@[192.0.2.1]", None),
        ("bob@[IPv6:2001:db8::1]", None),
        ("192.0.2.1", None),
        ("a b", None),
    ],
)
def test_a_key_is_about_the_domain_of_an_address_or_about_a_domain(key: str, domain: str | None) -> None:
    """Without an "@" a single label is a local part: mail servers look up ``postmaster`` as it is."""
    assert key_domain(key.encode()) == domain


@given(st.binary(max_size=100))
def test_any_octets_are_a_key(key: bytes) -> None:
    """Invariant: nothing is raised, and a domain without an "@" in the key has at least two labels."""
    domain = key_domain(key)
    assert domain is None or b"@" in key or "." in domain


@pytest.mark.parametrize(
    ("domain", "is_one"),
    [
        ("own.example", True),
        ("sub.own.example", False),
        ("notown.example", False),
        ("below.example", False),
        ("a.below.example", True),
        ("a.b.below.example", True),
        ("abelow.example", False),
        ("example", False),
    ],
)
def test_exceptions_are_names_and_what_is_below_them(domain: str, *, is_one: bool) -> None:
    """A name is excepted by itself, a dot in front of it excepts the names below."""
    assert is_excepted(domain, {"own.example", ".below.example"}) is is_one


def test_dns_is_not_asked_about_exceptions() -> None:
    """In neither map, and they are counted."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(asks("bob@OWN.example") + asks("a.below.example", "nullmxsender"))
        await settle()
        assert client.reads() == NOT_FOUND * 2
        assert (it.counters.results[Result.EXCEPTED], it.counters.queries) == (2, 0)

    play(scene)


@pytest.mark.parametrize("octets", [b"3", b"20:nullmx", asks("null.example")[:-1]])
def test_a_request_that_is_never_completed_ends_the_connection(octets: bytes) -> None:
    """However slowly it comes: the time counts from its first octet."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(asks("null.example"))
        await settle()
        for octet in octets:
            assert client.ending() == ""
            client.sends(bytes([octet]))
            await settle()
            await it.passes(REQUEST_TIMEOUT / len(octets) + 0.001)
        assert (client.reads(), client.end) == (NULL_MX, "FIN")
        assert it.counters.evicted == 1
        assert len(it.clients) == 0

    play(scene)


def test_each_request_has_its_own_time() -> None:
    """A client that is always in the middle of its next request stays as long as it completes them."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        request = asks("null.example")
        client.sends(request[:5])
        for _ in range(20):
            await settle()
            await it.passes(REQUEST_TIMEOUT * 0.9)
            client.sends(request[5:] + request[:5])
        await settle()
        assert client.reads() == NULL_MX * 20
        assert client.end == ""

    play(scene)


def test_the_time_that_dns_takes_is_not_the_clients() -> None:
    """The time for the next request, half of which is there, begins with the reply to the one before."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        client.sends(asks("null.example") + b"20:null")
        await settle()
        await it.passes(REQUEST_TIMEOUT * 2)
        assert client.ending() == ""
        it.held.set()
        await it.passes(0)
        await it.passes(REQUEST_TIMEOUT - 1)
        assert (client.reads(), client.end) == (NULL_MX, "")
        await it.passes(1)
        assert client.ending() == "FIN"

    play(scene)


def test_while_dns_is_asked_no_more_than_some_kilobytes_are_read() -> None:
    """What a client sends ahead waits in the kernel, and is answered afterwards."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        octets = asks("null.example") * 2000
        client.sends(octets)
        await settle()
        assert client.waiting() >= len(octets) - 2 * MAX_REQUEST_OCTETS
        it.held.set()
        for _ in range(100):
            await settle()
            client.reads()
        assert client.got == NULL_MX * 2000
        assert it.counters.queries == 1

    play(scene)


async def let_replies_fill_the_buffers(client: Peer) -> int:
    """Have a client send requests and read nothing until no more are read of it; return the number of requests."""
    for count in range(100):
        before = client.waiting()
        client.sends(asks("plain.example") * 100)
        await settle()
        if count and client.waiting() >= before + len(asks("plain.example") * 100):
            return (count + 1) * 100
    raise AssertionError("the server reads on and on")


def test_a_client_that_does_not_read_is_waited_for_and_then_evicted() -> None:
    """No reply is made while earlier ones wait to be read; each time it reads, its time begins anew."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        count = await let_replies_fill_the_buffers(client)
        requests = it.counters.requests
        for _ in range(3):
            await it.passes(REQUEST_TIMEOUT - 1)
            assert it.counters.requests == requests
            client.got += client.connection.recv(1 << 14)
            await settle()
            requests = it.counters.requests
        assert len(it.clients) == 1
        while len(client.reads()) < count * len(NOT_FOUND):
            await settle()
        assert (client.got, client.end) == (NOT_FOUND * count, "")
        await let_replies_fill_the_buffers(client)
        await it.passes(REQUEST_TIMEOUT)
        assert (len(it.clients), it.counters.evicted) == (0, 1)
        assert client.ending()

    play(scene)


def test_a_client_without_requests_may_stay_an_hour() -> None:
    """Sendmail keeps its connection for as long as its own client is silent."""

    async def scene(it: Scene) -> None:
        silent, idle, active = it.connects(), it.connects(), it.connects()
        idle.sends(asks("null.example"))
        await settle()
        for _ in range(2):
            await it.passes(IDLE_TIMEOUT / 2 - 0.001)
            active.sends(asks("null.example"))
            await settle()
        assert (silent.ending(), idle.ending(), active.ending()) == ("", "", "")
        await it.passes(0.002)
        assert (silent.ending(), idle.ending(), active.ending()) == ("FIN", "FIN", "")
        assert (len(it.clients), it.counters.evicted) == (1, 2)

    play(scene)


def test_only_complete_requests_count_as_activity() -> None:
    """Strangers that send single octets, or nothing, evict each other and never an idle mail server."""

    async def scene(it: Scene) -> None:
        servers = [it.connects() for _ in range(5)]
        for server in servers:
            server.sends(asks("null.example"))
        await settle()
        strangers: list[tuple[Peer, Iterator[int]]] = []
        for _ in range(100):
            strangers = [*strangers[-4:], (it.connects(), iter(asks("null.example")[:-1]))]
            for stranger, octets in strangers[::2]:
                stranger.sends(bytes([next(octets)]))
            await settle()
        assert [server.ending() for server in servers] == [""] * 5
        assert [stranger.ending() for stranger, _ in strangers] == [""] * 5
        assert (len(it.clients), it.counters.evicted) == (10, 95)

    play(scene)


def test_among_mail_servers_the_one_whose_request_is_longest_ago_is_evicted() -> None:
    """One that waits for DNS is passed over."""

    async def scene(it: Scene) -> None:
        servers = [it.connects() for _ in range(10)]
        for server in servers:
            server.sends(asks("null.example"))
            await settle()
        it.held = asyncio.Event()
        servers[1].sends(asks("plain.example"))
        servers[0].sends(asks("null.example"))
        await settle()
        for _ in range(3):
            newcomer = it.connects()
            newcomer.sends(asks("null.example"))
            await settle()
        assert [number for number, server in enumerate(servers) if server.ending()] == [2, 3, 4]

    play(scene)


def test_when_all_are_busy_the_newcomer_is_refused() -> None:
    """Its connection is closed, and is counted as no session."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        for number in range(10):
            it.connects().sends(asks(f"{number}.example"))
        await settle()
        assert it.connects().ending() == "FIN"
        assert (it.counters.sessions, it.counters.refused) == (10, 1)
        it.held.set()
        await settle()

    play(scene)


def test_of_a_crowd_that_connects_at_once_as_many_stay_as_have_room() -> None:
    """The others are disconnected, also those that the event loop had no time for before they were evicted."""

    async def scene(it: Scene) -> None:
        crowd = [it.connects() for _ in range(25)]
        for client in crowd[-10:]:
            client.sends(asks("null.example"))
        await settle()
        assert [client.ending() for client in crowd] == ["FIN"] * 15 + [""] * 10
        assert {client.got for client in crowd[-10:]} == {NULL_MX}
        assert (len(it.clients), it.counters.sessions, it.counters.evicted) == (10, 25, 15)

    play(scene)


def test_malformed_input_is_discarded_until_the_client_has_read_the_reply() -> None:
    """It stays connected until its EOF, or some seconds, however much it sends meanwhile."""

    async def scene(it: Scene) -> None:
        polite, silent, flooding = (it.connects() for _ in range(3))
        for client in (polite, silent, flooding):
            client.sends(b"GET / HTTP/1.1")
        await settle()
        assert {client.reads() for client in (polite, silent, flooding)} == {MALFORMED}
        assert (it.counters.malformed, len(it.clients)) == (3, 3)
        polite.connection.shutdown(socket.SHUT_WR)
        for _ in range(100):
            flooding.sends(b"x" * (1 << 14))
            await settle()
        assert flooding.waiting() == 0
        assert len(it.clients) == 2
        await it.passes(DRAIN_TIMEOUT - 0.1)
        assert len(it.clients) == 2
        await it.passes(0.1)
        assert len(it.clients) == 0

    play(scene)


def test_replies_that_were_not_read_do_not_keep_a_client() -> None:
    """It is evicted at once for a newcomer, which would else be refused; it may still read them."""

    async def scene(it: Scene) -> None:
        clients = [it.connects() for _ in range(10)]
        for client in clients:
            client.sends(asks("plain.example"))
        await settle()
        newcomer = it.connects()
        newcomer.sends(asks("null.example"))
        await settle()
        assert (newcomer.reads(), len(it.clients)) == (NULL_MX, 10)
        assert (clients[0].reads(), clients[0].end) == (NOT_FOUND, "FIN")

    play(scene)


def test_at_shutdown_requests_sent_before_are_answered() -> None:
    """Those that arrive within the grace period, and the one that waits for DNS; none after that one."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        busy, idle, late = it.connects(), it.connects(), it.connects()
        busy.sends(asks("plain.example") + asks("null.example"))
        await settle()
        ending = asyncio.ensure_future(it.clients.shut_down())
        await settle()
        late.sends(asks("[192.0.2.1]"))
        await settle()
        await it.passes(SHUTDOWN_GRACE)
        assert (busy.ending(), idle.ending(), late.ending()) == ("", "FIN", "FIN")
        assert late.got == NOT_FOUND
        assert not ending.done()
        busy.sends(asks("null.example") * 500)  # more than is read: it must not become a reset
        await settle()
        assert busy.waiting()
        it.held.set()
        await ending
        await settle()
        assert (busy.reads(), busy.end) == (NOT_FOUND, "FIN")

    play(scene)


@pytest.mark.parametrize("what", ["dns", "reading"])
def test_at_shutdown_no_client_is_waited_for_for_long(what: str) -> None:
    """Neither one whose query DNS does not answer, which counts as a failure of DNS, nor one that does not read."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        if what == "dns":
            it.held = asyncio.Event()
            client.sends(asks("null.example"))
        else:
            await let_replies_fill_the_buffers(client)
        ending = asyncio.ensure_future(it.clients.shut_down())
        await settle()
        await it.passes(SHUTDOWN_GRACE)
        await it.passes(SHUTDOWN_TIMEOUT - 0.1)
        assert not ending.done()
        await it.passes(0.2)
        assert ending.done()
        assert (len(it.clients), it.counters.results[Result.DNS_FAILURE]) == (0, what == "dns")

    play(scene)


def test_a_client_that_leaves_while_dns_is_asked_leaves_nothing_behind() -> None:
    """Its memory is free before DNS answers; its request counts as one that DNS did not answer, and once."""
    require(sys.platform == "linux", "a Unix socket that is reset when it is closed with unread input")

    async def scene(it: Scene) -> None:
        leaving, staying = it.connects(), it.connects()
        leaving.sends(asks("[192.0.2.1]"))
        await settle()
        it.held = asyncio.Event()
        for client in (leaving, staying):
            client.sends(asks("null.example") + asks("plain.example"))
        await settle()
        leaving.connection.close()  # with a reply that it has not read: that is a reset
        await settle()
        gc.collect()
        assert sum(isinstance(one, Client) for one in gc.get_objects()) == len(it.clients) == 1
        it.held.set()
        await settle()
        assert staying.reads() == NULL_MX + NOT_FOUND
        assert it.counters.requests == 4
        assert it.counters.results[Result.NULL_MX] == it.counters.results[Result.DNS_FAILURE] == 1

    play(scene)


def test_a_client_that_leaves_just_as_dns_answers_is_counted_once() -> None:
    """Invariant: each request has one result, also when the answer is for a client that is gone."""
    require(sys.platform == "linux", "a Unix socket that is reset when it is closed with unread input")

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(asks("[192.0.2.1]"))
        await settle()
        it.held = asyncio.Event()
        client.sends(asks("null.example"))
        await settle()
        query = asyncio.ensure_future(it.answers.find("null.example"))
        await settle()
        it.held.set()
        while not query.done():
            await asyncio.sleep(0)
        client.connection.close()
        await settle()
        assert len(it.clients) == 0
        assert it.counters.results[Result.NULL_MX] + it.counters.results[Result.DNS_FAILURE] == 1
        assert it.counters.requests == 2

    play(scene)
