"""Dropping privileges once the sockets are bound: setgroups(2), setgid(2), setuid(2)."""

import errno
import grp
import os
import pwd
import sys
from typing import NamedTuple

__all__ = ["Account", "AccountError", "PrivilegeError", "drop_privileges", "find_account"]


class Account(NamedTuple):
    """A user and a group by number; ``None`` leaves it unchanged, and a user never comes without a group."""

    uid: int | None
    gid: int | None


class AccountError(LookupError):
    """There is no such account: ``kind`` is ``user`` or ``group``, ``value`` its name, and the message the reason."""

    def __init__(self, kind: str, value: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.value = value


class PrivilegeError(OSError):
    """The privileges cannot be dropped; ``strerror`` is the reason."""


def find_account(user: str | None, group: str | None) -> Account:
    """Look up ``user`` and ``group``, by name or by number; a user without a group brings its primary group.

    Raises `AccountError` for an unknown name, and for a number without an entry when no group is given: the group would
    remain that of root.
    """
    gid = None if group is None else _gid(group)
    if user is None:
        return Account(None, gid)
    try:
        entry = pwd.getpwuid(_number("user", user)) if user.isdigit() else pwd.getpwnam(user)
    except KeyError:
        if not user.isdigit():
            raise AccountError("user", user, "does not exist; give a name or a number") from None
        if gid is None:
            raise AccountError("user", user, "has no entry in the user database; give --group too") from None
        return Account(_number("user", user), gid)
    return Account(entry.pw_uid, entry.pw_gid if gid is None else gid)


def _gid(group: str) -> int:
    if group.isdigit():
        return _number("group", group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise AccountError("group", group, "does not exist; give a name or a number") from None


def _number(kind: str, text: str) -> int:
    # 2**32 - 1 is -1, which means "unchanged" to the system calls.
    if (number := int(text)) >= 2**32 - 1:
        raise AccountError(kind, text, "is beyond the range of account numbers; give one below 4294967295")
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
            _set_groups(gid)
            os.setgid(gid)
        if uid is not None:
            os.setuid(uid)
    except OSError as error:
        raise PrivilegeError(error.errno, error.strerror) from None
    if not _is(account) or (gid is not None and os.getgroups() != [gid]) or (uid and _can_regain_root()):
        raise PrivilegeError(errno.EPERM, "the change did not take effect")


def _set_groups(gid: int) -> None:
    try:
        os.setgroups([gid])
    except PermissionError:
        if os.geteuid():
            raise
        reason = "root may not call setgroups(2) here, as in a user namespace that denies it, user_namespaces(7)"
        raise PrivilegeError(errno.EPERM, reason) from None


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
