"""A network of the test's own: loopback addresses, a DNS that knows the domains below, and no way out."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from child import child

__all__ = ["NULL_MX", "REFUSING", "SENDING", "Network", "open_network"]

#: Its MX is the host on which nullsmtpd answers.
REFUSING = "refusing.example"
#: Its MX is the null MX of RFC 7505, and its address is that host's: who does not heed the MX is caught there.
NULL_MX = "null.example"
#: The host that the mail comes from, and that its bounces go to.
SENDING = "mail.sending.example"

_MX_ADDRESS = "192.0.2.25"  # RFC 5737: never an address of anyone
_SENDER_ADDRESS = "192.0.2.1"
_PATIENCE = 20.0

# Lives as long as its standard input: if the test is killed, the namespaces go with it, and nothing has to be cleaned
# up by name. That is why it is not `ip netns add`, which leaves a name and files in /etc/netns behind.
_OPEN = 'ip link set lo up; mount --bind "$1" /etc/resolv.conf; echo ready; exec cat'

# Two hosts and a cable: a relay refuses to send to an address of its own.
_CONNECT = f"""
set -e
ip link add name cable type veth peer name cable netns "$1"
ip address add {_SENDER_ADDRESS}/24 dev cable
ip link set cable up
nsenter --target="$1" --net -- ip address add {_MX_ADDRESS}/24 dev cable
nsenter --target="$1" --net -- ip link set cable up
"""

_DNS = (
    "dnsmasq",
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--pid-file=",
    "--user=root",
    "--log-facility=-",
    "--no-hosts",
    "--no-resolv",
    "--bind-interfaces",
    "--listen-address=127.0.0.1",
    "--local=/example/",
    f"--host-record=mx.{REFUSING},{_MX_ADDRESS}",
    f"--mx-host={REFUSING},mx.{REFUSING},10",
    f"--dns-rr={NULL_MX},15,000000",  # MX, preference 0, the root: dnsmasq has no option for a null MX
    f"--host-record={NULL_MX},{_MX_ADDRESS}",
    f"--host-record={SENDING},{_SENDER_ADDRESS}",
    f"--mx-host={SENDING},{SENDING},10",
)


class Network:
    """An open network of two hosts: one that sends, where the DNS is, and the one that its mail is for."""

    #: Where nullsmtpd belongs on the receiving host, as its option wants it.
    listen = f"{_MX_ADDRESS}:25"

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending = sending
        #: What to put before a command to run it on the sending host.
        self.prefix = ("nsenter", f"--target={sending}", "--net", "--mount", "--")
        #: The same for the receiving host.
        self.receiving_prefix = ("nsenter", f"--target={receiving}", "--net", "--mount", "--")

    def connect(self) -> None:
        """Lay the cable; the kernel takes it away with the hosts."""
        subprocess.run(
            [*self.prefix, "sh", "-c", _CONNECT, "sh", self.receiving_prefix[1].partition("=")[2]], check=True
        )

    def has_dns(self) -> bool:
        """Tell whether something is bound to 127.0.0.1:53/udp on the sending host."""
        return " 0100007F:0035 " in Path(f"/proc/{self._sending}/net/udp").read_text()


@contextlib.contextmanager
def open_network(directory: Path) -> Iterator[Network]:
    """Make a network, its files in ``directory``, and take it down with everything in it that this module started."""
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    command = ("unshare", "--net", "--mount", "sh", "-e", "-c", _OPEN, "sh", str(resolv_conf))
    log_path = directory / "network.log"
    with (
        log_path.open("wb") as log,
        child(command, speaks=True, log=log) as sending,
        child(command, speaks=True, log=log) as receiving,
    ):
        network = Network(sending.pid, receiving.pid)
        network.connect()
        with child((*network.prefix, *_DNS), speaks=False, log=log) as dns:
            deadline = time.monotonic() + _PATIENCE
            while not network.has_dns():
                if dns.has_ended() or time.monotonic() > deadline:
                    raise RuntimeError(f"no DNS: {log_path.read_text()}")
                time.sleep(0.005)
            yield network
