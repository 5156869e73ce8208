"""Metrics over HTTP: RFC 9110 and RFC 9112 as far as a scrape takes them, and readers of every kind."""

import contextlib
import re
import select
import socket
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime

import pytest
from faults import inside, network
from hypothesis import given
from hypothesis import strategies as st
from scrapes import WITH_METRICS, descriptors_at_rest, metrics_address, request, samples, scrape
from support import LINE, Daemon, Start, connect, read_all, starting

from nullsmtpd.runtime.metrics import MAX_READERS, MAX_REQUEST_OCTETS, READER_TIMEOUT

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Return one daemon with metrics for the whole module."""
    with starting(tmp_path_factory.mktemp("metrics")) as start:
        yield start(*WITH_METRICS)


def exchange(daemon: Daemon, pieces: Sequence[bytes], *, half_close: bool = False) -> bytes:
    """Send a request in pieces, each in a segment of its own, and return what comes back; a reset ends it."""
    received = b""
    with connect(metrics_address(daemon)) as reader:
        reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                reader.sendall(piece)
            if half_close:
                reader.shutdown(socket.SHUT_WR)
            while octets := reader.recv(4096):
                received += octets
        except TimeoutError:
            raise
        except OSError:  # ECONNRESET, EPIPE, ENOTCONN: it sent more than the daemon reads
            return received
    return received


def parse(response: bytes) -> tuple[str, dict[str, str], bytes]:
    """Return status line, fields and body of one response; anything that is none fails the test."""
    head, separator, body = response.partition(b"\r\n\r\n")
    assert separator
    status, *lines = head.decode("ascii").split("\r\n")
    assert re.fullmatch(r"HTTP/1\.1 [245]\d\d [A-Za-z ]+", status)
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines)
    return status, fields, body


def test_get_returns_the_metrics_in_the_text_format(shared: Daemon) -> None:
    """The content type is that of the format's version 0.0.4, and the date (RFC 9110 §6.6.1) and length are right."""
    sent = int(time.time())
    status, fields, body = parse(exchange(shared, [GET]))
    assert status == "HTTP/1.1 200 OK"
    assert sent <= parsedate_to_datetime(fields.pop("Date")).timestamp() <= time.time()
    assert fields == {
        "Content-Type": "text/plain; version=0.0.4; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    assert "nullsmtpd_connections_total" in samples(body.decode())


@pytest.mark.parametrize("target", [b"/metrics", b"/other"])
def test_head_returns_the_same_without_the_body(shared: Daemon, target: bytes) -> None:
    """RFC 9110 §9.3.2; the length is that of the body that GET returns, in which a value may have grown."""
    with_body = parse(exchange(shared, [b"GET " + target + b" HTTP/1.0\r\n\r\n"]))
    without = parse(exchange(shared, [b"HEAD " + target + b" HTTP/1.0\r\n\r\n"]))
    assert without[0] == with_body[0]
    assert without[2] == b""
    lengths = [int(fields.pop("Content-Length")) for _, fields, _ in (with_body, without)]
    assert abs(lengths[0] - lengths[1]) <= 2
    assert without[1] | {"Date": ""} == with_body[1] | {"Date": ""}


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/favicon.ico", "/%2e%2e/etc/passwd", "/x" * 1000])
def test_other_resources_do_not_exist(shared: Daemon, path: str) -> None:
    """404, and nothing of the path is echoed."""
    response, text = request(shared, path=path)
    assert (response.status, text) == (404, "404 Not Found; metrics are at /metrics.\n")


def test_a_query_is_disregarded(shared: Daemon) -> None:
    """Prometheus sends one when a job has `params`."""
    response, text = request(shared, path="/metrics?module=x&y")
    assert response.status == 200
    assert "nullsmtpd_connections_total" in samples(text)


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://localhost:9521/metrics HTTP/1.1",
        b"GET HTTP://[::1]/metrics?module=x HTTP/1.1",
        b"\r\nGET /metrics HTTP/1.1",
    ],
)
def test_a_request_line_of_a_proxy_or_after_an_empty_line_is_served(shared: Daemon, line: bytes) -> None:
    """RFC 9112 §3.2.2: absolute-form must be accepted; §2.2: an empty line before the request should be ignored."""
    assert parse(exchange(shared, [line + b"\r\nHost: localhost\r\n\r\n"]))[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize("target", [b"http://localhost", b"http://localhost/other", b"http:///", b"https://x/metrics"])
def test_other_absolute_targets_do_not_exist(shared: Daemon, target: bytes) -> None:
    """404 for another path, and for a scheme that is not served."""
    assert parse(exchange(shared, [b"GET " + target + b" HTTP/1.0\r\n\r\n"]))[0] == "HTTP/1.1 404 Not Found"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE", "get"])
def test_other_methods_are_refused(shared: Daemon, method: str) -> None:
    """405 with the methods that there are (RFC 9110 §15.5.6)."""
    status, fields, _ = parse(exchange(shared, [f"{method} /metrics HTTP/1.0\r\n\r\n".encode()]))
    assert status == "HTTP/1.1 405 Method Not Allowed"
    assert fields["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "line",
    [b"GET /metrics", b"GET /metrics HTTP/2.0", b"GET /metrics HTTP/9.9", b"GET", b"", b"\xff\x00", b"PRI * HTTP/2.0"],
)
def test_what_is_not_http_1_is_a_bad_request(shared: Daemon, line: bytes) -> None:
    """400, for HTTP/0.9 and for the preface of HTTP/2 too."""
    status, _, _ = parse(exchange(shared, [line + b"\r\n\r\n"]))
    assert status == "HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1", b"HTTP/1.2"])
def test_any_minor_version_of_http_1_is_served(shared: Daemon, version: bytes) -> None:
    """RFC 9110 §2.5: minor versions are compatible."""
    assert parse(exchange(shared, [b"GET /metrics " + version + b"\r\n\r\n"]))[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "accept", ["text/plain;version=abc", "application/openmetrics-text; version=1.0.0", "application/json", "*/*;q=0"]
)
def test_the_format_is_the_same_whatever_is_accepted(shared: Daemon, accept: str) -> None:
    """RFC 9110 §12.5.1: what is accepted may be disregarded."""
    response, text = request(shared, headers={"Accept": accept})
    assert response.status == 200
    assert "nullsmtpd_connections_total" in samples(text)


def test_a_request_larger_than_the_limit_is_refused(shared: Daemon) -> None:
    """431 as soon as its head cannot end within it any more, and not before."""
    head = b"GET /metrics HTTP/1.0\r\nx: ".ljust(MAX_REQUEST_OCTETS - 4, b"x")
    for rest, status in ((b"xxxx", "431 Request Header Fields Too Large"), (b"\r\n\r\n", "200 OK")):
        with connect(metrics_address(shared)) as reader:
            reader.sendall(head)
            shared.stats()  # by now it has read them
            reader.sendall(rest)
            assert parse(read_all(reader))[0] == f"HTTP/1.1 {status}"


@pytest.mark.parametrize(
    ("size", "status"), [(MAX_REQUEST_OCTETS - 4, 200), (MAX_REQUEST_OCTETS - 3, 431), (1 << 15, 431)]
)
def test_the_limit_does_not_depend_on_how_a_request_arrives(shared: Daemon, size: int, status: int) -> None:
    """In one segment, in two that part the end of the head in any way, or with much behind it."""
    head = b"GET /metrics HTTP/1.0\r\nx: ".ljust(size, b"x")
    end = b"\r\n\r\n"
    for pieces in ([head + end], *([head + end[:cut], end[cut:]] for cut in range(4)), [head + end + b"x" * 10_000]):
        assert parse(exchange(shared, pieces))[0].startswith(f"HTTP/1.1 {status} ")


def test_pipelined_requests_get_one_response_and_the_end(shared: Daemon) -> None:
    """RFC 9112 §9.3: the server may close after any response, and says so."""
    response = exchange(shared, [GET * 10])
    assert response.count(b"HTTP/1.1 200 OK") == 1
    assert parse(response)[1]["Connection"] == "close"


REQUESTS = st.sampled_from(
    [GET, b"HEAD /metrics HTTP/1.0\r\n\r\n", b"GET /other HTTP/1.0\r\n\r\n", b"PUT / HTTP/1.0\r\n\r\n"]
)
NONSENSE = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=50).map(lambda text: f"GET /{text} HTTP/1.1\r\n\r\n".encode()),
    st.sampled_from([b"GET /metrics\r\n", b"GET /metrics\r\n\r\n", b"\r\n\r\n", b"\n\n", GET[:-1]]),
)
HUGE = st.sampled_from([b"", b"x" * 9000, b"a: b\r\n" * 1500])
MANY = st.tuples(HUGE, st.lists(st.one_of(NONSENSE, REQUESTS), max_size=4)).map(
    lambda drawn: drawn[0] + b"".join(drawn[1])
)


@st.composite
def split(draw: st.DrawFn, octets: st.SearchStrategy[bytes]) -> list[bytes]:
    """Draw octets, cut into pieces: one, several, or each octet of the first hundred by itself."""
    whole = draw(octets)
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    else:
        cuts = list(range(min(100, len(whole))))
    return [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True) if start < end]


@given(split(REQUESTS))
def test_a_request_may_arrive_in_any_pieces(shared: Daemon, pieces: list[bytes]) -> None:
    """Invariant: the response is the one that the request gets in one piece."""
    status, fields, _ = parse(exchange(shared, pieces))
    whole = parse(exchange(shared, [b"".join(pieces)]))
    assert status == whole[0]
    assert fields.keys() == whole[1].keys()


@given(split(MANY))
def test_no_request_harms_the_next_one(shared: Daemon, pieces: list[bytes]) -> None:
    """Invariant: one response or none, no word in the log, and the next reader gets the metrics."""
    logged = shared.log
    response = exchange(shared, pieces, half_close=True)
    if response:
        parse(response)
        assert response.count(b"HTTP/1.1 ") == 1
    assert "nullsmtpd_connections_total" in scrape(shared)
    assert shared.log == logged


def test_a_response_arrives_whole_where_send_buffers_are_small(start: Start) -> None:
    """With a net.ipv4.tcp_wmem that has no room for it, and a reader that takes its time."""
    daemon = start(*WITH_METRICS, prefix=network("echo 4096 4096 4096 > /proc/sys/net/ipv4/tcp_wmem"))
    with inside(daemon), socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        reader.connect(metrics_address(daemon))
        reader.sendall(GET)
        daemon.stats()  # by now it has responded
        _, fields, body = parse(read_all(reader))
        assert len(body) == int(fields["Content-Length"])


def test_idle_connections_do_not_block_a_scrape(start: Start) -> None:
    """The oldest without a whole request is closed when a new one arrives; clients never notice."""
    daemon = start(*WITH_METRICS)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(metrics_address(daemon))) for _ in range(MAX_READERS)]
        for reader in idle:
            reader.sendall(b"GET /metr")
        for number in range(1, 4):
            assert scrape(daemon)["process_open_fds"] > 0
            for closed in idle[:1]:
                assert is_closed(closed)
            with connect(daemon.address) as client:
                assert read_all(client) == LINE
            daemon.wait_for(lambda n=number: daemon.stats()["connections"] == str(n), "its turn")  # type: ignore[misc]
        # A scrape took the place of the first, and left it again: the others are where they were.
        for reader in idle[1:]:
            reader.sendall(b"ics HTTP/1.0\r\n\r\n")
            assert parse(read_all(reader))[0] == "HTTP/1.1 200 OK"


def is_closed(reader: socket.socket) -> bool:
    try:
        return not reader.recv(1)
    except ConnectionError:
        return True


def test_a_flood_of_idle_connections_takes_a_bounded_number_of_descriptors(start: Start) -> None:
    """Each new one closes the oldest, and a scrape in their midst is answered."""
    daemon = start(*WITH_METRICS)
    before = descriptors_at_rest(daemon)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(connect(metrics_address(daemon))) for _ in range(200)]
        assert scrape(daemon)["process_open_fds"] <= before + MAX_READERS + 1
        for reader in readers[:-MAX_READERS]:
            assert is_closed(reader)
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")


def test_a_reader_without_a_request_is_closed_when_its_time_is_up(start: Start) -> None:
    """Though nobody needs its place, and though it goes on sending octets."""
    daemon = start(*WITH_METRICS)
    before = descriptors_at_rest(daemon)
    with connect(metrics_address(daemon)) as silent, connect(metrics_address(daemon)) as slow:
        silent.settimeout(2 * READER_TIMEOUT)
        with contextlib.suppress(ConnectionError):
            while not select.select([slow], [], [], 0.1)[0]:
                slow.sendall(b"x")
        assert is_closed(slow)
        assert is_closed(silent)
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")


def test_a_reader_that_resets_at_any_moment_leaves_nothing_behind(start: Start) -> None:
    """Neither a descriptor nor a line in the log."""
    daemon = start(*WITH_METRICS)
    before, logged = descriptors_at_rest(daemon), daemon.log
    for sent in (b"", GET[:5], GET, GET * 3):
        for _ in range(20):
            with connect(metrics_address(daemon)) as reader:
                reader.sendall(sent)
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    daemon.wait_for(lambda: daemon.descriptors() == before, "the descriptors of the start")
    assert daemon.log == logged
    assert "nullsmtpd_connections_total" in scrape(daemon)
