"""The recipes of deploy/relay/: which mail server each is for, and how its README says to install it."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

from debian import Chroot
from senders import LISTENING, PATIENCE, RELAYS, Relay

__all__ = ["READMES", "RECIPES", "Recipe"]

_ROOT = Path(__file__).resolve().parents[2]
_DIRECTORY = _ROOT / "deploy" / "relay"
_README = _DIRECTORY / "README.md"

#: Where the table of what they say is shown.
READMES = (_README,)

_SOCKET = "/run/nullsmtpd/relay"
_POSTFIX_SOCKET = "/var/spool/postfix/nullsmtpd/relay"


class Recipe(NamedTuple):
    """``heading``: its section in the README. ``socket``: where it looks for nullsmtpd relay.

    ``start``: a shell command for what the relay's own set-up leaves out, as it is enough for sending.
    """

    heading: str
    relay: Relay
    socket: str = _SOCKET
    start: str = ""

    def install(self, machine: Chroot) -> None:
        """Do in a machine, on top of Debian's stock configuration, what the README says; and start the relay.

        Other machines may do the same meanwhile, on few processors.
        """
        copy = machine.root / "tmp" / "relay"
        shutil.copytree(_DIRECTORY, copy)
        machine.run("sh", "-e", "-c", f"cd /tmp/{copy.name}\n{self._commands()}", patience=PATIENCE)
        machine.run("sh", "-e", "-c", f"{self.relay.set_up}\n{self.start}\n{LISTENING}", patience=PATIENCE)

    def _commands(self) -> str:
        """Return the commands of the README's section, the first block of it that is for a shell."""
        pattern = rf"^## {re.escape(self.heading)}\n(.*?)(?=^## |\Z)"
        section = re.search(pattern, _README.read_text(), re.MULTILINE | re.DOTALL)
        assert section, f"{_README} has no section {self.heading!r}"
        block = re.search(r"^```sh\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
        assert block, f"{_README} has no commands in the section {self.heading!r}"
        return block[1]


def _relay(name: str, *packages: str) -> Relay:
    """Return the relay as Debian has it, beside further packages."""
    relay = next(relay for relay in RELAYS if relay.name == name and not relay.setting)
    return relay._replace(packages=(*relay.packages, *packages))


RECIPES = (
    Recipe("Postfix", _relay("Postfix"), _POSTFIX_SOCKET),
    Recipe("Postfix, with a policy service", _relay("Postfix"), _POSTFIX_SOCKET),
    Recipe("Exim", _relay("Exim"), start="/etc/init.d/exim4 start"),
    Recipe("Sendmail", _relay("Sendmail")),
    Recipe("OpenSMTPD", _relay("OpenSMTPD", "python3")),  # which runs the filter
)
