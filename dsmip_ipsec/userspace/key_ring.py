"""The keys for a capture: which SA an ESP packet belongs to, and what is inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from dsmip_ipsec.errors import ConfigError, DsmipError
from dsmip_ipsec.ipsec.esp_ciphers import EspCipher, esp_cipher
from dsmip_ipsec.ipsec.model import Address, Mode, SecurityAssociation
from dsmip_ipsec.userspace.ike_cipher import IkeSaKeys
from dsmip_ipsec.userspace.key_tables import EspKeys, read_esp_sa, read_ikev2_table
from dsmip_ipsec.wire.esp import parse_esp, split_trailer

_NOWHERE = IPv4Address(0)


class NoKey(DsmipError):
    """No line of the table is for this packet: no error of the packet."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="give its esp_sa table with --keys")


class KeyRing:
    """Keys by SPI. ``ike`` is by both SPIs of the IKE_SA."""

    def __init__(self, esp: Iterable[EspKeys] = (), ike: Iterable[IkeSaKeys] = ()) -> None:
        self._by_spi: dict[int | None, list[EspKeys]] = {}
        for keys in esp:
            self._by_spi.setdefault(keys.spi, []).append(keys)
        for lines in self._by_spi.values():
            # Addresses before wildcards; sort() is stable, so the file's order decides then.
            lines.sort(key=lambda keys: -keys.exactness)
        self.ike = {(keys.initiator_spi, keys.responder_spi): keys for keys in ike}
        self._ciphers: dict[tuple[int, int, bool], EspCipher] = {}

    @classmethod
    def read(cls, directory: Path) -> KeyRing:
        """The tables of a Wireshark configuration directory, such as a lab's ``wireshark/``.
        One of the two may be missing. Raises ConfigError."""
        esp, ike = directory / "esp_sa", directory / "ikev2_decryption_table"
        if not esp.is_file() and not ike.is_file():
            raise ConfigError(
                f"{directory} has neither esp_sa nor ikev2_decryption_table",
                hint="give the directory wireshark/ of a lab that ran with --export-keys",
            )
        return cls(
            read_esp_sa(esp) if esp.is_file() else (),
            read_ikev2_table(ike) if ike.is_file() else (),
        )

    def open(
        self, packet: bytes, addresses: Iterable[tuple[Address, Address]]
    ) -> tuple[bytes, int, int]:
        """Payload, Next Header and Pad Length of an ESP packet between ``addresses`` (pairs of
        source and destination: as on the wire, and with home addresses).

        Every fitting line is tried, the most exact first, until an ICV is right; each without and
        with extended sequence numbers (a capture doesn't tell, and the high half of a lab's SA
        is zero). Raises :class:`NoKey`; else the error of the best line.
        """
        header, _ = parse_esp(packet)
        first: DsmipError | None = None
        for keys in self._candidates(header.spi, tuple(addresses)):
            for esn in (False, True):
                try:
                    cipher = self._cipher(keys, header.spi, esn)
                    plaintext = cipher.open(packet, header.sequence)
                    payload, next_header = split_trailer(plaintext)
                    return payload, next_header, len(plaintext) - len(payload) - 2
                except DsmipError as error:
                    first = first or error
        raise first or NoKey(f"no key for spi 0x{header.spi:08x}")

    def _candidates(
        self, spi: int, pairs: tuple[tuple[Address, Address], ...]
    ) -> Iterator[EspKeys]:
        for lines in (self._by_spi.get(spi, ()), self._by_spi.get(None, ())):
            for keys in lines:
                if any(
                    keys.version == source.version
                    and keys.source in (None, source)
                    and keys.destination in (None, destination)
                    for source, destination in pairs
                ):
                    yield keys

    def _cipher(self, keys: EspKeys, spi: int, esn: bool) -> EspCipher:
        known = self._ciphers.get((id(keys), spi, esn))
        if known is not None:
            return known
        if keys.encryption is None or keys.unsupported:
            raise NoKey(f"{keys.unsupported or 'its cipher'} can't be decrypted here")
        aead = keys.encryption.icv_bits > 0
        association = SecurityAssociation(
            spi,
            _NOWHERE,
            _NOWHERE,
            Mode.TRANSPORT,
            0,
            aead=keys.encryption if aead else None,
            encryption=None if aead else keys.encryption,
            authentication=keys.authentication,
        )
        made = esp_cipher(association, esn=esn)
        self._ciphers[id(keys), spi, esn] = made
        return made
