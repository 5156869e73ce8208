"""The socketmap protocol's requests and replies, socketmap_table(5): ``nullmx KEY``, and fixed strings in return."""

from nullsmtpd.nullmx import DomainError, domain_of
from nullsmtpd.relay.netstring import netstring

__all__ = ["MALFORMED", "MAX_REQUEST_OCTETS", "NOT_FOUND", "NULL_MX", "UNKNOWN_MAP", "key_of", "wanted_domain"]

#: Longer than any request: the longest line that Postfix takes from a client has 2048 octets (line_length_limit), and
#: Sendmail's addresses are shorter. Such a key is no domain, and gets its NOTFOUND; the client's mail is not at fault.
MAX_REQUEST_OCTETS = 4096

#: RFC 7504 §4 has the code and the text, RFC 7505 §6 the enhanced code: X.1.10, "Recipient address has null MX".
NULL_MX = netstring(b"OK 556 5.1.10 Domain does not accept mail")

#: Says nothing of why; the relay goes on as if it had not asked.
NOT_FOUND = netstring(b"NOTFOUND ")

#: The operator's mistake. NOTFOUND would leave a wrong name in the relay's configuration unseen; on PERM Postfix logs
#: an error and defers the mail (451), so that the first test shows it and no mail is lost.
UNKNOWN_MAP = netstring(b"PERM unknown map; ask for nullmx")

#: Said before the connection is closed: nobody can tell where the next request would begin.
MALFORMED = netstring(b"PERM malformed netstring")

_MAP = b"nullmx"


def key_of(request: bytes) -> bytes | None:
    """Return the key of a request to our map, or None when it is for another."""
    name, space, key = request.partition(b" ")
    return key if space and name == _MAP else None


def wanted_domain(key: bytes) -> str | None:
    """Return the domain that a key, itself one or an address, is about, as DNS has it; None when it is none."""
    try:
        return domain_of(key.decode())  # SMTPUTF8 (RFC 6531) addresses come as UTF-8
    except (UnicodeDecodeError, DomainError):
        return None
