"""The engine's tunnels: data through them, rekeying, moves, UDP, and what headers carry over."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from userspace_samples import (
    AGENT4,
    CARE_OF,
    HOME4,
    HOME6,
    NAT,
    PEER4,
    PEER6,
    packet4,
    packet6,
    pair,
    reason,
    sent,
    tunnel_sa,
)

from dsmip_ipsec.ipsec.esp_errors import EspError
from dsmip_ipsec.ipsec.model import (
    Mode,
)
from dsmip_ipsec.userspace.engine import Mapping
from dsmip_ipsec.userspace.outcome import Drop, DropReason
from dsmip_ipsec.userspace.sad import AssociationExists, NoSuchAssociation
from dsmip_ipsec.wire.ip import (
    IPv4Header,
    build_ipv4,
    build_udp4,
    parse_ipv4,
    parse_ipv6,
)

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
