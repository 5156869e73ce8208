"""Clients: programs and libraries without a queue, each told the host by its name."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from network import Network
from senders import PATIENCE, SENDER, Outcome, Verdict, message_to

__all__ = ["CLIENTS", "Client"]

_PROGRAMS = Path(__file__).with_name("programs")


class Client(NamedTuple):
    """A program that delivers, or ends with a status that is not 0.

    In ``command``, ``{mx}``, ``{sender}`` and ``{recipient}`` are replaced. It reads the message from standard input.
    ``version`` prints the version, with the first number in it, or fails where the program is not there.
    """

    name: str
    command: tuple[str, ...]
    version: tuple[str, ...]
    setting: str = ""

    def missing(self) -> str:
        """Return the program's name if it does not run here."""
        return "" if _version(self.version) else self.name

    def deliver(self, network: Network, domain: str, hear_out: Callable[[], object]) -> Outcome:
        """Run the command to its end."""
        values = {"mx": f"mx.{domain}", "sender": SENDER, "recipient": f"bob@{domain}"}
        done = _run([*network.prefix, *(part.format(**values) for part in self.command)], message_to(domain))
        verdict = Verdict.FAILED if done.returncode else Verdict.DELIVERED
        return Outcome(_version(self.version), verdict, done.stdout, "", done.returncode)


@functools.cache
def _version(command: Sequence[str]) -> str:
    try:
        done = _run(command)
    except FileNotFoundError:
        return ""
    found = re.search(r"\d[\w.]*", done.stdout)
    return found[0] if found and not done.returncode else ""


def _run(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    # Debian's modules are not where every node looks, and Go asks nobody for modules that it does not need.
    settings = {"NODE_PATH": "/usr/share/nodejs", "GO111MODULE": "off", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    return subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env=os.environ | settings,
        check=False,
    )


def _library(name: str, *program: str) -> Client:
    """Return a client of ours that uses a library; without arguments it prints the library's version."""
    return Client(name, (*program, "{mx}", "{sender}", "{recipient}"), program)


CLIENTS: tuple[Client, ...] = (
    _library("smtplib of Python", sys.executable, str(_PROGRAMS / "send_smtplib.py")),
    _library("aiosmtplib", sys.executable, str(_PROGRAMS / "send_aiosmtplib.py")),
    _library("nodemailer", "node", str(_PROGRAMS / "send_nodemailer.js")),
    _library("net/smtp of Go", "go", "run", str(_PROGRAMS / "send_net_smtp.go")),
    Client(
        name="msmtp",
        command=("msmtp", "--host", "{mx}", "--from", "{sender}", "--", "{recipient}"),
        version=("msmtp", "--version"),
    ),
    Client(
        name="curl",
        command=(
            *("curl", "--no-progress-meter", "--max-time", "10", "smtp://{mx}/", "--upload-file", "-"),
            *("--mail-from", "{sender}", "--mail-rcpt", "{recipient}"),
        ),
        version=("curl", "--version"),
    ),
    Client(
        name="swaks",
        command=("swaks", "--server", "{mx}", "--from", "{sender}", "--to", "{recipient}", "--data", "@-"),
        version=("swaks", "--version"),
    ),
)
