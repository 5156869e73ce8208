"""The hosts that mail is for: nullsmtpd in each mode, one that replies 521 to EHLO, one that takes every message."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from child import UNTIL_WE_END, child
from network import ADDRESSES, EHLO_REFUSED, MODES, NULL_MX, SPARE_ADDRESS, Network, domain_for
from support import Daemon, running

__all__ = ["TEXT", "Receivers", "receivers"]

TEXT = "Host does not accept mail"

_PORT = 25
_OTHERS = Path(__file__).with_name("programs") / "serve_smtp.py"


class Receivers:
    """The running nullsmtpd of each mode."""

    def __init__(self, daemons: dict[str, Daemon]) -> None:
        self._daemons = daemons

    def connections(self, domain: str) -> int:
        """Return how many connections there were to the first MX of a domain, as the access logs have it."""
        local = f" local={ADDRESSES[domain]}:{_PORT} "
        return sum(local in line for daemon in self._daemons.values() for line in daemon.lines("connection"))


@contextlib.contextmanager
def receivers(network: Network, directory: Path) -> Iterator[Receivers]:
    """Run them on the receiving host of a network, their logs in ``directory``, until the end of the block."""
    others = (*network.receiving_prefix, sys.executable, str(_OTHERS), SPARE_ADDRESS, ADDRESSES[EHLO_REFUSED])
    with contextlib.ExitStack() as stack:
        stack.enter_context(child(others))
        yield Receivers({mode: stack.enter_context(_nullsmtpd(network, directory, mode)) for mode in MODES})


@contextlib.contextmanager
def _nullsmtpd(network: Network, directory: Path, mode: str) -> Iterator[Daemon]:
    """Run nullsmtpd in this mode at the addresses of its domains; in mode ``close`` also at that of `NULL_MX`."""
    domains = [domain for domain in ADDRESSES if f".{mode}." in domain] + ([NULL_MX] if mode == MODES[0] else [])
    listen = [f"--listen={ADDRESSES[domain]}:{_PORT}" for domain in domains]
    options = ["--access-log", *listen]
    if mode != "close":  # which is the default
        options += ["--mode", mode, "--hostname", f"mx.{domain_for('plain', mode)}"]
    command = [*UNTIL_WE_END, *network.receiving_prefix, sys.executable, "-m", "nullsmtpd", *options]
    own = {name: value for name, value in os.environ.items() if not name.startswith("NULLSMTPD_")}
    with running(command, directory / f"{mode}.log", listeners=len(domains), env=own) as daemon:
        yield daemon
        assert daemon.stop() == 0
