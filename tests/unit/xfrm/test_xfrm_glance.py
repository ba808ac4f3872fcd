"""Glances: whoever compares octets must never take one object for another."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from socket import AF_INET6
from typing import Any

import pytest
from xfrm_samples import (
    BLOCK_POLICY,
    HAO_STATE,
    MEANINGS,
    POLICIES,
    STATES,
    SUB_POLICY,
    TRANSPORT_STATE,
    TUNNEL_STATE,
)

from dsmip_ipsec.xfrm import (
    Encap,
    Mark,
    Policy,
    State,
    XfrmDecodeError,
    decode,
    encode,
    glance,
    notifications,
)
from dsmip_ipsec.xfrm import structs as c
from dsmip_ipsec.xfrm.constants import Attribute, Message

SEED = 5555
V6 = ip_address("2001:db8::a"), ip_address("2001:db8::b")


def elsewhere(octets: bytes, *, encap: Encap | None = None) -> bytes:
    """The state as the kernel would tell of it after a move to V6, counters further on."""
    source, destination = map(c.pack_address, V6)
    head = (
        octets[:56], destination, octets[72:80], source, octets[96:160],
        b"\1" * 48,  # lifetimes so far, statistics, sequence
        octets[208:212], AF_INET6.to_bytes(2, sys.byteorder), octets[214:224],
    )  # fmt: skip
    attributes = []
    for number, value in c.iterate_attributes(octets, 224):
        if number == Attribute.REPLAY_ESN_VAL:  # numbers and bitmap
            value = value[:4] + b"\1" * 16 + value[20:24] + b"\1" * (len(value) - 24)
        elif number in (Attribute.REPLAY_VAL, Attribute.LASTUSED, Attribute.LTIME_VAL):
            value = b"\1" * len(value)
        if number != Attribute.ENCAP:
            attributes.append(c.pack_attribute(number, value))
    if encap is not None:
        attributes.append(c.pack_attribute(Attribute.ENCAP, encode.encode_encap(encap)))
    return b"".join((*head, *attributes))


def without_header(state: State) -> State:
    state = state.configured()
    return replace(state, source=V6[0], destination=V6[1], encap=None, care_of_address=None)


@pytest.mark.parametrize("octets", [TUNNEL_STATE, TRANSPORT_STATE])
@pytest.mark.parametrize("encap", [None, Encap(4500, 50000)])
def test_a_moved_state_differs_by_its_outer_header_only(octets: bytes, encap: Encap | None) -> None:
    state = decode.decode_state(octets)
    before, after = (
        glance.glance_at_state(octets),
        glance.glance_at_state(elsewhere(octets, encap=encap)),
    )
    assert before.rest == after.rest
    assert (before.source, before.destination) == (state.source, state.destination)
    assert before.encap == state.encap
    assert (after.source, after.destination, after.encap) == (*V6, encap)
    for seen in (before, after):
        assert (seen.spi, seen.protocol, seen.reqid) == (state.spi, state.protocol, state.reqid)
    assert glance.state_reqid(octets) == state.reqid


@pytest.mark.parametrize("octets", STATES)
def test_states_of_equal_rests_are_equal(octets: bytes) -> None:
    """Whatever is written over the octets: while the rest stays, so does all but the header."""
    generator = random.Random(SEED)
    rest, meant = glance.glance_at_state(octets).rest, without_header(decode.decode_state(octets))
    same = 0
    for _ in range(20000):
        mutant = bytearray(octets)
        mutant[generator.randrange(len(mutant))] = generator.randrange(256)
        try:
            seen = glance.glance_at_state(bytes(mutant))
            state = decode.decode_state(bytes(mutant))
        except XfrmDecodeError:
            continue
        if seen.rest == rest:
            same += 1
            assert without_header(state) == meant
    assert same > 100  # in addresses, ports and counters


@pytest.mark.parametrize("octets", STATES)
def test_every_octet_that_makes_another_state_is_in_the_rest(octets: bytes) -> None:
    rest, meant = glance.glance_at_state(octets).rest, without_header(decode.decode_state(octets))
    others = 0
    for at in range(len(octets)):
        mutant = octets[:at] + bytes((octets[at] ^ 0x10,)) + octets[at + 1 :]
        try:
            seen, state = glance.glance_at_state(mutant), decode.decode_state(mutant)
        except XfrmDecodeError:
            continue
        if without_header(state) != meant:
            others += 1
            assert seen.rest != rest, at
    assert others > 50


def test_a_deletion_says_whose_it_was() -> None:
    state = decode.decode_state(TUNNEL_STATE)
    told = encode.encode_state_id(state.id) + c.pack_attribute(Attribute.SA, TUNNEL_STATE[:224])
    gone = glance.glance_at_deletion(told)
    assert gone == (state.destination, state.spi, state.protocol, state.reqid)
    assert glance.glance_at_deletion(encode.encode_state_id(state.id)) is None


def test_a_policy_is_known_by_what_was_written() -> None:
    """The kernel's octets of a policy that iproute2 made, and ours of the same."""
    policy = MEANINGS[BLOCK_POLICY]
    assert isinstance(policy, Policy)
    written = encode.encode_policy(replace(policy, index=0))
    lasting = glance.lasting_policy(written)
    assert lasting is not None
    assert lasting == glance.lasting_policy(BLOCK_POLICY)
    others = [
        replace(policy, priority=policy.priority + 1),
        replace(policy, mark=Mark(1)),
        replace(policy, lifetime=replace(policy.lifetime, hard_bytes=1)),
    ]
    for other in others:
        assert glance.lasting_policy(encode.encode_policy(other)) != lasting


def test_a_policy_of_another_type_is_none_that_everyone_has() -> None:
    assert glance.lasting_policy(SUB_POLICY) is None


GLANCES: list[Callable[[bytes], Any]] = [
    glance.glance_at_state,
    glance.glance_at_deletion,
    glance.lasting_policy,
    glance.state_reqid,
]


@pytest.mark.parametrize("look", GLANCES, ids=lambda look: look.__name__)
def test_noise_and_cuts_give_typed_errors_only(look: Callable[[bytes], Any]) -> None:
    generator = random.Random(SEED)
    samples = [octets[:cut] for octets in (*STATES, *POLICIES) for cut in range(len(octets))]
    samples += [generator.randbytes(generator.randrange(400)) for _ in range(2000)]
    refused = 0
    for sample in samples:
        try:
            look(sample)
        except XfrmDecodeError:
            refused += 1
    assert refused > 100


def test_neither_keys_nor_octets_are_printed() -> None:
    seen = glance.glance_at_state(TRANSPORT_STATE)
    unread = notifications.Unread(Message.NEWSA, TRANSPORT_STATE)
    for text in (repr(seen), str(seen), repr(unread), f"{[seen]}"):
        assert "\\x0" not in text
        assert "00010203" not in text
    assert glance.glance_at_state(HAO_STATE).protocol == 60
