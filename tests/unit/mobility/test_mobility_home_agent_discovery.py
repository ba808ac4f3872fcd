"""ICMPv6 at the home agent: discovery of home agents and of prefixes (RFC 6275 §10.5, §10.6;
RFC 5555 §2.2; RFC 3963 §7)."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    ELSEWHERE,
    HOME,
    NAT,
    NO_SUBSCRIBER,
    PUBLIC,
    ack,
    agent,
    native,
    none,
    only,
    over_udp,
    update,
)
from scapy.layers.inet6 import ICMPv6HAADReply, ICMPv6MPAdv, ICMPv6NDOptPrefixInfo

from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agents_list import (
    MAX_REPLY_ADDRESSES,
    HomeAgentAdvertisement,
    home_agents_anycast,
)
from dsmip_ipsec.mobility.home_prefixes import LinkPrefix
from dsmip_ipsec.mobility.types import (
    DropReason,
    Event,
    IcmpPacket,
    OuterAddress,
    Output,
    SendIcmp,
)
from dsmip_ipsec.wire import icmp6

HOME_PREFIX = IPv6Network("2001:db8:1::/64")
NEW_PREFIX = IPv6Network("2001:db8:11::/64")
ANYCAST = IPv6Address("2001:db8:1:0:fdff:ffff:ffff:fffe")
PEER = IPv6Address("fe80::2")
PEER_GLOBAL = IPv6Address("2001:db8:1::2")
DAY = 86_400.0


def request(*, router: bool = False, destination: IPv6Address = ANYCAST) -> IcmpPacket:
    message = icmp6.HomeAgentAddressDiscoveryRequest(77, router)
    return IcmpPacket(
        CARE_OF, destination, icmp6.encode(message, CARE_OF, destination), protected=False
    )


def reply(outputs: list[Output]) -> icmp6.HomeAgentAddressDiscoveryReply:
    sent = only(outputs, SendIcmp)
    message = icmp6.decode(sent.message, sent.source, sent.destination)
    assert isinstance(message, icmp6.HomeAgentAddressDiscoveryReply)
    return message


def peer(
    number: int = 2,
    *,
    lifetime: int | None = None,
    router_lifetime: int = 1800,
    preference: int | None = None,
    home_agent: bool = True,
    routers: bool = False,
    valid: int = 0xFFFFFFFF,
    addresses: int = 1,
) -> HomeAgentAdvertisement:
    prefixes = tuple(
        icmp6.PrefixInformation(
            64,
            IPv6Address(f"2001:db8:1::{number:x}:{address:x}"),
            valid,
            valid,
            router_address=True,
        )
        for address in range(addresses)
    )
    return HomeAgentAdvertisement(
        IPv6Address(f"fe80::{number:x}"),
        home_agent,
        router_lifetime,
        prefixes,
        preference,
        lifetime,
        routers,
    )


def address_of(number: int) -> IPv6Address:
    return IPv6Address(f"2001:db8:1::{number:x}:0")


# --- home agents (§10.5) ---


@pytest.mark.rfc("6275-8.4-9", "6275-10.5.1-4")
@pytest.mark.parametrize("destination", [ANYCAST, AGENT])
def test_rfc6275_10_5_1_request_to_the_anycast_address_is_answered(
    destination: IPv6Address,
) -> None:
    assert home_agents_anycast(HOME_PREFIX) == ANYCAST
    sent = only(agent().handle_icmp(request(destination=destination), 0.0), SendIcmp)
    assert (sent.source, sent.destination, sent.protected) == (AGENT, CARE_OF, False)
    read = ICMPv6HAADReply(sent.message)
    assert (read.id, read.addresses) == (77, [str(AGENT)])


def test_rfc2526_anycast_address_without_eui64() -> None:
    assert home_agents_anycast(IPv6Network("2001:db8::/120")) == IPv6Address("2001:db8::fe")


def test_request_for_another_link_is_dropped() -> None:
    outputs = agent().handle_icmp(request(destination=ELSEWHERE), 0.0)
    assert only(outputs, Event).detail["reason"] == DropReason.WRONG_DESTINATION


@pytest.mark.rfc(
    "6275-8.4-8",
    "6275-8.4-10",
    "6275-10.1-1",
    "6275-10.5.1-1",
    "6275-10.5.1-5",
    "6275-10.5.1-6",
)
def test_rfc6275_10_5_1_addresses_by_falling_preference() -> None:
    engine = agent(preference=5)
    engine.router_advertisement(peer(2, preference=9), 0.0)
    engine.router_advertisement(peer(3), 0.0)  # no option: preference 0
    engine.router_advertisement(peer(4, preference=-3), 0.0)
    assert reply(engine.handle_icmp(request(), 1.0)).addresses == (
        address_of(2),
        AGENT,
        address_of(3),
        address_of(4),
    )


@pytest.mark.rfc("6275-10.5.1-7", "6275-10.5.1-8")
def test_rfc6275_10_5_1_equal_preference_is_shuffled() -> None:
    engine = HomeAgent(agent().config, random.Random(5).getrandbits)
    engine.router_advertisement(peer(2, addresses=3), 0.0)
    engine.router_advertisement(peer(3), 0.0)
    seen = {reply(engine.handle_icmp(request(), float(now))).addresses for now in range(200)}
    assert {order[0] for order in seen} > {AGENT, address_of(3)}
    of_one = {tuple(a for a in order if int(a) >> 16 == int(address_of(2)) >> 16) for order in seen}
    assert len(of_one) == 6, "the addresses of one home agent are shuffled"
    for order in seen:  # and stand together
        places = [i for i, a in enumerate(order) if int(a) >> 16 == int(address_of(2)) >> 16]
        assert places == list(range(places[0], places[0] + 3))


@pytest.mark.rfc("6275-10.5.1-9", "6275-10.5.1-10")
def test_rfc6275_10_5_1_reply_fits_the_minimum_mtu_with_the_best() -> None:
    engine = agent()
    for number in range(2, 100):
        engine.router_advertisement(peer(number, preference=number), 0.0)
    sent = only(engine.handle_icmp(request(), 1.0), SendIcmp)
    assert 1280 - 16 < 40 + len(sent.message) <= 1280
    addresses = reply([sent]).addresses
    assert len(addresses) == MAX_REPLY_ADDRESSES
    assert addresses[0] == address_of(99)
    assert address_of(2) not in addresses


@pytest.mark.rfc("6275-10.1-3", "6275-10.5.1-2", "6275-10.5.1-3")
@pytest.mark.parametrize(("lifetime", "ends"), [(None, 1800.0), (60, 60.0)])
def test_rfc6275_10_5_1_entries_live_as_long_as_advertised(
    lifetime: int | None, ends: float
) -> None:
    engine = agent()
    engine.router_advertisement(peer(2, lifetime=lifetime), 0.0)
    assert address_of(2) in reply(engine.handle_icmp(request(), ends - 1)).addresses
    assert reply(engine.handle_icmp(request(), ends)).addresses == (AGENT,)
    assert not engine.discovery.home_agents.entries


@pytest.mark.rfc("6275-10.1-2")
def test_rfc6275_10_1_addresses_go_with_their_prefix() -> None:
    engine = agent()
    engine.router_advertisement(peer(2, valid=30), 0.0)
    assert address_of(2) in reply(engine.handle_icmp(request(), 29.0)).addresses
    assert reply(engine.handle_icmp(request(), 30.0)).addresses == (AGENT,)
    assert engine.discovery.home_agents.entries, "the entry itself stays"


@pytest.mark.parametrize("last", [peer(2, home_agent=False), peer(2, lifetime=0)])
def test_rfc6275_10_5_1_home_agent_that_is_none_any_more(last: HomeAgentAdvertisement) -> None:
    engine = agent()
    engine.router_advertisement(peer(2), 0.0)
    engine.router_advertisement(last, 1.0)
    assert reply(engine.handle_icmp(request(), 2.0)).addresses == (AGENT,)


def test_advertisements_cannot_fill_the_memory() -> None:
    engine = agent()
    for number in range(2, 2000):
        engine.router_advertisement(peer(number, addresses=40), 0.0)
    entries = engine.discovery.home_agents.entries
    assert len(entries) == 256
    assert max(len(entry.addresses) for entry in entries.values()) == 16


def test_rfc3963_7_2_home_agents_for_mobile_routers() -> None:
    engine = agent(subscribers={})  # serves no mobile routers itself
    engine.router_advertisement(peer(2), 0.0)
    nobody = reply(engine.handle_icmp(request(router=True), 1.0))
    assert not nobody.mobile_router
    assert AGENT in nobody.addresses
    engine.router_advertisement(peer(3, routers=True), 2.0)
    somebody = reply(engine.handle_icmp(request(router=True), 3.0))
    assert (somebody.mobile_router, somebody.addresses) == (True, (address_of(3),))
    assert not reply(engine.handle_icmp(request(), 4.0)).mobile_router


# --- prefixes (§10.6) ---


def solicitation(
    *,
    source: IPv6Address = CARE_OF,
    home: IPv6Address | None = HOME,
    outer: OuterAddress | None = None,
    protected: bool = True,
    destination: IPv6Address = AGENT,
) -> IcmpPacket:
    message = icmp6.encode(icmp6.MobilePrefixSolicitation(4711), home or source, destination)
    return IcmpPacket(source, destination, message, outer, home, protected=protected)


@pytest.mark.rfc(
    "6275-8.4-11",
    "6275-10.6.2-1",
    "6275-10.6.3-1",
    "6275-10.6.3-2",
    "6275-10.6.3-3",
    "6275-10.6.3-4",
    "6275-10.6.3-5",
    "6275-10.6.3-6",
)
@pytest.mark.parametrize("bound", [False, True])
def test_rfc6275_10_6_2_solicitation_is_answered_right_away(bound: bool) -> None:
    engine = agent(managed=True)
    engine.set_prefixes(
        [LinkPrefix(HOME_PREFIX, 1000.0, 500.5, router_address=AGENT), LinkPrefix(NEW_PREFIX)],
        0.0,
        managed=True,
    )
    if bound:
        engine.handle(native(update(1)), 0.0)
    sent = only(engine.handle_icmp(solicitation(), 100.0), SendIcmp)
    assert (sent.source, sent.destination, sent.type2_routing) == (AGENT, CARE_OF, HOME)
    assert (sent.remote, sent.protected) == (None, True)
    assert icmp6.decode(sent.message, AGENT, HOME), "the checksum is over the home address"
    read = ICMPv6MPAdv(sent.message)
    assert (read.id, read.flags) == (4711, 0b10), "M, not O"
    first = read[ICMPv6NDOptPrefixInfo]
    assert (first.prefix, first.prefixlen) == (str(AGENT), 64)
    assert (first.validlifetime, first.preferredlifetime) == (900, 400)
    assert (first.L, first.A, first.R) == (1, 1, 1)
    second = first.payload[ICMPv6NDOptPrefixInfo]
    assert (second.prefix, second.validlifetime, second.R) == ("2001:db8:11::", 0xFFFFFFFF, 0)


@pytest.mark.parametrize(("port", "udp"), [(0, False), (61000, True)])
def test_rfc5555_2_2_solicitation_inside_ipv4_is_answered_inside_ipv4(port: int, udp: bool) -> None:
    outer = OuterAddress(PUBLIC, port)
    packet = solicitation(source=HOME, outer=outer)
    sent = only(agent().handle_icmp(packet, 0.0), SendIcmp)
    assert (sent.destination, sent.type2_routing) == (HOME, HOME)
    assert (sent.local, sent.remote, sent.udp) == (AGENT_IPV4, outer, udp)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (solicitation(protected=False), DropReason.UNPROTECTED),
        (solicitation(destination=ELSEWHERE), DropReason.WRONG_DESTINATION),
        (solicitation(source=HOME, home=None), DropReason.NO_HOME_ADDRESS_OPTION),
        (solicitation(home=NO_SUBSCRIBER), DropReason.HOME_ADDRESS_INVALID),
        (IcmpPacket(CARE_OF, AGENT, b"\x92\0\0\0\0\0\0\0"), DropReason.MALFORMED),
        (
            IcmpPacket(
                CARE_OF,
                AGENT,
                icmp6.encode(icmp6.MobilePrefixAdvertisement(1), CARE_OF, AGENT),
            ),
            DropReason.UNEXPECTED_MESSAGE,
        ),
    ],
)
def test_what_gets_no_answer(packet: IcmpPacket, reason: DropReason) -> None:
    engine = agent()
    outputs = engine.handle_icmp(packet, 0.0)
    assert none(outputs, SendIcmp)
    assert only(outputs, Event).detail["reason"] == reason
    assert engine.counters[f"dropped.{reason}"] == 1


@pytest.mark.rfc("6275-8.4-12")
def test_rfc6275_8_4_advertisements_can_be_switched_off() -> None:
    engine = agent(prefix_advertisements=False)
    assert none(engine.handle_icmp(solicitation(), 0.0), SendIcmp)
    engine.handle(native(update(1)), 0.0)
    engine.set_prefixes([LinkPrefix(HOME_PREFIX, 9e9), LinkPrefix(NEW_PREFIX)], 1.0)
    assert engine.next_deadline() == 600.0, "nothing but the binding's lifetime"


def bound_engine(seed: int = 1) -> HomeAgent:
    engine = HomeAgent(agent(max_lifetime=200_000).config, random.Random(seed).getrandbits)
    assert ack(engine.handle(native(update(1, lifetime=50_000)), 0.0)).status == 0
    return engine


def advertisements(engine: HomeAgent, until: float) -> list[float]:
    """When advertisements are sent, and that they are sent when the deadline says."""
    times: list[float] = []
    while (deadline := engine.next_deadline()) is not None and deadline <= until:
        times += [deadline for each in engine.expire(deadline) if isinstance(each, SendIcmp)]
    return times


@pytest.mark.rfc(
    "6275-10.3.1-34", "6275-10.6.2-1", "6275-10.6.2-2", "6275-10.6.2-3", "6275-10.6.2-4"
)
@pytest.mark.parametrize(
    "prefixes",
    [
        [LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)],  # a new prefix
        [LinkPrefix(HOME_PREFIX, preferred_until=500_000.0)],  # a lifetime reconfigured
        [LinkPrefix(HOME_PREFIX, autonomous=False)],  # a flag
    ],
)
def test_rfc6275_10_6_2_changes_are_told_and_told_again(prefixes: list[LinkPrefix]) -> None:
    engine = bound_engine()
    engine.set_prefixes(prefixes, 100.0)
    times = advertisements(engine, 90_000.0)
    first = times[0]
    assert 100 + 600 <= first < 100 + DAY, "RAND_ADV_DELAY"
    assert [t - first for t in times] == [0, 3, 9, 21], "PREFIX_ADV_TIMEOUT, doubled, 3 times"


def test_rfc6275_10_6_2_delays_are_spread() -> None:
    firsts = set()
    for seed in range(20):
        engine = bound_engine(seed)
        engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 0.0)
        firsts.add(advertisements(engine, DAY)[0])
    assert len(firsts) > 15


def test_rfc6275_10_6_2_what_is_scheduled_stays_where_it_is() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 100.0)
    first = engine.next_deadline()
    assert first is not None
    engine.set_prefixes([LinkPrefix(HOME_PREFIX, autonomous=False)], first - 1.0)
    message = icmp6.decode(only(engine.expire(first), SendIcmp).message, AGENT, HOME)
    assert isinstance(message, icmp6.MobilePrefixAdvertisement)
    assert len(message.options) == 1, "of the newest prefixes"


def test_unchanged_prefixes_are_not_told() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX)], 100.0)
    assert advertisements(engine, DAY - 1) == []


def test_rfc6275_10_6_2_at_least_one_a_day() -> None:
    engine = bound_engine()
    assert advertisements(engine, DAY + 1) == [DAY]


def test_rfc6275_10_6_2_solicitation_acknowledges() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 0.0)
    deadline = engine.next_deadline()
    assert deadline is not None
    assert only(engine.expire(deadline), SendIcmp)
    assert only(engine.handle_icmp(solicitation(), deadline + 1), SendIcmp)
    assert advertisements(engine, deadline + 1 + DAY) == [deadline + 1 + DAY]


@pytest.mark.rfc("6275-10.6.2-5")
def test_rfc6275_10_6_2_no_more_after_the_binding() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 0.0)
    deadline = engine.next_deadline()
    assert deadline is not None
    engine.expire(deadline)
    engine.handle(native(update(2, lifetime=0)), deadline + 1)
    assert advertisements(engine, inf) == []


@pytest.mark.rfc("6275-10.6.2-6")
def test_rfc6275_10_6_2_again_when_a_silent_mobile_node_sends_an_update() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 0.0)
    given_up = advertisements(engine, DAY)[-1] + 100
    engine.expire(given_up)
    engine.handle(native(update(2, lifetime=50_000)), given_up)
    assert advertisements(engine, given_up + 1) == [given_up]


@pytest.mark.rfc("6275-10.6.2-7")
def test_rfc6275_10_6_2_newer_prefixes_replace_what_is_unanswered() -> None:
    engine = bound_engine()
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX)], 0.0)
    deadline = engine.next_deadline()
    assert deadline is not None
    engine.expire(deadline)
    third = LinkPrefix(IPv6Network("2001:db8:12::/64"))
    engine.set_prefixes([LinkPrefix(HOME_PREFIX), LinkPrefix(NEW_PREFIX), third], deadline + 1)
    following = engine.next_deadline()
    assert following is not None
    assert following >= deadline + 600, "the old one isn't sent again"
    message = icmp6.decode(only(engine.expire(following), SendIcmp).message, AGENT, HOME)
    assert isinstance(message, icmp6.MobilePrefixAdvertisement)
    assert len(message.options) == 3


@pytest.mark.rfc("6275-10.6.3-6")
def test_unsolicited_advertisement_goes_the_way_of_the_binding() -> None:
    engine = HomeAgent(agent(max_lifetime=200_000).config)
    engine.handle(over_udp(update(1, lifetime=50_000)), 0.0)
    sent = only(engine.expire(DAY), SendIcmp)
    assert (sent.destination, sent.local, sent.remote) == (HOME, AGENT_IPV4, NAT)
    assert (sent.udp, sent.type2_routing) == (True, HOME)


@given(st.binary(max_size=80), st.booleans(), st.booleans())
def test_noise_raises_nothing(data: bytes, protected: bool, valid: bool) -> None:
    """Also with a good checksum."""
    if valid and len(data) >= 4:
        data = icmp6.encode(icmp6.UnknownIcmp(data[0], data[1], data[4:]), HOME, AGENT)
    packet = IcmpPacket(CARE_OF, AGENT, data, None, HOME, protected=protected)
    agent().handle_icmp(packet, 0.0)


def test_ipv4_mapped_source_is_no_reason_to_answer() -> None:
    mapped = IPv6Address(f"::ffff:{IPv4Address('192.0.2.1')}")
    raw = icmp6.encode(icmp6.HomeAgentAddressDiscoveryRequest(1), mapped, ANYCAST)
    assert none(agent().handle_icmp(IcmpPacket(mapped, ANYCAST, raw), 0.0), SendIcmp)
