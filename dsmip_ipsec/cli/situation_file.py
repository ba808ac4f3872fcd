"""The file format of ``dsmip-ipsec plan``."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.ipsec.situation import Situation
from dsmip_ipsec.mobility.types import Binding, OuterAddress

REQIDS = Reqids(signalling=55501, mirror=55502, data=55503)


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

    care_of_address: IPv4Address
    outer: Outer | None = None
    nat_detected: bool = False
    force_udp: bool = False
    esp: Outer | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        outer = self.outer
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
    binding: BindingTable | None = None

    def situation(self) -> Situation:
        """What the file says, as the planner takes it."""
        peering = Peering(
            role=self.role,
            home_address=self.home_address,
            ipv4_home_address=self.ipv4_home_address,
            home_agent=self.home_agent,
            home_agent_ipv4=self.home_agent_ipv4,
            reqids=REQIDS,
            protect_data=self.protect_data,
            moves_associations=not self.mobike,
            home_agent_behind_nat=self.home_agent_behind_nat,
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
            outer=table.outer or OuterAddress(table.care_of_address, 4191),
            nat_detected=table.nat_detected,
            udp_encapsulation=table.nat_detected or table.force_udp,
            force_udp=table.force_udp,
        )
        return Situation(peering, binding, table.esp)
