"""Which command? ``nullsmtpd``, ``nullsmtpd check`` or ``nullsmtpd relay``."""

# Signals come first: the event loop takes a tenth of a second to load, and until then the default action of SIGTERM
# would end the process with a status other than 0, or, as process 1 of a container, be lost. `_signal` and `posix` are
# built in; the `signal` module that wraps the former is slow to load itself.
import _signal  # type: ignore[import-not-found] # typeshed leaves it out
import os
import sys

__all__ = ["main"]

# Whoever starts a daemon may send it any signal, and none may reset its clients: these have no use here. SIGTTOU and
# SIGTTIN stop a background job whose terminal has `stty tostop`; ignoring SIGCHLD makes the kernel reap the orphans
# that process 1 inherits.
_IGNORED = (
    *("SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT"),
    *("SIGTTOU", "SIGTTIN", "SIGCHLD"),
)


def _exit_at_once(number: int, frame: object) -> None:
    os._exit(0)


def _prepare_signals() -> None:
    """Set the dispositions and the mask of a daemon, whatever the parent has left.

    Until `nullsmtpd.runtime.process.install_signal_handlers` termination signals exit at once, with no client lost yet;
    SIGHUP and SIGUSR1 are blocked and wait. A SIGHUP that the parent ignores, as nohup(1) does, remains ignored.
    """
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT):
        _signal.signal(number, _exit_at_once)
    ignored = [getattr(_signal, name) for name in _IGNORED if hasattr(_signal, name)]
    if hasattr(_signal, "SIGRTMIN"):
        ignored += range(_signal.SIGRTMIN, _signal.SIGRTMAX + 1)
    for number in ignored:
        _signal.signal(number, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, (_signal.SIGHUP, _signal.SIGUSR1))


def _exit_interrupted(number: int, frame: object) -> None:
    os._exit(128 + number)


# A check that was interrupted has not passed, so it keeps the default actions. That of SIGINT replaces Python's, which
# prints a traceback and waits for threads and for the system's resolver; process 1 has no default actions.
if sys.argv[1:2] != ["check"]:
    _prepare_signals()
elif _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # not ignored, as a shell does in the background
    _signal.signal(_signal.SIGINT, _exit_interrupted if os.getpid() == 1 else _signal.SIG_DFL)


def main() -> int:
    """Run the command with the arguments and the environment of this process; return its exit status.

    Raises `SystemExit` with a message, which is status 1, when a part of the installation is missing or unreadable.
    """
    try:
        return _run(sys.argv[1:])
    except (ImportError, PermissionError) as error:
        sys.exit(f"nullsmtpd: cannot run: {error}; reinstall nullsmtpd and uvloop")


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["check"]:
        from nullsmtpd.cli.check import run as run_check

        return run_check(arguments[1:], os.environ)
    if arguments[:1] == ["relay"]:
        from nullsmtpd.cli.relay import run as run_relay

        return run_relay(arguments[1:], os.environ)
    from nullsmtpd.cli.responder import run as run_responder

    return run_responder(arguments, os.environ)


if __name__ == "__main__":
    sys.exit(main())
