"""IPv6 extension headers of Mobile IPv6: the Home Address option (RFC 6275 §6.3) in a
destination options header, and the type 2 routing header (§6.4).

Everything a chain carries is read in one pass by :func:`parse_extension_headers`; it stops in
front of the first header that is no hop-by-hop, routing or destination options header (ESP,
AH, Fragment and every upper layer).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from dsmip_ipsec.wire.errors import (
    EncodeError,
    ExtensionHeaderError,
    ParameterProblem,
    TruncatedError,
)
from dsmip_ipsec.wire.ip import (
    IPPROTO_DSTOPTS,
    IPPROTO_HOPOPTS,
    IPPROTO_ROUTING,
    IPv6Header,
)
from dsmip_ipsec.wire.options import octets6

HOME_ADDRESS_OPTION: Final = 0xC9
TYPE2_ROUTING: Final = 2

_ROUTING = struct.Struct("!BBBBI")


@dataclass(frozen=True, slots=True)
class ExtensionHeaders:
    """What a chain of extension headers says.

    ``protocol`` and ``offset`` are those of the header at which the chain ends.
    ``home_address`` is that of a Home Address option, ``routing_home_address`` that of a type 2
    routing header.
    """

    protocol: int
    offset: int
    home_address: IPv6Address | None = None
    routing_home_address: IPv6Address | None = None


def is_unicast_routable(address: IPv6Address) -> bool:
    """Whether an address may be a home or care-of address: global or unique local (RFC 6275
    §3.1), so not multicast, link-local, loopback, unspecified, or an IPv4 address in disguise."""
    value = int(address)
    if value >> 120 == 0xFF or value >> 118 == 0xFE80 >> 6:
        return False
    return value >> 32 not in (0, 0xFFFF)


def final_addresses(
    header: IPv6Header, extension: ExtensionHeaders
) -> tuple[IPv6Address, IPv6Address]:
    """Source and destination as upper layers see them: home addresses in place of care-of
    addresses (RFC 6275 §9.3.1, §11.3.3). The pseudo-header and the SA selectors want these."""
    return (
        extension.home_address or header.source,
        extension.routing_home_address or header.destination,
    )


def encode_home_address(home_address: IPv6Address, next_header: int) -> bytes:
    """A destination options header (24 octets) with the Home Address option at 8n + 6. It
    stands behind a routing header and in front of Fragment, AH and ESP (RFC 6275 §6.3)."""
    _check(home_address, next_header)
    return bytes((next_header, 2, 1, 2, 0, 0, HOME_ADDRESS_OPTION, 16)) + home_address.packed


def encode_type2_routing(home_address: IPv6Address, next_header: int) -> bytes:
    """A type 2 routing header (24 octets), as on the wire: Segments Left is 1."""
    _check(home_address, next_header)
    return _ROUTING.pack(next_header, 2, TYPE2_ROUTING, 1, 0) + home_address.packed


def _check(home_address: IPv6Address, next_header: int) -> None:
    octets6(home_address)
    if not 0 <= next_header <= 255:
        raise EncodeError(f"next header {next_header} doesn't fit an octet")
    if not is_unicast_routable(home_address):
        raise EncodeError(f"the home address {home_address} is not a unicast routable address")


def parse_extension_headers(
    next_header: int, data: bytes, *, to_multicast: bool = False
) -> tuple[ExtensionHeaders, bytes]:
    """Read the chain at the start of ``data``, whose first header has number ``next_header``.

    Gives what it says, and the rest. ``to_multicast``: the packet's destination is multicast
    (no answer to options of the kind 11, RFC 8200 §4.2). Raises :class:`TruncatedError`, and
    :class:`ExtensionHeaderError` with the ICMP answer that the RFCs want, if any; pointers
    count from the start of ``data``.
    """
    data = bytes(data)
    home_address: IPv6Address | None = None
    routing_home_address: IPv6Address | None = None
    offset = previous = 0
    while True:
        if next_header == IPPROTO_HOPOPTS and offset:
            raise ExtensionHeaderError(
                "a hop-by-hop options header that isn't the first",
                offset=offset,
                answer=ParameterProblem(1, previous),
            )
        if next_header not in (IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_DSTOPTS):
            break
        if offset + 8 > len(data):
            raise TruncatedError("an IPv6 extension header is cut short", offset=offset)
        end = offset + (data[offset + 1] + 1) * 8
        if end > len(data):
            raise TruncatedError("an IPv6 extension header runs past the packet", offset=offset)
        if next_header == IPPROTO_ROUTING:
            address = _routing_header(data, offset)
            if address is not None:
                if routing_home_address is not None:
                    raise ExtensionHeaderError("two type 2 routing headers", offset=offset)
                if home_address is not None:
                    # RFC 6275 §6.3: the option MUST be placed after the routing header.
                    raise ExtensionHeaderError(
                        "a Home Address option in front of a routing header", offset=offset
                    )
                routing_home_address = address
        else:
            address = _options_header(
                data,
                offset + 2,
                end,
                home_address_allowed=next_header == IPPROTO_DSTOPTS,
                to_multicast=to_multicast,
            )
            if address is not None:
                if home_address is not None:
                    raise ExtensionHeaderError("two Home Address options", offset=offset)
                home_address = address
        previous = offset
        next_header = data[offset]
        offset = end
    return (
        ExtensionHeaders(next_header, offset, home_address, routing_home_address),
        data[offset:],
    )


def _routing_header(data: bytes, offset: int) -> IPv6Address | None:
    """The home address of a type 2 routing header; None for another with nothing left to do."""
    _, length, routing_type, segments_left = data[offset : offset + 4]
    if routing_type != TYPE2_ROUTING:
        if segments_left:
            # RFC 8200 §4.4
            raise ExtensionHeaderError(
                f"routing header of type {routing_type}",
                offset=offset + 2,
                answer=ParameterProblem(0, offset + 2),
            )
        return None
    # RFC 6275 §11.3.3: silence if a check fails.
    if length != 2 or segments_left != 1:
        raise ExtensionHeaderError(
            f"type 2 routing header with length {length} and {segments_left} segments left",
            offset=offset + 1,
        )
    address = IPv6Address(data[offset + 8 : offset + 24])
    if not is_unicast_routable(address):
        raise ExtensionHeaderError(
            "the type 2 routing header's address is not unicast routable", offset=offset + 8
        )
    return address


def _options_header(
    data: bytes, offset: int, end: int, *, home_address_allowed: bool, to_multicast: bool
) -> IPv6Address | None:
    """The Home Address option's address, if there is one among a header's options."""
    home_address: IPv6Address | None = None
    while offset < end:
        kind = data[offset]
        if kind == 0:
            offset += 1
            continue
        if offset + 1 == end or offset + 2 + data[offset + 1] > end:
            raise ExtensionHeaderError(
                f"IPv6 option {kind} runs past the end of its header", offset=offset
            )
        length = data[offset + 1]
        if kind == HOME_ADDRESS_OPTION and home_address_allowed:
            if home_address is not None:
                raise ExtensionHeaderError("two Home Address options", offset=offset)
            if length != 16:
                raise ExtensionHeaderError(
                    f"a Home Address option of {length} octets", offset=offset + 1
                )
            home_address = IPv6Address(data[offset + 2 : offset + 18])
            if not is_unicast_routable(home_address):
                # RFC 6275 §9.3.1
                raise ExtensionHeaderError(
                    f"home address {home_address} is not unicast routable", offset=offset + 2
                )
        elif kind != 1 and kind >> 6:
            # RFC 8200 §4.2: 01 discard, 10 discard and tell, 11 tell unless multicast.
            tell = kind >> 6 == 2 or (kind >> 6 == 3 and not to_multicast)
            raise ExtensionHeaderError(
                f"unknown IPv6 option {kind}",
                offset=offset,
                answer=ParameterProblem(2, offset) if tell else None,
            )
        offset += 2 + length
    return home_address
