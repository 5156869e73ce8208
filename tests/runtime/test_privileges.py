"""Whom the daemon becomes, seen from outside in /proc."""

import grp
import os
import pwd
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import LINE, Daemon, Start, connect, read_all, require_root, run_cli

from nullsmtpd.cli.arguments import UsageError
from nullsmtpd.runtime.privileges import Account, PrivilegeError, become, find_account

NOBODY = pwd.getpwnam("nobody")
UNUSED = 64_321


def status(daemon: Daemon, field: str, pid: int | None = None) -> list[str]:
    match = re.search(rf"^{field}:(.*)$", Path(f"/proc/{pid or daemon.pid}/status").read_text(), re.MULTILINE)
    assert match
    return match[1].split()


@pytest.mark.parametrize(
    ("arguments", "uid", "gid"),
    [
        (["--user", "nobody"], NOBODY.pw_uid, NOBODY.pw_gid),
        (["--user", str(NOBODY.pw_uid)], NOBODY.pw_uid, NOBODY.pw_gid),
        (["--user", "nobody", "--group", "daemon"], NOBODY.pw_uid, grp.getgrnam("daemon").gr_gid),
        (["--user", str(UNUSED), "--group", str(UNUSED)], UNUSED, UNUSED),
        (["--user", "nobody", "--workers", "2"], NOBODY.pw_uid, NOBODY.pw_gid),
        (["--user", "nobody", "--mode", "mail"], NOBODY.pw_uid, NOBODY.pw_gid),
    ],
)
def test_root_is_given_up_for_good(start: Start, arguments: list[str], uid: int, gid: int) -> None:
    """All user and group ids are the new ones, there are no other groups and no capabilities, and it answers."""
    require_root()
    daemon = start(*arguments)
    for pid in [daemon.pid, *daemon.children()]:
        assert status(daemon, "Uid", pid) == [str(uid)] * 4
        assert status(daemon, "Gid", pid) == [str(gid)] * 4
        assert status(daemon, "Groups", pid) == [str(gid)]
        for capabilities in ("CapPrm", "CapEff", "CapAmb"):
            assert int(status(daemon, capabilities, pid)[0], 16) == 0
    with connect(daemon.address) as client:
        client.sendall(b"QUIT\r\n")
        assert read_all(client).startswith(b"220 " if "mail" in arguments else LINE)
    assert not daemon.lines("running-as-root")
    assert daemon.stop() == 0


def test_started_as_root_without_a_user_it_says_so_once(start: Start) -> None:
    """One line, whether or not there are workers; whoever asks for root by name is not told."""
    require_root()
    assert len(start().lines("running-as-root")) == 1
    assert len(start("--workers", "2").lines("running-as-root")) == 1
    assert not start("--user", "root").lines("running-as-root")


def test_sockets_are_bound_before_the_user_changes(start: Start) -> None:
    """A port below 1024 is one that only root may bind."""
    require_root()
    start("--user", "nobody", "--workers", "2", "--listen", "127.82.1.1:25", listen=None)
    with connect(("127.82.1.1", 25)) as client:
        assert read_all(client) == LINE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--user", "no-such-user"], "--user: 'no-such-user' does not exist; give a name or a number"),
        (["--group", "no-such-group"], "--group: 'no-such-group' does not exist; give a name or a number"),
        (["--user", str(UNUSED)], f"--user: '{UNUSED}' has no entry in the user database; give --group too"),
        (
            ["--user", "nobody", "--group", "4294967295"],
            "--group: '4294967295' is beyond what a number of an account can be",
        ),
        (["--user", "99999999999"], "--user: '99999999999' is beyond what a number of an account can be"),
    ],
)
def test_an_account_that_cannot_be_is_a_mistake(arguments: list[str], message: str) -> None:
    """One line with the option and the value; status 2."""
    run = run_cli("--listen", "127.0.0.1:0", *arguments)
    assert (run.returncode, run.stderr) == (2, f"nullsmtpd: {message}\n")


def in_a_child(uid: int, account: Account) -> str:
    """Call `become` in a forked process of user ``uid``; return how it ended."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            become(account)
            os.write(writer, b"became")
        except PrivilegeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as outcome:
        return outcome.read()


def test_who_is_not_root_cannot_become_another() -> None:
    """One line with the account and the way out; to stay oneself is no change."""
    require_root()
    refusal = "Operation not permitted; start as root to become another, or leave the options out"
    assert in_a_child(UNUSED, Account(NOBODY.pw_uid, NOBODY.pw_gid)) == (
        f"--user {NOBODY.pw_uid} --group {NOBODY.pw_gid}: {refusal}"
    )
    assert in_a_child(UNUSED, Account(None, NOBODY.pw_gid)) == f"--group {NOBODY.pw_gid}: {refusal}"
    assert in_a_child(UNUSED, Account(UNUSED, UNUSED)) == "became"
    assert in_a_child(UNUSED, Account(None, None)) == "became"


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", fullmatch=True))
def test_any_name_is_found_or_refused_in_a_line(name: str) -> None:
    """Invariant: an account in range with a group, or UsageError that names the option."""
    try:
        account = find_account(name, None)
    except UsageError as error:
        assert re.fullmatch(r"--user: '.*' (does not exist|has no entry|is beyond).*", str(error))
    else:
        assert account.uid is not None
        assert account.gid is not None
