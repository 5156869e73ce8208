"""The event loop of a daemon, in a process of its own: errors in callbacks, and signals once it has ended."""

import re
import subprocess
import sys

from support import PATIENCE


def run_python(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_an_error_in_a_callback_is_one_line_and_the_next_callback_runs() -> None:
    """An error that nobody foresaw costs one client, not the service; its text stays within the line."""
    result = run_python("""
import asyncio
from nullsmtpd.runtime.process import run

def fail():
    raise ValueError("two\\nlines")

async def serve(loop):
    loop.call_soon(fail)
    await asyncio.sleep(0.01)
    print("served")

run(serve)
""")
    assert (result.returncode, result.stdout) == (0, "served\n")
    assert re.fullmatch(r"\S+ internal-error message=.* exception=.*ValueError.*two.*lines.*\n", result.stderr)


def test_once_the_server_has_ended_signals_are_ignored() -> None:
    """The interpreter restores the default actions at its end, but not of what is ignored: the status remains 0."""
    result = run_python("""
import signal
from nullsmtpd.runtime.process import install_signal_handlers, run

async def serve(loop):
    install_signal_handlers(loop, lambda: None)

run(serve)
print(*(number.name for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN))
""")
    assert result.returncode == 0
    assert {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1"} <= set(result.stdout.split())
