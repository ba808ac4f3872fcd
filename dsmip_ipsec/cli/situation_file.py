"""The file format of ``dsmip-ipsec plan``."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.ipsec.situation import Situation
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.wire.ip import DSMIP_PORT

REQIDS = Reqids(signalling=55501, mirror=55502, data=55503)
PREFIX_DISCOVERY, RETURN_ROUTABILITY = 55504, 55505


def _outer(value: object) -> object:
    """``192.0.2.2:40191`` as an OuterAddress."""
    if not isinstance(value, str):
        raise ValueError("should be ADDRESS:PORT")
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("should be ADDRESS:PORT, such as 192.0.2.2:40191")
    return OuterAddress(IPv4Address(host), int(port))


Outer = Annotated[OuterAddress, BeforeValidator(_outer)]


class BindingTable(BaseModel):
    """[binding]. ``force_udp``: the F flag was accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    care_of_address: IPv4Address | IPv6Address
    outer: Outer | None = None
    nat_detected: bool = False
    force_udp: bool = False
    esp: Outer | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outer = self.outer
        if self.care_of_address.version == 6:
            if outer is not None or self.esp is not None or self.nat_detected or self.force_udp:
                raise ValueError(
                    "an IPv6 care-of address has neither outer, esp, nat_detected nor force_udp: "
                    "nothing there travels in UDP"
                )
            return self
        if outer is not None and not self.nat_detected and outer.address != self.care_of_address:
            raise ValueError(
                "outer differs from care_of_address, which is what a NAT does: "
                "say nat_detected = true"
            )
        return self


class SituationFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Role
    mobike: bool = True
    protect_data: bool = True
    home_agent_behind_nat: bool = False
    home_address: IPv6Address
    ipv4_home_address: IPv4Address | None = None
    home_agent: IPv6Address
    home_agent_ipv4: IPv4Address
    native_signalling: bool = True
    prefix_discovery: bool = False
    return_routability: bool = False
    mobile_network_prefixes: tuple[IPv6Network, ...] = ()
    binding: BindingTable | None = None

    def situation(self) -> Situation:
        """What the file says, as the planner takes it."""
        peering = Peering(
            role=self.role,
            home_address=self.home_address,
            ipv4_home_address=self.ipv4_home_address,
            home_agent=self.home_agent,
            home_agent_ipv4=self.home_agent_ipv4,
            reqids=replace(
                REQIDS,
                prefix_discovery=PREFIX_DISCOVERY if self.prefix_discovery else 0,
                return_routability=RETURN_ROUTABILITY if self.return_routability else 0,
            ),
            protect_data=self.protect_data,
            moves_associations=not self.mobike,
            home_agent_behind_nat=self.home_agent_behind_nat,
            native_signalling=self.native_signalling,
            mobile_network_prefixes=self.mobile_network_prefixes,
        )
        table = self.binding
        if table is None:
            return Situation(peering)
        home = self.ipv4_home_address
        binding = Binding(
            home_address=self.home_address,
            home_agent=self.home_agent,
            care_of_address=table.care_of_address,
            # A plan depends on neither of these.
            sequence=0,
            lifetime=0,
            registered_at=0.0,
            expires_at=0.0,
            home_agent_ipv4=self.home_agent_ipv4,
            ipv4_home_address=IPv4Interface(home) if home is not None else None,
            mobile_network_prefixes=self.mobile_network_prefixes,
            mobile_router=bool(self.mobile_network_prefixes),
            outer=self._outer(table),
            nat_detected=table.nat_detected,
            udp_encapsulation=table.nat_detected or table.force_udp,
            force_udp=table.force_udp,
        )
        return Situation(peering, binding, table.esp)

    def _outer(self, table: BindingTable) -> OuterAddress | None:
        """Where this end sends UDP to: the mobile node to the home agent, which sends to V4ADDR."""
        if table.care_of_address.version == 6:
            return None
        if self.role is Role.MOBILE_NODE:
            return OuterAddress(self.home_agent_ipv4, DSMIP_PORT)
        return table.outer or OuterAddress(table.care_of_address, DSMIP_PORT)
