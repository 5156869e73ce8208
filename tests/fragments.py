"""TCP segments in packets that no ordinary client sends: cut into fragments, or behind IPv6 extension headers.

A process of its own, so that it can run inside a network namespace: ``python fragments.py INTERFACE``. It reads one
`Request` a line, as JSON, and prints a JSON list with one verdict for each connection: ``accepted`` (the server replied
to the SYN with SYN and ACK), ``refused`` (with a reset), or ``silence``; if the request is to converse, ``whole line``
instead of ``accepted`` where the client then read the line and the FIN.

The process is bound to one CPU, on which the kernel handles one packet after another, through to the server's reply.
So a last packet, to a port that is closed, marks the end: once its reset has arrived, so have all other replies.
"""

import contextlib
import dataclasses
import ipaddress
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "ACK",
    "ATOMIC",
    "CWR",
    "DESTINATION",
    "ECE",
    "HOP_BY_HOP",
    "PSH",
    "ROUTING",
    "SYN",
    "URG",
    "Piece",
    "Plan",
    "Request",
    "open_client",
]

LINE = b"521 Host does not accept mail\r\n"
PORT = 25
CLOSED_PORT = 27
DEADLINE = 20.0  # seconds until a reply that must come is missed

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))

# Numbers of headers (IANA, "Assigned Internet Protocol Numbers"). ATOMIC is not one of them: it stands for a fragment
# header on a packet that is whole (RFC 6946).
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
ATOMIC = -1

MORE_FRAGMENTS = 0x2000  # in IPv4's field of flags and offset; the offset is in units of 8 octets (RFC 791)
MORE_FRAGMENTS_6 = 1  # in IPv6's, where the offset is in the upper 13 bits (RFC 8200 section 4.5)
IP_PROTOCOLS = {0x0800, 0x86DD}  # Ethernet's numbers (linux/if_ether.h)
HEADER_SIZE = 8  # octets of an extension header without anything in it


@dataclasses.dataclass(frozen=True)
class Piece:
    """One fragment: from ``start`` to ``end``, both in units of 8 octets; without an end, the rest.

    ``flags`` and ``port``, if given, replace those of the segment in this fragment only, to mislead a filter.
    """

    start: int
    end: int | None
    flags: int | None = None
    port: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a SYN is packed: in fragments, or whole if there are no pieces.

    ``before`` are the IPv6 extension headers in front of the fragment header, ``behind`` those behind it, which are
    fragmented together with the segment; each of them is ``units`` times 8 octets long. ``options`` and ``payload`` are
    the lengths in octets of the segment's own options and of its data; ``flags`` are its flags besides SYN.
    """

    pieces: tuple[Piece, ...] = ()
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    units: int = 1
    options: int = 0
    payload: int = 0
    flags: int = 0


@dataclasses.dataclass(frozen=True)
class Request:
    """One connection from each source, in turn. With ``converse`` the handshakes of those accepted are completed."""

    to: str
    sources: Sequence[str]
    plan: Plan
    port: int = PORT
    converse: bool = False


def parse_request(line: str) -> Request:
    """Return the request that a line holds."""
    fields = json.loads(line)
    plan = fields.pop("plan")
    pieces = tuple(Piece(**piece) for piece in plan.pop("pieces"))
    return Request(plan=Plan(pieces=pieces, **plan), **fields)


def checksum(octets: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    octets += b"\0" * (len(octets) % 2)
    words: tuple[int, ...] = struct.unpack(f"!{len(octets) // 2}H", octets)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclasses.dataclass(frozen=True)
class Flow:
    """The two ends of a connection."""

    source: str
    source_port: int
    to: str
    port: int = PORT

    @property
    def version(self) -> int:
        return 6 if ":" in self.to else 4

    def segment(self, flags: int, sequence: int, acknowledged: int = 0, *, options: int = 0, payload: int = 0) -> bytes:
        """Return a TCP segment (RFC 9293 section 3.1); its options are the maximum segment size and no-operations."""
        maximum_segment_size = struct.pack("!BBH", 2, 4, 1200) if options else b""
        body = maximum_segment_size.ljust(options, b"\1") + b"x" * payload
        addresses = b"".join(socket.inet_pton(self._family, each) for each in (self.source, self.to))
        without_checksum = struct.pack(
            *("!HHIIBBHHH", self.source_port, self.port, sequence, acknowledged),
            *((5 + options // 4) << 4, flags, 64_240, 0, 0),
        )
        pseudo = addresses + struct.pack("!II", len(without_checksum + body), socket.IPPROTO_TCP)
        total = checksum(pseudo + without_checksum + body)
        return without_checksum[:16] + struct.pack("!HH", total, 0) + body

    @property
    def _family(self) -> int:
        return socket.AF_INET6 if self.version == 6 else socket.AF_INET

    def packet(self, payload: bytes, protocol: int = socket.IPPROTO_TCP, identifier: int = 0, offset: int = 0) -> bytes:
        """Return an IP packet; ``offset`` is the field of IPv4 that has the flags and the offset."""
        ends = [socket.inet_pton(self._family, each) for each in (self.source, self.to)]
        if self.version == 4:
            fields = (0x45, 0, 20 + len(payload), identifier, offset, 64, protocol, 0, *ends)
            return struct.pack("!BBHHHBBH4s4s", *fields) + payload
        return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, 64, *ends) + payload


def extension(kind: int, following: int, units: int, identifier: int) -> bytes:
    """Return an extension header (RFC 8200 section 4) of ``units`` times 8 octets."""
    if kind == ATOMIC:
        return struct.pack("!BBHI", following, 0, 0, identifier)
    size = units * HEADER_SIZE
    if kind == ROUTING:  # an experimental type (RFC 4727) without segments left: receivers skip it
        return struct.pack("!BBBBI", following, units - 1, 253, 0, 0).ljust(size, b"\0")
    # One experimental option (RFC 4727), which receivers skip. Not padding, of which Linux takes 7 octets at most.
    return struct.pack("!BBBB", following, units - 1, 0x1E, size - 4).ljust(size, b"\0")


def chain(kinds: Iterable[int], upper: int, units: int, identifier: int) -> tuple[int, bytes]:
    """Return extension headers, and the number of the first of them, or of what is above when there are none."""
    headers = b""
    for kind in reversed(tuple(kinds)):
        headers = extension(kind, upper, units, identifier) + headers
        upper = FRAGMENT if kind == ATOMIC else kind
    return upper, headers


def packets(flow: Flow, plan: Plan, sequence: int, identifier: int) -> list[bytes]:
    """Return the packets of a SYN."""
    kind, headers = chain(plan.behind, socket.IPPROTO_TCP, plan.units, identifier)
    whole = headers + flow.segment(SYN | plan.flags, sequence, options=plan.options, payload=plan.payload)
    if not plan.pieces:
        first, before = chain(plan.before, kind, plan.units, identifier)
        return [flow.packet(before + whole, first)]
    made = []
    for piece in plan.pieces:
        octets = bytearray(whole)
        if piece.port is not None:  # octets 2 and 3 of the TCP header
            octets[len(headers) + 2 : len(headers) + 4] = struct.pack("!H", piece.port)
        if piece.flags is not None:  # octet 13
            octets[len(headers) + 13] = piece.flags
        end = len(octets) if piece.end is None else min(8 * piece.end, len(octets))
        more = end < len(octets)
        content = bytes(octets[8 * piece.start : end])
        if flow.version == 4:
            made.append(flow.packet(content, kind, identifier & 0xFFFF, piece.start | MORE_FRAGMENTS * more))
        else:
            first, before = chain(plan.before, FRAGMENT, plan.units, identifier)
            header = struct.pack("!BBHI", kind, 0, piece.start << 3 | MORE_FRAGMENTS_6 * more, identifier)
            made.append(flow.packet(before + header + content, first))
    return made


@dataclasses.dataclass(frozen=True)
class Reply:
    """A segment that came back."""

    flow: Flow
    flags: int
    sequence: int
    payload: bytes


def parse_reply(packet: bytes) -> Reply | None:
    """Return the TCP segment in a packet without extension headers, or nothing."""
    if packet[0] >> 4 == 4:
        length, protocol, ends = struct.unpack("!2xH5xB2x8s", packet[:20])
        segment, size = packet[(packet[0] & 15) * 4 : length], 4
    else:
        length, protocol, ends = struct.unpack("!4xHBx32s", packet[:40])
        segment, size = packet[40 : 40 + length], 16
    if protocol != socket.IPPROTO_TCP:
        return None
    server, client = (str(ipaddress.ip_address(end)) for end in (ends[:size], ends[size:]))
    port, client_port, sequence, _, data_offset, flags = struct.unpack("!HHIIBB", segment[:14])
    return Reply(Flow(client, client_port, server, port), flags, sequence, segment[(data_offset >> 4) * 4 :])


class Client:
    """Sends packets of any form, and sees every one that comes back."""

    def __init__(self, interface: str) -> None:
        self._senders = {
            4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
            6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
        }
        self._receiver = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # ETH_P_ALL
        self._receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: every reply to a flood
        self._receiver.bind((interface, 0))
        self._receiver.settimeout(DEADLINE)
        self._ports = itertools.cycle(range(10_000, 60_000))
        self._identifiers = itertools.count(1)

    def answer(self, request: Request) -> list[str]:
        """Do what a request asks for, and return what became of each connection."""
        source = request.sources[0]
        self._mark_end(source, request.to)  # until the neighbour is known, packets may be dropped
        flows = [Flow(each, next(self._ports), request.to, request.port) for each in request.sources]
        sequences = {flow: 1_000_000 + 1000 * number for number, flow in enumerate(flows)}
        for flow, sequence in sequences.items():
            for packet in packets(flow, request.plan, sequence, next(self._identifiers)):
                self._send(flow, packet)
        replies = {reply.flow: reply for reply in self._mark_end(source, request.to)}
        verdicts = {flow: _verdict(replies.get(flow)) for flow in flows}
        accepted = {flow: replies[flow] for flow, verdict in verdicts.items() if verdict == "accepted"}
        if request.converse:
            verdicts |= self._converse(accepted, sequences)
        for flow in accepted:  # half-open connections would fill the server's queue
            self._send(flow, flow.packet(flow.segment(RST, sequences[flow] + 1)))
        return list(verdicts.values())

    def _send(self, flow: Flow, packet: bytes) -> None:
        address = (flow.to, 0) if flow.version == 4 else (flow.to, 0, 0, 0)
        self._senders[flow.version].sendto(packet, address)

    def _receive(self) -> Reply | None:
        packet, (_, protocol, direction, *_) = self._receiver.recvfrom(65_535)
        is_reply = protocol in IP_PROTOCOLS and direction != socket.PACKET_OUTGOING
        return parse_reply(packet) if is_reply else None

    def _mark_end(self, source: str, to: str) -> list[Reply]:
        """Return all replies that arrive before that of the closed port."""
        flow = Flow(source, next(self._ports), to, CLOSED_PORT)
        self._send(flow, flow.packet(flow.segment(SYN, 1)))
        seen = []
        while (reply := self._receive()) is None or reply.flow != flow:
            if reply:
                seen.append(reply)
        return seen

    def _converse(self, accepted: dict[Flow, Reply], sequences: dict[Flow, int]) -> dict[Flow, str]:
        """Complete the handshakes; return what each client has read."""
        for flow, reply in accepted.items():
            self._send(flow, flow.packet(flow.segment(ACK, sequences[flow] + 1, reply.sequence + 1)))
        received = dict.fromkeys(accepted, b"")
        finished: set[Flow] = set()
        deadline = time.monotonic() + DEADLINE
        while len(finished) < len(accepted) and time.monotonic() < deadline:
            segment = self._receive()
            if segment and segment.flow in received and segment.flow not in finished:
                received[segment.flow] += segment.payload
                if segment.flags & FIN:
                    finished.add(segment.flow)
        return {
            flow: "whole line" if octets == LINE and flow in finished else f"{octets!r}"
            for flow, octets in received.items()
        }


def _verdict(reply: Reply | None) -> str:
    if reply is None:
        return "silence"
    return "accepted" if reply.flags & SYN else "refused"


@contextlib.contextmanager
def open_client(prefix: Sequence[str], interface: str) -> Iterator[Callable[[Request], Counter[str]]]:
    """Run this module as a process with a command prefix; give a function that returns how often each verdict came."""
    command = [*prefix, sys.executable, __file__, interface]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        requests, verdicts = process.stdin, process.stdout

        def send(request: Request) -> Counter[str]:
            requests.write(json.dumps(dataclasses.asdict(request)) + "\n")
            requests.flush()
            line = verdicts.readline()
            assert line, "the client has ended"
            return Counter(json.loads(line))

        yield send
        requests.close()


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    client = Client(sys.argv[1])
    for request_line in sys.stdin:
        print(json.dumps(client.answer(parse_request(request_line))), flush=True)  # noqa: T201 - the result
