"""Print what real senders do with a host that refuses mail: ``python tests/interop/table.py``, as root.

The README here has the tables, the project's an excerpt; the tests of the senders fail where they differ.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # for support, as pytest has it

from client_programs import client_records
from debian import SUITES
from records import GREETED_BY_521, Fate, Record, Stage, select
from senders import RELAYS, Relay

__all__ = ["AT_ONCE", "TABLES", "Answers", "ask_all"]

#: How many senders run at a time. Most of their time is waiting for their own timers.
AT_ONCE = 6


class Answers(NamedTuple):
    """The records of each mail server, and of all the programs, in each release of Debian."""

    relays: dict[tuple[Relay, str], Future[list[Record]]]
    programs: dict[str, Future[list[Record]]]


def ask_all(pool: ThreadPoolExecutor) -> Answers:
    """Have every sender in every suite deliver everything; first those that take longest."""
    cases = [(relay, suite) for relay in RELAYS for suite in SUITES]
    relays = {(relay, suite): pool.submit(relay.records, suite) for relay, suite in reversed(cases)}
    programs = {suite: pool.submit(client_records, suite) for suite in SUITES}
    return Answers({case: relays[case] for case in cases}, programs)


def _mail_servers(answers: Answers) -> Iterator[str]:
    """Make the lines of the table of mail servers."""
    head = ("mail server", "521 as greeting", "521 to MAIL", "521 to EHLO", "with a second MX", "null MX")
    return _table(head, [future.result() for future in answers.relays.values()], _cells_of_relay)


def _programs(answers: Answers) -> Iterator[str]:
    """Make the lines of the table of programs without a queue."""
    head = ("program", "521 as greeting", "521 to MAIL", "521 to EHLO")
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for future in answers.programs.values():
        for record in future.result():
            groups.setdefault((record.sender, record.setting, record.suite), []).append(record)
    return _table(head, groups.values(), _cells_of_program)


def _excerpt(answers: Answers) -> Iterator[str]:
    """Make the lines of the short table: mail servers as they come."""
    head = ("mail server", "modes `close` and `session`", "mode `mail`")
    return _table(head, [future.result() for (r, _), future in answers.relays.items() if not r.setting], _cells_of_few)


#: What each of the tables is called where it is shown, and what makes it.
TABLES: dict[str, Callable[[Answers], Iterator[str]]] = {
    "mail servers": _mail_servers,
    "programs": _programs,
    "senders": _excerpt,
}


def _table(
    head: tuple[str, ...], groups: Iterable[list[Record]], cells_of: Callable[[list[Record]], Iterable[str]]
) -> Iterator[str]:
    """Make a row of each group; rows of one sender with the same cells become one."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for records in groups:
        first = records[0]
        rows.setdefault((first.sender, first.setting, *cells_of(records)), []).append(first.version)
    for cells in (head, ("---",) * len(head)):
        yield f"| {' | '.join(cells)} |"
    for (sender, setting, *rest), versions in rows.items():
        name = f"{sender} {' and '.join(dict.fromkeys(versions))}"
        shown = f", `{setting}`" if "=" in setting else f", {setting}" if setting else ""
        yield f"| {' | '.join((name + shown, *rest))} |"


def _cells_of_relay(records: list[Record]) -> Iterator[str]:
    yield _two("next message", select(records, "first", GREETED_BY_521), select(records, "next", GREETED_BY_521))
    yield _two("address in UTF-8", select(records, "first next", ("mail",)), select(records, "utf8", ("mail",)))
    yield _each(_end(record) for record in select(records, "ehlo"))
    greeted = _each(record.fate for record in select(records, "spared", GREETED_BY_521))
    at_mail = _each(record.fate for record in select(records, "spared", ("mail",)))
    yield greeted if greeted == at_mail else f"{greeted}; 521 to MAIL: {at_mail}"
    yield _each(_end(record, is_521=False) for record in select(records, "null"))


def _cells_of_program(records: list[Record]) -> Iterator[str]:
    yield _each(_told(record) for record in select(records, "first", GREETED_BY_521))
    yield _each(_told(record) for record in select(records, "first utf8", ("mail",)))
    yield _each(_told(record) for record in select(records, "ehlo"))


def _cells_of_few(records: list[Record]) -> Iterator[str]:
    first, later = (
        _each(_in_short(r) for r in select(records, purpose, GREETED_BY_521)) for purpose in ("first", "next")
    )
    yield first if first == later else f"{first}; the next message {later}"
    yield _each(_in_short(record) for record in select(records, "first next", ("mail",)))


def _two(label: str, records: list[Record], others: list[Record]) -> str:
    first, second = (_each(_end(record) for record in both) for both in (records, others))
    return first if first == second else f"{first}; {label}: {second}"


def _each(cells: Iterable[str]) -> str:
    """Return the one text that all cells have, or each that occurs."""
    return "; ".join(dict.fromkeys(cells))


def _end(record: Record, *, is_521: bool = True) -> str:
    if record.fate is Fate.NOT_TAKEN:
        return "cannot send it"
    text = (": text" if record.has_text else ": no text") if is_521 else ""
    return f"{_when(record)}{text}{f', `{record.status}`' if record.status else ''}"


def _when(record: Record) -> str:
    if record.stage is not Stage.LAST:
        return f"{record.stage}" if record.stage is Stage.AT_ONCE else f"**{record.stage}**"
    warning = f" (warning after {record.warned} hours)" if record.warned else ""
    return f"**after {record.days} days**{warning}"


def _in_short(record: Record) -> str:
    return f"{_when(record)}, {'with' if record.has_text else 'without'} the text"


def _told(record: Record) -> str:
    return "text" if record.has_text else "code alone" if record.has_code else "no text, no code"


def main() -> None:
    """Print all tables."""
    if os.geteuid():
        sys.exit("needs root")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = ask_all(pool)
        for name, make in TABLES.items():
            print(f"<!-- {name} -->", *make(answers), f"<!-- /{name} -->", sep="\n", end="\n\n")  # noqa: T201


if __name__ == "__main__":
    main()
