"""CHILD_SAs for signalling beside binding updates, where they are wanted: mobile prefix discovery
(RFC 4877 §4.3), and HoTI and HoT where payload isn't protected (§4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from dsmip_ipsec.ike import quoting
from dsmip_ipsec.ike.inventory import HomeAgent, MobileNode
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH, IPPROTO_NONE

PREFIX_DISCOVERY = "prefix-discovery"
PREFIX_DISCOVERY_TUNNEL = "prefix-discovery-tunnel"
RETURN_ROUTABILITY = "return-routability"


@dataclass(frozen=True, slots=True)
class Child:
    """What the template needs of a CHILD_SA; traffic selectors as this end has them."""

    name: str
    mode: str
    local_ts: tuple[str, ...]
    remote_ts: tuple[str, ...]
    reqid: int


def other_children(ha: HomeAgent, mn: MobileNode, *, at_home_agent: bool) -> tuple[Child, ...]:
    """Those of one mobile node, none for a reqid of 0.

    ICMPv6 types aren't in the traffic selectors: an SA has one selector for either direction, and
    they differ (RFC 4877 §4.3). The policies have them. Behind a NAT transport mode is refused, and
    the tunnel mode CHILD_SA has one selector more, as for binding updates.
    """
    found = []
    if mn.prefix_discovery_reqid:
        for name, mode, protocols in (
            (PREFIX_DISCOVERY, "transport_proxy", (IPPROTO_ICMPV6,)),
            (PREFIX_DISCOVERY_TUNNEL, "tunnel", (IPPROTO_ICMPV6, IPPROTO_NONE)),
        ):
            ends = _ts(mn.home_address, protocols), _ts(ha.ipv6, protocols)
            local, remote = reversed(ends) if at_home_agent else ends
            found.append(Child(name, mode, local, remote, mn.prefix_discovery_reqid))
    if mn.return_routability_reqid:
        ends = _ts(mn.home_address, (IPPROTO_MH,)), (f"::/0[{IPPROTO_MH}]",)
        local, remote = reversed(ends) if at_home_agent else ends
        reqid = mn.return_routability_reqid
        found.append(Child(RETURN_ROUTABILITY, "tunnel", local, remote, reqid))
    return tuple(found)


def _ts(address: IPv6Address, protocols: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{quoting.address(address)}[{protocol}]" for protocol in protocols)
