#!/usr/bin/python3
"""To /usr/local/libexec/nullmx-filter: asks nullsmtpd relay for OpenSMTPD, and lets pass what it cannot.

The protocol is smtpd-filters(7). A filter it must be: table-socketmap sends lines where socketmap has netstrings, and
its tables cannot be asked whether something is in them.
"""

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

RELAY = "/run/nullsmtpd/relay"
TIMEOUT = 10.0  # seconds; nullsmtpd relay gives up on DNS before
AT_ONCE = 32  # questions; smtpd goes on with other sessions while some wait for DNS


def verdict(address: str) -> str:
    """Return what smtpd is to do with a recipient. Raises OSError when nobody answers."""
    request = f"nullmx {address}".encode()
    reply = b""
    with socket.socket(socket.AF_UNIX) as relay:
        relay.settimeout(TIMEOUT)
        relay.connect(RELAY)
        relay.sendall(b"%d:%s," % (len(request), request))
        while not reply.endswith(b",") and (octets := relay.recv(512)):
            reply += octets
    _, is_null_mx, text = reply.decode("ascii", "replace").partition(":OK ")
    return f"reject|{text.removesuffix(',')}" if is_null_mx else "proceed"


def answer(session: str, token: str, address: str) -> None:
    """Tell smtpd, which waits with this session until it is told."""
    try:
        said = verdict(address)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"no answer at {RELAY}: {error}\n")  # smtpd logs it
        said = "proceed"
    os.write(1, f"filter-result|{session}|{token}|{said}\n".encode())


def main() -> None:
    """Ask for every recipient that smtpd tells of, until it ends."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for octets in sys.stdin.buffer:
            line = octets.decode(errors="replace").rstrip("\n")
            fields = line.split("|", 7)  # the address is the last and may have a "|" in it
            if fields == ["config", "ready"]:
                os.write(1, b"register|filter|smtp-in|rcpt-to\nregister|ready\n")
            elif fields[0] == "filter":
                pool.submit(answer, *fields[5:])


if __name__ == "__main__":
    main()
