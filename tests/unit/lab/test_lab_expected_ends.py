"""What a step expects of the numbers of things at both ends, of tunnels and of IPv4 home
addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from dsmip_ipsec.lab.expect_models import Expect
from dsmip_ipsec.lab.expectations import Observation, judge
from dsmip_ipsec.lab.record import Binding, IkeSa, NodeState, Tunnel

HOME, CARE_OF, AGENT = map(IPv6Address, ("2001:db8:100::100", "2001:db8:6::1", "2001:db8:100::1"))
HOME4, OTHER4 = map(IPv4Address, ("203.0.113.200", "203.0.113.201"))


def binding(ipv4_home_address: IPv4Address | None = HOME4) -> Binding:
    return Binding(
        home_address=HOME, ipv4_home_address=ipv4_home_address, care_of_address=CARE_OF,
        nat_detected=False, udp_encapsulation=False, sequence=1, lifetime_s=60,
    )  # fmt: skip


def judged(expect: Expect, mobile_node: NodeState, home_agent: NodeState) -> tuple[str, bool]:
    (found,) = judge(
        expect,
        Observation(
            mobile_node=mobile_node, home_agent=home_agent, care_of_addresses=frozenset(),
            flows=[], after=[], exchanges={}, rtt_ms=40,
        ),
    )  # fmt: skip
    return found.seen, found.passed


def ike(*states: str) -> NodeState:
    return NodeState(
        ike=tuple(
            IkeSa(
                uniqueid="1", state=state, local_host="::1", local_port=4500,
                remote_host="::2", remote_port=4500,
            )
            for state in states
        )
    )  # fmt: skip


def test_ike_sas_are_counted_in_whatever_state() -> None:
    one, two = ike("ESTABLISHED"), ike("ESTABLISHED", "DELETING")
    assert judged(Expect(ike_sas=1), one, one) == ("mobile node: 1; home agent: 1", True)
    assert judged(Expect(ike_sas=1), one, two) == ("mobile node: 1; home agent: 2", False)
    assert judged(Expect(ike_sas=0), ike(), one) == ("mobile node: 0; home agent: 1", False)


@pytest.mark.parametrize(
    ("wanted", "mobile_node", "home_agent", "passed"),
    [
        (True, (HOME4,), (HOME4,), True),
        (True, (HOME4,), (OTHER4,), False),
        (True, (HOME4,), (None,), False),
        (True, (), (), False),
        (False, (None,), (None,), True),
        (False, (None,), (OTHER4,), False),
        (False, (OTHER4,), (None,), False),
        (False, (), (None,), False),  # without a binding there is nothing to say
    ],
)
def test_ipv4_home_address(
    wanted: bool,
    mobile_node: tuple[IPv4Address | None, ...],
    home_agent: tuple[IPv4Address | None, ...],
    passed: bool,
) -> None:
    states = [NodeState(bindings=tuple(map(binding, of))) for of in (mobile_node, home_agent)]
    assert judged(Expect(ipv4_home_address=wanted), *states)[1] is passed


def tunnelled(*ends: tuple[IPv6Address, IPv6Address]) -> NodeState:
    return NodeState(
        bindings=(binding(),),
        tunnels=tuple(Tunnel(local=a, remote=b, home_address=HOME) for a, b in ends),
    )


@pytest.mark.parametrize(
    ("mobile_node", "home_agent", "passed"),
    [
        ([(CARE_OF, AGENT)], [(AGENT, CARE_OF)], True),
        ([(CARE_OF, AGENT)], [], False),
        ([(CARE_OF, AGENT)], [(CARE_OF, AGENT)], False),
        ([(CARE_OF, AGENT)], [(AGENT, HOME)], False),
        ([(HOME, AGENT)], [(AGENT, HOME)], False),  # of the network of before
        ([(CARE_OF, AGENT)], [(HOME, CARE_OF)], False),
        ([(CARE_OF, AGENT)], [(AGENT, CARE_OF), (HOME, CARE_OF)], False),
    ],
)
def test_tunnels(
    mobile_node: list[tuple[IPv6Address, IPv6Address]],
    home_agent: list[tuple[IPv6Address, IPv6Address]],
    passed: bool,
) -> None:
    seen, held = judged(Expect(tunnels=1), tunnelled(*mobile_node), tunnelled(*home_agent))
    assert held is passed
    assert f"{mobile_node[0][0]} - {mobile_node[0][1]}" in seen
    assert not judged(Expect(tunnels=0), tunnelled(*mobile_node), tunnelled(*home_agent))[1]


def test_no_tunnels() -> None:
    seen = ("mobile node: none; home agent: none", True)
    assert judged(Expect(tunnels=0), NodeState(), NodeState()) == seen
    assert not judged(Expect(tunnels=1), NodeState(), NodeState())[1]
