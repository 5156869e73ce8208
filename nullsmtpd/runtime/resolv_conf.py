"""Which name servers does this host use? /etc/resolv.conf as glibc reads it, resolv.conf(5)."""

import contextlib
import errno
import ipaddress
import os
import re
import socket
from typing import NamedTuple

__all__ = ["MAX_TIMEOUT", "ResolvConf", "parse_resolv_conf", "read_resolv_conf"]

_PATH = "/etc/resolv.conf"
_MAX_OCTETS = 1 << 24  # a symbolic link to /dev/zero must not fill the memory
# Other errors are persistent, and the same as an empty file.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# <resolv.h> of glibc: MAXNS, RES_TIMEOUT and RES_MAXRETRANS (seconds), RES_DFLRETRY and RES_MAXRETRY.
_MAX_SERVERS = 3
_DEFAULT_TIMEOUT, MAX_TIMEOUT = 5, 30
_DEFAULT_ATTEMPTS, _MAX_ATTEMPTS = 2, 5
# A keyword begins in the first column, and a NUL ends the line, as in C.
_NAME_SERVER = re.compile(rb"^nameserver[ \t]+([^ \t\n\0]+)", re.MULTILINE)
_OPTIONS = re.compile(rb"^options[ \t]([^\n\0]*)", re.MULTILINE)
# glibc compares prefixes ("rotated" is "rotate"), and reads numbers with atoi(), which skips white space before them.
_OPTION = re.compile(rb"(?<![^ \t])(?:(timeout|attempts):\s*\+?0*([0-9]{0,9})|(rotate|use-vc))")
# Both are this host (RFC 1122 §3.2.1.3), but datagrams come back from the loopback address.
_UNSPECIFIED = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where to send to


class ResolvConf(NamedTuple):
    """The part of resolv.conf(5) that is used here; ``timeout`` in seconds."""

    servers: tuple[str, ...]
    timeout: int = _DEFAULT_TIMEOUT
    attempts: int = _DEFAULT_ATTEMPTS
    rotate: bool = False
    use_vc: bool = False


def parse_resolv_conf(octets: bytes, res_options: bytes = b"") -> ResolvConf:
    """Parse the contents of /etc/resolv.conf and of the variable RES_OPTIONS, exactly as glibc's res_init.c does.

    Lines that glibc skips are skipped; no contents are an error. Without a usable ``nameserver`` line the server is
    127.0.0.1. Where glibc would wait 0 seconds or make 0 attempts, the value is 1.
    """
    servers = tuple(filter(None, map(_address, _NAME_SERVER.findall(octets))))
    values = {b"timeout": _DEFAULT_TIMEOUT, b"attempts": _DEFAULT_ATTEMPTS}
    for text in (*_OPTIONS.findall(octets), res_options):
        values |= {number or flag: int(digits or 0) for number, digits, flag in _OPTION.findall(text)}
    return ResolvConf(
        servers[:_MAX_SERVERS] or ("127.0.0.1",),
        min(max(values[b"timeout"], 1), MAX_TIMEOUT),
        min(max(values[b"attempts"], 1), _MAX_ATTEMPTS),
        rotate=b"rotate" in values,
        use_vc=b"use-vc" in values,
    )


def _address(octets: bytes) -> str | None:
    token = os.fsdecode(octets)  # may have an interface's name
    # inet_aton(3) accepts 127.1, too, as glibc does here, and white space after it, which glibc does not: the CR of a
    # DOS line end makes the line invalid.
    with contextlib.suppress(OSError, UnicodeError):
        address = socket.inet_ntoa(socket.inet_aton(token if not re.search(r"\s", token) else ""))
        return _UNSPECIFIED.get(address, address)
    host, _, scope = token.partition("%")
    with contextlib.suppress(OSError, UnicodeError):
        packed = socket.inet_pton(socket.AF_INET6, host)
        address = socket.inet_ntop(socket.AF_INET6, packed)
        if scope and ipaddress.IPv6Address(packed).is_link_local:
            return f"{address}%{scope}"
        return _UNSPECIFIED.get(address, address)
    return None


def read_resolv_conf() -> ResolvConf:
    """Read the file as it is now. Raises `OSError` when out of descriptors or memory."""
    octets = b""
    try:
        with open(_PATH, "rb") as file:  # noqa: PTH123 - no pathlib here
            octets = file.read(_MAX_OCTETS)
    except OSError as error:
        if error.errno in _EXHAUSTED:
            raise
    return parse_resolv_conf(octets, os.environb.get(b"RES_OPTIONS", b""))
