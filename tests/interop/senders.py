"""Real senders: how each is installed and set up, how it is given one message, and how it tells what became of it."""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from machine import boot, build_layer
from network import SENDING, Network

__all__ = ["CLIENTS", "RELAYS", "Client", "Outcome", "Relay", "Sender", "Verdict"]

# Seconds. OpenSMTPD alone takes 11 to say that it defers; a relay that retries does so after minutes.
_PATIENCE = 60.0

_FROM = f"alice@{SENDING}"


class Verdict(StrEnum):
    """What becomes of a message, in the words of the README's table."""

    BOUNCED = "bounced at once"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    FAILED = "failed at once"


class Outcome(NamedTuple):
    """``told``: all that the user gets to read. ``log``: what the sender noted, for the postmaster."""

    version: str
    verdict: Verdict
    told: str
    log: str
    status: int | None = None


class Sender(Protocol):
    """Something that delivers mail."""

    @property
    def name(self) -> str:
        """The name in the table."""

    def deliver(self, network: Network, domain: str) -> Outcome:
        """Try to deliver one message to bob at this domain, and wait until it is clear what becomes of it."""


class Relay(NamedTuple):
    """A mail server with a queue, installed from Debian in a machine of its own.

    ``set_up``: a shell script on top of Debian's stock configuration that also starts it. ``submit``: a command that
    takes a message on standard input; the recipient is appended. ``queue``: a shell command that prints what is queued,
    or nothing. ``patterns``: how its log at ``log`` tells the verdict.
    """

    name: str
    packages: tuple[str, ...]
    selections: str
    set_up: str
    submit: tuple[str, ...]
    queue: str
    log: str
    patterns: dict[Verdict, str]

    def deliver(self, network: Network, domain: str) -> Outcome:
        """Submit a message locally, and wait until log, queue and the author's mailbox agree on what became of it."""
        layer = build_layer(self.packages[0], self.packages, self.selections)
        with boot(network, layer) as machine:
            machine.run("sh", "-e", "-c", self.set_up)
            machine.run(*self.submit, f"bob@{domain}", stdin=_message(domain))
            deadline = time.monotonic() + _PATIENCE
            while True:
                log, queue, mailbox = (
                    machine.read(self.log),
                    machine.run("sh", "-c", self.queue),
                    machine.read("/var/mail/alice"),
                )
                if (verdict := self._verdict(log, queue, mailbox)) is not None:
                    version = machine.run("dpkg-query", "--show", "--showformat=${Version}", self.packages[0])
                    return Outcome(version, verdict, mailbox, log)
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self.name}: no verdict\n{log=!s}\n{queue=!s}\n{mailbox=!s}")
                time.sleep(0.05)

    def _verdict(self, log: str, queue: str, mailbox: str) -> Verdict | None:
        for verdict, pattern in self.patterns.items():
            if re.search(pattern, log, re.MULTILINE):
                is_queued, is_returned = verdict is Verdict.DEFERRED, verdict is Verdict.BOUNCED
                if bool(queue.strip()) == is_queued and bool(mailbox) == is_returned:
                    return verdict
        return None


class Client(NamedTuple):
    """A program without a queue: it delivers, or it ends with a status that is not 0.

    In ``command``, ``{mx}``, ``{domain}``, ``{sender}`` are replaced. It reads the message from standard input.
    """

    name: str
    command: tuple[str, ...]
    version: tuple[str, ...]

    def deliver(self, network: Network, domain: str) -> Outcome:
        """Run the command to its end."""
        values = {"mx": f"mx.{domain}", "domain": domain, "sender": _FROM}
        command = [part.format(**values) for part in self.command]
        done = _run([*network.prefix, *command], _message(domain))
        found = re.search(r"\d[\w.]*", _run(self.version, "").stdout)
        verdict = Verdict.FAILED if done.returncode else Verdict.DELIVERED
        return Outcome(found[0] if found else "?", verdict, done.stdout, "", done.returncode)


def _run(command: Sequence[str], stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )


def _message(domain: str) -> str:
    return f"From: {_FROM}\nTo: bob@{domain}\nSubject: Friday\n\nAre you coming?\n"


def _postfix(name: str, *settings: str) -> Relay:
    # "postfix start" alone would leave the chroot of the smtp process without a resolv.conf: Debian's script fills it.
    main_cf = (f"myhostname={SENDING}", "maillog_file=/var/log/mail.log", *settings)
    return Relay(
        name=name,
        packages=("postfix",),
        selections="postfix postfix/main_mailer_type select Internet Site\n",
        set_up=f"postconf -e {' '.join(main_cf)} && /etc/init.d/postfix start || (cat /var/log/mail.log; exit 1)",
        submit=("sendmail", "-i", "-f", _FROM),
        queue="postqueue -j",
        log="/var/log/mail.log",
        patterns={
            Verdict.BOUNCED: r"postfix/smtp\[.* to=<bob@.* status=bounced",
            Verdict.DEFERRED: r"postfix/smtp\[.* to=<bob@.* status=deferred",
            Verdict.DELIVERED: r"postfix/smtp\[.* to=<bob@.* status=sent",
        },
    )


_EXIM = Relay(
    name="Exim",
    packages=("exim4-daemon-light",),
    selections=(
        "exim4-config exim4/dc_eximconfig_configtype select "
        "internet site; mail is sent and received directly using SMTP\n"
    ),
    set_up="update-exim4.conf",  # it delivers at submission: what a daemon would add is the retries
    submit=("sendmail", "-i", "-f", _FROM),
    queue="exim4 -bp",
    log="/var/log/exim4/mainlog",
    patterns={
        Verdict.BOUNCED: r" \*\* bob@",
        Verdict.DEFERRED: r" == bob@",
        Verdict.DELIVERED: r" => bob@",
    },
)

# For those that log to syslog alone, and a wait for those that take mail only over SMTP to themselves.
_SYSLOG = "busybox syslogd -O /var/log/mail.log\n"
_LISTENING = "until grep -q ':0019 00000000:0000 0A' /proc/net/tcp; do sleep 0.02; done\n"

_SENDMAIL = Relay(
    name="Sendmail",
    packages=("sendmail", "busybox"),
    selections="",
    set_up=f"{_SYSLOG}/etc/init.d/sendmail start\n{_LISTENING}",
    submit=("sendmail", "-i", "-f", _FROM),
    queue="find /var/spool/mqueue /var/spool/mqueue-client -name 'qf*' || true",  # a file may vanish under it
    log="/var/log/mail.log",
    patterns={
        Verdict.BOUNCED: r"sm-mta\[.* to=<bob@.* dsn=5\.",
        Verdict.DEFERRED: r"sm-mta\[.* to=<bob@.* dsn=4\.",
        Verdict.DELIVERED: r"sm-mta\[.* to=<bob@.* dsn=2\.",
    },
)

_OPENSMTPD = Relay(
    name="OpenSMTPD",
    packages=("opensmtpd", "busybox"),
    selections=f"opensmtpd opensmtpd/mailname string {SENDING}\n",
    set_up=f"{_SYSLOG}smtpd\n{_LISTENING}",
    submit=("sendmail", "-i", "-f", _FROM),
    queue="smtpctl show queue",
    log="/var/log/mail.log",
    patterns={
        Verdict.BOUNCED: r"delivery evpid=.* to=<bob@.* result=\"PermFail\"",
        Verdict.DEFERRED: r"delivery evpid=.* to=<bob@.* result=\"TempFail\"",
        Verdict.DELIVERED: r"delivery evpid=.* to=<bob@.* result=\"Ok\"",
    },
)

RELAYS: tuple[Relay, ...] = (
    _postfix("Postfix"),
    _postfix("Postfix, `smtp_skip_5xx_greeting=no`", "smtp_skip_5xx_greeting=no"),
    _EXIM,
    _SENDMAIL,
    _OPENSMTPD,
)

_SMTPLIB = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], 25, timeout=10) as server:
    server.sendmail(sys.argv[2], sys.argv[3], sys.stdin.read())
"""

CLIENTS: tuple[Client, ...] = (
    Client(
        name="smtplib",
        command=(
            sys.executable,
            "-c",
            _SMTPLIB.replace("{", "{{").replace("}", "}}"),
            "{mx}",
            "{sender}",
            "bob@{domain}",
        ),
        version=(sys.executable, "--version"),
    ),
    Client(
        name="curl",
        command=(
            "curl",
            *("--verbose", "--max-time", "10", "smtp://{mx}/", "--upload-file", "-"),
            *("--mail-from", "{sender}", "--mail-rcpt", "bob@{domain}"),
        ),
        version=("curl", "--version"),
    ),
    Client(
        name="swaks",
        command=("swaks", "--from", "{sender}", "--to", "bob@{domain}", "--data", "-"),
        version=("swaks", "--version"),
    ),
)
