"""What a server takes while it is idle: memory, and the time to start."""

import argparse
import socket
import time

from bench import measure, servers, system
from bench.report import Report


def footprint(options: argparse.Namespace) -> Report:
    """Start each server a number of times, in turn, and look at its memory after some connections.

    Raises `RuntimeError` if a server does not come up.
    """
    arms = [servers.ARMS["nullsmtpd"], servers.EMPTY, servers.ARMS["nginx"]]
    missing = servers.missing(arms)

    def one_start(arm: servers.Arm) -> tuple[float, float, float]:
        with servers.running(arm) as server:
            for _ in range(options.connections):
                with socket.create_connection(server.targets[0]) as client:
                    client.recv(512)
            time.sleep(measure.SETTLE_SECONDS)
            rss, private = system.memory(server.pids)
            return rss / 1024, private / 1024, server.ready_ms

    there = [arm for arm in arms if arm.name not in missing]
    found, interrupted = measure.interleave([there], options.starts, one_start)
    rows, results = [], []
    for index, what in enumerate(("RSS, MiB", "private, MiB", "start, ms")):
        base = [one[index] for one in found.get(servers.EMPTY, [])]
        for arm, starts in found.items():
            values = [one[index] for one in starts]
            value, to_empty = measure.spread(values), measure.ratio(values, base)
            rows.append([what, arm.name, measure.with_spread(value), measure.with_spread(to_empty, 2)])
            results.append({"what": what, "server": arm.name, "value": value, "ratio": to_empty})
    return Report(
        head=["what", "server", "median (quartiles)", "ratio to empty"],
        rows=rows,
        notes=[
            f"{options.starts} starts, {options.connections} connections each, then idle. nginx: master and worker.",
            "private: shared with no other process. start: until a connection succeeds.",
            "empty: uvloop and one listening socket bound by hand, on the same interpreter.",
            *(f"Missing: {name}: {why}." for name, why in missing.items()),
        ],
        record={"starts": options.starts, "connections": options.connections, "missing": missing, "results": results},
        left=2,
        interrupted=interrupted,
    )
