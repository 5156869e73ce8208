"""The recipes of deploy/relay/: which mail server each is for, and how its README says to install it."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from debian import Chroot
from network import LOCAL_NULL_MX, RELAYED_NULL_MX, SENDING
from senders import LISTENING, PATIENCE, RELAYS, Relay

__all__ = ["README", "RECIPES", "Recipe"]

_ROOT = Path(__file__).resolve().parents[2]
_DIRECTORY = _ROOT / "deploy" / "relay"

#: Where the table of their replies is shown.
README = _DIRECTORY / "README.md"

_SOCKET = "/run/nullsmtpd/relay"
_POSTFIX_SOCKET = "/var/spool/postfix/nullsmtpd/relay"


class Recipe(NamedTuple):
    """One way to have a relay ask nullsmtpd.

    ``heading``: its section in the README. ``domains``: a shell command, run after those of the README, that makes the
    relay deliver to `LOCAL_NULL_MX` and relay for `RELAYED_NULL_MX` in its usual way. ``socket``: where it looks for
    ``nullsmtpd relay``. ``start``: a shell command for what the relay's own set-up leaves out.
    """

    heading: str
    relay: Relay
    domains: str
    socket: str = _SOCKET
    start: str = ""

    def install(self, machine: Chroot) -> None:
        """Do in a machine, on top of Debian's stock configuration, what the README says; and start the relay.

        Other machines may do the same meanwhile, on few processors.
        """
        copy = machine.root / "tmp" / "relay"
        shutil.copytree(_DIRECTORY, copy)
        machine.shell(f"cd /tmp/{copy.name}\n{self._commands()}{self.domains}", patience=PATIENCE)
        machine.shell(f"{self.relay.set_up}\n{self.start}\n{LISTENING}", patience=PATIENCE)

    def _commands(self) -> str:
        """Return the commands of the README's section, the first block of it that is for a shell."""
        pattern = rf"^## {re.escape(self.heading)}\n(.*?)(?=^## |\Z)"
        section = re.search(pattern, README.read_text(), re.MULTILINE | re.DOTALL)
        assert section, f"{README} has no section {self.heading!r}"
        block = re.search(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
        assert block, f"{README} has no commands in the section {self.heading!r}"
        return block[1]


def _relay(name: str, *packages: str) -> Relay:
    """Return the relay as Debian has it, beside further packages."""
    relay = next(relay for relay in RELAYS if relay.name == name and not relay.setting)
    return relay._replace(packages=(*relay.packages, *packages))


_POSTFIX_DOMAINS = (
    f"postconf -e 'mydestination = $myhostname, localhost, {LOCAL_NULL_MX}' 'relay_domains = {RELAYED_NULL_MX}'"
)
_EXIM_DOMAINS = (
    f"sed -i -e \"s/^dc_other_hostnames=.*/dc_other_hostnames='{SENDING};{LOCAL_NULL_MX}'/\""
    f" -e \"s/^dc_relay_domains=.*/dc_relay_domains='{RELAYED_NULL_MX}'/\" /etc/exim4/update-exim4.conf.conf"
)
_SENDMAIL_DOMAINS = (
    f"echo {LOCAL_NULL_MX} >> /etc/mail/local-host-names\necho {RELAYED_NULL_MX} >> /etc/mail/relay-domains"
)
# The filter gets its domains as its README says.
_OPENSMTPD_DOMAINS = (
    f"sed -i -e 's/nullmx-filter\"/nullmx-filter {LOCAL_NULL_MX} {RELAYED_NULL_MX}\"/'"
    f' -e \'/^match/i match for domain "{LOCAL_NULL_MX}" action "local"\' /etc/smtpd.conf'
)

RECIPES = (
    Recipe("Postfix", _relay("Postfix"), _POSTFIX_DOMAINS, _POSTFIX_SOCKET),
    Recipe("Postfix, with a policy service", _relay("Postfix"), _POSTFIX_DOMAINS, _POSTFIX_SOCKET),
    Recipe("Exim", _relay("Exim"), _EXIM_DOMAINS, start="/etc/init.d/exim4 start"),
    Recipe("Sendmail", _relay("Sendmail"), _SENDMAIL_DOMAINS),
    Recipe("OpenSMTPD", _relay("OpenSMTPD", "python3"), _OPENSMTPD_DOMAINS),  # python3 runs the filter
)
