"""The Protocol of a relay that asks, on a transport of the tests' own and a clock that they turn."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nullsmtpd.nullmx import MX, DNSError, MXAnswer
from nullsmtpd.relay.answers import Answers
from nullsmtpd.relay.counters import Counters
from nullsmtpd.relay.netstring import netstring
from nullsmtpd.relay.protocol import IDLE_SECONDS, LOOK_SECONDS, MAX_DRAINS, REQUEST_SECONDS, RelayProtocol, Sessions
from nullsmtpd.relay.socketmap import MALFORMED, NOT_FOUND, NULL_MX, UNKNOWN_MAP
from nullsmtpd.responder.drain import DrainProtocol


class Wire(asyncio.Transport):
    """A connection: ``sent`` is what the client would read, ``waiting`` what we have not read from it."""

    def __init__(self, protocol: RelayProtocol) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol = protocol
        self.sent = b""
        self.waiting = b""
        self.end = ""
        self.is_paused = False
        self.has_closed = False
        self.unread = 0  # octets that were written and cannot be sent

    def says(self, octets: bytes, size: int = 1 << 16) -> None:
        """Deliver what the client says, at most ``size`` octets at a time and never while reading is paused."""
        self.waiting += octets
        while self.waiting and not self.is_paused and not self.end and isinstance(self.protocol, RelayProtocol):
            buffer = self.protocol.get_buffer(-1)
            piece = self.waiting[: min(size, len(buffer))]
            self.waiting = self.waiting[len(piece) :]
            buffer[: len(piece)] = piece
            self.protocol.buffer_updated(len(piece))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False
        asyncio.get_running_loop().call_soon(self.says, b"")

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.end = "FIN"

    def get_write_buffer_size(self) -> int:
        return self.unread

    def reads(self) -> None:
        """Let the client read all that it has been told."""
        self.unread = 0
        self.protocol.resume_writing()
        if self.has_closed:
            self._lose("FIN")

    def half_closes(self) -> None:
        """Let the client say that it is done."""
        if isinstance(self.protocol, RelayProtocol) and not self.protocol.eof_received():
            self.close()

    def is_closing(self) -> bool:
        return self.has_closed or bool(self.end)

    def close(self) -> None:
        self.has_closed = True
        if not self.unread:  # else it waits until that is sent
            self._lose("FIN")

    def abort(self) -> None:
        self._lose("RST")

    def _lose(self, how: str) -> None:
        self.end = how
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)


class Protocol(RelayProtocol):
    """The very same, but that without slots there can be weak references to it."""


class Scene:
    """A server of the relay's side whose DNS knows ``null.example`` and others; with ``held``, once that is set."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = 10) -> None:
        self.now = loop.time()
        loop.time = lambda: self.now  # type: ignore[method-assign]
        self.held: asyncio.Event | None = None
        self.counters = Counters()
        self.sessions = Sessions(loop, self.counters, limit)
        self.answers = Answers(loop, self.counters, self.look_up, timeout=5.0, entries=100, limit=limit)

    async def look_up(self, domain: str) -> MXAnswer:
        if self.held:
            await self.held.wait()
        if domain == "dead.example":
            raise DNSError(domain, "SERVFAIL")
        return MXAnswer(domain, (MX(0 if domain == "null.example" else 10, "."),), exists=True, ttl=300)

    def connects(self) -> Wire:
        """Let a client connect."""
        protocol = Protocol(self.answers, self.counters, self.sessions)
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


def asks(key: str) -> bytes:
    return netstring(f"nullmx {key}".encode())


REPLIES = {
    asks("null.example"): NULL_MX,
    asks("x@NULL.example."): NULL_MX,
    asks("plain.example"): NOT_FOUND,
    asks("dead.example"): NOT_FOUND,
    asks("[192.0.2.1]"): NOT_FOUND,
    netstring(b"other null.example"): UNKNOWN_MAP,
}


@given(
    requests=st.lists(st.sampled_from(list(REPLIES)), max_size=30), size=st.integers(1, 200), malformed=st.booleans()
)
def test_any_requests_in_any_pieces_get_their_replies_in_order(
    *, requests: list[bytes], size: int, malformed: bool
) -> None:
    """Invariant: one reply for each request, in their order, cached or not; then PERM and FIN for what is none."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.says(b"".join(requests) + (b"x" if malformed else b""), size)
        for _ in requests:
            await settle()
        assert client.sent == b"".join(REPLIES[request] for request in requests) + (MALFORMED if malformed else b"")
        assert client.end == ("FIN" if malformed else "")
        assert it.counters.requests == len(requests)

    play(scene)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_octets_raise_anything(octets: bytes, size: int) -> None:
    """Invariant: whatever comes, what is said is whole replies of ours, PERM for what is malformed only at the end."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.says(octets, size)
        await settle()
        rest = client.sent
        while rest:
            reply = next(one for one in (NULL_MX, NOT_FOUND, UNKNOWN_MAP, MALFORMED) if rest.startswith(one))
            rest = rest[len(reply) :]
            assert reply != MALFORMED or not rest

    play(scene)


@pytest.mark.parametrize("octets", [b"3", b"20:nullmx", asks("null.example")[:-1]])
def test_a_request_that_does_not_come_to_its_end_ends_the_session(octets: bytes) -> None:
    """However slowly it dribbles in: the time counts from its first octet."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.says(asks("null.example"))
        await settle()
        for octet in octets:
            assert client.end == ""
            client.says(bytes([octet]))
            await it.passes(REQUEST_SECONDS / len(octets))
        await it.passes(0.001)
        assert (client.sent, client.end) == (NULL_MX, "RST")
        assert it.counters.let_go == 1
        assert len(it.sessions) == 0

    play(scene)


def test_each_request_has_its_own_time() -> None:
    """A client that is always in the middle of its next request goes on as long as it goes on."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        request = asks("null.example")
        client.says(request[:5])
        for _ in range(20):
            await it.passes(REQUEST_SECONDS * 0.9)
            client.says(request[5:] + request[:5])
        await settle()
        assert client.end == ""
        assert client.sent == NULL_MX * 20

    play(scene)


def test_the_time_that_dns_takes_is_not_the_clients() -> None:
    """Half of the next request in the buffer does not start the clock while we are the ones who are slow."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        client.says(asks("null.example") + b"20:null")
        await it.passes(4)
        it.held.set()
        await it.passes(0)
        await it.passes(REQUEST_SECONDS - 1)
        assert (client.sent, client.end) == (NULL_MX, "")
        await it.passes(1)
        assert client.end == "RST"

    play(scene)


def test_while_dns_is_asked_no_more_than_one_piece_is_read() -> None:
    """What a client sends ahead waits in the kernel, and is answered afterwards."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        octets = asks("null.example") * 10_000
        client.says(octets)
        await settle()
        assert len(client.waiting) >= len(octets) - 2048
        it.held.set()
        for _ in range(100):
            await settle()
        assert client.sent == NULL_MX * 10_000
        assert it.counters.questions == 1

    play(scene)


def test_a_client_that_does_not_read_is_waited_for_and_then_cut_off() -> None:
    """No reply is made while earlier ones wait to be read; each time it reads, its time begins anew."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.says(asks("plain.example"))
        await settle()
        for _ in range(3):
            client.protocol.pause_writing()
            client.says(asks("plain.example") * 2)
            await it.passes(REQUEST_SECONDS - 1)
            assert client.end == ""
            client.protocol.resume_writing()
        await settle()
        assert client.sent == NOT_FOUND * 7
        client.protocol.pause_writing()
        await it.passes(REQUEST_SECONDS)
        assert client.end == "RST"

    play(scene)


def test_a_client_without_questions_may_stay_an_hour() -> None:
    """Sendmail keeps its connection for as long as its own client is silent; after an hour it is let go."""

    async def scene(it: Scene) -> None:
        it.sessions.look_for_idle()
        idle, active = it.connects(), it.connects()
        for _ in range(int(IDLE_SECONDS / LOOK_SECONDS) - 1):
            await it.passes(LOOK_SECONDS)
            active.says(asks("null.example"))
        assert (idle.end, active.end) == ("", "")
        await it.passes(LOOK_SECONDS)
        assert (idle.end, active.end) == ("FIN", "")
        assert len(it.sessions) == 1

    play(scene)


@pytest.mark.parametrize("is_last", ["half-close", "malformed", "end of the server"])
def test_a_client_that_never_reads_what_is_left_is_cut_off(is_last: str) -> None:
    """It keeps its place until it has read, or for as long as a request may take, however the session ends."""

    async def scene(it: Scene) -> None:
        it.sessions.drains.update(DrainProtocol() for _ in range(MAX_DRAINS))
        slow, never = it.connects(), it.connects()
        for client in (slow, never):
            client.unread = 50
            if is_last == "half-close":
                client.half_closes()
            elif is_last == "malformed":
                client.says(b"x")
        ending = asyncio.ensure_future(it.sessions.finish()) if is_last == "end of the server" else None
        await settle()
        await it.passes(REQUEST_SECONDS - 0.1)
        assert (slow.end, never.end, len(it.sessions)) == ("", "", 2)
        slow.reads()
        await it.passes(0.2)
        assert (slow.end, never.end, len(it.sessions)) == ("FIN", "RST", 0)
        assert it.counters.let_go == 1
        assert ending is None or ending.done()

    play(scene)


def test_a_client_that_reads_again_is_told_no_more_once_it_was_closed() -> None:
    """What is left of its requests is not answered behind the last reply."""

    async def scene(it: Scene) -> None:
        client = it.connects()
        client.protocol.pause_writing()
        client.says(asks("[192.0.2.1]") * 3)
        client.unread = 50
        client.protocol.close()  # type: ignore[attr-defined]
        client.reads()
        await settle()
        assert (client.sent, client.end) == (b"", "FIN")

    play(scene)


def test_who_has_not_read_makes_room_at_once() -> None:
    """Waiting for that would have the newcomer turned away."""

    async def scene(it: Scene) -> None:
        clients = [it.connects() for _ in range(10)]
        for client in clients:
            client.unread = 50
        newcomer = it.connects()
        newcomer.says(asks("null.example"))
        await settle()
        assert (clients[0].end, newcomer.sent, len(it.sessions)) == ("RST", NULL_MX, 10)

    play(scene)


def test_at_the_end_a_request_under_way_is_the_last() -> None:
    """What was sent ahead of it is not answered any more."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        busy, idle = it.connects(), it.connects()
        busy.says(asks("null.example") + asks("plain.example"))
        await settle()
        ending = asyncio.ensure_future(it.sessions.finish())
        await settle()
        assert (busy.end, idle.end, ending.done()) == ("", "FIN", False)
        it.held.set()
        await ending
        assert (busy.sent, busy.end) == (NULL_MX, "FIN")

    play(scene)


def test_a_client_that_leaves_while_dns_is_asked_takes_nothing_of_ours_with_it() -> None:
    """Its memory is free before DNS answers; its request counts as one that DNS did not tell of, and once."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        leaving, staying = it.connects(), it.connects()
        for client in (leaving, staying):
            client.says(asks("null.example"))
        await settle()
        left = weakref.ref(leaving.protocol)
        leaving.abort()
        await settle()
        del client, leaving
        gc.collect()
        assert left() is None
        it.held.set()
        await settle()
        assert staying.sent == NULL_MX
        assert (it.counters.requests, it.counters.null_mx, it.counters.dns_failures) == (2, 1, 1)

    play(scene)


def test_a_client_that_leaves_just_as_dns_answers_is_counted_once() -> None:
    """Invariant: each request is of one kind, also when the answer is on its way to a client that is gone."""

    async def scene(it: Scene) -> None:
        it.held = asyncio.Event()
        client = it.connects()
        client.says(asks("null.example"))
        await settle()
        question = it.answers.ask("null.example")
        question.add_done_callback(lambda _: None)
        it.held.set()
        while not question.done():
            await asyncio.sleep(0)
        client.protocol.connection_lost(None)
        await settle()
        assert it.counters.null_mx + it.counters.dns_failures == it.counters.requests == 1

    play(scene)
