"""What a dissector gives: layers with fields, and how mobility messages become fields.

Field names are those of the RFCs, in lower case with underscores. Values are what JSON has;
addresses are text, octets hexadecimal digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from dsmip_ipsec.wire import icmp6, options
from dsmip_ipsec.wire.messages import (
    LIFETIME_UNIT,
    BindingAck,
    BindingUpdate,
    Message,
    UnknownMessage,
)

Fields = dict[str, Any]


@dataclass(slots=True)
class Layer:
    """``error`` is "" where nothing is wrong. ``note`` says why nothing follows, if that is no
    error: no key, a fragment, a keepalive."""

    name: str
    fields: Fields = field(default_factory=dict)
    error: str = ""
    note: str = ""

    def as_json(self) -> Fields:
        result: Fields = {"layer": self.name, **self.fields}
        if self.note:
            result["note"] = self.note
        if self.error:
            result["error"] = self.error
        return result


# Where a dataclass says it shorter than the RFC does.
_RENAMED: Final = {
    "link_local": "link_local_address_compatibility",
    "key_mobility": "key_management_mobility_capability",
    "proxy": "proxy_registration",
    "force_udp": "force_udp_encapsulation",
    "prefix_len": "prefix_length",
    "mh_type": "type",
}

_MESSAGES: Final = {
    0: "Binding Refresh Request",
    1: "Home Test Init",
    2: "Care-of Test Init",
    3: "Home Test",
    4: "Care-of Test",
    5: "Binding Update",
    6: "Binding Acknowledgement",
    7: "Binding Error",
}

_OPTIONS: Final[Mapping[type, str]] = {
    options.BindingRefreshAdvice: "Binding Refresh Advice",
    options.AlternateCareOfAddress: "Alternate Care-of Address",
    options.NonceIndices: "Nonce Indices",
    options.BindingAuthorizationData: "Binding Authorization Data",
    options.MobileNetworkPrefix: "Mobile Network Prefix",
    options.IPv4HomeAddress: "IPv4 Home Address",
    options.IPv4CareOfAddress: "IPv4 Care-of Address",
    options.IPv4AddressAck: "IPv4 Address Acknowledgement",
    options.NatDetection: "NAT Detection",
    options.UnknownOption: "unknown",
}


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, IntEnum):
        return int(value)
    return value


def fields_of(value: Any, *leave_out: str) -> Fields:
    """The fields of a dataclass by the RFC's names. Of an enum there are number and name."""
    result: Fields = {}
    for item in dataclasses.fields(value):
        if item.name in leave_out:
            continue
        content = getattr(value, item.name)
        name = _RENAMED.get(item.name, item.name)
        result[name] = plain(content)
        if isinstance(content, IntEnum):
            result[f"{name}_name"] = content.name.lower()
    return result


def mh_type_name(mh_type: int) -> str:
    return _MESSAGES.get(mh_type, f"unknown ({mh_type})")


def message_fields(message: Message) -> Fields:
    """What a mobility message says behind its checksum."""
    if isinstance(message, UnknownMessage):
        return {"message_data": message.data.hex()}
    result = fields_of(message, "options")
    if isinstance(message, BindingUpdate | BindingAck):
        result["lifetime_seconds"] = message.lifetime * LIFETIME_UNIT
    result["mobility_options"] = [option_fields(option) for option in message.options]
    return result


def option_fields(option: options.MobilityOption) -> Fields:
    """A mobility option, with the name and number that RFC 6275, 3963 and 5555 give it."""
    result: Fields = {"option": _OPTIONS.get(type(option), type(option).__name__)}
    result["option_type"] = option.type
    return {**result, **fields_of(option, "type", "position")}


def icmp6_fields(message: icmp6.IcmpMessage) -> Fields:
    """A discovery message or Parameter Problem behind its checksum."""
    result: Fields = {}
    for item in dataclasses.fields(message):
        content = getattr(message, item.name)
        if isinstance(content, tuple):
            result[item.name] = [
                fields_of(part) if dataclasses.is_dataclass(part) else plain(part)
                for part in content
            ]
        else:
            result[item.name] = plain(content)
    return result
