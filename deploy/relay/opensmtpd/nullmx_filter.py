#!/usr/bin/python3
"""Copy to /usr/local/libexec/nullmx-filter: has OpenSMTPD ask nullsmtpd relay about senders and recipients.

Arguments: domains that this host delivers or relays to, which are never refused; with a dot in front, all domains below
one. The host's own name is always one of them.

The protocol is smtpd-filters(7). table-socketmap(5) will not do: it sends lines where socketmap has netstrings, and
cannot tell whether a key is in it.
"""

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RELAY = "/run/nullsmtpd/relay"
TIMEOUT = 10.0  # seconds; nullsmtpd relay gives up on DNS earlier
THREADS = 32  # lookups at once; smtpd continues with other sessions while some wait for DNS

MAPS = {"rcpt-to": "nullmx", "mail-from": "nullmxsender"}
MAILNAMES = (Path("/etc/mail/mailname"), Path("/etc/mailname"))


def own_domains() -> set[str]:
    """Return the domains that are not looked up, in lower case."""
    mailnames = [path.read_text().strip() for path in MAILNAMES if path.exists()]
    return {name.lower() for name in (*sys.argv[1:], *mailnames, socket.gethostname(), "localhost")}


def is_own(address: str, own: set[str]) -> bool:
    """Return whether the domain of an address is one of ``own``, or below one with a dot in front."""
    domain = address.rpartition("@")[2].lower()
    return domain in own or any(domain[index:] in own for index, octet in enumerate(domain) if octet == ".")


def look_up(name: str, address: str) -> str:
    """Return what smtpd is to do with an address. Raises `OSError` when nothing answers."""
    request = f"{name} {address}".encode()
    reply = b""
    with socket.socket(socket.AF_UNIX) as relay:
        relay.settimeout(TIMEOUT)
        relay.connect(RELAY)
        relay.sendall(b"%d:%s," % (len(request), request))
        while not reply.endswith(b",") and (octets := relay.recv(512)):
            reply += octets
    _, is_null_mx, text = reply.decode("ascii", "replace").partition(":OK ")
    return f"reject|{text.removesuffix(',')}" if is_null_mx else "proceed"


def answer(phase: str, session: str, token: str, address: str) -> None:
    """Answer smtpd, which waits with this session."""
    try:
        result = look_up(MAPS[phase], address)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"no answer at {RELAY}: {error}\n")  # smtpd logs it
        result = "proceed"
    respond(session, token, result)


def respond(session: str, token: str, result: str) -> None:
    """Write one line, in one piece."""
    os.write(1, f"filter-result|{session}|{token}|{result}\n".encode())


def main() -> None:
    """Answer for every sender and recipient until smtpd ends."""
    own = own_domains()
    with ThreadPoolExecutor(THREADS) as pool:
        for octets in sys.stdin.buffer:
            line = octets.decode(errors="replace").rstrip("\n")
            fields = line.split("|", 7)  # the address is the last and may contain a "|"
            if fields == ["config", "ready"]:
                os.write(1, "".join(f"register|filter|smtp-in|{phase}\n" for phase in MAPS).encode())
                os.write(1, b"register|ready\n")
            elif fields[0] == "filter":
                phase, session, token, address = fields[4:]
                if "@" not in address or is_own(address, own):
                    respond(session, token, "proceed")
                else:
                    pool.submit(answer, phase, session, token, address)


if __name__ == "__main__":
    main()
