"""Print as Markdown what real senders do with a host that answers 521: ``python tests/interop/table.py``, as root."""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for conftest, as pytest has it

from attempt import Record, attempt
from network import NULL_MX, SPARED
from senders import CLIENTS, RELAYS

__all__ = ["row"]

MODES = ("close",)

_HEAD = (
    "sender",
    "version",
    "mode",
    "the message is",
    "the user sees the text",
    "sent after the greeting",
    "with a second MX that works",
    "with a null MX",
)


def row(record: Record, spared: Record | None = None, null_mx: Record | None = None) -> Iterable[str]:
    """Return the cells for what one sender does in one mode; only relays look for MX records by themselves."""
    yield record.sender
    yield record.version
    yield record.mode
    yield record.verdict if record.status is None else f"{record.verdict}, status {record.status}"
    yield "yes" if record.tells else "no"
    yield " ".join(line.partition(" ")[0] for text in record.sent for line in text.splitlines()) or "nothing"
    yield spared.verdict if spared else ""
    yield null_mx.verdict if null_mx else ""


def _rows() -> Iterable[Iterable[str]]:
    yield _HEAD
    yield ["---"] * len(_HEAD)
    for relay in RELAYS:
        null_mx = attempt(relay, NULL_MX)  # nobody connects: the same in every mode
        for mode in MODES:
            yield row(attempt(relay, mode=mode), attempt(relay, SPARED, mode), null_mx)
    for client in CLIENTS:
        for mode in MODES:
            yield row(attempt(client, mode=mode))


def main() -> None:
    """Let every sender try in every mode."""
    for cells in _rows():
        print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
