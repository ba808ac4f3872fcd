"""What the tables of a lab file are made of."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
)

# A link's name is its interfaces' name in every node: IFNAMSIZ leaves 15 characters.
LinkName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,14}$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
# RFC 4787 §5.
Filtering = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface


def _interface(value: object) -> Interface:
    if not isinstance(value, str) or "/" not in value:
        raise ValueError("should be an address with its prefix length, such as '192.0.2.1/24'")
    try:
        return ip_interface(value)
    except ValueError as error:
        raise ValueError(f"should be an address with its prefix length: {error}") from None


def _address(version: Literal[4, 6]) -> Any:
    def parse(value: object) -> Address:
        try:
            address = ip_address(value) if isinstance(value, str) else None
        except ValueError:
            address = None
        if address is None or address.version != version:
            raise ValueError(f"should be an IPv{version} address without a prefix length")
        return address

    return parse


def as_tuple(value: object) -> object:
    """TOML's arrays are lists; our models are immutable."""
    return tuple(value) if isinstance(value, list) else value


InterfaceText = Annotated[Interface, PlainValidator(_interface)]
Addresses = Annotated[tuple[InterfaceText, ...], BeforeValidator(as_tuple)]
IPv4Text = Annotated[IPv4Address, PlainValidator(_address(4))]
IPv6Text = Annotated[IPv6Address, PlainValidator(_address(6))]


class Table(BaseModel):
    """Base of all tables: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
