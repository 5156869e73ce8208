"""The addresses that DNS has for a name: what a mail relay would connect to, whatever /etc/hosts says."""

from nullsmtpd.null_mx import DNSError

__all__ = ["look_up_addresses"]


async def look_up_addresses(
    name: str,
    *,
    resolver: tuple[str, int] | None = None,
    timeout: float,  # noqa: ASYNC109 - the DNS library keeps it
) -> list[str]:
    """Ask DNS, within ``timeout`` seconds, for the AAAA and A records of an ASCII name; return none when it has none.

    The arguments are those of `nullsmtpd.null_mx.look_up_mx`, and so is `DNSError`.
    """
    import dns.asyncresolver
    import dns.exception
    import dns.resolver

    try:
        stub = dns.asyncresolver.Resolver(configure=resolver is None)
        if resolver is not None:
            address, stub.port = resolver
            stub.nameservers = [address]
        found = await stub.resolve_name(f"{name}.", lifetime=timeout, raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return []
    except dns.exception.Timeout as error:
        raise DNSError(name, "timed out") from error
    except (dns.exception.DNSException, OSError, ValueError) as error:
        raise DNSError(name, "no usable answer") from error
    return list(found.addresses())
