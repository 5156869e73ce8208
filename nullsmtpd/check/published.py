"""What a domain publishes about mail, whether that is right for one that receives none, and what to publish instead."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from nullsmtpd.check.dialogue import quoted
from nullsmtpd.check.policies import SPF, dmarc_policies, dmarc_text, parse_dmarc, parse_spf, spf_texts, zone_txt
from nullsmtpd.nullmx import Answer, DNSError, MXAnswer, Resolver

__all__ = ["ADVICE", "OK", "UNKNOWN", "WRONG", "Finding", "Publications", "Status"]

_MAX_REDIRECTS = 10  # RFC 7208 §4.6.4: of all terms that cause queries
_MAX_WALK = 8  # RFC 9989 §4.10: queries of one DNS tree walk
_MAX_RECORDS_SHOWN = 5

#: Targets of operators who mean the root: alone, or with the domain appended for lack of a final dot.
_MEANT_AS_ROOT = {"0", "null", "none"}

_CONTRADICTION = (
    "a null MX, but the domain sends mail, which relays then reject with 550 5.7.27 (RFC 7505 section 4.2): remove it "
    "and run nullsmtpd in mode mail; or, if it sends nothing, make its SPF record end in -all"
)
# Why records that only a domain which receives mail needs have to go: RFC 8460, RFC 8461, RFC 7672.
_REMOVE_TLSRPT = "it is for domains that receive mail: remove it"
_REMOVE_MTA_STS = f"{_REMOVE_TLSRPT}, once a policy with mode: none has replaced the old one (RFC 8461 section 8.3)"
_REMOVE_TLSA = "senders that heed it (DANE) require TLS, and try again for days: remove it"


class Status(StrEnum):
    """What to think of a finding."""

    OK = "ok"
    ADVICE = "advice"  #: something useful is missing
    WRONG = "wrong"  #: it breaks a standard, or contradicts that mail is refused
    UNKNOWN = "unknown"  #: DNS does not answer


OK, ADVICE, WRONG, UNKNOWN = Status


class Finding(NamedTuple):
    """One thing that is, or should be, in DNS.

    ``name``: the owner name. ``found``: what is there, quoted. ``words``: why it has this status. ``publish``: the line
    of a zone file that should be there instead, or ``""``.
    """

    subject: str
    name: str
    found: str
    status: Status
    words: str
    publish: str = ""

    def __str__(self) -> str:
        """Return one line in printable ASCII."""
        publish = f"; publish: {self.publish}" if self.publish else ""
        return f"{self.name} {self.subject}: {self.found}: {self.status}: {self.words}{publish}"


#: A finding without subject and name.
_Row = tuple[str, Status, str, str]


def _judge(found: str, publish: str, *rules: tuple[object, Status, str]) -> _Row:
    """Return the status and the words of the first rule whose condition is true; if it is OK, nothing to publish."""
    status, words = next((status, words) for applies, status, words in rules if applies)
    return found, status, words, "" if status is OK else publish


@dataclass
class Publications:
    """What an existing domain, whose MX set is ``mx``, publishes about mail, as ``resolver`` finds it.

    ``owner``: the name that has the domain's records, another one if the domain is an alias (CNAME). ``sends``: its
    owner says that it sends mail; True afterwards if its SPF record says so.
    """

    resolver: Resolver
    mx: MXAnswer
    owner: str
    sends: bool

    async def findings(self, hosts: Sequence[str]) -> list[Finding]:
        """Return all findings, the one on the MX set first. ``hosts``: where mail goes, whose TLSA records matter."""
        domain, find, leftover = self.mx.domain, self._find, self._leftover
        spf = await find("SPF", domain, self._spf)  # first: what is right of the others depends on it
        others = await asyncio.gather(
            find("DMARC", f"_dmarc.{domain}", self._dmarc),
            find("MTA-STS", f"_mta-sts.{domain}", partial(leftover, "TXT", r"v=STSv1\b", _REMOVE_MTA_STS)),
            find("TLSRPT", f"_smtp._tls.{domain}", partial(leftover, "TXT", r"v=TLSRPTv1\b", _REMOVE_TLSRPT)),
            *(find("TLSA", f"_25._tcp.{host}", partial(leftover, "TLSA", "", _REMOVE_TLSA)) for host in hosts),
            *(find("MX", f"{label}.{domain}", self._other_mx) for label in ("www", "*")),
        )
        return [Finding("MX", domain, *self._judge_mx()), *(finding for finding in (spf, *others) if finding)]

    async def _find(self, subject: str, name: str, judge: Callable[[str], Awaitable[_Row | None]]) -> Finding | None:
        try:
            row = await judge(name)
        except DNSError as error:
            row = "?", UNKNOWN, f"DNS does not answer: {error.reason}", ""
        return Finding(subject, name, *row) if row else None

    def _judge_mx(self) -> _Row:
        mx, sends = self.mx, self.sends
        targets = [target.lower() for _, target in mx.records]
        meant = next((one for one in targets if one.removesuffix(f".{mx.domain}") in _MEANT_AS_ROOT), "")
        literal = next((one for one in targets if one.rpartition(".")[2].isdigit() or ":" in one), "")
        where = "its MX hosts" if targets else "its own addresses (RFC 5321 section 5.1)"
        must = "be the only MX" if len(targets) > 1 else "have preference 0"
        return _judge(
            _listed([f"{preference} {target}" for preference, target in mx.records])
            + (f" (TTL {mx.ttl} s)" if targets else ""),
            "" if sends else f"{self.owner}. IN MX 0 .",
            (mx.is_null_mx and sends, WRONG, _CONTRADICTION),
            (mx.is_null_mx, OK, "a null MX"),
            (mx.is_invalid_null_mx, WRONG, f"an invalid null MX: it must {must} (RFC 7505 section 3)"),
            (meant, WRONG, f"not a null MX, whose target is a single dot instead of {meant}. (RFC 7505 section 3)"),
            (literal, WRONG, f"{literal} is an IP address; an MX must be a host name (RFC 1035 section 3.3.9)"),
            (sends, OK, "no null MX, as the domain sends mail; with nullsmtpd in mode mail all senders bounce"),
            (True, ADVICE, f"no null MX, so senders connect to {where}"),
        )

    async def _spf(self, name: str) -> _Row:
        owner, records, policy = await self._spf_policy(name)
        hint = "" if self.sends else " (if it sends mail itself, use --sends)"
        ignored = "receivers ignore what is there (permerror, RFC 7208 section 4.6)"
        row = _judge(
            _listed([*map(quoted, records)]),
            zone_txt(owner, "v=spf1 a -all" if self.sends else "v=spf1 -all"),
            (not records, ADVICE, f"nothing tells receivers which hosts may send mail as this domain{hint}"),
            (policy.error, WRONG, f"{ignored}: {policy.error}{hint}"),
            (policy.passes_all, ADVICE, f"every host may send mail as this domain{hint}"),
            (policy.sends, OK, "the domain sends mail: not every host fails"),
            (self.sends, WRONG, "no host may send mail as this domain, but it sends"),
            (True, OK, "no host may send mail as this domain"),
        )
        self.sends = self.sends or policy.sends
        return row

    async def _spf_policy(self, domain: str, redirects: int = 0) -> tuple[str, list[str], SPF]:
        """Return the name that has the SPF records of a domain, the records, and the policy that applies in the end."""
        owner, texts = await self._texts(domain)
        records = spf_texts(texts)
        policy, *others = [parse_spf(record) for record in records] or [SPF()]
        sends, target = policy.sends or any(other.sends for other in others), policy.redirect
        if others:  # RFC 7208 §4.5
            policy = SPF("several records")
        elif target and redirects == _MAX_REDIRECTS:
            policy = SPF(f"it redirects to {target} after {redirects} other redirects")
        elif target:
            _, found, policy = await self._spf_policy(target, redirects + 1)
            if len(found) != 1:  # RFC 7208 §6.1
                policy = SPF(f"it redirects to {target}, which has not one record")
        return owner, records, policy._replace(sends=sends or policy.sends)

    async def _dmarc(self, name: str) -> _Row:
        owner, own = await self._dmarc_tags(self.mx.domain)
        parent, tags = ("", own[0]) if own else await self._inherited_dmarc()
        policy, below, nonexistent = dmarc_policies(tags)
        policy = policy if own else below
        is_partial = tags.get("t", "").lower() == "y" or tags.get("pct", "100") != "100"
        found = f"policy {policy}" if tags else "none"
        found += f", {below} for subdomains" if below != policy else ""
        found += f", {nonexistent} for nonexistent subdomains" if nonexistent != below else ""
        found += (" in part" if is_partial else "") + (f", inherited from {parent}" if parent else "")
        is_strict = policy == below == nonexistent == "reject" and not is_partial
        # An alias by a wildcard CNAME gives way to a record of its own, one by a DNAME does not.
        owner = owner if own or owner.startswith("_dmarc.") else name
        return _judge(
            f"{len(own)} records" if len(own) > 1 else found,
            zone_txt(owner, dmarc_text(own[0] if own else {})),
            (len(own) > 1, WRONG, "receivers ignore all of several records (RFC 7489 section 6.6.3)"),
            (is_strict, OK, "receivers reject mail that pretends to be from this domain"),
            (self.sends, OK, "for a domain that sends mail this is its owner's choice"),
            (True, ADVICE, "receivers should reject all mail that pretends to be from this domain"),
        )

    async def _inherited_dmarc(self) -> tuple[str, dict[str, str]]:
        """Return the organizational domain that has a record, or the public suffix above it, and the record's tags.

        By the DNS tree walk of RFC 9989 §4.10, which needs no list of public suffixes, as RFC 7489 did.
        """
        labels = self.mx.domain.split(".")[-_MAX_WALK:]
        found: tuple[str, dict[str, str]] = "", {}
        for start in range(1, len(labels)):
            name = ".".join(labels[start:])
            _, records = await self._dmarc_tags(name)
            if len(records) != 1:
                continue
            psd = records[0].get("psd", "").lower()
            if psd != "y" or found[0] != ".".join(labels[start - 1 :]):
                found = name, records[0]
            if psd in {"y", "n"}:
                break
        return found

    async def _dmarc_tags(self, domain: str) -> tuple[str, list[dict[str, str]]]:
        owner, texts = await self._texts(f"_dmarc.{domain}")
        return owner, [tags for text in texts if (tags := parse_dmarc(text))]

    async def _leftover(self, rdtype: str, beginning: str, words: str, name: str) -> _Row | None:
        _, texts = await self._texts(name, rdtype)
        records = [text for text in texts if re.match(beginning, text)]
        return (_listed([*map(quoted, records)]), WRONG, words, "") if records else None

    async def _other_mx(self, name: str) -> _Row | None:
        """Judge the MX set of a name below the domain, or of ``*``, where mail should be refused as well."""
        mx, *addresses = await asyncio.gather(*(self._query(name, rdtype) for rdtype in ("MX", "A", "AAAA")))
        records: tuple[Any, ...] = mx.records
        targets = tuple(sorted((record.preference, record.exchange.to_text(omit_final_dot=True)) for record in records))
        if not targets and not any(answer.records for answer in addresses):
            return None
        is_same = mx.is_alias and (mx.name == self.owner or (targets and targets == self.mx.records))
        return _judge(
            _listed([f"{preference} {target}" for preference, target in targets])
            + (f", alias (CNAME) of {mx.name}" if mx.is_alias else ""),
            f"{mx.name if mx.is_alias else name}. IN MX 0 .",
            (is_same or targets == ((0, "."),), OK, "mail to this name is treated as mail to the domain"),
            (targets, WRONG, "mail to this name goes there; let it have a null MX"),
            (True, ADVICE, "mail to this name goes to its address; let it have a null MX"),
        )

    async def _texts(self, name: str, rdtype: str = "TXT") -> tuple[str, list[str]]:
        """Return the name that has the records, not ``name`` if that is an alias, and their texts, sorted."""
        answer = await self._query(name, rdtype)
        records: tuple[Any, ...] = answer.records
        texts = [b"".join(one.strings).decode("latin-1") if rdtype == "TXT" else one.to_text() for one in records]
        return answer.name, sorted(texts)

    async def _query(self, name: str, rdtype: str) -> Answer:
        import dns.exception
        import dns.name

        try:
            dns.name.from_text(name)
        except dns.exception.DNSException:  # composed, or from a record: too long, or with an empty label
            return Answer(name, exists=False, records=(), ttl=0, is_alias=False)
        return await self.resolver.query(name, rdtype)


def _listed(records: Sequence[str]) -> str:
    """Return records on one line."""
    shown = ", ".join(records[:_MAX_RECORDS_SHOWN])
    more = len(records) - _MAX_RECORDS_SHOWN
    return f"{len(records)} records, {shown} and {more} more" if more > 0 else shown or "none"
