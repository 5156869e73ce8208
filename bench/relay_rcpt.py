"""What a whole RCPT costs Postfix: without a look at DNS, with its own, and with `nullsmtpd relay` asked instead."""

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import machine, process, servers
from bench.outcomes import is_whole
from bench.relay import Comparison, Exchange, Requests, beside_servers, compare, name_server, relay

__all__ = ["BASE", "INSIDE", "rcpt", "run_inside"]

#: What the ratios refer to.
BASE = "no look, plain"

#: Set in the namespaces that `run_inside` makes.
INSIDE = "BENCH_RELAY_INSIDE"

# The machine's own resolv.conf cannot name a port, so Postfix gets a network and a resolv.conf of its own.
_NAMESPACES = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec")
_INSIDE = 'ip link set lo up; mount --bind "$0" /etc/resolv.conf; exec "$@"'

_DNS = ("127.0.0.1", 53)

_RELAY = "check_recipient_access socketmap:inet:{}:{}:nullmx"
_LOOKS = {
    "no look": "",
    "reject_unknown_recipient_domain": "reject_unknown_recipient_domain",
    "nullsmtpd relay": _RELAY,
}

# Whom the mail is for, and the reply without a look and with one.
_DOMAINS = {"plain": ("plain.example", b"250", b"250"), "null MX": ("null.example", b"250", b"556")}

_MAIN = """
compatibility_level = 3.6
queue_directory = {directory}/queue
data_directory = {directory}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.bench.example
mydestination =
alias_maps =
mynetworks = 127.0.0.0/8
smtpd_peername_lookup = no
smtpd_recipient_limit = 1000000
smtpd_recipient_overshoot_limit = 1000000
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000000
smtpd_hard_error_limit = 1000001
smtpd_junk_command_limit = 1000000
smtpd_timeout = 300s
"""

_MASTER = """
anvil     unix  -  -  n  -  1  anvil
cleanup   unix  n  -  n  -  0  cleanup
proxymap  unix  -  -  n  -  -  proxymap
rewrite   unix  -  -  n  -  -  trivial-rewrite
"""

_GREETING = (b"", b"EHLO client.bench.example\r\n", b"MAIL FROM:<someone@plain.example>\r\n")


def run_inside(arguments: Sequence[str]) -> int:
    """Run this command again where it may have a network and a resolv.conf of its own; return its exit status.

    Raises `bench.servers.MissingError` without root, Postfix, or what makes namespaces.
    """
    if os.geteuid():
        raise servers.MissingError("--rcpt starts a Postfix in namespaces of its own: it takes root")
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("postfix", "postfix")):
        if shutil.which(tool, path=_path()) is None:
            raise servers.MissingError(f"no {tool} (Debian package {package})")
    with tempfile.NamedTemporaryFile("w", prefix="bench-", suffix=".conf") as resolv_conf:
        resolv_conf.write("nameserver 127.0.0.1\n")
        resolv_conf.flush()
        os.fchmod(resolv_conf.fileno(), 0o644)  # Postfix reads it as a user of its own
        command = [*_NAMESPACES, _INSIDE, resolv_conf.name, sys.executable, "-m", "bench", *arguments]
        return subprocess.run(command, env=os.environ | {INSIDE: "1", "PATH": _path()}, check=False).returncode


def rcpt(*, count: int, each: int, clients: int) -> Comparison:
    """Measure recipients in running transactions, ``clients`` of them at a time, for each look and each kind of domain.

    CPU time is that of all of Postfix's processes and of ours, without the name server. For `run_inside`.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(beside_servers())
        dns = stack.enter_context(_name_server())
        ours = stack.enter_context(servers.running(relay(_DNS), cpus=machine.server_cpus()))
        looks = {name: look.format(*ours.targets[0]) for name, look in _LOOKS.items()}
        postfix = stack.enter_context(
            servers.running(_postfix(list(looks.values())), addresses=len(looks), cpus=machine.server_cpus())
        )

        def pids() -> list[int]:
            return [*_tree(postfix.process.pid), *ours.pids]

        arms = []
        for (name, look), target in zip(looks.items(), postfix.targets, strict=True):
            for kind, (domain, without, with_look) in _DOMAINS.items():
                connected = [stack.enter_context(_in_transaction(target)) for _ in range(clients)]
                requests = _recipients(domain, with_look if look else without)
                arms.append(Exchange(f"{name}, {kind}", connected, requests, b"\n", pids))
        return compare(arms, count, each, [dns.pid])


@contextlib.contextmanager
def _name_server() -> Iterator[subprocess.Popen[bytes]]:
    """Have a name server at the one port that resolv.conf can mean."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        command = name_server().command([_DNS[1]], Path(name))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as started:
            try:
                while started.poll() is None:
                    with socket.socket() as probe:
                        if probe.connect_ex(_DNS) == 0:
                            break
                    time.sleep(0.01)
                else:
                    raise RuntimeError("dnsmasq ended at once: is there another name server in this namespace?")
                yield started
            finally:
                started.terminate()


def _recipients(domain: str, reply: bytes) -> Requests:
    for number in itertools.count():
        yield f"RCPT TO:<user{number}@{domain}>\r\n".encode(), reply


@contextlib.contextmanager
def _in_transaction(target: tuple[str, int]) -> Iterator[socket.socket]:
    """Give a connection after MAIL. Raises `RuntimeError` if it does not come so far."""
    with socket.create_connection(target, timeout=20) as client:
        for line in _GREETING:
            client.sendall(line)
            _read_reply(client)
        yield client


def _read_reply(client: socket.socket) -> None:
    """Read one reply, which is to be a positive one (RFC 5321 §4.2.1)."""
    reply = b""
    while not is_whole(reply):
        if not (more := client.recv(4096)):
            raise RuntimeError(f"Postfix closed the connection after {reply!a}")
        reply += more
    if not reply.startswith(b"2"):
        raise RuntimeError(f"Postfix said {reply!a}")


def _postfix(looks: Sequence[str]) -> servers.Arm:
    """Return one Postfix with an smtpd for each of the looks, on ports of their own."""

    def command(ports: list[int], directory: Path) -> list[str]:
        directory.chmod(0o755)
        for name in ("etc", "data", "queue"):
            (directory / name).mkdir()
        shutil.chown(directory / "data", "postfix")
        (directory / "etc/main.cf").write_text(_MAIN.format(directory=directory))
        services = ""
        for port, look in zip(ports, looks, strict=True):
            restrictions = ",".join(filter(None, [look, "permit_mynetworks", "reject"]))
            services += f"127.0.0.1:{port} inet n - n - - smtpd\n"
            services += f"  -o {{ smtpd_recipient_restrictions = {restrictions} }}\n"
        (directory / "etc/master.cf").write_text(_MASTER + services)
        return ["postfix", "-c", str(directory / "etc"), "start-fg"]

    return servers.Arm("postfix", "Postfix", command)


def _tree(pid: int) -> list[int]:
    """Return a process and all its living descendants."""
    return [pid, *(one for child in process.children(pid) for one in _tree(child))]


def _path() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
