"""Print what real senders do with a host that refuses mail: ``python tests/interop/table.py``, as root.

A cell says what becomes of the message, and what the user gets to read at that time: the text, the code or neither.
The README has the output between ``<!-- senders -->`` and ``<!-- /senders -->``.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for conftest, as pytest has it

from attempt import Record
from network import NULL_MX, REFUSING, SPARED
from records import ALL, MODES, Case, Records
from senders import RELAYS, Sender, Verdict
from submitters import CLIENTS

__all__ = ["table"]

_HEAD = (
    "sender",
    *(f"`{mode}`" for mode in MODES),
    "sends after the 521 of `close`",
    "when a second MX works",
    "with a null MX",
)
_NOT_ASKED = ""  # a client is told the host, and looks for no MX


def table(records: Records) -> Iterator[str]:
    """Make the lines of the table."""
    senders: list[Sender] = [*RELAYS, *CLIENTS]
    for cells in (_HEAD, ("---",) * len(_HEAD), *(_row(records, sender) for sender in senders)):
        yield f"| {' | '.join(cells)} |"


def _row(records: Records, sender: Sender) -> Iterable[str]:
    refused = [records[Case(sender, REFUSING, mode)] for mode in MODES]
    yield f"{sender.name} {refused[0].version}" + (f", `{sender.setting}`" if sender.setting else "")
    for record in refused:
        yield f"{_fate(record)}, {_knowledge(record)}"
    yield " ".join(line.partition(" ")[0] for text in refused[0].sent for line in text.splitlines()) or "nothing"
    if sender not in RELAYS:
        yield _NOT_ASKED
        yield _NOT_ASKED
        return
    yield _summary([_fate(records[Case(sender, SPARED, mode)]) for mode in MODES])
    yield _fate(records[Case(sender, NULL_MX, MODES[0])])


def _fate(record: Record) -> str:
    if record.verdict is Verdict.DEFERRED:
        return f"**retried for {record.days:g} days**"
    return str(record.verdict)


def _knowledge(record: Record) -> str:
    if record.tells:
        return "with the text"
    return "with the code alone" if "521" in record.told else "without the text"


def _summary(fates: list[str]) -> str:
    """Name the modes only where they differ from the first."""
    others = [f"`{mode}`: {fate}" for mode, fate in zip(MODES, fates, strict=True) if fate != fates[0]]
    return "; ".join([fates[0], *others])


def main() -> None:
    """Let every sender try everything."""
    missing = {case.sender.missing() for case in ALL} - {""}
    if os.geteuid():
        missing.add("root")
    if missing:
        sys.exit(f"needs {', '.join(sorted(missing))}")
    with Records() as records:
        records.ask(ALL)
        for line in table(records):
            print(line)  # noqa: T201 - this is a program


if __name__ == "__main__":
    main()
