"""The command ``nullsmtpd relay``: from its arguments to the server and back to an exit status."""

import contextlib
import os
from collections.abc import MutableMapping, Sequence

from nullsmtpd import __version__
from nullsmtpd.arguments import UsageError

__all__ = ["run"]


def run(arguments: Sequence[str], environment: MutableMapping[str, str]) -> int:
    """Run the command with the arguments after ``relay``; return its exit status, see --help."""
    from nullsmtpd.relay.options import help_text, parse_options

    if "--help" in arguments:
        return _say(1, help_text(), 0)
    if "--version" in arguments:
        return _say(1, f"nullsmtpd {__version__}\n", 0)
    from nullsmtpd.listeners import ListenError
    from nullsmtpd.null_mx import MissingExtraError, load_extra
    from nullsmtpd.privileges import PrivilegeError

    try:
        options = parse_options(arguments, environment)
        load_extra()
        from nullsmtpd.relay.server import serve

        serve(options, environment)
    except (UsageError, MissingExtraError) as error:
        return _say(2, f"nullsmtpd relay: {error}\n", 2)
    except (ListenError, PrivilegeError) as error:
        return _say(2, f"nullsmtpd relay: {error}\n", 1)
    except OSError as error:  # no descriptor or memory left for the event loop itself
        return _say(2, f"nullsmtpd relay: cannot start: {error.strerror}; see the limits of this process\n", 1)
    return 0


def _say(descriptor: int, text: str, status: int) -> int:
    """Write to stdout or stderr, whether or not anyone listens there; return the exit status."""
    with contextlib.suppress(OSError):
        os.write(descriptor, text.encode())
    return status
