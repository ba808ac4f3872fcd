"""The mobile node's engine: from one home agent to the next, last resorts, leaving for good."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from mobility_samples import (
    AGENT,
    AGENT_IPV4,
    CARE_OF,
    HOME,
    HOME_IPV4,
    PRIVATE,
    PUBLIC,
    changed,
    dropped_silently,
    events,
    none,
    only,
)

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.tunnelling import Role, tunnel_format
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    DropReason,
    Event,
    EventKind,
    HomeAgentChanged,
    MobilityPacket,
    OuterAddress,
    Output,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import BindingAck, BindingError, BindingUpdate, decode, encode
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    IPv4AddressAck,
    IPv4HomeAddress,
    MobilityOption,
    NatDetection,
)

SECOND = HomeAgentAddresses(IPv6Address("2001:db8:1::2"), IPv4Address("198.51.100.2"))
THIRD = HomeAgentAddresses(IPv6Address("2001:db8:1::3"))  # without IPv4
ACK_IPV4 = IPv4AddressAck(0, 32, HOME_IPV4.ip)
FORCED = NatDetection(True, 0xFFFFFFFF)
NO_NAT = NatDetection(False, 0xFFFFFFFF)


def node(**changes: Any) -> MobileNode:
    settings: dict[str, Any] = {"home_agent_ipv4": AGENT_IPV4, "ipv4_home_address": HOME_IPV4}
    return MobileNode(
        MobileNodeConfig(HOME, AGENT, **(settings | changes)), random.Random(5).getrandbits
    )


def sent(outputs: list[Output]) -> tuple[SendMobility, BindingUpdate]:
    output = only(outputs, SendMobility)
    update = decode(output.message, HOME, output.destination)
    assert isinstance(update, BindingUpdate)
    return output, update


def answer(
    outputs: list[Output], *options: MobilityOption, status: int = 0, **flags: bool
) -> MobilityPacket:
    output, update = sent(outputs)
    message = BindingAck(status, update.sequence, update.lifetime, options=options, **flags)
    raw = encode(message, output.destination, HOME)
    return MobilityPacket(output.destination, HOME, raw, output.remote)


def run_until_sent(engine: MobileNode, limit: float) -> tuple[float, list[Output]]:
    """Tick along the deadlines until a binding update leaves for someone, or UDP is tried."""
    while (due := engine.next_deadline()) is not None and due <= limit:
        outputs = engine.tick(due)
        if not none(outputs, SendMobility):
            return due, outputs
    raise AssertionError("nothing was sent")


# --- another home agent (RFC 6275 §11.4.1, §11.7.1) ---


@pytest.mark.rfc("6275-11.7.1-14", "6275-11.4.1-2", "6275-11.4.1-3")
def test_silent_home_agent_is_left_when_the_back_off_is_over() -> None:
    engine = node(other_home_agents=(SECOND, THIRD))
    outputs = engine.attach(CARE_OF, 0.0)
    tried: list[tuple[float, IPv6Address]] = []
    now = 0.0
    while len(tried) < 20:
        tried.append((now, only(outputs, SendMobility).destination))
        now, outputs = run_until_sent(engine, 1000.0)
    order = [where for _, where in tried]
    assert order[:6] == [AGENT] * 6
    assert order[6:12] == [SECOND.address] * 6
    assert order[12:18] == [THIRD.address] * 6
    assert order[18:] == [AGENT] * 2, "and round again"
    assert tried[6][0] == pytest.approx(1.5 * (1 + 2 + 4 + 8 + 16) + 32)
    # Each has the time-out of a first registration, and a sequence of its own.
    assert tried[7][0] - tried[6][0] == 1.5


@pytest.mark.rfc("6275-11.4.1-1", "6275-11.4.1-5")
@pytest.mark.parametrize("status", [128, 129, 130, 131, 132, 133])
def test_refusing_home_agent_is_left_after_the_wait(status: int) -> None:
    """ "MUST, however, wait at least InitialBindackTimeoutFirstReg seconds"."""
    engine = node(other_home_agents=(SECOND,))
    outputs = engine.attach(PRIVATE, 10.0)
    outputs = engine.handle(answer(outputs, status=status), 10.1)
    assert only(outputs, HomeAgentChanged) == HomeAgentChanged(AGENT, SECOND.address, SECOND.ipv4)
    assert none(outputs, SendMobility)
    now, outputs = run_until_sent(engine, 100.0)
    assert now == 11.5
    output, _ = sent(outputs)
    assert output.remote == OuterAddress(IPv4Address("198.51.100.2"), 4191)
    new = changed(engine.handle(answer(outputs, ACK_IPV4, NO_NAT), now)).new
    assert new is not None
    assert (new.home_agent, new.home_agent_ipv4) == (SECOND.address, SECOND.ipv4)
    # What the first one says now is a stranger's word.
    old = MobilityPacket(AGENT, HOME, encode(BindingAck(0, 1, 1), AGENT, HOME), None)
    assert dropped_silently(engine.handle(old, now), DropReason.WRONG_SOURCE)


def test_refused_by_all() -> None:
    engine = node(other_home_agents=(SECOND,))
    outputs = engine.attach(CARE_OF, 0.0)
    engine.handle(answer(outputs, status=129), 0.1)
    _, outputs = run_until_sent(engine, 10.0)
    engine.handle(answer(outputs, status=129), 2.0)
    assert engine.state is State.REFUSED
    # A third one turns up (DNS, say): it is tried at once.
    outputs = engine.learn_home_agents([SECOND, THIRD], 5.0)
    assert only(outputs, HomeAgentChanged).new == THIRD.address
    assert sent(outputs)[0].destination == THIRD.address


@pytest.mark.rfc("6275-11.4.1-4")
def test_registered_node_moves_to_its_own_home_agent_first() -> None:
    engine = node(other_home_agents=(SECOND,))
    engine.handle(answer(engine.attach(CARE_OF, 0.0), status=129), 0.1)
    now, outputs = run_until_sent(engine, 10.0)
    engine.handle(answer(outputs, ACK_IPV4), now)
    assert engine.learn_home_agents([THIRD], now + 1) == []
    output, _ = sent(engine.attach(PUBLIC, now + 2))
    assert output.destination == SECOND.address


def test_home_agent_without_ipv4_is_no_choice_in_an_ipv4_network() -> None:
    engine = node(other_home_agents=(THIRD, SECOND))
    engine.handle(answer(engine.attach(PRIVATE, 0.0), status=129), 0.1)
    assert engine.home_agent == SECOND
    # And the other way round: from one that IPv4 doesn't reach.
    engine = node(home_agent_ipv4=None, other_home_agents=(SECOND,))
    outputs = engine.attach(PRIVATE, 0.0)
    assert only(outputs, HomeAgentChanged).new == SECOND.address
    assert sent(outputs)[0].remote == OuterAddress(IPv4Address("198.51.100.2"), 4191)


def test_attach_that_fails_changes_no_home_agent() -> None:
    engine = node(home_agent_ipv4=None, other_home_agents=(SECOND,))
    with pytest.raises(MobilityError):
        engine.attach(IPv4Address("127.0.0.1"), 0.0)
    assert engine.home_agent.address == AGENT
    assert engine.state is State.DETACHED
    # Nor does IPv4 become an alternative that this home agent can't be reached by.
    engine.attach(CARE_OF, 0.0, ipv4_alternative=PRIVATE)
    for _ in range(4):
        _, outputs = run_until_sent(engine, 100.0)
        assert sent(outputs)[0].local == CARE_OF


def test_deregistration_goes_to_who_has_the_binding() -> None:
    engine = node(other_home_agents=(SECOND,))
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    engine.handle(answer(engine.refresh(5.0), status=129), 5.1)
    assert engine.home_agent == SECOND
    outputs = engine.deregister(20.0)
    output, update = sent(outputs)
    assert (output.destination, update.lifetime) == (AGENT, 0)


@pytest.mark.rfc("6275-11.8-2")
def test_first_registration_is_counted_by_home_agent() -> None:
    """A binding with another home agent is none with this one: it has duplicates to look for."""
    engine = node(other_home_agents=(SECOND,))
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    engine.handle(answer(engine.refresh(5.0), status=129), 5.1)
    first, _ = run_until_sent(engine, 20.0)
    second, _ = run_until_sent(engine, 20.0)
    assert second - first == 1.5


def test_rfc5555_2_3_1_unanswered_ipv4_option_is_that_home_agents() -> None:
    engine = node(other_home_agents=(SECOND,))
    engine.handle(answer(engine.attach(CARE_OF, 0.0)), 0.1)
    outputs = engine.refresh(5.0)
    assert not any(isinstance(each, IPv4HomeAddress) for each in sent(outputs)[1].options)
    engine.handle(answer(outputs, status=129), 5.1)
    _, outputs = run_until_sent(engine, 20.0)
    assert any(isinstance(each, IPv4HomeAddress) for each in sent(outputs)[1].options)


# --- never again ---


@pytest.mark.rfc("6275-11.7.1-22")
def test_status_134_gives_the_home_address_up() -> None:
    engine = node(other_home_agents=(SECOND,))
    outputs = engine.handle(answer(engine.attach(CARE_OF, 0.0), status=134), 0.1)
    assert EventKind.HOME_ADDRESS_TAKEN in events(outputs)
    assert none(outputs, HomeAgentChanged)
    assert engine.state is State.ABANDONED
    assert none(engine.attach(PUBLIC, 5.0), SendMobility)
    assert engine.register(6.0) == []
    assert engine.deregister(7.0) == []
    assert engine.next_deadline() is None


ROUTER = {"mobile_router": True, "home_agent_ipv4": AGENT_IPV4}
PREFIX = {"mobile_network_prefixes": (IPv6Network("2001:db8:20::/56"),)}


@pytest.mark.parametrize(
    ("settings", "status", "others"),
    [
        ({}, 140, 1),
        ({}, 143, 1),
        ({}, 141, 0),  # RFC 3963 §5.4.1: "fatal errors"
        ({}, 142, 0),
        (PREFIX, 140, 1),
        (PREFIX, 141, 1),
        (PREFIX, 142, 1),
        (PREFIX, 143, 0),  # §5.4.2
    ],
)
def test_rfc3963_5_4_router_that_is_refused_everywhere_stops(
    settings: dict[str, Any], status: int, others: int
) -> None:
    engine = node(other_home_agents=(SECOND,), **(ROUTER | settings))
    outputs = engine.attach(CARE_OF, 0.0)
    for _ in range(others):
        engine.handle(answer(outputs, status=status), 0.1)
        _, outputs = run_until_sent(engine, 10.0)
        assert sent(outputs)[0].destination == SECOND.address
    outputs = engine.handle(answer(outputs, status=status), 5.0)
    assert EventKind.MOBILE_ROUTER_REFUSED in events(outputs)
    assert engine.state is State.ABANDONED
    assert none(engine.attach(PUBLIC, 20.0), SendMobility)


def test_rfc3963_5_3_router_deregisters_and_goes_to_the_next_home_agent() -> None:
    engine = node(other_home_agents=(SECOND,), **ROUTER)
    outputs = engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    assert sent(outputs)[1].lifetime == 0
    outputs = engine.handle(answer(outputs), 0.2)
    assert only(outputs, HomeAgentChanged).new == SECOND.address
    _, outputs = run_until_sent(engine, 10.0)
    assert sent(outputs)[1].lifetime > 0
    engine.handle(answer(outputs, ACK_IPV4, mobile_router=True), 3.0)
    assert engine.state is State.REGISTERED


# --- UDP over IPv6, the last resort (RFC 5555 §4.1, §4.4.1) ---


@pytest.mark.rfc("5555-3.1.3-1", "5555-4.1-1", "5555-5.1-2", "5555-5-3")
def test_udp_over_ipv6_after_persistent_loss() -> None:
    engine = node(udp_over_ipv6=True)
    outputs = engine.attach(CARE_OF, 0.0)
    assert sent(outputs)[0].remote is None, "natively at first"
    engine.handle(answer(outputs, ACK_IPV4), 0.1)
    outputs = engine.report_packet_loss(10.0)
    assert events(outputs) == [EventKind.LAST_RESORT_UDP]
    output, update = sent(outputs)
    assert (output.source, output.destination) == (HOME, AGENT)
    assert (output.local, output.remote) == (CARE_OF, OuterAddress(AGENT, 4191))
    assert output.home_address_option is None
    assert update.force_udp
    assert AlternateCareOfAddress(CARE_OF) in update.options
    new = changed(engine.handle(answer(outputs, ACK_IPV4, FORCED), 10.1)).new
    assert new is not None
    assert (new.udp_encapsulation, new.force_udp, new.nat_detected) == (True, True, False)
    form = tunnel_format(new, Role.MOBILE_NODE, 6, esp=False)
    assert str(form) == "IPv6 / UDP / IPv6"
    assert engine.report_packet_loss(11.0) == []
    # The way out is the way in; and in the next network, natively again.
    assert sent(engine.refresh(12.0))[0].remote is not None
    output, _ = sent(engine.attach(IPv6Address("2001:db8:3::7"), 20.0))
    assert output.remote is None


def test_deregistration_takes_the_last_resort_too() -> None:
    engine = node(udp_over_ipv6=True)
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    engine.handle(answer(engine.report_packet_loss(1.0), ACK_IPV4, FORCED), 1.1)
    output, update = sent(engine.deregister(2.0))
    assert output.remote == OuterAddress(AGENT, 4191)
    assert (update.lifetime, update.force_udp) == (0, False)


def test_udp_over_ipv6_that_the_home_agent_forbids() -> None:
    engine = node(udp_over_ipv6=True)
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    outputs = engine.handle(answer(engine.report_packet_loss(1.0), FORCED, status=144), 1.1)
    assert events(outputs) == [EventKind.FORCED_UDP_REFUSED]
    output, update = sent(outputs)
    assert (output.remote, update.force_udp) == (None, False)


def test_udp_over_ipv6_only_if_permitted() -> None:
    engine = node()
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    assert engine.report_packet_loss(1.0) == []


def test_ipv4_comes_before_the_last_resort() -> None:
    """RFC 5555 §4.4.1: IPv6, then IPv4, then UDP."""
    engine = node(udp_over_ipv6=True)
    outputs = engine.attach(CARE_OF, 0.0, ipv4_alternative=PUBLIC)
    engine.handle(answer(outputs, ACK_IPV4), 0.1)
    outputs = engine.report_packet_loss(1.0)
    assert events(outputs) == [EventKind.FAMILY_FALLBACK]
    assert sent(outputs)[0].local == PUBLIC
    engine.handle(answer(outputs, ACK_IPV4, NO_NAT), 1.1)
    assert sent(engine.report_packet_loss(2.0))[1].force_udp


def test_udp_is_tried_when_native_updates_stay_unanswered() -> None:
    engine = node(udp_over_ipv6=True)
    engine.attach(CARE_OF, 0.0)
    remotes = [only(run_until_sent(engine, 500.0)[1], SendMobility).remote for _ in range(7)]
    assert remotes[:5] == [None] * 5
    assert remotes[5:] == [OuterAddress(AGENT, 4191)] * 2


# --- leaving for good ---


def test_detach_does_not_forget_a_deregistration() -> None:
    engine = node()
    engine.handle(answer(engine.attach(PRIVATE, 0.0), ACK_IPV4, NO_NAT), 0.1)
    engine.deregister(1.0)
    engine.detach(2.0)
    assert engine.state == "leaving"
    assert engine.deregister(3.0) == [], "that is wanted already"
    outputs = engine.attach(CARE_OF, 4.0)
    assert sent(outputs)[1].lifetime == 0
    outputs = engine.handle(answer(outputs), 4.1)
    assert changed(outputs).reason is ChangeReason.DEREGISTERED
    assert engine.state is State.IDLE


def test_leaving_node_that_finds_no_network_ends_with_the_lifetime() -> None:
    engine = node(lifetime=40)
    engine.handle(answer(engine.attach(PRIVATE, 0.0), ACK_IPV4, NO_NAT), 0.1)
    engine.deregister(1.0)
    engine.detach(2.0)
    gone: list[Output] = []
    for _ in range(20):
        due = engine.next_deadline()
        if due is None:
            break
        assert due < 200
        outputs = engine.tick(due)
        assert none(outputs, SendMobility)
        gone += [each for each in outputs if isinstance(each, BindingChanged)]
    assert len(gone) == 1
    assert engine.state is State.DETACHED
    assert sent(engine.attach(PUBLIC, 300.0))[1].lifetime > 0


@pytest.mark.parametrize("detached", [False, True])
def test_register_takes_a_deregistration_back(detached: bool) -> None:
    engine = node()
    engine.handle(answer(engine.attach(PRIVATE, 0.0), ACK_IPV4, NO_NAT), 0.1)
    engine.deregister(1.0)
    if detached:
        engine.detach(2.0)
        assert none(engine.register(3.0), SendMobility)
        outputs = engine.attach(PRIVATE, 4.0)
    else:
        outputs = engine.register(3.0)
    assert sent(outputs)[1].lifetime > 0
    assert engine.register(5.0) == [], "wanted already"


def test_register_after_refusal_and_at_home() -> None:
    engine = node()
    engine.handle(answer(engine.attach(PRIVATE, 0.0), status=129), 0.1)
    assert sent(engine.register(5.0))
    outputs = engine.deregister(6.0, at_home=True)
    engine.handle(answer(outputs), 6.1)
    assert engine.state is State.IDLE
    with pytest.raises(MobilityError) as caught:
        engine.register(7.0)
    assert caught.value.hint


@pytest.mark.rfc("6275-11.5.5-9", "6275-11.5.5-10")
@pytest.mark.parametrize("bound", [True, False])
def test_rfc6275_11_5_5_returning_home_says_what_to_do_on_the_link(bound: bool) -> None:
    """No duplicate address detection while the home agent defends the address, and neighbour
    advertisements once it has stopped."""
    engine = node()
    outputs = engine.attach(PRIVATE, 0.0)
    if bound:
        engine.handle(answer(outputs, ACK_IPV4, NO_NAT), 0.1)
    outputs = engine.deregister(5.0, at_home=True)
    told = [each for each in outputs if isinstance(each, Event)]
    detail = next(each.detail for each in told if each.kind is EventKind.RETURNING_HOME)
    assert detail == {"duplicate_address_detection": "skip" if bound else "perform"}
    assert EventKind.RETURNED_HOME not in events(outputs)
    assert EventKind.RETURNED_HOME in events(engine.handle(answer(outputs), 5.1))


# --- lifetimes, binding errors, prefixes ---


@pytest.mark.rfc("6275-11.7.1-11")
@pytest.mark.parametrize(("valid", "units"), [(None, 150), (100.0, 25), (3.0, 1), (-5.0, 1)])
def test_rfc6275_11_7_1_lifetime_within_that_of_the_care_of_address(
    valid: float | None, units: int
) -> None:
    _, update = sent(node().attach(CARE_OF, 7.0, valid_lifetime=valid))
    assert update.lifetime == units


@pytest.mark.rfc("6275-8.5-5", "6275-11.3.6-1", "6275-11.3.6-2")
@pytest.mark.parametrize(("status", "answered"), [(1, True), (2, False), (77, False)])
def test_binding_error_of_the_home_agent(status: int, answered: bool) -> None:
    engine = node()
    engine.handle(answer(engine.attach(CARE_OF, 0.0), ACK_IPV4), 0.1)
    raw = encode(BindingError(status, HOME), AGENT, HOME)
    outputs = engine.handle(MobilityPacket(AGENT, CARE_OF, raw, None), 1.0)
    assert EventKind.BINDING_ERROR in events(outputs)
    assert none(outputs, SendMobility) is not answered
    forged = MobilityPacket(AGENT, CARE_OF, raw, None, protected=False)
    assert dropped_silently(engine.handle(forged, 2.0), DropReason.UNPROTECTED)


@pytest.mark.rfc("6275-11.7.3-11")
def test_status_1_solicits_and_holds_the_keepalive_until_the_answer() -> None:
    engine = node()
    options = (ACK_IPV4, NatDetection(False, 30))
    outputs = engine.handle(answer(engine.attach(PRIVATE, 0.0), *options, status=1), 0.1)
    assert EventKind.PREFIX_DISCOVERY_NEEDED in events(outputs)
    assert only(outputs, SendIcmp).udp
    updates = []
    while (due := engine.next_deadline()) is not None and due <= 451:
        updates += [due for each in engine.tick(due) if isinstance(each, SendMobility)]
    assert updates[0] == 450.0, "no registration, but the binding isn't let go"


def test_several_ipv4_options_in_one_update() -> None:
    """RFC 5555 §3.1.1, §4.4.2: an address and prefixes; each answer finds its question."""
    engine = node(ipv4_home_address=None, request_ipv4=True, ipv4_prefix_lengths=(24, 28))
    outputs = engine.attach(PRIVATE, 0.0)
    asked = [each for each in sent(outputs)[1].options if isinstance(each, IPv4HomeAddress)]
    assert [(each.prefix_len, each.prefix_request) for each in asked] == [
        (32, False),
        (24, True),
        (28, True),
    ]
    given = IPv4AddressAck(0, 32, IPv4Address("192.0.2.77"))
    refused = IPv4AddressAck(133, 0, IPv4Address(0))
    second = IPv4AddressAck(0, 28, IPv4Address("192.0.2.64"))
    new = changed(engine.handle(answer(outputs, given, refused, second, NO_NAT), 0.1)).new
    assert new is not None
    assert new.ipv4_prefixes == (IPv4Network("192.0.2.64/28"),)
    outputs = engine.refresh(1.0)
    asked = [each for each in sent(outputs)[1].options if isinstance(each, IPv4HomeAddress)]
    assert asked[1] == IPv4HomeAddress(24, True, IPv4Address(0)), "asked again"
    assert asked[2] == IPv4HomeAddress(28, False, IPv4Address("192.0.2.64"))
