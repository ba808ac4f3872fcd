"""Mobility Header messages: octets by the RFCs' drawings, checks by RFC 6275 §9.2."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from wire_samples import (
    ALIGNMENT,
    CARE_OF_ADDRESS,
    EVERY_MESSAGE,
    FULL_UPDATE,
    HOME_ADDRESS,
    HOME_AGENT,
    octet_sum,
    pseudo_header,
    sealed,
    walk,
)

from dsmip_ipsec.errors import WireError
from dsmip_ipsec.wire import errors
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt


def encode(message: mh.Message) -> bytes:
    return mh.encode(message, HOME_ADDRESS, HOME_AGENT)


def decode(data: bytes) -> mh.Message:
    return mh.decode(data, HOME_ADDRESS, HOME_AGENT)


def names(messages: tuple[mh.Message, ...]) -> list[str]:
    return [f"{i}-{type(message).__name__}" for i, message in enumerate(messages)]


GOLDEN = [
    (mh.BindingRefreshRequest(), "3b00 00 00 CCCC 0000"),
    (mh.HomeTestInit(b"cookieHo"), "3b01 01 00 CCCC 0000 636f6f6b6965486f"),
    (mh.CareOfTestInit(b"cookieCo"), "3b01 02 00 CCCC 0000 636f6f6b6965436f"),
    (
        mh.HomeTest(0x0A0B, b"cookieHo", b"tokenHom"),
        "3b02 03 00 CCCC 0a0b 636f6f6b6965486f 746f6b656e486f6d",
    ),
    (
        mh.CareOfTest(0x0C0D, b"cookieCo", b"tokenCoA"),
        "3b02 04 00 CCCC 0c0d 636f6f6b6965436f 746f6b656e436f41",
    ),
    # "If no options are present in this message, 4 octets of padding are necessary"
    (mh.BindingUpdate(0x1122, 0x3344), "3b01 05 00 CCCC 1122 0000 3344 01020000"),
    (mh.BindingAck(135, 0x1122, 0x3344), "3b01 06 00 CCCC 87 00 1122 3344 01020000"),
    (
        mh.BindingError(2, HOME_ADDRESS),
        "3b02 07 00 CCCC 02 00 20010db8000100000000000000000010",
    ),
    (mh.UnknownMessage(99, b"0123456789"), "3b01 63 00 CCCC 30313233343536373839"),
    # RFC 5555 §4.2: what goes over IPv4, with alignment 4n right after the fixed part (12).
    (
        mh.BindingUpdate(
            1,
            900,
            acknowledge=True,
            home_registration=True,
            force_udp=True,
            options=(
                opt.IPv4HomeAddress(32, False, IPv4Address("192.0.2.10")),
                opt.IPv4CareOfAddress(IPv4Address("10.0.0.9")),
            ),
        ),
        "3b03 05 00 CCCC 0001 c100 0384 1d06 8000 c000020a 2006 0000 0a000009 01020000",
    ),
    (
        mh.BindingAck(
            0,
            1,
            900,
            options=(
                opt.IPv4AddressAck(0, 32, IPv4Address("192.0.2.10")),
                opt.NatDetection(False, 110),
            ),
        ),
        "3b03 06 00 CCCC 00 00 0001 0384 1e06 00 80 c000020a 1f06 0000 0000006e 01020000",
    ),
    # Alignments 8n+6, 8n+4 and 2n, and data that must end the message.
    (
        mh.BindingUpdate(
            1,
            2,
            options=(
                opt.AlternateCareOfAddress(IPv6Address("2001:db8::1")),
                opt.MobileNetworkPrefix(48, IPv6Address("2001:db8:9::")),
                opt.NonceIndices(3, 4),
                opt.BindingAuthorizationData(b"0123456789AB"),
            ),
        ),
        "3b09 05 00 CCCC 0001 0000 0002 0100 0310 20010db8000000000000000000000001"
        "01020000 0612 0030 20010db8000900000000000000000000 0404 0003 0004 01020000"
        "050c 303132333435363738394142",
    ),
]


@pytest.mark.parametrize(("message", "octets"), GOLDEN)
def test_octets_as_drawn(message: mh.Message, octets: str) -> None:
    raw = encode(message)
    expected = bytes.fromhex(octets.replace("CCCC", "0000"))
    assert (raw[:4] + b"\0\0" + raw[6:]).hex(" ") == expected.hex(" ")
    assert decode(raw) == message


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=names(EVERY_MESSAGE))
def test_checksum_is_that_of_rfc_6275_section_6_1_1(message: mh.Message) -> None:
    raw = encode(message)
    assert octet_sum(pseudo_header(HOME_ADDRESS, HOME_AGENT, len(raw), 135) + raw) == 0xFFFF


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=names(EVERY_MESSAGE))
def test_round_trip_gives_the_message_and_the_same_octets(message: mh.Message) -> None:
    raw = encode(message)
    assert decode(raw) == message
    assert encode(decode(raw)) == raw
    assert decode(memoryview(raw)) == message  # type: ignore[arg-type]
    assert len(raw) == (raw[1] + 1) * 8


@pytest.mark.rfc("6275-9.2-2")
@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=names(EVERY_MESSAGE))
def test_every_flipped_bit_is_noticed(message: mh.Message) -> None:
    """§9.2: the checksum comes first. A Header Len that grows runs past the packet instead."""
    raw = encode(message)
    for bit in range(len(raw) * 8):
        broken = bytearray(raw)
        broken[bit >> 3] ^= 0x80 >> (bit & 7)
        with pytest.raises((errors.ChecksumError, errors.TruncatedError)) as caught:
            decode(bytes(broken))
        assert mh.refusal(caught.value) is None


def test_checksum_over_the_care_of_address_is_refused() -> None:
    raw = mh.encode(FULL_UPDATE, CARE_OF_ADDRESS, HOME_AGENT)
    with pytest.raises(errors.ChecksumError) as caught:
        decode(raw)
    assert "home address" in caught.value.hint


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=names(EVERY_MESSAGE))
def test_every_cut_is_noticed_and_a_tail_is_ignored(message: mh.Message) -> None:
    raw = encode(message)
    for length in range(len(raw)):
        with pytest.raises(errors.TruncatedError):
            decode(raw[:length])
    assert decode(raw + b"behind IPPROTO_NONE") == message


@pytest.mark.rfc("6275-9.2-1", "6275-9.2-5", "6275-9.2-6", "6275-9.2-7")
@pytest.mark.parametrize("message", EVERY_MESSAGE[:-1], ids=names(EVERY_MESSAGE[:-1]))
@pytest.mark.parametrize("protocol", [0, 6, 50, 58, 255])
def test_payload_protocol_other_than_59(message: mh.Message, protocol: int) -> None:
    """§9.2: Parameter Problem, code 0, at the Payload Proto field."""
    raw = bytearray(encode(message))
    raw[0] = protocol
    with pytest.raises(errors.BadPayloadProtocol) as caught:
        decode(sealed(bytes(raw)))
    assert mh.refusal(caught.value) == errors.ParameterProblem(code=0, pointer=0)
    assert str(protocol) in str(caught.value)


@pytest.mark.rfc("6275-9.2-8", "6275-9.2-9", "6275-9.2-10")
@pytest.mark.parametrize(
    ("mh_type", "shortest"), [(1, 16), (2, 16), (3, 24), (4, 24), (5, 16), (6, 16), (7, 24)]
)
def test_header_length_too_short_for_the_type(mh_type: int, shortest: int) -> None:
    """§9.2: Parameter Problem, code 0, at the Header Len field; the exact minimum passes."""
    for length in range(8, shortest, 8):
        raw = bytes((59, length // 8 - 1, mh_type, 0, 0, 0)) + bytes(length - 6)
        with pytest.raises(errors.BadHeaderLength) as caught:
            decode(sealed(raw))
        assert mh.refusal(caught.value) == errors.ParameterProblem(code=0, pointer=1)
    raw = bytes((59, shortest // 8 - 1, mh_type, 0, 0, 0)) + bytes(shortest - 6)
    assert (
        type(decode(sealed(raw))).__name__
        == type(next(m for m in EVERY_MESSAGE if m.mh_type == mh_type)).__name__
    )


def test_header_length_past_the_packet() -> None:
    raw = bytearray(encode(FULL_UPDATE))
    raw[1] += 1
    with pytest.raises(errors.TruncatedError) as caught:
        decode(sealed(bytes(raw)))
    assert caught.value.offset == 1
    assert mh.refusal(caught.value) is None


@pytest.mark.rfc("6275-9.2-3", "6275-9.2-4", "6275-9.3.3-2")
@pytest.mark.parametrize("mh_type", [8, 12, 21, 128, 255])
def test_unknown_type_is_kept_and_answered_by_a_binding_error(mh_type: int) -> None:
    """§9.2, §9.3.3: status 2; the home address is the option's, or unspecified. The type is
    judged before the payload protocol."""
    raw = sealed(bytes((58, 1, mh_type, 0, 0, 0)) + b"0123456789")
    message = decode(raw)
    assert message == mh.UnknownMessage(mh_type, b"0123456789", 58)
    assert encode(message) == raw
    assert isinstance(message, mh.UnknownMessage)
    assert mh.refusal(message, HOME_ADDRESS) == mh.BindingError(2, HOME_ADDRESS)
    assert mh.refusal(message) == mh.BindingError(2, IPv6Address("::"))


def test_reserved_bits_are_ignored() -> None:
    """RFC 6275 §6.1: "MUST be ignored by the receiver"."""
    raw = bytearray(encode(FULL_UPDATE))
    raw[3], raw[9] = 0xFF, 0xFF
    assert decode(sealed(bytes(raw))) == FULL_UPDATE
    ack = mh.BindingAck(0, 1, 2)
    raw = bytearray(encode(ack))
    raw[7] = 0x1F
    assert decode(sealed(bytes(raw))) == ack
    request = mh.BindingRefreshRequest()
    raw = bytearray(encode(request))
    raw[6:8] = b"\xff\xff"
    assert decode(sealed(bytes(raw))) == request


UPDATE_FLAGS = [
    ("acknowledge", 0x8000),
    ("home_registration", 0x4000),
    ("link_local", 0x2000),
    ("key_mobility", 0x1000),
    ("map_registration", 0x0800),
    ("mobile_router", 0x0400),
    ("proxy", 0x0200),
    ("force_udp", 0x0100),
]


@pytest.mark.parametrize(("name", "bit"), UPDATE_FLAGS)
def test_each_update_flag_is_its_bit(name: str, bit: int) -> None:
    """|A|H|L|K|M|R|P|F| of RFC 5555 §3.1.3."""
    changes: dict[str, Any] = {name: True}
    message = dataclasses.replace(mh.BindingUpdate(1, 2), **changes)
    raw = encode(message)
    assert int.from_bytes(raw[8:10], "big") == bit
    assert decode(raw) == message


@pytest.mark.parametrize(
    ("name", "bit"), [("key_mobility", 0x80), ("mobile_router", 0x40), ("proxy", 0x20)]
)
def test_each_acknowledgement_flag_is_its_bit(name: str, bit: int) -> None:
    changes: dict[str, Any] = {name: True}
    message = dataclasses.replace(mh.BindingAck(0, 1, 2), **changes)
    raw = encode(message)
    assert raw[7] == bit
    assert decode(raw) == message


def test_statuses_come_as_enums_where_known() -> None:
    for value in range(256):
        message = decode(encode(mh.BindingAck(value, 1, 2)))
        assert isinstance(message, mh.BindingAck)
        assert message.status == value
        known = value in (*range(2), *range(128, 145), 174)
        assert isinstance(message.status, mh.BindingStatus) == known
        assert message.accepted == (value < 128)


@pytest.mark.parametrize(
    "message",
    [
        mh.BindingUpdate(0x10000, 1),
        mh.BindingUpdate(-1, 1),
        mh.BindingUpdate(1, 0x10000),
        mh.BindingAck(256, 1, 1),
        mh.HomeTestInit(b"short"),
        mh.CareOfTest(1, b"cookieCo", b"a token that is too long"),
        mh.HomeTest(0x10000, b"cookieHo", b"tokenHom"),
        mh.UnknownMessage(300, bytes(10)),
        mh.UnknownMessage(99, bytes(9)),
        mh.BindingUpdate(1, 1, options=(opt.UnknownOption(99, bytes(255)),) * 8),
        mh.BindingError(1, IPv4Address("192.0.2.1")),  # type: ignore[arg-type]
    ],
)
def test_values_that_do_not_fit_are_typed_errors(message: mh.Message) -> None:
    with pytest.raises(errors.EncodeError) as caught:
        encode(message)
    assert isinstance(caught.value, WireError)
    assert caught.value.hint


def test_the_longest_message_passes() -> None:
    options = (opt.UnknownOption(99, bytes(253)),) * 7 + (opt.UnknownOption(99, bytes(249)),)
    raw = encode(mh.BindingUpdate(1, 1, options=options))
    assert len(raw) == 2048
    assert decode(raw) == mh.BindingUpdate(1, 1, options=options)


def test_keygen_tokens_stay_out_of_reprs_and_errors() -> None:
    message = mh.HomeTest(1, b"cookieHo", b"SECRET!!")
    assert "SECRET" not in repr(message)
    assert "SECRET" not in repr(mh.CareOfTest(1, b"cookieCo", b"SECRET!!"))
    with pytest.raises(errors.EncodeError) as caught:
        encode(dataclasses.replace(message, keygen_token=b"SECRET!!!"))
    assert "SECRET" not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize("message", EVERY_MESSAGE[:-1], ids=names(EVERY_MESSAGE[:-1]))
def test_options_go_along_with_every_message(message: mh.Message) -> None:
    assert not isinstance(message, mh.UnknownMessage)
    options = (opt.AlternateCareOfAddress(CARE_OF_ADDRESS), opt.NatDetection(False, 7))
    changed = dataclasses.replace(message, options=options)
    raw = encode(changed)
    assert decode(raw) == changed
    placed = [(kind, offset) for offset, kind, _ in walk(raw) if kind > 1]
    assert [kind for kind, _ in placed] == [3, 31]
    for kind, offset in placed:
        n, k = ALIGNMENT[kind]
        assert offset % n == k
