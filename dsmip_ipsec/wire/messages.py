"""The messages of the Mobility Header (RFC 6275 §6.1, RFC 3963 §4, RFC 5555 §3).

Message data is kept as numbers: lifetimes in the protocol's units of 4 seconds, statuses as
the enums here where the value is known and as plain integers where it isn't.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv6Address
from typing import ClassVar, Final, TypeAlias

from dsmip_ipsec.wire.ip import IPPROTO_NONE
from dsmip_ipsec.wire.options import MobilityOption

LIFETIME_UNIT: Final = 4
"""Seconds in one unit of a lifetime or refresh interval (RFC 6275 §6.1.7)."""


class MHType(IntEnum):
    """MH Type (RFC 6275 §6.1)."""

    BINDING_REFRESH_REQUEST = 0
    HOME_TEST_INIT = 1
    CARE_OF_TEST_INIT = 2
    HOME_TEST = 3
    CARE_OF_TEST = 4
    BINDING_UPDATE = 5
    BINDING_ACK = 6
    BINDING_ERROR = 7


class BindingStatus(IntEnum):
    """Status of a Binding Acknowledgement. Below 128 the binding was accepted."""

    # RFC 6275 §6.1.8
    ACCEPTED = 0
    ACCEPTED_PREFIX_DISCOVERY_NECESSARY = 1
    REASON_UNSPECIFIED = 128
    ADMINISTRATIVELY_PROHIBITED = 129
    INSUFFICIENT_RESOURCES = 130
    HOME_REGISTRATION_NOT_SUPPORTED = 131
    NOT_HOME_SUBNET = 132
    NOT_HOME_AGENT_FOR_THIS_MOBILE_NODE = 133
    DUPLICATE_ADDRESS_DETECTION_FAILED = 134
    SEQUENCE_NUMBER_OUT_OF_WINDOW = 135
    EXPIRED_HOME_NONCE_INDEX = 136
    EXPIRED_CARE_OF_NONCE_INDEX = 137
    EXPIRED_NONCES = 138
    REGISTRATION_TYPE_CHANGE_DISALLOWED = 139
    # RFC 3963 §4.2
    MOBILE_ROUTER_OPERATION_NOT_PERMITTED = 140
    INVALID_PREFIX = 141
    NOT_AUTHORIZED_FOR_PREFIX = 142
    FORWARDING_SETUP_FAILED = 143
    # RFC 5555 §4.4.2 and §4.5
    CANNOT_FORCE_UDP_ENCAPSULATION = 144
    # RFC 6275 §6.1.8
    INVALID_CARE_OF_ADDRESS = 174


class BindingErrorStatus(IntEnum):
    """Status of a Binding Error (RFC 6275 §6.1.9)."""

    UNKNOWN_BINDING = 1
    UNRECOGNIZED_MH_TYPE = 2


@dataclass(frozen=True, slots=True)
class BindingRefreshRequest:
    """RFC 6275 §6.1.2."""

    mh_type: ClassVar[int] = MHType.BINDING_REFRESH_REQUEST
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class HomeTestInit:
    """RFC 6275 §6.1.3. ``cookie``: 8 octets."""

    mh_type: ClassVar[int] = MHType.HOME_TEST_INIT
    cookie: bytes
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class CareOfTestInit:
    """RFC 6275 §6.1.4. ``cookie``: 8 octets."""

    mh_type: ClassVar[int] = MHType.CARE_OF_TEST_INIT
    cookie: bytes
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class HomeTest:
    """RFC 6275 §6.1.5. ``keygen_token`` (8 octets) makes keys: it is kept out of the repr."""

    mh_type: ClassVar[int] = MHType.HOME_TEST
    nonce_index: int
    cookie: bytes
    keygen_token: bytes = field(repr=False)
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class CareOfTest:
    """RFC 6275 §6.1.6. ``keygen_token`` (8 octets) makes keys: it is kept out of the repr."""

    mh_type: ClassVar[int] = MHType.CARE_OF_TEST
    nonce_index: int
    cookie: bytes
    keygen_token: bytes = field(repr=False)
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class BindingUpdate:
    """RFC 6275 §6.1.7; M: RFC 5380 §4, R: RFC 3963 §4.1, P: RFC 5213 §8.1, F: RFC 5555 §3.1.3.
    ``lifetime`` in units of 4 seconds, 0 to remove the binding."""

    mh_type: ClassVar[int] = MHType.BINDING_UPDATE
    sequence: int
    lifetime: int
    acknowledge: bool = False
    home_registration: bool = False
    link_local: bool = False
    key_mobility: bool = False
    map_registration: bool = False
    mobile_router: bool = False
    proxy: bool = False
    force_udp: bool = False
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class BindingAck:
    """RFC 6275 §6.1.8; R: RFC 3963 §4.2, P: RFC 5213 §8.2. ``lifetime`` in units of 4 seconds,
    undefined if the update was rejected."""

    mh_type: ClassVar[int] = MHType.BINDING_ACK
    status: int
    sequence: int
    lifetime: int
    key_mobility: bool = False
    mobile_router: bool = False
    proxy: bool = False
    options: tuple[MobilityOption, ...] = ()

    @property
    def accepted(self) -> bool:
        return self.status < 128


@dataclass(frozen=True, slots=True)
class BindingError:
    """RFC 6275 §6.1.9."""

    mh_type: ClassVar[int] = MHType.BINDING_ERROR
    status: int
    home_address: IPv6Address
    options: tuple[MobilityOption, ...] = ()


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A type that we don't know, kept as it came: ``data`` is all behind the checksum. It must
    be discarded and answered by a Binding Error, see :func:`refusal`."""

    mh_type: int
    data: bytes
    payload_protocol: int = IPPROTO_NONE


Message: TypeAlias = (
    BindingRefreshRequest
    | HomeTestInit
    | CareOfTestInit
    | HomeTest
    | CareOfTest
    | BindingUpdate
    | BindingAck
    | BindingError
    | UnknownMessage
)
