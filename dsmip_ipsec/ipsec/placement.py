"""Where a data SA belongs while a binding stands: outer addresses and UDP encapsulation.

RFC 5555 §5.1 distinguishes three care-of addresses of one mobile node: DSMIPv6's (V4ADDR of the
binding update), IKE's, and that of ESP. Behind a NAT they differ in the port, and the home agent
knows ESP's only once it has heard ESP from there; until then it takes V4ADDR and port 4500,
which "are likely to be wrong".
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from dsmip_ipsec.ipsec.model import Address, Encapsulation, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering, Role, outbound
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import IKE_NATT_PORT


def place(
    peering: Peering,
    binding: Binding,
    association: SecurityAssociation,
    esp_care_of: OuterAddress | None = None,
) -> SecurityAssociation:
    """``association`` at the place that ``binding`` gives it; all else stays, keys above all.

    ``esp_care_of`` counts at the home agent only, and only while it has V4ADDR's address: one
    heard before the last handover is another network's.
    """
    care_of, port = _mobile_end(peering, binding, esp_care_of)
    agent: Address = peering.home_agent_ipv4
    if care_of.version == 6:
        agent = peering.home_agent
    sending = outbound(peering, association)
    to_agent = sending == (peering.role is Role.MOBILE_NODE)
    encapsulation = None
    if _needs_udp(peering, binding):
        ports = (port, IKE_NATT_PORT) if to_agent else (IKE_NATT_PORT, port)
        encapsulation = Encapsulation(*ports)
    source, destination = (care_of, agent) if to_agent else (agent, care_of)
    return association.moved(source, destination, encapsulation)


def _mobile_end(
    peering: Peering, binding: Binding, esp_care_of: OuterAddress | None
) -> tuple[Address, int]:
    """The mobile node's outer address and UDP port as this end has to write them."""
    if peering.role is Role.MOBILE_NODE or binding.outer is None:
        return binding.care_of_address, IKE_NATT_PORT
    if esp_care_of is not None and esp_care_of.address == binding.outer.address:
        return esp_care_of.address, esp_care_of.port
    return binding.outer.address, IKE_NATT_PORT


def _needs_udp(peering: Peering, binding: Binding) -> bool:
    """RFC 5555 §5.1: enable or disable UDP encapsulation of ESP for the sake of a NAT.

    Not for an IPv6 care-of address (§4.1): there is no NAT to traverse.
    """
    if not isinstance(binding.care_of_address, IPv4Address):
        return False
    return binding.nat_detected or binding.force_udp or peering.home_agent_behind_nat


def data_is_at(
    peering: Peering,
    care_of_address: Address,
    associations: Iterable[SecurityAssociation],
) -> bool:
    """Whether the mobile node has data SAs of both directions, all of them from and to its
    ``care_of_address``."""
    data = [sa for sa in associations if sa.reqid == peering.reqids.data]
    sending = [sa for sa in data if outbound(peering, sa)]
    return (
        len(data) > len(sending) > 0
        and all(sa.source == care_of_address for sa in sending)
        and all(sa.destination == care_of_address for sa in data if sa not in sending)
    )
