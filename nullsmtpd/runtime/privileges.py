"""Whom to become once the sockets are bound: setgroups(2), setgid(2), setuid(2), and no way back."""

import contextlib
import grp
import os
import pwd
from typing import NamedTuple

from nullsmtpd.cli.arguments import UsageError, shown

__all__ = ["Account", "PrivilegeError", "become", "find_account"]


class Account(NamedTuple):
    """A user and a group by number; ``None`` stays as it is, and a user never comes without a group."""

    uid: int | None
    gid: int | None


class PrivilegeError(Exception):
    """The account cannot be had; the message is one line that says why, and the way out."""


def find_account(user: str | None, group: str | None) -> Account:
    """Look ``user`` and ``group`` up, by name or by number; a user without a group brings the one of its entry.

    Raises `nullsmtpd.cli.arguments.UsageError` for a name that nobody has, and for a number without an entry when no group
    is given: the group would remain that of root.
    """
    gid = None if group is None else _gid(group)
    if user is None:
        return Account(None, gid)
    try:
        entry = pwd.getpwuid(_number(user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdigit():
            raise UsageError(f"--user: {shown(user)} does not exist; give a name or a number") from None
        if gid is None:
            raise UsageError(f"--user: {shown(user)} has no entry in the user database; give --group too") from None
        return Account(_number(user), gid)
    return Account(entry.pw_uid, entry.pw_gid if gid is None else gid)


def _gid(group: str) -> int:
    if group.isdigit():
        return _number(group, "--group")
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"--group: {shown(group)} does not exist; give a name or a number") from None


def _number(text: str, option: str = "--user") -> int:
    # 2**32 - 1 is -1, which means "leave it" to the system calls.
    if (number := int(text)) >= 2**32 - 1:
        raise UsageError(f"{option}: {shown(text)} is beyond what a number of an account can be")
    return number


def become(account: Account) -> None:
    """Give up what the process is for ``account``, supplementary groups too; check that it holds.

    Whoever is not root and is that account already stays as it is. Raises `PrivilegeError`.
    """
    uid, gid = account
    if os.geteuid() and _is(account):
        return
    try:
        if gid is not None:
            os.setgroups([gid])
            os.setgid(gid)
        if uid is not None:
            os.setuid(uid)
    except OSError as error:
        raise PrivilegeError(_refused(account, error.strerror)) from None
    if not _is(account) or (gid is not None and os.getgroups() != [gid]) or (uid and _can_return()):
        raise PrivilegeError(_refused(account, "the change did not hold"))


def _is(account: Account) -> bool:
    uid, gid = account
    return (uid is None or _uids() == {uid}) and (gid is None or _gids() == {gid})


def _uids() -> set[int]:
    """Return the real and the effective user, and the saved one where it can be asked for (not on macOS)."""
    return set(os.getresuid()) if hasattr(os, "getresuid") else {os.getuid(), os.geteuid()}


def _gids() -> set[int]:
    return set(os.getresgid()) if hasattr(os, "getresgid") else {os.getgid(), os.getegid()}


def _can_return() -> bool:
    """Tell whether root can be had back."""
    with contextlib.suppress(OSError):
        os.setuid(0)
        return True
    return False


def _refused(account: Account, reason: str | None) -> str:
    names = [
        f"--{name} {number}" for name, number in zip(("user", "group"), account, strict=True) if number is not None
    ]
    return f"{' '.join(names)}: {reason}; start as root to become another, or leave the options out"
