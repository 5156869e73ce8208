"""What a domain publishes about mail, whether that is right for one that receives none, and what to publish instead."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from nullsmtpd.check.dialogue import quoted
from nullsmtpd.check.policies import SPF, dmarc_policies, dmarc_text, parse_dmarc, parse_spf, spf_texts, zone_txt
from nullsmtpd.nullmx import Answer, DNSError

if TYPE_CHECKING:
    from nullsmtpd.nullmx import MXAnswer, Resolver

__all__ = ["Finding", "Publications", "Status", "is_address", "judge_mx"]

_MAX_REDIRECTS = 10  # RFC 7208 §4.6.4: of all terms that cause queries
_MAX_WALK = 8  # RFC 9989 §4.10: queries of one DNS tree walk
_MAX_TLSA = 8  # hosts, the most preferred first
_MAX_RECORDS_SHOWN = 5

#: Targets of operators who mean the root: alone, or with the domain appended for lack of a final dot.
_MEANT_AS_ROOT = {"0", "null", "none"}

# Why records that only a domain which receives mail needs have to go: RFC 8460, RFC 8461, RFC 7672.
_REMOVE_TLSRPT = "it is for domains that receive mail: remove it"
_REMOVE_MTA_STS = (
    f"{_REMOVE_TLSRPT}, once a policy with mode: none has replaced the one it announces (RFC 8461 section 8.3)"
)
_REMOVE_TLSA = "senders that heed it (DANE) require TLS, and try again for days: remove it"


class Status(StrEnum):
    """What to think of a finding."""

    OK = "ok"
    ADVICE = "advice"  #: something useful is missing
    WRONG = "wrong"  #: it breaks a standard, or contradicts that mail is refused
    UNKNOWN = "unknown"  #: DNS does not answer


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


def _judge(found: str, publish: str, *rules: tuple[Status, str, object]) -> _Row:
    """Return the status and the words of the first rule whose last element is true; if it is OK, nothing to publish."""
    status, words = next((status, words) for status, words, applies in rules if applies)
    return found, status, words, "" if status is Status.OK else publish


def is_address(target: str) -> bool:
    """Tell whether an MX target is an IP address: no top-level domain is a number (RFC 3696 §2)."""
    return target.rpartition(".")[2].isdigit() or ":" in target


def judge_mx(mx: "MXAnswer", owner: str, *, sends: bool) -> Finding:
    """Return the finding on the MX set itself. ``owner``: the name that has it; ``sends``: the domain sends mail."""
    contradiction = (
        "a null MX, but the domain sends mail, which relays then reject with 550 5.7.27 (RFC 7505 section 4.2): remove "
        "it and run nullsmtpd in mode mail; or, if it sends nothing, make its SPF record end in -all"
    )
    where = "its MX hosts" if mx.records else "its own addresses (RFC 5321 section 5.1)"
    fault = _mx_fault(mx)
    row = _judge(
        f"{_shown(mx.records)} (TTL {mx.ttl} s)" if mx.records else "none",
        "" if sends else f"{owner}. IN MX 0 .",
        (Status.WRONG, contradiction, mx.is_null_mx and sends),
        (Status.OK, "a null MX", mx.is_null_mx),
        (Status.WRONG, fault, fault),
        (Status.OK, "no null MX, as the domain sends mail; with nullsmtpd in mode mail all senders bounce", sends),
        (Status.ADVICE, f"no null MX, so senders connect to {where}", True),
    )
    return Finding("MX", mx.domain, *row)


def _mx_fault(mx: "MXAnswer") -> str:
    if mx.is_invalid_null_mx:
        must = "be the only MX" if len(mx.records) > 1 else "have preference 0"
        return f"an invalid null MX: it must {must} (RFC 7505 section 3)"
    for _, target in mx.records:
        if target.lower().removesuffix(f".{mx.domain}") in _MEANT_AS_ROOT:
            return f"not a null MX, whose target is a single dot instead of {target}. (RFC 7505 section 3)"
        if is_address(target):
            return f"{target} is an IP address; an MX must be a host name (RFC 1035 section 3.3.9)"
    return ""


@dataclass
class Publications:
    """What one existing domain publishes about mail, as ``resolver`` finds it.

    ``sends``: its owner says that it sends mail; True afterwards if its SPF record says so.
    """

    resolver: "Resolver"
    domain: str
    sends: bool

    async def findings(self, mx: "MXAnswer", owner: str, hosts: Sequence[str]) -> list[Finding]:
        """Return all findings but those on ``mx``. ``hosts``: where mail goes, whose TLSA records matter.

        ``owner``: the name that has the domain's records, another one if the domain is an alias (CNAME).
        """
        domain = self.domain
        spf = await self._find("SPF", domain, self._spf)  # first: what is right of the others depends on it
        others = await asyncio.gather(
            self._find("DMARC", f"_dmarc.{domain}", self._dmarc),
            self._find("MTA-STS", f"_mta-sts.{domain}", partial(self._leftover, "v=STSv1", _REMOVE_MTA_STS)),
            self._find("TLSRPT", f"_smtp._tls.{domain}", partial(self._leftover, "v=TLSRPTv1", _REMOVE_TLSRPT)),
            *(self._find("TLSA", f"_25._tcp.{host}", self._tlsa) for host in hosts[:_MAX_TLSA]),
            *(self._find("MX", f"{label}.{domain}", partial(self._other_mx, mx, owner)) for label in ("www", "*")),
        )
        return [*spf, *(finding for found in others for finding in found)]

    async def _find(self, subject: str, name: str, judge: Callable[[str], Awaitable[_Row | None]]) -> list[Finding]:
        try:
            row = await judge(name)
        except DNSError as error:
            row = "?", Status.UNKNOWN, f"DNS does not answer: {error.reason}", ""
        return [Finding(subject, name, *row)] if row else []

    async def _spf(self, name: str) -> _Row:
        owner, texts = await self._texts(name)
        records = spf_texts(texts)
        policies = [await self._follow_redirects(parse_spf(record)) for record in records]
        policy = policies[0] if policies else SPF()
        hint = "" if self.sends else " (if it sends mail itself, use --sends)"
        several = "receivers ignore all of several records (permerror, RFC 7208 section 4.5)"
        row = _judge(
            _quoted(records) or "none",
            zone_txt(owner, "v=spf1 a -all" if self.sends else "v=spf1 -all"),
            (Status.WRONG, f"{several}{hint}", len(policies) > 1),
            (Status.ADVICE, f"nothing tells receivers which hosts may send mail as this domain{hint}", not policies),
            (
                Status.WRONG,
                f"receivers ignore it (permerror, RFC 7208 section 4.6): {policy.error}{hint}",
                policy.error,
            ),
            (Status.ADVICE, f"every host may send mail as this domain{hint}", policy.passes_all),
            (Status.OK, "the domain sends mail: not every host fails", policy.sends),
            (Status.WRONG, "no host may send mail as this domain, but it sends", self.sends),
            (Status.OK, "no host may send mail as this domain", True),
        )
        self.sends = self.sends or any(policy.sends for policy in policies)
        return row

    async def _follow_redirects(self, policy: SPF) -> SPF:
        """Return the policy that applies in the end; a redirect that leads nowhere is an error (RFC 7208 §6.1)."""
        sends = policy.sends
        for _ in range(_MAX_REDIRECTS):
            if not policy.redirect:
                break
            _, texts = await self._texts(policy.redirect)
            if len(texts := spf_texts(texts)) != 1:
                return SPF(f"it redirects to {policy.redirect}, which has not one record", sends)
            policy = parse_spf(texts[0])
            sends = sends or policy.sends
        if policy.redirect:
            return SPF(f"it redirects to {policy.redirect} after {_MAX_REDIRECTS} other redirects", sends)
        return policy._replace(sends=sends)

    async def _dmarc(self, name: str) -> _Row:
        owner, own = await self._dmarc_tags(self.domain)
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
            (Status.WRONG, "receivers ignore all of several records (RFC 7489 section 6.6.3)", len(own) > 1),
            (Status.OK, "receivers reject mail that pretends to be from this domain", is_strict),
            (Status.OK, "for a domain that sends mail this is its owner's choice", self.sends),
            (Status.ADVICE, "receivers should reject all mail that pretends to be from this domain", True),
        )

    async def _inherited_dmarc(self) -> tuple[str, dict[str, str]]:
        """Return the organizational domain that has a record, or the public suffix above it, and the record's tags.

        By the DNS tree walk of RFC 9989 §4.10, which needs no list of public suffixes, as RFC 7489 did.
        """
        labels = self.domain.split(".")[-_MAX_WALK:]
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

    async def _leftover(self, version: str, words: str, name: str) -> _Row | None:
        _, texts = await self._texts(name)
        found = _quoted([text for text in texts if re.match(rf"{version}\b", text)])
        return (found, Status.WRONG, words, "") if found else None

    async def _tlsa(self, name: str) -> _Row | None:
        records = (await self._query(name, "TLSA")).records
        return (f"records: {len(records)}", Status.WRONG, _REMOVE_TLSA, "") if records else None

    async def _other_mx(self, domain_mx: "MXAnswer", owner: str, name: str) -> _Row | None:
        """Judge the MX set of a name below the domain, or of ``*``, where mail should be refused as well."""
        mx, *addresses = await asyncio.gather(*(self._query(name, rdtype) for rdtype in ("MX", "A", "AAAA")))
        records: tuple[Any, ...] = mx.records
        targets = tuple(sorted((record.preference, record.exchange.to_text(omit_final_dot=True)) for record in records))
        if not targets and not any(answer.records for answer in addresses):
            return None
        is_alias_of_same = mx.is_alias and (mx.name == owner or (targets and targets == domain_mx.records))
        is_same = targets == ((0, "."),) or is_alias_of_same
        return _judge(
            (_shown(targets) or "none") + (f", alias (CNAME) of {mx.name}" if mx.is_alias else ""),
            f"{mx.name if mx.is_alias else name}. IN MX 0 .",
            (Status.OK, "mail to this name is treated as mail to the domain", is_same),
            (Status.WRONG, "mail to this name goes there; let it have a null MX", targets),
            (Status.ADVICE, "mail to this name goes to its address; let it have a null MX", True),
        )

    async def _texts(self, name: str) -> tuple[str, list[str]]:
        """Return the name that has the TXT records, not ``name`` if that is an alias, and their texts, sorted."""
        answer = await self._query(name, "TXT")
        records: tuple[Any, ...] = answer.records
        return answer.name, sorted(b"".join(record.strings).decode("latin-1") for record in records)

    async def _query(self, name: str, rdtype: str) -> Answer:
        if not _is_name(name):
            return Answer(name, exists=False, records=(), ttl=0, is_alias=False)
        return await self.resolver.query(name, rdtype)


def _is_name(text: str) -> bool:
    """Tell whether DNS can have the name: some are composed or come from a record, and too long or without a label."""
    import dns.exception
    import dns.name

    try:
        return bool(dns.name.from_text(text))
    except dns.exception.DNSException:
        return False


def _shown(records: Sequence[tuple[int, str]]) -> str:
    """Return an MX set on one line."""
    return _listed([f"{preference} {target}" for preference, target in records])


def _quoted(texts: Sequence[str]) -> str:
    """Return TXT records on one line."""
    return _listed([quoted(text.encode("latin-1")) for text in texts])


def _listed(records: Sequence[str]) -> str:
    shown = ", ".join(records[:_MAX_RECORDS_SHOWN])
    more = len(records) - _MAX_RECORDS_SHOWN
    return f"{len(records)} records, {shown} and {more} more" if more > 0 else shown
