"""glibc's own reading of /etc/resolv.conf: a program that prints it as JSON for each line on standard input."""

import ctypes
import json
import socket
import sys

RES_ROTATE, RES_USEVC = 0x4000, 0x8


class SockaddrIn(ctypes.Structure):
    """struct sockaddr_in, <netinet/in.h>."""

    _fields_ = (
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("address", ctypes.c_uint8 * 4),
        ("zero", ctypes.c_uint8 * 8),
    )


class SockaddrIn6(ctypes.Structure):
    """struct sockaddr_in6, <netinet/in.h>."""

    _fields_ = (
        ("family", ctypes.c_uint16),
        ("port", ctypes.c_uint16),
        ("flow", ctypes.c_uint32),
        ("address", ctypes.c_uint8 * 16),
        ("scope", ctypes.c_uint32),
    )


class Extension(ctypes.Structure):
    """The member _u._ext of struct __res_state, which has the IPv6 addresses."""

    _fields_ = (
        ("nscount", ctypes.c_uint16),
        ("nsmap", ctypes.c_uint16 * 3),
        ("nssocks", ctypes.c_int * 3),
        ("nscount6", ctypes.c_uint16),
        ("nsinit", ctypes.c_uint16),
        ("nsaddrs", ctypes.POINTER(SockaddrIn6) * 3),
        ("initstamp", ctypes.c_uint * 2),
    )


class State(ctypes.Structure):
    """struct __res_state, <bits/types/res_state.h>."""

    _fields_ = (
        ("retrans", ctypes.c_int),
        ("retry", ctypes.c_int),
        ("options", ctypes.c_ulong),
        ("nscount", ctypes.c_int),
        ("nsaddr_list", SockaddrIn * 3),
        ("id", ctypes.c_ushort),
        ("dnsrch", ctypes.c_char_p * 7),
        ("defdname", ctypes.c_char * 256),
        ("pfcode", ctypes.c_ulong),
        ("bits", ctypes.c_uint),
        ("sort_list", ctypes.c_uint32 * 2 * 10),
        ("hooks", ctypes.c_void_p * 2),
        ("res_h_errno", ctypes.c_int),
        ("vcsock", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("ext", Extension),
    )


def read_with_glibc(library: ctypes.CDLL) -> tuple[list[str], int, int, bool, bool]:
    """Return the fields of `nullsmtpd.nullmx.ResolvConf`, with the same substitutes for 0 seconds and for 0.0.0.0."""
    state = State()
    assert library.__res_ninit(ctypes.byref(state)) == 0
    servers = []
    for number in range(state.nscount):
        if state.nsaddr_list[number].family == socket.AF_INET:
            servers.append(socket.inet_ntop(socket.AF_INET, bytes(state.nsaddr_list[number].address)))
            continue
        found = state.ext.nsaddrs[number].contents
        scope = f"%{found.scope}" if found.scope else ""
        servers.append(socket.inet_ntop(socket.AF_INET6, bytes(found.address)) + scope)
    servers = [{"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server, server) for server in servers]  # noqa: S104
    is_rotating, is_tcp = bool(state.options & RES_ROTATE), bool(state.options & RES_USEVC)
    library.__res_nclose(ctypes.byref(state))
    return servers, max(state.retrans, 1), max(state.retry, 1), is_rotating, is_tcp


def main() -> None:
    """Read the file once for each line on standard input."""
    library = ctypes.CDLL("libresolv.so.2")
    for _ in sys.stdin:
        print(json.dumps(read_with_glibc(library)), flush=True)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
