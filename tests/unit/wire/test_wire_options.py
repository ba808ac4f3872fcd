"""Mobility options: placing, limits, bad ones, and the number that RFC 5555 printed twice."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv6Address

import pytest
from wire_samples import (
    ACK4,
    ADVICE,
    ALIGNMENT,
    ALTERNATE,
    AUTHENTICATOR,
    CARE_OF4,
    HOME4,
    HOME_ADDRESS,
    HOME_ADDRESS4,
    HOME_AGENT,
    NAT,
    NONCES,
    PREFIX,
    UNKNOWN,
    sealed,
    walk,
)

from dsmip_ipsec.wire import errors
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt
from dsmip_ipsec.wire.mobility import AckOptionReading

EITHER, REGISTRY, TEXT = AckOptionReading.EITHER, AckOptionReading.REGISTRY, AckOptionReading.TEXT


def update(*options: opt.MobilityOption) -> mh.BindingUpdate:
    return mh.BindingUpdate(1, 2, options=options)


def encode(message: mh.Message, reading: AckOptionReading = EITHER) -> bytes:
    return mh.encode(message, HOME_ADDRESS, HOME_AGENT, ack_option=reading)


def decode(data: bytes, reading: AckOptionReading = EITHER) -> mh.Message:
    return mh.decode(data, HOME_ADDRESS, HOME_AGENT, ack_option=reading)


def raw_message(mh_type: int, options: bytes) -> bytes:
    """A BU (5) or BA (6) with these octets as options, filled up with Pad1."""
    raw = bytes((59, 0, mh_type, 0, 0, 0, 0, 1, 0, 0, 0, 2)) + options
    raw += bytes(-len(raw) % 8)
    return sealed(raw[:1] + bytes((len(raw) // 8 - 1,)) + raw[2:])


def options_of(mh_type: int, octets: str, reading: AckOptionReading = EITHER) -> object:
    message = decode(raw_message(mh_type, bytes.fromhex(octets)), reading)
    assert isinstance(message, mh.BindingUpdate | mh.BindingAck)
    return message.options


def test_every_order_and_subset_is_aligned_and_padded_canonically() -> None:
    """§6.2.1: each option at its alignment; at most one Pad1 or PadN in a gap, of zeros, no
    longer than the gap needs; the whole a multiple of 8 octets."""
    pool = (ALTERNATE, PREFIX, HOME4, CARE_OF4, NONCES, UNKNOWN)
    count = 0
    for size in range(len(pool) + 1):
        for options in itertools.permutations(pool, size):
            raw = encode(update(*options))
            assert len(raw) % 8 == 0
            found = walk(raw)
            assert [k for _, k, _ in found if k > 1] == [o.type for o in options]
            previous = None
            end = 12
            for offset, kind, data in found:
                if kind <= 1:
                    assert previous is None or previous > 1, "two paddings in a row"
                    assert data == bytes(len(data))
                else:
                    n, k = ALIGNMENT.get(kind, (1, 0))
                    assert offset % n == k % n
                    assert offset - end < n, "more padding than needed"
                    end = offset + 2 + len(data)
                previous = kind
            assert len(raw) - end < 8
            count += 1
    assert count == 1957


@pytest.mark.parametrize("length", [0, 1, 5, 10, 12, 20, 255])
@pytest.mark.parametrize("before", [(), (UNKNOWN,), (NONCES,), (ALTERNATE,)])
def test_authenticator_ends_the_message(
    length: int, before: tuple[opt.MobilityOption, ...]
) -> None:
    """RFC 6275 §6.2.7: last, and no trailing padding, whatever its length."""
    message = update(*before, opt.BindingAuthorizationData(bytes(range(length))))
    raw = encode(message)
    assert raw.endswith(bytes((5, length, *range(length))))
    assert decode(raw) == message


def test_authenticator_is_at_8n_plus_2() -> None:
    offset = next(o for o, kind, _ in walk(encode(update(NONCES, AUTHENTICATOR))) if kind == 5)
    assert offset % 8 == 2


@pytest.mark.rfc("6275-11.7.3-3")
def test_authenticator_elsewhere_is_refused_both_ways() -> None:
    with pytest.raises(errors.EncodeError):
        encode(update(AUTHENTICATOR, NONCES))
    for octets in ("050c" + "aa" * 12 + "0404 00010002", "050c" + "aa" * 12 + "01020000"):
        with pytest.raises(errors.OptionError) as caught:
            options_of(5, "01020000" + octets if "0404" in octets else octets)
        assert caught.value.option_type == 5


def test_all_paddings_are_skipped() -> None:
    assert options_of(5, "00 00 0103ffffff 0100 0404 00010002 00 01fd" + "ee" * 253) == (
        opt.NonceIndices(1, 2),
    )


def test_own_padding_is_written_as_given() -> None:
    raw = encode(update(opt.Pad1(), opt.PadN(3), NONCES))
    assert raw[12:16].hex() == "00010100"
    with pytest.raises(errors.EncodeError):
        encode(update(opt.PadN(1)))
    with pytest.raises(errors.EncodeError):
        encode(update(opt.PadN(258)))


def test_unknown_options_are_kept_where_they_stood() -> None:
    """§6.2.1: skip, and handle those behind it. A relay of ours keeps a foreign alignment."""
    raw = raw_message(5, bytes.fromhex("0102 0000 c806 aabbccddeeff 0404 00010002"))
    message = decode(raw)
    assert isinstance(message, mh.BindingUpdate)
    assert message.options == (
        opt.UnknownOption(200, bytes.fromhex("aabbccddeeff")),
        opt.NonceIndices(1, 2),
    )
    raw_again = encode(message)
    assert decode(raw_again) == message
    assert next(o for o, kind, _ in walk(raw_again) if kind == 200) % 8 == 0


FIXED = {2: 2, 3: 16, 4: 4, 6: 18, 29: 6, 30: 6, 31: 6, 32: 6}


@pytest.mark.parametrize("kind", FIXED)
def test_wrong_length_of_a_known_option(kind: int) -> None:
    for length in range(24):
        body = bytearray(length)
        if kind in (6, 29, 30) and length > 1:
            body[0] = body[1] = 32 << 2
        if length == FIXED[kind]:
            body[0] = 32 << 2 if kind == 29 else 0
            decode(raw_message(5, bytes((kind, length)) + body))
            continue
        with pytest.raises(errors.OptionError) as caught:
            decode(raw_message(5, bytes((kind, length)) + body))
        assert caught.value.option_type == kind
        assert caught.value.answer is None


@pytest.mark.parametrize("octets", ["c803aabb", "01", "c8", "1f", "1f06000000", "01ff", "0505aa"])
def test_option_overrun(octets: str) -> None:
    """An option that runs past the message, or whose length octet is missing."""
    tail = bytes.fromhex(octets)
    raw = bytes((59, 0, 5, 0, 0, 0, 0, 1, 0, 0, 0, 2)) + bytes.fromhex("0404000a000b")
    raw += bytes(-(len(raw) + len(tail)) % 8) + tail
    raw = sealed(raw[:1] + bytes((len(raw) // 8 - 1,)) + raw[2:])
    with pytest.raises(errors.OptionError) as caught:
        decode(raw)
    assert caught.value.offset == len(raw) - len(tail)
    assert caught.value.option_type == tail[0]
    assert caught.value.partial == mh.BindingUpdate(1, 2, options=(opt.NonceIndices(10, 11),))


def test_a_few_bad_options_hide_nothing_and_many_end_the_reading() -> None:
    """A refusal must stay cheap, whatever the message is stuffed with."""
    for count, seen in ((7, (NONCES,)), (8, ())):
        with pytest.raises(errors.OptionError) as caught:
            options_of(5, "0201 aa" * count + "0404 0102fffe")
        assert caught.value.offset == 13, "the first bad one is reported"
        assert caught.value.partial == mh.BindingUpdate(1, 2, options=seen)


@pytest.mark.rfc("5555-3.1.1-2")
@pytest.mark.parametrize("prefix_len", [0, 33, 63])
def test_prefix_length_of_the_ipv4_home_address(prefix_len: int) -> None:
    """RFC 5555 §3.1.1: "A value of zero is invalid and MUST be considered an error". What is
    good in the message stays readable, so that a home agent can refuse it by status."""
    octets = f"1d06 {prefix_len << 2:02x}00 c000020a 2006 0000 0a0b0c0d"
    with pytest.raises(errors.PrefixLengthError) as caught:
        options_of(5, octets)
    assert caught.value.offset == 14
    assert caught.value.partial == mh.BindingUpdate(1, 2, options=(CARE_OF4,))
    with pytest.raises(errors.EncodeError):
        encode(update(opt.IPv4HomeAddress(prefix_len, False, HOME_ADDRESS4)))


@pytest.mark.rfc("5555-3.1.1-1")
@pytest.mark.parametrize("prefix_len", [1, 24, 32])
@pytest.mark.parametrize("request_prefix", [False, True])
def test_ipv4_home_address_bits(prefix_len: int, request_prefix: bool) -> None:
    """|Prefix-len (6)|P (1)|Reserved (9)|: reserved bits ignored."""
    option = opt.IPv4HomeAddress(prefix_len, request_prefix, HOME_ADDRESS4)
    assert option.encode()[2:4] == (prefix_len << 10 | request_prefix << 9).to_bytes(2, "big")
    bits = prefix_len << 10 | request_prefix << 9 | 0x1FF
    assert options_of(5, f"1d06 {bits:04x} c000020a") == (option,)


@pytest.mark.parametrize("kind", [29, 30])
@pytest.mark.parametrize("status", [0, 1, 127])
@pytest.mark.parametrize("prefix_len", [0, 33, 63])
def test_prefix_length_of_an_accepted_ipv4_address(kind: int, status: int, prefix_len: int) -> None:
    with pytest.raises(errors.PrefixLengthError) as caught:
        options_of(6, f"{kind:02x}06 {status:02x} {prefix_len << 2:02x} c000020a")
    assert caught.value.option_type == kind
    with pytest.raises(errors.EncodeError):
        encode(
            mh.BindingAck(0, 1, 2, options=(opt.IPv4AddressAck(status, prefix_len, HOME_ADDRESS4),))
        )


@pytest.mark.rfc("5555-3.2.1-1")
@pytest.mark.parametrize("status", [*range(128, 134), 255])
def test_prefix_length_of_a_refused_ipv4_address_is_ignored(status: int) -> None:
    """RFC 5555 §3.2.1: "MUST be set to zero and ignored in case of failure"."""
    expected = (opt.IPv4AddressAck(status, 0, HOME_ADDRESS4),)
    assert options_of(6, f"1e06 {status:02x} ff c000020a") == expected
    assert not expected[0].accepted
    with pytest.raises(errors.EncodeError):
        encode(mh.BindingAck(0, 1, 2, options=(opt.IPv4AddressAck(status, 32, HOME_ADDRESS4),)))


def test_mobile_network_prefix_longer_than_an_address() -> None:
    with pytest.raises(errors.PrefixLengthError):
        options_of(5, "0612 0081" + "20010db8" * 4)
    with pytest.raises(errors.EncodeError):
        encode(update(opt.MobileNetworkPrefix(129, IPv6Address("2001:db8::"))))


@pytest.mark.rfc("5555-3.1.1-3", "5555-3.2.1-2", "5555-3.2.2-4")
@pytest.mark.parametrize(
    ("octets", "option"),
    [
        ("1f06 8000 0000006e", opt.NatDetection(True, 110)),
        ("1f06 7fff ffffffff", opt.NatDetection(False, opt.REFRESH_NOT_NEEDED)),
        ("2006 ffff 0a0b0c0d", CARE_OF4),
        ("1e06 00 63 c000020a", ACK4),
        ("0202 1234", ADVICE),
        ("0612 ff38 20010db8000505000000000000000000", PREFIX),
    ],
)
def test_reserved_bits_of_options_are_ignored(octets: str, option: opt.MobilityOption) -> None:
    assert options_of(6, octets) == (option,)


@pytest.mark.parametrize(
    "option",
    [
        opt.BindingRefreshAdvice(0x10000),
        opt.NonceIndices(-1, 0),
        opt.BindingAuthorizationData(bytes(256)),
        opt.NatDetection(False, 1 << 32),
        opt.UnknownOption(0, b""),
        opt.UnknownOption(256, b""),
        opt.UnknownOption(99, bytes(256)),
        opt.IPv4AddressAck(300, 0, HOME_ADDRESS4),
        opt.AlternateCareOfAddress(IPv4Address("192.0.2.1")),  # type: ignore[arg-type]
        opt.IPv4CareOfAddress(IPv6Address("2001:db8::1")),  # type: ignore[arg-type]
    ],
)
def test_values_that_do_not_fit_are_typed_errors(option: opt.MobilityOption) -> None:
    with pytest.raises(errors.EncodeError):
        encode(update(option))


# --- the numbers 29 and 30 ---

ACK_AS_29, ACK_AS_30 = "1d06 00 60 c000020a", "1e06 00 60 c000020a"
HOME_AS_29 = "1d06 7200 c000020a"


def test_the_acknowledgement_is_sent_as_30_and_by_the_text_as_29() -> None:
    message = mh.BindingAck(0, 1, 2, options=(ACK4,))
    for reading, number in ((EITHER, 30), (REGISTRY, 30), (TEXT, 29)):
        raw = encode(message, reading)
        assert raw[12:].hex(" ") == f"{number:02x} 06 00 60 c0 00 02 0a 01 02 00 00"
        assert decode(raw, reading) == message


def test_either_number_acknowledges_in_a_binding_acknowledgement() -> None:
    assert options_of(6, ACK_AS_30) == (ACK4,)
    assert options_of(6, ACK_AS_29) == (ACK4,)


def test_29_beside_30_is_what_the_registry_says() -> None:
    for octets, expected in (
        (ACK_AS_30 + HOME_AS_29, (ACK4, HOME4)),
        (HOME_AS_29 + ACK_AS_30, (HOME4, ACK4)),
    ):
        assert options_of(6, octets) == expected


def test_29_in_an_update_is_the_home_address_in_every_reading() -> None:
    for reading in AckOptionReading:
        assert options_of(5, HOME_AS_29, reading) == (HOME4,)


def test_the_strict_readings() -> None:
    unknown = (opt.UnknownOption(30, bytes.fromhex("0060c000020a")),)
    assert options_of(6, ACK_AS_30, TEXT) == unknown
    assert options_of(5, ACK_AS_30, TEXT) == unknown
    assert options_of(6, ACK_AS_29, TEXT) == (ACK4,)
    assert options_of(6, ACK_AS_30, REGISTRY) == (ACK4,)
    assert options_of(6, HOME_AS_29, REGISTRY) == (HOME4,)


def test_an_echoed_home_address_never_reads_as_success() -> None:
    """The ambiguity left when a peer puts the home address option into its BA as 29, alone: a
    /32 reads as refused, and a shorter prefix is an error."""
    for prefix_len in range(1, 32):
        with pytest.raises(errors.PrefixLengthError):
            options_of(6, f"1d06 {prefix_len << 10:04x} c000020a")
    assert options_of(6, "1d06 8000 c000020a") == (opt.IPv4AddressAck(128, 0, HOME_ADDRESS4),)


def test_find() -> None:
    second = opt.IPv4HomeAddress(32, False, HOME_ADDRESS4)
    options = (ALTERNATE, HOME4, NAT, second)
    assert opt.find(options, opt.IPv4HomeAddress) is HOME4
    assert opt.find(options, opt.IPv4CareOfAddress) is None
    assert opt.find_all(options, opt.IPv4HomeAddress) == (HOME4, second)
