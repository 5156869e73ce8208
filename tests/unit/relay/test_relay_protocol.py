"""The Protocol of a client, on a transport and a clock of the tests' own."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.nullmx import MX, DNSError, MXAnswer
from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters
from nullsmtpd.relay.protocol import (
    DRAIN_TIMEOUT,
    IDLE_CHECK_INTERVAL,
    IDLE_TIMEOUT,
    MALFORMED,
    MAPS,
    MAX_DRAIN_OCTETS,
    MAX_REQUEST_OCTETS,
    NOT_FOUND,
    REQUEST_TIMEOUT,
    SHUTDOWN_GRACE,
    UNKNOWN_MAP,
    Clients,
    RelayProtocol,
    is_excepted,
    key_domain,
    netstring,
)

NULL_MX, NULL_MX_SENDER = MAPS[b"nullmx"], MAPS[b"nullmxsender"]


class Wire(asyncio.Transport):
    """A connection: ``sent`` is what the client would read, ``waiting`` what was not read from it yet."""

    def __init__(self, protocol: RelayProtocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = b""
        self.waiting = b""
        self.end = ""
        self.is_paused = False
        self.has_closed = False
        self.unread = 0  # octets that were written and cannot be sent

    def sends(self, octets: bytes, size: int = 1 << 16) -> None:
        """Deliver input, at most ``size`` octets at a time and never while reading is paused."""
        self.waiting += octets
        while self.waiting and not self.is_paused and not self.end:
            buffer = self.protocol.get_buffer(-1)
            piece = self.waiting[: min(size, len(buffer))]
            self.waiting = self.waiting[len(piece) :]
            buffer[: len(piece)] = piece
            self.protocol.buffer_updated(len(piece))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closing()
        self.sent += data

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self.sends, b"")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write_eof(self) -> None:
        self.sent += b"EOF"

    def get_write_buffer_size(self) -> int:
        return self.unread

    def reads(self) -> None:
        """Let the client read all that was written."""
        self.unread = 0
        self.protocol.resume_writing()
        if self.has_closed:
            self._lose("FIN")

    def half_closes(self) -> None:
        """Let the client send EOF."""
        assert self.protocol.eof_received()

    def is_closing(self) -> bool:
        return self.has_closed or bool(self.end)

    def close(self) -> None:
        self.has_closed = True
        if not self.unread:  # else it waits until that is sent
            self._lose("FIN")

    def abort(self) -> None:
        self._lose("RST" if self.unread else "FIN")

    def _lose(self, how: str) -> None:
        if not self.end:
            self.end = how
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Scene:
    """A server whose DNS knows ``null.example`` and others, but nothing while ``held`` is there and not set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = 10) -> None:
        self.now = loop.time()
        loop.time = lambda: self.now  # type: ignore[method-assign]
        self.held: asyncio.Event | None = None
        self.counters = Counters()
        self.clients = Clients(loop, self.counters, limit)
        self.answers = Answers(loop, self.counters, self.look_up, cache_size=100, max_pending=limit)

    async def look_up(self, domain: str) -> MXAnswer:
        if self.held:
            await self.held.wait()
        if domain == "dead.example":
            raise DNSError(domain, "SERVFAIL")
        return MXAnswer(domain, (MX(0 if domain == "null.example" else 10, "."),), exists=True, ttl=300)

    def connects(self) -> Wire:
        """Let a client connect."""
        protocol = RelayProtocol(self.answers, self.counters, self.clients, {"own.example", ".below.example"})
        wire = Wire(protocol)
        protocol.connection_made(wire)
        return wire

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
        await scene(Scene(asyncio.get_running_loop()))

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
        client.sends(b"".join(requests) + (b"x" if malformed else b""), size)
        for _ in range(len(requests) + 1):
            await settle()
        assert client.sent == b"".join(REPLIES[request] for request in requests) + (
            MALFORMED + b"EOF" if malformed else b""
        )
        assert client.end == ""
        assert it.counters.requests == len(requests)

    play(scene)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_octets_raise_anything(octets: bytes, size: int) -> None:
    """Invariant: whatever comes, whole replies are sent, and PERM for malformed input is the last."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(octets, size)
        await settle()
        rest = client.sent.removesuffix(b"EOF")
        while rest:
            reply = next(one for one in (*MAPS.values(), NOT_FOUND, UNKNOWN_MAP, MALFORMED) if rest.startswith(one))
            rest = rest[len(reply) :]
            assert reply != MALFORMED or not rest

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
        assert client.sent == NOT_FOUND * 2
        assert (it.counters.excepted, it.counters.queries) == (2, 0)

    play(scene)


@pytest.mark.parametrize("octets", [b"3", b"20:nullmx", asks("null.example")[:-1]])
def test_a_request_that_is_never_completed_ends_the_connection(octets: bytes) -> None:
    """However slowly it comes: the time counts from its first octet."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(asks("null.example"))
        await settle()
        for octet in octets:
            assert client.end == ""
            client.sends(bytes([octet]))
            await settle()
            await it.passes(REQUEST_TIMEOUT / len(octets))
        assert (client.sent, client.end) == (NULL_MX, "FIN")
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
        assert client.end == ""
        assert client.sent == NULL_MX * 20

    play(scene)


def test_the_time_that_dns_takes_is_not_the_clients() -> None:
    """The time for the next request, half of which is there, begins with the reply to the one before."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        client.sends(asks("null.example") + b"20:null")
        await settle()
        await it.passes(4)
        it.held.set()
        await it.passes(0)
        await it.passes(REQUEST_TIMEOUT - 1)
        assert (client.sent, client.end) == (NULL_MX, "")
        await it.passes(1)
        assert client.end == "FIN"

    play(scene)


def test_while_dns_is_asked_no_more_than_some_kilobytes_are_read() -> None:
    """What a client sends ahead waits in the kernel, and is answered afterwards."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        octets = asks("null.example") * 10_000
        client.sends(octets)
        await settle()
        assert len(client.waiting) >= len(octets) - 3 * MAX_REQUEST_OCTETS
        it.held.set()
        for _ in range(100):
            await settle()
        assert client.sent == NULL_MX * 10_000
        assert it.counters.queries == 1

    play(scene)


def test_a_client_that_does_not_read_is_waited_for_and_then_evicted() -> None:
    """No reply is made while earlier ones wait to be read; each time it reads, its time begins anew."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.sends(asks("plain.example"))
        await settle()
        for _ in range(3):
            client.protocol.pause_writing()
            client.sends(asks("plain.example") * 2)
            await settle()
            await it.passes(REQUEST_TIMEOUT - 1)
            assert client.end == ""
            client.protocol.resume_writing()
            await settle()
        assert client.sent == NOT_FOUND * 7
        client.protocol.pause_writing()
        client.unread = 50
        client.sends(asks("plain.example"))
        await settle()
        await it.passes(REQUEST_TIMEOUT)
        assert client.end == "RST"

    play(scene)


def test_a_client_without_requests_may_stay_an_hour() -> None:
    """Sendmail keeps its connection for as long as its own client is silent."""

    async def scene(it: Scene) -> None:
        it.clients.evict_idle()
        silent, idle, active = it.connects(), it.connects(), it.connects()
        idle.sends(asks("null.example"))
        await settle()
        for _ in range(int(IDLE_TIMEOUT / IDLE_CHECK_INTERVAL) - 1):
            await it.passes(IDLE_CHECK_INTERVAL)
            active.sends(asks("null.example"))
            await settle()
        assert (silent.end, idle.end, active.end) == ("", "", "")
        await it.passes(IDLE_CHECK_INTERVAL + 0.001)
        assert (silent.end, idle.end, active.end) == ("FIN", "FIN", "")
        assert len(it.clients) == 1

    play(scene)


def test_only_complete_requests_count_as_activity() -> None:
    """Strangers that send single octets, or nothing, evict each other and never an idle mail server."""

    async def scene(it: Scene) -> None:
        servers = [it.connects() for _ in range(5)]
        for server in servers:
            server.sends(asks("null.example"))
        await settle()
        strangers: list[tuple[Wire, Iterator[int]]] = []
        for _ in range(100):
            strangers = [*strangers[-4:], (it.connects(), iter(asks("null.example")[:-1]))]
            for stranger, octets in strangers[::2]:
                stranger.sends(bytes([next(octets)]))
            await settle()
        assert [server.end for server in servers] == [""] * 5
        assert [stranger.end for stranger, _ in strangers] == [""] * 5
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
        assert [number for number, server in enumerate(servers) if server.end] == [2, 3, 4]

    play(scene)


def test_when_all_are_busy_the_newcomer_is_refused() -> None:
    """Its connection is closed, and is counted as no session."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        for number in range(10):
            it.connects().sends(asks(f"{number}.example"))
        await settle()
        assert it.connects().end == "FIN"
        assert (it.counters.sessions, it.counters.refused) == (10, 1)
        it.held.set()
        await settle()

    play(scene)


def test_malformed_input_is_discarded_until_the_client_has_read_the_reply() -> None:
    """It stays connected until its EOF, some seconds, or a megabyte."""

    async def scene(it: Scene) -> None:
        polite, silent, flooding = (it.connects() for _ in range(3))
        for client in (polite, silent, flooding):
            client.sends(b"GET / HTTP/1.1")
        await settle()
        assert {client.sent for client in (polite, silent, flooding)} == {MALFORMED + b"EOF"}
        polite.half_closes()
        flooding.sends(b"x" * (MAX_DRAIN_OCTETS + 1))
        await settle()
        assert (polite.end, silent.end, flooding.end) == ("FIN", "", "FIN")
        await it.passes(DRAIN_TIMEOUT)
        assert silent.end == "FIN"
        assert (it.counters.malformed, len(it.clients)) == (3, 0)

    play(scene)


@pytest.mark.parametrize("how", ["half-close", "malformed", "shutdown"])
def test_a_client_that_never_reads_the_last_reply_is_evicted(how: str) -> None:
    """It has as much time as for any other reply, however the connection ends."""

    async def scene(it: Scene) -> None:
        slow, never = it.connects(), it.connects()
        for client in (slow, never):
            client.unread = 50
            if how == "half-close":
                client.half_closes()
            elif how == "malformed":
                client.sends(b"x")
        ending = asyncio.ensure_future(it.clients.shut_down()) if how == "shutdown" else None
        await settle()
        await it.passes(SHUTDOWN_GRACE if how == "shutdown" else DRAIN_TIMEOUT if how == "malformed" else 0)
        await it.passes(REQUEST_TIMEOUT - 0.1)
        assert (slow.end, never.end, len(it.clients)) == ("", "", 2)
        slow.reads()
        await it.passes(0.2)
        assert (slow.end, never.end, len(it.clients)) == ("FIN", "RST", 0)
        assert it.counters.evicted == 1
        assert ending is None or ending.done()

    play(scene)


def test_a_client_that_has_not_read_makes_room_at_once() -> None:
    """Waiting for it would mean to refuse the newcomer."""

    async def scene(it: Scene) -> None:
        clients = [it.connects() for _ in range(10)]
        for client in clients:
            client.unread = 50
        newcomer = it.connects()
        newcomer.sends(asks("null.example"))
        await settle()
        assert (clients[0].end, newcomer.sent, len(it.clients)) == ("RST", NULL_MX, 10)

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
        assert (busy.end, idle.end, late.sent, late.end) == ("", "FIN", NOT_FOUND, "FIN")
        assert not ending.done()
        busy.sends(asks("null.example"))
        it.held.set()
        await ending
        assert (busy.sent, busy.end) == (NOT_FOUND, "FIN")

    play(scene)


def test_a_client_that_leaves_while_dns_is_asked_leaves_nothing_behind() -> None:
    """Its memory is free before DNS answers; its request counts as one that DNS did not answer, and once."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        leaving, staying = it.connects(), it.connects()
        for client in (leaving, staying):
            client.sends(asks("null.example") + asks("plain.example"))
        await settle()
        left = weakref.ref(leaving.protocol)
        leaving.abort()
        await settle()
        del client, leaving
        gc.collect()
        assert left() is None
        it.held.set()
        await settle()
        assert staying.sent == NULL_MX + NOT_FOUND
        assert (it.counters.requests, it.counters.null_mx, it.counters.dns_failures) == (3, 1, 1)

    play(scene)


def test_a_client_that_leaves_just_as_dns_answers_is_counted_once() -> None:
    """Invariant: each request has one result, also when the answer is for a client that is gone."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        client.sends(asks("null.example"))
        await settle()
        query = asyncio.ensure_future(it.answers.find("null.example"))
        await settle()
        it.held.set()
        while not query.done():
            await asyncio.sleep(0)
        client.abort()
        client.protocol.connection_lost(None)
        await settle()
        assert it.counters.null_mx + it.counters.dns_failures == it.counters.requests == 1

    play(scene)
