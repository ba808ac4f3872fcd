"""The engine: what is protected, what is let in, and that nothing passes in clear."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from userspace_samples import (
    AGENT4,
    AGENT6,
    ANY4,
    ANY6,
    CARE_OF,
    HOME4,
    HOME6,
    NAT,
    PEER4,
    PEER6,
    WILD,
    Random,
    mobility,
    packet4,
    packet6,
    pair,
    reason,
    sent,
    transport_sa,
    tunnel_sa,
)

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.esp_errors import AlgorithmError
from dsmip_ipsec.ipsec.esp_packet import encapsulator
from dsmip_ipsec.ipsec.model import (
    Action,
    Algorithm,
    Direction,
    MobilityHeaderType,
    Mode,
    Policy,
    SecretKey,
    Selector,
    Template,
)
from dsmip_ipsec.ipsec.plan import Operation, Verb, plan
from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.wire.exthdr import encode_home_address, encode_type2_routing
from dsmip_ipsec.wire.ip import (
    IPPROTO_MH,
    IPv6Header,
    build_ipv6,
    parse_ipv6,
)

# --- never in clear ---


def test_without_sa_nothing_leaves() -> None:
    node, _ = pair()
    sent(node, packet6(HOME6, PEER6))
    for entry in node.associations:
        node.remove_association(entry.association.key)
    for packet in (packet6(HOME6, PEER6), packet4(HOME4, PEER4)):
        assert reason(node.outbound(packet)) is DropReason.NO_ASSOCIATION


def test_removed_policies_are_forgotten_at_once() -> None:
    """What was cached for speed dies with the policy that it came from."""
    node, agent = pair()
    outer = sent(node, packet6(HOME6, PEER6))
    assert isinstance(agent.inbound(outer), bytes)
    late = sent(node, packet6(HOME6, PEER6))
    for policy in node.policies:
        assert node.remove_policy(policy.key)
    for policy in agent.policies:
        agent.put_policy(replace(policy, action=Action.BLOCK, template=None))
    assert reason(node.outbound(packet6(HOME6, PEER6))) is DropReason.NO_POLICY
    assert reason(agent.inbound(late)) is DropReason.BLOCKED


def test_blocks_win_by_priority() -> None:
    """RFC 5555 §5.2.2: payload to the home agent itself isn't payload."""
    node, agent = pair()
    assert reason(node.outbound(packet6(HOME6, AGENT6))) is DropReason.BLOCKED
    assert reason(agent.outbound(packet6(AGENT6, HOME6))) is DropReason.BLOCKED


def test_no_policy_drops_unless_told_otherwise() -> None:
    stranger = packet6(PEER6, AGENT6)
    assert reason(Engine(Random()).outbound(stranger)) is DropReason.NO_POLICY
    assert reason(Engine(Random()).inbound(stranger)) is DropReason.NO_POLICY
    bypassing = Engine(Random(), bypass_unmatched=True)
    assert bypassing.outbound(stranger) == (stranger,)
    assert bypassing.inbound(stranger) == stranger


def test_clear_text_is_not_let_in_where_esp_is_wanted() -> None:
    node, agent = pair()
    for packet in (packet6(PEER6, HOME6), packet4(PEER4, HOME4)):
        assert reason(node.inbound(packet)) is DropReason.UNPROTECTED
    assert reason(agent.inbound(packet6(HOME6, PEER6))) is DropReason.UNPROTECTED


def test_another_sa_does_not_do() -> None:
    """RFC 4301 §5.2: what comes by an SA must be what its policy wants of that SA."""
    node, agent = pair()
    other = replace(tunnel_sa(CARE_OF, AGENT4, 0x7777), reqid=99)
    agent.add_association(other)
    outer = encapsulator(EspSender(other))(packet6(HOME6, PEER6))
    assert reason(agent.inbound(outer)) is DropReason.WRONG_ASSOCIATION
    # And not a second time, when more is known about the packet.
    assert isinstance(agent.inbound(sent(node, packet6(HOME6, PEER6))), bytes)
    outer = encapsulator(EspSender(other, sequence=5))(packet6(HOME6, PEER6))
    assert reason(agent.inbound(outer)) is DropReason.WRONG_ASSOCIATION


def test_another_nodes_address_inside_is_dropped() -> None:
    """A mobile node with good keys sends as another: no policy is for that."""
    node, agent = pair()
    assert isinstance(agent.inbound(sent(node, packet6(HOME6, PEER6))), bytes)
    sa = next(e.association for e in node.associations if e.association.destination == AGENT4)
    foreign = packet6(IPv6Address("2001:db8:100::666"), PEER6)
    outer = encapsulator(EspSender(sa, sequence=100))(foreign)
    assert reason(agent.inbound(outer)) is DropReason.NO_POLICY


def test_sa_selector_is_checked() -> None:
    node, agent = pair()
    sa = next(e.association for e in agent.associations if e.association.destination == AGENT4)
    narrow = replace(sa, selector=Selector(ip_network(HOME4), ANY4))
    agent.remove_association(sa.key)
    agent.add_association(narrow)
    assert reason(agent.inbound(sent(node, packet6(HOME6, PEER6)))) is DropReason.SELECTOR
    assert isinstance(agent.inbound(sent(node, packet4(HOME4, PEER4))), bytes)


def test_an_sa_without_integrity_is_refused() -> None:
    sa = replace(
        tunnel_sa(CARE_OF, AGENT4, 0x55),
        aead=None,
        encryption=Algorithm("cbc(aes)", SecretKey(bytes(16))),
    )
    with pytest.raises(AlgorithmError):
        Engine(Random()).add_association(sa)


def test_exact_templates_follow_addresses() -> None:
    node, agent = pair()
    for policy in agent.policies:
        if policy.template is not None and policy.direction is not Direction.OUT:
            exact = replace(policy.template, source=CARE_OF, destination=AGENT4)
            agent.put_policy(replace(policy, template=exact))
    assert isinstance(agent.inbound(sent(node, packet6(HOME6, PEER6))), bytes)
    for policy in agent.policies:
        if policy.template is not None and policy.direction is not Direction.OUT:
            agent.put_policy(replace(policy, template=replace(policy.template, source=NAT)))
    outer = sent(node, packet6(HOME6, PEER6))
    assert reason(agent.inbound(outer)) is DropReason.WRONG_ASSOCIATION


# --- signalling in transport mode ---


def test_binding_update_in_transport_mode() -> None:
    node, agent = pair()
    update = mobility(HOME6, AGENT6, 5)
    outer = sent(node, update)
    header, _ = parse_ipv6(outer)
    assert (header.source, header.destination, header.next_header) == (HOME6, AGENT6, 50)
    assert agent.inbound(outer) == update
    answer = mobility(AGENT6, HOME6, 6)
    assert node.inbound(sent(agent, answer)) == answer


def test_mobility_headers_are_told_apart_by_type() -> None:
    """A node has no policy for sending acknowledgements: they are payload to the home agent."""
    node, _ = pair()
    sent(node, mobility(HOME6, AGENT6, 5))
    assert reason(node.outbound(mobility(HOME6, AGENT6, 6))) is DropReason.BLOCKED
    sent(node, mobility(HOME6, AGENT6, 5))


def test_binding_update_in_clear_is_dropped() -> None:
    node, agent = pair()
    assert reason(agent.inbound(mobility(HOME6, AGENT6, 5))) is DropReason.UNPROTECTED
    for entry in node.associations:
        if entry.association.mode is Mode.TRANSPORT:
            node.remove_association(entry.association.key)
    assert reason(node.outbound(mobility(HOME6, AGENT6, 5))) is DropReason.NO_ASSOCIATION


def test_home_address_option_and_routing_header() -> None:
    """RFC 6275 §11.3.2: policies and SAs are by home addresses, ESP stands behind the headers."""
    node, agent = pair()
    care_of = IPv6Address("2001:db8:77::7")
    mh = mobility(HOME6, AGENT6, 5)[40:]
    update = build_ipv6(
        IPv6Header(care_of, AGENT6, 60), encode_home_address(HOME6, IPPROTO_MH) + mh
    )
    outer = sent(node, update)
    assert outer[6] == 60
    assert outer[40] == 50
    assert outer[41:64] == update[41:64]
    assert agent.inbound(outer) == update
    mh = mobility(AGENT6, HOME6, 6)[40:]
    answer = build_ipv6(
        IPv6Header(AGENT6, care_of, 43), encode_type2_routing(HOME6, IPPROTO_MH) + mh
    )
    outer = sent(agent, answer)
    assert outer[40] == 50
    assert node.inbound(outer) == answer


def test_fragments_that_hide_their_protocol_do_not_slip_by() -> None:
    """A later fragment of a binding update whose header chain only the first one has."""
    node, _ = pair()
    fragment = bytes((60, 0)) + (8 << 3).to_bytes(2, "big") + bytes(4)
    packet = build_ipv6(IPv6Header(HOME6, AGENT6, 44), fragment + bytes(16))
    assert reason(node.outbound(packet)) is DropReason.FRAGMENT
    first = bytes((IPPROTO_MH, 0)) + b"\0\1" + bytes(4) + mobility(HOME6, AGENT6, 5)[40:]
    packet = build_ipv6(IPv6Header(HOME6, AGENT6, 44), first)
    assert reason(node.outbound(packet)) is DropReason.FRAGMENT
    # Payload fragments are tunnelled like anything else.
    packet = build_ipv6(IPv6Header(HOME6, PEER6, 44), b"\x11" + fragment[1:] + bytes(16))
    sent(node, packet)


# --- plans ---


def test_plans_apply() -> None:
    """The desired state of the kernel's reconciler, brought about and taken away again."""
    engine = Engine(Random())
    policy = Policy(Direction.OUT, Selector(ANY6, ANY6), 5, Action.BLOCK)
    sa = transport_sa(HOME6, AGENT6, 0x2001)
    wanted = DesiredState((policy,), (sa,))
    engine.apply(plan(DesiredState(), wanted))
    assert engine.policies == (policy,)
    assert [entry.association for entry in engine.associations] == [sa]
    template = Template(Mode.TRANSPORT, HOME6, AGENT6, sa.reqid)
    changed = replace(policy, action=Action.PROTECT, template=template)
    engine.apply(plan(wanted, DesiredState((changed,), (sa,))))
    assert engine.policies == (changed,)
    elsewhere = replace(sa, source=PEER6)
    engine.apply([Operation(Verb.MOVE_ASSOCIATION, elsewhere, "moved", "", sa)])
    assert [entry.association for entry in engine.associations] == [elsewhere]
    engine.apply(plan(DesiredState((changed,), (sa,)), DesiredState()))
    assert not [*engine.policies, *engine.associations]


def test_selectors_by_protocol_and_equal_priorities() -> None:
    engine = Engine(Random())
    engine.put_policy(Policy(Direction.OUT, Selector(ANY6, ANY6, 17), 5, Action.BLOCK))
    engine.add_association(tunnel_sa(CARE_OF, AGENT4, 0x1001))
    template = Template(Mode.TUNNEL, CARE_OF, AGENT4, tunnel_sa(CARE_OF, AGENT4, 1).reqid)
    engine.put_policy(Policy(Direction.OUT, Selector(ANY6, ANY6), 5, Action.PROTECT, template))
    assert reason(engine.outbound(packet6(HOME6, PEER6))) is DropReason.BLOCKED
    tcp = build_ipv6(IPv6Header(HOME6, PEER6, 6), bytes(20))
    sent(engine, tcp)
    assert reason(engine.outbound(packet6(HOME6, PEER6))) is DropReason.BLOCKED


# --- hostile input ---


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_octets_give_an_outcome(data: st.DataObject) -> None:
    """Neither direction ever raises, and nothing of a broken packet gets through."""
    encapsulated = data.draw(st.booleans())
    node, agent = pair(encapsulated=encapsulated)
    packets = [
        data.draw(st.binary(max_size=120)),
        bytes((0x60,)) + data.draw(st.binary(max_size=120)),
        bytes((0x45,)) + data.draw(st.binary(max_size=120)),
    ]
    good = sent(node, packet6(HOME6, PEER6))
    broken = bytearray(good)
    index = data.draw(st.integers(28 if encapsulated else 20, len(good) - 1))
    broken[index] ^= data.draw(st.integers(1, 255))
    packets += [bytes(broken), good[: data.draw(st.integers(0, len(good) - 1))]]
    for packet in packets:
        assert isinstance(agent.inbound(packet), Drop)
        assert isinstance(agent.outbound(packet), Drop)


def test_mobility_selector_needs_its_type() -> None:
    selector = Selector(ANY6, ANY6, IPPROTO_MH, MobilityHeaderType.BINDING_UPDATE)
    engine = Engine(Random(), bypass_unmatched=True)
    engine.put_policy(Policy(Direction.OUT, selector, 1, Action.BLOCK))
    assert reason(engine.outbound(mobility(HOME6, AGENT6, 5))) is DropReason.BLOCKED
    other = mobility(HOME6, AGENT6, 7)
    assert engine.outbound(other) == (other,)


def test_wildcards() -> None:
    """Unspecified addresses match any SA inbound; outbound they can't name a tunnel's end."""
    engine = Engine(Random())
    engine.add_association(tunnel_sa(CARE_OF, AGENT4, 0x1001))
    template = Template(Mode.TUNNEL, WILD, WILD, tunnel_sa(CARE_OF, AGENT4, 1).reqid)
    engine.put_policy(Policy(Direction.OUT, Selector(ANY6, ANY6), 1, Action.PROTECT, template))
    assert reason(engine.outbound(packet6(HOME6, PEER6))) is DropReason.NO_ASSOCIATION


def test_a_tunnelled_mobility_header_makes_no_way_for_others() -> None:
    """What is found out for speed goes by addresses and protocol: types must be looked at."""
    engine = Engine(Random())
    engine.add_association(tunnel_sa(CARE_OF, AGENT4, 0x1001))
    template = Template(Mode.TUNNEL, CARE_OF, AGENT4, tunnel_sa(CARE_OF, AGENT4, 1).reqid)
    engine.put_policy(Policy(Direction.OUT, Selector(ANY6, ANY6), 5, Action.PROTECT, template))
    updates = Selector(ANY6, ANY6, IPPROTO_MH, MobilityHeaderType.BINDING_UPDATE)
    engine.put_policy(Policy(Direction.OUT, updates, 1, Action.BLOCK))
    sent(engine, mobility(HOME6, AGENT6, 7))
    assert reason(engine.outbound(mobility(HOME6, AGENT6, 5))) is DropReason.BLOCKED


def test_in_is_for_this_node_and_fwd_for_others() -> None:
    gateway = Engine(Random(), local_addresses={AGENT6, AGENT4})
    sa = tunnel_sa(CARE_OF, AGENT4, 0x1001)
    gateway.add_association(sa)
    template = Template(Mode.TUNNEL, WILD, WILD, sa.reqid)
    selector = Selector(ANY6, ANY6)
    gateway.put_policy(Policy(Direction.IN, selector, 1, Action.BLOCK))
    gateway.put_policy(Policy(Direction.FWD, selector, 1, Action.PROTECT, template))
    encapsulate = encapsulator(EspSender(sa))
    passing = packet6(HOME6, PEER6)
    for _ in range(2):
        assert gateway.inbound(encapsulate(passing)) == passing
        assert reason(gateway.inbound(encapsulate(packet6(HOME6, AGENT6)))) is DropReason.BLOCKED
    gateway.set_local_addresses({AGENT6, AGENT4, PEER6})
    assert reason(gateway.inbound(encapsulate(passing))) is DropReason.BLOCKED
    gateway.set_local_addresses(None)  # a host: all is for it
    assert reason(gateway.inbound(encapsulate(passing))) is DropReason.BLOCKED
