"""The stub resolver: which server it asks, what it takes for an answer, and what it returns."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.message
import pytest
import uvloop
from name_server import NameServer, name_server
from support import PATIENCE

from nullsmtpd import nullmx
from nullsmtpd.nullmx import Answer, DNSError, Resolver
from nullsmtpd.runtime import resolv_conf as resolv_conf_module

Write = Callable[..., None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Run coroutines on either event loop: check uses the one, relay the other."""
    return asyncio.run if request.param == "asyncio" else uvloop.run


@pytest.fixture
def servers() -> Iterator[list[NameServer]]:
    """Three name servers at loopback addresses of their own, on one port."""
    with contextlib.ExitStack() as stack:
        while True:
            first = stack.enter_context(name_server("127.0.0.2"))
            try:
                others = [stack.enter_context(name_server(f"127.0.0.{end}", first.address[1])) for end in (3, 4)]
            except OSError:
                continue
            yield [first, *others]
            return


@pytest.fixture
def resolv_conf(servers: list[NameServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes /etc/resolv.conf; the servers in it are asked on the port of the tests' own."""
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(resolv_conf_module, "_PATH", str(path))
    monkeypatch.setattr(nullmx, "_DNS_PORT", servers[0].address[1])
    monkeypatch.delenv("RES_OPTIONS", raising=False)

    def write(*lines: str) -> None:
        path.write_text("".join(f"{line}\n" for line in lines))

    write(*(f"nameserver {server.address[0]}" for server in servers))
    return write


def asked(servers: list[NameServer]) -> list[int]:
    """Return how many queries each server has had."""
    return [server.asked.total() for server in servers]


def query(run: Callable[..., object], resolver: Resolver, name: str, rdtype: str = "MX") -> Answer:
    answer = run(resolver.query(name, rdtype))
    assert isinstance(answer, Answer)
    return answer


@pytest.mark.parametrize("dead", ["silent", "closed"])
def test_a_dead_first_server_leaves_time_for_the_second(
    run: Callable[..., object], servers: list[NameServer], resolv_conf: Write, dead: str
) -> None:
    """With ``options timeout:5`` and less time than that the second answers; the next query goes there at once."""
    first = servers[0]
    first.faults["*"] = "silence"
    resolv_conf(
        f"nameserver {first.address[0] if dead == 'silent' else '127.0.0.9'}",
        "nameserver 127.0.0.3",
        "options timeout:5 attempts:2",
    )
    resolver = Resolver(timeout=2)
    assert len(query(run, resolver, "plain.example").records) == 2
    before = asked(servers)
    assert before == [1 if dead == "silent" else 0, 1, 0]
    assert not query(run, resolver, "absent.example").exists
    assert asked(servers) == [before[0], 2, 0]


def test_a_dead_server_is_asked_first_again_after_a_while(
    servers: list[NameServer], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be back."""
    monkeypatch.setattr(nullmx, "DEAD_SERVER_SECONDS", 0.0)
    resolver = Resolver(timeout=2)
    servers[0].faults["*"] = "lost"
    query(asyncio.run, resolver, "plain.example")
    assert asked(servers) == [1, 1, 0]
    query(asyncio.run, resolver, "plain.example")
    assert asked(servers) == [2, 1, 0]


def test_a_dead_server_that_answers_in_the_end_is_alive(servers: list[NameServer], resolv_conf: Write) -> None:
    """Asked last, when the others fail; from then on it has its place again."""
    resolver = Resolver(timeout=2)
    servers[0].faults["*"] = "lost"
    query(asyncio.run, resolver, "plain.example")
    servers[1].faults["null.example"] = servers[2].faults["null.example"] = "servfail"
    query(asyncio.run, resolver, "null.example")
    query(asyncio.run, resolver, "plain.example")
    assert asked(servers) == [3, 2, 1]


def test_each_server_is_asked_as_often_as_attempts_says(servers: list[NameServer], resolv_conf: Write) -> None:
    """When all are dead each has had its attempts within the time, and the reason is that."""
    for server in servers:
        server.faults["*"] = "silence"
    resolv_conf(*(f"nameserver {server.address[0]}" for server in servers), "options attempts:3")
    with pytest.raises(DNSError, match=r"timed out$"):
        query(asyncio.run, Resolver(timeout=0.9), "plain.example")
    assert asked(servers) == [3, 3, 3]


def test_the_time_is_divided_among_the_attempts(
    servers: list[NameServer], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has an equal share of what is left, and at most ``timeout`` seconds, which double each time (res_send.c)."""
    seen: list[float] = []

    def time_out_at_once(delay: float) -> asyncio.Timeout:
        seen.append(round(delay, 1))
        return real_timeout(0)

    real_timeout = asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", time_out_at_once)
    for server in servers:
        server.faults["*"] = "silence"
    for options, timeout, delays in (
        ("timeout:5 attempts:2", 5, [1.2, 1.7, 2.5, 5.0]),
        ("timeout:1 attempts:2", 60, [1.0, 1.0, 2.0, 2.0]),
        ("timeout:30 attempts:1", 3, [1.5, 3.0]),
        ("timeout:2 attempts:3", 60, [2.0, 2.0, 4.0, 4.0, 8.0, 8.0]),
    ):
        resolv_conf("nameserver 127.0.0.2", "nameserver 127.0.0.3", f"options {options}")
        with pytest.raises(DNSError, match=r"timed out$"):
            query(asyncio.run, Resolver(timeout=timeout), "plain.example")
        assert seen == delays
        seen.clear()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("servfail", "SERVFAIL"),
        ("refused", "REFUSED"),
        ("referral", "referral"),
        ("lame", "referral"),
        ("alias", "alias without its target"),
        ("loop", "no usable answer (ChainTooLong)"),
        ("cut", "truncated"),
    ],
)
def test_a_response_that_is_no_answer_is_asked_of_the_next_server(
    run: Callable[..., object], servers: list[NameServer], resolv_conf: Write, fault: str, reason: str
) -> None:
    """RFC 2308 §2.2: a referral is no NODATA. A server that responded is alive, and is asked first the next time."""
    servers[0].faults["empty.example"] = fault
    resolver = Resolver(timeout=PATIENCE)
    answer = query(run, resolver, "empty.example")
    assert (answer.exists, answer.records, answer.ttl) == (True, (), 60)
    queries = 2 if fault == "cut" else 1  # once more over TCP
    assert asked(servers) == [queries, 1, 0]
    query(run, resolver, "plain.example")
    assert asked(servers) == [queries + 1, 1, 0]
    for server in servers:
        server.faults["empty.example"] = fault
    before = asked(servers)
    with pytest.raises(DNSError) as caught:
        query(run, resolver, "empty.example")
    assert caught.value.reason == reason
    assert [now - then for now, then in zip(asked(servers), before, strict=True)] == [queries] * 3


def test_an_empty_authoritative_response_is_an_answer(servers: list[NameServer], resolv_conf: Write) -> None:
    """RFC 2308 §2.2.1: without a SOA it is NODATA, and is not cached (§5)."""
    servers[0].faults["*"] = "nodata"
    answer = query(asyncio.run, Resolver(), "plain.example")
    assert (answer.exists, answer.records, answer.ttl) == (True, (), 0)


def test_rotate_spreads_the_queries(servers: list[NameServer], resolv_conf: Write) -> None:
    """The option ``rotate``, resolv.conf(5)."""
    resolv_conf(*(f"nameserver {server.address[0]}" for server in servers), "options rotate")
    resolver = Resolver()
    for _ in range(6):
        query(asyncio.run, resolver, "plain.example")
    assert asked(servers) == [2, 2, 2]


def test_use_vc_asks_over_tcp(run: Callable[..., object], servers: list[NameServer], resolv_conf: Write) -> None:
    """The option ``use-vc``, resolv.conf(5), from the file or from RES_OPTIONS."""
    resolv_conf(f"nameserver {servers[0].address[0]}", "options use-vc")
    assert len(query(run, Resolver(), "plain.example").records) == 2
    assert dict(servers[0].asked) == {("plain.example", "tcp"): 1}


def test_res_options_counts(servers: list[NameServer], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable of resolv.conf(5), read for every query as the file is."""
    resolver = Resolver()
    query(asyncio.run, resolver, "plain.example")
    monkeypatch.setenv("RES_OPTIONS", "use-vc")
    query(asyncio.run, resolver, "plain.example")
    assert dict(servers[0].asked) == {("plain.example", "udp"): 1, ("plain.example", "tcp"): 1}


def test_the_file_is_read_for_every_query(servers: list[NameServer], resolv_conf: Write) -> None:
    """A laptop that changes networks asks the new server."""
    resolver = Resolver()
    for server in servers:
        resolv_conf(f"nameserver {server.address[0]}")
        query(asyncio.run, resolver, "plain.example")
    assert asked(servers) == [1, 1, 1]


@pytest.mark.parametrize("kind", ["missing", "directory", "below a file", "empty"])
def test_without_a_usable_file_the_server_is_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """127.0.0.1, resolv.conf(5)."""
    path = tmp_path / "resolv.conf"
    if kind == "directory":
        path.mkdir()
    elif kind in {"below a file", "empty"}:
        path.touch()
    monkeypatch.setattr(resolv_conf_module, "_PATH", str(path / "x" if kind == "below a file" else path))
    with name_server() as server:
        monkeypatch.setattr(nullmx, "_DNS_PORT", server.address[1])
        assert len(query(asyncio.run, Resolver(), "plain.example").records) == 2


def test_out_of_descriptors_is_an_error_and_not_an_empty_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking 127.0.0.1 then would be a guess."""

    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(resolv_conf_module, "open", fail, raising=False)
    with pytest.raises(DNSError, match=r"Too many open files$"):
        query(asyncio.run, Resolver(), "plain.example")


@pytest.mark.parametrize("interface", ["gone0", "gone..0", "x" * 64, "9" * 5000, "\N{SNOWMAN}"])
def test_an_interface_that_does_not_exist_is_passed_over(
    run: Callable[..., object], servers: list[NameServer], resolv_conf: Write, interface: str
) -> None:
    """A link-local server of an interface that is gone, and one of a family that this host may lack."""
    resolv_conf(f"nameserver fe80::1%{interface}", "nameserver fe80::1", f"nameserver {servers[2].address[0]}")
    assert len(query(run, Resolver(), "plain.example").records) == 2


def test_an_answer_has_the_canonical_name_and_says_how_it_was_found(
    run: Callable[..., object], servers: list[NameServer]
) -> None:
    """After a CNAME, in lower case without the final dot; records as dnspython has them."""
    server = servers[0]
    server.aliases["alias.example"] = "Canonical.Example"
    server.texts["canonical.example"] = ['"v=spf1 -all"']
    resolver = Resolver(server.address)
    answer = query(run, resolver, "ALIAS.example", "TXT")
    assert (answer.name, answer.exists, answer.ttl) == ("canonical.example", True, 300)
    assert [record.to_text() for record in answer.records] == ['"v=spf1 -all"']
    assert answer.is_alias
    answer = query(run, resolver, "absent.example", "TXT")
    assert answer == Answer("absent.example", exists=False, records=(), ttl=60, is_alias=False)


def test_more_queries_than_allowed_are_an_error(servers: list[NameServer]) -> None:
    """A domain of hostile make cannot have any number of names looked up."""
    resolver = Resolver(servers[0].address, max_queries=2)

    async def many() -> list[Answer | BaseException]:
        return await asyncio.gather(*(resolver.query(f"{i}.example", "A") for i in range(5)), return_exceptions=True)

    errors = [answer for answer in asyncio.run(many()) if isinstance(answer, DNSError)]
    assert [error.reason for error in errors] == ["more than 2 queries"] * 3
    assert asked(servers) == [2, 0, 0]


@pytest.mark.parametrize("name", ["a..example", "a" * 64 + ".example", ".".join(["a" * 63] * 5), "\\"])
def test_a_name_that_cannot_be_asked_for_is_an_error(servers: list[NameServer], name: str) -> None:
    """No query is sent."""
    with pytest.raises(DNSError, match=r"not a name \(\w+\)$"):
        query(asyncio.run, Resolver(servers[0].address), name)
    assert asked(servers) == [0, 0, 0]


@pytest.mark.parametrize("octets", [b"", b"\0", b"\0\x20half", b"\0\x04\xff\xff\xff\xff"])
def test_a_tcp_connection_that_ends_early_is_no_answer(
    run: Callable[..., object], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch, octets: bytes
) -> None:
    """Half a message is not taken for a whole one, and garbage not for an answer."""
    resolv_conf("nameserver 127.0.0.1", "options use-vc attempts:1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(nullmx, "_DNS_PORT", listener.getsockname()[1])
        thread = threading.Thread(target=answer_over_tcp, args=(listener, octets))
        thread.start()
        with pytest.raises(DNSError, match=r"connection closed$|no usable answer \(\w+\)$"):
            run(Resolver(timeout=PATIENCE).query("plain.example", "MX"))
        thread.join()


def answer_over_tcp(listener: socket.socket, octets: bytes) -> None:
    """Read a query, and answer it with these octets and the end."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(512)
        connection.sendall(octets)


def test_a_message_over_tcp_is_parsed_once_however_it_is_cut(
    run: Callable[..., object], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing 64 KiB takes long: after each of many segments it would stop the event loop for seconds."""
    resolv_conf("nameserver 127.0.0.1", "options use-vc attempts:1")
    parsed: list[int] = []
    expected: list[int] = []
    from_wire = dns.message.from_wire

    def count(wire: bytes, **options: Any) -> dns.message.Message:  # noqa: ANN401
        parsed.append(len(wire))
        return from_wire(wire, **options)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            octets = connection.recv(512)[2:]
            wire = NameServer(("", 0)).respond(octets, "tcp")
            assert wire
            expected.extend((len(octets), 2, len(wire)))  # the first is the name server's own
            # Another message in front is not the response (RFC 7766 §7).
            for octet in b"\0\2hi" + len(wire).to_bytes(2, "big") + wire:
                connection.sendall(bytes([octet]))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(nullmx, "_DNS_PORT", listener.getsockname()[1])
        thread = threading.Thread(target=answer)
        thread.start()
        resolver = Resolver(timeout=PATIENCE)
        monkeypatch.setattr(dns.message, "from_wire", count)
        assert len(query(run, resolver, "plain.example").records) == 2
        thread.join()
    assert parsed == expected


def test_an_empty_datagram_is_not_the_end(run: Callable[..., object]) -> None:
    """UDP has none; like all that is no response, it is ignored."""

    def answer() -> None:
        octets, client = server.recvfrom(512)
        wire = NameServer(("", 0)).respond(octets, "udp")
        assert wire
        server.sendto(b"", client)
        server.sendto(wire, client)

    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=answer)
        thread.start()
        assert len(query(run, Resolver(server.getsockname(), timeout=PATIENCE), "plain.example").records) == 2
        thread.join()


def test_a_flood_of_messages_does_not_outlast_the_timeout(
    run: Callable[..., object], resolv_conf: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always something to read, and nothing of it is the response."""
    resolv_conf("nameserver 127.0.0.1", "options use-vc attempts:1")
    has_ended = threading.Event()
    patience = threading.Timer(PATIENCE, has_ended.set)

    def flood() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while not has_ended.is_set():
                connection.sendall(bytes(1 << 16))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(nullmx, "_DNS_PORT", listener.getsockname()[1])
        thread = threading.Thread(target=flood)
        thread.start()
        patience.start()
        with pytest.raises(DNSError, match=r"timed out$"):
            run(Resolver(timeout=0.2).query("plain.example", "MX"))
        assert not has_ended.is_set()
        patience.cancel()
        thread.join()
