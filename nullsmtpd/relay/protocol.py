"""The asyncio Protocol of a relay that asks: one request after the other, each answered in its turn."""

import asyncio
import contextlib
from collections import OrderedDict
from typing import cast

from nullsmtpd.relay.answers import Answers, Finding
from nullsmtpd.relay.counters import Counters
from nullsmtpd.relay.netstring import NetstringError, Netstrings
from nullsmtpd.relay.socketmap import (
    MALFORMED,
    MAX_REQUEST_OCTETS,
    NOT_FOUND,
    NULL_MX,
    UNKNOWN_MAP,
    key_of,
    wanted_domain,
)
from nullsmtpd.responder.drain import DrainProtocol

__all__ = ["IDLE_SECONDS", "MAX_DRAINS", "REQUEST_SECONDS", "RelayProtocol", "Sessions"]

#: A relay writes its request at once, and has room for a reply of 50 octets: who takes longer is none.
REQUEST_SECONDS = 10.0

#: Postfix hangs up after 10 seconds without a question. Sendmail keeps the connection as long as its own client stays,
#: which may be silent for an hour (Timeout.command), and defers the next recipient if we are gone.
IDLE_SECONDS = 3600.0

#: How often to look for idle clients.
LOOK_SECONDS = 60.0

#: Clients that have said something else than netstrings and may go on talking until they have read why they are sent
#: away. They are strays and mistakes in a relay's configuration, so few at once, and hold descriptors beside those of
#: the sessions. A further one is closed at once; what it is still saying may cost it the reply.
MAX_DRAINS = 16

# Octets read at a time: several requests. More of them wait in the kernel while one is being answered.
_READ_OCTETS = 1024

# Replies that wait for a client which does not read: as many as it may have sent requests ahead.
_WRITE_OCTETS = 4096


class RelayProtocol(asyncio.BufferedProtocol):
    """Answer each request in turn, and read no further than the one that DNS has not answered yet.

    So a client has one question under way and some kilobytes of ours, however much it sends ahead or leaves unread.
    After something malformed it gets its PERM and the end of the connection. No method raises.
    """

    __slots__ = (
        *("_answers", "_buffer", "_counters", "_is_ending", "_is_paused", "_is_stalled", "_loop", "_netstrings"),
        *("_question", "_sessions", "_timer", "_transport"),
    )

    def __init__(self, answers: Answers, counters: Counters, sessions: "Sessions") -> None:
        """Note where answers come from; nothing happens before the connection is made."""
        self._answers = answers
        self._counters = counters
        self._sessions = sessions
        self._buffer = bytearray(_READ_OCTETS)
        self._netstrings = Netstrings(MAX_REQUEST_OCTETS)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._question: asyncio.Future[Finding] | None = None  # what DNS has not answered yet
        self._is_stalled = False  # the client does not read
        self._is_paused = False  # we do not
        self._is_ending = False  # no more requests will come

    @property
    def is_busy(self) -> bool:
        """Tell whether a request cannot be answered yet."""
        return self._question is not None or self._is_stalled

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place among the sessions, or leave."""
        stream = cast("asyncio.Transport", transport)  # uvloop's own are no subclass of it
        self._loop = asyncio.get_running_loop()
        if not self._sessions.take_in(self):
            stream.close()
            return
        self._transport = stream
        stream.set_write_buffer_limits(high=_WRITE_OCTETS)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Answer what can be answered; leave the rest in the kernel."""
        if self._transport is None:
            return
        self._sessions.note_use(self)
        self._netstrings.feed(memoryview(self._buffer)[:nbytes])
        if self.is_busy:
            self._pause()
        else:
            self._go_on()

    def eof_received(self) -> bool:
        """Close, once the requests that came before are answered; never leave that to the loop, which has no clock."""
        self._is_ending = True
        if not self.is_busy:
            self.close()
        return True

    def pause_writing(self) -> None:
        """Answer no more until the client reads what it has been told."""
        self._is_stalled = True
        self._watch()

    def resume_writing(self) -> None:
        """Go on where answers were held back."""
        self._is_stalled = False
        if self._transport is None or self._transport.is_closing():
            return
        self._stop_clock()
        if not self.is_busy:
            self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client."""
        self._forget()

    def finish(self) -> None:
        """Take no more requests; close once the one under way is answered."""
        self._is_ending = True
        self._netstrings = Netstrings(MAX_REQUEST_OCTETS)
        if self.is_busy:
            self._pause()
        else:
            self.close()

    def close(self) -> None:
        """Close once what was said is sent. It may never be read: so the place is kept, for so long at most."""
        if self._transport is None:
            return
        self._transport.close()
        if not self._transport.get_write_buffer_size():
            self._forget()
        elif self._timer is None:
            self._timer = self._loop.call_later(REQUEST_SECONDS, self._cut_off)

    def let_go(self) -> None:
        """Make room at once: what the client has not read by now is lost to it."""
        self._counters.let_go += 1
        self.close()
        self._abort()

    def _go_on(self) -> None:
        """Answer requests until one has to wait; their replies leave together."""
        replies = []
        try:
            while not self.is_busy and (request := self._netstrings.take()) is not None:
                if reply := self._answer(request):
                    replies.append(reply)
        except NetstringError:
            self._counters.malformed += 1
            self._leave(b"".join([*replies, MALFORMED]))
            return
        self._say(b"".join(replies))
        if self._is_ending and not self.is_busy:
            self.close()
            return
        self._watch()
        self._resume()

    def _answer(self, request: bytes) -> bytes | None:
        """Return the reply to a request, or None when DNS is asked for it."""
        self._counters.requests += 1
        self._stop_clock()
        key = key_of(request)
        if key is None:
            self._counters.unknown_maps += 1
            return UNKNOWN_MAP
        domain = wanted_domain(key)
        if domain is None:
            self._counters.not_domains += 1
            return NOT_FOUND
        if finding := self._answers.known(domain):
            self._counters.cache_hits += 1
            return self._reply(finding)
        self._question = self._answers.ask(domain)
        self._question.add_done_callback(self._on_finding)
        return None

    def _on_finding(self, question: "asyncio.Future[Finding]") -> None:
        if self._question is None:  # the client went while this call was on its way
            return
        self._question = None
        self._say(self._reply(Finding.UNKNOWN if question.cancelled() else question.result()))
        if not self.is_busy:
            self._go_on()

    def _reply(self, finding: Finding) -> bytes:
        if finding is Finding.NULL_MX:
            self._counters.null_mx += 1
            return NULL_MX
        if finding is Finding.NOT_NULL:
            self._counters.not_null += 1
        else:
            self._counters.dns_failures += 1
        return NOT_FOUND

    def _say(self, replies: bytes) -> None:
        if replies and self._transport is not None:
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone already
                self._transport.write(replies)

    def _pause(self) -> None:
        if self._transport is not None and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._transport is not None and self._is_paused and not self.is_busy:
            self._is_paused = False
            self._transport.resume_reading()

    def _watch(self) -> None:
        """Have a clock run while it is the client's turn to complete a request, or to read."""
        is_due = self._is_stalled or (len(self._netstrings) > 0 and self._question is None)
        if is_due and self._timer is None:
            self._timer = self._loop.call_later(REQUEST_SECONDS, self._cut_off)
        elif not is_due:
            self._stop_clock()

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cut_off(self) -> None:
        self._counters.let_go += 1
        self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._forget()

    def _leave(self, farewell: bytes) -> None:
        """Say the last reply and half-close; what the client says from now on is discarded, so that it gets to read."""
        drains = self._sessions.drains
        if len(drains) >= MAX_DRAINS:
            self._say(farewell)
            self.close()
            return
        transport = self._transport
        self._resume()
        self._forget()
        if transport is not None:
            drain = DrainProtocol(farewell, drains=drains, max_drains=MAX_DRAINS)
            transport.set_protocol(drain)
            drain.connection_made(transport)

    def _forget(self) -> None:
        self._sessions.let_out(self)
        self._transport = None
        self._stop_clock()
        self._give_up_question()

    def _give_up_question(self) -> None:
        """Leave the question to others: it may take a minute, and would keep all of us in memory for that long."""
        if self._question is not None:
            self._question.remove_done_callback(self._on_finding)
            self._question = None
            self._counters.dns_failures += 1


class Sessions:
    """The clients that are connected now, ``limit`` of them at most, in the order of their last request.

    ``drains``: those who have lost their place because they spoke no netstrings, while they are still talking.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters, limit: int) -> None:
        """Serve nobody yet."""
        self.drains: set[DrainProtocol] = set()
        self._loop = loop
        self._counters = counters
        self._limit = limit
        self._open: OrderedDict[RelayProtocol, float] = OrderedDict()
        self._is_ending = False
        self._ended = loop.create_future()

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._open)

    def take_in(self, session: RelayProtocol) -> bool:
        """Give a client a place, if need be that of the one which has been idle longest; False when all are busy.

        A relay that was let go connects again when it has something to ask, and one that was not let in cannot ask.
        """
        if len(self._open) >= self._limit and not self._make_room():
            self._counters.refused += 1
            return False
        self._counters.sessions += 1
        self._open[session] = self._loop.time()
        return True

    def note_use(self, session: RelayProtocol) -> None:
        """Remember that a client has just said something."""
        self._open[session] = self._loop.time()
        self._open.move_to_end(session)

    def let_out(self, session: RelayProtocol) -> None:
        """Forget a client."""
        self._open.pop(session, None)
        if self._is_ending and not self._open and not self._ended.done():
            self._ended.set_result(None)

    def look_for_idle(self) -> None:
        """Let go of whoever has asked nothing for an hour, now and every minute from now on."""
        while self._open and next(iter(self._open.values())) + IDLE_SECONDS <= self._loop.time():
            next(iter(self._open)).let_go()
        self._loop.call_later(LOOK_SECONDS, self.look_for_idle)

    async def finish(self) -> None:
        """Let everyone go who waits for no answer, and wait for the others."""
        self._is_ending = True
        for session in list(self._open):
            session.finish()
        if self._open:
            await self._ended

    def _make_room(self) -> bool:
        idle = next((session for session in self._open if not session.is_busy), None)
        if idle is not None:
            idle.let_go()
        return idle is not None
