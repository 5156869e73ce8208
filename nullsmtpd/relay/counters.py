"""What the relay's side counts since it started; nothing in it says who asked, or for what."""

import dataclasses

__all__ = ["Counters"]


@dataclasses.dataclass(slots=True)
class Counters:
    """Totals; each request is counted in ``requests``, and once in one of the five kinds of answer after it."""

    #: Netstrings that were answered, or wait for DNS.
    requests: int = 0
    #: OK: the domain has a null MX.
    null_mx: int = 0
    #: NOTFOUND: it has none.
    not_null: int = 0
    #: NOTFOUND: DNS did not tell; or not while the client was there to hear it.
    dns_failures: int = 0
    #: NOTFOUND: the key was an address literal, too long, or otherwise nothing that DNS knows.
    not_domains: int = 0
    #: PERM: asked for another map than ours.
    unknown_maps: int = 0
    #: Requests that were answered without waiting for DNS.
    cache_hits: int = 0
    #: Questions that DNS was asked.
    questions: int = 0
    #: Answers of DNS with a root MX beside others, or with another preference than 0.
    faulty_null_mx: int = 0
    #: Sessions ended because what came was no netstring.
    malformed: int = 0
    #: Clients that came and had a place.
    sessions: int = 0
    #: Clients closed because they were silent or slow, or to make room for others.
    let_go: int = 0
    #: Clients closed at once because there was no room.
    refused: int = 0

    def fields(self) -> dict[str, int]:
        """Return the counters as fields of the ``stats`` line."""
        return dataclasses.asdict(self)
