"""Relays: how each is installed and set up, how it is given one message, and how it tells what became of it."""

import re
import shutil
import time
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from machine import boot, build_layer
from network import SENDING, Network

__all__ = ["LISTENING", "PATIENCE", "RELAYS", "SENDER", "Outcome", "Relay", "Sender", "Verdict", "message_to"]

#: Seconds. OpenSMTPD alone takes 11 to say that it defers; a relay that retries does so after minutes.
PATIENCE = 60.0

#: Who writes, and gets the bounce.
SENDER = f"alice@{SENDING}"


# What the author of the message got: OpenSMTPD, as Debian has it, delivers to a Maildir, the others to a file.
_MAILBOX = "cat /var/mail/alice ~alice/Maildir/new/* 2> /dev/null || true"


class Verdict(StrEnum):
    """What becomes of a message, in the words of the README's table."""

    BOUNCED = "bounced"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    FAILED = "failed"


class Outcome(NamedTuple):
    """``told``: all that the user gets to read. ``log``: what the sender noted, for the postmaster.

    ``days``: how long a message that is deferred will be tried again, as the sender's own settings or queue have it.
    """

    version: str
    verdict: Verdict
    told: str
    log: str
    status: int | None = None
    days: float | None = None


class Sender(Protocol):
    """Something that delivers mail."""

    @property
    def name(self) -> str:
        """The name in the table."""

    @property
    def setting(self) -> str:
        """What is not as it comes, if anything; the name and this tell the senders apart."""

    def missing(self) -> str:
        """Return what this machine lacks to run it, or nothing."""

    def deliver(self, network: Network, domain: str, hear_out: Callable[[], object]) -> Outcome:
        """Try to deliver one message to bob at this domain, and wait until it is clear what becomes of it.

        ``hear_out`` waits until its connections are closed: who is switched off may have had something left to say.
        """


class Relay(NamedTuple):
    """A mail server with a queue, installed from Debian in a machine of its own.

    ``set_up``: a shell script on top of Debian's stock configuration that also starts it. ``submit``: a command that
    takes a message on standard input; the recipient is appended. ``queue``: a shell command that prints what is queued,
    or nothing. ``patterns``: how its log at ``log`` tells the verdict. ``keeps``: a shell command that prints for how
    many days it keeps a deferred message by its settings; none where that has not been seen to happen.
    """

    name: str
    packages: tuple[str, ...]
    selections: str
    set_up: str
    submit: tuple[str, ...]
    queue: str
    log: str
    patterns: dict[Verdict, str]
    keeps: str = ""
    setting: str = ""

    def missing(self) -> str:
        """Return what is needed to install it and is not there; any relay can be installed where Debian's tools are."""
        tools = ("apt-get", "dpkg-query", "debconf-set-selections", "tar")
        return ", ".join(tool for tool in tools if not shutil.which(tool))

    def deliver(self, network: Network, domain: str, hear_out: Callable[[], object]) -> Outcome:
        """Submit a message locally, and wait until log, queue and the author's mailbox agree on what became of it."""
        layer = build_layer(self.packages[0], self.packages, self.selections)
        with boot(network, layer) as machine:
            machine.run("sh", "-e", "-c", self.set_up)
            machine.run(*self.submit, f"bob@{domain}", stdin=message_to(domain))
            deadline = time.monotonic() + PATIENCE
            while True:
                log, queue, mailbox = (
                    machine.read(self.log),
                    machine.run("sh", "-c", self.queue),
                    machine.run("sh", "-c", _MAILBOX),
                )
                if (verdict := self._verdict(log, queue, mailbox)) is not None:
                    version = machine.run("dpkg-query", "--show", "--showformat=${Version}", self.packages[0])
                    hear_out()
                    upstream = version.rpartition(":")[2].partition("-")[0]
                    days = float(machine.run("sh", "-c", self.keeps)) if verdict is Verdict.DEFERRED else None
                    return Outcome(upstream, verdict, mailbox, log, days=days)
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


def message_to(domain: str) -> str:
    return f"From: {SENDER}\nTo: bob@{domain}\nSubject: Friday\n\nAre you coming?\n"


def _postfix(setting: str = "") -> Relay:
    # "postfix start" alone would leave the chroot of the smtp process without a resolv.conf: Debian's script fills it.
    main_cf = (f"myhostname={SENDING}", "maillog_file=/var/log/mail.log", setting)
    return Relay(
        name="Postfix",
        packages=("postfix",),
        selections="postfix postfix/main_mailer_type select Internet Site\n",
        set_up=f"postconf -e {' '.join(main_cf)} && /etc/init.d/postfix start || (cat /var/log/mail.log; exit 1)",
        submit=("sendmail", "-i", "-f", SENDER),
        queue="postqueue -j",
        log="/var/log/mail.log",
        patterns={
            Verdict.BOUNCED: r"postfix/smtp\[.* to=<bob@.* status=bounced",
            Verdict.DEFERRED: r"postfix/smtp\[.* to=<bob@.* status=deferred",
            Verdict.DELIVERED: r"postfix/smtp\[.* to=<bob@.* status=sent",
        },
        keeps="postconf -h maximal_queue_lifetime | sed -n 's/d$//p'",
        setting=setting,
    )


_EXIM = Relay(
    name="Exim",
    packages=("exim4-daemon-light",),
    selections=(
        "exim4-config exim4/dc_eximconfig_configtype select "
        "internet site; mail is sent and received directly using SMTP\n"
    ),
    set_up="update-exim4.conf",  # it delivers at submission: what a daemon would add is the retries
    submit=("sendmail", "-i", "-f", SENDER),
    queue="exim4 -bp",
    log="/var/log/exim4/mainlog",
    patterns={
        Verdict.BOUNCED: r" \*\* bob@",
        Verdict.DEFERRED: r" == bob@",
        Verdict.DELIVERED: r" => bob@",
    },
)

#: A shell command that waits until something listens on port 25: some take mail only over SMTP to themselves.
LISTENING = "until grep -q ':0019 00000000:0000 0A' /proc/net/tcp; do sleep 0.02; done\n"

_SYSLOG = "busybox syslogd -O /var/log/mail.log\n"  # for those that log to syslog alone

_SENDMAIL = Relay(
    name="Sendmail",
    packages=("sendmail", "busybox"),
    selections="",
    set_up=f"{_SYSLOG}/etc/init.d/sendmail start\n{LISTENING}",
    submit=("sendmail", "-i", "-f", SENDER),
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
    set_up=f"{_SYSLOG}smtpd\n{LISTENING}",
    submit=("sendmail", "-i", "-f", SENDER),
    queue="smtpctl show queue",
    log="/var/log/mail.log",
    patterns={
        Verdict.BOUNCED: r"delivery evpid=.* to=<bob@.* result=\"PermFail\"",
        Verdict.DEFERRED: r"delivery evpid=.* to=<bob@.* result=\"TempFail\"",
        Verdict.DELIVERED: r"delivery evpid=.* to=<bob@.* result=\"Ok\"",
    },
    keeps="echo 4",  # smtpd.conf(5), "queue ttl": nothing that runs tells it
)

RELAYS: tuple[Relay, ...] = (
    _postfix(),
    _postfix("smtp_skip_5xx_greeting=no"),
    _EXIM,
    _SENDMAIL,
    _OPENSMTPD,
)
