"""A network of the test's own: loopback addresses, a DNS that knows the domains below, and no way out."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from child import child

__all__ = [
    "BELOW_NULL_MX",
    "NULL_MX",
    "NULL_MX_A_LABELS",
    "NULL_MX_U_LABELS",
    "REFUSING",
    "SENDING",
    "SPARED",
    "Network",
    "open_network",
]

#: Its MX is the host on which nullsmtpd answers.
REFUSING = "refusing.example"
#: Its MX is the null MX of RFC 7505, and its address is that host's: who does not heed the MX is caught there.
NULL_MX = "null.example"
#: Another one with a null MX, an internationalized name (RFC 5890): as DNS has it, and as people write it.
NULL_MX_A_LABELS = "xn--bcher-kva.example"
NULL_MX_U_LABELS = "bücher.example"
#: A domain below `NULL_MX` which takes mail: a null MX holds for its own name alone.
BELOW_NULL_MX = f"sub.{NULL_MX}"
#: Its first MX is that host; its second one takes mail.
SPARED = "spared.example"
#: The host that the mail comes from, and that its bounces go to.
SENDING = "mail.sending.example"

_MX_ADDRESS = "192.0.2.25"  # RFC 5737: never an address of anyone
_SPARE_ADDRESS = "192.0.2.26"
_SENDER_ADDRESS = "192.0.2.1"
_PATIENCE = 20.0

# A host is a network namespace, and a process namespace whose process 1 lives as long as its standard input: nothing
# has a name that somebody would have to remove, as what `ip netns add` makes, and nothing survives a killed test.
# Arguments: the file to use as resolv.conf, and what to run beside. The shell reads its own process id from the /proc
# of its parent.
_HOST = """
read -r pid rest < /proc/self/stat
ip link set lo up
mount --bind "$1" /etc/resolv.conf
shift
"$@" > /dev/null &
echo "$pid"
exec cat
"""

# Two hosts and a cable: a relay refuses to send to an address of its own.
_CONNECT = f"""
ip link add name cable type veth peer name cable netns "$1"
ip address add {_SENDER_ADDRESS}/24 dev cable
ip link set cable up
nsenter --target="$1" --net -- ip address add {_MX_ADDRESS}/24 dev cable
nsenter --target="$1" --net -- ip address add {_SPARE_ADDRESS}/24 dev cable
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
    f"--host-record=mx.{SPARED},{_SPARE_ADDRESS}",
    f"--mx-host={SPARED},mx.{REFUSING},10",
    f"--mx-host={SPARED},mx.{SPARED},20",
    f"--dns-rr={NULL_MX},15,000000",  # MX, preference 0, the root: dnsmasq has no option for a null MX
    f"--host-record={NULL_MX},{_MX_ADDRESS}",
    f"--dns-rr={NULL_MX_A_LABELS},15,000000",
    f"--mx-host={BELOW_NULL_MX},mx.{REFUSING},10",
    f"--host-record={SENDING},{_SENDER_ADDRESS}",
    f"--mx-host={SENDING},{SENDING},10",
)


class Network:
    """An open network of two hosts: one that sends, where the DNS is, and the one that its mail is for."""

    #: Where nullsmtpd belongs on the receiving host; the port is 25.
    address = _MX_ADDRESS
    #: Where the second MX of `SPARED` belongs.
    spare_address = _SPARE_ADDRESS

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending = sending
        self._receiving = receiving
        #: What to put before a command to run it on the sending host.
        self.prefix = ("nsenter", f"--target={sending}", "--net", "--mount", "--")
        #: The same for the receiving host.
        self.receiving_prefix = ("nsenter", f"--target={receiving}", "--net", "--mount", "--")

    def connect(self) -> None:
        """Lay the cable; the kernel takes it away with the hosts."""
        subprocess.run([*self.prefix, "sh", "-e", "-c", _CONNECT, "sh", str(self._receiving)], check=True)

    def end_dns(self) -> None:
        """Kill the name server: nobody answers at its port any more."""
        children = Path(f"/proc/{self._sending}/task/{self._sending}/children").read_text()
        for pid in children.split():
            os.kill(int(pid), signal.SIGKILL)

    def has_dns(self) -> bool:
        """Tell whether something is bound to 127.0.0.1:53/udp on the sending host."""
        return " 0100007F:0035 " in Path(f"/proc/{self._sending}/net/udp").read_text()


@contextlib.contextmanager
def open_network(directory: Path) -> Iterator[Network]:
    """Make a network, its files in ``directory``, and take it down with everything in it that this module started."""
    resolv_conf = directory / "resolv.conf"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    unshare = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-e", "-c", _HOST, "sh")
    command = (*unshare, str(resolv_conf))
    log_path = directory / "network.log"
    with (
        log_path.open("wb") as log,
        child((*command, *_DNS), log) as sending,
        child((*command, "true"), log) as receiving,
    ):
        network = Network(int(sending), int(receiving))
        network.connect()
        deadline = time.monotonic() + _PATIENCE
        while not network.has_dns():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no DNS: {log_path.read_text()}")
            time.sleep(0.005)
        yield network
