"""What a lookup costs `nullsmtpd relay`, from its cache and asked of a name server."""

import argparse
import contextlib
import itertools
import select
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import measure, report, servers, system
from bench.report import Report
from bench.servers import Arm

#: Domains that are looked up again and again; a tenth of what the cache holds by default.
KNOWN = 1000

_NULL_MX, _NOT_FOUND = b"41:OK 556 5.1.10 ", b"9:NOTFOUND ,"
_REPLY_TIMEOUT = 10.0

# ``known0.example`` and so on have a null MX, and no other name has an MX.
_NAME_SERVER = Arm(
    "dnsmasq",
    ("dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file={directory}/config"),
    "no-resolv\nno-hosts\nbind-interfaces\nlisten-address=127.0.0.1\npid-file={directory}/pid\n"
    "port={port}\nlocal=/example/\nlocal-ttl=3600\n"
    + "".join(f"mx-host=known{number}.example,.,0\n" for number in range(KNOWN)),
    (("dnsmasq", "dnsmasq-base"),),
)


@dataclass(eq=False)
class Lookups:
    """One arm: connections to a server, the keys to look up, and what every reply begins with."""

    server: servers.Server
    connections: Sequence[socket.socket]
    keys: Iterator[str]
    reply: bytes


def exchange(arm: Lookups, count: int) -> list[float]:
    """Have ``count`` lookups answered, a client's next one after the reply to its last; return their seconds.

    Raises `RuntimeError` for another reply, and when none comes.
    """
    durations: list[float] = []
    keys = itertools.islice(arm.keys, count)
    sent: dict[socket.socket, float] = {}  # when the clients that wait for a reply have sent their request
    ready = list(arm.connections)
    while ready:
        for client in ready:
            if client in sent:
                reply = b""
                with contextlib.suppress(ConnectionError):
                    reply = client.recv(4096)  # replies are short, and come in one piece
                durations.append(time.perf_counter() - sent.pop(client))
                if not (reply.startswith(arm.reply) and reply.endswith(b",")):
                    raise RuntimeError(f"{arm.server.arm.name}: {reply!a} instead of {arm.reply!a}")
            if key := next(keys, None):
                request = f"nullmx someone@{key}".encode()
                sent[client] = time.perf_counter()
                client.sendall(b"%d:%b," % (len(request), request))
        ready = select.select(sent, [], [], _REPLY_TIMEOUT)[0] if sent else []
        if sent and not ready:
            raise RuntimeError(f"{arm.server.arm.name}: no reply in {_REPLY_TIMEOUT:g} s")
    return durations


def relay(options: argparse.Namespace) -> Report:
    """Measure lookups over TCP: cached, of names never asked for before, and beside a server with a fixed reply.

    The servers have the first CPU, this process and the name server the others. Raises `RuntimeError` without dnsmasq,
    and when something does not come up or answers wrongly.
    """
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(servers.running(_NAME_SERVER, system.client_cpus()))
        resolver = "{}:{}".format(*dns.targets[0])

        def lookups(arm: Arm, keys: Iterator[str], reply: bytes) -> Lookups:
            server = stack.enter_context(servers.running(arm))
            (target,) = server.targets
            clients = [stack.enter_context(socket.create_connection(target)) for _ in range(options.clients)]
            return Lookups(server, clients, keys, reply)

        known = (f"known{number % KNOWN}.example" for number in itertools.count())
        new = (f"new{number}.example" for number in itertools.count())
        fixed = servers.python("socketmap")._replace(name="fixed reply")
        arms = [
            lookups(fixed, itertools.repeat("known0.example"), _NOT_FOUND),
            lookups(servers.nullsmtpd("relay", "--resolver", resolver, name="cached"), known, _NULL_MX),
            lookups(servers.nullsmtpd("relay", "--resolver", resolver, name="uncached"), new, _NOT_FOUND),
        ]
        stack.enter_context(system.pinned(system.client_cpus()))
        report.progress("warm-up")
        for arm in arms:
            exchange(arm, KNOWN)
        found, interrupted = measure.interleave([arms], options.rounds, lambda arm: _measure(arm, options.each))
    whole = measure.costs(["lookups"], {(arm.server.arm.name,): one for arm, one in found.items()}, fixed.name)
    return whole._replace(
        notes=[
            "CPU: user and system time of the server for one lookup over TCP.",
            "ratio: to a server that gives a fixed reply, round by round.",
            f"CPU, ratio: median (quartiles) of {options.rounds} rounds of {options.each:,} lookups.",
            f"{options.clients} clients, each in a closed loop.",
        ],
        interrupted=interrupted,
    )


def _measure(arm: Lookups, count: int) -> measure.Round:
    before, begun = system.cpu_ns(arm.server.pids), time.perf_counter()
    p50, p99 = measure.percentiles(exchange(arm, count), 50, 99)
    per_second = count / (time.perf_counter() - begun)
    cpu_us = (system.cpu_ns(arm.server.pids) - before) / count / 1000
    return measure.Round(cpu_us, p50, p99, per_second, generator_cpu=0.0, late_ms=0.0, started=count, lost=0)
