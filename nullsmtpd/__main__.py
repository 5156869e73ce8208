"""The command ``nullsmtpd``: from the shell to the server and back to an exit status."""

# Before anything else is imported: the event loop takes a tenth of a second to load, and until then the default action
# of SIGTERM would end us with a status that is not 0, or, as process 1 of a container, be lost. `_signal` and `posix`
# are built in; the `signal` module that wraps the former is slow to load itself.
import _signal  # type: ignore[import-not-found] # typeshed leaves it out
import os


def _end_at_once(number: int, frame: object) -> None:
    os._exit(0)


_signal.signal(_signal.SIGTERM, _end_at_once)
_signal.signal(_signal.SIGINT, _end_at_once)
_signal.signal(_signal.SIGUSR1, _signal.SIG_IGN)

import sys  # noqa: E402 - the handlers come first, see above

__all__ = ["main"]


def main() -> int:
    """Run the command with the arguments and the environment of this process; return its exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["check"]:
        return _check(arguments[1:])
    if arguments[:1] == ["relay"]:
        return _relay(arguments[1:])
    return _respond(arguments)


def _check(arguments: list[str]) -> int:
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1):
        _signal.signal(number, _signal.SIG_DFL)  # a check that was interrupted has not found all well
    from nullsmtpd.check.command import run

    return run(arguments, os.environ)


def _relay(arguments: list[str]) -> int:
    _open_standard_descriptors()
    from nullsmtpd.relay.command import run

    return run(arguments, os.environ)


def _respond(arguments: list[str]) -> int:
    from nullsmtpd.command import run_server
    from nullsmtpd.options import help_text, parse_options

    def serve_clients() -> None:
        options = parse_options(arguments, os.environ)
        _open_standard_descriptors()
        from nullsmtpd.server import serve

        serve(options)

    return run_server("nullsmtpd", arguments, help_text, serve_clients)


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


if __name__ == "__main__":
    sys.exit(main())
