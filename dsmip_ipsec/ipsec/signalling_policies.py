"""Signalling between home address and home agent, in ESP transport mode: BU and BA (RFC 5555
§5.2.1), mobile prefix discovery (RFC 4877 §6.3)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import IPv6Address

from dsmip_ipsec.ipsec.extensions import extension_template
from dsmip_ipsec.ipsec.model import (
    UNLIMITED,
    Action,
    Direction,
    ExtensionState,
    MobilityHeaderType,
    Mode,
    Policy,
    SecurityAssociation,
    Selector,
    Template,
    host_network,
)
from dsmip_ipsec.ipsec.peering import Peering, Role, outbound
from dsmip_ipsec.ipsec.priorities import PRIORITY_SIGNALLING
from dsmip_ipsec.wire.icmp6 import MOBILE_PREFIX_ADVERTISEMENT, MOBILE_PREFIX_SOLICITATION
from dsmip_ipsec.wire.ip import IPPROTO_ICMPV6, IPPROTO_MH


@dataclass(frozen=True, slots=True)
class TransportPair:
    """The transport SAs of one kind of signalling, as this end uses them.

    ``mirrors``: what we add for SAs that IKE could negotiate in tunnel mode only. ``reqid``: of
    the SAs to use, which are of the newest's kind; None without any.
    """

    mirrors: tuple[SecurityAssociation, ...]
    reqid: int | None


def transport_pair(
    peering: Peering, negotiated: list[SecurityAssociation], reqid: int, protocol: int
) -> TransportPair:
    """What IKE negotiated under ``reqid``, newest first, for ``protocol`` between home address and
    home agent."""
    found = [sa for sa in negotiated if reqid != 0 and sa.reqid == reqid]
    mirrors = tuple(_mirror(peering, sa, protocol) for sa in found if sa.mode is Mode.TUNNEL)
    if not found:
        return TransportPair((), None)
    # Of both kinds at once, as in a move to another family, the older one may be the other end's no
    # longer: where its way is gone, nobody can tell this end that it was deleted.
    mirrored = found[0].mode is Mode.TUNNEL
    return TransportPair(mirrors, peering.reqids.mirror if mirrored else reqid)


def _mirror(
    peering: Peering, negotiated: SecurityAssociation, protocol: int
) -> SecurityAssociation:
    """The transport SA of RFC 5555 §5.2.1 with the SPI, keys and algorithms of a tunnel SA.

    Behind a NAT charon can't negotiate transport mode between the home address and the home
    agent; the tunnel SA that it can negotiate is never used, its mirror is.
    """
    home, agent = peering.home_address, peering.home_agent
    to_agent = outbound(peering, negotiated) == (peering.role is Role.MOBILE_NODE)
    source, destination = (home, agent) if to_agent else (agent, home)
    return replace(
        negotiated,
        source=source,
        destination=destination,
        mode=Mode.TRANSPORT,
        reqid=peering.reqids.mirror,
        selector=Selector(host_network(source), host_network(destination), protocol),
        encapsulation=None,
        # It ends when IKE ends its origin, and our policies, which choose it, have no marks.
        lifetime=UNLIMITED,
        mark=None,
        output_mark=None,
    )


@lru_cache(maxsize=4096)
def signalling_policies(
    peering: Peering, reqid: int | None, extensions: tuple[ExtensionState, ...]
) -> tuple[Policy, ...]:
    """RFC 5555 §5.2.1's SPD entries: BU one way, BA the other, ESP transport mode.

    ``reqid``: of the SAs to use; None: there are none, so block. Binding Refresh Request and
    Binding Error come from the home agent under the same SA.
    """
    if peering.role is Role.MOBILE_NODE:
        sent = [MobilityHeaderType.BINDING_UPDATE]
    else:
        sent = [
            MobilityHeaderType.BINDING_ACKNOWLEDGEMENT,
            MobilityHeaderType.BINDING_REFRESH_REQUEST,
            MobilityHeaderType.BINDING_ERROR,
        ]
    here, there = _ends(peering)
    outward = [
        Selector(host_network(here), host_network(there), IPPROTO_MH, message) for message in sent
    ]
    # Inbound the kernel looks for the type behind the Mobility Header instead of in it and sees
    # zero (docs/kernel-notes.md), so there the type is left to the engine.
    inward = Selector(host_network(there), host_network(here), IPPROTO_MH)
    return tuple(_transport_policies(peering, outward, [inward], reqid, extensions))


def prefix_discovery_policies(
    peering: Peering, reqid: int | None, extensions: tuple[ExtensionState, ...]
) -> list[Policy]:
    """RFC 4877 §6.3's SPD entries: mobile prefix solicitation and advertisement."""
    sent, received = MOBILE_PREFIX_SOLICITATION, MOBILE_PREFIX_ADVERTISEMENT
    if peering.role is Role.HOME_AGENT:
        sent, received = received, sent
    here, there = (host_network(address) for address in _ends(peering))
    outward = Selector(here, there, IPPROTO_ICMPV6, icmpv6_type=sent)
    inward = [Selector(there, here, IPPROTO_ICMPV6, icmpv6_type=received)]
    if reqid is not None and peering.native_signalling:
        # Behind an extension header the kernel takes that header's first octet, which says
        # "ICMPv6 follows", for the type (docs/kernel-notes.md). No message has that type.
        inward.append(Selector(there, here, IPPROTO_ICMPV6, icmpv6_type=IPPROTO_ICMPV6))
    return _transport_policies(peering, [outward], inward, reqid, extensions)


def _ends(peering: Peering) -> tuple[IPv6Address, IPv6Address]:
    """(this end's, the other's) address inside."""
    home, agent = peering.home_address, peering.home_agent
    return (home, agent) if peering.role is Role.MOBILE_NODE else (agent, home)


def _transport_policies(
    peering: Peering,
    outward: list[Selector],
    inward: list[Selector],
    reqid: int | None,
    extensions: tuple[ExtensionState, ...],
) -> list[Policy]:
    here, there = _ends(peering)
    rows = [(Direction.OUT, here, there, selector) for selector in outward]
    rows += [(Direction.IN, there, here, selector) for selector in inward]
    policies = []
    for direction, source, destination, selector in rows:
        template = None
        if reqid is not None:
            extension = extension_template(
                extensions, source, destination, sent=direction is Direction.OUT
            )
            template = Template(Mode.TRANSPORT, source, destination, reqid, extension)
        action = Action.BLOCK if template is None else Action.PROTECT
        policies.append(Policy(direction, selector, PRIORITY_SIGNALLING, action, template))
    return policies
