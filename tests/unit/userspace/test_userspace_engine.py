"""The engine: what is protected, what is let in, and that nothing passes in clear."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from userspace_samples import (
    AGENT4,
    AGENT6,
    CARE_OF,
    HOME4,
    HOME6,
    NAT,
    PEER4,
    PEER6,
    Random,
    mobility,
    packet4,
    packet6,
    pair,
    transport_sa,
    tunnel_sa,
)

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.esp_errors import AlgorithmError, EspError
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
from dsmip_ipsec.userspace.engine import Engine, Mapping
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.userspace.sad import AssociationExists, NoSuchAssociation
from dsmip_ipsec.wire.exthdr import encode_home_address, encode_type2_routing
from dsmip_ipsec.wire.ip import (
    IPPROTO_MH,
    IPv4Header,
    IPv6Header,
    build_ipv4,
    build_ipv6,
    build_udp4,
    parse_ipv4,
    parse_ipv6,
)

ANY4, ANY6 = ip_network("0.0.0.0/0"), ip_network("::/0")
WILD = IPv4Address(0)


def sent(engine: Engine, packet: bytes) -> bytes:
    result = engine.outbound(packet)
    assert not isinstance(result, Drop), result
    (outer,) = result
    return outer


def reason(result: object) -> DropReason:
    assert isinstance(result, Drop), result
    return result.reason


# --- data through tunnels ---


@pytest.mark.parametrize("encapsulated", [False, True])
def test_both_families_cross_an_ipv4_tunnel_both_ways(encapsulated: bool) -> None:
    node, agent = pair(encapsulated=encapsulated)
    for there, back in (
        (packet4(HOME4, PEER4), packet4(PEER4, HOME4)),
        (packet6(HOME6, PEER6), packet6(PEER6, HOME6)),
    ):
        for _ in range(3):  # the first looks up, the others know the way
            outer = sent(node, there)
            header, _ = parse_ipv4(outer)
            assert (header.source, header.destination) == (CARE_OF, AGENT4)
            assert header.protocol == (17 if encapsulated else 50)
            assert there[-20:] not in outer
            assert agent.inbound(outer) == there
            outer = sent(agent, back)
            assert node.inbound(outer) == back
    assert not node.drops + agent.drops


def test_replays_are_dropped_on_the_known_way_too() -> None:
    node, agent = pair()
    outers = [sent(node, packet6(HOME6, PEER6)) for _ in range(4)]
    for outer in outers:
        assert isinstance(agent.inbound(outer), bytes)
    for outer in outers:
        assert reason(agent.inbound(outer)) is DropReason.REPLAY
    assert agent.drops == Counter({DropReason.REPLAY: 4})


def test_changed_packets_are_dropped_on_the_known_way_too() -> None:
    node, agent = pair()
    for _ in range(2):
        good = sent(node, packet6(HOME6, PEER6))
        assert isinstance(agent.inbound(good), bytes)
        bad = bytearray(sent(node, packet6(HOME6, PEER6)))
        bad[-1] ^= 1
        assert reason(agent.inbound(bytes(bad))) is DropReason.INTEGRITY


def test_counters() -> None:
    node, agent = pair()
    packet = packet6(HOME6, PEER6)
    for _ in range(3):
        agent.inbound(sent(node, packet))
    (out,) = [e for e in node.associations if e.association.destination == AGENT4]
    (into,) = [e for e in agent.associations if e.association.destination == AGENT4]
    for entry in (out, into):
        assert (entry.packets, entry.octets) == (3, 3 * len(packet))


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


# --- rekeying and moving ---


def test_the_newest_sa_sends_and_both_receive() -> None:
    node, agent = pair()
    old = sent(node, packet6(HOME6, PEER6))
    new = tunnel_sa(CARE_OF, AGENT4, 0x9999)
    node.add_association(new)
    agent.add_association(new)
    outer = sent(node, packet6(HOME6, PEER6))
    assert outer[20:24] == (0x9999).to_bytes(4, "big")
    assert isinstance(agent.inbound(outer), bytes)
    assert isinstance(agent.inbound(old), bytes)


def test_a_used_up_sa_gives_way() -> None:
    node, _ = pair()
    sent(node, packet6(HOME6, PEER6))
    entry = next(e for e in node.associations if e.association.destination == AGENT4)
    entry.sender.sequence = entry.sender.limit
    result = node.outbound(packet6(HOME6, PEER6))
    assert reason(result) is DropReason.SEQUENCE_EXHAUSTED
    node.add_association(tunnel_sa(CARE_OF, AGENT4, 0x9999))
    sent(node, packet6(HOME6, PEER6))


def test_move_keeps_numbers_and_window() -> None:
    node, agent = pair(encapsulated=True)
    before = sent(node, packet6(HOME6, PEER6))
    assert isinstance(agent.inbound(before), bytes)
    there = IPv4Address("198.51.100.77")
    for engine in (node, agent):
        for entry in engine.associations:
            sa = entry.association
            if sa.mode is Mode.TUNNEL and sa.source == CARE_OF:
                engine.move_association(sa.key, replace(sa, source=there, encapsulation=None))
        for policy in engine.policies:
            template = policy.template
            if template is not None and template.source == CARE_OF:
                engine.put_policy(replace(policy, template=replace(template, source=there)))
    outer = sent(node, packet6(HOME6, PEER6))
    header, esp = parse_ipv4(outer)
    assert (header.source, header.protocol) == (there, 50)
    assert esp[4:8] == b"\0\0\0\2"
    assert isinstance(agent.inbound(outer), bytes)
    # The window came along: the packet from before the move, dressed as a new one, is a replay.
    replayed = build_ipv4(IPv4Header(there, AGENT4, 50), before[28:])
    assert reason(agent.inbound(replayed)) is DropReason.REPLAY


def test_what_cannot_move() -> None:
    node, _ = pair()
    sa = tunnel_sa(CARE_OF, AGENT4, 0x1001)
    with pytest.raises(NoSuchAssociation):
        node.move_association((AGENT4, 0x4242), sa)
    key = next(e.association.key for e in node.associations if e.association.source == CARE_OF)
    with pytest.raises(EspError):
        node.move_association(key, replace(sa, spi=0x4242))
    entry = next(e for e in node.associations if e.association.key == key)
    with pytest.raises(EspError):
        node.move_association(key, replace(entry.association, reqid=1))
    node.add_association(replace(entry.association, destination=PEER4))
    with pytest.raises(AssociationExists):
        node.move_association(key, replace(entry.association, destination=PEER4))
    with pytest.raises(AssociationExists):
        node.add_association(entry.association)


def test_a_nat_rebinding_is_told_once_each_time() -> None:
    node, agent = pair(encapsulated=True)
    packet = packet6(HOME6, PEER6)

    def through_nat(port: int) -> None:
        outer = sent(node, packet)
        assert agent.inbound(build_udp4(NAT, port, AGENT4, 4500, outer[28:])) == packet

    for port in (40000, 40000, 40001, 40001, 40000, 40000):
        through_nat(port)
    key = (AGENT4, 0x1001)
    assert agent.take_mappings() == (
        Mapping(key, NAT, 40000),
        Mapping(key, NAT, 40001),
        Mapping(key, NAT, 40000),
    )
    assert agent.take_mappings() == ()
    forged = bytearray(sent(node, packet)[28:])
    forged[-1] ^= 1
    agent.inbound(build_udp4(NAT, 50000, AGENT4, 4500, bytes(forged)))
    assert agent.take_mappings() == ()


# --- what else comes to port 4500 ---


def test_ike_and_keepalives_are_somebody_elses() -> None:
    _, agent = pair(encapsulated=True)
    keepalive = build_udp4(NAT, 4500, AGENT4, 4500, b"\xff")
    assert reason(agent.inbound(keepalive)) is DropReason.KEEPALIVE
    ike = build_udp4(NAT, 4500, AGENT4, 4500, bytes(4) + bytes(28))
    assert reason(agent.inbound(ike)) is DropReason.IKE


def test_encapsulation_must_be_the_sas() -> None:
    """An SA without UDP encapsulation takes no packet in UDP, and the other way round."""
    for encapsulated in (False, True):
        node, agent = pair(encapsulated=encapsulated)
        esp = sent(node, packet6(HOME6, PEER6))[28 if encapsulated else 20 :]
        plain = build_ipv4(IPv4Header(CARE_OF, AGENT4, 50), esp)
        dressed = build_udp4(CARE_OF, 4500, AGENT4, 4500, esp)
        wrong, right = (plain, dressed) if encapsulated else (dressed, plain)
        assert reason(agent.inbound(wrong)) is DropReason.NO_ASSOCIATION
        assert isinstance(agent.inbound(right), bytes)


def test_forwarded_packets_are_not_taken_for_ours() -> None:
    """ESP and port 4500 of others pass the policies like any packet."""
    _, agent = pair()
    passing = build_udp4(PEER4, 4500, NAT, 4500, bytes(32))
    assert reason(agent.inbound(passing)) is DropReason.NO_POLICY


def test_outer_fragments_are_dropped() -> None:
    node, agent = pair()
    outer = sent(node, packet6(HOME6, PEER6))
    header, esp = parse_ipv4(outer)
    first = build_ipv4(replace(header, more_fragments=True, dont_fragment=False), esp)
    assert reason(agent.inbound(first)) is DropReason.FRAGMENT


# --- ECN (RFC 6040) and headers ---


@pytest.mark.parametrize(
    ("inner", "outer", "result"),
    # RFC 6040, figure 4, row by row: 0 not ECT, 1 ECT(1), 2 ECT(0), 3 CE; None: dropped.
    [
        (0, 0, 0), (0, 2, 0), (0, 1, 0), (0, 3, None),
        (2, 0, 2), (2, 2, 2), (2, 1, 1), (2, 3, 3),
        (1, 0, 1), (1, 2, 1), (1, 1, 1), (1, 3, 3),
        (3, 0, 3), (3, 2, 3), (3, 1, 3), (3, 3, 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", [4, 6])
def test_ecn(family: int, inner: int, outer: int, result: int | None) -> None:
    node, agent = pair()
    if family == 4:
        packet = packet4(HOME4, PEER4, tos=0xB8 | inner)
    else:
        packet = packet6(HOME6, PEER6, traffic_class=0xB8 | inner)
    for _ in range(2):
        header, esp = parse_ipv4(sent(node, packet))
        assert header.tos == 0xB8 | inner
        marked = build_ipv4(replace(header, tos=0xB8 | outer), esp)
        got = agent.inbound(marked)
        if result is None:
            assert reason(got) is DropReason.CONGESTION
            continue
        assert isinstance(got, bytes)
        if family == 4:
            assert parse_ipv4(got)[0].tos == 0xB8 | result  # checksum and all
        else:
            assert parse_ipv6(got)[0].traffic_class == 0xB8 | result


def test_dont_fragment_is_copied() -> None:
    node, _ = pair()
    identifications = set()
    for dont_fragment in (True, False, False):
        header, _ = parse_ipv4(sent(node, packet4(HOME4, PEER4, dont_fragment=dont_fragment)))
        assert header.dont_fragment is dont_fragment
        identifications.add(header.identification)
    assert len(identifications) == 3
    assert parse_ipv4(sent(node, packet6(HOME6, PEER6)))[0].dont_fragment


def test_tfc_padding_is_cut_off_and_dummies_dropped() -> None:
    node, agent = pair()
    packet = packet6(HOME6, PEER6)
    assert isinstance(agent.inbound(sent(node, packet)), bytes)
    sender = next(e.sender for e in node.associations if e.association.destination == AGENT4)

    def arrives(payload: bytes, next_header: int) -> bytes | Drop:
        esp = sender.seal(payload, next_header)
        return agent.inbound(build_ipv4(IPv4Header(CARE_OF, AGENT4, 50), esp))

    assert arrives(packet + bytes(100), 41) == packet
    assert reason(arrives(packet, 59)) is DropReason.DUMMY
    assert reason(arrives(packet, 4)) is DropReason.MALFORMED
    assert reason(arrives(packet, 17)) is DropReason.MALFORMED
    assert reason(arrives(packet[:-1], 41)) is DropReason.MALFORMED
    assert reason(arrives(b"", 41)) is DropReason.MALFORMED


def test_too_big_for_a_tunnel() -> None:
    node, _ = pair(encapsulated=True)
    sent(node, packet6(HOME6, PEER6))
    assert reason(node.outbound(packet6(HOME6, PEER6, length=65450))) is DropReason.TOO_BIG


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
