"""The home agent's engine: registrations that are accepted, and how they end."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    HOME,
    HOME_IPV4,
    NAT,
    NO_NAT,
    PRIVATE,
    PUBLIC,
    SUBSCRIBERS,
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
from scapy.layers.inet6 import MIP6MH_BA, MIP6MH_BU, IPv6

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig
from dsmip_ipsec.mobility.home_link_types import HomeLinkChanged
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    MobilityPacket,
    OuterAddress,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import (
    BindingRefreshRequest,
    BindingUpdate,
    decode,
    encode,
)
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    BindingRefreshAdvice,
    IPv4AddressAck,
    IPv4CareOfAddress,
    NatDetection,
)

NO_KEEPALIVES = 0xFFFFFFFF


# --- accepted registrations ---


@pytest.mark.rfc(
    "5555-2.3.1-1",
    "5555-2.3.2.1-7",
    "5555-2.3.2.2-1",
    "5555-2.3.2.2-2",
    "5555-2.3.2.2-3",
    "5555-2.3.2.2-4",
    "5555-2.3.2.2-5",
    "5555-2.3.2.2-6",
    "5555-2.3.2.2-7",
    "5555-3.2.2-1",
    "5555-4.2-2",
    "5555-4.2-3",
    "5555-4.5-1",
    "5555-4.5-5",
    "5555-4.5-5a",
    "5555-4.5-12",
    "5555-4.5-15",
)
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


@pytest.mark.rfc(
    "5555-4.2-2", "5555-4.2-3", "5555-2.3.2.1-3", "5555-2.3.2.1-5", "5555-2.3.2.1-6", "5555-4.5-13"
)
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


@pytest.mark.rfc(
    "5555-2.3.1-1",
    "6275-8.4-7",
    "6275-9.5.4-10",
    "6275-9.5.4-12",
    "6275-10.3.1-11",
    "6275-10.3.1-26",
    "6275-10.3.1-10",
    "5555-4.5-14",
)
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


@pytest.mark.rfc("6275-10.3.1-21", "6275-9.5.4-2")
def test_rfc6275_10_3_1_acknowledges_without_the_a_bit() -> None:
    """§10.3.1: "regardless of the setting of the Acknowledge (A) bit"."""
    assert ack(agent().handle(over_udp(update(acknowledge=False)), 0.0)).status == 0


@pytest.mark.rfc("6275-9.5.2-2", "6275-10.3.1-16", "6275-10.3.1-27")
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


@pytest.mark.rfc("6275-10.3.1-29")
def test_rfc6275_10_3_1_refresh_advice_is_below_the_lifetime() -> None:
    engine = agent(refresh_advice=100)
    answer = ack(engine.handle(over_udp(update(1, lifetime=26)), 0.0))
    assert option(answer, BindingRefreshAdvice) == BindingRefreshAdvice(25)
    answer = ack(engine.handle(over_udp(update(2, lifetime=25)), 0.0))
    assert not any(isinstance(each, BindingRefreshAdvice) for each in answer.options)


def test_binding_changes_before_its_acknowledgement_leaves() -> None:
    outputs = agent().handle(over_udp(update()), 0.0)
    assert [type(output) for output in outputs] == [BindingChanged, HomeLinkChanged, SendMobility]


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


@pytest.mark.rfc("5555-2.3.2.1-4")
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


@pytest.mark.rfc("5555-3.2.2-2")
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


@pytest.mark.rfc("5555-4.5-5b")
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


@pytest.mark.rfc("5555-3.2.2-3", "5555-4.5-6")
@pytest.mark.parametrize(("accepts", "status"), [(False, 144), (True, 0)])
def test_rfc5555_4_5_f_flag_over_ipv6_is_a_policy_of_its_own(accepts: bool, status: int) -> None:
    engine = agent(accept_force_udp_ipv6=accepts)
    assert ack(engine.handle(native(update(force_udp=True)), 0.0)).status == status


# --- deregistration and expiry ---


@pytest.mark.rfc(
    "6275-9.5.3-1",
    "6275-9.5.3-2",
    "6275-10.3.2-3",
    "6275-10.3.2-4",
    "6275-10.3.2-5",
    "6275-10.3.2-6",
    "6275-10.3.2-7",
)
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


@pytest.mark.rfc("6275-9.5.4-11")
def test_rfc6275_11_5_5_deregistration_from_home_gets_no_routing_header() -> None:
    engine = agent()
    engine.handle(over_udp(update(1)), 0.0)
    packet = native(update(2, lifetime=0), alternate=HOME, home_address_option=False)
    sent = only(engine.handle(packet, 1.0), SendMobility)
    assert (sent.destination, sent.type2_routing, sent.remote) == (HOME, None, None)


@pytest.mark.rfc("6275-10.3.2-9", "6275-10.3.2-10")
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


@pytest.mark.rfc("6275-9.5.2-3", "6275-9.6-1", "6275-10.3.1-20", "6275-10.3.1-31", "6275-10.3.1-13")
def test_rfc6275_10_3_1_binding_expires_with_its_lifetime() -> None:
    engine = agent()
    before = changed(engine.handle(over_udp(update(1, lifetime=10)), 0.0)).new
    assert engine.next_deadline() == 40.0
    assert engine.expire(39.9) == []
    assert engine.expire(40.0)[0] == BindingChanged(before, None, ChangeReason.EXPIRED)
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


@pytest.mark.rfc("5555-4.1-1")
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


@pytest.mark.rfc("6275-9.5.4-5")
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
