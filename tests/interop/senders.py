"""Mail servers: how each is installed, set up and given messages, and how its log shows what becomes of them."""

import contextlib
import mailbox
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from debian import Chroot, chroot
from network import SENDING, open_network
from receivers import receivers
from records import MESSAGES, SENDER, Fate, Mail, Message, Record, Stage, read_mail

__all__ = ["LISTENING", "PATIENCE", "PREPARE", "RELAYS", "SENDER", "TLS_REQUIRED", "Relay", "version_of"]

#: Seconds for one step. OpenSMTPD alone takes 11 to defer a message, and others run at the same time.
PATIENCE = 90.0

_AGAIN_AFTER = 15.0  # seconds; OpenSMTPD takes 11 for a try

#: A shell command that adds the author of the messages.
PREPARE = "useradd --create-home alice"

#: The name of every setting that requires TLS.
TLS_REQUIRED = "TLS required"


class Relay(NamedTuple):
    """A mail server with a queue, installed from Debian in a chroot of its own.

    ``set_up``: a shell script on top of Debian's stock configuration that also starts it. ``log``: its log file;
    ``deferred`` and ``delivered``: patterns of lines in it, with ``{to}`` for the recipient. Shell commands: ``retry``
    has it try its whole queue again, ``warn`` the same with settings that send a warning of delay now, ``expire`` with
    settings by which every message is too old; ``times`` prints by its own settings the hours until such a warning and
    the days until a message is too old, such as ``4h 5d``; 0h is never.
    """

    name: str
    packages: tuple[str, ...]
    set_up: str
    log: str
    deferred: str
    delivered: str
    retry: str
    expire: str
    times: str
    warn: str = ""
    selections: str = ""
    setting: str = ""

    def records(self, suite: str) -> list[Record]:
        """Have it deliver every message, in a network of its own, until each is delivered or bounced."""
        return list(self._records(suite))

    def machine(self, suite: str, network: Sequence[str]) -> contextlib.AbstractContextManager[Chroot]:
        """Run a chroot with the mail server's packages, not set up yet. ``network``: as for `chroot`."""
        return chroot(
            suite, self.packages, selections=self.selections, prepare=PREPARE, network=network, hostname=SENDING
        )

    def _records(self, suite: str) -> Iterator[Record]:
        with (
            tempfile.TemporaryDirectory(prefix="nullsmtpd-senders-") as name,
            open_network(Path(name)) as network,
            receivers(network, Path(name)) as hosts,
            self.machine(suite, network.prefix) as debian,
        ):
            debian.shell(self.set_up, patience=PATIENCE)
            warned, days = re.findall(r"\d+", debian.shell(self.times))
            version = version_of(debian, self.packages[0])
            for message, outcome in _Delivery(self, debian).outcomes().items():
                yield Record(
                    sender=self.name,
                    setting=self.setting,
                    suite=suite,
                    version=version,
                    message=message,
                    fate=outcome.fate,
                    stage=outcome.stage,
                    days=int(days) if outcome.stage is Stage.LAST else 0,
                    warned=int(warned) if outcome.is_warned else 0,
                    status=outcome.bounce.status if outcome.bounce else "",
                    told=outcome.bounce.octets if outcome.bounce else b"",
                    connections=hosts.connections(message.domain),
                )


def version_of(debian: Chroot, package: str) -> str:
    """Return the first two numbers of the version of an installed package: they stay the same within a release."""
    version = debian.run("dpkg-query", "--show", "--showformat=${Version}", package)
    found = re.search(r"^(?:\d+:)?(\d+\.\d+)", version)
    assert found, version
    return found[1]


class _Outcome(NamedTuple):
    fate: Fate
    stage: Stage
    bounce: Mail | None = None
    is_warned: bool = False


class _Delivery:
    """The messages in the queue of one relay."""

    def __init__(self, relay: Relay, debian: Chroot) -> None:
        self._relay = relay
        self._debian = debian
        self._outcomes: dict[Message, _Outcome] = {}

    def outcomes(self) -> dict[Message, _Outcome]:
        """Submit all of them, and wait until each is bounced or delivered."""
        sent: list[Message] = []
        for messages in MESSAGES:
            sent += [message for message in messages if self._is_sent(message) and self._submit(message)]
            self._wait(sent, Stage.AT_ONCE, self._deferrals)
        tries = {message: self._deferrals(message) for message in self._open(sent)}
        if tries:
            self._debian.shell(self._relay.retry, patience=PATIENCE)
            self._wait(tries, Stage.NEXT_RETRY, lambda message: self._deferrals(message) > tries[message])
        if self._relay.warn and self._open(sent):
            self._debian.shell(self._relay.warn, patience=PATIENCE)
            self._wait(sent, Stage.LAST, self._is_warned)
        if self._open(sent):
            self._debian.shell(self._relay.expire, patience=PATIENCE)
            self._wait(sent, Stage.LAST, lambda _: False)
        return self._outcomes

    def _is_sent(self, message: Message) -> bool:
        # The second MX, which takes mail, has no TLS either.
        return self._relay.setting != TLS_REQUIRED or message.purpose != "spared"

    def _submit(self, message: Message) -> bool:
        try:
            self._debian.run("sendmail", "-i", "-f", SENDER, message.recipient, stdin=message.text())
        except RuntimeError as error:
            self._outcomes[message] = _Outcome(Fate.NOT_TAKEN, Stage.AT_ONCE, Mail("", "", "", str(error).encode()))
            return False
        return True

    def _wait(self, messages: Iterable[Message], stage: Stage, is_enough: Callable[[Message], object]) -> None:
        """Wait until each message is bounced or delivered, or ``is_enough``; record the stage at which it was.

        The command to try again is repeated: a relay that is reading its settings or its queue may ignore it.
        """
        began = last = time.monotonic()
        while not self._record(messages, stage, is_enough):
            now = time.monotonic()
            if now > began + PATIENCE:
                left = ", ".join(f"{message.recipient} {self._deferrals(message)}" for message in self._open(messages))
                raise AssertionError(f"{self._relay.name}, {stage}: {left}\n{self._log()[-8000:]}")
            if stage is not Stage.AT_ONCE and now > last + _AGAIN_AFTER:
                self._debian.run("sh", "-c", self._relay.retry, check=False)
                last = now
            time.sleep(0.2)

    def _record(self, messages: Iterable[Message], stage: Stage, is_enough: Callable[[Message], object]) -> bool:
        for message in self._open(messages):
            mails = self._about(message)
            bounces = [mail for mail in mails if mail.is_last]
            if bounces:
                is_warned = len(mails) > len(bounces)
                self._outcomes[message] = _Outcome(Fate.BOUNCED, stage, bounces[0], is_warned)
            elif self._count(self._relay.delivered, message):
                self._outcomes[message] = _Outcome(Fate.DELIVERED, stage)
        return all(is_enough(message) for message in self._open(messages))

    def _open(self, messages: Iterable[Message]) -> list[Message]:
        return [message for message in messages if message not in self._outcomes]

    def _deferrals(self, message: Message) -> int:
        return self._count(self._relay.deferred, message)

    def _is_warned(self, message: Message) -> bool:
        return bool(self._about(message))

    def _about(self, message: Message) -> list[Mail]:
        return [mail for mail in self._mails() if mail.subject == message.subject]

    def _count(self, pattern: str, message: Message) -> int:
        # Each log has its own way to write characters beyond ASCII; there is one such recipient in a domain.
        local = re.escape(message.recipient.partition("@")[0]) if message.recipient.isascii() else r"[^@ ]*"
        return len(re.findall(pattern.format(to=f"{local}@{re.escape(message.domain)}"), self._log(), re.MULTILINE))

    def _log(self) -> str:
        path = self._debian.root / self._relay.log.lstrip("/")
        return path.read_text(errors="replace") if path.exists() else ""

    def _mails(self) -> list[Mail]:
        """Return what the author has received, in a Maildir or in a file, depending on the relay."""
        root = self._debian.root
        octets = [file.read_bytes() for file in (root / "home/alice/Maildir/new").glob("*")]
        for path in (root / "var/mail/alice", root / "home/alice/mbox"):
            if path.exists():
                with contextlib.closing(mailbox.mbox(path, create=False)) as messages:
                    octets += [message.as_bytes() for message in messages]
        return read_mail(octets)


def _postfix(setting: str = "", *parameters: str) -> Relay:
    # "postfix start" alone would leave the chroot of the smtp process without a resolv.conf: Debian's script fills it.
    main_cf = " ".join((f"myhostname={SENDING}", "maillog_file=/var/log/mail.log", *parameters))
    return Relay(
        name="Postfix",
        packages=("postfix",),
        selections="postfix postfix/main_mailer_type select Internet Site\n",
        set_up=f"postconf -e {main_cf} && /etc/init.d/postfix start || (cat /var/log/mail.log; exit 1)",
        log="/var/log/mail.log",
        deferred=r"postfix/smtp\[.* to=<{to}>.* status=deferred",
        delivered=r"postfix/smtp\[.* to=<{to}>.* status=sent",
        retry="postqueue -f",
        expire="postconf -e maximal_queue_lifetime=0 && postfix reload && postqueue -f",
        times="postconf -h delay_warning_time maximal_queue_lifetime",
        setting=setting,
    )


_EXIM_CONFIGURATION = "/var/lib/exim4/config.autogenerated"


def _exim(setting: str = "", set_up: str = "") -> Relay:
    return Relay(
        name="Exim",
        packages=("exim4-daemon-light",),
        selections=(
            "exim4-config exim4/dc_eximconfig_configtype select "
            "internet site; mail is sent and received directly using SMTP\n"
        ),
        # It delivers at submission; a daemon would only add the retries.
        set_up=f"{set_up}update-exim4.conf",
        log="/var/log/exim4/mainlog",
        deferred=r" == {to} ",
        delivered=r" => {to} ",
        retry="exim4 -qff",
        warn=f"sed -i '1i delay_warning = 1s' {_EXIM_CONFIGURATION}; sleep 2; exim4 -qff",
        expire=f"sed -i 's/^\\*  .*F,2h,15m.*/* * F,1s,1s/' {_EXIM_CONFIGURATION}; exim4 -qff",
        times=f"exim4 -bP delay_warning | sed s/1d/24h/; sed -n 's/^\\*.*; F,\\(.*d\\),.*/\\1/p' {_EXIM_CONFIGURATION}",
        setting=setting,
    )


#: A shell command that waits until something listens on port 25: some submit local mail over SMTP.
LISTENING = "until grep -q ':0019 00000000:0000 0A' /proc/net/tcp; do sleep 0.02; done\n"


def _stop(name: str) -> str:
    """Return a shell command that kills the processes of this name and waits until they are gone."""
    return f"busybox killall {name} || :; while busybox pidof {name}; do sleep 0.1; done; "


_SYSLOG = "busybox syslogd -O /var/log/mail.log\n"  # for those that log to syslog alone

# Debian's local delivery waits 8 s for a locked mailbox, so mail to alice is forwarded to a file.
_FORWARD = (
    "setpriv --reuid=alice --clear-groups sh -c 'umask 077; cd /home/alice; echo $PWD/mbox > .forward; : > mbox'\n"
)


def _sendmail(setting: str = "", set_up: str = "") -> Relay:
    return Relay(
        name="Sendmail",
        packages=("sendmail", "busybox"),
        set_up=f"{_SYSLOG}{_FORWARD}{set_up}/etc/init.d/sendmail start\n{LISTENING}",
        log="/var/log/mail.log",
        deferred=r" to=<{to}>.* mailer=esmtp,.* dsn=4\.",
        delivered=r" to=<{to}>.* mailer=esmtp,.* dsn=2\.",
        retry="sendmail -qf",
        warn="sleep 1; sendmail -qf -OTimeout.queuewarn=1s",
        expire="sendmail -qf -OTimeout.queuereturn=1s",
        times="sed -n 's/^O Timeout.queue\\(warn\\|return\\)=//p' /etc/mail/sendmail.cf | sort",
        setting=setting,
    )


# Repeated until it has read its queue: before that it schedules nothing.
_SMTPD_SCHEDULE = "until smtpctl schedule all | grep '^[1-9]'; do sleep 0.1; done"
_SMTPD_RESTART = _stop("smtpd") + "smtpd"


def _opensmtpd(setting: str = "", set_up: str = "") -> Relay:
    return Relay(
        name="OpenSMTPD",
        packages=("opensmtpd", "busybox"),
        selections=f"opensmtpd opensmtpd/mailname string {SENDING}\n",
        set_up=f"{_SYSLOG}{set_up}smtpd\n{LISTENING}",
        log="/var/log/mail.log",
        deferred=r"delivery evpid=.* to=<{to}> .*result=\"?TempFail",
        delivered=r"delivery evpid=.* to=<{to}> .*result=\"?Ok",
        retry="smtpctl schedule all",
        warn=f"sed -i '1i bounce warn-interval 1s' /etc/smtpd.conf\n{_SMTPD_RESTART}\n{_SMTPD_SCHEDULE}",
        expire=f"sed -i '1i queue ttl 1s' /etc/smtpd.conf\n{_SMTPD_RESTART}",
        times="echo 4h 4d",  # defaults of smtpd.conf(5), "bounce warn-interval" and "queue ttl"
        setting=setting,
    )


# Those processes lock their messages until their own next try.
_DMA_STOP = _stop("dma")


def _dma(setting: str = "", set_up: str = "") -> Relay:
    """Return the DragonFly Mail Agent. A process of its own delivers each message, and logs the recipient first."""
    verdict = r"dma\[(\S+)\]: <{{to}}> trying delivery\n(?:.*\n)*?.*dma\[\1\]: .*delivery {}"
    return Relay(
        name="dma",
        packages=("dma", "busybox"),
        selections=f"dma dma/mailname string {SENDING}\ndma dma/relayhost string\n",
        set_up=f"{_SYSLOG}{set_up}",
        log="/var/log/mail.log",
        deferred=verdict.format("deferred"),
        delivered=verdict.format("successful"),
        retry=f"{_DMA_STOP}dma -q",
        expire=f"{_DMA_STOP}find /var/spool/dma -type f -exec touch --date='6 days ago' {{}} + && dma -q",
        times="echo 0h 5d",  # dma.h, MAX_TIMEOUT: no setting changes it
        setting=setting,
    )


RELAYS: tuple[Relay, ...] = (
    _postfix(),
    _postfix("smtp_skip_5xx_greeting=no", "smtp_skip_5xx_greeting=no"),
    _postfix(TLS_REQUIRED, "smtp_tls_security_level=encrypt"),
    _exim(),
    _exim(TLS_REQUIRED, "echo 'REMOTE_SMTP_HOSTS_REQUIRE_TLS = *' > /etc/exim4/exim4.conf.localmacros\n"),
    _sendmail(),
    _sendmail(TLS_REQUIRED, "printf 'TLS_Srv:\\tENCR:112\\n' >> /etc/mail/access\nmake -C /etc/mail access.db\n"),
    _opensmtpd(),
    _opensmtpd(TLS_REQUIRED, "sed -i 's/ relay$/ relay tls/' /etc/smtpd.conf\n"),
    _dma(),
    _dma(
        TLS_REQUIRED, "sed -i 's/^#\\(STARTTLS\\|SECURETRANSFER\\)$/\\1/; /^OPPORTUNISTIC_TLS$/d' /etc/dma/dma.conf\n"
    ),
)
