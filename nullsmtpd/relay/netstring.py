"""Netstrings, as socketmap carries them: ``5:hello,`` (https://cr.yp.to/proto/netstrings.txt)."""

__all__ = ["NetstringError", "Netstrings", "netstring"]


class NetstringError(Exception):
    """What came is no netstring, or one of more octets than are taken; what follows cannot be understood."""


def netstring(octets: bytes) -> bytes:
    """Return ``octets`` with its length before it and a comma after it."""
    return b"%d:%b," % (len(octets), octets)


class Netstrings:
    """Takes netstrings out of octets that arrive in pieces of any size.

    ``limit``: the most octets that one of them may have; its length is looked at before the rest is waited for. What is
    taken out, and where the first mistake is, depends on the octets alone, not on the pieces.
    """

    __slots__ = ("_digits", "_limit", "_octets")

    def __init__(self, limit: int) -> None:
        """Start with nothing."""
        self._limit = limit
        self._digits = len(str(limit))
        self._octets = bytearray()

    def __len__(self) -> int:
        """Return how many octets wait for more, or to be taken out."""
        return len(self._octets)

    def feed(self, octets: bytes | bytearray | memoryview) -> None:
        """Add what has arrived."""
        self._octets += octets

    def take(self) -> bytes | None:
        """Take out the next netstring's octets; None while it is not complete. Raises `NetstringError`."""
        head = bytes(self._octets[: self._digits + 1])
        digits, colon, _ = head.partition(b":")
        length = self._length(digits, complete=bool(colon))
        if length is None:
            return None
        begin = len(digits) + len(colon)
        end = begin + length
        if len(self._octets) <= end:
            return None
        if self._octets[end] != ord(","):
            raise NetstringError("no comma after the octets")
        taken = bytes(self._octets[begin:end])
        del self._octets[: end + 1]
        return taken

    def _length(self, digits: bytes, *, complete: bool) -> int | None:
        """Return the length that ``digits`` give; None while more of them may come."""
        if not digits and not complete:
            return None
        if not digits.isdigit():
            raise NetstringError("no length in digits")
        if digits[:1] == b"0" and digits != b"0":
            raise NetstringError("a length with a leading zero")
        if int(digits) > self._limit:
            raise NetstringError(f"a length beyond {self._limit}")
        return int(digits) if complete else None
