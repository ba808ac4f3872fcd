"""The home agent on its home link: duplicate addresses, proxying, routes, prefix lifetimes
(RFC 6275 §10.3.1, §10.4.1; RFC 3963 §6; RFC 5555 §4.5)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from typing import Any

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    HOME,
    HOME_IPV4,
    NO_NAT,
    PUBLIC,
    ROUTER_HOME,
    ROUTER_IPV4,
    ROUTER_PREFIX,
    ROUTER_PREFIX_2,
    ack,
    agent,
    ask_ipv4,
    changed,
    native,
    none,
    only,
    option,
    over_udp,
    update,
)
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6

from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.home_link import (
    ALL_NODES,
    duties_of,
    link_local_of,
    proxy_advertisement,
)
from dsmip_ipsec.mobility.home_link_types import (
    NO_DUTIES,
    DetectDuplicateAddress,
    HomeLinkChanged,
    HomeLinkDuties,
    ProxyNeighbour,
)
from dsmip_ipsec.mobility.home_prefixes import LinkPrefix, PrefixList
from dsmip_ipsec.mobility.tunnelling import Role, tunnel_format
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    MobilityPacket,
    OuterAddress,
    SendMobility,
)
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.mobility import UnknownMessage, encode
from dsmip_ipsec.wire.options import IPv4HomeAddress, MobileNetworkPrefix, NatDetection

LINK_LOCAL = IPv6Address("fe80::10")
HOME_PREFIX = IPv6Network("2001:db8:1::/64")
MAC = bytes.fromhex("020000000001")


# --- duplicate address detection (RFC 6275 §10.3.1) ---


@pytest.mark.rfc("6275-10.3.1-14", "6275-10.4.1-2")
def test_rfc6275_10_3_1_no_acknowledgement_before_the_address_is_unique() -> None:
    engine = agent(duplicate_address_detection=True)
    asked = engine.handle(native(update(1)), 0.0)
    assert asked == [DetectDuplicateAddress(HOME, (HOME,))]
    assert engine.binding_cache.get(HOME) is None
    outputs = engine.duplicate_address_result(HOME, False, 1.5)
    assert [type(each) for each in outputs] == [BindingChanged, HomeLinkChanged, SendMobility]
    assert ack(outputs).status == 0
    bound = changed(outputs).new
    assert bound is not None
    assert bound.registered_at == 1.5, "the lifetime is counted from the acceptance"
    refreshed = engine.handle(native(update(2)), 3.0)
    assert none(refreshed, DetectDuplicateAddress), "not again while there is a binding"
    assert ack(refreshed).status == 0


@pytest.mark.rfc("6275-10.3.1-15")
def test_rfc6275_10_3_1_duplicate_is_134_and_no_binding() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1)), 0.0)
    outputs = engine.duplicate_address_result(HOME, True, 1.0)
    assert ack(outputs).status == 134
    assert none(outputs, BindingChanged)
    assert engine.binding_cache.get(HOME) is None
    assert engine.duplicate_address_result(HOME, False, 1.1) == [], "one answer is enough"
    assert only(engine.handle(native(update(2)), 2.0), DetectDuplicateAddress)


@pytest.mark.rfc("6275-10.3.1-15", "6275-10.4.1-3")
def test_rfc6275_10_3_1_l_bit_takes_the_link_local_address_in() -> None:
    engine = agent(duplicate_address_detection=True)
    asked = only(engine.handle(native(update(1, link_local=True)), 0.0), DetectDuplicateAddress)
    assert asked.addresses == (HOME, LINK_LOCAL)
    duties = only(engine.duplicate_address_result(HOME, False, 1.0), HomeLinkChanged)
    assert duties.new.neighbours == (ProxyNeighbour(HOME), ProxyNeighbour(LINK_LOCAL))


@pytest.mark.parametrize("first", [False, True])
def test_l_bit_stays_as_it_was_when_addresses_were_looked_at(first: bool) -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1, link_local=first)), 0.0)
    engine.duplicate_address_result(HOME, False, 1.0)
    outputs = engine.handle(native(update(2, link_local=not first)), 2.0)
    assert ack(outputs).status == 0
    assert none(outputs, HomeLinkChanged)
    bound = engine.binding_cache.get(HOME)
    assert bound is not None
    assert bound.link_local is first


def test_retransmission_takes_the_place_of_the_update_that_waits() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(over_udp(update(1)), 0.0)
    moved = over_udp(update(2), PUBLIC, NO_NAT)
    assert engine.handle(moved, 1.0) == [], "detection goes on, and isn't begun again"
    outputs = engine.duplicate_address_result(HOME, False, 1.5)
    assert (ack(outputs).status, ack(outputs).sequence) == (0, 2)
    bound = changed(outputs).new
    assert bound is not None
    assert bound.care_of_address == PUBLIC


def test_older_update_does_not_replace_the_one_that_waits() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(over_udp(update(7)), 0.0)
    late = ack(engine.handle(over_udp(update(6), PUBLIC, NO_NAT), 0.1))
    assert (late.status, late.sequence) == (135, 7)
    assert ack(engine.duplicate_address_result(HOME, False, 1.0)).sequence == 7


def test_deregistration_while_detection_runs_leaves_nothing() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1)), 0.0)
    assert ack(engine.handle(native(update(2, lifetime=0)), 0.5)).status == 133
    assert engine.duplicate_address_result(HOME, False, 1.0) == []


def test_detection_that_is_never_answered_is_forgotten() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1)), 0.0)
    deadline = engine.next_deadline()
    assert deadline is not None
    assert engine.expire(deadline) == []
    assert engine.next_deadline() is None
    assert only(engine.handle(native(update(2)), deadline), DetectDuplicateAddress)


def test_each_detection_has_its_own_time() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1)), 0.0)
    engine.handle(native(update(1, mobile_router=True), home=ROUTER_HOME), 0.5)
    first = engine.next_deadline()
    assert first is not None
    engine.expire(first)
    assert engine.duplicate_address_result(HOME, False, first) == []
    late = engine.duplicate_address_result(ROUTER_HOME, False, first)
    assert ack(late, ROUTER_HOME).status == 0


def test_waiting_registrations_count_as_bindings() -> None:
    engine = agent(duplicate_address_detection=True, max_bindings=1)
    engine.handle(native(update(1)), 0.0)
    other = native(update(1, mobile_router=True), home=ROUTER_HOME)
    assert ack(engine.handle(other, 0.1), ROUTER_HOME).status == 130
    assert engine.handle(native(update(2)), 0.2) == [], "but not twice"


def test_detection_again_after_the_mobile_node_was_at_home() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.handle(native(update(1)), 0.0)
    engine.duplicate_address_result(HOME, False, 1.0)
    engine.handle(native(update(2, lifetime=0)), 2.0)
    assert only(engine.handle(native(update(3)), 3.0), DetectDuplicateAddress)


# --- proxying and routes ---


@pytest.mark.rfc("5555-4.5-1a", "6275-8.4-1", "6275-10.3.1-32", "6275-10.3.2-10", "6275-10.4.1-1")
def test_duties_begin_with_the_binding_and_end_with_it() -> None:
    engine = agent()
    packet = over_udp(update(1), options=(ask_ipv4(),))
    begun = only(engine.handle(packet, 0.0), HomeLinkChanged)
    wanted = HomeLinkDuties((ProxyNeighbour(HOME),), (IPv4Address(HOME_IPV4.ip),))
    assert (begun.old, begun.new, begun.added) == (NO_DUTIES, wanted, wanted)
    moved = over_udp(update(2), PUBLIC, NO_NAT, options=(ask_ipv4(),))
    assert none(engine.handle(moved, 1.0), HomeLinkChanged), "a movement changes nothing at home"
    without = only(engine.handle(over_udp(update(3)), 2.0), HomeLinkChanged)
    assert without.removed == HomeLinkDuties(arp=wanted.arp)
    assert without.added == NO_DUTIES
    gone = only(engine.handle(over_udp(update(4, lifetime=0)), 3.0), HomeLinkChanged)
    assert gone.new == NO_DUTIES


def test_duties_end_when_the_binding_expires() -> None:
    engine = agent()
    engine.handle(native(update(1, lifetime=10)), 0.0)
    outputs = engine.expire(40.0)
    assert changed(outputs).reason is ChangeReason.EXPIRED
    assert only(outputs, HomeLinkChanged).new == NO_DUTIES


@pytest.mark.rfc("5555-4.5-1b")
def test_rfc3963_6_3_prefixes_of_a_mobile_router_are_routes() -> None:
    engine = agent()
    prefix = IPv4HomeAddress(28, True, IPv4Address(0))
    packet = over_udp(update(1, mobile_router=True), home=ROUTER_HOME, options=(prefix,))
    duties = only(engine.handle(packet, 0.0), HomeLinkChanged).new
    assert duties.routes == (ROUTER_PREFIX, ROUTER_PREFIX_2, ROUTER_IPV4)
    assert duties.neighbours == (ProxyNeighbour(ROUTER_HOME, router=True),)
    explicit = (MobileNetworkPrefix(56, ROUTER_PREFIX.network_address),)
    packet = over_udp(update(2, mobile_router=True), home=ROUTER_HOME, options=explicit)
    fewer = only(engine.handle(packet, 1.0), HomeLinkChanged)
    assert fewer.removed == HomeLinkDuties(routes=(ROUTER_PREFIX_2, ROUTER_IPV4))


def test_a_whole_ipv4_prefix_as_home_address_is_a_route() -> None:
    whole = IPv4Interface("192.0.2.129/28")
    engine = agent(subscribers={HOME: Subscriber(whole)})
    packet = over_udp(update(1), options=(ask_ipv4(whole.ip, 28),))
    duties = only(engine.handle(packet, 0.0), HomeLinkChanged).new
    assert (duties.arp, duties.routes) == ((), (whole.network,))


@pytest.mark.rfc(
    "6275-10.4.1-4",
    "6275-10.4.1-5",
    "6275-10.4.1-6",
    "6275-10.4.1-7",
    "6275-10.4.1-8",
    "6275-10.4.1-9",
    "6275-10.4.1-11",
    "6275-10.4.1-14",
)
@pytest.mark.parametrize("router", [False, True])  # RFC 3963 §6.2: R is set for mobile routers
@pytest.mark.parametrize("solicited", [False, True])
def test_scapy_reads_the_proxy_advertisement(router: bool, solicited: bool) -> None:
    message = proxy_advertisement(ProxyNeighbour(HOME, router), MAC, solicited=solicited)
    raw = icmp6.encode(message, AGENT, ALL_NODES)
    read = ICMPv6ND_NA(raw)
    flags = (read.R, read.S, read.O)
    assert flags == (router, solicited, 1)
    assert read.tgt == str(HOME)
    assert read[ICMPv6NDOptDstLLAddr].lladdr == "02:00:00:00:00:01"
    again = ICMPv6ND_NA(R=int(router), S=int(solicited), O=1, tgt=str(HOME))
    built: Any = IPv6(src=str(AGENT), dst=str(ALL_NODES)) / again
    built /= ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:01")
    assert bytes(built)[40:] == raw


def test_link_local_address_takes_the_bits_behind_the_prefix() -> None:
    home = IPv6Address("2001:db8:1:2:3:4:5:6")
    assert link_local_of(home) == IPv6Address("fe80::3:4:5:6")
    assert link_local_of(home, 48) == IPv6Address("fe80::2:3:4:5:6")
    assert duties_of(None) == NO_DUTIES


# --- lifetimes of the home prefix (RFC 6275 §10.3.1) ---


def limited(valid: float, preferred: float) -> list[LinkPrefix]:
    return [LinkPrefix(HOME_PREFIX, valid, preferred)]


@pytest.mark.rfc(
    "6275-10.3.1-17",
    "6275-10.3.1-18",
    "6275-10.3.1-22",
    "6275-10.3.1-23",
    "6275-10.3.1-24",
    "6275-10.3.1-27",
    "6275-10.6.4-1",
)
@pytest.mark.parametrize(
    ("valid", "preferred", "status", "lifetime"),
    [
        (1e9, 1e9, 0, 600),
        (605, 601, 0, 600),  # preferred to the end, valid beyond it
        (603.9, 600, 1, 600),  # 600 of 603.9 s: it becomes invalid at the end
        (1e9, 599, 1, 600),  # deprecated during the lifetime, which isn't shortened
        (1e9, -5, 1, 600),  # deprecated already
        (302, 302, 1, 300),  # valid bounds, in units of four seconds
    ],
)
def test_rfc6275_10_3_1_status_1_by_the_prefixs_lifetimes(
    valid: float, preferred: float, status: int, lifetime: int
) -> None:
    engine = agent()
    engine.set_prefixes(limited(valid, preferred), 0.0)
    answer = ack(engine.handle(native(update(1)), 0.0))
    assert (answer.status, answer.lifetime * 4) == (status, lifetime)


@pytest.mark.rfc("6275-10.3.1-6")
@pytest.mark.parametrize("valid", [3.0, 0.0, -10.0])
def test_rfc6275_10_3_1_invalid_prefix_is_132(valid: float) -> None:
    engine = agent()
    engine.set_prefixes(limited(valid, valid), 0.0)
    assert ack(engine.handle(native(update(1)), 0.0)).status == 132


def test_prefix_that_ends_while_detection_runs_is_132() -> None:
    engine = agent(duplicate_address_detection=True)
    engine.set_prefixes(limited(5.0, 5.0), 0.0)
    engine.handle(native(update(1)), 0.0)
    assert ack(engine.duplicate_address_result(HOME, False, 2.0)).status == 132


@pytest.mark.rfc("6275-10.3.1-19")
def test_rfc6275_10_3_1_binding_ends_with_its_prefix() -> None:
    engine = agent()
    before = changed(engine.handle(native(update(1)), 0.0)).new
    outputs = engine.set_prefixes(limited(100.0, 100.0), 10.0)
    shorter = only(outputs, BindingChanged)
    assert shorter.old == before
    assert shorter.new is not None
    assert shorter.new.expires_at == 100.0
    deadline = engine.next_deadline()
    assert deadline is not None
    assert deadline <= 100.0
    assert changed(engine.expire(100.0)).reason is ChangeReason.EXPIRED


def test_binding_ends_at_once_when_its_prefix_is_taken_away() -> None:
    engine = agent()
    engine.handle(native(update(1), options=(ask_ipv4(),)), 0.0)
    outputs = engine.set_prefixes([LinkPrefix(IPv6Network("2001:db8:5::/64"))], 10.0)
    assert changed(outputs).reason is ChangeReason.EXPIRED
    assert only(outputs, HomeLinkChanged).new == NO_DUTIES
    assert engine.binding_cache.get(HOME) is None
    assert len(engine.binding_cache) == 0
    assert engine.binding_cache.get_ipv4(IPv4Address(HOME_IPV4.ip)) is None


@pytest.mark.rfc("6275-10.3.1-6")
def test_rfc6275_10_3_1_subscriber_outside_the_home_prefixes_is_132() -> None:
    away = IPv6Address("2001:db8:9::1")
    engine = agent(subscribers={away: Subscriber()})
    assert ack(engine.handle(native(update(1), home=away), 0.0), away).status == 132


def test_the_longest_prefix_counts() -> None:
    known = PrefixList(
        [LinkPrefix(IPv6Network("2001:db8::/32")), LinkPrefix(HOME_PREFIX, valid_until=50.0)]
    )
    assert known.valid_until(HOME) == 50.0
    assert known.prefix_length_of(HOME) == 64
    assert known.prefix_length_of(IPv6Address("2001:db8:7::1")) == 32


# --- a home agent behind a static NAPT (RFC 5555 §1.3, scenario 3) ---


def test_rfc5555_1_3_scenario_3_seen_from_the_home_agent() -> None:
    """The NAPT rewrites the destination: V4ADDR is the mobile node's own, no NAT is detected,
    and yet nothing without ports would pass. So UDP is forced; the mapping needs no refresh."""
    private = IPv4Address("192.168.7.2")
    engine = agent(home_agent_ipv4=private, behind_napt=True)
    outputs = engine.handle(over_udp(update(1), PUBLIC, NO_NAT), 0.0)
    answer = only(outputs, SendMobility)
    assert (answer.local, answer.remote) == (private, NO_NAT)
    detection = option(ack(outputs), NatDetection)
    assert (detection.force_udp, detection.refresh_time) == (True, 0xFFFFFFFF)
    bound = changed(outputs).new
    assert bound is not None
    assert not bound.nat_detected
    made = tunnel_format(bound, Role.HOME_AGENT, 4, esp=False)
    assert made.udp
    assert (made.source, made.destination) == (private, PUBLIC)


def test_scenario_3_does_not_force_udp_over_ipv6() -> None:
    packet = native(update(1), home_address_option=False)
    packet = replace(packet, outer=OuterAddress(CARE_OF, 4191))
    bound = changed(agent(behind_napt=True).handle(packet, 0.0)).new
    assert bound is not None
    assert not bound.force_udp


def test_scenario_3_does_not_concern_ipv6_networks() -> None:
    bound = changed(agent(behind_napt=True).handle(native(update(1)), 0.0)).new
    assert bound is not None
    assert not bound.udp_encapsulation
    assert bound.home_agent_ipv4 == AGENT_IPV4


# --- what a home agent leaves alone (RFC 6275 §9.1, §9.3.3) ---


@pytest.mark.rfc("5555-3.2.2-5")
def test_rfc5555_3_2_2_default_refresh_time() -> None:
    assert HomeAgentConfig(AGENT).nat_refresh_time == 110


@pytest.mark.rfc("6275-9.1-4")
def test_rfc6275_9_1_a_home_address_option_changes_no_binding() -> None:
    engine = agent()
    engine.handle(native(update(1)), 0.0)
    before = list(engine.binding_cache)
    other = IPv6Address("2001:db8:2::66")
    broken = native(update(2), other)
    for packet in (
        replace(broken, message=broken.message[:-1]),
        replace(broken, protected=False),
        native(update(2, home_registration=False), other),
    ):
        assert none(engine.handle(packet, 1.0), BindingChanged)
        assert list(engine.binding_cache) == before


@pytest.mark.rfc("6275-9.3.3-1")
@pytest.mark.parametrize(
    ("source", "answered"), [("2001:db8:2::99", True), ("ff0e::1", False), ("::", False)]
)
def test_rfc6275_9_3_3_binding_error_to_unicast_only(source: str, answered: bool) -> None:
    raw = encode(UnknownMessage(200, bytes(10)), HOME, AGENT)
    packet = MobilityPacket(IPv6Address(source), AGENT, raw, None, HOME)
    assert none(agent().handle(packet, 0.0), SendMobility) is not answered
