"""A DNS of the tests' own in a network namespace: nsd serves the zones, and unbound resolves and validates."""

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from hosts import Host
from support import PATIENCE, require_tools

__all__ = ["RESOLVER", "resolving"]

#: Where unbound listens in the namespace.
RESOLVER = "127.0.0.1"

_AUTHORITY = "127.0.0.1@5300"

_NSD = """\
server:
    ip-address: {authority}
    username: ""
    chroot: ""
    zonesdir: "{directory}"
    database: ""
    zonelistfile: "{directory}/zone.list"
    xfrdfile: ""
    xfrdir: "{directory}"
    pidfile: ""
    server-count: 1
    rrl-ratelimit: 0
remote-control:
    control-enable: no
"""

_UNBOUND = """\
server:
    interface: {resolver}
    directory: "{directory}"
    username: ""
    chroot: ""
    pidfile: ""
    use-syslog: no
    logfile: ""
    do-not-query-localhost: no
    do-ip6: no
    module-config: "validator iterator"
    val-log-level: 2
remote-control:
    control-enable: no
"""

# Run in the namespace: it has no other way to see whether the name servers answer.
_WAIT = """\
import sys, time, dns.message, dns.query, dns.rcode
deadline = time.monotonic() + float(sys.argv[2])
while time.monotonic() < deadline:
    try:
        answer = dns.query.udp(dns.message.make_query(sys.argv[3], "SOA"), sys.argv[1], timeout=0.2)
        if answer.rcode() == dns.rcode.NOERROR:
            sys.exit()
    except Exception:
        time.sleep(0.02)
sys.exit("no answer")
"""


@contextlib.contextmanager
def resolving(
    host: Host, directory: Path, zones: Mapping[str, str], *, signed: Mapping[str, tuple[str, str]], python: str
) -> Iterator[None]:
    """Serve and resolve ``zones``, the text of each by its name, as long as the block lasts.

    ``signed``: the zones to sign with DNSSEC, each with a text and what replaces that after signing, which makes the
    zone bogus; two empty ones leave it valid. ``python``: the interpreter that has dnspython.
    """
    require_tools("nsd", "unbound", "ldns-keygen", "ldns-signzone")
    nsd = _NSD.format(authority=_AUTHORITY, directory=directory)
    unbound = _UNBOUND.format(resolver=RESOLVER, directory=directory)
    anchors = ""
    for name, text in zones.items():
        zone_file = directory / f"{name}zone"
        zone_file.write_text(text)
        if name in signed:
            anchors += f'    trust-anchor: "{_sign(directory, name, zone_file, *signed[name])}"\n'
        nsd += f'zone:\n    name: "{name}"\n    zonefile: "{zone_file.name}"\n'
        unbound += f'stub-zone:\n    name: "{name}"\n    stub-addr: {_AUTHORITY}\n'
    (directory / "nsd.conf").write_text(nsd)
    (directory / "unbound.conf").write_text(unbound.replace("remote-control:", f"{anchors}remote-control:", 1))
    commands = (("nsd", "-d", "-c", directory / "nsd.conf"), ("unbound", "-d", "-c", directory / "unbound.conf"))
    with contextlib.ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((directory / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen([*host.prefix, *command], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        try:
            host.run(python, "-c", _WAIT, RESOLVER, str(PATIENCE), min(zones, key=len))
        except AssertionError as error:
            logs = "".join(path.read_text() for path in directory.glob("*.log"))
            raise AssertionError(f"{error}\n{logs}") from None
        yield


def _sign(directory: Path, name: str, zone_file: Path, text: str, forged: str) -> str:
    """Sign a zone in place, forge a part of it, and return its key as a trust anchor."""
    keygen = ["ldns-keygen", "-a", "ECDSAP256SHA256", "-k", name]
    key = subprocess.run(keygen, cwd=directory, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["ldns-signzone", "-o", name, "-f", zone_file.name, zone_file.name, key], cwd=directory, check=True)
    signed = zone_file.read_text()
    assert not text or text in signed, signed
    zone_file.write_text(signed.replace(text, forged) if text else signed)
    return (directory / f"{key}.key").read_text().partition(";")[0].strip().replace("\t", " ")
