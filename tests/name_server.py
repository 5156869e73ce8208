"""A name server on a loopback port that answers for what it is told to, or fails in the way it is told to."""

import collections
import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


class NameServer:
    """Answers MX, AAAA, A and TXT questions over UDP and TCP.

    ``mx``: MX sets by domain, each record as in a zone file. ``addresses``: by name, of both families. ``texts``:
    TXT records by name, as in a zone file. ``ttl``,
    ``negative_ttl`` (of the SOA): seconds. ``aliases``: CNAMEs. ``empty``: domains that exist and have no MX.
    ``faults``: by domain, or ``domain KIND`` for questions of one kind, one of ``silence``, ``lost`` (silence, once),
    ``servfail``, ``refused``, ``garbage``, ``truncated`` (over UDP), ``cut`` (so over TCP too), ``loop`` (a CNAME to
    itself), ``stranger`` (an answer to another question), or ``held`` (until `release`). ``asked`` counts questions
    by name and transport. What is in none is NXDOMAIN.
    """

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
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
        """Return the value of --resolver that asks this one."""
        return f"{self.address[0]}:{self.address[1]}"

    def questions(self, name: str) -> int:
        """Return how often ``name`` was asked for, over UDP or TCP."""
        return self.asked[name, "udp"] + self.asked[name, "tcp"]

    def release(self) -> None:
        """Let the answers go that were held back."""
        self._released.set()

    def respond(self, query: bytes, transport: str) -> bytes | None:
        """Return the answer to a query as it goes over the wire, or None for silence."""
        request = dns.message.from_wire(query)
        name = request.question[0].name.to_text(omit_final_dot=True)
        self.asked[name, transport] += 1
        kind = dns.rdatatype.to_text(request.question[0].rdtype)
        asked = f"{name} {kind}" if f"{name} {kind}" in self.faults else name
        fault = self.faults.get(asked)
        if fault == "lost":
            del self.faults[asked]
        if fault in {"silence", "lost"}:
            return None
        if fault == "garbage":
            return b"\xff" * 40
        if fault == "held":
            self._released.wait(60)
        response = dns.message.make_response(request, recursion_available=True)
        if fault in {"servfail", "refused"}:
            response.set_rcode(dns.rcode.from_text(fault))
        elif fault == "stranger":
            response.question = [
                dns.rrset.RRset(dns.name.from_text("other.example"), dns.rdataclass.IN, dns.rdatatype.MX)
            ]
        elif fault == "cut" or (fault == "truncated" and transport == "udp"):
            response.flags |= dns.flags.TC
        elif fault == "loop":
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{name}."))
        else:
            self._fill(response, name, kind)
        return response.to_wire()

    def _fill(self, response: dns.message.Message, name: str, kind: str) -> None:
        if name in self.aliases:
            target = self.aliases[name]
            response.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", f"{target}."))
            name = target
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
def name_server() -> Iterator[NameServer]:
    """Give a name server that answers until the end."""

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

    with _bind_both(OverUDP, OverTCP) as (udp, tcp):
        server = NameServer(udp.server_address[1])
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
    over_udp: type[socketserver.BaseRequestHandler], over_tcp: type[socketserver.BaseRequestHandler]
) -> Iterator[tuple[_UDP, _TCP]]:
    """Bind a port that is free for both."""
    while True:
        with contextlib.ExitStack() as stack:
            udp = stack.enter_context(_UDP(("127.0.0.1", 0), over_udp))
            try:
                tcp = stack.enter_context(_TCP(("127.0.0.1", udp.server_address[1]), over_tcp))
            except OSError:
                continue
            yield udp, tcp
            return
