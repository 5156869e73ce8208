"""A network of the test's own: a host that sends, a host that refuses mail, a DNS that knows both, and no way out."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from child import child

__all__ = [
    "ADDRESSES",
    "BELOW_NULL_MX",
    "EHLO_REFUSED",
    "LOCAL_NULL_MX",
    "MODES",
    "NULL_MX",
    "NULL_MX_A_LABELS",
    "NULL_MX_U_LABELS",
    "ORDINARY",
    "RELAYED_NULL_MX",
    "SENDING",
    "SPARE_ADDRESS",
    "Network",
    "domain_for",
    "open_network",
]

MODES = ("close", "session", "mail")


def domain_for(purpose: str, mode: str) -> str:
    """Return a domain whose MX is a nullsmtpd in this mode. The one for ``spared`` has a second, which takes mail."""
    return f"{purpose}.{mode}.example"


#: Its MX says 220, and then 521 to EHLO and HELO.
EHLO_REFUSED = "ehlo.example"
#: Its MX is the null MX of RFC 7505. It has an address, too, which shows who connects all the same.
NULL_MX = "null.example"
#: Another one with a null MX, an internationalized name (RFC 5890): as DNS has it, and as people write it.
NULL_MX_A_LABELS = "xn--bcher-kva.example"
NULL_MX_U_LABELS = "bücher.example"
#: A domain below `NULL_MX` with an MX: a null MX holds for its own name alone.
BELOW_NULL_MX = f"sub.{NULL_MX}"
#: More of them, which the sending host itself delivers to and relays for, in spite of that.
LOCAL_NULL_MX = "local.example"
RELAYED_NULL_MX = "relayed.example"
#: A domain with an MX.
ORDINARY = domain_for("plain", "close")
#: The host that the mail comes from, and that its bounces go to.
SENDING = "mail.sending.example"

# Relays remember the last reply of a host, so each purpose has a host of its own.
_DOMAINS = (*(domain_for(purpose, mode) for mode in MODES for purpose in ("plain", "utf8", "spared")), EHLO_REFUSED)

# RFC 5737: never an address of anyone. The receiving host has all of the upper half.
_SENDER_ADDRESS = "192.0.2.1"
_RECEIVERS = "192.0.2.128/25"
#: Where the first MX of each domain is; for `NULL_MX` its own address.
ADDRESSES = {domain: f"192.0.2.{number}" for number, domain in enumerate((*_DOMAINS, NULL_MX), 130)}
#: Where the second MX of a domain is, if it has one.
SPARE_ADDRESS = "192.0.2.200"

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
nsenter --target="$1" --net sh -e <<END
ip address add 192.0.2.129/24 dev cable
ip route add local {_RECEIVERS} dev lo
ip link set cable up
END
"""


def _dns() -> Iterator[str]:
    """Yield the command that runs the name server."""
    yield from ("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root")
    yield from ("--log-facility=-", "--no-hosts", "--no-resolv", "--bind-interfaces", "--listen-address=127.0.0.1")
    yield "--local=/example/"
    for domain in _DOMAINS:
        yield f"--mx-host={domain},mx.{domain},10"
        yield f"--host-record=mx.{domain},{ADDRESSES[domain]}"
    for mode in MODES:
        domain = domain_for("spared", mode)
        yield f"--mx-host={domain},mx2.{domain},20"
        yield f"--host-record=mx2.{domain},{SPARE_ADDRESS}"
    for domain in (NULL_MX, NULL_MX_A_LABELS, LOCAL_NULL_MX, RELAYED_NULL_MX):
        yield f"--dns-rr={domain},15,000000"  # MX, preference 0, the root: dnsmasq has no option for a null MX
    yield f"--host-record={NULL_MX},{ADDRESSES[NULL_MX]}"
    yield f"--host-record={LOCAL_NULL_MX},{RELAYED_NULL_MX},{_SENDER_ADDRESS}"
    yield f"--mx-host={BELOW_NULL_MX},mx.{ORDINARY},10"
    yield f"--host-record={SENDING},{_SENDER_ADDRESS}"
    yield f"--mx-host={SENDING},{SENDING},10"


class Network:
    """An open network of two hosts: one that sends, where the DNS is, and one that its mail is for."""

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending = sending
        self._receiving = receiving
        #: Prefix of a command that runs on the sending host.
        self.prefix = ("nsenter", f"--target={sending}", "--net", "--mount", "--")
        #: The same for the receiving host.
        self.receiving_prefix = ("nsenter", f"--target={receiving}", "--net", "--mount", "--")

    def connect(self) -> None:
        """Lay the cable; the kernel takes it away with the hosts."""
        subprocess.run([*self.prefix, "sh", "-e", "-c", _CONNECT, "sh", str(self._receiving)], check=True)

    def end_dns(self) -> None:
        """Kill the name server: nothing listens at its port any more."""
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
        child((*command, *_dns()), log) as sending,
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
