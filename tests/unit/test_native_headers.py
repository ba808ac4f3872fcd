"""Home address option and type 2 routing header around ESP, as scapy reads them."""

from __future__ import annotations

from ipaddress import IPv6Address

from scapy.layers.inet6 import HAO, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting
from scapy.layers.ipsec import ESP

from dsmip_ipsec.kernel.native_socket import unwrap, wrap

HOME = IPv6Address("2001:db8:100::100")
CARE_OF = IPv6Address("2001:db8:6::100")
AGENT = IPv6Address("2001:db8:100::1")


def test_an_update_carries_the_home_address_in_front_of_esp() -> None:
    inner = IPv6(src=str(HOME), dst=str(AGENT), fl=0x12345) / ESP(spi=7, seq=1, data=b"x" * 20)
    packet = wrap(bytes(inner), CARE_OF, AGENT, home_address_option=HOME)
    read = IPv6(packet)
    assert (read.src, read.dst, read.fl, read.nh) == (str(CARE_OF), str(AGENT), 0, 60)
    assert read[HAO].hoa == str(HOME)
    assert read[IPv6ExtHdrDestOpt].nh == 50
    assert read[ESP].spi == 7
    assert len(packet) == 40 + read.plen
    back = unwrap(packet)
    assert back is not None
    assert (back.source, back.destination, back.home_address_option) == (CARE_OF, AGENT, HOME)
    inner.fl = 0
    assert back.inner == bytes(inner)


def test_an_acknowledgement_carries_a_type_2_routing_header() -> None:
    inner = IPv6(src=str(AGENT), dst=str(HOME)) / ESP(spi=8, seq=1, data=b"x" * 20)
    packet = wrap(bytes(inner), AGENT, CARE_OF, type2_routing=HOME)
    read = IPv6(packet)
    assert (read.src, read.dst, read.nh) == (str(AGENT), str(CARE_OF), 43)
    routing = read[IPv6ExtHdrRouting]
    assert (routing.type, routing.segleft, routing.addresses) == (2, 1, [str(HOME)])
    assert routing.nh == 50
    back = unwrap(packet)
    assert back is not None
    assert (back.inner_source, back.inner_destination) == (AGENT, HOME)
    assert back.inner == bytes(inner)


def test_other_packets_are_left_alone() -> None:
    assert unwrap(bytes(IPv6(src=str(HOME), dst=str(AGENT)) / ESP(spi=8, seq=1))) is None
