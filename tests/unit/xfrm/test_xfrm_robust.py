"""Broken and absurd messages: typed errors only, whatever is decoded."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from xfrm_samples import (
    HAO_STATE,
    POLICIES,
    STATES,
    SUB_POLICY,
    TRANSPORT_STATE,
    TUNNEL_STATE,
)

from dsmip_ipsec.xfrm import XfrmDecodeError, XfrmError, decode, requests
from dsmip_ipsec.xfrm.constants import Message
from dsmip_ipsec.xfrm.exchange import Exchange
from dsmip_ipsec.xfrm.messages import MarshalXfrm
from dsmip_ipsec.xfrm.notifications import (
    _DECODERS,
    PoliciesFlushed,
    Undecodable,
    decode_notifications,
)

SEED = 5555


def message(type_: int, payload: bytes, sequence: int = 0) -> bytes:
    octets = struct.pack("=IHHII", 16 + len(payload), type_, 0, sequence, 0) + payload
    return octets + bytes(-len(octets) & 3)


@pytest.mark.parametrize("octets", STATES)
def test_every_cut_of_a_state_is_decoded_or_refused(octets: bytes) -> None:
    refused = 0
    for length in range(len(octets)):
        try:
            decode.decode_state(octets[:length])
        except XfrmDecodeError:
            refused += 1
    assert refused >= 224  # the structure itself, at least


@pytest.mark.parametrize("octets", POLICIES)
def test_every_cut_of_a_policy_is_decoded_or_refused(octets: bytes) -> None:
    refused = 0
    for length in range(len(octets)):
        try:
            decode.decode_policy(octets[:length])
        except XfrmDecodeError:
            refused += 1
    assert refused >= 168


def _mutations(octets: bytes, count: int) -> list[bytes]:
    generator = random.Random(SEED)
    out = []
    for _ in range(count):
        mutant = bytearray(octets)
        for _ in range(generator.randint(1, 6)):
            at = generator.randrange(len(mutant))
            mutant[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        if generator.random() < 0.2:
            del mutant[generator.randrange(len(mutant)) :]
        out.append(bytes(mutant))
    return out


DECODERS: list[Callable[[bytes], Any]] = [
    decode.decode_state,
    decode.decode_policy,
    decode.decode_event,
    decode.decode_templates,
    decode.decode_migrations,
    decode.decode_km_address,
    decode.decode_encap,
    decode.decode_sad_info,
    decode.decode_spd_info,
    decode.decode_default_policy,
]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.__name__)
def test_mutations_and_noise_give_typed_errors_only(decoder: Callable[[bytes], Any]) -> None:
    generator = random.Random(SEED)
    samples = [mutant for octets in (*STATES, *POLICIES) for mutant in _mutations(octets, 400)]
    samples += [generator.randbytes(generator.randrange(400)) for _ in range(1000)]
    refused = 0
    for sample in samples:
        try:
            decoder(sample)
        except XfrmDecodeError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("type_", list(_DECODERS), ids=lambda type_: type_.name)
def test_broken_notifications_are_told_and_break_nothing_else(type_: Message) -> None:
    good = message(Message.FLUSHPOLICY, b"")
    for mutant in (b"", *_mutations(TUNNEL_STATE, 200), *_mutations(SUB_POLICY, 200)):
        first, second = decode_notifications(message(type_, mutant) + good)
        assert isinstance(second, PoliciesFlushed)
        if len(mutant) == 0 and type_ != Message.FLUSHPOLICY:
            assert isinstance(first, Undecodable)


def test_unknown_notifications_are_told() -> None:
    (told,) = decode_notifications(message(0x77, b""))
    assert isinstance(told, Undecodable)
    assert told.message.name == "UNKNOWN_119"


def test_exchanges_survive_mutations() -> None:
    answer = message(Message.NEWSA, TRANSPORT_STATE, 7) + message(3, bytes(4), 7)
    outcomes: set[bool | None] = set()
    for mutant in _mutations(answer, 3000):
        exchange = Exchange([requests.dump_states()], 7)
        try:
            exchange.receive(mutant)
            exchange.fail(XfrmError(0, "no more"))
            outcomes.add(exchange.results[0].ok)
        except XfrmDecodeError:
            outcomes.add(None)
    assert outcomes == {True, False, None}


@pytest.mark.parametrize("octets", [HAO_STATE, TRANSPORT_STATE, SUB_POLICY])
def test_the_marshal_refuses_what_is_broken_before_pyroute2_sees_it(octets: bytes) -> None:
    kind = Message.NEWPOLICY if octets == SUB_POLICY else Message.NEWSA
    marshal = MarshalXfrm()
    (whole,) = marshal.parse(message(kind, octets))
    assert whole.get_attr("XFRMA_UNSPEC") is None
    for length in (0, 100, len(octets) - 4):
        with pytest.raises(XfrmDecodeError):
            list(marshal.parse(message(kind, octets[:length])))
    with pytest.raises(XfrmDecodeError):
        list(marshal.parse(message(kind, octets)[:-4]))


@pytest.mark.parametrize(
    "change",
    [
        (212, 99),  # family
        (56 - 16 + 2, 255),  # selector's prefix length, destination
    ],
)
def test_absurd_states_are_refused(change: tuple[int, int]) -> None:
    at, value = change
    octets = bytearray(TRANSPORT_STATE)
    octets[at] = value
    with pytest.raises(XfrmDecodeError):
        decode.decode_state(bytes(octets))


def test_absurd_replay_windows_are_refused() -> None:
    head = TRANSPORT_STATE[:224]
    for words, window in ((1 << 30, 64), (2, 65), (2, 1 << 31), (200, 32)):
        bitmap = bytes(4 * words if words < 1000 else 8)
        value = struct.pack("=IIIIII", words, 0, 0, 0, 0, window) + bitmap
        attribute = struct.pack("=HH", 4 + len(value), 23) + value
        with pytest.raises(XfrmDecodeError):
            decode.decode_state(head + attribute)


def test_a_key_longer_than_its_attribute_is_refused() -> None:
    value = b"cbc(aes)".ljust(64, b"\0") + struct.pack("=I", 129) + bytes(16)
    attribute = struct.pack("=HH", 4 + len(value), 2) + value
    with pytest.raises(XfrmDecodeError):
        decode.decode_state(TRANSPORT_STATE[:224] + attribute)
