"""What the tests and the table are made from: every attempt made once, several of them at a time."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from attempt import Record, attempt
from network import NULL_MX, REFUSING, SPARED
from senders import RELAYS, Sender
from submitters import CLIENTS

__all__ = ["ALL", "MODES", "NULL_MX_CASES", "REFUSED_CLIENTS", "REFUSED_RELAYS", "SPARED_RELAYS", "Case", "Records"]

MODES = ("close", "session", "mail")

_AT_ONCE = 5  # each has a network of its own, and waits most of its time for the sender's own clocks


class Case(NamedTuple):
    """One sender with one message for a domain, where nullsmtpd runs in a mode."""

    sender: Sender
    domain: str
    mode: str


REFUSED_RELAYS = tuple(Case(relay, REFUSING, mode) for mode in MODES for relay in RELAYS)
SPARED_RELAYS = tuple(Case(relay, SPARED, mode) for mode in MODES for relay in RELAYS)
NULL_MX_CASES = tuple(Case(relay, NULL_MX, "close") for relay in RELAYS)  # nobody connects: the same in every mode
REFUSED_CLIENTS = tuple(Case(client, REFUSING, mode) for mode in MODES for client in CLIENTS)
ALL = REFUSED_RELAYS + SPARED_RELAYS + NULL_MX_CASES + REFUSED_CLIENTS


class Records:
    """The records of cases: of those that were asked for, and of any other when it is looked up."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE)
        self._futures: dict[tuple[str, str, str, str], Future[Record]] = {}

    def ask(self, cases: Iterable[Case]) -> None:
        """Begin with these in the background, in this order, as far as this machine has what they need."""
        for case in cases:
            if not case.sender.missing():
                self._ask(case)

    def __getitem__(self, case: Case) -> Record:
        """Return the record of a case. Raises what the attempt has raised."""
        return self._ask(case).result()

    def _ask(self, case: Case) -> Future[Record]:
        key = (case.sender.name, case.sender.setting, case.domain, case.mode)
        if key not in self._futures:
            self._futures[key] = self._pool.submit(attempt, *case)
        return self._futures[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let what has begun end, and begin nothing more."""
        self._pool.shutdown(cancel_futures=True)
