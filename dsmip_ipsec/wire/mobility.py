"""The Mobility Header: its messages to octets and back (RFC 6275 §6.1, §9.2).

The checksum covers a pseudo-header with the addresses as the packet has them when it reaches
the upper layer of its final destination (RFC 6275 §6.1.1, RFC 8200 §8.1): a mobile node's *home
address*, from the Home Address option or the type 2 routing header, takes the place of its
care-of address. ``src`` and ``dst`` of :func:`encode` and :func:`decode` are those addresses. A
Binding Update in UDP (RFC 5555 §4.2) has the home address in its inner IPv6 header anyway.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Final, TypeAlias

from dsmip_ipsec.wire.checksum import complement, is_valid, pseudo_header6
from dsmip_ipsec.wire.errors import (
    BadHeaderLength,
    BadPayloadProtocol,
    ChecksumError,
    DecodeError,
    EncodeError,
    ParameterProblem,
    TruncatedError,
)
from dsmip_ipsec.wire.ip import IPPROTO_MH, IPPROTO_NONE
from dsmip_ipsec.wire.messages import (
    LIFETIME_UNIT,
    BindingAck,
    BindingError,
    BindingErrorStatus,
    BindingRefreshRequest,
    BindingStatus,
    BindingUpdate,
    CareOfTest,
    CareOfTestInit,
    HomeTest,
    HomeTestInit,
    Message,
    MHType,
    UnknownMessage,
)
from dsmip_ipsec.wire.option_codec import decode_options, encode_options
from dsmip_ipsec.wire.options import AckOptionReading, MobilityOption, octets6

__all__ = [
    "LIFETIME_UNIT",
    "MAX_LENGTH",
    "MINIMUM_LENGTH",
    "AckOptionReading",
    "BindingAck",
    "BindingError",
    "BindingErrorStatus",
    "BindingRefreshRequest",
    "BindingStatus",
    "BindingUpdate",
    "CareOfTest",
    "CareOfTestInit",
    "HomeTest",
    "HomeTestInit",
    "MHType",
    "Message",
    "UnknownMessage",
    "decode",
    "encode",
    "refusal",
]

MAX_LENGTH: Final = 2048
"""Octets in the longest Mobility Header that its Header Len can say."""

# Fixed parts, from Payload Proto on. Everything in front of the options is in one struct.
_FIXED_REFRESH = struct.Struct("!BBBBHH")
_FIXED_INIT = struct.Struct("!BBBBHH8s")
_FIXED_TEST = struct.Struct("!BBBBHH8s8s")
_FIXED_UPDATE = struct.Struct("!BBBBHHHH")
_FIXED_ACK = struct.Struct("!BBBBHBBHH")
_FIXED_ERROR = struct.Struct("!BBBBHBB16s")
_UPDATE = struct.Struct("!HHH")
_ACK = struct.Struct("!BBHH")

MINIMUM_LENGTH: Final[dict[int, int]] = {
    MHType.BINDING_REFRESH_REQUEST: 8,
    MHType.HOME_TEST_INIT: 16,
    MHType.CARE_OF_TEST_INIT: 16,
    MHType.HOME_TEST: 24,
    MHType.CARE_OF_TEST: 24,
    MHType.BINDING_UPDATE: 16,
    MHType.BINDING_ACK: 16,
    MHType.BINDING_ERROR: 24,
}
"""Octets of each message without options, with the padding that it needs."""


def encode(
    message: Message,
    src: IPv6Address,
    dst: IPv6Address,
    *,
    ack_option: AckOptionReading = AckOptionReading.EITHER,
) -> bytes:
    """The whole Mobility Header: padded, aligned, with checksum. For ``src`` and ``dst`` see
    the module. Raises :class:`EncodeError`."""
    if isinstance(message, UnknownMessage):
        raw = _encode_unknown(message)
    else:
        try:
            options = encode_options(
                message.options, _FIXED_LENGTH[message.mh_type], ack_option=ack_option
            )
            raw = _ENCODERS[type(message)](message, options)
        except struct.error as error:
            raise EncodeError(f"{type(message).__name__}: {error}") from error
    length = len(raw)
    total = pseudo_header6(src, dst, length, IPPROTO_MH) + int.from_bytes(raw, "big")
    return raw[:4] + complement(total).to_bytes(2, "big") + raw[6:]


def _header_length(fixed: int, options: bytes) -> int:
    length = fixed + len(options)
    if length > MAX_LENGTH:
        raise EncodeError(
            f"a Mobility Header of {length} octets, the longest has {MAX_LENGTH}",
            hint="send fewer options in one message",
        )
    return (length >> 3) - 1


def _encode_unknown(message: UnknownMessage) -> bytes:
    length = len(message.data) + 6
    if length % 8 or length > MAX_LENGTH:
        raise EncodeError(
            f"a Mobility Header of {length} octets: not a multiple of 8 up to {MAX_LENGTH}"
        )
    try:
        head = bytes((message.payload_protocol, (length >> 3) - 1, message.mh_type, 0, 0, 0))
    except ValueError as error:
        raise EncodeError(f"UnknownMessage: {error}") from error
    return head + message.data


def _encode_refresh_request(message: BindingRefreshRequest, options: bytes) -> bytes:
    return (
        _FIXED_REFRESH.pack(IPPROTO_NONE, _header_length(8, options), message.mh_type, 0, 0, 0)
        + options
    )


def _encode_init(message: HomeTestInit | CareOfTestInit, options: bytes) -> bytes:
    _eight(message.cookie, "cookie")
    return (
        _FIXED_INIT.pack(
            IPPROTO_NONE, _header_length(16, options), message.mh_type, 0, 0, 0, message.cookie
        )
        + options
    )


def _encode_test(message: HomeTest | CareOfTest, options: bytes) -> bytes:
    _eight(message.cookie, "cookie")
    _eight(message.keygen_token, "keygen token")
    return (
        _FIXED_TEST.pack(
            IPPROTO_NONE,
            _header_length(24, options),
            message.mh_type,
            0,
            0,
            message.nonce_index,
            message.cookie,
            message.keygen_token,
        )
        + options
    )


def _eight(value: bytes, name: str) -> None:
    # The value may be a secret: only its length is told.
    if len(value) != 8:
        raise EncodeError(f"a {name} has 8 octets, not {len(value)}")


def _encode_update(message: BindingUpdate, options: bytes) -> bytes:
    return (
        _FIXED_UPDATE.pack(
            IPPROTO_NONE,
            _header_length(12, options),
            5,
            0,
            0,
            message.sequence,
            (0x8000 if message.acknowledge else 0)
            | (0x4000 if message.home_registration else 0)
            | (0x2000 if message.link_local else 0)
            | (0x1000 if message.key_mobility else 0)
            | (0x0800 if message.map_registration else 0)
            | (0x0400 if message.mobile_router else 0)
            | (0x0200 if message.proxy else 0)
            | (0x0100 if message.force_udp else 0),
            message.lifetime,
        )
        + options
    )


def _encode_ack(message: BindingAck, options: bytes) -> bytes:
    return (
        _FIXED_ACK.pack(
            IPPROTO_NONE,
            _header_length(12, options),
            6,
            0,
            0,
            message.status,
            (0x80 if message.key_mobility else 0)
            | (0x40 if message.mobile_router else 0)
            | (0x20 if message.proxy else 0),
            message.sequence,
            message.lifetime,
        )
        + options
    )


def _encode_error(message: BindingError, options: bytes) -> bytes:
    return (
        _FIXED_ERROR.pack(
            IPPROTO_NONE,
            _header_length(24, options),
            7,
            0,
            0,
            message.status,
            0,
            octets6(message.home_address),
        )
        + options
    )


_FIXED_LENGTH: Final[dict[int, int]] = {
    MHType.BINDING_REFRESH_REQUEST: 8,
    MHType.HOME_TEST_INIT: 16,
    MHType.CARE_OF_TEST_INIT: 16,
    MHType.HOME_TEST: 24,
    MHType.CARE_OF_TEST: 24,
    MHType.BINDING_UPDATE: 12,
    MHType.BINDING_ACK: 12,
    MHType.BINDING_ERROR: 24,
}
"""Where the options start."""

_ENCODERS: Final[dict[type, Callable[..., bytes]]] = {
    BindingRefreshRequest: _encode_refresh_request,
    HomeTestInit: _encode_init,
    CareOfTestInit: _encode_init,
    HomeTest: _encode_test,
    CareOfTest: _encode_test,
    BindingUpdate: _encode_update,
    BindingAck: _encode_ack,
    BindingError: _encode_error,
}


def decode(
    data: bytes,
    src: IPv6Address,
    dst: IPv6Address,
    *,
    ack_option: AckOptionReading = AckOptionReading.EITHER,
) -> Message:
    """A received Mobility Header, checked in the order of RFC 6275 §9.2; octets behind its
    length are ignored, as those behind a Payload Proto of 59 must be. For ``src`` and ``dst``
    see the module.

    Raises :class:`TruncatedError`, :class:`ChecksumError`, :class:`BadPayloadProtocol`,
    :class:`BadHeaderLength` and :class:`OptionError`; :func:`refusal` says what to answer. A type
    that we don't know is no error here, but an :class:`UnknownMessage`.
    """
    if len(data) < 8:
        raise TruncatedError(f"a Mobility Header has 8 octets or more, not {len(data)}", offset=0)
    length = (data[1] + 1) << 3
    if length > len(data):
        raise TruncatedError(
            f"Header Len says {length} octets, the packet has {len(data)}", offset=1
        )
    if len(data) != length or type(data) is not bytes:
        data = bytes(data[:length])
    if not is_valid(pseudo_header6(src, dst, length, IPPROTO_MH) + int.from_bytes(data, "big")):
        raise ChecksumError("checksum of the Mobility Header", offset=4)
    mh_type = data[2]
    minimum = MINIMUM_LENGTH.get(mh_type)
    if minimum is None:
        return UnknownMessage(mh_type, data[6:], data[0])
    if data[0] != IPPROTO_NONE:
        raise BadPayloadProtocol(data[0])
    if length < minimum:
        raise BadHeaderLength(mh_type, length, minimum)
    options, error = decode_options(
        data,
        _FIXED_LENGTH[mh_type],
        in_binding_ack=mh_type == MHType.BINDING_ACK,
        ack_option=ack_option,
    )
    message = _DECODERS[mh_type](data, options)
    if error is not None:
        error.partial = message
        raise error
    return message


def refusal(
    refused: DecodeError | UnknownMessage, home_address: IPv6Address | None = None
) -> ParameterProblem | BindingError | None:
    """What RFC 6275 §9.2 answers to a message that was refused, or None for silence.

    ``home_address`` is that of the Home Address destination option, if there was one (§9.3.3).
    Send the answer to the IPv6 source address of the packet as it was on the wire, if that is
    unicast, and limit the rate.
    """
    if isinstance(refused, UnknownMessage):
        return BindingError(BindingErrorStatus.UNRECOGNIZED_MH_TYPE, home_address or IPv6Address(0))
    return refused.answer


_Options: TypeAlias = tuple[MobilityOption, ...]


def _decode_refresh_request(data: bytes, options: _Options) -> Message:
    return BindingRefreshRequest(options)


def _decode_home_test_init(data: bytes, options: _Options) -> Message:
    return HomeTestInit(data[8:16], options)


def _decode_care_of_test_init(data: bytes, options: _Options) -> Message:
    return CareOfTestInit(data[8:16], options)


def _decode_home_test(data: bytes, options: _Options) -> Message:
    return HomeTest(data[6] << 8 | data[7], data[8:16], data[16:24], options)


def _decode_care_of_test(data: bytes, options: _Options) -> Message:
    return CareOfTest(data[6] << 8 | data[7], data[8:16], data[16:24], options)


_UpdateFlags: TypeAlias = tuple[bool, bool, bool, bool, bool, bool, bool, bool]

# The eight flags of a Binding Update (A H L K M R P F), for each value of their octet.
_UPDATE_FLAGS: Final = tuple(
    (
        value & 0x80 != 0,
        value & 0x40 != 0,
        value & 0x20 != 0,
        value & 0x10 != 0,
        value & 0x08 != 0,
        value & 0x04 != 0,
        value & 0x02 != 0,
        value & 0x01 != 0,
    )
    for value in range(256)
)


def _decode_update(data: bytes, options: _Options) -> Message:
    sequence, flags, lifetime = _UPDATE.unpack_from(data, 6)
    bits: _UpdateFlags = _UPDATE_FLAGS[flags >> 8]
    return BindingUpdate(sequence, lifetime, *bits, options)


_STATUS: Final[dict[int, int]] = {status.value: status for status in BindingStatus}
_ERROR_STATUS: Final[dict[int, int]] = {status.value: status for status in BindingErrorStatus}


def _decode_ack(data: bytes, options: _Options) -> Message:
    status, flags, sequence, lifetime = _ACK.unpack_from(data, 6)
    return BindingAck(
        _STATUS.get(status, status),
        sequence,
        lifetime,
        flags & 0x80 != 0,
        flags & 0x40 != 0,
        flags & 0x20 != 0,
        options,
    )


def _decode_error(data: bytes, options: _Options) -> Message:
    return BindingError(_ERROR_STATUS.get(data[6], data[6]), IPv6Address(data[8:24]), options)


_DECODERS: Final[dict[int, Callable[[bytes, _Options], Message]]] = {
    MHType.BINDING_REFRESH_REQUEST: _decode_refresh_request,
    MHType.HOME_TEST_INIT: _decode_home_test_init,
    MHType.CARE_OF_TEST_INIT: _decode_care_of_test_init,
    MHType.HOME_TEST: _decode_home_test,
    MHType.CARE_OF_TEST: _decode_care_of_test,
    MHType.BINDING_UPDATE: _decode_update,
    MHType.BINDING_ACK: _decode_ack,
    MHType.BINDING_ERROR: _decode_error,
}
