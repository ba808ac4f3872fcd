"""Mobility options (RFC 6275 §6.2, RFC 3963 §4.3, RFC 5555 §3).

Each option is a frozen dataclass with its number (``type``) and its alignment requirement
``align = (n, k)``: it starts at an octet x*n + k from the start of the Mobility Header.
Reserved bits are written as zero and ignored on receipt.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import ClassVar, Final, TypeVar

from dsmip_ipsec.wire.errors import EncodeError

# The numbers, as the IANA registry "Mobility Options" has them.
PAD1: Final = 0
PADN: Final = 1
BINDING_REFRESH_ADVICE: Final = 2
ALTERNATE_CARE_OF_ADDRESS: Final = 3
NONCE_INDICES: Final = 4
BINDING_AUTHORIZATION_DATA: Final = 5
MOBILE_NETWORK_PREFIX: Final = 6
IPV4_HOME_ADDRESS: Final = 29
IPV4_ADDRESS_ACK: Final = 30
NAT_DETECTION: Final = 31
IPV4_CARE_OF_ADDRESS: Final = 32

REFRESH_NOT_NEEDED: Final = 0xFFFFFFFF
"""Refresh time of all ones: no NAT was detected, no keepalives (RFC 5555 §3.2.2)."""


class IPv4AckStatus(IntEnum):
    """Status of the IPv4 address acknowledgement option (RFC 5555 §3.2.1).
    Up to 127 means success."""

    SUCCESS = 0
    REASON_UNSPECIFIED = 128
    ADMINISTRATIVELY_PROHIBITED = 129
    INCORRECT_IPV4_HOME_ADDRESS = 130
    INVALID_IPV4_ADDRESS = 131
    DYNAMIC_ASSIGNMENT_NOT_AVAILABLE = 132
    PREFIX_ALLOCATION_UNAUTHORIZED = 133


class AckOptionReading(Enum):
    """Which number the IPv4 address acknowledgement option has.

    RFC 5555 §8 gives 29 to it and to the IPv4 home address option alike; the IANA registry has
    30 for the acknowledgement.
    """

    EITHER = "either"
    """Send 30; in a Binding Acknowledgement accept 29 too, unless a 30 stands beside it. (The
    IPv4 home address option has no business in a Binding Acknowledgement. Should a peer echo
    one there as 29, its /32 reads as status 128, "not accepted", and a shorter prefix is a
    :class:`PrefixLengthError`: never a success.)"""
    REGISTRY = "registry"
    """30 and only 30."""
    TEXT = "text"
    """The letter of RFC 5555 §8: 29 is sent, and means the acknowledgement in a Binding
    Acknowledgement and the home address elsewhere; 30 is an unknown option."""


_HEAD = struct.Struct("!BB")
_ONE_SHORT = struct.Struct("!BBH")
_TWO_SHORTS = struct.Struct("!BBHH")
_OCTETS_AND_ADDRESS = struct.Struct("!BBBBI")
_SHORT_AND_WORD = struct.Struct("!BBHI")


def octets6(address: IPv6Address) -> bytes:
    """The 16 octets of an IPv6 address. Raises :class:`EncodeError` for an IPv4 address, which
    a struct's ``16s`` would fill up with zeros in silence."""
    packed = address.packed
    if len(packed) != 16:
        raise EncodeError(f"{address} is not an IPv6 address")
    return packed


@dataclass(frozen=True, slots=True)
class MobilityOption(ABC):
    """Base of all options."""

    type: ClassVar[int]
    align: ClassVar[tuple[int, int]] = (1, 0)

    @abstractmethod
    def encode(self) -> bytes:
        """Type, length and data, without padding. Raises :class:`EncodeError` or
        ``struct.error`` for what doesn't fit; :func:`encode_options` makes one of both."""


@dataclass(frozen=True, slots=True)
class Pad1(MobilityOption):
    """One octet of padding. Padding is put in by the encoder and left out by the decoder: this
    is for whoever wants his own."""

    type: ClassVar[int] = PAD1

    def encode(self) -> bytes:
        return b"\x00"


@dataclass(frozen=True, slots=True)
class PadN(MobilityOption):
    """``length`` octets of padding in all, 2 to 257."""

    type: ClassVar[int] = PADN
    length: int

    def encode(self) -> bytes:
        return _HEAD.pack(PADN, self.length - 2) + bytes(self.length - 2)


@dataclass(frozen=True, slots=True)
class BindingRefreshAdvice(MobilityOption):
    """RFC 6275 §6.2.4. ``interval`` in units of 4 seconds."""

    type: ClassVar[int] = BINDING_REFRESH_ADVICE
    align: ClassVar[tuple[int, int]] = (2, 0)
    interval: int

    def encode(self) -> bytes:
        return _ONE_SHORT.pack(BINDING_REFRESH_ADVICE, 2, self.interval)


@dataclass(frozen=True, slots=True)
class AlternateCareOfAddress(MobilityOption):
    """RFC 6275 §6.2.5."""

    type: ClassVar[int] = ALTERNATE_CARE_OF_ADDRESS
    align: ClassVar[tuple[int, int]] = (8, 6)
    address: IPv6Address

    def encode(self) -> bytes:
        return b"\x03\x10" + octets6(self.address)


@dataclass(frozen=True, slots=True)
class NonceIndices(MobilityOption):
    """RFC 6275 §6.2.6."""

    type: ClassVar[int] = NONCE_INDICES
    align: ClassVar[tuple[int, int]] = (2, 0)
    home_nonce_index: int
    care_of_nonce_index: int

    def encode(self) -> bytes:
        return _TWO_SHORTS.pack(NONCE_INDICES, 4, self.home_nonce_index, self.care_of_nonce_index)


@dataclass(frozen=True, slots=True)
class BindingAuthorizationData(MobilityOption):
    """RFC 6275 §6.2.7: the last option, padded before and never behind (8n + 2 with the usual
    12 octets of authenticator)."""

    type: ClassVar[int] = BINDING_AUTHORIZATION_DATA
    authenticator: bytes

    def encode(self) -> bytes:
        return _HEAD.pack(BINDING_AUTHORIZATION_DATA, len(self.authenticator)) + self.authenticator


@dataclass(frozen=True, slots=True)
class MobileNetworkPrefix(MobilityOption):
    """RFC 3963 §4.3. ``prefix`` keeps whatever host bits it came with."""

    type: ClassVar[int] = MOBILE_NETWORK_PREFIX
    align: ClassVar[tuple[int, int]] = (8, 4)
    prefix_len: int
    prefix: IPv6Address

    def encode(self) -> bytes:
        if not 0 <= self.prefix_len <= 128:
            raise EncodeError(f"an IPv6 prefix length of {self.prefix_len}")
        return b"\x06\x12\x00" + self.prefix_len.to_bytes(1, "big") + octets6(self.prefix)


@dataclass(frozen=True, slots=True)
class IPv4HomeAddress(MobilityOption):
    """RFC 5555 §3.1.1. 0.0.0.0 asks for an address, with ``prefix_request`` (P) for a prefix.
    ``prefix_len`` is 1 to 32; zero is an error by the RFC."""

    type: ClassVar[int] = IPV4_HOME_ADDRESS
    align: ClassVar[tuple[int, int]] = (4, 0)
    prefix_len: int
    prefix_request: bool
    address: IPv4Address

    def encode(self) -> bytes:
        if not 1 <= self.prefix_len <= 32:
            raise EncodeError(f"an IPv4 prefix length of {self.prefix_len}")
        bits = self.prefix_len << 2 | (2 if self.prefix_request else 0)
        return _OCTETS_AND_ADDRESS.pack(IPV4_HOME_ADDRESS, 6, bits, 0, int(self.address))


@dataclass(frozen=True, slots=True)
class IPv4CareOfAddress(MobilityOption):
    """RFC 5555 §3.1.2."""

    type: ClassVar[int] = IPV4_CARE_OF_ADDRESS
    align: ClassVar[tuple[int, int]] = (4, 0)
    address: IPv4Address

    def encode(self) -> bytes:
        return _SHORT_AND_WORD.pack(IPV4_CARE_OF_ADDRESS, 6, 0, int(self.address))


@dataclass(frozen=True, slots=True)
class IPv4AddressAck(MobilityOption):
    """RFC 5555 §3.2.1. ``status`` is an :class:`IPv4AckStatus` where it is a known one.
    ``prefix_len`` is 1 to 32 in case of success, and zero in case of failure."""

    type: ClassVar[int] = IPV4_ADDRESS_ACK
    align: ClassVar[tuple[int, int]] = (4, 0)
    status: int
    prefix_len: int
    address: IPv4Address

    @property
    def accepted(self) -> bool:
        return self.status < 128

    def encode(self) -> bytes:
        low, high = (1, 32) if self.status < 128 else (0, 0)
        if not low <= self.prefix_len <= high:
            raise EncodeError(
                f"prefix length {self.prefix_len} with IPv4 acknowledgement status {self.status}",
                hint="1 to 32 in case of success, 0 in case of failure (RFC 5555 §3.2.1)",
            )
        return _OCTETS_AND_ADDRESS.pack(
            IPV4_ADDRESS_ACK, 6, self.status, self.prefix_len << 2, int(self.address)
        )


@dataclass(frozen=True, slots=True)
class NatDetection(MobilityOption):
    """RFC 5555 §3.2.2. ``refresh_time`` in seconds: 0 means nothing, and
    :data:`REFRESH_NOT_NEEDED` that there is no NAT."""

    type: ClassVar[int] = NAT_DETECTION
    align: ClassVar[tuple[int, int]] = (4, 0)
    force_udp: bool
    refresh_time: int

    def encode(self) -> bytes:
        return _SHORT_AND_WORD.pack(
            NAT_DETECTION, 6, 0x8000 if self.force_udp else 0, self.refresh_time
        )


@dataclass(frozen=True, slots=True)
class UnknownOption(MobilityOption):
    """An option whose number we don't know, kept as it came.

    ``position`` is where it stood, modulo 8: its alignment is unknown, so it is put back at the
    same place. None: anywhere. It doesn't count in comparisons.
    """

    type: int  # type: ignore[misc]  # here the number is data
    data: bytes
    position: int | None = field(default=None, compare=False)

    def encode(self) -> bytes:
        if self.type == PAD1:
            raise EncodeError("option 0 is Pad1, which has no length and no data")
        return _HEAD.pack(self.type, len(self.data)) + self.data


_Option = TypeVar("_Option", bound=MobilityOption)


def find(options: Iterable[MobilityOption], kind: type[_Option]) -> _Option | None:
    """The first option of a class, or None."""
    for option in options:
        if isinstance(option, kind):
            return option
    return None


def find_all(options: Iterable[MobilityOption], kind: type[_Option]) -> tuple[_Option, ...]:
    """All options of a class, in order."""
    return tuple(option for option in options if isinstance(option, kind))
