"""Movement detection: hints and proofs (RFC 6275 §11.5, RFC 5555 §4.4.4, RFC 4436)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.movement import MovementDetector
from dsmip_ipsec.mobility.movement_ipv6 import Phase
from dsmip_ipsec.mobility.movement_types import (
    AddressGone,
    AddressUsable,
    ArpReply,
    AtHome,
    Lease,
    LeaseLost,
    LinkDown,
    LinkUp,
    MovementInput,
    MovementOutput,
    NoCareOf,
    ProbeGateway,
    ProbeRouter,
    RequestLease,
    RouterAdvertisement,
    RouterReachability,
    SolicitRouters,
    UseCareOf,
)

R1, R2 = IPv6Address("fe80::1"), IPv6Address("fe80::2")
P1, P2 = IPv6Network("2001:db8:a::/64"), IPv6Network("2001:db8:b::/64")
A1, A2 = IPv6Address("2001:db8:a::7"), IPv6Address("2001:db8:b::7")
HOME_LINK = IPv6Network("2001:db8:1::/64")
GATEWAY = IPv4Address("192.168.1.1")
MAC1, MAC2 = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
L1 = Lease(IPv4Interface("192.168.1.7/24"), GATEWAY, MAC1, 10_000.0, domain="one")
L2 = Lease(IPv4Interface("192.168.1.8/24"), GATEWAY, MAC2, 10_000.0, domain="two")
MANUAL = Lease(IPv4Interface("10.0.0.9/24"), IPv4Address("10.0.0.1"), MAC1, manual=True)
RA1 = RouterAdvertisement(R1, 1800, (P1,))
RA2 = RouterAdvertisement(R2, 1800, (P2,))


def ipv6_node(**changes: Any) -> MovementDetector:
    """Attached by R1 with A1 since time 0."""
    detector = MovementDetector(**changes)
    detector.handle(LinkUp(), 0.0)
    detector.handle(RA1, 0.1)
    outputs = detector.handle(AddressUsable(A1), 0.2)
    assert outputs == [UseCareOf(A1, None, "", None)]
    return detector


def ipv4_node(lease: Lease = L1) -> MovementDetector:
    """Attached with ``lease`` only."""
    detector = MovementDetector()
    detector.handle(LinkUp(), 0.0)
    detector.handle(lease, 0.5)
    assert places(run(detector, 20.0)) == [UseCareOf(lease.address.ip, None, lease.domain, lease)]
    return detector


def run(detector: MovementDetector, until: float) -> list[MovementOutput]:
    """Tick along the deadlines."""
    outputs: list[MovementOutput] = []
    for _ in range(200):
        due = detector.next_deadline()
        if due is None or due > until:
            return outputs
        outputs += detector.tick(due)
        after = detector.next_deadline()
        assert after is None or after > due, "a deadline that never passes"
    raise AssertionError("it never comes to rest")


def places(outputs: list[MovementOutput]) -> list[MovementOutput]:
    return [each for each in outputs if isinstance(each, UseCareOf | NoCareOf | AtHome)]


def asks(outputs: list[MovementOutput]) -> list[MovementOutput]:
    return [each for each in outputs if each not in places(outputs)]


# --- IPv6 ---


def test_first_attachment_solicits_and_takes_what_comes() -> None:
    detector = MovementDetector()
    assert SolicitRouters() in detector.handle(LinkUp(), 0.0)
    assert places(detector.handle(RA1, 0.1)) == []
    assert places(detector.handle(AddressUsable(A2), 0.2)) == [], "not a prefix of the router"
    assert places(detector.handle(AddressUsable(A1), 0.3)) == [UseCareOf(A1, None, "", None)]
    assert run(detector, 100.0) == []


@pytest.mark.rfc("6275-8.5-7")
def test_rfc6275_11_5_1_new_router_is_no_movement_while_the_old_one_answers() -> None:
    detector = ipv6_node()
    detector.handle(AddressUsable(A2), 5.0)
    assert detector.handle(RA2, 5.0) == [ProbeRouter(R1)]
    assert places(detector.handle(RouterReachability(R1, True), 5.1)) == []
    assert run(detector, 100.0) == []


def test_rfc6275_11_5_1_new_router_is_a_movement_when_the_old_one_is_silent() -> None:
    detector = ipv6_node()
    detector.handle(AddressUsable(A2), 5.0)
    detector.handle(RA2, 5.0)
    outputs = run(detector, 10.0)
    assert asks(outputs) == [ProbeRouter(R1)] * 2, "three in all"
    assert places(outputs) == [UseCareOf(A2, None, "", None)]


def test_second_router_of_the_same_prefix_is_no_hint() -> None:
    assert ipv6_node().handle(RouterAdvertisement(R2, 1800, (P1,)), 5.0) == []


def test_rfc6275_11_5_1_same_link_local_address_on_another_link() -> None:
    """ "The link-local addresses of routers are not globally unique"."""
    detector = ipv6_node()
    detector.handle(RouterAdvertisement(R1, 1800, (P2,)), 5.0)
    assert places(detector.handle(AddressUsable(A2), 5.1)) == [UseCareOf(A2, None, "", None)]
    # R tells two routers apart, whatever their prefixes; and one from itself.
    one, two = IPv6Address("2001:db8:a::1"), IPv6Address("2001:db8:a::2")
    detector = MovementDetector()
    detector.handle(LinkUp(), 0.0)
    detector.handle(RouterAdvertisement(R1, 1800, (P1,), one), 0.1)
    detector.handle(AddressUsable(A1), 0.1)
    detector.handle(AddressUsable(A2), 0.1)
    resigns = RouterAdvertisement(R1, 0, (P1,), two)
    assert detector.handle(resigns, 0.5) == [], "somebody else"
    outputs = detector.handle(RouterAdvertisement(R1, 1800, (P2,), two), 1.0)
    assert places(outputs) == [UseCareOf(A2, None, "", None)]


def test_nud_says_that_the_router_is_gone() -> None:
    detector = ipv6_node()
    outputs = detector.handle(RouterReachability(R1, False), 5.0)
    assert outputs == [SolicitRouters()], "the old place is kept until it is known to be left"
    outputs = run(detector, 100.0)
    assert asks(outputs) == [SolicitRouters()] * 2
    assert places(outputs) == [NoCareOf()]
    assert detector.handle(RouterReachability(R2, False), 101.0) == [], "none of ours"


def test_rfc6275_11_5_1_missed_advertisements_are_a_hint() -> None:
    detector = MovementDetector()
    detector.handle(LinkUp(), 0.0)
    heard = RouterAdvertisement(R1, 1800, (P1,), interval=2.0)
    detector.handle(heard, 0.0)
    detector.handle(AddressUsable(A1), 0.0)
    detector.handle(heard, 1.5)
    assert run(detector, 7.4) == []
    assert run(detector, 7.5) == [ProbeRouter(R1)]
    assert detector.handle(heard, 7.6) == []
    assert detector.ipv6.phase is Phase.CURRENT


def test_link_up_is_a_hint_only() -> None:
    detector = ipv6_node()
    outputs = detector.handle(LinkUp(), 50.0)
    assert ProbeRouter(R1) in outputs
    assert SolicitRouters() not in outputs
    assert places(outputs) == []
    assert places(detector.handle(RouterReachability(R1, True), 50.1)) == []


def test_router_that_resigns_or_expires() -> None:
    detector = ipv6_node()
    assert detector.handle(RouterAdvertisement(R1, 0, (P1,)), 5.0) == [SolicitRouters()]
    detector = ipv6_node()
    outputs = run(detector, 1801.0)
    assert asks(outputs) == [SolicitRouters()]


@pytest.mark.rfc("6275-11.5.4-1")
def test_rfc6275_11_5_4_care_of_address_is_of_the_routers_prefixes() -> None:
    detector = ipv6_node()
    detector.handle(AddressUsable(A2), 1.0)
    outputs = detector.handle(RouterAdvertisement(R1, 1800, (P1, P2)), 2.0)
    assert outputs == [], "the present one is kept while it may be"
    outputs = detector.handle(AddressGone(A1), 3.0)
    assert places(outputs) == [UseCareOf(A2, None, "", None)]
    outputs = detector.handle(AddressUsable(A1), 4.0)
    assert outputs == []
    detector.handle(AddressGone(A2), 5.0)
    outputs = detector.handle(AddressUsable(A2), 6.0)
    assert outputs == []
    assert detector.ipv6.care_of_address == A1


def test_older_address_does_not_displace_the_present_one() -> None:
    detector = MovementDetector()
    detector.handle(LinkUp(), 0.0)
    detector.handle(AddressUsable(A2), 0.1)
    detector.handle(RA1, 0.2)
    detector.handle(AddressUsable(A1), 0.3)
    assert detector.handle(RouterAdvertisement(R1, 1800, (P1, P2)), 2.0) == []
    assert detector.ipv6.care_of_address == A1


def test_nothing_is_decided_while_the_router_is_in_doubt() -> None:
    detector = ipv6_node()
    detector.handle(LinkUp(), 50.0)
    assert places(detector.handle(L1, 50.1)) == []
    outputs = detector.handle(RouterReachability(R1, True), 50.2)
    assert places(outputs) == [UseCareOf(A1, IPv4Address("192.168.1.7"), "one", L1)]


def test_rfc6275_11_5_2_home_link() -> None:
    detector = ipv6_node(home_prefix=HOME_LINK)
    outputs = detector.handle(RouterAdvertisement(R1, 1800, (HOME_LINK,)), 5.0)
    assert outputs == [AtHome()]
    assert detector.handle(RouterAdvertisement(R1, 1800, (HOME_LINK,)), 6.0) == []


# --- IPv4 ---


def test_rfc5555_4_4_4_ipv4_when_ipv6_fails() -> None:
    detector = MovementDetector(ipv6_patience=2.0)
    assert RequestLease(None) in detector.handle(LinkUp(), 0.0)
    assert places(detector.handle(L1, 0.5)) == [], "IPv6 may still come"
    assert places(run(detector, 2.0)) == [UseCareOf(IPv4Address("192.168.1.7"), None, "one", L1)]
    # IPv6 comes late: RFC 5555 §4.4.1 prefers it.
    detector.handle(RA1, 3.0)
    outputs = detector.handle(AddressUsable(A1), 3.1)
    assert outputs == [UseCareOf(A1, IPv4Address("192.168.1.7"), "one", L1)]


@pytest.mark.rfc("5555-4.4.4-1")
def test_rfc4436_2_1_reachability_test_confirms_the_old_network() -> None:
    detector = ipv4_node()
    assert places(detector.handle(LinkDown(), 30.0)) == [NoCareOf()]
    outputs = detector.handle(LinkUp(), 40.0)
    probe = ProbeGateway(GATEWAY, MAC1, IPv4Address("192.168.1.7"))
    assert probe in outputs
    assert RequestLease(IPv4Address("192.168.1.7")) in outputs, "INIT-REBOOT, in parallel"
    # §2.1.1: both addresses must match. The same private address elsewhere is not enough.
    detector.handle(ArpReply(GATEWAY, MAC2), 40.1)
    detector.handle(ArpReply(IPv4Address("192.168.1.2"), MAC1), 40.1)
    assert detector.ipv4.lease is None
    detector.handle(ArpReply(GATEWAY, MAC1), 40.2)
    assert detector.ipv4.lease == L1
    outputs = run(detector, 60.0)
    assert probe not in outputs, "the first answer cancels retransmissions"
    assert places(outputs) == [UseCareOf(IPv4Address("192.168.1.7"), None, "one", L1)]


def test_rfc4436_2_1_retransmits_no_more_than_twice() -> None:
    detector = ipv4_node()
    detector.handle(LinkDown(), 30.0)
    outputs = detector.handle(LinkUp(), 40.0) + run(detector, 100.0)
    assert len([each for each in outputs if isinstance(each, ProbeGateway)]) == 3
    assert detector.ipv4.lease is None
    # Too late: nothing is being tested any more.
    detector.handle(ArpReply(GATEWAY, MAC1), 100.0)
    assert detector.ipv4.lease is None


def test_all_known_networks_are_tested_at_once() -> None:
    detector = ipv4_node()
    assert places(detector.handle(L2, 25.0)) == [
        UseCareOf(IPv4Address("192.168.1.8"), None, "two", L2)
    ]
    detector.handle(LinkDown(), 30.0)
    outputs = detector.handle(LinkUp(), 40.0)
    assert {each.link_address for each in outputs if isinstance(each, ProbeGateway)} == {MAC1, MAC2}
    assert RequestLease(IPv4Address("192.168.1.8")) in outputs, "the one used last"
    detector.handle(ArpReply(GATEWAY, MAC1), 40.1)
    assert detector.ipv4.lease == L1


def test_rfc4436_2_1_dhcp_overrides_a_test() -> None:
    detector = ipv4_node()
    detector.handle(LinkDown(), 30.0)
    detector.handle(LinkUp(), 40.0)
    detector.handle(ArpReply(GATEWAY, MAC1), 40.1)
    detector.handle(L2, 42.0)
    assert detector.ipv4.lease == L2


def test_rfc4436_2_4_manual_addresses() -> None:
    """Not tested by default; DHCP doesn't override them."""
    detector = ipv4_node(MANUAL)
    detector.handle(L1, 25.0)
    assert detector.ipv4.lease == MANUAL
    outputs = detector.handle(LinkUp(), 30.0)
    probed = [each.sender for each in outputs if isinstance(each, ProbeGateway)]
    assert probed == [L1.address.ip]
    run(detector, 60.0)
    assert detector.ipv4.lease == MANUAL
    detector = MovementDetector(test_manual=True)
    detector.handle(MANUAL, 0.0)
    outputs = detector.handle(LinkUp(), 1.0)
    assert any(isinstance(each, ProbeGateway) for each in outputs)


def test_rfc4436_2_1_where_dhcp_is_authenticated_nothing_is_tested() -> None:
    detector = MovementDetector(reachability_test=False)
    detector.handle(L1, 0.0)
    outputs = detector.handle(LinkUp(), 1.0)
    assert not any(isinstance(each, ProbeGateway) for each in outputs)


def test_leases_that_are_over_or_without_gateway_are_not_tested() -> None:
    over = Lease(IPv4Interface("192.168.1.7/24"), GATEWAY, MAC1, 30.0)
    detector = ipv4_node(over)
    outputs = run(detector, 31.0)
    assert RequestLease(None) in outputs
    assert places(outputs) == [NoCareOf()]
    unknown = Lease(IPv4Interface("192.168.9.7/24"), IPv4Address("192.168.9.1"))
    detector.handle(unknown, 32.0)
    detector.handle(LinkDown(), 33.0)
    outputs = detector.handle(LinkUp(), 40.0)
    assert not any(isinstance(each, ProbeGateway) for each in outputs)
    # Told again with the gateway's link address, it is the same network, and can be tested.
    detector.handle(Lease(unknown.address, unknown.gateway, MAC2), 41.0)
    outputs = detector.handle(LinkUp(), 50.0)
    assert len([each for each in outputs if isinstance(each, ProbeGateway)]) == 1


@pytest.mark.parametrize("address", ["169.254.1.7/16", "127.0.0.1/8", "224.0.0.5/8", "0.0.0.0/0"])
def test_rfc4436_2_3_addresses_that_are_none(address: str) -> None:
    detector = MovementDetector(ipv6_patience=0.0)
    detector.handle(LinkUp(), 0.0)
    outputs = detector.handle(Lease(IPv4Interface(address), GATEWAY, MAC1), 0.5)
    assert places(outputs + run(detector, 60.0)) == []


def test_rfc4436_2_1_no_more_than_once_a_second() -> None:
    detector = ipv4_node()
    times = []
    for n in range(30):
        now = 100 + n / 10
        outputs = run(detector, now) + detector.handle(LinkUp(), now)
        times += [now for each in outputs if isinstance(each, RequestLease)]
    assert len(times) == 3


def test_lost_lease() -> None:
    detector = ipv4_node()
    assert places(detector.handle(LeaseLost(), 25.0)) == [NoCareOf()]
    outputs = detector.handle(LinkUp(), 30.0)
    assert not any(isinstance(each, ProbeGateway) for each in outputs)


def test_patience_below_zero() -> None:
    with pytest.raises(MobilityError) as caught:
        MovementDetector(ipv6_patience=-1.0)
    assert caught.value.hint


# --- whatever happens ---

_ADDRESSES = st.sampled_from([A1, A2, IPv6Address("fe80::9"), IPv6Address("2001:db8:1::9")])
_ROUTERS = st.sampled_from([R1, R2])
_INPUTS: st.SearchStrategy[MovementInput] = st.one_of(
    st.just(LinkUp()),
    st.just(LinkDown()),
    st.just(LeaseLost()),
    st.builds(
        RouterAdvertisement,
        _ROUTERS,
        st.sampled_from([0.0, 3.0, 1800.0]),
        st.sampled_from([(), (P1,), (P2,), (P1, P2), (HOME_LINK,)]),
        st.sampled_from([None, A1, A2]),
        st.sampled_from([None, -1.0, 0.0, 0.001, 5.0]),
    ),
    st.builds(RouterReachability, _ROUTERS, st.booleans()),
    st.builds(AddressUsable, _ADDRESSES),
    st.builds(AddressGone, _ADDRESSES),
    st.builds(ArpReply, st.sampled_from([GATEWAY, MANUAL.gateway]), st.sampled_from([MAC1, MAC2])),
    st.builds(
        Lease,
        st.sampled_from([L1.address, L2.address, MANUAL.address]),
        st.sampled_from([GATEWAY, MANUAL.gateway]),
        st.sampled_from([b"", MAC1, MAC2]),
        st.sampled_from([None, 5.0, 500.0]),
        st.booleans(),
    ),
)


@settings(max_examples=300, deadline=None)
@given(
    told=st.lists(st.tuples(_INPUTS, st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0])), max_size=40),
    manual=st.booleans(),
    test=st.booleans(),
)
def test_it_comes_to_rest_and_never_contradicts_itself(
    told: list[tuple[MovementInput, float]], manual: bool, test: bool
) -> None:
    """No exception, no deadline that never passes, no place told twice, no place on a dead link."""
    detector = MovementDetector(home_prefix=HOME_LINK, test_manual=manual, reachability_test=test)
    now, up = 0.0, False
    last: MovementOutput = NoCareOf()
    for each, pause in told:
        now += pause
        outputs = run(detector, now)
        up = isinstance(each, LinkUp) or (up and not isinstance(each, LinkDown))
        outputs += detector.handle(each, now)
        for place in places(outputs):
            assert place != last
            last = place
        if not up:
            assert last == NoCareOf()
        if isinstance(last, UseCareOf) and last.care_of_address.version == 4:
            assert last.ipv4 is not None
            assert last.ipv4.address.ip == last.care_of_address
    detector.handle(LinkUp(), now)
    # Without another word from the network, IPv6 can't be doubted for ever.
    run(detector, now + 60.0)
    assert detector.ipv6.phase is not Phase.DOUBTFUL
    assert not detector.ipv4.testing
