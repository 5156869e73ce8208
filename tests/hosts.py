"""Hosts and a cable of the test's own, as network namespaces: what a packet filter does is seen from outside only."""

import contextlib
import subprocess
from collections.abc import Iterator

from support import PATIENCE

__all__ = [
    "CLIENT",
    "CLIENTS_4",
    "CLIENTS_6",
    "INTERFACE",
    "SERVER_4",
    "SERVER_6",
    "SPOOFED_4",
    "SPOOFED_6",
    "Host",
    "connected_hosts",
    "open_host",
]

#: The server's addresses, and the client's next to it (RFC 5737, RFC 3849: never an address of anyone).
SERVER_4, SERVER_6 = "192.0.2.25", "2001:db8::25"
CLIENT = "192.0.2.1"
#: Networks of which the client has every address (RFC 2544: for tests of network devices).
CLIENTS_4, CLIENTS_6 = "198.18.0.0/16", "2001:db8:c::/48"
#: Networks that the server reaches through the client, whose kernel ignores packets to them: for crafted connections.
SPOOFED_4, SPOOFED_6 = "198.19.0.0/16", "2001:db8:f::/48"
#: The interface of each host.
INTERFACE = "cable"

# Without duplicate address detection, which takes a second or two before IPv6 works.
_HOST = """
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link set lo up
echo
exec cat
"""

# Every address of those networks is local to the client. ip_nonlocal_bind lets a socket have an IPv6 address that is on
# no interface.
_CABLE = f"""
ip link add name {INTERFACE} type veth peer name {INTERFACE} netns "$1"
ip address add {CLIENT}/24 dev {INTERFACE}
ip address add 2001:db8::1/64 dev {INTERFACE}
ip link set {INTERFACE} up
ip route add default via {SERVER_4}
ip route add local {CLIENTS_4} dev lo
ip -6 route add local {CLIENTS_6} dev lo
echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind
nsenter --target="$1" --net sh -e <<END
ip address add {SERVER_4}/24 dev {INTERFACE}
ip address add {SERVER_6}/64 dev {INTERFACE}
ip link set {INTERFACE} up
ip route add {CLIENTS_4} via {CLIENT}
ip -6 route add {CLIENTS_6} via 2001:db8::1
ip route add {SPOOFED_4} via {CLIENT}
ip -6 route add {SPOOFED_6} via 2001:db8::1
END
"""


class Host:
    """A network namespace, for as long as the process that holds it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        #: What to put before a command to run it there.
        self.prefix = ("nsenter", f"--target={pid}", "--net", "--")

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a command there; return what it printed. One that fails, or complains, fails the test."""
        done = subprocess.run(
            [*self.prefix, *command], input=stdin, capture_output=True, text=True, timeout=3 * PATIENCE, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command there; its output can be read."""
        return subprocess.Popen([*self.prefix, *command], stdout=subprocess.PIPE, text=True)


@contextlib.contextmanager
def open_host() -> Iterator[Host]:
    """Make a host; it is gone with the block, or with this process: the shell reads its input to the end."""
    with subprocess.Popen(
        ("unshare", "--net", "sh", "-e", "-c", _HOST), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as popen:
        assert popen.stdin
        assert popen.stdout
        assert popen.stdout.readline(), "no namespace"
        try:
            yield Host(popen.pid)
        finally:
            popen.stdin.close()


@contextlib.contextmanager
def connected_hosts() -> Iterator[tuple[Host, Host]]:
    """Make a server and a client with a cable between them."""
    with open_host() as server, open_host() as client:
        client.run("sh", "-e", "-c", _CABLE, "sh", str(server.pid))
        yield server, client
