"""Programs and libraries without a queue: each is told the host by its name, and ends when it has been refused."""

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from debian import Chroot, chroot
from network import SENDING, open_network
from receivers import receivers
from records import MESSAGES, SENDER, Fate, Message, Record, Stage
from senders import TLS_REQUIRED

__all__ = ["CLIENTS", "Client", "client_records"]

_PROGRAMS = Path(__file__).with_name("programs")
_THERE = "/srv/programs"

_PACKAGES = ("curl", "golang-go", "msmtp", "node-nodemailer", "nodejs", "python3", "python3-aiosmtplib", "swaks")

# The compiler is twice as big as everything else, and no longer needed.
_PREPARE = f"""
mkdir -p {_THERE}
cat > {_THERE}/send.go <<'END'
{(_PROGRAMS / "send_net_smtp.go").read_text()}
END
CGO_ENABLED=0 GOCACHE=/tmp/go GO111MODULE=off GOTOOLCHAIN=local go build -o {_THERE}/send_net_smtp {_THERE}/send.go
apt-get purge --quiet --yes --autoremove golang-go
"""

# A client has no memory for a next message, and no other MX than its argument.
_PURPOSES = ("first", "utf8", "ehlo")


class Client(NamedTuple):
    """A program that delivers, or ends with a status that is not 0.

    In ``command``, ``{mx}``, ``{sender}`` and ``{recipient}`` are replaced. It reads the message from standard input.
    ``version`` prints the version, with the first number in it.
    """

    name: str
    command: tuple[str, ...]
    version: tuple[str, ...]
    setting: str = ""

    def deliver(self, debian: Chroot, message: Message) -> tuple[Fate, str]:
        """Run the command to its end; return also what it printed."""
        values = {"mx": f"mx.{message.domain}", "sender": SENDER, "recipient": message.recipient}
        command = [part.format(**values) for part in self.command]
        done = subprocess.run(
            debian.command(*command),
            input=message.text(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
        )
        return Fate.FAILED if done.returncode else Fate.DELIVERED, done.stdout

    def version_in(self, debian: Chroot) -> str:
        """Return the first two numbers of its version."""
        printed = debian.run(*self.version)
        found = re.search(r"\d+(\.\d{1,3})?", printed)
        assert found, printed
        return found[0]


def client_records(suite: str) -> list[Record]:
    """Have every client in a release of Debian try to deliver the messages, in a network of its own."""
    return list(_client_records(suite))


def _client_records(suite: str) -> Iterator[Record]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nullsmtpd-clients-")))
        network = stack.enter_context(open_network(directory))
        stack.enter_context(receivers(network, directory))
        debian = stack.enter_context(
            chroot(suite, _PACKAGES, prepare=_PREPARE, network=network.prefix, hostname=SENDING)
        )
        shutil.copytree(_PROGRAMS, debian.root / _THERE.lstrip("/"), dirs_exist_ok=True)
        messages = [message for message in MESSAGES[0] if message.purpose in _PURPOSES]
        for client in CLIENTS:
            version = client.version_in(debian)
            for message in messages:
                fate, told = client.deliver(debian, message)
                yield Record(
                    sender=client.name,
                    setting=client.setting,
                    suite=suite,
                    version=version,
                    message=message,
                    fate=fate,
                    stage=Stage.AT_ONCE,
                    told=told.encode(),
                )


def _library(name: str, *program: str) -> Client:
    """Return a client of ours that uses a library; without arguments it prints the library's version."""
    return Client(name, (*program, "{mx}", "{sender}", "{recipient}"), program)


def _msmtp(setting: str = "", *options: str) -> Client:
    command = ("msmtp", "--host", "{mx}", *options, "--from", "{sender}", "--", "{recipient}")
    return Client("msmtp", command, ("msmtp", "--version"), setting)


def _curl(setting: str = "", *options: str) -> Client:
    command = (
        *("curl", "--no-progress-meter", "--max-time", "10", *options, "smtp://{mx}/", "--upload-file", "-"),
        *("--mail-from", "{sender}", "--mail-rcpt", "{recipient}"),
    )
    return Client("curl", command, ("curl", "--version"), setting)


CLIENTS: tuple[Client, ...] = (
    _library("smtplib of Python", "python3", f"{_THERE}/send_smtplib.py"),
    _library("aiosmtplib", "python3", f"{_THERE}/send_aiosmtplib.py"),
    _library("nodemailer", "node", f"{_THERE}/send_nodemailer.js"),
    _library("net/smtp of Go", f"{_THERE}/send_net_smtp"),
    _msmtp(),
    _msmtp(TLS_REQUIRED, "--tls=on"),
    _curl(),
    _curl(TLS_REQUIRED, "--ssl-reqd"),
    Client(
        name="swaks",
        command=("swaks", "--server", "{mx}", "--from", "{sender}", "--to", "{recipient}", "--data", "@-"),
        version=("swaks", "--version"),
    ),
)
