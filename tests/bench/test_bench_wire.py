"""The speed of the codec, against scapy in the same run."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from bench_timing import median_seconds, tell
from scapy.layers.inet6 import (
    MIP6MH_BU,
    MIP6OptAltCoA,
    MIP6OptBRAdvice,
    MIP6OptMobNetPrefix,
    MIP6OptUnknown,
)

from dsmip_ipsec.wire.mobility import BindingUpdate, decode, encode
from dsmip_ipsec.wire.options import (
    AlternateCareOfAddress,
    BindingRefreshAdvice,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobileNetworkPrefix,
)

HOME = IPv6Address("2001:db8:1::10")
AGENT = IPv6Address("2001:db8:1::1")
CARE_OF = IPv6Address("2001:db8:2::99")
PREFIX = IPv6Address("2001:db8:20::")
AT_LEAST = 20.0


def test_encoding_and_decoding_a_full_binding_update(capsys: pytest.CaptureFixture[str]) -> None:
    """Five options, each way, at least 20 times as fast as scapy. (Those of RFC 5555 are unknown
    options to scapy: it has less to do.)"""
    ours = BindingUpdate(
        1,
        150,
        True,
        True,
        options=(
            AlternateCareOfAddress(CARE_OF),
            IPv4HomeAddress(32, False, IPv4Address("192.0.2.10")),
            IPv4CareOfAddress(IPv4Address("10.9.8.7")),
            MobileNetworkPrefix(56, PREFIX),
            BindingRefreshAdvice(100),
        ),
    )
    theirs: Any = MIP6MH_BU(
        seq=1,
        flags="AH",
        mhtime=150,
        options=[
            MIP6OptAltCoA(acoa=str(CARE_OF)),
            MIP6OptUnknown(otype=29, odata=b"\x80\0\xc0\0\x02\x0a"),
            MIP6OptUnknown(otype=32, odata=b"\0\0\x0a\x09\x08\x07"),
            MIP6OptMobNetPrefix(plen=56, prefix=str(PREFIX)),
            MIP6OptBRAdvice(rinter=100),
        ],
    )

    def by_us() -> None:
        decode(encode(ours, HOME, AGENT), HOME, AGENT)

    def by_them() -> None:
        theirs.raw_packet_cache = None
        MIP6MH_BU(bytes(theirs))

    assert len(decode(encode(ours, HOME, AGENT), HOME, AGENT).options) == 5  # type: ignore[union-attr]
    us = median_seconds(by_us, 2000)
    them = median_seconds(by_them, 100)
    tell(capsys, f"binding update, 5 options: {us * 1e6:.1f} µs, scapy {them * 1e6:.0f} µs")
    tell(capsys, f"  {them / us:.0f} times as fast (at least {AT_LEAST:.0f} wanted)")
    assert them >= AT_LEAST * us
