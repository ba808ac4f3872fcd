"""The Internet checksum (RFC 1071) and its pseudo-headers.

A ones' complement sum of 16-bit words is the number that the octets spell, modulo 2^16 - 1
(because 2^16 = 1 there), so one big-integer remainder does what a loop over words would.
All inputs and results are in network byte order.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

_MODULUS = 0xFFFF


def words(data: bytes) -> int:
    """A number congruent to the ones' complement sum of ``data`` (odd lengths zero-padded)."""
    value = int.from_bytes(data, "big")
    return value << 8 if len(data) & 1 else value


def complement(total: int) -> int:
    """The 16-bit checksum of a sum. Only a sum of nothing but zeros gives 0xFFFF."""
    rest = total % _MODULUS
    if rest:
        return _MODULUS - rest
    return 0 if total else _MODULUS


def internet_checksum(data: bytes) -> int:
    """Checksum of ``data``, with its checksum field as zero. Source: RFC 1071."""
    return complement(words(data))


def pseudo_header6(
    source: IPv6Address, destination: IPv6Address, length: int, protocol: int
) -> int:
    """Sum of the IPv6 pseudo-header (RFC 8200 §8.1); add :func:`words` of the payload."""
    return int(source) + int(destination) + length + protocol


def pseudo_header4(
    source: IPv4Address, destination: IPv4Address, length: int, protocol: int
) -> int:
    """Sum of the IPv4 pseudo-header of UDP (RFC 768)."""
    return int(source) + int(destination) + length + protocol


def is_valid(total: int) -> bool:
    """True if a sum that includes the received checksum says "unchanged"."""
    return total % _MODULUS == 0
