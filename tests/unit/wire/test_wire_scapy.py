"""Mobility Headers against scapy: same octets from the same content, and each reads what the
other wrote. scapy has RFC 6275 and RFC 3963, neither RFC 5555 nor its F flag."""

from __future__ import annotations

import itertools
import timeit
from typing import Any

import pytest
from scapy.compat import raw
from scapy.layers import inet6
from wire_samples import (
    ADVICE,
    ALTERNATE,
    AUTHENTICATOR,
    CARE_OF_ADDRESS,
    HOME_ADDRESS,
    HOME_AGENT,
    NONCES,
    PREFIX,
    flagged,
)

from dsmip_ipsec.wire import exthdr
from dsmip_ipsec.wire import mobility as mh
from dsmip_ipsec.wire import options as opt

scapy6: Any = inet6

OPTIONS: list[tuple[opt.MobilityOption, Any]] = [
    (ALTERNATE, scapy6.MIP6OptAltCoA(acoa=str(CARE_OF_ADDRESS))),
    # scapy writes a length of 16 for these 4 octets (RFC 6275 §6.2.6) if one doesn't say it.
    (NONCES, scapy6.MIP6OptNonceIndices(olen=4, hni=0x0102, coni=0xFFFE)),
    (PREFIX, scapy6.MIP6OptMobNetPrefix(plen=56, prefix="2001:db8:5:500::")),
    (ADVICE, scapy6.MIP6OptBRAdvice(rinter=0x1234)),
]
AUTHORIZATION = scapy6.MIP6OptBindingAuthData(
    authenticator=int.from_bytes(range(0xA0, 0xAC), "big")
)


def encode(message: mh.Message) -> bytes:
    return mh.encode(message, HOME_ADDRESS, HOME_AGENT)


def decode(data: bytes) -> mh.Message:
    return mh.decode(data, HOME_ADDRESS, HOME_AGENT)


def by_scapy(layer: Any) -> bytes:
    return raw(scapy6.IPv6(src=str(HOME_ADDRESS), dst=str(HOME_AGENT)) / layer)[40:]


MESSAGES: list[tuple[mh.Message, Any]] = [
    (mh.BindingRefreshRequest(), scapy6.MIP6MH_BRR()),
    (mh.HomeTestInit(b"cookieHo"), scapy6.MIP6MH_HoTI(cookie=b"cookieHo")),
    (mh.CareOfTestInit(b"cookieCo"), scapy6.MIP6MH_CoTI(cookie=b"cookieCo")),
    (
        mh.HomeTest(9, b"cookieHo", b"tokenHom"),
        scapy6.MIP6MH_HoT(index=9, cookie=b"cookieHo", token=b"tokenHom"),
    ),
    (
        mh.CareOfTest(9, b"cookieCo", b"tokenCoA"),
        scapy6.MIP6MH_CoT(index=9, cookie=b"cookieCo", token=b"tokenCoA"),
    ),
    (mh.BindingError(2, HOME_ADDRESS), scapy6.MIP6MH_BE(status=2, ha=str(HOME_ADDRESS))),
    (mh.UnknownMessage(99, b"0123456789"), scapy6.MIP6MH_Generic(mhtype=99, msg=b"0123456789")),
]


@pytest.mark.parametrize(("message", "layer"), MESSAGES)
def test_same_octets(message: mh.Message, layer: Any) -> None:
    theirs = by_scapy(layer)
    assert encode(message).hex(" ") == theirs.hex(" ")
    assert decode(theirs) == message


def test_same_octets_for_every_combination_of_update_flags() -> None:
    letters = "AHLKMRP"
    for bits in itertools.product((False, True), repeat=7):
        message = flagged(mh.BindingUpdate(0x1234, 0x0102), bits)
        flags = "".join(letter for letter, on in zip(letters, bits, strict=True) if on)
        # scapy's own way of counting the lifetime is in units, as ours
        theirs = by_scapy(scapy6.MIP6MH_BU(seq=0x1234, flags=flags, mhtime=0x0102))
        assert encode(message).hex(" ") == theirs.hex(" ")
        assert decode(theirs) == message


def test_same_octets_for_every_combination_of_acknowledgement_flags_and_status() -> None:
    letters = "KRP"
    for status in mh.BindingStatus:
        for bits in itertools.product((False, True), repeat=3):
            message = flagged(mh.BindingAck(status, 0x1234, 0x0102), bits)
            flags = "".join(letter for letter, on in zip(letters, bits, strict=True) if on)
            theirs = by_scapy(
                scapy6.MIP6MH_BA(status=int(status), flags=flags, seq=0x1234, mhtime=0x0102)
            )
            assert encode(message).hex(" ") == theirs.hex(" ")
            assert decode(theirs) == message


def test_same_octets_for_every_order_of_options() -> None:
    for size in range(len(OPTIONS) + 1):
        for chosen in itertools.permutations(OPTIONS, size):
            ours = tuple(option for option, _ in chosen)
            theirs = by_scapy(
                scapy6.MIP6MH_BU(seq=1, flags="", mhtime=2, options=[t for _, t in chosen])
            )
            message = mh.BindingUpdate(1, 2, options=ours)
            assert decode(theirs) == message
            assert encode(message).hex(" ") == theirs.hex(" ")


def test_scapy_reads_our_options() -> None:
    for size in range(len(OPTIONS) + 1):
        for chosen in itertools.permutations(OPTIONS, size):
            options = (*(option for option, _ in chosen), AUTHENTICATOR)
            layer = scapy6.MIP6MH_BU(encode(mh.BindingUpdate(1, 2, options=options)))
            read = [o for o in layer.options if o.otype > 1]
            expected = [o for _, o in chosen] + [AUTHORIZATION]
            assert [type(o) for o in read] == [type(o) for o in expected]
            for got, wanted in zip(read, expected, strict=True):
                for name in wanted.fields:
                    assert got.getfieldval(name) == wanted.getfieldval(name)


def test_checksum_with_a_home_address_option_takes_the_home_address() -> None:
    """RFC 6275 §6.1.1, §6.3: the whole packet of a mobile node in an IPv6 network."""
    message = mh.BindingUpdate(1, 2, acknowledge=True, home_registration=True)
    theirs = raw(
        scapy6.IPv6(src=str(CARE_OF_ADDRESS), dst=str(HOME_AGENT))
        / scapy6.IPv6ExtHdrDestOpt(options=[scapy6.HAO(hoa=str(HOME_ADDRESS))])
        / scapy6.MIP6MH_BU(seq=1, flags="AH", mhtime=2)
    )
    ours = exthdr.encode_home_address(HOME_ADDRESS, 135) + encode(message)
    assert ours.hex(" ") == theirs[40:].hex(" ")


def test_speed_at_least_twenty_times_scapys() -> None:
    """Encoding and decoding one Binding Update with five options that both know."""
    ours = (*(option for option, _ in OPTIONS), AUTHENTICATOR)
    message = mh.BindingUpdate(1, 2, True, True, options=ours)
    theirs = scapy6.MIP6MH_BU(
        seq=1, flags="AH", mhtime=2, options=[*(t for _, t in OPTIONS), AUTHORIZATION]
    )
    data = encode(message)

    def by_us() -> None:
        decode(encode(message))

    def by_them() -> None:
        theirs.raw_packet_cache = None
        scapy6.MIP6MH_BU(raw(theirs))

    assert len(raw(theirs)) == len(data)
    us = min(timeit.repeat(by_us, number=200, repeat=5)) / 200
    them = min(timeit.repeat(by_them, number=20, repeat=5)) / 20
    assert them > 20 * us, f"{us * 1e6:.1f} µs, scapy {them * 1e6:.1f} µs"
