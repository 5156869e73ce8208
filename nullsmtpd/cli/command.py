"""What the commands that serve have in common: help, version, standard descriptors, exit status."""

import contextlib
import errno
import importlib
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence

from nullsmtpd import __version__
from nullsmtpd.cli.arguments import UsageError
from nullsmtpd.runtime.sockets import ListenError

__all__ = ["print_line", "run_server"]

STDOUT, STDERR = 1, 2

# What to do about an error of a listening socket; the last four are those of Unix sockets.
_HINTS = {
    errno.EADDRINUSE: "stop the program that uses it, or choose another address",
    errno.EACCES: "choose a port above 1023, grant CAP_NET_BIND_SERVICE, or use socket activation",
    errno.EAFNOSUPPORT: "this host does not have that address family; give an address of another, or :PORT",
    errno.EADDRNOTAVAIL: "this host does not have that address; give one of its own, or :PORT for all of them",
    errno.EINVAL: "give a link-local address with its interface, [fe80::1%eth0]:PORT, and an IPv4 address as HOST:PORT",
    errno.EMFILE: "raise the limit of open files of this process",
    errno.ENOENT: "create its directory first",
    errno.ENOTDIR: "choose a path whose directories are directories",
    errno.EEXIST: "remove that file, or choose another path",
    errno.EROFS: "choose a directory that this user may write to",
}


def run_server(  # noqa: PLR0913, PLR0917 - what the commands differ in
    name: str,
    help_text: Callable[[], str],
    parse: Callable[[Sequence[str], Mapping[str, str]], object],
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> int:
    """Print what ``--help`` or ``--version`` asks for, or else serve with the parsed options; return the exit status.

    ``name``: the command, for messages. ``module``: its function ``serve`` is called, and imported only then. Status 0:
    shut down by a signal; 1: cannot run; 2: invalid options.
    """
    if "--help" in arguments or "-h" in arguments:
        return print_line(STDOUT, help_text(), 0)
    if "--version" in arguments:
        return print_line(STDOUT, f"nullsmtpd {__version__}", 0)
    options, was_passed = None, "LISTEN_FDS" in environment  # read before it is removed
    try:
        _open_standard_descriptors()
        options = parse(arguments, environment)
        from nullsmtpd.runtime.event_loop import import_uvloop  # only now: a mistake in the options needs no event loop

        import_uvloop()
        importlib.import_module(module).serve(options)
    except UsageError as error:
        message, status = str(error), 2
    except OSError as error:
        message, status = _explain(error, options, was_passed=was_passed)
    else:
        return 0
    return print_line(STDERR, f"{name}: {message}", status)


def _explain(error: OSError, options: object, *, was_passed: bool) -> tuple[str, int]:
    """Return why the server cannot run, with the remedy, and the exit status."""
    if isinstance(error, ListenError):
        return _explain_listen_error(error, options, was_passed=was_passed), 1
    from nullsmtpd.runtime.privileges import AccountError, PrivilegeError

    if isinstance(error, AccountError):
        return f"--{error}", 2
    if isinstance(error, PrivilegeError):
        names = " ".join(f"--{key} {value}" for key in ("user", "group") if (value := getattr(options, key)))
        remedy = "start as root to change to another account"
        if not os.geteuid():
            remedy = "grant CAP_SETUID and CAP_SETGID, and in a user namespace setgroups(2), user_namespaces(7)"
        return f"{names}: {error.strerror}; {remedy}, or leave the options out", 1
    if error.filename and error.errno in {errno.EACCES, errno.ENOENT}:  # a part of the installation, or /dev/null
        return f"cannot run: {error.filename}: {error.strerror}", 1
    # No file descriptor or memory left for the event loop itself.
    return f"cannot run: {error.strerror}; raise the limits of this process", 1


def _explain_listen_error(error: ListenError, options: object, *, was_passed: bool) -> str:
    address, number = str(error.filename), error.errno or 0
    if address == "LISTEN_FDS":
        return f"{address}: {error.strerror}"
    hint = _HINTS.get(number, "")
    if isinstance(error.__cause__, socket.gaierror):
        hint = "give a name that resolves, or an address; after % in it an interface of this host"
    elif number == errno.EADDRINUSE and was_passed:  # to a wrapper that forks; it holds the port
        hint = "start nullsmtpd without the wrapper that the sockets were passed to, see listen-fds-ignored above"
    elif number == errno.EINVAL and error.__cause__ is None:  # not of bind(2), but of a socket that was passed in
        hint = "restart the program that passes it in"
    elif number == errno.EACCES and address.startswith("unix:"):
        hint = _HINTS[errno.EROFS]
    flag = "--metrics" if address == str(getattr(options, "metrics", None)) else "--listen"
    return f"{flag} {address}: {error.strerror}" + (f"; {hint}" if hint else "")


def _open_standard_descriptors() -> None:
    """Open /dev/null where stdin, stdout or stderr is closed: a client's socket must never become the log.

    And make writing to a terminal on stderr never block.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if os.isatty(2):
        # A terminal is writable while it has room for one octet, and a line then waits for a reader that may never
        # come. Opened anew, the terminal becomes non-blocking here without the shell's own descriptor changing.
        with contextlib.suppress(OSError):
            terminal = os.open("/dev/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(terminal, 2)
            os.close(terminal)


def print_line(descriptor: int, text: str, status: int) -> int:
    """Write to stdout or stderr, which may be closed; return the exit status."""
    octets = f"{text}\n".encode("ascii", "backslashreplace")
    with contextlib.suppress(OSError):
        while octets:
            if descriptor == STDOUT:  # it may be a pipe that another process has made non-blocking
                select.select((), (STDOUT,), ())
            octets = octets[os.write(descriptor, octets) :]
    return status
