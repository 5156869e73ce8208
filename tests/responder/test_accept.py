"""When a listener is asked for connections, by a clock of the test's own; the clients are real."""

import asyncio
import errno
import select
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from fakes import FakeLoop, FaultyListener
from support import LINE, PATIENCE, connect, read_all, require

from nullsmtpd.responder import shutdown
from nullsmtpd.responder.accept import BURST_RATE, Acceptor
from nullsmtpd.responder.linger import FIRST_SWEEP, MIN_LINGER, SWEEP_INTERVAL, LingerQueue
from nullsmtpd.responder.replies import REPLY
from nullsmtpd.runtime.log import LOG_INTERVAL
from nullsmtpd.runtime.sockets import CAPACITY_PAUSE, ListenError, bind, parse_address

MAX_POLL_INTERVAL = 0.004  # seconds
BURST = int(BURST_RATE * FIRST_SWEEP)  # connections until the first sweep


class Bench:
    """An acceptor for some listeners, with ``limit`` places to linger ``seconds`` in."""

    def __init__(self, listeners: int = 1, *, seconds: float = 2, limit: int = 4096) -> None:
        self.loop = FakeLoop()
        self.listeners = [
            FaultyListener(fileno=bind(parse_address("127.0.0.1:0"), 1024)[0].detach()) for _ in range(listeners)
        ]
        for listener in self.listeners:
            listener.setblocking(False)
        self.failures: list[ListenError] = []
        self.linger = LingerQueue(self.loop.as_loop(), seconds, limit)
        self.acceptor = Acceptor(
            self.loop.as_loop(), list(self.listeners), REPLY, self.linger, on_failure=self.failures.append
        )
        self.acceptor.start()
        self.clients: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.linger.close_all()
        for one in (*self.clients, *self.listeners):
            one.close()

    @property
    def is_polling(self) -> bool:
        """Whether no listener is watched by epoll; otherwise all of them are."""
        assert len(self.loop.readers) in {0, len(self.listeners)}
        return not self.loop.readers

    def connect(self, count: int = 1, listener: int = 0) -> list[socket.socket]:
        """Have clients connect, and return them."""
        clients = [connect(self.listeners[listener].getsockname()) for _ in range(count)]
        self.clients += clients
        return clients

    def wake_up(self) -> None:
        """Do what epoll does once for each listener with connections."""
        for callback in list(self.loop.readers.values()):
            callback()

    def answer(self, count: int) -> None:
        """Have clients connect one after another, each answered at once, or at the next poll, and closed."""
        for _ in range(count):
            self.connect()
            if self.is_polling:
                self.loop.advance(MAX_POLL_INTERVAL)
            else:
                self.wake_up()
            self.clients.pop().close()

    def are_answered(self, clients: list[socket.socket]) -> list[bool]:
        """Tell which clients have the whole line, without waiting for it."""
        return [is_answered(client) for client in clients]


def is_answered(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0]) and client.recv(99, socket.MSG_PEEK) == LINE


def test_a_lone_client_is_answered_by_its_own_wake_up() -> None:
    """One accept for one client, and none to see whether there is another."""
    with Bench() as bench:
        clients = bench.connect(2)
        bench.wake_up()
        assert bench.are_answered(clients) == [True, False]
        bench.wake_up()
        assert bench.are_answered(clients) == [True, True]
        assert bench.listeners[0].calls == 2
        assert len(bench.loop.timers) == 1  # the sweep's, which it shares with all others


def test_a_client_that_has_closed_is_closed_when_the_next_one_comes() -> None:
    """Without waiting for the sweep; one that stays open is left to it, and the order of arrival is kept."""
    with Bench() as bench:
        bench.answer(20)
        assert len(bench.linger) == 1
        (open_client,) = bench.connect()
        bench.wake_up()
        bench.answer(5)
        assert len(bench.linger) == 6
        open_client.close()
        bench.answer(1)
        assert len(bench.linger) == 1


@pytest.mark.parametrize(("count", "polls"), [(BURST - 1, False), (BURST, True)])
def test_polling_begins_at_the_burst_rate(count: int, *, polls: bool) -> None:
    """With the sweep that finds so many connections a second, and not with one connection less."""
    with Bench() as bench:
        bench.answer(count)
        assert not bench.is_polling
        bench.loop.advance(FIRST_SWEEP)
        assert bench.is_polling is polls


def burst(bench: Bench) -> None:
    """Begin a burst."""
    bench.answer(BURST)
    bench.loop.advance(FIRST_SWEEP)
    assert bench.is_polling


def test_during_a_burst_nobody_waits_longer_than_four_milliseconds() -> None:
    """However many come, and whether or not there was anybody at the last poll."""
    with Bench() as bench:
        burst(bench)
        for count in (0, 1, 5, 0, 0, 100, 20, 1):
            assert bench.loop.until_next <= MAX_POLL_INTERVAL
            clients = bench.connect(count)
            bench.loop.advance(MAX_POLL_INTERVAL)
            assert all(bench.are_answered(clients))


def test_polling_ends_with_the_burst() -> None:
    """Epoll is back once a sweep has found the rate well below that of a burst; then no timer is left."""
    with Bench(2) as bench:
        burst(bench)
        bench.loop.advance(2 * SWEEP_INTERVAL + MAX_POLL_INTERVAL)
        assert not bench.is_polling
        bench.loop.advance(5)
        assert bench.loop.timers == []
        (client,) = bench.connect()
        bench.wake_up()
        assert is_answered(client)


def test_polling_goes_on_as_long_as_the_burst() -> None:
    """One sweep's worth of a lower rate, still above half of it, does not change between both ways."""
    with Bench(limit=10_000) as bench:
        burst(bench)
        for rate in (BURST_RATE, BURST_RATE * 3 // 4, BURST_RATE):
            for _ in range(int(SWEEP_INTERVAL / MAX_POLL_INTERVAL)):
                bench.connect(int(rate * MAX_POLL_INTERVAL) + 1)
                bench.loop.advance(MAX_POLL_INTERVAL)
                while bench.clients:
                    bench.clients.pop().close()
                assert bench.is_polling


def test_one_address_in_a_flood_does_not_shut_out_another() -> None:
    """While there is room for few, each address has its turn."""
    with Bench(2, seconds=60, limit=4) as bench:
        flood = bench.connect(40)
        while not bench.is_polling:
            bench.wake_up()
        (other,) = bench.connect(listener=1)
        bench.loop.advance(3 * MIN_LINGER)
        assert is_answered(other)
        assert bench.are_answered(flood).count(False) > 20


def test_a_poll_answers_a_bounded_number_of_each_listener() -> None:
    """So that signals and timers stay prompt; the rest is answered by the next polls."""
    with Bench(2) as bench:
        burst(bench)
        clients = bench.connect(600)
        (other,) = bench.connect(listener=1)
        bench.loop.advance(bench.loop.until_next)
        assert 200 <= bench.are_answered(clients).count(True) < 400
        assert is_answered(other)
        bench.loop.advance(3 * MAX_POLL_INTERVAL)
        assert all(bench.are_answered(clients))


def test_with_all_places_taken_clients_wait_until_the_oldest_may_be_evicted() -> None:
    """They are not accepted meanwhile, and nothing spins; all are answered, a place at a time."""
    with Bench(seconds=60, limit=4) as bench:
        clients = bench.connect(12)
        for _ in range(5):
            bench.wake_up()
        assert bench.are_answered(clients).count(True) == 4
        assert bench.is_polling
        calls = bench.listeners[0].calls
        bench.loop.advance(MIN_LINGER / 2)
        assert bench.listeners[0].calls == calls
        bench.loop.advance(5 * MIN_LINGER)
        assert all(bench.are_answered(clients))
        assert bench.linger.cut_short == 8
        assert not bench.is_polling


def test_a_burst_does_not_shorten_a_pause() -> None:
    """The sweep that finds it comes while nothing is accepted for lack of descriptors."""
    with Bench() as bench:
        bench.answer(BURST)
        bench.loop.advance(FIRST_SWEEP - CAPACITY_PAUSE / 2)
        (client,) = bench.connect()
        bench.listeners[0].faults = [errno.EMFILE] * 2
        bench.wake_up()
        bench.loop.advance(CAPACITY_PAUSE * 0.9)
        assert bench.acceptor.accept_errors == {errno.EMFILE: 1}
        bench.loop.advance(CAPACITY_PAUSE * 1.5)
        assert is_answered(client)


def test_a_second_without_descriptors_is_ten_attempts(capfd: pytest.CaptureFixture[str]) -> None:
    """While accept fails nothing is watched, an attempt comes each tenth of a second, and one line is logged."""
    with Bench(seconds=0) as bench:
        (client,) = bench.connect()
        bench.listeners[0].faults = [errno.ENFILE] * 10
        bench.wake_up()
        assert bench.is_polling
        bench.loop.advance(4.5 * CAPACITY_PAUSE)
        assert bench.acceptor.accept_errors == {errno.ENFILE: 5}
        bench.loop.advance(5 * CAPACITY_PAUSE)
        assert bench.acceptor.accept_errors == {errno.ENFILE: 10}
        bench.loop.advance(CAPACITY_PAUSE)
        assert is_answered(client)
        bench.loop.advance(CAPACITY_PAUSE)
        assert not bench.is_polling
        assert bench.loop.timers == []
    assert capfd.readouterr().err.count("accept-paused error=ENFILE") == 1


def test_an_error_is_logged_once_a_minute_and_each_kind_by_itself(capfd: pytest.CaptureFixture[str]) -> None:
    """A lack that lasts does not fill the disk with its log, and one does not hide another."""
    with Bench(seconds=0) as bench:
        bench.connect()
        bench.listeners[0].faults = [errno.ENFILE] * 10 + [errno.EMFILE] * 10
        bench.wake_up()
        bench.loop.advance(20.5 * CAPACITY_PAUSE)
        assert capfd.readouterr().err.count("accept-paused") == 2
        for wait, lines in ((LOG_INTERVAL / 2, 0), (LOG_INTERVAL / 2, 1)):
            bench.loop.advance(wait)
            bench.connect()
            bench.listeners[0].faults = [errno.ENFILE]
            bench.wake_up()
            bench.loop.advance(2 * CAPACITY_PAUSE)
            assert capfd.readouterr().err.count("accept-paused error=ENFILE") == lines


def test_without_descriptors_half_of_the_clients_that_linger_are_shed_once() -> None:
    """Accepting pauses for all addresses at once: a further one does not fail, and shed, in vain."""
    with Bench(4) as bench:
        bench.connect(8)
        for _ in range(8):
            bench.wake_up()
        burst_of_one = [bench.connect(listener=number) for number in range(4)]
        for listener in bench.listeners:
            listener.faults = [errno.ENFILE]
        next(iter(bench.loop.readers.values()))()
        assert bench.acceptor.accept_errors == {errno.ENFILE: 1}
        assert len(bench.linger) == 4
        for listener in bench.listeners:
            listener.faults = []
        bench.loop.advance(2 * CAPACITY_PAUSE)
        assert all(is_answered(client) for (client,) in burst_of_one)


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN])
def test_an_error_of_one_connection_pauses_nothing(number: int) -> None:
    """accept(2): the next one may succeed; only EAGAIN is no error at all."""
    with Bench() as bench:
        (client,) = bench.connect()
        bench.listeners[0].faults = [number]
        bench.wake_up()
        assert not bench.is_polling
        assert bench.acceptor.accept_errors == ({} if number == errno.EAGAIN else {number: 1})
        bench.wake_up()
        assert is_answered(client)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSOCK])
def test_a_listener_that_is_lost_for_good_is_reported(number: int) -> None:
    """Once, by its address; nothing is watched any more, as epoll would report it again and again."""
    with Bench(2) as bench:
        host, port = bench.listeners[0].getsockname()
        bench.listeners[0].faults = [number]
        bench.wake_up()
        (failure,) = bench.failures
        assert (failure.errno, failure.filename) == (number, f"{host}:{port}")
        assert bench.loop.readers == {}
        assert bench.loop.timers == []


def fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, "injected")


def test_where_epoll_has_no_room_the_timer_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """epoll_ctl(2) may lack memory, or room within fs.epoll.max_user_watches: clients are answered all the same."""
    with Bench(2, seconds=60, limit=4) as bench:
        bench.connect(5)
        for _ in range(5):
            bench.wake_up()  # the fifth finds no room, so epoll is left
        assert bench.is_polling
        with monkeypatch.context() as patch:
            patch.setattr(bench.loop, "add_reader", fail)
            bench.loop.advance(3 * MIN_LINGER)
            (client,) = bench.connect(listener=1)
            bench.loop.advance(2 * CAPACITY_PAUSE)
            assert is_answered(client)
        bench.loop.advance(2 * CAPACITY_PAUSE)
        assert not bench.is_polling
    assert capfd.readouterr().err.count("epoll-add-failed error=ENOSPC") == 1


@pytest.mark.parametrize("during_a_burst", [False, True])
def test_an_error_of_our_own_in_a_poll_does_not_end_the_accepting(
    monkeypatch: pytest.MonkeyPatch, *, during_a_burst: bool
) -> None:
    """Whatever a poll fails with, the next client is answered."""
    with Bench(limit=4096 if during_a_burst else 4, seconds=60) as bench:
        if during_a_burst:
            burst(bench)
        else:
            bench.connect(5)
            for _ in range(5):
                bench.wake_up()
        with monkeypatch.context() as patch:
            patch.setattr(bench.linger, "close_head", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                bench.loop.advance(1)
        (client,) = bench.connect()
        bench.loop.advance(5 * MIN_LINGER)
        bench.wake_up()
        assert is_answered(client)


@pytest.mark.parametrize(
    ("end", "limit"), [(shutdown.close_port, "HANDSHAKE_TIMEOUT"), (shutdown.release_port, "BACKLOG_TIMEOUT")]
)
def test_a_steady_stream_of_connections_does_not_block_shutdown(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[Acceptor], Awaitable[None]], limit: str
) -> None:
    """There is a limit for each case: where the port stays open, later clients wait for the next process."""
    monkeypatch.setattr(shutdown, limit, 0.05)
    with Bench() as bench:
        monkeypatch.setattr(bench.acceptor, "accept_batch", lambda: 1)

        async def drain() -> None:
            async with asyncio.timeout(PATIENCE):
                await end(bench.acceptor)

        asyncio.run(drain())
        assert bench.listeners[0].fileno() == -1


def test_a_handshake_that_completes_at_the_last_moment_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes it from the table of handshakes before it puts it into the accept queue."""
    with Bench() as bench:
        clients: list[socket.socket] = []

        def none_left(ports: set[int]) -> set[bytes]:
            if not clients:
                clients.extend(bench.connect())
            return set()

        monkeypatch.setattr(shutdown, "_refuse_syns", lambda _: None)
        monkeypatch.setattr(shutdown, "accept_queue_len", lambda _, default: default)
        monkeypatch.setattr(shutdown, "_handshakes", none_left)
        asyncio.run(shutdown.close_port(bench.acceptor))
        assert is_answered(clients[0])


class Unprivileged(socket.socket):
    """A socket of a user who may not attach a filter."""

    def setsockopt(self, level: int, option: int, *value: Any) -> None:  # noqa: ANN401 - passed on
        if option == shutdown._SO_ATTACH_FILTER:
            raise PermissionError(errno.EPERM, "injected")
        super().setsockopt(level, option, *value)


def test_syns_are_refused_where_they_cannot_be_dropped() -> None:
    """SYN cookies or not: no new connection gets into the queue after the last look at it."""
    require(sys.platform == "linux", "SO_BINDTOIFINDEX")
    with Unprivileged() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        shutdown._drop_syns(listener)
        assert client.connect_ex(listener.getsockname()) == errno.ECONNREFUSED


def test_later_handshakes_with_others_on_the_port_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --reuse-port other processes go on; those in progress when the port was closed may be this process's."""
    seen = [{b"own"}, {b"own", b"later"}, {b"later"}, {b"later still"}]
    monkeypatch.setattr(shutdown, "HANDSHAKE_TIMEOUT", 3600)
    monkeypatch.setattr(shutdown, "_handshakes", lambda _: seen.pop(0))

    async def close(acceptor: Acceptor) -> None:
        async with asyncio.timeout(PATIENCE):
            await shutdown.close_port(acceptor)

    with Bench() as bench:
        asyncio.run(close(bench.acceptor))
    assert seen == [{b"later still"}]


def send_fails(number: int, times: int) -> Callable[..., int]:
    """Return a method that fails so often, and then sends."""
    left = [number] * times

    def send(connection: socket.socket, *arguments: Any) -> int:  # noqa: ANN401 - passed on
        if left and connection.fileno() >= 0:
            raise OSError(left.pop(), "injected")
        return socket.SocketType.send(connection, *arguments)

    return send


def connections_with(send: Callable[..., int]) -> type:
    return type("Connection", (socket.SocketType,), {"send": send})


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM])
def test_a_line_for_which_there_is_no_buffer_is_sent_later(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    """It is tried again until it can be sent; no error is counted, and the log has one line."""
    monkeypatch.setattr("nullsmtpd.responder.accept.SocketType", connections_with(send_fails(number, 3)))
    with Bench() as bench:
        (client,) = bench.connect()
        bench.wake_up()
        assert not is_answered(client)
        bench.loop.advance(3.5 * CAPACITY_PAUSE)
        assert read_all(client) == LINE
        assert bench.acceptor.send_errors == 0
    assert capfd.readouterr().err.count(f"send-retry error={errno.errorcode[number]}") == 1


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EPIPE])
def test_a_client_that_has_gone_is_counted(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """It is not tried again."""
    monkeypatch.setattr("nullsmtpd.responder.accept.SocketType", connections_with(send_fails(number, 1)))
    with Bench() as bench:
        (client,) = bench.connect()
        bench.wake_up()
        bench.loop.advance(2 * CAPACITY_PAUSE)
        assert bench.acceptor.send_errors == 1
        assert not is_answered(client)


def test_retries_end_with_the_linger_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that never has a buffer does not keep a timer, or a closed socket, for good."""
    monkeypatch.setattr("nullsmtpd.responder.accept.SocketType", connections_with(send_fails(errno.ENOBUFS, 1000)))
    with Bench(seconds=0.5) as bench:
        bench.connect()
        bench.wake_up()
        bench.loop.advance(3)
        assert len(bench.linger) == 0
        bench.loop.advance(1)
        assert bench.loop.timers == []
