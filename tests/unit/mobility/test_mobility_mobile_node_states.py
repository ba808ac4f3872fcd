"""The mobile node's engine: its ways from place to place and from state to state."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Network, ip_address
from itertools import pairwise
from typing import Any

import pytest
from mobile_node_samples import (
    ACK_IPV4,
    BEHIND_NAT,
    NO_NAT,
    answer,
    from_agent,
    node,
    registered,
    sent_update,
)
from mobility_samples import (
    AGENT,
    CARE_OF,
    HOME,
    PRIVATE,
    PUBLIC,
    changed,
    dropped_silently,
    none,
    only,
    option,
)

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import TRANSITIONS, State, Trigger, transition
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    DropReason,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import (
    BindingRefreshRequest,
    BindingUpdate,
    decode,
)
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    NatDetection,
)

# --- handover (RFC 5555 §5.1) ---


@pytest.mark.rfc("5555-5.1-5", "6275-11.5.4-4")
def test_rfc5555_5_1_old_binding_stays_until_the_acknowledgement() -> None:
    engine = node()
    registered(engine)
    old = engine.binding
    outputs = engine.attach(PUBLIC, 5.0)
    assert only(outputs, SendMobility).local == PUBLIC
    assert none(outputs, BindingChanged)
    assert engine.binding == old
    assert engine.state is State.REGISTERING
    change = changed(engine.handle(answer(sent_update(outputs), ACK_IPV4, NO_NAT), 5.1))
    assert change.old == old
    assert change.reason is ChangeReason.MOVED
    assert change.new is not None
    assert change.new.care_of_address == PUBLIC
    assert not change.new.udp_encapsulation


def test_late_acknowledgement_for_the_place_we_have_left_is_ignored() -> None:
    engine = node()
    first = sent_update(engine.attach(PRIVATE, 0.0))
    engine.attach(PUBLIC, 0.2)
    outputs = engine.handle(answer(first, ACK_IPV4, BEHIND_NAT), 0.3)
    assert dropped_silently(outputs, DropReason.NOT_OUTSTANDING)
    assert engine.binding is None


def test_acknowledgement_of_an_earlier_transmission_counts() -> None:
    """Of the same update to the same place: it need not go out again. The acknowledgement of
    the second is then the newer word."""
    engine = node()
    first = sent_update(engine.attach(PRIVATE, 0.0))
    second = sent_update(engine.tick(1.5))
    engine.handle(answer(first, ACK_IPV4, BEHIND_NAT), 1.6)
    assert engine.state is State.REGISTERED
    assert engine.tick(5.0) == []
    new = changed(engine.handle(answer(second, ACK_IPV4, NatDetection(False, 40)), 5.1)).new
    assert new is not None
    assert new.nat_refresh_time == 40
    outputs = engine.handle(answer(first, ACK_IPV4, BEHIND_NAT), 5.2)
    assert dropped_silently(outputs, DropReason.NOT_OUTSTANDING)


def test_detached_node_keeps_its_binding_to_the_end_and_sends_nothing() -> None:
    engine = node()
    registered(engine)
    assert none(engine.detach(1.0), SendMobility)
    assert engine.next_deadline() == 600.0
    assert engine.tick(599.0) == []
    outputs = engine.tick(600.0)
    assert changed(outputs).reason is ChangeReason.EXPIRED
    assert none(outputs, SendMobility)
    assert engine.next_deadline() is None


# --- retransmission (RFC 6275 §11.8) ---


@pytest.mark.rfc(
    "5555-4.4.1-2a",
    "6275-11.8-2",
    "6275-11.8-3",
    "6275-11.8-4",
    "6275-11.7.1-13",
    "6275-11.7.1-15",
    "6275-11.8-7",
)
@pytest.mark.parametrize(("bound", "first"), [(False, 1.5), (True, 1.0)])
def test_rfc6275_11_8_exponential_back_off(bound: bool, first: float) -> None:
    """1.5 s without a binding, else 1 s; doubled up to 32 s; a new sequence number each time."""
    engine = node(lifetime=4 * 65535)
    if bound:
        registered(engine, PUBLIC, -100.0, ACK_IPV4, NO_NAT)
    update = sent_update(engine.attach(PRIVATE, 0.0))
    now, waits, numbers = 0.0, [], [update.sequence]
    for _ in range(8):
        due = engine.next_deadline()
        assert due is not None
        assert none(engine.tick(due - 0.001), SendMobility)
        outputs = engine.tick(due)
        numbers.append(sent_update(outputs).sequence)
        waits.append(due - now)
        now = due
    expected = [min(first * 2**n, 32.0) for n in range(8)]
    assert waits == expected
    assert [(b - a) % 65536 for a, b in pairwise(numbers)] == [1] * 8
    assert engine.counters["retransmitted"] == 8


@pytest.mark.rfc("6275-11.8-2")
def test_rfc6275_13_first_registration_timeout_is_configurable() -> None:
    engine = node(first_registration_timeout=3.0)
    engine.attach(PRIVATE, 0.0)
    assert engine.next_deadline() == 3.0


@pytest.mark.rfc("6275-11.8-6", "6275-11.5.3-3")
def test_rfc6275_11_8_no_more_than_three_updates_a_second() -> None:
    engine = node()
    times = []
    for n in range(6):
        now = n / 10
        if not none(engine.attach(IPv4Address(0x0A000001 + n), now), SendMobility):
            times.append(now)
    assert times == [0.0, 0.1, 0.2]
    assert engine.next_deadline() == 1.0
    sent = only(engine.tick(1.0), SendMobility)
    assert sent.local == IPv4Address(0x0A000006), "the newest place"
    assert engine.next_deadline() == 2.5, "an update that had to wait is no retransmission"


@pytest.mark.parametrize("start", [1.01, 0.1, 1e9 / 3, 12345.678])
def test_rate_limit_ends_when_its_deadline_says(start: float) -> None:
    """Whatever floats make of the sum (1.01 + 1.0 - 1.01 is less than 1)."""
    engine = node()
    for _ in range(4):
        engine.attach(PRIVATE, start)
    due = engine.next_deadline()
    assert due is not None
    assert not none(engine.tick(due), SendMobility)


@pytest.mark.rfc("6275-11.7.3-6", "6275-8.5-11")
def test_acknowledged_update_is_not_sent_again() -> None:
    engine = node()
    registered(engine, PUBLIC, 0.0, ACK_IPV4, NO_NAT)
    assert engine.tick(100.0) == []


# --- care-of address selection (RFC 5555 §4.4.1) ---


@pytest.mark.rfc(
    "5555-2.3.1-4", "5555-4.4.1-1", "5555-4.4.1-2", "5555-4.4.1-2a", "5555-4.4.1-3", "5555-4.4.1-4"
)
def test_rfc5555_4_4_1_ipv6_first_then_ipv4_after_three_attempts() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0, ipv4_alternative=PRIVATE, administrative_domain="a")
    locals_: list[Any] = []
    now = 0.0
    for _ in range(4):
        due = engine.next_deadline()
        assert due is not None
        locals_.append(only(engine.tick(due), SendMobility).local)
        now = due
    assert locals_ == [CARE_OF, CARE_OF, PRIVATE, PRIVATE]
    assert now == 1.5 + 3.0 + 6.0 + 1.5, "three timeouts, and then from the beginning"
    # "upon movement, the mobile node not change the IP address family"
    outputs = engine.attach(CARE_OF, 30.0, ipv4_alternative=PUBLIC, administrative_domain="a")
    assert only(outputs, SendMobility).local == PUBLIC
    outputs = engine.attach(CARE_OF, 40.0, ipv4_alternative=PUBLIC)
    assert only(outputs, SendMobility).local == PUBLIC, "not aware of another domain"
    # "unless ... it has moved to a different administrative domain"
    outputs = engine.attach(CARE_OF, 50.0, ipv4_alternative=PUBLIC, administrative_domain="b")
    assert only(outputs, SendMobility).local == CARE_OF


def test_rfc5555_4_4_1_without_an_alternative_ipv6_goes_on() -> None:
    engine = node()
    engine.attach(CARE_OF, 0.0)
    for _ in range(5):
        due = engine.next_deadline()
        assert due is not None
        assert only(engine.tick(due), SendMobility).local == CARE_OF


def test_rfc5555_4_4_1_answered_attempts_do_not_add_up() -> None:
    engine = node()
    update = sent_update(engine.attach(CARE_OF, 0.0, ipv4_alternative=PRIVATE))
    sent_update(engine.tick(1.5))
    engine.handle(answer(update, ACK_IPV4), 2.0)
    engine.refresh(10.0)
    assert only(engine.tick(11.0), SendMobility).local == CARE_OF
    assert only(engine.tick(13.0), SendMobility).local == CARE_OF
    assert only(engine.tick(17.0), SendMobility).local == PRIVATE
    assert engine.state is State.REGISTERING
    assert engine.binding is not None


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "0.0.0.0", "224.0.0.9", "::", "::1", "fe80::1", "ff02::1"]
)
def test_addresses_that_are_no_care_of_addresses(address: str) -> None:
    engine = node()
    with pytest.raises(MobilityError) as caught:
        engine.attach(ip_address(address), 0.0)
    assert caught.value.hint
    assert engine.state is State.DETACHED
    assert engine.care_of_address is None


def test_ipv4_without_the_home_agents_ipv4_address() -> None:
    engine = node(home_agent_ipv4=None)
    with pytest.raises(MobilityError, match="IPv4 address isn't known"):
        engine.attach(PRIVATE, 0.0)
    engine.attach(CARE_OF, 0.0, ipv4_alternative=PRIVATE)
    for _ in range(5):
        due = engine.next_deadline()
        assert due is not None
        assert only(engine.tick(due), SendMobility).local == CARE_OF


# --- deregistration (RFC 5555 §4.4.2.1, RFC 6275 §11.5.5) ---


@pytest.mark.parametrize("status", [0, 133])
def test_rfc5555_4_4_2_1_lifetime_zero_removes_all(status: int) -> None:
    engine = node()
    registered(engine)
    old = engine.binding
    outputs = engine.deregister(5.0)
    assert none(outputs, BindingChanged), "not before the home agent says so"
    update = sent_update(outputs)
    assert update.lifetime == 0
    assert [type(each) for each in update.options] == [IPv4CareOfAddress]
    outputs = engine.handle(answer(update, BEHIND_NAT, status=status), 5.1)
    assert changed(outputs) == BindingChanged(old, None, ChangeReason.DEREGISTERED)
    assert engine.state is State.IDLE
    assert engine.next_deadline() is None
    assert list(engine.binding_update_list) == []
    assert engine.deregister(6.0) == []


@pytest.mark.rfc("6275-11.5.5-1", "6275-11.5.5-3", "6275-11.5.5-4", "6275-8.5-7")
def test_rfc6275_11_5_5_deregistration_at_home() -> None:
    engine = node()
    registered(engine)
    engine.detach(1.0)
    sent = only(engine.deregister(2.0, at_home=True), SendMobility)
    assert (sent.source, sent.destination) == (HOME, AGENT)
    assert (sent.home_address_option, sent.remote) == (None, None)
    update = decode(sent.message, HOME, AGENT)
    assert isinstance(update, BindingUpdate)
    assert option(update, AlternateCareOfAddress).address == HOME
    engine.handle(answer(update), 2.1)
    assert engine.state is State.IDLE


def test_rebooted_node_at_home_asks_for_a_minute() -> None:
    """It has forgotten its binding; the home agent may not have."""
    engine = node()
    numbers = [only(engine.deregister(0.0, at_home=True), SendMobility)]
    while engine.state is State.DEREGISTERING:
        due = engine.next_deadline()
        assert due is not None
        assert due <= 64.0
        numbers += [each for each in engine.tick(due) if isinstance(each, SendMobility)]
    assert len(numbers) >= 5
    assert engine.state is State.IDLE


def test_moving_while_deregistering_deregisters_from_the_new_place() -> None:
    engine = node()
    registered(engine)
    engine.deregister(5.0)
    outputs = engine.attach(PUBLIC, 6.0)
    assert sent_update(outputs).lifetime == 0
    assert only(outputs, SendMobility).local == PUBLIC
    assert engine.state is State.DEREGISTERING


def test_unanswered_deregistration_ends_with_the_lifetime() -> None:
    """Then no home agent can have a binding any more."""
    engine = node(lifetime=40)
    registered(engine)
    outputs = engine.deregister(5.0)
    now = 5.0
    while engine.state is State.DEREGISTERING:
        due = engine.next_deadline()
        assert due is not None
        now = due
        outputs = engine.tick(now)
        assert now < 1000
    assert engine.binding is None
    assert 40 < now < 120
    assert engine.next_deadline() is None
    assert none(outputs, SendMobility)


def test_rfc5555_4_4_2_1_removing_only_ipv4() -> None:
    engine = node()
    registered(engine)
    update = sent_update(engine.request_ipv4(False, 1.0))
    assert not any(isinstance(each, IPv4HomeAddress) for each in update.options)
    change = changed(engine.handle(answer(update, BEHIND_NAT), 1.1))
    assert change.reason is ChangeReason.CHANGED
    assert change.new is not None
    assert change.new.ipv4_home_address is None
    assert option(sent_update(engine.request_ipv4(True, 2.0)), IPv4HomeAddress)


# --- expiry, refresh requests ---


def test_expired_binding_is_registered_anew() -> None:
    """A tick that comes too late for the refresh."""
    engine = node()
    registered(engine)
    outputs = engine.tick(700.0)
    assert changed(outputs).reason is ChangeReason.EXPIRED
    assert sent_update(outputs)
    assert engine.state is State.REGISTERING


def test_unanswered_refreshes_end_in_expiry_and_go_on() -> None:
    engine = node(lifetime=40)
    registered(engine, PUBLIC, 0.0, ACK_IPV4, NO_NAT)
    expired = []
    while (due := engine.next_deadline()) is not None and due < 200:
        outputs = engine.tick(due)
        expired += [(due, each) for each in outputs if isinstance(each, BindingChanged)]
    assert [due for due, _ in expired] == [40.0]
    assert engine.state is State.REGISTERING
    assert engine.next_deadline() is not None


@pytest.mark.rfc("6275-8.5-12")
def test_rfc6275_11_7_4_refresh_request() -> None:
    engine = node()
    packet = from_agent(BindingRefreshRequest())
    assert dropped_silently(engine.handle(packet, 0.0), DropReason.UNEXPECTED_MESSAGE)
    registered(engine)
    assert sent_update(engine.handle(packet, 5.0)).lifetime == 150
    assert engine.state is State.REFRESHING


# --- the table of states ---


def test_every_state_takes_attach_and_detach() -> None:
    for state in State:
        assert (state, Trigger.ATTACH) in TRANSITIONS
        assert (state, Trigger.DETACH) in TRANSITIONS


def test_every_state_can_be_reached() -> None:
    reached = {State.DETACHED}
    while True:
        more = {new for (old, _), new in TRANSITIONS.items() if old in reached} | reached
        if more == reached:
            break
        reached = more
    assert reached == set(State)


def test_what_the_table_lacks_is_a_typed_error() -> None:
    for state in State:
        for trigger in Trigger:
            if (state, trigger) not in TRANSITIONS:
                with pytest.raises(MobilityError) as caught:
                    transition(state, trigger)
                assert caught.value.hint


@pytest.mark.parametrize("state", [State.DETACHED, State.IDLE, State.REFUSED])
def test_refresh_without_a_registration(state: State) -> None:
    engine = node()
    if state is not State.DETACHED:
        update = sent_update(engine.attach(PRIVATE, 0.0))
        if state is State.REFUSED:
            engine.handle(answer(update, status=129), 0.1)
        else:
            engine.handle(answer(update, ACK_IPV4), 0.1)
            engine.handle(answer(sent_update(engine.deregister(1.0))), 1.1)
    assert engine.state is state
    with pytest.raises(MobilityError):
        engine.refresh(2.0)
    assert engine.state is state


@pytest.mark.parametrize(
    "wrong",
    [
        {"lifetime": 3},
        {"lifetime": 4 * 65536},
        {"ipv4_prefix_lengths": (24, 0)},
        {"ipv4_prefix_lengths": (33,)},
        {"nat_refresh_time": 0},
        {"mobile_network_prefixes": (IPv6Network("2001:db8:20::/56"),)},
    ],
)
def test_configuration_that_the_protocol_cannot_express(wrong: dict[str, Any]) -> None:
    with pytest.raises(MobilityError) as caught:
        MobileNodeConfig(HOME, AGENT, **wrong)
    assert caught.value.hint
