"""Dropping privileges once the sockets are bound: setgroups(2), setgid(2), setuid(2)."""

import errno
import grp
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

__all__ = ["Account", "AccountError", "PrivilegeError", "drop_privileges", "find_account"]


class Account(NamedTuple):
    """A user and a group by number; ``None`` leaves it unchanged, and a user never comes without a group."""

    uid: int | None
    gid: int | None


class AccountError(OSError):
    """There is no such account; the message is the reason, after ``user: 'NAME'`` or ``group: 'NAME'``."""


class PrivilegeError(OSError):
    """The privileges cannot be dropped; ``strerror`` is the reason."""


def find_account(user: str | None, group: str | None) -> Account:
    """Look up ``user`` and ``group``, by name or by number; a user without a group brings its primary group.

    Raises `AccountError` for an unknown name, and for a number without an entry when no group is given: the group would
    remain that of root.
    """
    gid = None if group is None else _number("group", group, grp.getgrnam)
    if user is None:
        return Account(None, gid)
    uid = _number("user", user, pwd.getpwnam)
    if gid is None:
        try:
            gid = (pwd.getpwuid(uid) if user.isdigit() else pwd.getpwnam(user)).pw_gid
        except KeyError:
            raise AccountError(f"user: {user!a} has no entry in the user database; give --group too") from None
    return Account(uid, gid)


def _number(kind: str, name: str, find: Callable[[str], Sequence[Any]]) -> int:
    try:
        number = int(name if name.isdigit() else find(name)[2])
    except KeyError:
        raise AccountError(f"{kind}: {name!a} does not exist; give a name or a number") from None
    # 2**32 - 1 is -1, which means "unchanged" to the system calls.
    if number >= 2**32 - 1:
        raise AccountError(f"{kind}: {name!a} is beyond the range of account numbers; give one below {2**32 - 1}")
    return number


def drop_privileges(account: Account) -> None:
    """Change to ``account`` for good, supplementary groups included, and verify it. Raises `PrivilegeError`.

    A process that is not root and is that account already stays as it is.
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
        raise PrivilegeError(error.errno, error.strerror) from None
    if not _is(account) or (gid is not None and os.getgroups() != [gid]) or (uid and _can_regain_root()):
        raise PrivilegeError(errno.EPERM, "the change did not take effect")


def _is(account: Account) -> bool:
    uids, gids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
    if sys.platform == "linux":  # macOS does not tell the saved ones
        uids, gids = set(os.getresuid()), set(os.getresgid())
    return (account.uid is None or uids == {account.uid}) and (account.gid is None or gids == {account.gid})


def _can_regain_root() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True
