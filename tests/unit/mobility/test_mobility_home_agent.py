"""The home agent's engine, rule by rule."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    ELSEWHERE,
    HOME,
    HOME_IPV4,
    NAT,
    NO_NAT,
    NO_SUBSCRIBER,
    PRIVATE,
    PUBLIC,
    ROUTER_HOME,
    ROUTER_IPV4,
    ROUTER_PREFIX,
    ROUTER_PREFIX_2,
    SUBSCRIBERS,
    ack,
    agent,
    ask_ipv4,
    changed,
    dropped_silently,
    events,
    native,
    none,
    only,
    option,
    over_udp,
    update,
)
from scapy.layers.inet6 import MIP6MH_BA, MIP6MH_BU, IPv6

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    DropReason,
    EventKind,
    MobilityPacket,
    OuterAddress,
    SendMobility,
    SendParameterProblem,
)
from dsmip_ipsec.wire.mobility import (
    BindingError,
    BindingErrorStatus,
    BindingRefreshRequest,
    BindingStatus,
    BindingUpdate,
    UnknownMessage,
    decode,
    encode,
)
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    BindingRefreshAdvice,
    IPv4AddressAck,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobileNetworkPrefix,
    NatDetection,
    NonceIndices,
)

NO_KEEPALIVES = 0xFFFFFFFF


# --- accepted registrations ---


def test_rfc5555_4_2_nat_is_detected_from_the_outer_source() -> None:
    """§4.2: addresses differ -> NAT; the acknowledgement goes in UDP to V4ADDR and Z."""
    outputs = agent().handle(over_udp(update(7), options=(ask_ipv4(),)), 100.0)
    new = changed(outputs).new
    assert new is not None
    assert changed(outputs).old is None
    assert changed(outputs).reason is ChangeReason.CREATED
    assert new.home_address == HOME
    assert new.ipv4_home_address == HOME_IPV4
    assert new.care_of_address == PRIVATE
    assert new.outer == NAT
    assert new.nat_detected
    assert new.udp_encapsulation
    assert not new.force_udp
    assert (new.sequence, new.lifetime) == (7, 600)
    assert (new.registered_at, new.expires_at) == (100.0, 700.0)
    sent = only(outputs, SendMobility)
    assert (sent.source, sent.destination) == (AGENT, HOME)
    assert (sent.local, sent.remote) == (AGENT_IPV4, NAT)
    assert sent.type2_routing is None
    answer = ack(outputs)
    assert (answer.status, answer.sequence, answer.lifetime) == (0, 7, 150)
    assert option(answer, NatDetection) == NatDetection(False, 110)
    assert option(answer, IPv4AddressAck) == IPv4AddressAck(0, 32, HOME_IPV4.ip)


def test_rfc5555_4_2_no_nat_still_gets_the_option_with_all_ones() -> None:
    """§4.2: NAT DET "MUST be present" for UDP; §3.2.2: all ones when no NAT was detected."""
    outputs = agent().handle(over_udp(update(), PUBLIC, NO_NAT), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert not new.nat_detected
    assert not new.udp_encapsulation
    assert option(ack(outputs), NatDetection) == NatDetection(False, NO_KEEPALIVES)
    assert only(outputs, SendMobility).remote == NO_NAT


def test_rfc5555_4_2_another_port_alone_is_no_nat() -> None:
    """§4.2 compares addresses; the port is remembered all the same (§2.3.2.2)."""
    outer = OuterAddress(PUBLIC, 50000)
    new = changed(agent().handle(over_udp(update(), PUBLIC, outer), 0.0)).new
    assert new is not None
    assert not new.nat_detected
    assert new.outer == outer


def test_rfc6275_10_3_1_native_registration() -> None:
    """§9.5.4: back to the source address with a type 2 routing header; no NAT option."""
    outputs = agent().handle(native(update(3), options=(ask_ipv4(),)), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.care_of_address == CARE_OF
    assert new.outer is None
    assert not new.udp_encapsulation
    sent = only(outputs, SendMobility)
    assert (sent.source, sent.destination, sent.type2_routing) == (AGENT, CARE_OF, HOME)
    assert sent.remote is None
    answer = ack(outputs)
    assert [type(each) for each in answer.options] == [IPv4AddressAck]


def test_rfc6275_9_5_1_alternate_care_of_address_wins() -> None:
    alternate = IPv6Address("2001:db8:3::5")
    outputs = agent().handle(native(update(), alternate=alternate), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.care_of_address == alternate
    assert only(outputs, SendMobility).destination == CARE_OF


def test_rfc6275_9_5_1_without_it_the_source_is_the_care_of_address() -> None:
    new = changed(agent().handle(native(update(), alternate=None), 0.0)).new
    assert new is not None
    assert new.care_of_address == CARE_OF


def test_rfc6275_10_3_1_acknowledges_without_the_a_bit() -> None:
    """§10.3.1: "regardless of the setting of the Acknowledge (A) bit"."""
    assert ack(agent().handle(over_udp(update(acknowledge=False)), 0.0)).status == 0


def test_rfc6275_10_3_1_lifetime_is_cut_to_policy() -> None:
    engine = agent(max_lifetime=100)
    outputs = engine.handle(over_udp(update(lifetime=150)), 10.0)
    new = changed(outputs).new
    assert new is not None
    assert ack(outputs).lifetime == 25
    assert new.expires_at == 110.0
    outputs = engine.handle(over_udp(update(2, lifetime=3)), 20.0)
    assert ack(outputs).lifetime == 3, "MUST NOT be greater than requested"


@pytest.mark.parametrize(
    ("asked", "capable", "granted"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_rfc6275_10_3_1_key_mobility(asked: bool, capable: bool, granted: bool) -> None:
    """K only if the mobile node asked and the home agent can."""
    outputs = agent(key_mobility=capable).handle(over_udp(update(key_mobility=asked)), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert ack(outputs).key_mobility is granted
    assert new.key_mobility is granted


def test_rfc6275_10_3_1_refresh_advice_is_below_the_lifetime() -> None:
    engine = agent(refresh_advice=100)
    answer = ack(engine.handle(over_udp(update(1, lifetime=26)), 0.0))
    assert option(answer, BindingRefreshAdvice) == BindingRefreshAdvice(25)
    answer = ack(engine.handle(over_udp(update(2, lifetime=25)), 0.0))
    assert not any(isinstance(each, BindingRefreshAdvice) for each in answer.options)


def test_binding_changes_before_its_acknowledgement_leaves() -> None:
    outputs = agent().handle(over_udp(update()), 0.0)
    assert [type(output) for output in outputs] == [BindingChanged, SendMobility]


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (over_udp(update(2)), ChangeReason.REFRESHED),
        (over_udp(update(2), PRIVATE, OuterAddress(NAT.address, 61001)), ChangeReason.MOVED),
        (over_udp(update(2), IPv4Address("10.9.8.8")), ChangeReason.MOVED),
        (over_udp(update(2), PUBLIC, NO_NAT), ChangeReason.MOVED),
        (native(update(2)), ChangeReason.MOVED),
        (over_udp(update(2), options=(ask_ipv4(),)), ChangeReason.CHANGED),
        (over_udp(update(2, key_mobility=True)), ChangeReason.CHANGED),
    ],
)
def test_what_an_update_changes_is_named(packet: MobilityPacket, reason: ChangeReason) -> None:
    engine = agent(key_mobility=True)
    first = changed(engine.handle(over_udp(update(1)), 0.0)).new
    change = changed(engine.handle(packet, 1.0))
    assert change.old == first
    assert change.reason is reason


def test_rfc5555_4_4_2_1_update_without_ipv4_option_removes_only_ipv4() -> None:
    """The new message replaces everything."""
    engine = agent()
    engine.handle(over_udp(update(1), options=(ask_ipv4(),)), 0.0)
    assert engine.binding_cache.get_ipv4(HOME_IPV4.ip) is not None
    new = changed(engine.handle(over_udp(update(2)), 1.0)).new
    assert new is not None
    assert new.ipv4_home_address is None
    assert engine.binding_cache.get_ipv4(HOME_IPV4.ip) is None
    assert engine.binding_cache.get(HOME) == new


# --- F flag ---


@pytest.mark.parametrize("nat", [True, False])
def test_rfc5555_4_5_accepted_f_flag_forces_udp(nat: bool) -> None:
    packet = over_udp(update(force_udp=True), *((PRIVATE, NAT) if nat else (PUBLIC, NO_NAT)))
    outputs = agent().handle(packet, 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.udp_encapsulation
    assert new.force_udp
    refresh = 110 if nat else NO_KEEPALIVES
    assert option(ack(outputs), NatDetection) == NatDetection(True, refresh)


def test_rfc5555_3_2_2_home_agent_may_force_udp_by_itself() -> None:
    outputs = agent(force_udp=True).handle(over_udp(update(), PUBLIC, NO_NAT), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.udp_encapsulation
    assert option(ack(outputs), NatDetection) == NatDetection(True, NO_KEEPALIVES)


def test_rfc5555_4_5_refused_f_flag_is_144_and_nothing_changes() -> None:
    engine = agent(accept_force_udp=False)
    before = changed(engine.handle(over_udp(update(1)), 0.0)).new
    outputs = engine.handle(over_udp(update(2, force_udp=True), PUBLIC, NO_NAT), 1.0)
    answer = ack(outputs)
    assert answer.status == 144
    assert option(answer, NatDetection) == NatDetection(False, NO_KEEPALIVES)
    assert none(outputs, BindingChanged)
    assert engine.binding_cache.get(HOME) == before
    assert only(outputs, SendMobility).remote == NO_NAT, "§5.1: where the update came from"


@pytest.mark.parametrize(("accepts", "status"), [(False, 144), (True, 0)])
def test_rfc5555_4_5_f_flag_over_ipv6_is_a_policy_of_its_own(accepts: bool, status: int) -> None:
    engine = agent(accept_force_udp_ipv6=accepts)
    assert ack(engine.handle(native(update(force_udp=True)), 0.0)).status == status


# --- sequence numbers (RFC 6275 §9.5.1) ---


@pytest.mark.parametrize(
    ("last", "received", "accepted"),
    [
        (15, 16, True),
        (15, 15, False),
        (15, 0, False),
        (15, 32782, True),
        (15, 32783, False),  # the RFC's own example: 0-15 and 32783-65535
        (15, 65535, False),
        (65535, 0, True),
        (65535, 32766, True),
        (65535, 32767, False),
        (0, 32767, True),
        (0, 32768, False),
    ],
)
def test_rfc6275_9_5_1_sequence_window(last: int, received: int, accepted: bool) -> None:
    engine = agent()
    engine.handle(over_udp(update(last)), 0.0)
    before = engine.binding_cache.get(HOME)
    outputs = engine.handle(over_udp(update(received), PUBLIC, NO_NAT), 1.0)
    answer = ack(outputs)
    if accepted:
        assert (answer.status, answer.sequence) == (0, received)
    else:
        assert (answer.status, answer.sequence) == (135, last)
        assert engine.binding_cache.get(HOME) == before
        assert only(outputs, SendMobility).remote == NO_NAT
        assert option(answer, NatDetection) == NatDetection(False, NO_KEEPALIVES)


def test_rfc6275_9_5_1_any_number_without_an_entry() -> None:
    assert ack(agent().handle(over_udp(update(40000)), 0.0)).status == 0


def test_rfc6275_9_5_1_a_refused_update_uses_up_its_number() -> None:
    engine = agent(accept_force_udp=False)
    engine.handle(over_udp(update(1)), 0.0)
    assert ack(engine.handle(over_udp(update(5, force_udp=True)), 0.0)).status == 144
    answer = ack(engine.handle(over_udp(update(5)), 0.0))
    assert (answer.status, answer.sequence) == (135, 5)


def test_rfc6275_9_5_1_a_discarded_update_does_not() -> None:
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    outputs = engine.handle(over_udp(update(5), IPv4Address("224.0.0.1")), 0.0)
    assert dropped_silently(outputs, DropReason.CARE_OF_ADDRESS_INVALID)
    assert ack(engine.handle(over_udp(update(5)), 0.0)).status == 0


# --- discarded in silence ---


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(
            over_udp(update(), protected=False), DropReason.UNPROTECTED, id="rfc5555_5_no_esp"
        ),
        pytest.param(
            MobilityPacket(HOME, ELSEWHERE, over_udp(update()).message, NAT),
            DropReason.WRONG_DESTINATION,
            id="not_to_the_home_agent",
        ),
        pytest.param(
            over_udp(update(), home=IPv6Address("ff02::1")),
            DropReason.HOME_ADDRESS_INVALID,
            id="rfc6275_9_5_1_multicast_home",
        ),
        pytest.param(
            over_udp(update(), home=IPv6Address("fe80::1")),
            DropReason.HOME_ADDRESS_INVALID,
            id="rfc6275_9_5_1_link_local_home",
        ),
        pytest.param(
            over_udp(update(), home=IPv6Address("::")),
            DropReason.HOME_ADDRESS_INVALID,
            id="rfc6275_9_5_1_unspecified_home",
        ),
        pytest.param(
            over_udp(update(options=(NonceIndices(1, 2),))),
            DropReason.NONCE_INDICES,
            id="rfc6275_9_5_1_nonce_indices_with_h",
        ),
        pytest.param(
            over_udp(update(home_registration=False)),
            DropReason.NOT_HOME_REGISTRATION,
            id="rfc6275_9_5_1_correspondent_registration",
        ),
        pytest.param(
            native(update(), home_address_option=False),
            DropReason.NO_HOME_ADDRESS_OPTION,
            id="rfc6275_10_3_1_no_home_address_option",
        ),
        pytest.param(
            native(update(), alternate=IPv6Address("ff0e::1")),
            DropReason.CARE_OF_ADDRESS_INVALID,
            id="rfc6275_6_1_7_multicast_care_of",
        ),
        pytest.param(
            native(update(), alternate=IPv6Address("fe80::2")),
            DropReason.CARE_OF_ADDRESS_INVALID,
            id="rfc6275_6_1_7_link_local_care_of",
        ),
        pytest.param(
            over_udp(update(), IPv4Address("127.0.0.1")),
            DropReason.CARE_OF_ADDRESS_INVALID,
            id="loopback_ipv4_care_of",
        ),
        pytest.param(
            over_udp(update(), IPv4Address("255.255.255.255")),
            DropReason.CARE_OF_ADDRESS_INVALID,
            id="broadcast_ipv4_care_of",
        ),
    ],
)
def test_discarded_without_an_answer(packet: MobilityPacket, reason: DropReason) -> None:
    engine = agent()
    assert dropped_silently(engine.handle(packet, 0.0), reason)
    assert engine.counters[f"dropped.{reason}"] == 1
    assert len(engine.binding_cache) == 0


def test_an_unprotected_update_leaves_the_binding_alone() -> None:
    engine = agent()
    before = changed(engine.handle(over_udp(update(1)), 0.0)).new
    hostile = over_udp(update(2, lifetime=0), PUBLIC, NO_NAT, protected=False)
    assert dropped_silently(engine.handle(hostile, 1.0), DropReason.UNPROTECTED)
    assert engine.binding_cache.get(HOME) == before


# --- refused with a status ---


@pytest.mark.parametrize(
    ("packet", "status", "home"),
    [
        pytest.param(
            over_udp(update(), home=ELSEWHERE), 132, ELSEWHERE, id="rfc6275_10_3_1_not_home_subnet"
        ),
        pytest.param(
            over_udp(update(), home=NO_SUBSCRIBER), 129, NO_SUBSCRIBER, id="unknown_subscriber"
        ),
        pytest.param(
            over_udp(update(lifetime=0)), 133, HOME, id="rfc6275_10_3_2_nothing_to_deregister"
        ),
        pytest.param(
            over_udp(update(), None), 174, HOME, id="rfc5555_2_3_2_1_no_ipv4_care_of_option"
        ),
        pytest.param(native(update(), alternate=HOME), 174, HOME, id="care_of_is_the_home_address"),
        pytest.param(over_udp(update(mobile_router=True)), 140, HOME, id="rfc3963_6_2_no_router"),
        pytest.param(
            over_udp(update(home_registration=False, mobile_router=True), home=ROUTER_HOME),
            140,
            ROUTER_HOME,
            id="rfc3963_6_2_r_without_h",
        ),
        pytest.param(
            over_udp(update(home_registration=False, map_registration=True)),
            129,
            HOME,
            id="rfc5380_map_registration",
        ),
    ],
)
def test_refused(packet: MobilityPacket, status: int, home: IPv6Address) -> None:
    engine = agent()
    outputs = engine.handle(packet, 0.0)
    assert ack(outputs, home).status == status
    assert events(outputs) == [EventKind.BINDING_REFUSED]
    assert none(outputs, BindingChanged)
    assert len(engine.binding_cache) == 0
    assert engine.counters[f"answered.{status}"] == 1


def test_rfc6275_9_5_1_registration_type_change_is_139() -> None:
    engine = agent()
    before = changed(engine.handle(over_udp(update(1)), 0.0)).new
    outputs = engine.handle(over_udp(update(2, home_registration=False)), 0.0)
    assert ack(outputs).status == 139
    assert engine.binding_cache.get(HOME) == before


def test_rfc6275_10_3_1_insufficient_resources_is_130() -> None:
    engine = agent(max_bindings=1)
    assert ack(engine.handle(over_udp(update(1)), 0.0)).status == 0
    other = over_udp(update(1), home=ROUTER_HOME)
    assert ack(engine.handle(other, 0.0), ROUTER_HOME).status == 130
    assert ack(engine.handle(over_udp(update(2)), 0.0)).status == 0, "who is in may refresh"


def test_rfc5555_3_1_1_prefix_length_zero_is_an_error() -> None:
    """The bytes are patched: our encoder refuses to write such an option."""
    engine = agent()
    packet = over_udp(update(), options=(ask_ipv4(),))
    where = packet.message.index(bytes((29, 6, 32 << 2, 0)))
    raw = bytearray(packet.message)
    raw[where + 2] = 0
    # 32 << 2 in the high octet of a 16-bit word went away: the checksum grows by as much.
    total = int.from_bytes(raw[4:6], "big") + (32 << 2 << 8)
    raw[4:6] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    outputs = engine.handle(MobilityPacket(HOME, AGENT, bytes(raw), NAT), 0.0)
    assert ack(outputs).status == BindingStatus.REASON_UNSPECIFIED
    assert none(outputs, BindingChanged)


# --- IPv4 home addresses (RFC 5555 §4.5) ---

POOL = (IPv4Network("192.0.2.128/29"),)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(ask_ipv4(), (0, 32, HOME_IPV4.ip), id="static"),
        pytest.param(ask_ipv4("0.0.0.0"), (0, 32, HOME_IPV4.ip), id="static_asked_as_dynamic"),
        pytest.param(ask_ipv4("192.0.2.11"), (130, 0, "192.0.2.11"), id="somebody_elses"),
        pytest.param(ask_ipv4("224.0.0.5"), (131, 0, "224.0.0.5"), id="multicast"),
        pytest.param(ask_ipv4("255.255.255.255"), (131, 0, "255.255.255.255"), id="broadcast"),
        pytest.param(ask_ipv4("127.0.0.1"), (131, 0, "127.0.0.1"), id="loopback"),
        pytest.param(ask_ipv4("192.0.2.64", 28), (133, 0, "192.0.2.64"), id="somebodys_prefix"),
        pytest.param(
            IPv4HomeAddress(28, True, IPv4Address(0)), (133, 0, "0.0.0.0"), id="no_prefix_for_us"
        ),
        pytest.param(
            IPv4HomeAddress(32, True, HOME_IPV4.ip),
            (0, 32, HOME_IPV4.ip),
            id="p_ignored",
        ),
    ],
)
def test_rfc5555_4_5_ipv4_home_address_of_a_host(
    request_: IPv4HomeAddress, expected: tuple[int, int, Any]
) -> None:
    """The status is the option's own: the IPv6 binding stands in each case."""
    outputs = agent().handle(over_udp(update(), options=(request_,)), 0.0)
    answer = ack(outputs)
    new = changed(outputs).new
    assert new is not None
    assert answer.status == 0
    status, length, address = expected
    assert option(answer, IPv4AddressAck) == IPv4AddressAck(status, length, IPv4Address(address))
    assert (new.ipv4_home_address is not None) is (status == 0)
    refused = EventKind.IPV4_HOME_ADDRESS_REFUSED in events(outputs)
    assert refused is (status != 0)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(IPv4HomeAddress(28, True, IPv4Address(0)), 28, id="as_asked"),
        pytest.param(IPv4HomeAddress(24, True, IPv4Address(0)), 28, id="rfc5555_3_2_1_overridden"),
        pytest.param(IPv4HomeAddress(28, False, ROUTER_IPV4.network_address), 28, id="refresh"),
        pytest.param(IPv4HomeAddress(27, False, ROUTER_IPV4.network_address), None, id="wider"),
    ],
)
def test_rfc5555_4_5_ipv4_prefix(request_: IPv4HomeAddress, expected: int | None) -> None:
    packet = over_udp(update(), home=ROUTER_HOME, options=(request_,))
    outputs = agent().handle(packet, 0.0)
    acknowledged = option(ack(outputs, ROUTER_HOME), IPv4AddressAck)
    new = changed(outputs).new
    assert new is not None
    if expected is None:
        assert acknowledged.status == 133
        assert new.ipv4_prefixes == ()
    else:
        assert acknowledged == IPv4AddressAck(0, expected, ROUTER_IPV4.network_address)
        assert new.ipv4_prefixes == (ROUTER_IPV4,)


def test_rfc5555_4_5_dynamic_address_not_available_is_132() -> None:
    packet = over_udp(update(), home=ROUTER_HOME, options=(ask_ipv4("0.0.0.0"),))
    outputs = agent(ipv4_pool=POOL).handle(packet, 0.0)
    acknowledged = option(ack(outputs, ROUTER_HOME), IPv4AddressAck)
    assert acknowledged == IPv4AddressAck(132, 0, IPv4Address(0))


def test_rfc5555_2_5_dynamic_address_is_allocated_kept_and_released() -> None:
    homes = [IPv6Address(f"2001:db8:1::{n:x}") for n in range(0x100, 0x108)]
    subscribers = {home: Subscriber() for home in homes}
    engine = agent(
        subscribers=subscribers,
        ipv4_pool=POOL,
        ipv4_lease_time=400,
        home_agent_ipv4=IPv4Address("192.0.2.129"),  # in the pool, and never given out
    )
    given: list[IPv4Address] = []
    for home in homes[:5]:
        packet = over_udp(update(1), home=home, options=(ask_ipv4("0.0.0.0"),))
        answer = ack(engine.handle(packet, 0.0), home)
        assert answer.lifetime == 100, "the minimum of both lifetimes"
        given.append(option(answer, IPv4AddressAck).address)
    assert len(set(given)) == 5
    assert all(address in POOL[0] for address in given)
    assert IPv4Address("192.0.2.129") not in given
    # Six hosts in a /29, one of them the home agent's: none is left.
    packet = over_udp(update(1), home=homes[5], options=(ask_ipv4("0.0.0.0"),))
    refused = option(ack(engine.handle(packet, 0.0), homes[5]), IPv4AddressAck)
    assert refused.status == 132
    # A refresh names the address, or asks again: the same one.
    for sequence, address in ((2, given[0]), (3, IPv4Address(0))):
        packet = over_udp(update(sequence), home=homes[0], options=(ask_ipv4(address),))
        kept = option(ack(engine.handle(packet, 1.0), homes[0]), IPv4AddressAck)
        assert (kept.status, kept.address) == (0, given[0])
    # Another's lease is not ours.
    packet = over_udp(update(4), home=homes[0], options=(ask_ipv4(given[1]),))
    assert option(ack(engine.handle(packet, 1.0), homes[0]), IPv4AddressAck).status == 130
    # That update left homes[0] without IPv4, so its lease is free for another.
    packet = over_udp(update(2), home=homes[5], options=(ask_ipv4("0.0.0.0"),))
    moved = option(ack(engine.handle(packet, 1.0), homes[5]), IPv4AddressAck)
    assert (moved.status, moved.address) == (0, given[0])
    # Deregistration and expiry free it too.
    engine.handle(over_udp(update(2, lifetime=0), home=homes[1]), 2.0)
    engine.expire(10_000.0)
    assert len(engine.ipv4_pool) == 0


def test_rfc5555_3_1_1_address_and_prefix_in_one_update() -> None:
    subscribers = {HOME: Subscriber(HOME_IPV4, (ROUTER_IPV4,))}
    requests = (ask_ipv4(), IPv4HomeAddress(28, True, IPv4Address(0)), ask_ipv4("192.0.2.200"))
    outputs = agent(subscribers=subscribers).handle(over_udp(update(), options=requests), 0.0)
    answers = [each for each in ack(outputs).options if isinstance(each, IPv4AddressAck)]
    assert [each.status for each in answers] == [0, 0, 130], "one for each, in order"
    new = changed(outputs).new
    assert new is not None
    assert new.ipv4_home_address == HOME_IPV4
    assert new.ipv4_prefixes == (ROUTER_IPV4,)


# --- mobile routers (RFC 3963 §6.2) ---


def prefix_option(prefix: Any) -> MobileNetworkPrefix:
    return MobileNetworkPrefix(prefix.prefixlen, prefix.network_address)


def router(sequence: int = 1, *prefixes: MobileNetworkPrefix, **changes: Any) -> MobilityPacket:
    message = update(sequence, mobile_router=True, **changes)
    return over_udp(message, home=ROUTER_HOME, options=prefixes)


def test_rfc3963_6_2_implicit_mode_takes_the_configured_prefixes() -> None:
    outputs = agent().handle(router(), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.mobile_network_prefixes == (ROUTER_PREFIX, ROUTER_PREFIX_2)
    assert ack(outputs, ROUTER_HOME).mobile_router


def test_rfc3963_6_2_explicit_mode_takes_those_of_the_update() -> None:
    engine = agent()
    outputs = engine.handle(router(1, prefix_option(ROUTER_PREFIX)), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.mobile_network_prefixes == (ROUTER_PREFIX,)
    outputs = engine.handle(router(2, prefix_option(ROUTER_PREFIX_2)), 0.0)
    replaced = changed(outputs).new
    assert replaced is not None
    assert replaced.mobile_network_prefixes == (ROUTER_PREFIX_2,), "the other one is disabled"
    assert changed(outputs).reason is ChangeReason.CHANGED


@pytest.mark.parametrize(
    ("prefixes", "status"),
    [
        ((MobileNetworkPrefix(56, IPv6Address("2001:db8:77::")),), 142),
        ((MobileNetworkPrefix(48, ROUTER_PREFIX.network_address),), 142),
        ((prefix_option(ROUTER_PREFIX), MobileNetworkPrefix(64, IPv6Address("ff02::"))), 141),
    ],
)
def test_rfc3963_6_2_bad_prefixes_refuse_the_whole_update(
    prefixes: tuple[MobileNetworkPrefix, ...], status: int
) -> None:
    engine = agent()
    answer = ack(engine.handle(router(1, *prefixes), 0.0), ROUTER_HOME)
    assert answer.status == status
    assert not answer.mobile_router
    assert len(engine.binding_cache) == 0


def test_rfc3963_6_2_implicit_mode_without_configuration_is_143() -> None:
    subscribers = {HOME: Subscriber(mobile_router=True)}
    engine = agent(subscribers=subscribers)
    assert ack(engine.handle(over_udp(update(mobile_router=True)), 0.0)).status == 143


def test_rfc3963_6_2_changed_r_flag_is_139_unless_deregistering() -> None:
    engine = agent()
    engine.handle(router(1), 0.0)
    host = over_udp(update(2), home=ROUTER_HOME)
    assert ack(engine.handle(host, 0.0), ROUTER_HOME).status == 139
    gone = over_udp(update(3, lifetime=0), home=ROUTER_HOME)
    assert ack(engine.handle(gone, 0.0), ROUTER_HOME).status == 0


def test_rfc3963_6_2_care_of_is_home_deregisters_a_router() -> None:
    engine = agent()
    engine.handle(router(1), 0.0)
    home = native(
        update(2, mobile_router=True), home=ROUTER_HOME, care_of=CARE_OF, alternate=ROUTER_HOME
    )
    outputs = engine.handle(home, 0.0)
    assert changed(outputs).new is None
    assert ack(outputs, ROUTER_HOME).lifetime == 0


# --- deregistration and expiry ---


def test_rfc6275_10_3_2_deregistration() -> None:
    engine = agent(refresh_advice=100, key_mobility=True)
    before = changed(engine.handle(over_udp(update(1), options=(ask_ipv4(),)), 0.0)).new
    outputs = engine.handle(over_udp(update(2, lifetime=0, key_mobility=True)), 5.0)
    assert changed(outputs) == BindingChanged(before, None, ChangeReason.DEREGISTERED)
    answer = ack(outputs)
    assert (answer.status, answer.sequence, answer.lifetime) == (0, 2, 0)
    assert answer.key_mobility
    assert [type(each) for each in answer.options] == [NatDetection], "no refresh advice"
    assert only(outputs, SendMobility).remote == NAT
    assert len(engine.binding_cache) == 0
    assert engine.binding_cache.get_ipv4(HOME_IPV4.ip) is None


def test_rfc6275_11_5_5_deregistration_from_home_gets_no_routing_header() -> None:
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    packet = native(update(2, lifetime=0), alternate=HOME, home_address_option=False)
    sent = only(engine.handle(packet, 1.0), SendMobility)
    assert (sent.destination, sent.type2_routing, sent.remote) == (HOME, None, None)


def test_rfc6275_10_3_2_delayed_update_cannot_revive_a_binding() -> None:
    """The number is remembered for MAX_DELETE_BCE_TIMEOUT, ten seconds."""
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    engine.handle(over_udp(update(3, lifetime=0)), 1.0)
    late = ack(engine.handle(over_udp(update(2)), 10.9))
    assert (late.status, late.sequence) == (135, 3)
    assert len(engine.binding_cache) == 0
    assert ack(engine.handle(over_udp(update(2)), 11.0)).status == 0


def test_rfc6275_10_3_2_repeated_deregistration_is_acknowledged_again() -> None:
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    engine.handle(over_udp(update(2, lifetime=0)), 1.0)
    outputs = engine.handle(over_udp(update(3, lifetime=0)), 2.0)
    assert ack(outputs).status == 0
    assert none(outputs, BindingChanged)


def test_deregistration_needs_no_ipv4_care_of_address() -> None:
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    assert changed(engine.handle(over_udp(update(2, lifetime=0), None), 1.0)).new is None


def test_rfc6275_10_3_1_binding_expires_with_its_lifetime() -> None:
    engine = agent()
    before = changed(engine.handle(over_udp(update(1, lifetime=10)), 0.0)).new
    assert engine.next_deadline() == 40.0
    assert engine.expire(39.9) == []
    assert engine.expire(40.0) == [BindingChanged(before, None, ChangeReason.EXPIRED)]
    assert engine.next_deadline() is None
    assert engine.binding_cache.get(HOME) is None


def test_an_expired_binding_is_gone_even_if_nobody_called_expire() -> None:
    engine = agent()
    engine.handle(over_udp(update(100, lifetime=10)), 0.0)
    outputs = engine.handle(over_udp(update(1, lifetime=10)), 50.0)
    assert [output.reason for output in outputs if isinstance(output, BindingChanged)] == [
        ChangeReason.EXPIRED,
        ChangeReason.CREATED,
    ]
    assert ack(outputs).status == 0, "without an entry any sequence number is good"


# --- other messages, broken messages (RFC 6275 §9.2) ---


def test_rfc6275_9_2_unknown_type_gets_a_binding_error() -> None:
    engine = agent()
    raw = encode(UnknownMessage(99, bytes(10)), HOME, AGENT)
    sent = only(engine.handle(MobilityPacket(HOME, AGENT, raw, NAT), 0.0), SendMobility)
    assert (sent.destination, sent.remote, sent.local) == (HOME, NAT, AGENT_IPV4)
    message = decode(sent.message, AGENT, HOME)
    assert isinstance(message, BindingError)
    assert message.status == BindingErrorStatus.UNRECOGNIZED_MH_TYPE


def test_rfc6275_9_2_payload_protocol_gets_a_parameter_problem() -> None:
    engine = agent()
    raw = bytearray(over_udp(update()).message)
    raw[0] = 58  # one less in the high octet of the first word, so one more in the checksum
    total = int.from_bytes(raw[4:6], "big") + 0x100
    raw[4:6] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    outputs = engine.handle(MobilityPacket(HOME, AGENT, bytes(raw), NAT), 0.0)
    problem = only(outputs, SendParameterProblem)
    assert (problem.code, problem.pointer) == (0, 0)
    assert none(outputs, SendMobility)


def test_rfc6275_9_2_bad_checksum_is_silence() -> None:
    raw = bytearray(over_udp(update()).message)
    raw[4] ^= 1
    outputs = agent().handle(MobilityPacket(HOME, AGENT, bytes(raw), NAT), 0.0)
    assert dropped_silently(outputs, DropReason.MALFORMED)


def test_rfc6275_6_1_1_checksum_is_over_the_home_address() -> None:
    """A native update whose checksum was made over the care-of address is broken."""
    good = native(update())
    message = decode(good.message, HOME, AGENT)
    raw = encode(message, CARE_OF, AGENT)
    packet = MobilityPacket(CARE_OF, AGENT, raw, None, home_address_option=HOME)
    assert dropped_silently(agent().handle(packet, 0.0), DropReason.MALFORMED)


def test_rfc6275_9_2_answers_to_broken_messages_are_limited() -> None:
    engine = agent()
    raw = encode(UnknownMessage(99, bytes(10)), HOME, AGENT)
    packet = MobilityPacket(HOME, AGENT, raw, NAT)

    def answered(now: float) -> bool:
        return not none(engine.handle(packet, now), SendMobility)

    assert [answered(0.1) for _ in range(12)] == [True] * 10 + [False] * 2
    assert answered(1.2)


def test_messages_that_are_not_for_a_home_agent_are_dropped() -> None:
    raw = encode(BindingRefreshRequest(), HOME, AGENT)
    outputs = agent().handle(MobilityPacket(HOME, AGENT, raw, NAT), 0.0)
    assert dropped_silently(outputs, DropReason.UNEXPECTED_MESSAGE)


# --- binding refresh requests (RFC 6275 §9.5.5) ---


def test_rfc6275_9_5_5_refresh_request_goes_the_way_of_the_binding() -> None:
    engine = agent()
    assert engine.request_refresh(HOME) == []
    engine.handle(over_udp(update(1)), 0.0)
    sent = only(engine.request_refresh(HOME), SendMobility)
    assert (sent.destination, sent.local, sent.remote) == (HOME, AGENT_IPV4, NAT)
    assert isinstance(decode(sent.message, AGENT, HOME), BindingRefreshRequest)
    engine.handle(native(update(2)), 1.0)
    sent = only(engine.request_refresh(HOME), SendMobility)
    assert (sent.destination, sent.remote, sent.type2_routing) == (CARE_OF, None, HOME)


# --- UDP over IPv6, the last resort of RFC 5555 §4.4.1 ---


def test_rfc5555_4_4_1_update_in_udp_over_ipv6() -> None:
    outer = OuterAddress(CARE_OF, 4191)
    raw = encode(
        BindingUpdate(
            1, 150, True, True, force_udp=True, options=(AlternateCareOfAddress(CARE_OF),)
        ),
        HOME,
        AGENT,
    )
    packet = MobilityPacket(HOME, AGENT, raw, outer)
    assert ack(agent().handle(packet, 0.0)).status == 144
    outputs = agent(accept_force_udp_ipv6=True).handle(packet, 0.0)
    new = changed(outputs).new
    assert new is not None
    assert new.care_of_address == CARE_OF
    assert not new.nat_detected
    assert new.udp_encapsulation
    sent = only(outputs, SendMobility)
    assert (sent.local, sent.remote) == (AGENT, outer)


# --- against another implementation's bytes ---


def test_scapy_builds_the_update_and_reads_the_acknowledgement() -> None:
    """scapy knows no RFC 5555 options: they are bytes here, as §3.1 draws them."""
    options = bytes((29, 6, 0b100000_0_0, 0, 192, 0, 2, 10)) + bytes((32, 6, 0, 0, 10, 9, 8, 7))
    # Options start at octet 12, which suits their alignment of 4n; four octets of PadN end it.
    header = MIP6MH_BU(seq=4660, flags="AH", mhtime=75, len=3, options=[])
    fixed = bytes(header)[:12]
    built = IPv6(src=str(HOME), dst=str(AGENT)) / MIP6MH_BU(fixed + options + b"\x01\x02\0\0")
    del built[MIP6MH_BU].cksum
    raw = bytes(built[MIP6MH_BU])
    if len(raw) != 32:
        pytest.fail(f"scapy built {len(raw)} octets: {raw.hex()}")
    outputs = agent().handle(MobilityPacket(HOME, AGENT, bytes(built)[40:], NAT), 0.0)
    new = changed(outputs).new
    assert new is not None
    assert (new.sequence, new.lifetime) == (4660, 300)
    assert (new.ipv4_home_address, new.care_of_address) == (HOME_IPV4, PRIVATE)
    sent = only(outputs, SendMobility)
    answer = MIP6MH_BA(sent.message)
    assert (answer.mhtype, answer.status, answer.seq, answer.mhtime) == (6, 0, 4660, 75)
    # RFC 5555 §3.2.1 and §3.2.2, octet by octet.
    assert bytes((30, 6, 0, 32 << 2, 192, 0, 2, 10)) in sent.message
    assert bytes((31, 6, 0, 0, 0, 0, 0, 110)) in sent.message


# --- configuration ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_lifetime": 3},
        {"max_lifetime": 4 * 65536},
        {"nat_refresh_time": NO_KEEPALIVES},
        {"nat_refresh_time": -1},
        {"refresh_advice": 3600},
        {"ipv4_lease_time": 0},
    ],
)
def test_configuration_that_the_protocol_cannot_express(wrong: dict[str, int]) -> None:
    with pytest.raises(MobilityError) as caught:
        HomeAgentConfig(AGENT, subscribers=SUBSCRIBERS, **wrong)  # type: ignore[arg-type]
    assert caught.value.hint


def test_unused_ipv4_care_of_option_over_ipv6_is_skipped() -> None:
    packet = native(update(), options=(IPv4CareOfAddress(PUBLIC),))
    new = changed(agent().handle(packet, 0.0)).new
    assert new is not None
    assert new.care_of_address == CARE_OF
