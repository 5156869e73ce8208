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
    from nullsmtpd.cli.check_command import run

    return run(arguments, os.environ)


def _relay(arguments: list[str]) -> int:
    from nullsmtpd.cli.relay_command import run

    return run(arguments, os.environ)


def _respond(arguments: list[str]) -> int:
    from nullsmtpd.cli.command import run_server
    from nullsmtpd.cli.responder import help_text, parse_options

    def serve_clients() -> None:
        options = parse_options(arguments, os.environ)
        from nullsmtpd.responder.server import serve

        serve(options)

    return run_server("nullsmtpd", arguments, help_text, serve_clients)


if __name__ == "__main__":
    sys.exit(main())
