"""The mobile node's engine: binding updates, and what each acknowledgement does."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import Any

import pytest
from mobile_node_samples import (
    ACK_IPV4,
    BEHIND_NAT,
    NO_NAT,
    REMOTE,
    answer,
    from_agent,
    node,
    registered,
    sent_update,
)
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    ELSEWHERE,
    HOME,
    HOME_IPV4,
    PRIVATE,
    PUBLIC,
    changed,
    dropped_silently,
    events,
    none,
    only,
    option,
)

from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    DropReason,
    EventKind,
    MobilityPacket,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import (
    BindingAck,
    BindingUpdate,
)
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    BindingRefreshAdvice,
    IPv4AddressAck,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobileNetworkPrefix,
    NatDetection,
)

# --- what a binding update looks like ---


@pytest.mark.rfc(
    "5555-2.3.2.1-1",
    "5555-2.3.2.1-2",
    "5555-4.2-1",
    "5555-4.4.2-1",
    "5555-4.4.2-1a",
    "5555-4.4.2-1b",
    "5555-4.4.2-1c",
    "5555-4.4.2-1d",
    "5555-4.4.2-4",
    "5555-4.4.2-5",
    "6275-8.5-10",
    "6275-11.7.1-2",
    "6275-11.7.1-3",
)
def test_rfc5555_4_4_2_update_from_an_ipv4_network() -> None:
    outputs = node().attach(PRIVATE, 0.0)
    sent = only(outputs, SendMobility)
    assert (sent.source, sent.destination) == (HOME, AGENT)
    assert (sent.local, sent.remote) == (PRIVATE, REMOTE)
    assert sent.home_address_option is None
    update = sent_update(outputs)
    assert update.acknowledge
    assert update.home_registration
    assert not update.force_udp
    assert update.lifetime == 150
    assert option(update, IPv4CareOfAddress).address == PRIVATE
    assert option(update, IPv4HomeAddress) == IPv4HomeAddress(32, False, HOME_IPV4.ip)


@pytest.mark.rfc(
    "5555-4.4.2-3",
    "5555-5-3",
    "5555-5.1-2",
    "6275-8.5-2",
    "6275-8.5-10",
    "6275-11.7.1-1",
    "6275-11.7.1-2",
    "6275-11.7.1-3",
    "6275-11.7.1-4",
    "6275-11.7.1-5",
    "6275-11.7.1-6",
    "6275-11.7.1-17",
    "6275-11.5.4-2",
    "6275-11.5.4-3",
    "6275-11.7.2-4",
)
def test_rfc6275_11_7_1_update_from_an_ipv6_network() -> None:
    """Home address option, alternate care-of address option ("MUST be included"), native."""
    outputs = node(force_udp=True).attach(CARE_OF, 0.0)
    sent = only(outputs, SendMobility)
    assert (sent.source, sent.destination, sent.home_address_option) == (CARE_OF, AGENT, HOME)
    assert sent.remote is None
    update = sent_update(outputs)
    assert option(update, AlternateCareOfAddress).address == CARE_OF
    assert option(update, IPv4HomeAddress).address == HOME_IPV4.ip
    assert not any(isinstance(each, IPv4CareOfAddress) for each in update.options)
    assert not update.force_udp, "RFC 5555 §3.1.3: SHOULD NOT be set with an IPv6 care-of address"


@pytest.mark.rfc(
    "5555-4.4.2-1e", "6275-11.7.1-9", "6275-11.7.1-10", "6275-11.7.1-7", "6275-11.7.1-8"
)
@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"key_mobility": True}, "key_mobility"),
        ({"link_local_compatible": True}, "link_local"),
        ({"mobile_router": True}, "mobile_router"),
        ({"force_udp": True}, "force_udp"),
    ],
)
def test_flags_follow_the_configuration(settings: dict[str, Any], flag: str) -> None:
    flags = ("key_mobility", "link_local", "mobile_router", "force_udp", "map_registration")
    update = sent_update(node(**settings).attach(PUBLIC, 0.0))
    assert [name for name in flags if getattr(update, name)] == [flag]


def test_rfc3963_5_2_explicit_prefixes_in_each_update_but_the_last() -> None:
    prefix = IPv6Network("2001:db8:20::/56")
    engine = node(mobile_router=True, mobile_network_prefixes=(prefix,))
    update = sent_update(engine.attach(PRIVATE, 0.0))
    assert option(update, MobileNetworkPrefix) == MobileNetworkPrefix(56, prefix.network_address)
    engine.handle(answer(update, mobile_router=True), 0.1)
    update = sent_update(engine.deregister(1.0))
    assert not any(isinstance(each, MobileNetworkPrefix) for each in update.options)


@pytest.mark.rfc("5555-4.4.2-6", "5555-4.4.2-4", "5555-4.4.2-7")
def test_rfc5555_4_4_2_dynamic_ipv4_address() -> None:
    """0.0.0.0 first; then what was allocated; then, when the binding is gone, 0.0.0.0 again."""
    engine = node(ipv4_home_address=None, request_ipv4=True, ipv4_prefix_lengths=(24,))
    update = sent_update(engine.attach(PRIVATE, 0.0))
    asked = [each for each in update.options if isinstance(each, IPv4HomeAddress)]
    any_ = IPv4Address(0)
    assert asked == [IPv4HomeAddress(32, False, any_), IPv4HomeAddress(24, True, any_)]
    given, prefix = IPv4Address("192.0.2.77"), IPv4Network("192.0.2.64/28")
    acks = IPv4AddressAck(0, 32, given), IPv4AddressAck(0, 28, prefix.network_address)
    new = changed(engine.handle(answer(update, *acks, BEHIND_NAT), 0.1)).new
    assert new is not None
    assert new.ipv4_home_address == IPv4Interface((given, 32))
    assert new.ipv4_prefixes == (prefix,), "§3.2.1: overrides what was requested"
    update = sent_update(engine.refresh(1.0))
    asked = [each for each in update.options if isinstance(each, IPv4HomeAddress)]
    assert asked == [
        IPv4HomeAddress(32, False, given),
        IPv4HomeAddress(28, False, prefix.network_address),
    ]
    engine.handle(answer(update, *acks), 1.1)
    update = sent_update(engine.deregister(2.0))
    engine.handle(answer(update), 2.1)
    assert engine.state is State.IDLE
    update = sent_update(engine.attach(PRIVATE, 3.0))
    asked = [each for each in update.options if isinstance(each, IPv4HomeAddress)]
    assert asked[0].address == any_


def test_a_forgotten_dynamic_address_is_asked_for_anew() -> None:
    engine = node(ipv4_home_address=None, request_ipv4=True)
    given = IPv4Address("192.0.2.77")
    registered(engine, PRIVATE, 0.0, IPv4AddressAck(0, 32, given), BEHIND_NAT)
    update = sent_update(engine.refresh(1.0))
    outputs = engine.handle(answer(update, IPv4AddressAck(130, 0, given), BEHIND_NAT), 1.1)
    assert option(sent_update(outputs), IPv4HomeAddress).address == IPv4Address(0)


# --- what an acknowledgement does ---


@pytest.mark.rfc("5555-4.4.2-8", "5555-4.4.2-9", "5555-3.2.2-2")
@pytest.mark.parametrize(
    ("detection", "nat", "udp", "refresh"),
    [
        (NatDetection(False, 110), True, True, 110),
        (NatDetection(False, 30), True, True, 30),
        (NatDetection(False, 0), True, True, 110),  # §3.2.2: zero is ignored -> NATKATIMEOUT
        (NatDetection(False, 0xFFFFFFFF), False, False, None),
        (NatDetection(True, 0xFFFFFFFF), False, True, None),
        (None, False, False, None),
    ],
)
def test_rfc5555_4_4_2_nat_detection_option(
    detection: NatDetection | None, nat: bool, udp: bool, refresh: int | None
) -> None:
    """§4.3: refresh at the suggested time; all ones: no keepalives, perhaps UDP all the same."""
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 10.0))
    options = (ACK_IPV4,) if detection is None else (ACK_IPV4, detection)
    new = changed(engine.handle(answer(update, *options), 10.5)).new
    assert new is not None
    assert (new.nat_detected, new.udp_encapsulation) == (nat, udp)
    assert new.outer == REMOTE
    assert all(entry.udp_encapsulation is udp for entry in engine.binding_update_list)
    assert engine.next_deadline() == 10.0 + (refresh if refresh is not None else 450)


@pytest.mark.rfc("5555-4.3-1")
def test_rfc5555_4_3_keepalive_is_a_binding_update() -> None:
    engine = node()
    first = registered(engine)
    assert engine.tick(109.9) == []
    outputs = engine.tick(110.0)
    assert engine.state is State.REFRESHING
    update = sent_update(outputs)
    assert update.sequence == (first.sequence + 1) % 65536
    assert update.lifetime == 150
    outputs = engine.handle(answer(update, ACK_IPV4, BEHIND_NAT), 110.1)
    assert changed(outputs).reason is ChangeReason.REFRESHED
    assert engine.next_deadline() == 220.0


@pytest.mark.rfc("6275-11.7.3-8")
def test_rfc6275_11_7_1_refresh_well_before_the_lifetime_is_over() -> None:
    engine = node()
    registered(engine, PUBLIC, 0.0, ACK_IPV4, NO_NAT)
    assert engine.next_deadline() == 450.0
    assert not none(engine.tick(450.0), SendMobility)


@pytest.mark.rfc("6275-11.7.3-14")
def test_rfc6275_11_7_3_refresh_advice() -> None:
    engine = node()
    registered(engine, CARE_OF, 0.0, ACK_IPV4, BindingRefreshAdvice(25))
    assert engine.next_deadline() == 100.0


@pytest.mark.rfc("6275-11.7.3-7", "6275-11.1-2")
def test_rfc6275_11_7_3_shorter_lifetime_counts_from_the_sending() -> None:
    """max(L_remain - (L_update - L_ack), 0)."""
    engine = node()
    update = sent_update(engine.attach(PUBLIC, 10.0))
    new = changed(engine.handle(answer(update, ACK_IPV4, NO_NAT, lifetime=25), 11.0)).new
    assert new is not None
    assert (new.registered_at, new.lifetime, new.expires_at) == (10.0, 100, 110.0)


def test_rfc6275_11_7_3_longer_lifetime_than_asked_is_not_believed() -> None:
    engine = node()
    update = sent_update(engine.attach(PUBLIC, 0.0))
    new = changed(engine.handle(answer(update, ACK_IPV4, NO_NAT, lifetime=15000), 0.1)).new
    assert new is not None
    assert new.lifetime == 600


@pytest.mark.rfc(
    "5555-4.4.2-7b", "5555-4.4.2-10", "5555-4.4.2-11", "6275-8.5-1", "6275-11.1-1", "6275-11.7.1-18"
)
def test_rfc5555_4_4_2_two_entries_with_ipv4_one_without() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    engine.handle(answer(update, ACK_IPV4, BEHIND_NAT), 0.1)
    assert [entry.home_address for entry in engine.binding_update_list] == [HOME, HOME_IPV4.ip]
    update = sent_update(engine.refresh(1.0))
    refused = IPv4AddressAck(129, 0, HOME_IPV4.ip)
    outputs = engine.handle(answer(update, refused, BEHIND_NAT), 1.1)
    assert [entry.home_address for entry in engine.binding_update_list] == [HOME]
    assert events(outputs) == [EventKind.IPV4_HOME_ADDRESS_REFUSED]
    assert option(sent_update(engine.refresh(2.0)), IPv4HomeAddress), "MAY be included again"


@pytest.mark.rfc("5555-2.3.1-3")
def test_rfc5555_2_3_1_unanswered_ipv4_option_is_left_out_from_then_on() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, BEHIND_NAT), 0.1)
    assert events(outputs) == [EventKind.IPV4_HOME_ADDRESS_UNSUPPORTED]
    assert [entry.home_address for entry in engine.binding_update_list] == [HOME]
    update = sent_update(engine.refresh(1.0))
    assert not any(isinstance(each, IPv4HomeAddress) for each in update.options)


@pytest.mark.parametrize(
    ("asked", "got", "result"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_rfc6275_11_7_3_key_mobility(asked: bool, got: bool, result: bool) -> None:
    engine = node(key_mobility=asked)
    update = sent_update(engine.attach(PRIVATE, 0.0))
    new = changed(engine.handle(answer(update, ACK_IPV4, key_mobility=got), 0.1)).new
    assert new is not None
    assert new.key_mobility is result


@pytest.mark.rfc("6275-11.7.3-11")
def test_rfc6275_11_7_3_status_1_asks_for_prefix_discovery() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, ACK_IPV4, BEHIND_NAT, status=1), 0.1)
    assert events(outputs) == [EventKind.PREFIX_DISCOVERY_NEEDED]
    assert engine.state is State.REGISTERED


# --- sequence numbers ---


@pytest.mark.rfc("6275-11.7.3-9")
def test_rfc6275_11_7_3_status_135_resynchronises() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    far = (update.sequence + 1000) % 65536
    outputs = engine.handle(answer(update, BEHIND_NAT, status=135, sequence=far), 0.1)
    assert events(outputs) == [EventKind.SEQUENCE_RESYNCHRONISED]
    again = sent_update(outputs)
    assert again.sequence == (far + 1) % 65536
    engine.handle(answer(again, ACK_IPV4, BEHIND_NAT), 0.2)
    assert engine.state is State.REGISTERED


@pytest.mark.rfc("6275-11.7.3-1")
def test_status_135_for_a_duplicate_is_no_reason_to_resynchronise() -> None:
    """The network delivered an older update twice: the newest is beyond what it complains of."""
    engine = node()
    first = registered(engine)
    outputs = engine.handle(answer(first, status=135), 0.2)
    assert dropped_silently(outputs, DropReason.NOT_OUTSTANDING)
    engine.refresh(1.0)
    outputs = engine.handle(answer(first, status=135), 1.1)
    assert dropped_silently(outputs, DropReason.NOT_OUTSTANDING)
    assert engine.state is State.REFRESHING


def test_status_135_for_a_retransmission_after_the_first_was_accepted() -> None:
    engine = node()
    first = sent_update(engine.attach(PRIVATE, 0.0))
    second = sent_update(engine.tick(1.5))
    engine.handle(answer(first, ACK_IPV4, BEHIND_NAT), 1.6)
    again = sent_update(engine.handle(answer(second, status=135), 1.7))
    assert again.sequence == (second.sequence + 1) % 65536
    assert engine.state is State.REFRESHING, "something is out again"
    assert engine.binding is not None


@pytest.mark.rfc(
    "6275-11.1-3", "6275-11.7.1-19", "6275-11.7.2-11", "6275-11.7.2-13", "6275-11.7.2-12"
)
def test_rfc6275_9_5_1_sequence_numbers_wrap() -> None:
    engine = MobileNode(MobileNodeConfig(HOME, AGENT, AGENT_IPV4), lambda bits: (1 << bits) - 1)
    assert sent_update(engine.attach(PRIVATE, 0.0)).sequence == 0


# --- acknowledgements to be ignored (RFC 6275 §11.7.3) ---


@pytest.mark.rfc("6275-11.7.3-4", "6275-11.7.3-10")
def test_unprotected_acknowledgement_is_ignored() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    for status in (0, 135, 129):
        packet = from_agent(BindingAck(status, update.sequence, 150), protected=False)
        assert dropped_silently(engine.handle(packet, 0.1), DropReason.UNPROTECTED)
    assert engine.state is State.REGISTERING


@pytest.mark.rfc("6275-11.2-1", "6275-8.5-8", "6275-11.7.3-1", "6275-11.7.3-4")
@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (from_agent(BindingAck(0, 1, 150), source=ELSEWHERE), DropReason.WRONG_SOURCE),
        (from_agent(BindingAck(0, 1, 150), destination=ELSEWHERE), DropReason.WRONG_DESTINATION),
        (from_agent(BindingAck(0, 1, 150)), DropReason.NOT_OUTSTANDING),
        (MobilityPacket(AGENT, HOME, b"\x3b\x01\x06", REMOTE), DropReason.MALFORMED),
        (from_agent(BindingUpdate(1, 1)), DropReason.UNEXPECTED_MESSAGE),
    ],
)
def test_what_is_not_for_us_is_dropped(packet: MobilityPacket, reason: DropReason) -> None:
    engine = node()
    engine.attach(PRIVATE, 0.0)
    assert dropped_silently(engine.handle(packet, 0.1), reason)
    assert engine.counters[f"dropped.{reason}"] == 1
    assert engine.state is State.REGISTERING


# --- refusals ---


@pytest.mark.rfc("6275-11.7.3-5")
@pytest.mark.parametrize("status", [129, 131, 132, 133, 139, 140, 141, 142, 143, 174, 250])
def test_rfc6275_11_7_3_final_refusal(status: int) -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, BEHIND_NAT, status=status), 0.1)
    assert events(outputs) == [EventKind.REGISTRATION_REFUSED]
    assert engine.state is State.REFUSED
    assert engine.next_deadline() is None
    assert sent_update(engine.attach(PUBLIC, 1.0)), "another network, another chance"


@pytest.mark.parametrize("status", [128, 130])
def test_passing_refusal_is_tried_again_slowly(status: int) -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, BEHIND_NAT, status=status), 0.1)
    assert none(outputs, SendMobility)
    assert engine.next_deadline() == pytest.approx(32.1)
    assert sent_update(engine.tick(32.2))


def test_refused_refresh_leaves_the_old_binding_to_its_lifetime() -> None:
    engine = node()
    registered(engine)
    update = sent_update(engine.refresh(1.0))
    outputs = engine.handle(answer(update, BEHIND_NAT, status=129), 1.1)
    assert none(outputs, BindingChanged)
    assert engine.binding is not None
    assert changed(engine.tick(600.0)).reason is ChangeReason.EXPIRED


@pytest.mark.rfc("5555-4.4.2-7a")
def test_rfc5555_4_4_2_status_144_drops_the_f_flag() -> None:
    engine = node(force_udp=True)
    update = sent_update(engine.attach(PUBLIC, 0.0))
    assert update.force_udp
    outputs = engine.handle(answer(update, NO_NAT, status=144), 0.1)
    assert events(outputs) == [EventKind.FORCED_UDP_REFUSED]
    again = sent_update(outputs)
    assert not again.force_udp
    new = changed(engine.handle(answer(again, ACK_IPV4, NO_NAT), 0.2)).new
    assert new is not None
    assert not new.udp_encapsulation
    assert not sent_update(engine.refresh(1.0)).force_udp
    assert sent_update(engine.attach(PRIVATE, 2.0)).force_udp, "as configured, in another network"


@pytest.mark.rfc("5555-3.1.3-1")
def test_rfc5555_4_4_1_persistent_loss_asks_for_forced_udp() -> None:
    engine = node()
    registered(engine, PUBLIC, 0.0, ACK_IPV4, NO_NAT)
    update = sent_update(engine.report_packet_loss(1.0))
    assert update.force_udp
    forced = NatDetection(True, 0xFFFFFFFF)
    new = changed(engine.handle(answer(update, ACK_IPV4, forced), 1.1)).new
    assert new is not None
    assert new.udp_encapsulation
    assert engine.report_packet_loss(2.0) == [], "nothing more to be had"
    registered(engine, CARE_OF, 3.0)
    assert engine.report_packet_loss(4.0) == [], "not over IPv6"


def test_rfc3963_5_3_router_leaves_a_home_agent_that_supports_none() -> None:
    engine = node(mobile_router=True)
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, ACK_IPV4, BEHIND_NAT, mobile_router=False), 0.1)
    assert EventKind.MOBILE_ROUTER_UNSUPPORTED in events(outputs)
    assert sent_update(outputs).lifetime == 0
    assert engine.state is State.DEREGISTERING


def test_accepted_for_no_time_is_no_binding() -> None:
    engine = node()
    update = sent_update(engine.attach(PRIVATE, 0.0))
    outputs = engine.handle(answer(update, ACK_IPV4, BEHIND_NAT, lifetime=0), 0.1)
    assert none(outputs, BindingChanged)
    assert engine.next_deadline() == pytest.approx(32.1)
