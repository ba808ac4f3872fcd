"""DHAAD and mobile prefix discovery, against the home agent's engine and by hand (RFC 6275
§11.4)."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    ELSEWHERE,
    HOME,
    NAT,
    PRIVATE,
    PUBLIC,
    agent,
    events,
    none,
    only,
)
from scapy.layers.inet6 import ICMPv6HAADRequest, ICMPv6MPSol, IPv6

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    EventKind,
    HomeAgentChanged,
    HomeAgentsDiscovered,
    HomePrefixesLearned,
    IcmpPacket,
    IPAddress,
    MobilityPacket,
    OuterAddress,
    Output,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.mobility import BindingAck, BindingUpdate, decode, encode
from dsmip_ipsec.wire.options import NatDetection

HOME_LINK = IPv6Network("2001:db8:1::/64")
ANYCAST = IPv6Address("2001:db8:1::fdff:ffff:ffff:fffe")
SECOND = IPv6Address("2001:db8:1::2")


def node(**changes: Any) -> MobileNode:
    settings: dict[str, Any] = {"home_prefix": HOME_LINK} | changes
    config = MobileNodeConfig(HOME, AGENT, AGENT_IPV4, **settings)
    return MobileNode(config, random.Random(5).getrandbits)


def registered(care_of: IPAddress, home: HomeAgent, **changes: Any) -> MobileNode:
    """A node whose binding ``home`` has accepted at time 0."""
    engine = node(**changes)
    update = only(engine.attach(care_of, 0.0), SendMobility)
    outer = None
    if care_of.version == 4:
        outer = NAT if care_of == PRIVATE else OuterAddress(care_of, 4191)
    packet = MobilityPacket(update.source, AGENT, update.message, outer, update.home_address_option)
    reply = only(home.handle(packet, 0.0), SendMobility)
    back = OuterAddress(AGENT_IPV4, 4191) if outer else None
    engine.handle(MobilityPacket(AGENT, reply.destination, reply.message, back), 0.1)
    assert engine.state is State.REGISTERED
    return engine


def carried(sent: SendIcmp, outer: OuterAddress | None = None) -> IcmpPacket:
    """What was sent, as it arrives."""
    return IcmpPacket(
        sent.source,
        sent.destination,
        sent.message,
        outer,
        sent.home_address_option,
        sent.type2_routing,
        sent.protected,
    )


# --- mobile prefix discovery ---


@pytest.mark.rfc("6275-8.5-13", "6275-11.4.2-2", "6275-11.4.2-3", "6275-11.4.3-1", "6275-11.4.3-8")
@pytest.mark.parametrize("care_of", [CARE_OF, PUBLIC, PRIVATE])
def test_prefixes_of_the_home_agents_engine(care_of: IPAddress) -> None:
    home = agent(managed=True)
    engine = registered(care_of, home)
    ask = only(engine.solicit_prefixes(1.0), SendIcmp)
    outer = None if ask.remote is None else NAT
    reply = only(home.handle_icmp(carried(ask, outer), 1.0), SendIcmp)
    learned = only(engine.handle_icmp(carried(reply), 1.1), HomePrefixesLearned)
    assert [each.prefix for each in learned.prefixes] == [HOME_LINK]
    assert (learned.managed, learned.other) == (True, False)
    again = engine.handle_icmp(carried(reply), 1.2)
    assert none(again, HomePrefixesLearned), "no other advertisement for this value"


def test_registrations_go_on_once_the_prefixes_are_known() -> None:
    """RFC 6275 §11.7.1: status 1 holds them; the answer lets them go."""
    engine = node()
    sent = only(engine.attach(PRIVATE, 0.0), SendMobility)
    update = decode(sent.message, HOME, AGENT)
    assert isinstance(update, BindingUpdate)
    ack = BindingAck(1, update.sequence, update.lifetime, options=(NatDetection(False, 30),))
    outputs = engine.handle(MobilityPacket(AGENT, HOME, encode(ack, AGENT, HOME), NAT), 0.1)
    ask = ICMPv6MPSol(only(outputs, SendIcmp).message)
    raw = icmp6.encode(icmp6.MobilePrefixAdvertisement(ask.id), AGENT, HOME)
    engine.handle_icmp(IcmpPacket(AGENT, HOME, raw, NAT, type2_routing=HOME), 0.2)
    assert engine.next_deadline() == 30.0
    assert not none(engine.tick(30.0), SendMobility)


@pytest.mark.rfc("5555-2.2-1")
@pytest.mark.parametrize(("care_of", "udp"), [(PUBLIC, False), (PRIVATE, True)])
def test_solicitation_from_an_ipv4_network(care_of: IPAddress, udp: bool) -> None:
    ask = only(registered(care_of, agent()).solicit_prefixes(1.0), SendIcmp)
    assert (ask.source, ask.home_address_option) == (HOME, HOME)
    assert (ask.local, ask.remote, ask.udp) == (care_of, OuterAddress(AGENT_IPV4, 4191), udp)
    assert ask.protected


def test_solicitation_from_an_ipv6_network_as_scapy_reads_it() -> None:
    ask = only(registered(CARE_OF, agent()).solicit_prefixes(1.0), SendIcmp)
    assert (ask.source, ask.home_address_option, ask.remote) == (CARE_OF, HOME, None)
    seen = ICMPv6MPSol(ask.message)
    seen.cksum = None  # to be computed by scapy, with the home address
    assert bytes(IPv6(src=str(HOME), dst=str(AGENT)) / seen)[40:] == ask.message


@pytest.mark.rfc("6275-11.4.3-4", "6275-11.4.3-7", "6275-11.4.3-3")
@pytest.mark.parametrize(
    "wrong",
    [
        {"source": ELSEWHERE},
        {"type2_routing": None},
        {"type2_routing": ELSEWHERE},
        {"protected": False},
        {"message": b"\x93\0\0\0\0\0\0\0"},
        {"message": b""},
    ],
)
def test_advertisements_that_fail_a_test_are_silently_discarded(wrong: dict[str, Any]) -> None:
    home = agent()
    engine = registered(CARE_OF, home)
    ask = only(engine.solicit_prefixes(1.0), SendIcmp)
    reply = carried(only(home.handle_icmp(carried(ask), 1.0), SendIcmp))
    assert engine.handle_icmp(replace(reply, **wrong), 1.1) == []
    assert not none(engine.handle_icmp(reply, 1.2), HomePrefixesLearned)
    assert node().handle_icmp(reply, 1.2) == [], "without a binding, none is accepted"


@pytest.mark.rfc("6275-11.4.3-5", "6275-11.4.3-6", "6275-11.4.2-4")
def test_unsolicited_advertisement_is_discarded_and_solicits() -> None:
    engine = registered(CARE_OF, agent())
    raw = icmp6.encode(icmp6.MobilePrefixAdvertisement(77), AGENT, HOME)
    packet = IcmpPacket(AGENT, CARE_OF, raw, type2_routing=HOME)
    outputs = engine.handle_icmp(packet, 1.0)
    first = only(outputs, SendIcmp)
    assert none(outputs, HomePrefixesLearned)
    assert engine.handle_icmp(packet, 1.5) == [], "one is out"
    second = only(registered(CARE_OF, agent()).solicit_prefixes(1.0), SendIcmp)
    third = engine.solicit_prefixes(9.0)
    assert ICMPv6MPSol(first.message).id != ICMPv6MPSol(only(third, SendIcmp).message).id
    assert second


@pytest.mark.rfc("6275-11.8-1", "6275-11.8-5")
def test_solicitations_back_off_from_three_seconds() -> None:
    engine = registered(CARE_OF, agent())
    only(engine.solicit_prefixes(1.0), SendIcmp)
    times: list[float] = []
    while len(times) < 6:
        due = engine.next_deadline()
        assert due is not None
        times += [due for each in engine.tick(due) if isinstance(each, SendIcmp)]
    waits = [b - a for a, b in zip([1.0, *times], times, strict=False)]
    assert waits == [3, 6, 12, 24, 32, 32]


@pytest.mark.rfc("6275-11.4.2-1", "6275-11.4.2-6", "6275-11.7.1-11")
def test_home_address_that_ends_to_be_valid() -> None:
    """Solicited well before, and registrations don't outlive it (RFC 6275 §11.7.1)."""
    engine = registered(CARE_OF, agent())
    ask = ICMPv6MPSol(only(engine.solicit_prefixes(1.0), SendIcmp).message)
    option = icmp6.PrefixInformation(64, HOME_LINK.network_address, 400, 200)
    raw = icmp6.encode(icmp6.MobilePrefixAdvertisement(ask.id, options=(option,)), AGENT, HOME)
    engine.handle_icmp(IcmpPacket(AGENT, CARE_OF, raw, type2_routing=HOME), 1.0)
    update = decode(only(engine.refresh(201.0), SendMobility).message, HOME, AGENT)
    assert isinstance(update, BindingUpdate)
    assert update.lifetime == 50
    assert not none(engine.tick(301.0), SendIcmp)


# --- dynamic home agent address discovery ---


@pytest.mark.rfc("6275-8.5-14")
def test_home_agents_engine_answers_dhaad() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    ask = only(engine.discover_home_agents(0.5), SendIcmp)
    assert (ask.source, ask.destination, ask.protected) == (CARE_OF, ANYCAST, False)
    seen = ICMPv6HAADRequest(ask.message)
    seen.cksum = None
    assert bytes(IPv6(src=str(CARE_OF), dst=str(ANYCAST)) / seen)[40:] == ask.message
    reply = only(agent().handle_icmp(carried(ask), 0.6), SendIcmp)
    found = only(engine.handle_icmp(carried(reply), 0.7), HomeAgentsDiscovered)
    assert found.home_agents == (AGENT,)


@pytest.mark.rfc("6275-11.4.1-6")
def test_dhaad_is_repeated_four_times_with_doubled_waits() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    engine.discover_home_agents(0.0)
    times: list[float] = []
    end = 0.0
    while not end:
        due = engine.next_deadline()
        assert due is not None
        outputs = engine.tick(due)
        times += [due for each in outputs if isinstance(each, SendIcmp)]
        end = due if EventKind.DISCOVERY_FAILED in events(outputs) else 0.0
    assert times == [3.0, 9.0, 21.0, 45.0]
    assert end == 93.0


def discovered(ask: SendIcmp, *addresses: IPv6Address, **changes: Any) -> IcmpPacket:
    settings: dict[str, Any] = {"identifier": ICMPv6HAADRequest(ask.message).id, **changes}
    reply = icmp6.HomeAgentAddressDiscoveryReply(addresses=addresses, **settings)
    raw = icmp6.encode(reply, SECOND, CARE_OF)
    return IcmpPacket(SECOND, CARE_OF, raw, protected=False)


def test_refused_node_looks_for_other_home_agents_by_itself() -> None:
    engine = node()
    sent = only(engine.attach(CARE_OF, 0.0), SendMobility)
    update = decode(sent.message, HOME, AGENT)
    assert isinstance(update, BindingUpdate)
    raw = encode(BindingAck(129, update.sequence, 0), AGENT, HOME)
    ask = only(engine.handle(MobilityPacket(AGENT, CARE_OF, raw, None), 0.1), SendIcmp)
    outputs = engine.handle_icmp(discovered(ask, AGENT, SECOND), 5.0)
    assert only(outputs, HomeAgentChanged).new == SECOND
    assert only(outputs, SendMobility).destination == SECOND
    assert engine.state == "registering"


def test_silent_home_agent_is_searched_for() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    asks: list[tuple[float, SendIcmp]] = []
    while not asks:
        due = engine.next_deadline()
        assert due is not None
        assert due < 100
        asks += [(due, each) for each in engine.tick(due) if isinstance(each, SendIcmp)]
    assert asks[0][0] == pytest.approx(78.5), "after the whole back-off"
    outputs = engine.handle_icmp(discovered(asks[0][1], SECOND), 80.0)
    assert only(outputs, SendMobility).destination == SECOND


def test_dhaad_replies_that_are_none() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    ask = only(engine.discover_home_agents(0.0), SendIcmp)
    number = ICMPv6HAADRequest(ask.message).id
    for wrong in (
        discovered(ask, SECOND, identifier=number ^ 1),
        discovered(ask),
        discovered(ask, IPv6Address("ff02::1"), IPv6Address("fe80::1"), IPv6Address("::")),
        replace(discovered(ask, SECOND), destination=HOME),
        replace(discovered(ask, SECOND), message=b"\x91\0\0\0"),
    ):
        assert engine.handle_icmp(wrong, 0.1) == []
    many = [IPv6Address(int(SECOND) + n) for n in range(60)]
    found = only(engine.handle_icmp(discovered(ask, *many), 0.2), HomeAgentsDiscovered)
    assert list(found.home_agents) == many[:16]


def test_router_wants_home_agents_for_routers() -> None:
    engine = node(mobile_router=True)
    engine.attach(CARE_OF, 0.0)
    ask = only(engine.discover_home_agents(0.0), SendIcmp)
    assert ask.message[6] & 0x80
    assert engine.handle_icmp(discovered(ask, SECOND), 0.1) == []
    assert engine.handle_icmp(discovered(ask, SECOND, mobile_router=True), 0.2)


def test_rfc5555_2_1_no_dhaad_in_ipv4_networks() -> None:
    engine = node()
    engine.attach(PUBLIC, 0.0)
    with pytest.raises(MobilityError, match="anycast") as caught:
        engine.discover_home_agents(0.0)
    assert "DNS" in caught.value.hint
    engine = node(home_prefix=None)
    engine.attach(CARE_OF, 0.0)
    with pytest.raises(MobilityError) as caught:
        engine.discover_home_agents(0.0)
    assert "home_prefix" in caught.value.hint


def test_moving_ends_a_search() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    ask = only(engine.discover_home_agents(0.0), SendIcmp)
    outputs: list[Output] = engine.attach(PUBLIC, 1.0)
    assert none(outputs, SendIcmp)
    assert engine.handle_icmp(discovered(ask, SECOND), 1.1) == []
