"""Home agent discovery by DNS (RFC 5555 §2.1, RFC 5026 §5.1): the decisions by themselves, and
real queries to a DNS server on the loopback."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.discovery import (
    AddressRecord,
    DnsDiscovery,
    HomeAgentAddresses,
    HomeAgentList,
    Question,
    RecordType,
    ServiceRecord,
    normal_name,
    order_services,
)
from dsmip_ipsec.node.discovery import discover_home_agents

A1, A2 = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:1::2")
V1, V2 = IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")
SRV = Question("_mip6._ipv6.example.com", RecordType.SRV)

ZONE = """
$ORIGIN example.com.
$TTL 60
@                       SOA  ns hostmaster 1 60 60 60 60
@                       NS   ns
ha1                     AAAA 2001:db8:1::1
ha1                     A    198.51.100.1
ha2                     AAAA 2001:db8:1::2
ha2                     A    198.51.100.2
v4only                  A    198.51.100.9
alias                   CNAME ha2
_mip6._ipv6             SRV  20 0 0 ha1
_mip6._ipv6             SRV  10 0 0 ha2
_mip6._ipv6.none        SRV  0 0 0 .
_mip6._ipv6.far         SRV  0 0 0 ha1.example.org.
_mip6._ipv6.big         SRV  0 0 0 ha1
"""


class Server(asyncio.DatagramProtocol):
    """An authoritative server of one zone. ``additional``: with addresses of SRV targets.
    ``truncate``: says over UDP that the answer is too long for it."""

    def __init__(self, *, additional: bool = False, truncate: bool = False) -> None:
        self.zone = dns.zone.from_text(ZONE, origin="example.com.", relativize=False)
        self.additional = additional
        self.truncate = truncate
        self.asked: list[tuple[str, str]] = []
        self.over_tcp = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(self.answer(data, truncate=self.truncate), addr)

    async def tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.over_tcp += 1
        length = int.from_bytes(await reader.readexactly(2), "big")
        reply = self.answer(await reader.readexactly(length), truncate=False)
        writer.write(len(reply).to_bytes(2, "big") + reply)
        await writer.drain()
        writer.close()

    def answer(self, data: bytes, *, truncate: bool) -> bytes:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name
        self.asked.append((str(name).lower(), dns.rdatatype.to_text(question.rdtype)))
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.AA
        if not name.is_subdomain(dns.name.from_text("example.com.")):
            reply.set_rcode(dns.rcode.REFUSED)
        elif self.zone.get_node(name) is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif truncate:
            reply.flags |= dns.flags.TC
        else:
            alias = self.zone.get_rrset(name, "CNAME")
            if alias is not None:
                reply.answer.append(alias)
                name = alias[0].target
            found = self.zone.get_rrset(name, question.rdtype)
            if found is not None:
                reply.answer.append(found)
                if self.additional and question.rdtype == dns.rdatatype.SRV:
                    for target in {data.target for data in found}:
                        for kind in ("AAAA", "A"):
                            extra = self.zone.get_rrset(target, kind)
                            if extra is not None:
                                reply.additional.append(extra)
        return reply.to_wire()


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[int]:
    """Run ``server`` on the loopback; the value is its port, the same for UDP and TCP."""
    loop = asyncio.get_running_loop()
    tcp = await asyncio.start_server(server.tcp, "127.0.0.1", 0)
    port = tcp.sockets[0].getsockname()[1]
    udp, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=("127.0.0.1", port))
    try:
        yield port
    finally:
        udp.close()
        tcp.close()


async def discover(
    server: Server, name: str, *, service: bool = False
) -> tuple[HomeAgentAddresses, ...]:
    async with serving(server) as port:
        return await discover_home_agents(
            name, service=service, name_servers=["127.0.0.1"], port=port, timeout=5.0
        )


# --- real queries ---


async def test_rfc5555_2_1_by_name() -> None:
    server = Server()
    assert await discover(server, "HA1.example.com") == (HomeAgentAddresses(A1, V1),)
    assert sorted(server.asked) == [("ha1.example.com.", "A"), ("ha1.example.com.", "AAAA")]


@pytest.mark.rfc("5555-2.1-1")
@pytest.mark.parametrize("additional", [False, True])
async def test_by_service(additional: bool) -> None:
    server = Server(additional=additional)
    found = await discover(server, "example.com", service=True)
    assert found == (HomeAgentAddresses(A2, V2), HomeAgentAddresses(A1, V1)), "by priority"
    assert server.asked[0] == ("_mip6._ipv6.example.com.", "SRV")
    assert len(server.asked) == (1 if additional else 5), "RFC 5026 §5.1.2: saves a round trip"


async def test_alias_and_truncated_answers() -> None:
    assert await discover(Server(), "alias.example.com") == (HomeAgentAddresses(A2, V2),)
    server = Server(truncate=True)
    assert await discover(server, "big.example.com", service=True)
    assert server.over_tcp >= 2


@pytest.mark.parametrize(
    ("name", "service", "message"),
    [
        ("nobody.example.com", False, "no home agent found"),
        ("nobody.example.com", True, "no home agent found"),
        ("v4only.example.com", False, "no home agent found"),
        ("none.example.com", True, "says that it has no home agent service"),
        ("far.example.com", True, "no name server answered"),  # the server refuses the target
        ("not a name", False, "not a DNS name"),
        ("a..b", True, "not a DNS name"),
        ("x" * 64 + ".com", False, "not a DNS name"),
        ("", False, "not a DNS name"),
    ],
)
async def test_what_is_not_found_is_a_typed_error(name: str, service: bool, message: str) -> None:
    with pytest.raises(MobilityError, match=message) as caught:
        await discover(Server(), name, service=service)
    assert caught.value.hint


async def test_nobody_answers() -> None:
    loop = asyncio.get_running_loop()
    silent, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )
    port = silent.get_extra_info("sockname")[1]
    try:
        with pytest.raises(MobilityError, match="no name server answered"):
            await discover_home_agents(
                "example.com", service=True, name_servers=["127.0.0.1"], port=port, timeout=0.3
            )
    finally:
        silent.close()


async def test_broken_name_server_address() -> None:
    with pytest.raises(MobilityError) as caught:
        await discover_home_agents("example.com", service=True, name_servers=["nonsense"])
    assert caught.value.hint


# --- the decisions ---


def service(target: str, priority: int = 0, weight: int = 0) -> ServiceRecord:
    return ServiceRecord(SRV.name, priority, weight, 0, target)


def test_rfc2782_weights_are_proportions() -> None:
    bits = random.Random(7).getrandbits
    records = [service("a", 1, 1), service("b", 1, 3), service("z", 0, 0), service("c", 1, 0)]
    first: Counter[str] = Counter()
    for _ in range(4000):
        ordered = [each.target for each in order_services(records, bits)]
        assert ordered[0] == "z"
        assert sorted(ordered) == ["a", "b", "c", "z"]
        first[ordered[1]] += 1
    # The number is drawn from 0..4, both included: 0 is c's, 1 is a's, 2 to 4 are b's.
    assert first["c"] / 4000 == pytest.approx(1 / 5, abs=0.03)
    assert first["a"] / 4000 == pytest.approx(1 / 5, abs=0.03)
    assert first["b"] / 4000 == pytest.approx(3 / 5, abs=0.03)


def test_only_what_was_asked_for_counts() -> None:
    discovery = DnsDiscovery("example.com", random.Random(1).getrandbits, service=True)
    assert discovery.questions() == (SRV,)
    foreign = ServiceRecord("_sip._udp.example.com", 0, 0, 0, "evil.example.com")
    poison = AddressRecord("evil.example.com", A2)
    discovery.answered(SRV, [foreign, poison, service("HA1.Example.com.")])
    assert {question.name for question in discovery.questions()} == {"ha1.example.com"}
    aaaa = Question("ha1.example.com", RecordType.AAAA)
    unusable = [AddressRecord("ha1.example.com", IPv6Address(each)) for each in ("fe80::1", "::1")]
    discovery.answered(aaaa, [*unusable, AddressRecord("ha1.example.com", A1), poison])
    discovery.answered(aaaa, [AddressRecord("ha1.example.com", A2)])  # not asked for any more
    discovery.answered(Question("ha1.example.com", RecordType.A), [])
    assert discovery.done
    assert discovery.home_agents() == (HomeAgentAddresses(A1, None),)


def test_answers_are_bounded() -> None:
    discovery = DnsDiscovery("example.com", random.Random(1).getrandbits, service=True)
    discovery.answered(SRV, [service(f"ha{n}.example.com") for n in range(500)])
    assert len(discovery.questions()) == 2 * 16
    for question in discovery.questions():
        more = [AddressRecord(question.name, IPv6Address(int(A1) + n)) for n in range(500)]
        discovery.answered(question, more)
    assert len(discovery.home_agents()) == 16


@given(
    targets=st.lists(st.text(max_size=70), max_size=6),
    weights=st.lists(st.integers(-5, 70000), max_size=6),
    name=st.text(max_size=20),
)
def test_no_answer_raises(targets: list[str], weights: list[int], name: str) -> None:
    discovery = DnsDiscovery("example.com", random.Random(1).getrandbits, service=True)
    records = [service(t, 0, w) for t, w in zip(targets, weights, strict=False)]
    discovery.answered(SRV, [*records, AddressRecord(name, A1)])
    for question in discovery.questions():
        assert normal_name(question.name) == question.name
        discovery.answered(question, [AddressRecord(question.name, V1)])
    discovery.home_agents()


def test_learned_home_agents() -> None:
    agents = HomeAgentList(HomeAgentAddresses(A1))
    agents.learn([HomeAgentAddresses(A1, V1), HomeAgentAddresses(A2), HomeAgentAddresses(A2)])
    assert list(agents) == [HomeAgentAddresses(A1, V1), HomeAgentAddresses(A2)]
    assert agents.current == HomeAgentAddresses(A1, V1)
    agents.learn([HomeAgentAddresses(IPv6Address(n + 9)) for n in range(100)])
    assert len(list(agents)) == 16
