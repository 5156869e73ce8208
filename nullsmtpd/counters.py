"""What is counted: numbers an operator asks for, at the price of an addition each. Octets are never counted."""

import errno

__all__ = ["Counters"]


class Counters:
    """Totals since the process started."""

    __slots__ = ("accept_errors", "access_left_out", "connections", "cut_short", "drained", "send_errors", "sessions")

    def __init__(self) -> None:
        """Start at nothing."""
        #: Connections accepted.
        self.connections = 0
        #: Lingering sockets closed early to make room for newer ones.
        self.cut_short = 0
        #: Clients that were still sending when their linger was up, and whose input was then discarded.
        self.drained = 0
        #: Dialogues begun (modes session and mail).
        self.sessions = 0
        #: Clients that were gone before the line could be sent.
        self.send_errors = 0
        #: Lines that the access log left out because there were too many.
        self.access_left_out = 0
        #: Failed accepts by errno.
        self.accept_errors: dict[int, int] = {}

    def count_accept_error(self, number: int | None) -> None:
        """Count one failed accept with this errno."""
        number = number or 0
        self.accept_errors[number] = self.accept_errors.get(number, 0) + 1

    def fields(self) -> dict[str, int | str]:
        """Return the counters as the fields of the ``stats`` line; accept errors as ``EMFILE:3,ENFILE:1``, or 0."""
        by_errno = ",".join(f"{errno.errorcode.get(n, n)}:{count}" for n, count in sorted(self.accept_errors.items()))
        return {
            "connections": self.connections,
            "cut_short": self.cut_short,
            "drained": self.drained,
            "sessions": self.sessions,
            "send_errors": self.send_errors,
            "accept_errors": by_errno or 0,
        }
