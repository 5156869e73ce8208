"""The packet filters of deploy/nftables on a server of the test's own, and clients that connect to it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import SERVER_4, SERVER_6, Host, connected_hosts
from support import PATIENCE, Start, require_root, require_tools

__all__ = [
    "BURST",
    "IPTABLES",
    "NFT",
    "RATE",
    "REDIRECT",
    "TRACKER",
    "Net",
    "Outcomes",
    "all_whole",
    "entries",
    "load",
    "net",
    "ruleset",
    "sources_4",
    "sources_6",
    "tracked",
    "without_redirection",
]

FOLDER = Path(__file__).parent.parent / "deploy" / "nftables"
NFT, REDIRECT, IPTABLES = FOLDER / "nullsmtpd.nft", FOLDER / "nullsmtpd-redirect.nft", FOLDER / "iptables.sh"

#: What each ruleset allows one source: connections in one burst, and further ones a second.
BURST, RATE = 50, 10

#: A table of somebody else that makes the kernel track connections, and changes none.
TRACKER = "table inet tracker { chain input { type filter hook input priority 0; ct state established accept; }; }"

#: For each address of a client, how often each verdict was its outcome.
Outcomes = dict[str, dict[str, int]]

_IPTABLES_COMMANDS = ("iptables", "iptables-restore", "ip6tables", "ip6tables-restore")


class Net:
    """A server with nullsmtpd, and a client with many addresses."""

    def __init__(self, server: Host, client: Host, start: Start) -> None:
        self.server = server
        self.client = client
        self._start = start

    def serve(self, host: Host, port: int) -> None:
        """Run nullsmtpd on a host, for both families."""
        self._start(prefix=host.prefix, listen=f":{port}", count=2)

    def load(self, rules: Path) -> None:
        """Load a ruleset on the server, and start nullsmtpd on the port that it is for."""
        load(self.server, rules)
        self.serve(self.server, 2525 if rules == REDIRECT else 25)

    def knock(
        self,
        *sources: str,
        rounds: int = 1,
        to: str = "",
        port: int = 25,
        by: Host | None = None,
        patience: float = PATIENCE,
    ) -> Outcomes:
        """Connect once a round from each source; return what became of each source's connections."""
        target = to or (SERVER_6 if ":" in sources[0] else SERVER_4)
        knocks = (sys.executable, str(Path(__file__).with_name("knocks.py")))
        outcomes: Outcomes = json.loads(
            (by or self.client).run(*knocks, target, str(port), str(patience), str(rounds), *sources)
        )
        return outcomes


def load(host: Host, rules: Path | str, *, legacy: Path | None = None) -> None:
    """Load a ruleset, a file or the text of one for nft, as a file's first lines say.

    With ``legacy``, an empty directory, iptables is the one that does not use nftables in the kernel.
    """
    if isinstance(rules, str):
        host.run("nft", "-f", "-", stdin=rules)
    elif rules.suffix != ".sh":
        host.run("nft", "-f", str(rules))
    elif legacy:
        for command in _IPTABLES_COMMANDS:
            (legacy / command).symlink_to(str(shutil.which(command.replace("tables", "tables-legacy"))))
        host.run("env", f"PATH={legacy}:{os.environ['PATH']}", "sh", str(rules))
    else:
        host.run("sh", str(rules))


def without_redirection() -> str:
    """Return nullsmtpd-redirect.nft without its last two chains, by the command of deploy/README.md."""
    (command,) = re.findall(r"`(\(sed .*\)) \| sudo tee ", (FOLDER.parent / "README.md").read_text())
    return subprocess.check_output(["sh", "-c", command], cwd=FOLDER.parents[1], text=True)


def tracked(host: Host) -> int:
    """Return how many connections the host tracks."""
    return int(host.run("sysctl", "-n", "net.netfilter.nf_conntrack_count"))


def entries(host: Host) -> str:
    """Return the host's table of tracked IPv4 connections, one a line."""
    return host.run("sh", "-c", "conntrack -L 2>/dev/null")


def ruleset(host: Host) -> str:
    """Return all rules of a host, without counters, and without nft's warning that some are those of iptables."""
    return host.run("sh", "-c", "nft --stateless list ruleset 2>/dev/null")


def sources_4(count: int) -> list[str]:
    """Return IPv4 addresses of the client."""
    return [f"198.18.{number // 250}.{number % 250 + 1}" for number in range(count)]


def sources_6(count: int) -> list[str]:
    """Return IPv6 addresses of the client, each in a /64 of its own."""
    return [f"2001:db8:c:{number:x}::1" for number in range(count)]


def all_whole(sources: list[str], rounds: int) -> Outcomes:
    """Return the outcomes where every client gets the line."""
    return {source: {"whole line": rounds} for source in sources}


@pytest.fixture
def net(start: Start) -> Iterator[Net]:
    """Connect a server and a client."""
    require_root()
    require_tools("unshare", "nsenter", "ip", "nft", "iptables", "ip6tables", "conntrack", "sysctl")
    with connected_hosts() as (server, client):
        yield Net(server, client, start)
