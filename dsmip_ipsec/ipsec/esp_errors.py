"""What ESP processing refuses (RFC 4303 §3). No error holds a key or a plaintext."""

from __future__ import annotations

from dsmip_ipsec.errors import DsmipError


class EspError(DsmipError):
    """Base. ``spi`` names the SA (0: none)."""

    default_hint = "compare the SA's description at both ends"

    def __init__(self, message: str, *, spi: int = 0, hint: str = "") -> None:
        super().__init__(
            f"spi 0x{spi:08x}: {message}" if spi else message, hint=hint or self.default_hint
        )
        self.spi = spi


class AlgorithmError(EspError):
    """The SA asks for an algorithm, key or ICV length that this implementation hasn't."""

    def __init__(self, message: str, *, spi: int = 0) -> None:
        super().__init__(
            message,
            spi=spi,
            hint="use rfc4106(gcm(aes)), rfc7539esp(chacha20,poly1305), or cbc(aes) or "
            "ecb(cipher_null) with hmac(sha256), hmac(sha384) or hmac(sha512)",
        )


class SequenceExhausted(EspError):
    """The sender's sequence number must not cycle (RFC 4303 §3.3.3): the SA is used up."""

    def __init__(self, spi: int) -> None:
        super().__init__(
            "all sequence numbers are used", spi=spi, hint="rekey the SA, or negotiate ESN"
        )


class ReplayError(EspError):
    """A sequence number that can't be accepted (RFC 4303 §3.4.3). ``sequence`` is the full one."""

    def __init__(self, message: str, *, spi: int, sequence: int) -> None:
        super().__init__(
            f"sequence number {sequence}: {message}",
            spi=spi,
            hint="replayed, doubled, or reordered by more than the window: enlarge the window",
        )
        self.sequence = sequence


class DuplicateError(ReplayError):
    """It was received before."""


class OutsideWindowError(ReplayError):
    """It is left of the window, or zero."""


class IntegrityError(EspError):
    """The ICV is wrong: changed on the way, other keys, or another algorithm."""

    def __init__(self, spi: int) -> None:
        super().__init__(
            "the ICV is wrong", spi=spi, hint="compare keys and algorithms at both ends"
        )


class EspFormatError(EspError):
    """Too short, or of a length that the cipher can't have made."""

    def __init__(self, message: str, *, spi: int = 0) -> None:
        super().__init__(message, spi=spi, hint="cut short on the way, or meant for another SA")


class DummyPacket(EspError):
    """Next Header 59: sent to hide the traffic's volume, to be dropped (RFC 4303 §2.6)."""

    default_hint = "nothing is wrong: its sender hides how much it sends"

    def __init__(self, spi: int) -> None:
        super().__init__("a dummy packet (next header 59)", spi=spi)
