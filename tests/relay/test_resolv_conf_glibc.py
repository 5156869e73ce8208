"""The parser of /etc/resolv.conf beside glibc's own, which reads the same files in a mount namespace of the test's."""

import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import glibc_resolver
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support import require, require_root, require_tools

from nullsmtpd.runtime.resolv_conf import ResolvConf, parse_resolv_conf

# Bind a file over /etc/resolv.conf, and run a program there.
IN_NAMESPACE = 'mount --bind "$1" /etc/resolv.conf && exec "$2" "$3"'


@pytest.fixture(scope="module")
def glibc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes], ResolvConf]]:
    """Return a function that has glibc read a file."""
    require(sys.platform == "linux", "glibc")
    require_root()
    require_tools("unshare", "mount")
    path = tmp_path_factory.mktemp("etc") / "resolv.conf"
    path.touch()
    command = ("unshare", "--mount", "sh", "-c", IN_NAMESPACE, "sh", str(path), sys.executable, glibc_resolver.__file__)
    environment = {name: value for name, value in os.environ.items() if name != "RES_OPTIONS"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        stdin, stdout = process.stdin, process.stdout
        times = itertools.count(1)

        def read(octets: bytes) -> ResolvConf:
            path.write_bytes(octets)
            os.utime(path, (0, next(times)))  # glibc reads a file again when its times or its size have changed
            stdin.write("\n")
            stdin.flush()
            servers, *rest = json.loads(stdout.readline())
            return ResolvConf(tuple(servers), *rest)

        yield read
        stdin.close()


# No "sortlist": glibc 2.36 never comes back from one with an octet beyond ASCII.
PIECES = [
    *(b"nameserver ", b"nameserver\t", b"options ", b"\noptions\t", b"search a\n", b"domain x"),
    *(
        b"\nnameserver 192.0.2.1\n",
        b"\nnameserver 2001:db8::1\n",
        b"\nnameserver fe80::1%lo\n",
        b"\noptions timeout:3 ",
    ),
    *(b"192.0.2.1", b"127.1", b"0x7f.1", b"010.0.0.1", b"1.2.3.4.5", b"256.1.1.1", b"0.0.0.0", b"4294967295"),
    *(b"2001:db8::1", b"::", b"::ffff:192.0.2.1", b"fe80::1%lo", b"2001:db8::1%lo", b"fe80::1%", b"fe80::g"),
    *(b"rotate", b"use-vc", b"edns0", b"timeout:", b"attempts:", b"ndots:5", b"rotatex", b"use-vc,", b"trust-ad"),
    *(b"0", b"1", b"7", b"30", b"31", b"-1", b"+2", b"007", b"999999999", b" ", b"\t", b"\n", b"\r", b"\v", b"\f"),
    *(b"#", b";", b"\0", b"\xff", b"\xc3\xa9", b".", b":", b"%", b"x"),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=30).map(b"".join))
def test_any_file_means_what_it_means_to_glibc(glibc: Callable[[bytes], ResolvConf], octets: bytes) -> None:
    """Invariant: the same servers in the same order, and the same options."""
    assume(not re.search(rb":\s*[+-]?[0-9]{10}", octets))  # atoi(3) of more than an int is undefined
    conf = parse_resolv_conf(octets)
    assert conf._replace(servers=tuple(map(with_scope_number, conf.servers))) == glibc(octets)


def with_scope_number(server: str) -> str:
    """Resolve a scope as glibc does when it parses; this package does so when it sends. An unknown one is left out."""
    address, percent, scope = server.partition("%")
    if not percent:
        return server
    try:
        number = socket.if_nametoindex(scope)
    except (OSError, ValueError):
        number = int(scope) if scope.isascii() and scope.isdigit() else 0
    return f"{address}%{number}" if number else address


@pytest.mark.parametrize(
    "octets", [b"", b"nameserver 192.0.2.1\r\n", b"# padding\n" * 100_000 + b"nameserver 192.0.2.1"]
)
def test_particular_files_mean_what_they_mean_to_glibc(glibc: Callable[[bytes], ResolvConf], octets: bytes) -> None:
    """Empty, with DOS line ends, and huge."""
    assert parse_resolv_conf(octets) == glibc(octets)
