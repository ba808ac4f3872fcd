"""Home agent discovery by DNS, with real queries (RFC 5555 §2.1, RFC 5026 §5.1).

What to ask and what to make of it is decided in :mod:`dsmip_ipsec.mobility.discovery`; here is
only the resolver (dnspython's), which caches nothing and falls back to TCP by itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.discovery import (
    AddressRecord,
    DnsDiscovery,
    HomeAgentAddresses,
    Question,
    Record,
    ServiceRecord,
)


async def discover_home_agents(
    name: str,
    *,
    service: bool,
    name_servers: Sequence[str] = (),
    port: int = 53,
    timeout: float = 5.0,
    random_bits: Callable[[int], int] = secrets.randbits,
) -> tuple[HomeAgentAddresses, ...]:
    """The home agents called ``name``, or those that offer Mobile IPv6 in the domain ``name``
    (``service``), the one to try first in front.

    ``name_servers``: addresses to ask instead of those of the system's resolver configuration.
    ``timeout``: seconds for all of it. Raises :class:`MobilityError` when there is none, no name
    server answers, or ``name`` is no DNS name.
    """
    discovery = DnsDiscovery(name, random_bits, service=service)
    resolver = _resolver(name_servers, port)
    silent: list[str] = []
    try:
        async with asyncio.timeout(timeout):
            while not discovery.done:
                questions = discovery.questions()
                answers = await asyncio.gather(
                    *(_ask(resolver, question, timeout, silent) for question in questions)
                )
                for question, records in zip(questions, answers, strict=True):
                    discovery.answered(question, records)
    except TimeoutError:
        silent.append("no answer in time")
    found = discovery.home_agents()
    if found:
        return found
    if silent:
        raise MobilityError(
            f"no name server answered for {name}: {silent[0]}",
            hint="is the name server reachable from this network?",
        )
    if discovery.refused:
        raise MobilityError(
            f"{name} says that it has no home agent service",
            hint="ask for the name of a home agent instead",
        )
    raise MobilityError(
        f"no home agent found for {name}",
        hint="it needs an AAAA record, and for IPv4-only networks an A record too"
        if not service
        else "the domain needs SRV records at _mip6._ipv6 that name hosts with AAAA records",
    )


def _resolver(name_servers: Sequence[str], port: int) -> dns.asyncresolver.Resolver:
    try:
        resolver = dns.asyncresolver.Resolver(configure=not name_servers)
        if name_servers:
            resolver.nameservers = list(name_servers)
            resolver.port = port
    except (dns.exception.DNSException, ValueError) as error:
        raise MobilityError(
            f"no resolver: {error}", hint="give the addresses of name servers"
        ) from error
    resolver.cache = None
    return resolver


async def _ask(
    resolver: dns.asyncresolver.Resolver, question: Question, timeout: float, silent: list[str]
) -> tuple[Record, ...]:
    """The records of an answer; () when there are none. Adds to ``silent`` why nobody answered."""
    try:
        answer = await resolver.resolve(
            question.name + ".",
            question.type.value,
            raise_on_no_answer=False,
            lifetime=timeout,
            search=False,
        )
    except dns.resolver.NXDOMAIN:
        return ()
    except (dns.exception.DNSException, OSError) as error:
        silent.append(f"{question.type} {question.name}: {type(error).__name__}")
        return ()
    records = list(_records(answer.response))
    if answer.rrset is not None:
        # Behind an alias, the records have another name than the one that was asked for.
        wanted = str(answer.rrset.name)
        records = [
            AddressRecord(question.name, record.address)
            if isinstance(record, AddressRecord) and record.name == wanted
            else record
            for record in records
        ]
    return tuple(records)


def _records(message: dns.message.Message) -> list[Record]:
    """The SRV, A and AAAA records of answer and additional section."""
    records: list[Record] = []
    for rrset in (*message.answer, *message.additional):
        name = str(rrset.name)
        for data in rrset:
            if rrset.rdtype == dns.rdatatype.SRV:
                target = "" if data.target == dns.name.root else str(data.target)
                records.append(ServiceRecord(name, data.priority, data.weight, data.port, target))
            elif rrset.rdtype == dns.rdatatype.AAAA:
                records.append(AddressRecord(name, IPv6Address(data.address)))
            elif rrset.rdtype == dns.rdatatype.A:
                records.append(AddressRecord(name, IPv4Address(data.address)))
    return records
