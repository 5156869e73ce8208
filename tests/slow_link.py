"""Two hosts far apart: ``python slow_link.py SERVER_PID CLIENT_PID SECONDS`` carries packets between their networks.

The network namespaces of the two processes get an interface each, with the addresses of `hosts`, and every packet takes
SECONDS from one to the other. In user space, as netem (tc-netem(8)) is not part of every kernel.
"""

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

from hosts import CLIENT, SERVER_4, Host, open_host
from support import require, require_root, require_tools

__all__ = ["distant_hosts"]

# linux/if_tun.h: an interface for IP packets, without a header of its own.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_INTERFACE = "far"
_MAX_PACKET = 1 << 16


@contextlib.contextmanager
def distant_hosts(seconds: float) -> Iterator[tuple[Host, Host]]:
    """Make a server and a client with a delay of so many seconds in each direction."""
    require_root()
    require_tools("ip", "nsenter", "unshare")
    require(os.path.exists("/dev/net/tun"), "/dev/net/tun")  # noqa: PTH110 - an answer without a Path
    with open_host() as server, open_host() as client:
        command = (sys.executable, __file__, str(server.pid), str(client.pid), str(seconds))
        with subprocess.Popen(command, stdout=subprocess.PIPE) as carrier:
            try:
                assert carrier.stdout
                assert carrier.stdout.readline() == b"ready\n"
                yield server, client
            finally:
                carrier.kill()


def _open_interface(pid: str, address: str) -> int:
    with open(f"/proc/{pid}/ns/net") as namespace:  # noqa: PTH123 - a descriptor
        assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) == 0
    interface = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(interface, _TUNSETIFF, struct.pack("16sH", _INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
    subprocess.run(["ip", "address", "add", f"{address}/24", "dev", _INTERFACE], check=True)
    subprocess.run(["ip", "link", "set", _INTERFACE, "up"], check=True)
    return interface


def _carry(first: int, second: int, seconds: float) -> None:
    under_way: list[tuple[float, int, int, bytes]] = []
    numbers = itertools.count()
    while True:
        timeout = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        for interface in select.select([first, second], [], [], timeout)[0]:
            packet = os.read(interface, _MAX_PACKET)
            other = second if interface == first else first
            heapq.heappush(under_way, (time.monotonic() + seconds, next(numbers), other, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, interface, packet = heapq.heappop(under_way)
            os.write(interface, packet)


if __name__ == "__main__":
    server_pid, client_pid, delay = sys.argv[1:]
    ends = _open_interface(server_pid, SERVER_4), _open_interface(client_pid, CLIENT)
    print("ready", flush=True)  # noqa: T201 - to whoever started it
    _carry(*ends, float(delay))
