"""Mobility options in a row: placing them at their alignment, and reading them back
(RFC 6275 §6.2)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.wire.errors import EncodeError, OptionError, PrefixLengthError
from dsmip_ipsec.wire.options import (
    ALTERNATE_CARE_OF_ADDRESS,
    BINDING_AUTHORIZATION_DATA,
    BINDING_REFRESH_ADVICE,
    IPV4_ADDRESS_ACK,
    IPV4_CARE_OF_ADDRESS,
    IPV4_HOME_ADDRESS,
    MOBILE_NETWORK_PREFIX,
    NAT_DETECTION,
    NONCE_INDICES,
    PAD1,
    PADN,
    AckOptionReading,
    AlternateCareOfAddress,
    BindingAuthorizationData,
    BindingRefreshAdvice,
    IPv4AckStatus,
    IPv4AddressAck,
    IPv4CareOfAddress,
    IPv4HomeAddress,
    MobileNetworkPrefix,
    MobilityOption,
    NatDetection,
    NonceIndices,
    UnknownOption,
)

_SHORT = struct.Struct("!H")
_PAIR = struct.Struct("!HH")
_SHORT_AND_WORD = struct.Struct("!HI")
_ACK4 = struct.Struct("!BBI")

_PADDING: Final = (b"", b"\x00", *(bytes((PADN, n - 2)) + bytes(n - 2) for n in range(2, 8)))
"""What to write for 0 to 7 octets of padding (RFC 6275 §6.2.2: one Pad1 or one PadN)."""


def encode_options(
    options: Iterable[MobilityOption],
    start: int,
    *,
    ack_option: AckOptionReading = AckOptionReading.EITHER,
) -> bytes:
    """Options in the given order, each at its alignment, the last followed by the padding that
    makes the message a multiple of 8 octets. ``start`` is the offset of the first option from
    the start of the Mobility Header. Raises :class:`EncodeError`."""
    parts: list[bytes] = []
    offset = start
    closed = False
    for option in options:
        if closed:
            raise EncodeError("the binding authorization data is not the last option")
        try:
            raw = option.encode()
        except (struct.error, ValueError, OverflowError) as error:
            raise EncodeError(f"{type(option).__name__}: {error}") from error
        n, k = option.align
        kind = option.type
        if kind == BINDING_AUTHORIZATION_DATA:
            closed = True
            n, k = 8, -len(raw)
        elif isinstance(option, UnknownOption):
            if option.position is not None:
                n, k = 8, option.position
        elif kind == IPV4_ADDRESS_ACK and ack_option is AckOptionReading.TEXT:
            raw = b"\x1d" + raw[1:]
        if n > 1:
            padding = (k - offset) % n
            if padding:
                parts.append(_PADDING[padding])
                offset += padding
        parts.append(raw)
        offset += len(raw)
    if offset & 7:
        parts.append(_PADDING[-offset & 7])
    return b"".join(parts)


# --- decoding: each takes the message, the offset of the option's data and its length ---

_Decoder = Callable[[bytes, int, int], MobilityOption]


def _wrong_length(kind: int, offset: int, length: int, expected: int) -> OptionError:
    return OptionError(
        f"mobility option {kind} has {length} octets of data, not {expected}",
        option_type=kind,
        offset=offset - 1,
    )


def _refresh_advice(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 2:
        raise _wrong_length(BINDING_REFRESH_ADVICE, offset, length, 2)
    return BindingRefreshAdvice(_SHORT.unpack_from(data, offset)[0])


def _alternate_care_of(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 16:
        raise _wrong_length(ALTERNATE_CARE_OF_ADDRESS, offset, length, 16)
    return AlternateCareOfAddress(IPv6Address(data[offset : offset + 16]))


def _nonce_indices(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 4:
        raise _wrong_length(NONCE_INDICES, offset, length, 4)
    home, care_of = _PAIR.unpack_from(data, offset)
    return NonceIndices(home, care_of)


def _authorization_data(data: bytes, offset: int, length: int) -> MobilityOption:
    if offset + length != len(data):
        # RFC 6275 §6.2.7 and §9.5.1: the last option, without trailing padding.
        raise OptionError(
            "the binding authorization data is not the end of the message",
            option_type=BINDING_AUTHORIZATION_DATA,
            offset=offset - 2,
        )
    return BindingAuthorizationData(data[offset : offset + length])


def _network_prefix(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 18:
        raise _wrong_length(MOBILE_NETWORK_PREFIX, offset, length, 18)
    prefix_len = data[offset + 1]
    if prefix_len > 128:
        raise _wrong_prefix(MOBILE_NETWORK_PREFIX, offset + 1, prefix_len)
    return MobileNetworkPrefix(prefix_len, IPv6Address(data[offset + 2 : offset + 18]))


def _wrong_prefix(kind: int, offset: int, prefix_len: int) -> OptionError:
    return PrefixLengthError(
        f"mobility option {kind} has a prefix length of {prefix_len}",
        option_type=kind,
        offset=offset,
    )


def _home_address4(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 6:
        raise _wrong_length(IPV4_HOME_ADDRESS, offset, length, 6)
    bits, address = _SHORT_AND_WORD.unpack_from(data, offset)
    prefix_len = bits >> 10
    if not 1 <= prefix_len <= 32:
        raise _wrong_prefix(IPV4_HOME_ADDRESS, offset, prefix_len)
    return IPv4HomeAddress(prefix_len, bits & 0x200 != 0, IPv4Address(address))


_IPV4_STATUS: Final[dict[int, int]] = {status.value: status for status in IPv4AckStatus}


def _address_ack4(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 6:
        raise _wrong_length(data[offset - 2], offset, length, 6)
    status, bits, address = _ACK4.unpack_from(data, offset)
    # "valid only in case of success and MUST be ... ignored in case of failure".
    prefix_len = bits >> 2 if status < 128 else 0
    if status < 128 and not 1 <= prefix_len <= 32:
        raise _wrong_prefix(data[offset - 2], offset + 1, prefix_len)
    return IPv4AddressAck(_IPV4_STATUS.get(status, status), prefix_len, IPv4Address(address))


def _nat_detection(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 6:
        raise _wrong_length(NAT_DETECTION, offset, length, 6)
    bits, refresh_time = _SHORT_AND_WORD.unpack_from(data, offset)
    return NatDetection(bits & 0x8000 != 0, refresh_time)


def _care_of_address4(data: bytes, offset: int, length: int) -> MobilityOption:
    if length != 6:
        raise _wrong_length(IPV4_CARE_OF_ADDRESS, offset, length, 6)
    return IPv4CareOfAddress(IPv4Address(data[offset + 2 : offset + 6]))


_REGISTRY: Final[dict[int, _Decoder]] = {
    BINDING_REFRESH_ADVICE: _refresh_advice,
    ALTERNATE_CARE_OF_ADDRESS: _alternate_care_of,
    NONCE_INDICES: _nonce_indices,
    BINDING_AUTHORIZATION_DATA: _authorization_data,
    MOBILE_NETWORK_PREFIX: _network_prefix,
    IPV4_HOME_ADDRESS: _home_address4,
    IPV4_ADDRESS_ACK: _address_ack4,
    NAT_DETECTION: _nat_detection,
    IPV4_CARE_OF_ADDRESS: _care_of_address4,
}
_TEXT: Final = {kind: decoder for kind, decoder in _REGISTRY.items() if kind != IPV4_ADDRESS_ACK}
_DECODERS: Final[dict[tuple[AckOptionReading, bool], dict[int, _Decoder]]] = {
    (AckOptionReading.REGISTRY, False): _REGISTRY,
    (AckOptionReading.REGISTRY, True): _REGISTRY,
    (AckOptionReading.EITHER, False): _REGISTRY,
    (AckOptionReading.EITHER, True): {**_REGISTRY, IPV4_HOME_ADDRESS: _address_ack4},
    (AckOptionReading.TEXT, False): _TEXT,
    (AckOptionReading.TEXT, True): {**_TEXT, IPV4_HOME_ADDRESS: _address_ack4},
}
_BAD_OPTIONS_MAX: Final = 8
"""Bad options after which the rest isn't looked at: a refusal must stay cheap."""

_BOTH_ACK_NUMBERS: Final = 1 << IPV4_HOME_ADDRESS | 1 << IPV4_ADDRESS_ACK


def decode_options(
    data: bytes,
    offset: int,
    *,
    in_binding_ack: bool = False,
    ack_option: AckOptionReading = AckOptionReading.EITHER,
) -> tuple[tuple[MobilityOption, ...], OptionError | None]:
    """Options from ``offset`` to the end of ``data``, which starts at the Mobility Header.

    Gives the good ones, in order and without padding, and the first error, if any: a bad option
    with a sane length doesn't hide those behind it, up to a handful. Linear time. Numbers that we
    don't know become :class:`UnknownOption` (RFC 6275 §6.2.1: skip and go on).
    """
    decoders = _DECODERS[ack_option, in_binding_ack]
    options: list[MobilityOption] = []
    first: OptionError | None = None
    bad = 0
    seen = 0
    start = offset
    end = len(data)
    while offset < end:
        kind = data[offset]
        if kind == PAD1:
            offset += 1
            continue
        if offset + 1 == end:
            first = first or _overrun(kind, offset)
            break
        length = data[offset + 1]
        following = offset + 2 + length
        if following > end:
            first = first or _overrun(kind, offset)
            break
        if kind != PADN:
            seen |= 1 << kind
            decoder = decoders.get(kind)
            if decoder is None:
                options.append(UnknownOption(kind, data[offset + 2 : following], offset & 7))
            else:
                try:
                    options.append(decoder(data, offset + 2, length))
                except OptionError as error:
                    first = first or error
                    bad += 1
                    if bad == _BAD_OPTIONS_MAX:
                        break
        offset = following
    if (
        in_binding_ack
        and ack_option is AckOptionReading.EITHER
        and seen & _BOTH_ACK_NUMBERS == _BOTH_ACK_NUMBERS
    ):
        # A peer that uses 30 means something else by 29: what the registry says.
        return decode_options(
            data, start, in_binding_ack=True, ack_option=AckOptionReading.REGISTRY
        )
    return tuple(options), first


def _overrun(kind: int, offset: int) -> OptionError:
    return OptionError(
        f"mobility option {kind} runs past the end of the message",
        option_type=kind,
        offset=offset,
    )
