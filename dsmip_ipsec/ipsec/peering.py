"""One mobile node and its home agent, as configured: what desired state is computed for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from dsmip_ipsec.ipsec.model import SecurityAssociation


class Role(Enum):
    MOBILE_NODE = "mobile_node"
    HOME_AGENT = "home_agent"


@dataclass(frozen=True, slots=True)
class Reqids:
    """The reqids of one mobile node's SAs; the same at both ends.

    ``signalling``: what IKE negotiates for BU and BA (RFC 5555 §5.2.1), in transport mode, or,
    behind a NAT, in tunnel mode for us to mirror (docs/decisions.md). ``mirror``: our mirrors,
    told from IKE's own SAs by it, and with them the states for Mobile IPv6's extension headers.
    ``data``: the tunnel SAs of §5.2.2. ``prefix_discovery``: mobile prefix solicitations and
    advertisements in transport mode (RFC 4877 §4.3), ``return_routability``: HoTI and HoT in tunnel
    mode, where payload isn't protected as a whole (RFC 4877 §4.2). 0: IKE negotiates none.
    """

    signalling: int
    mirror: int
    data: int
    prefix_discovery: int = 0
    return_routability: int = 0

    @property
    def negotiated(self) -> frozenset[int]:
        """Those of SAs that IKE makes."""
        ids = (self.signalling, self.data, self.prefix_discovery, self.return_routability)
        return frozenset(ids) - {0}

    @property
    def tunnels(self) -> frozenset[int]:
        """Those of tunnel SAs, which move with the mobile node."""
        return frozenset((self.data, self.return_routability)) - {0}

    def __contains__(self, reqid: int) -> bool:
        return reqid == self.mirror or reqid in self.negotiated


def numbered_reqids(
    index: int, *, prefix_discovery: bool = False, return_routability: bool = False
) -> Reqids:
    """Reqids of a deployment's ``index``-th mobile node: 55500 and up, readable in ``ip xfrm``.
    Without ``prefix_discovery`` or ``return_routability`` IKE negotiates no SAs for that."""
    base = 55500 + 10 * index
    return Reqids(
        signalling=base + 1,
        mirror=base + 2,
        data=base + 3,
        prefix_discovery=base + 4 if prefix_discovery else 0,
        return_routability=base + 5 if return_routability else 0,
    )


@dataclass(frozen=True, slots=True)
class Peering:
    """One mobile node and its home agent, as configured; ``role`` is this end's."""

    role: Role
    home_address: IPv6Address
    ipv4_home_address: IPv4Address | None
    home_agent: IPv6Address
    home_agent_ipv4: IPv4Address
    reqids: Reqids
    protect_data: bool = True
    moves_associations: bool = False
    """Without MOBIKE, the data SAs are ours to move at a handover; with it we MUST NOT touch them
    (RFC 5555 §5.1)."""
    home_agent_behind_nat: bool = False
    """RFC 5555 §1.3, scenario 3: ESP then needs UDP wherever the mobile node is."""
    native_signalling: bool = True
    """The mobile node may also be in IPv6 networks, where BU and BA travel natively. False on a
    kernel without MIPv6 (module mip6): then no state for its extension headers is wanted."""
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    """At a mobile router, its networks' prefixes (RFC 3963); those of a binding come on top. The
    home agent takes only a binding's: what it has authorised."""
    # What depends on the peering alone is kept by it; ipaddress hashes slowly.
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        parts = self.role.value, self.home_address, self.home_agent, self.reqids
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash


def outbound(peering: Peering, association: SecurityAssociation) -> bool:
    """Whether this end sends by ``association`` (the home agent's address tells the direction)."""
    to_home_agent = association.destination in (peering.home_agent_ipv4, peering.home_agent)
    return to_home_agent == (peering.role is Role.MOBILE_NODE)
