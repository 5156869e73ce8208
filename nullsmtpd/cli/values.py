"""Values of options, converted from text; a `ValueError` has what would be valid, to be read after the text."""

import re
from collections.abc import Callable
from functools import partial

from nullsmtpd.runtime.sockets import Address, parse_address

__all__ = ["boolean", "matching", "metrics_address", "positive_int", "positive_seconds", "seconds", "user_or_group"]

_MAX_INT = 2**31 - 1  # listen(2) takes an int
_YES, _NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")


def matching(pattern: str, refusal: str) -> Callable[[str], str]:
    """Return a function that takes a text as it is, if the pattern matches all of it."""

    def validate(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(refusal)
        return text

    return validate


#: Takes what can be a user or a group.
user_or_group = matching(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?",
    "is neither a name nor a number; give one as in /etc/passwd or /etc/group",
)


def seconds(text: str, *, may_be_zero: bool = True, maximum: float = 3600) -> float:
    """Parse a number of seconds, up to an hour if not less."""
    # No float() alone: it also takes "nan", "inf", "1_0" and digits of other scripts.
    is_number = re.fullmatch(r"[0-9]{1,15}(\.[0-9]{0,15})?|\.[0-9]{1,15}", text)
    if not is_number or float(text) > maximum or not (may_be_zero or float(text)):
        raise ValueError(f"is not a number of seconds {'from 0' if may_be_zero else 'above 0 and up'} to {maximum:g}")
    return float(text)


#: Parses a number of seconds above 0.
positive_seconds = partial(seconds, may_be_zero=False)


def positive_int(text: str) -> int:
    """Parse a whole number from 1 to what a C int holds."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not 1 <= int(text) <= _MAX_INT:
        raise ValueError(f"is not a whole number from 1 to {_MAX_INT}")
    return int(text)


def boolean(text: str) -> bool:
    """Parse a yes or no."""
    if text.lower() not in _YES + _NO:
        raise ValueError("is neither yes nor no; give 1 or 0")
    return text.lower() in _YES


def metrics_address(text: str) -> Address:
    """Parse ``HOST:PORT``; metrics are never served on all addresses by mistake."""
    address = parse_address(text)
    if address.host is None:
        raise ValueError("has no host; give HOST:PORT or [v6]:PORT, such as 127.0.0.1:9521")
    return address
