"""The home agent's engine: what is refused, discarded, or answered by an error."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    ELSEWHERE,
    HOME,
    NAT,
    NO_NAT,
    NO_SUBSCRIBER,
    PUBLIC,
    ROUTER_HOME,
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
from scapy.layers.inet6 import ICMPv6ParamProblem, IPv6, IPv6ExtHdrDestOpt

from dsmip_ipsec.mobility.types import (
    BindingChanged,
    DropReason,
    EventKind,
    MobilityPacket,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.wire import icmp6
from dsmip_ipsec.wire.mobility import (
    BindingError,
    BindingErrorStatus,
    BindingRefreshRequest,
    BindingStatus,
    UnknownMessage,
    decode,
    encode,
)
from dsmip_ipsec.wire.options import (
    NatDetection,
    NonceIndices,
)

NO_KEEPALIVES = 0xFFFFFFFF


# --- sequence numbers (RFC 6275 §9.5.1) ---


@pytest.mark.rfc("6275-9.1-2", "6275-9.5.1-4", "6275-9.5.4-3")
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


@pytest.mark.rfc("6275-9.5.1-3")
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


@pytest.mark.rfc(
    "5555-5-2",
    "6275-9.3.1-1",
    "6275-9.5.1-1",
    "6275-9.5.1-2",
    "6275-9.5.4-1",
    "6275-9.5.4-9",
    "6275-10.3.1-1",
    "6275-10.3.1-2",
    "6275-10.3.1-8",
    "6275-10.3.1-9",
)
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


@pytest.mark.rfc("5555-5-2", "6275-10.3.1-2")
def test_an_unprotected_update_leaves_the_binding_alone() -> None:
    engine = agent()
    before = changed(engine.handle(over_udp(update(1)), 0.0)).new
    hostile = over_udp(update(2, lifetime=0), PUBLIC, NO_NAT, protected=False)
    assert dropped_silently(engine.handle(hostile, 1.0), DropReason.UNPROTECTED)
    assert engine.binding_cache.get(HOME) == before


# --- refused with a status ---


@pytest.mark.rfc(
    "6275-9.5.4-6",
    "6275-10.3.1-3",
    "6275-10.3.1-6",
    "6275-10.3.1-7",
    "6275-10.3.2-1",
    "6275-10.3.2-2",
)
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


@pytest.mark.rfc("6275-9.5.2-4", "6275-9.5.4-3", "6275-10.3.1-7")
def test_rfc6275_10_3_1_insufficient_resources_is_130() -> None:
    engine = agent(max_bindings=1)
    assert ack(engine.handle(over_udp(update(1)), 0.0)).status == 0
    other = over_udp(update(1), home=ROUTER_HOME)
    assert ack(engine.handle(other, 0.0), ROUTER_HOME).status == 130
    assert ack(engine.handle(over_udp(update(2)), 0.0)).status == 0, "who is in may refresh"


@pytest.mark.rfc("5555-3.1.1-2")
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


# --- other messages, broken messages (RFC 6275 §9.2) ---


@pytest.mark.rfc("6275-9.2-3", "6275-9.2-4", "6275-9.3.3-2")
def test_rfc6275_9_2_unknown_type_gets_a_binding_error() -> None:
    engine = agent()
    raw = encode(UnknownMessage(99, bytes(10)), HOME, AGENT)
    sent = only(engine.handle(MobilityPacket(HOME, AGENT, raw, NAT), 0.0), SendMobility)
    assert (sent.destination, sent.remote, sent.local) == (HOME, NAT, AGENT_IPV4)
    message = decode(sent.message, AGENT, HOME)
    assert isinstance(message, BindingError)
    assert message.status == BindingErrorStatus.UNRECOGNIZED_MH_TYPE


def other_payload_protocol(message: bytes) -> bytes:
    """With a right checksum all the same."""
    raw = bytearray(message)
    raw[0] = 58  # one less in the high octet of the first word, so one more in the checksum
    total = int.from_bytes(raw[4:6], "big") + 0x100
    raw[4:6] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
    return bytes(raw)


@pytest.mark.rfc("6275-9.2-5", "6275-9.2-6", "6275-9.2-7", "6275-8.4-6", "6275-10.2-1")
def test_rfc6275_9_2_payload_protocol_gets_a_parameter_problem() -> None:
    raw = other_payload_protocol(native(update()).message)
    outputs = agent().handle(MobilityPacket(CARE_OF, AGENT, raw, None, HOME), 0.0)
    assert none(outputs, SendMobility)
    sent = only(outputs, SendIcmp)
    assert (sent.source, sent.destination, sent.protected) == (AGENT, CARE_OF, False)
    # scapy finds the octet that the pointer means, and what is quoted before it.
    problem = ICMPv6ParamProblem(sent.message)
    assert (problem.type, problem.code) == (4, 0)
    quoted = bytes(problem.payload)
    assert quoted[problem.ptr : problem.ptr + 3] == bytes((58, raw[1], 5))
    packet = IPv6(quoted)
    assert (packet.src, packet.dst) == (str(CARE_OF), str(AGENT))
    assert packet.plen == 24 + len(raw)
    (option,) = (each for each in packet[IPv6ExtHdrDestOpt].options if each.otype == 0xC9)
    assert option.hoa == str(HOME)
    # Nothing of what the message says: that was under ESP.
    assert raw[6:] not in sent.message
    assert quoted.endswith(raw[:6])
    icmp6.decode(sent.message, AGENT, CARE_OF)  # its checksum


def test_rfc5555_5_2_2_no_parameter_problem_in_clear_to_the_home_address() -> None:
    raw = other_payload_protocol(over_udp(update()).message)
    for packet in (MobilityPacket(HOME, AGENT, raw, NAT), MobilityPacket(HOME, AGENT, raw, None)):
        assert dropped_silently(agent().handle(packet, 0.0), DropReason.MALFORMED)


@pytest.mark.rfc("6275-9.2-2", "6275-10.2-1")
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


@pytest.mark.rfc("6275-9.3.3-3")
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
