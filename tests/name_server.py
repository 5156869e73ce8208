"""A name server on a loopback address, with records and faults that a test sets.

As a program it serves the default records at the address and port given as arguments.
"""

import collections
import contextlib
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


def _alias(response: dns.message.Message, name: str, target: str) -> None:
    response.answer.append(dns.rrset.from_text(f"{name}.", 300, "IN", "CNAME", f"{target}."))


def _other_question(response: dns.message.Message, name: str) -> None:
    response.question = [dns.rrset.RRset(dns.name.from_text("other.example"), dns.rdataclass.IN, dns.rdatatype.MX)]


def _referral(response: dns.message.Message, name: str) -> None:
    response.authority.append(dns.rrset.from_text("example.", 300, "IN", "NS", "ns.example."))


def _without_recursion(response: dns.message.Message, name: str) -> None:
    response.flags &= ~dns.flags.RA


def _authoritative(response: dns.message.Message, name: str) -> None:
    response.flags |= dns.flags.AA


# What makes each fault of an empty response.
_RESPONSES: dict[str, Callable[[dns.message.Message, str], None]] = {
    "servfail": lambda response, _: response.set_rcode(dns.rcode.SERVFAIL),
    "refused": lambda response, _: response.set_rcode(dns.rcode.REFUSED),
    "stranger": _other_question,
    "loop": lambda response, name: _alias(response, name, name),
    "alias": lambda response, name: _alias(response, name, "target.example"),
    "referral": _referral,
    "lame": _without_recursion,
    "nodata": _authoritative,
}


class NameServer:
    """Answers MX, AAAA, A and TXT queries over UDP and TCP.

    ``mx``: MX sets by domain, each record as in a zone file. ``addresses``: by name, of both families. ``texts``: TXT
    records by name. ``ttl``, ``negative_ttl`` (of the SOA): seconds. ``aliases``: CNAMEs. ``empty``: domains that
    exist without records. Any other name is NXDOMAIN.

    ``faults``: by domain, by ``domain TYPE`` for queries of one type, or by ``*`` for all. Each is one of ``silence``,
    ``lost`` (silence, once), ``held`` (until `release`), ``garbage``, ``truncated`` (over UDP), ``severed`` (over UDP,
    within a record), ``cut`` (over TCP, too), ``servfail``, ``refused``, ``stranger`` (an answer to another query),
    ``loop`` (a CNAME to itself), ``alias`` (a CNAME without its target), ``referral``, ``lame`` (empty, without
    recursion), or ``nodata`` (empty, authoritative, no SOA). ``asked`` counts queries by name and transport.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.mx: dict[str, list[str]] = {
            "null.example": ["0 ."],
            "plain.example": ["10 mail.plain.example.", "20 mail2.plain.example."],
            "beside.example": ["0 .", "10 mail.beside.example."],
            "preference.example": ["10 ."],
        }
        self.addresses: dict[str, list[str]] = {}
        self.texts: dict[str, list[str]] = {}
        self.aliases: dict[str, str] = {}
        self.empty: set[str] = {"empty.example"}
        self.faults: dict[str, str] = {}
        self.ttl = 300
        self.negative_ttl = 60
        self.asked: collections.Counter[tuple[str, str]] = collections.Counter()
        self._released = threading.Event()

    @property
    def flag(self) -> str:
        """Return the value of --resolver for this server."""
        return f"{self.address[0]}:{self.address[1]}"

    def queries(self, name: str) -> int:
        """Return how many queries for ``name`` came, over UDP or TCP."""
        return self.asked[name, "udp"] + self.asked[name, "tcp"]

    def release(self) -> None:
        """Send the answers that were held."""
        self._released.set()

    def respond(self, query: bytes, transport: str) -> bytes | None:
        """Return the answer to a query as it goes over the wire, or None for silence."""
        request = dns.message.from_wire(query)
        name = request.question[0].name.to_text(omit_final_dot=True).lower()
        self.asked[name, transport] += 1
        kind = dns.rdatatype.to_text(request.question[0].rdtype)
        fault = self._fault(name, kind)
        if fault in {"silence", "lost"}:
            return None
        if fault == "garbage":
            return b"\xff" * 40
        if fault == "held":
            self._released.wait(60)
        response = dns.message.make_response(request, recursion_available=True)
        if fault == "cut" or (fault == "truncated" and transport == "udp"):
            response.flags |= dns.flags.TC
        elif fault in _RESPONSES:
            _RESPONSES[fault](response, name)
        else:
            self._fill(response, name, kind)
        if fault == "severed" and transport == "udp":
            response.flags |= dns.flags.TC
            return response.to_wire()[:-1]
        return response.to_wire()

    def _fault(self, name: str, kind: str) -> str:
        affected = next((key for key in (f"{name} {kind}", name, "*") if key in self.faults), "")
        fault = self.faults.get(affected, "")
        if fault == "lost":
            del self.faults[affected]
        return fault

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        if name in self.aliases:
            target = self.aliases[name]
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{target}."))
            name = target.lower()
        if records := self._records(name, kind):
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", kind, *records))
            return
        if name not in {*self.empty, *self.mx, *self.addresses, *self.texts}:
            response.set_rcode(dns.rcode.NXDOMAIN)
        zone = name.rpartition(".")[2]
        soa = f"ns.{zone}. hostmaster.{zone}. 1 2 3 4 {self.negative_ttl}"
        response.authority.append(dns.rrset.from_text(f"{zone}.", 86400, "IN", "SOA", soa))

    def _records(self, name: str, kind: str) -> list[str]:
        if kind in {"MX", "TXT"}:
            return (self.mx if kind == "MX" else self.texts).get(name, [])
        family = {"A": ".", "AAAA": ":"}.get(kind)
        return [address for address in self.addresses.get(name, []) if family and family in address]


class _UDP(socketserver.ThreadingUDPServer):
    daemon_threads = True
    max_packet_size = 4096


class _TCP(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextlib.contextmanager
def name_server(host: str = "127.0.0.1", port: int = 0) -> Iterator[NameServer]:
    """Give a name server that answers until the end; port 0 is a free one."""

    class OverUDP(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, reply_to = self.request
            if (answer := server.respond(query, "udp")) is not None:
                reply_to.sendto(answer, self.client_address)

    class OverTCP(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            stream: Any = self.request.makefile("rwb")
            length = int.from_bytes(stream.read(2), "big")
            answer = server.respond(stream.read(length), "tcp")
            if answer is not None:
                stream.write(len(answer).to_bytes(2, "big") + answer)
                stream.flush()
            stream.close()

    with _bind_both((host, port), OverUDP, OverTCP) as (udp, tcp):
        server = NameServer((host, udp.server_address[1]))
        threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in (udp, tcp)]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            server.release()
            for one in (udp, tcp):
                one.shutdown()
            for thread in threads:
                thread.join()


@contextlib.contextmanager
def _bind_both(
    address: tuple[str, int],
    over_udp: type[socketserver.BaseRequestHandler],
    over_tcp: type[socketserver.BaseRequestHandler],
) -> Iterator[tuple[_UDP, _TCP]]:
    """Bind a port that is free for both."""
    host, port = address
    ((family, _, _, _, (literal, _, *scope)), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    _UDP.address_family = _TCP.address_family = family
    while True:
        with contextlib.ExitStack() as stack:
            sockaddr: Any = (literal, port, *scope)
            udp = stack.enter_context(_UDP(sockaddr, over_udp))
            sockaddr = (literal, udp.server_address[1], *scope)
            try:
                tcp = stack.enter_context(_TCP(sockaddr, over_tcp))
            except OSError:
                if port:
                    raise
                continue
            yield udp, tcp
            return


def main() -> None:
    """Serve until the process is killed."""
    host, port = sys.argv[1:]
    with name_server(host, int(port)):
        signal.pause()


if __name__ == "__main__":
    main()
