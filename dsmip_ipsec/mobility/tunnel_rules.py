"""MTU, TTL, DSCP and ECN in each tunnel format (RFC 5555 §4.1.1, with RFC 2473 §6 and §7,
RFC 4459, RFC 2983 and RFC 3168 §9.1.1).

===================  ====================================================================
MTU                  what fits behind the outer headers, never below the inner family's
                     minimum: below it, the *outer* packet is fragmented
TTL, hop limit       of the inner header: one less for a forwarded packet, whatever the
                     format (UDP counts as IP in IP does); of the outer one: a fresh 64
DSCP                 copied outwards; on arrival the inner one stays
ECN                  full functionality: outwards copied, CE as ECT(0); on arrival an outer
                     CE marks the inner header, or costs a packet that isn't ECN-capable
===================  ====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.tunnelling import Header, TunnelFormat

OUTER_HOP_LIMIT: Final = 64

# RFC 8200 §5; RFC 791: "every internet module must be able to forward a datagram of 68 octets".
_MINIMUM_MTU = {Header.IPV6: 1280, Header.IPV4: 68}
_ESP_HEADER = 8  # SPI and sequence number
_ESP_TRAILER = 2  # pad length and next header


class Ecn(IntEnum):
    """The two ECN bits of a TOS or traffic class octet (RFC 3168 §5)."""

    NOT_ECT = 0
    ECT_1 = 1
    ECT_0 = 2
    CE = 3


@dataclass(frozen=True, slots=True)
class EspSizes:
    """What ESP's algorithms add, in octets (RFC 4303 §2). ``alignment`` is that of the encrypted
    part, 4 at least. The defaults are those of AES-GCM with a 16 octet ICV."""

    iv: int = 8
    icv: int = 16
    alignment: int = 4


@dataclass(frozen=True, slots=True)
class TunnelMtu:
    """``inner``: the longest inner packet to let in; longer ones are answered with Packet Too
    Big, or with Fragmentation Needed when DF is set, and fragmented otherwise.
    ``fragments_outer``: even those don't all fit the path, so the encapsulated packet is sent in
    fragments (RFC 2473 §7.1; RFC 4459 §3.1): the path is narrower than the inner family allows.
    """

    inner: int
    fragments_outer: bool


def tunnel_mtu(made: TunnelFormat, path_mtu: int, esp: EspSizes | None = None) -> TunnelMtu:
    """What ``made`` leaves of a ``path_mtu`` between its outer addresses.

    ``esp`` is needed for formats with ESP, and only for them. Raises :class:`MobilityError`.
    """
    if made.esp is not (esp is not None):
        raise MobilityError(
            f"{made}: sizes of ESP {'missing' if made.esp else 'given'}",
            hint="give EspSizes with a format that has ESP, and with no other",
        )
    room = path_mtu - made.overhead
    if esp is not None:
        room -= _ESP_HEADER + esp.iv + esp.icv
        room -= room % esp.alignment + _ESP_TRAILER
    minimum = _MINIMUM_MTU[made.headers[-1]]
    return TunnelMtu(max(room, minimum), room < minimum)


def inner_hop_limit(hop_limit: int, *, forwarded: bool) -> int | None:
    """The TTL or hop limit inside the tunnel: one less for a forwarded packet, as it was for one
    of this node's own (RFC 2473 §3.1). None: discard it, and say "time exceeded"."""
    if not forwarded:
        return hop_limit
    return hop_limit - 1 if hop_limit > 1 else None


def outer_traffic_class(inner: int) -> int:
    """The outer TOS or traffic class for an inner one (RFC 2983; RFC 3168 §9.1.1: "if the ECN
    field in the inside header is CE, the outside one is set to ECT(0)")."""
    return (inner & 0xFC) | (Ecn.ECT_0 if inner & 3 == Ecn.CE else inner & 3)


def inner_traffic_class(inner: int, outer: int) -> int | None:
    """The inner TOS or traffic class after decapsulation, None to discard the packet: one that
    isn't ECN-capable has been marked instead of dropped on the way (RFC 3168 §9.1.1)."""
    if outer & 3 != Ecn.CE:
        return inner
    return None if inner & 3 == Ecn.NOT_ECT else inner | Ecn.CE
