"""What is alike in the commands that serve: help, version, standard descriptors, and how a failure becomes a status."""

import contextlib
import os
from collections.abc import Callable, Sequence

from nullsmtpd import __version__

__all__ = ["run_server"]


def run_server(name: str, arguments: Sequence[str], help_text: Callable[[], str], serve: Callable[[], None]) -> int:
    """Print what ``--help`` or ``--version`` asks for, or else call ``serve``; return the exit status, see --help.

    ``name``: the command as it is typed, before what is wrong. ``serve`` may raise `UsageError`, `ListenError`,
    `PrivilegeError` and `OSError`.
    """
    from nullsmtpd.cli.arguments import UsageError
    from nullsmtpd.runtime.privileges import PrivilegeError
    from nullsmtpd.runtime.sockets import ListenError

    if "--help" in arguments:
        return _say(1, help_text(), 0)
    if "--version" in arguments:
        return _say(1, f"nullsmtpd {__version__}\n", 0)
    _open_standard_descriptors()
    try:
        serve()
    except UsageError as error:
        return _say(2, f"{name}: {error}\n", 2)
    except (ListenError, PrivilegeError) as error:
        return _say(2, f"{name}: {error}\n", 1)
    except OSError as error:  # no descriptor or memory left for the event loop itself
        return _say(2, f"{name}: cannot start: {error.strerror}; see the limits of this process\n", 1)
    return 0


def _open_standard_descriptors() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed: a client's socket must never become our log.

    And see to it that stderr never makes us wait.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if os.isatty(2):
        # A terminal is writable while it has room for one octet, and a line then waits for a reader that may never
        # come. Opened anew, the terminal is told not to wait without the shell's own descriptor being told so too.
        with contextlib.suppress(OSError):
            terminal = os.open("/dev/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(terminal, 2)
            os.close(terminal)


def _say(descriptor: int, text: str, status: int) -> int:
    """Write to stdout or stderr, whether or not anyone listens there; return the exit status."""
    with contextlib.suppress(OSError):
        os.write(descriptor, text.encode())
    return status
