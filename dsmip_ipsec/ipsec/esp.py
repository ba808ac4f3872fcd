"""ESP (RFC 4303): the two ends of an SA, with their sequence numbers.

An :class:`EspSender` makes ESP packets of payloads, an :class:`EspReceiver` payloads of ESP
packets. What stands around (IP and UDP headers) is :mod:`dsmip_ipsec.ipsec.esp_packet`'s.
"""

from __future__ import annotations

import struct
from typing import Final

from dsmip_ipsec.ipsec.esp_ciphers import Random, esp_cipher
from dsmip_ipsec.ipsec.esp_errors import EspError, EspFormatError, SequenceExhausted
from dsmip_ipsec.ipsec.esp_replay import ReplayWindow
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.wire.esp import HEADER_LENGTH, split_trailer

_HEADER: Final = struct.Struct("!II")


class EspSender:
    """The sending end of an SA.

    ``sequence`` is the number of the last packet sent. It is also the AEAD's IV, so whoever
    restores an SA must hand in a number that is not below the last one used with its key.
    ``limit`` is the last number that there is.
    """

    __slots__ = ("alignment", "association", "cipher_seal", "limit", "overhead", "sequence")

    def __init__(
        self,
        association: SecurityAssociation,
        *,
        esn: bool = False,
        random: Random | None = None,
        sequence: int = 0,
    ) -> None:
        """Raises :class:`AlgorithmError`, and :class:`EspError` for an impossible sequence."""
        cipher = esp_cipher(association, esn=esn, random=random)
        limit = (1 << (64 if esn else 32)) - 1
        if not 0 <= sequence <= limit:
            raise EspError(f"a sequence number of {sequence}", spi=association.spi)
        self.association = association
        self.sequence = sequence
        self.overhead = cipher.overhead
        self.alignment = cipher.alignment
        self.cipher_seal = cipher.seal
        self.limit = limit

    def seal(self, payload: bytes, next_header: int) -> bytes:
        """The next ESP packet, from SPI to ICV. Raises :class:`SequenceExhausted`."""
        sequence = self.sequence + 1
        if sequence > self.limit:
            raise SequenceExhausted(self.association.spi)
        self.sequence = sequence
        return self.cipher_seal(sequence, payload, next_header)

    def length(self, payload_length: int) -> int:
        """Octets of the ESP packet for so many octets of payload."""
        return self.overhead + payload_length + -(payload_length + 2) % self.alignment


class EspReceiver:
    """The receiving end of an SA; ``window`` is its replay state."""

    __slots__ = ("_open", "association", "window")

    def __init__(
        self, association: SecurityAssociation, *, esn: bool = False, highest: int = 0
    ) -> None:
        """``highest``: the highest sequence number received so far. Raises
        :class:`AlgorithmError`, and :class:`EspError` for an impossible window."""
        self.association = association
        self.window = ReplayWindow(
            association.replay_window, esn=esn, spi=association.spi, highest=highest
        )
        self._open = esp_cipher(association, esn=esn).open

    def open(self, packet: bytes) -> tuple[bytes, int]:
        """The payload and Next Header of an ESP packet (from SPI to ICV).

        Raises :class:`EspFormatError`, :class:`ReplayError` and :class:`IntegrityError`, none of
        which moves the window; and, for authentic packets that their sender spoilt,
        :class:`PaddingError`.
        """
        if len(packet) < HEADER_LENGTH:
            raise EspFormatError(f"{len(packet)} octets are no ESP packet")
        spi, low = _HEADER.unpack_from(packet)
        if spi != self.association.spi:
            raise EspFormatError(f"not for spi 0x{self.association.spi:08x}", spi=spi)
        window = self.window
        sequence = low if low > window.highest and not window.esn else window.locate(low)
        plaintext = self._open(packet, sequence)
        window.accept(sequence)
        return split_trailer(plaintext)
