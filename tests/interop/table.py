"""Print as Markdown what real senders do with a host that answers 521: ``python tests/interop/table.py``, as root."""

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for conftest, as pytest has it

from attempt import Record, attempt
from senders import SENDERS

__all__ = ["markdown"]

MODES = ("close",)


def markdown(records: Iterable[Record]) -> Iterable[str]:
    """Return the lines of the table, a row for each record."""
    yield "| sender | version | mode | the message is | the user sees the text | sent after the greeting |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        verdict = record.verdict if record.status is None else f"{record.verdict} (status {record.status})"
        sent = " ".join(line.partition(" ")[0] for text in record.sent for line in text.splitlines()) or "nothing"
        cells = (record.sender, record.version, record.mode, verdict, "yes" if record.tells else "no", sent)
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Let every sender try in every mode."""
    records = (attempt(sender, mode=mode) for sender in SENDERS for mode in MODES)
    for line in markdown(records):
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
