"""One relay, set up by its recipe: its replies to MAIL and RCPT while nullsmtpd relay answers, and while it cannot."""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from child import UNTIL_WE_END
from network import (
    BELOW_NULL_MX,
    LOCAL_NULL_MX,
    NULL_MX,
    NULL_MX_A_LABELS,
    NULL_MX_U_LABELS,
    ORDINARY,
    RELAYED_NULL_MX,
    Network,
    open_network,
)
from recipes import Recipe
from senders import SENDER, version_of
from support import Daemon, running

__all__ = [
    "BELOW",
    "IN_A_LABELS",
    "IN_UPPER_CASE",
    "IN_U_LABELS",
    "LOCAL",
    "NOBODY",
    "NULL_SENDER",
    "RELAYED",
    "SOMEBODY",
    "Interview",
    "Reply",
    "interview",
]

#: Addresses whose domain has a null MX.
NOBODY = f"bob@{NULL_MX}"
IN_UPPER_CASE = f"Bob@{NULL_MX.upper()}"
IN_A_LABELS = f"bob@{NULL_MX_A_LABELS}"
IN_U_LABELS = f"bob@{NULL_MX_U_LABELS}"

#: The same, but the relay delivers to the one domain and relays for the other.
LOCAL = f"alice@{LOCAL_NULL_MX}"
RELAYED = f"bob@{RELAYED_NULL_MX}"

#: Addresses whose domain has an MX. What that host replies to the mail plays no part at RCPT.
SOMEBODY = f"bob@{ORDINARY}"
BELOW = f"bob@{BELOW_NULL_MX}"

#: RFC 5321 §4.5.5.
NULL_SENDER = ""

_RECIPIENTS = (NOBODY, IN_UPPER_CASE, IN_A_LABELS, IN_U_LABELS, SOMEBODY, BELOW, LOCAL, RELAYED)
_SENDERS = (NOBODY, IN_A_LABELS, SOMEBODY, LOCAL, RELAYED, NULL_SENDER)
_ONE_OF_EACH = (NOBODY, SOMEBODY)
_MANY = 12  # Debian's Exim has a limit for bad recipients from the eleventh on
_PATIENCE = 120.0  # seconds for a reply: the client itself waits 60 for each of the relay's, and then ends
_CLIENT = Path(__file__).with_name("programs") / "ask_recipients.py"


class Reply(NamedTuple):
    """A reply to MAIL or RCPT; ``text`` begins with the enhanced status code if it has one."""

    code: int
    text: str

    @property
    def status(self) -> str:
        """The code, and the enhanced one if there is one."""
        enhanced = re.match(r"[245]\.\d{1,3}\.\d{1,3} ", self.text)  # RFC 3463 §2
        return f"{self.code} {enhanced[0] if enhanced else ''}".strip()


class Interview(NamedTuple):
    """The replies by recipient, to a sender with an MX.

    ``answered``: with nullsmtpd relay and DNS at work; ``senders``: the same, by sender, to a recipient with an MX.
    ``after_many``: the reply to one with an MX after `_MANY` with a null MX. ``cut_off``: nullsmtpd relay has ended
    since the recipient before, within one session. ``stopped``: it is not running. ``without_dns``: it is, and no name
    server is; ``dns_failures`` is how many it counted then. ``log``: that of the relay.
    """

    version: str
    answered: dict[str, Reply]
    senders: dict[str, Reply]
    after_many: Reply
    cut_off: dict[str, Reply]
    stopped: dict[str, Reply]
    without_dns: dict[str, Reply]
    dns_failures: int
    log: str


def interview(recipe: Recipe, suite: str) -> Interview:
    """Set up the relay of a Debian suite, and ask it about senders and recipients in each of these situations."""
    relay = recipe.relay
    with tempfile.TemporaryDirectory(prefix="nullsmtpd-interview-") as name:
        directory = Path(name)
        with (
            open_network(directory) as network,
            relay.machine(suite, network.prefix) as machine,
        ):
            recipe.install(machine)
            path = machine.root / recipe.socket.lstrip("/")
            path.parent.mkdir(mode=0o755)  # Sendmail uses none that everybody may write to
            with _client(network) as client:
                with _nullsmtpd_relay(network, path, directory):
                    senders = {sender: client.ask(sender, SOMEBODY) for sender in _SENDERS}
                    answered = client.ask_all(_RECIPIENTS)
                    for _ in range(_MANY):
                        client.ask(SENDER, NOBODY)
                    after_many = client.ask(SENDER, SOMEBODY)
                cut_off = client.ask_all((SOMEBODY,))
            with _client(network) as client:
                stopped = client.ask_all(_ONE_OF_EACH)
            network.end_dns()
            with _nullsmtpd_relay(network, path, directory) as daemon, _client(network) as client:  # nothing is cached
                without_dns = client.ask_all(_ONE_OF_EACH)
                dns_failures = int(daemon.stats()["dns_failures"])
            version = version_of(machine, relay.packages[0])
            log = machine.run("cat", relay.log)
            return Interview(version, answered, senders, after_many, cut_off, stopped, without_dns, dns_failures, log)


class _Client:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask_all(self, recipients: Sequence[str]) -> dict[str, Reply]:
        return {recipient: self.ask(SENDER, recipient) for recipient in recipients}

    def ask(self, sender: str, recipient: str) -> Reply:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([sender, recipient]), file=self._process.stdin, flush=True)
        # One line for each request: none is left in its buffer.
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        assert ready, f"no reply to {sender}, {recipient} in {_PATIENCE} s"
        line = self._process.stdout.readline()
        assert line, f"the session ended at {sender}, {recipient}"
        return Reply(*json.loads(line))


@contextlib.contextmanager
def _client(network: Network) -> Iterator[_Client]:
    """Open a session with the relay."""
    command = [*UNTIL_WE_END, *network.prefix, sys.executable, str(_CLIENT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            yield _Client(process)
        finally:
            process.kill()


@contextlib.contextmanager
def _nullsmtpd_relay(network: Network, path: Path, directory: Path) -> Iterator[Daemon]:
    """Run ``nullsmtpd relay`` with a Unix socket at ``path``."""
    command = [*UNTIL_WE_END, *network.prefix, sys.executable, "-m", "nullsmtpd", "relay", "--listen", f"unix:{path}"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("NULLSMTPD_")}
    with running(command, directory / "relay.log", env=own) as daemon:
        yield daemon
        assert daemon.stop() == 0
