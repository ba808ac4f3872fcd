"""What of port 4191 may go on to ESP as signalling."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import MIP6MH_BU, IPv6
from scapy.layers.ipsec import ESP

from dsmip_ipsec.node.dsmip_port import refusal

HOME, AGENT = "2001:db8:100::100", "2001:db8:100::1"


def accepts(source: IPv6Address, destination: IPv6Address) -> bool:
    return (str(source), str(destination)) == (HOME, AGENT)


def esp(source: str, destination: str) -> bytes:
    return bytes(IPv6(src=source, dst=destination) / ESP(spi=0x1001, seq=1, data=bytes(40)))


def test_esp_of_a_peer() -> None:
    assert refusal(esp(HOME, AGENT), accepts) is None


@pytest.mark.parametrize(
    ("packet", "word"),
    [
        (b"", "not_ipv6"),
        (bytes(IP() / UDP()), "not_ipv6"),
        (esp(HOME, AGENT)[:30], "not_ipv6"),
        (bytes(IPv6(src=HOME, dst=AGENT) / MIP6MH_BU()), "unprotected"),
        (bytes(IPv6(src=HOME, dst=AGENT) / UDP()), "not_esp"),
        (esp("2001:db8:100::101", AGENT), "foreign"),
        (esp(HOME, "2001:db8:100::2"), "foreign"),
        (esp(AGENT, HOME), "foreign"),
    ],
)
def test_what_is_refused(packet: bytes, word: str) -> None:
    refused = refusal(packet, accepts)
    assert refused is not None
    assert refused[0] == word
