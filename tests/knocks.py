"""Clients with many addresses, one after another: ``python knocks.py HOST PORT PATIENCE ROUNDS SOURCE...``.

A process of its own, so that it can run inside a network namespace. In each round it connects once from each source, in
turn, and waits PATIENCE seconds for anything to happen. It prints one JSON object: for each source, how many clients
read the whole line and then the FIN, and what became of the others.
"""

import collections
import itertools
import json
import socket
import sys

LINE = b"521 Host does not accept mail\r\n"

# A port for each connection: with one used again, two connections would be one entry in the server's tracking table.
PORTS = itertools.count(10_000)


def knock(address: tuple[str, int], source: str, patience: float) -> str:
    """Return what became of one client."""
    received = b""
    try:
        with socket.create_connection(address, patience, (source, next(PORTS))) as connection:
            while octets := connection.recv(4096):
                received += octets
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return f"{type(error).__name__} after {received!r}"
    return "whole line" if received == LINE else f"FIN after {received!r}"


if __name__ == "__main__":
    host, port, patience, rounds, *sources = sys.argv[1:]
    outcomes: dict[str, collections.Counter[str]] = {source: collections.Counter() for source in sources}
    for _ in range(int(rounds)):
        for source in sources:
            outcomes[source][knock((host, int(port)), source, float(patience))] += 1
    print(json.dumps(outcomes))  # noqa: T201 - the result
