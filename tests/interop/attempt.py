"""One message, one sender, one host that refuses mail: what becomes of it."""

import contextlib
import tempfile
from pathlib import Path
from typing import NamedTuple

from host import refusing_host
from network import REFUSING, SPARED, open_network
from senders import Sender, Verdict
from spare import spare_host
from wire import capture

__all__ = ["TEXT", "Record", "attempt"]

TEXT = "Host does not accept mail"


class Record(NamedTuple):
    """What was seen.

    ``days``: how long the sender keeps on trying if the message is deferred. ``status``: exit status of a sender
    without a queue. ``told``: what the user got to read, in one line. ``log``: what the sender noted. ``sent``: what it
    said to nullsmtpd, for each connection. ``connections``, ``sessions``: how many nullsmtpd counted.
    """

    sender: str
    version: str
    mode: str
    domain: str
    verdict: Verdict
    days: float | None
    status: int | None
    told: str
    log: str
    sent: list[str]
    connections: int
    sessions: int

    @property
    def tells(self) -> bool:
        """Tell whether the user could read why."""
        return TEXT in self.told


def attempt(sender: Sender, domain: str = REFUSING, mode: str = "close") -> Record:
    """Let a sender try to deliver one message to a domain, in a network where nullsmtpd runs in this mode."""
    with tempfile.TemporaryDirectory(prefix="nullsmtpd-attempt-") as name:
        directory = Path(name)
        with (
            open_network(directory) as network,
            refusing_host(network, directory, mode) as daemon,
            spare_host(network) if domain == SPARED else contextlib.nullcontext(),
            capture(network) as wire,
        ):
            outcome = sender.deliver(network, domain, wire.stop)
            stats = daemon.stats()
            return Record(
                sender=sender.name,
                version=outcome.version,
                mode=mode,
                domain=domain,
                verdict=outcome.verdict,
                days=outcome.days,
                status=outcome.status,
                told=" ".join(outcome.told.split()),  # a bounce is wrapped wherever it likes
                log=outcome.log,
                sent=wire.stop(),
                connections=int(stats["connections"]),
                sessions=int(stats["sessions"]),
            )
