"""ESP framing: the header and trailer (RFC 4303 §2) and what UDP port 4500 carries (RFC 3948 §2).

Nothing here needs a key. The trailer is that of the decrypted payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import Final

from dsmip_ipsec.wire.errors import DecodeError, EncodeError, TruncatedError

HEADER_LENGTH: Final = 8
"""Octets of SPI and Sequence Number."""

NON_ESP_MARKER: Final = bytes(4)
"""What stands in front of an IKE message on port 4500 (RFC 3948 §2.2)."""

KEEPALIVE: Final = b"\xff"
"""The NAT-keepalive packet (RFC 3948 §2.3)."""

SPI_RESERVED_MAX: Final = 255
"""SPIs of 1 to 255 are reserved by IANA, and 0 never appears on the wire (RFC 4303 §2.1)."""

_HEADER = struct.Struct("!II")
# RFC 4303 §2.4: 1, 2, 3, …, for each Pad Length.
_PADDINGS: Final = tuple(bytes(range(1, length + 1)) for length in range(256))


class PaddingError(DecodeError):
    """The padding isn't 1, 2, 3, … or is longer than the payload (RFC 4303 §2.4, §3.4.4.1)."""

    default_hint = "the ICV was right, so the sender is broken, or the keys are those of another SA"


class MarkerError(DecodeError):
    """A datagram on port 4500 that is neither IKE nor ESP nor a keepalive."""

    default_hint = "something else than IKE and ESP is sent to this port"


class Encapsulated(Enum):
    """What a datagram between ports of RFC 3948 carries."""

    KEEPALIVE = "keepalive"
    IKE = "ike"
    ESP = "esp"


@dataclass(frozen=True, slots=True)
class EspHeader:
    """``sequence`` is the low half of the sequence number where it is an extended one."""

    spi: int
    sequence: int


def classify(payload: bytes) -> tuple[Encapsulated, bytes]:
    """Tell what the payload of a UDP datagram on port 4500 is, and give it without its marker.

    Raises :class:`MarkerError` for what is too short for any of the three (RFC 3948 §2).
    """
    if payload == KEEPALIVE:
        return Encapsulated.KEEPALIVE, payload
    if len(payload) < 4:
        raise MarkerError(f"{len(payload)} octets are no ESP, no IKE and no keepalive", offset=0)
    if payload[:4] == NON_ESP_MARKER:
        return Encapsulated.IKE, payload[4:]
    return Encapsulated.ESP, payload


def parse_esp(data: bytes) -> tuple[EspHeader, bytes]:
    """Split an ESP packet into its header and the rest (IV, ciphertext, ICV).

    Raises :class:`TruncatedError`, and :class:`DecodeError` for SPI 0.
    """
    if len(data) < HEADER_LENGTH:
        raise TruncatedError(f"an ESP header has 8 octets, here are {len(data)}", offset=0)
    spi, sequence = _HEADER.unpack_from(data)
    if spi == 0:
        raise DecodeError("SPI 0 never appears on the wire (RFC 4303 §2.1)", offset=0)
    return EspHeader(spi, sequence), data[HEADER_LENGTH:]


def trailer(length: int, alignment: int, next_header: int) -> bytes:
    """Padding, Pad Length and Next Header behind ``length`` octets of payload, so that all
    together is a multiple of ``alignment`` (4 or more, RFC 4303 §2.4)."""
    if alignment < 4 or alignment % 4 or alignment > 256 or not 0 <= next_header <= 255:
        raise EncodeError(f"an ESP trailer aligned to {alignment} for next header {next_header}")
    padding = -(length + 2) % alignment
    return _PADDINGS[padding] + bytes((padding, next_header))


def split_trailer(plaintext: bytes) -> tuple[bytes, int]:
    """The payload and Next Header of a decrypted ESP payload; the padding is checked.

    Raises :class:`TruncatedError` and :class:`PaddingError`.
    """
    end = len(plaintext) - 2
    if end < 0:
        raise TruncatedError("an ESP payload ends with Pad Length and Next Header", offset=0)
    padding = plaintext[end]
    start = end - padding
    if start < 0 or plaintext[start:end] != _PADDINGS[padding]:
        raise PaddingError(f"ESP padding of {padding} octets", offset=max(start, 0))
    return plaintext[:start], plaintext[end + 1]
