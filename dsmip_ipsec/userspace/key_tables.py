"""Reading keys as Wireshark keeps them: the tables ``esp_sa`` and ``ikev2_decryption_table``.

One record a line, fields between commas and, if they are text, in quotes; ``#`` starts a comment.
``dsmip-ipsec lab run --export-keys`` writes both.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ipsec.model import Address, Algorithm, SecretKey
from dsmip_ipsec.userspace.ike_cipher import IkeSaKeys

_ESP_CIPHERS: Final = {"AES-CBC [RFC3602]": "cbc(aes)", "NULL": "ecb(cipher_null)"}
_ESP_GCM: Final = re.compile(r"AES-GCM with (8|12|16) octet ICV \[RFC4106\]")
_ESP_CHACHA: Final = re.compile(r"ChaCha20.*Poly1305.*\[RFC7634\]")
_ESP_MACS: Final = {
    "HMAC-SHA-1-96 [RFC2404]": ("hmac(sha1)", 96),
    "HMAC-SHA-256-128 [RFC4868]": ("hmac(sha256)", 128),
    "HMAC-SHA-384-192 [RFC4868]": ("hmac(sha384)", 192),
    "HMAC-SHA-512-256 [RFC4868]": ("hmac(sha512)", 256),
}
_ESP_ANY_MAC: Final = re.compile(r"ANY (\d+) bit authentication \[no checking\]")
_IKE_GCM: Final = re.compile(r"AES-GCM-(128|192|256) with (8|12|16) octet ICV \[RFC5282\]")
_IKE_CBC: Final = re.compile(r"AES-CBC-(128|192|256) \[RFC3602\]")
_IKE_MACS: Final = {
    "HMAC_SHA1_96 [RFC2404]": ("hmac(sha1)", 96, 20),
    "HMAC_SHA2_256_128 [RFC4868]": ("hmac(sha256)", 128, 32),
    "HMAC_SHA2_384_192 [RFC4868]": ("hmac(sha384)", 192, 48),
    "HMAC_SHA2_512_256 [RFC4868]": ("hmac(sha512)", 256, 64),
}


@dataclass(frozen=True, slots=True)
class EspKeys:
    """A line of ``esp_sa``. ``source``, ``destination`` and ``spi`` are None for "any".
    ``encryption`` is None where we have no such cipher, and ``unsupported`` says which."""

    version: int
    source: Address | None
    destination: Address | None
    spi: int | None
    encryption: Algorithm | None
    authentication: Algorithm | None = None
    unsupported: str = ""

    @property
    def exactness(self) -> int:
        """How much of the line is no wildcard: lines that say more come first."""
        return sum(part is not None for part in (self.source, self.destination, self.spi))


def read_esp_sa(path: Path) -> tuple[EspKeys, ...]:
    """Raises ConfigError, with the line."""
    return tuple(_esp_line(path, line, fields) for line, fields in _records(path))


def read_ikev2_table(path: Path) -> tuple[IkeSaKeys, ...]:
    """IKE_SAs with ciphers that we haven't are left out. Raises ConfigError, with the line."""
    lines = (_ike_line(path, line, fields) for line, fields in _records(path))
    return tuple(keys for keys in lines if keys is not None)


def _records(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it isn't UTF-8 text"
        raise ConfigError(f"can't be read: {reason}", path=path, hint="see --keys") from error
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            records.append((number, next(csv.reader([line], skipinitialspace=True, strict=True))))
        except csv.Error as error:
            raise _wrong(path, number, str(error)) from None
    return records


def _wrong(path: Path, line: int, what: str) -> ConfigError:
    return ConfigError(
        what, path=path, line=line, hint="write the table with lab run --export-keys, or Wireshark"
    )


def _esp_line(path: Path, line: int, fields: list[str]) -> EspKeys:
    if len(fields) < 8:
        raise _wrong(path, line, f"{len(fields)} fields, 8 needed")
    family, source, destination, spi, cipher, key, mac, mac_key = fields[:8]
    if family not in ("IPv4", "IPv6"):
        raise _wrong(path, line, f"no protocol {family!r}")
    version = int(family[-1])
    encryption, encryption_problem = _esp_cipher(path, line, cipher, key)
    authentication, mac_problem = _esp_mac(path, line, mac, mac_key)
    aead = encryption is not None and encryption.icv_bits > 0
    return EspKeys(
        version,
        _address(path, line, source, version),
        _address(path, line, destination, version),
        _spi(path, line, spi),
        encryption,
        None if aead else authentication,
        encryption_problem or ("" if aead else mac_problem),
    )


def _address(path: Path, line: int, text: str, version: int) -> Address | None:
    if text in ("*", ""):
        return None
    try:
        address = ip_address(text)
    except ValueError:
        raise _wrong(path, line, f"{text!r} is no address and no '*'") from None
    if address.version != version:
        raise _wrong(path, line, f"{text} is no IPv{version} address")
    return address


def _spi(path: Path, line: int, text: str) -> int | None:
    if text == "*":
        return None
    try:
        spi = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        spi = 0
    if not 0 < spi < 1 << 32:
        raise _wrong(path, line, f"{text!r} is no SPI")
    return spi


def _key(path: Path, line: int, text: str) -> SecretKey:
    """Hexadecimal digits behind 0x, or the key itself as text."""
    if not text.lower().startswith("0x"):
        return SecretKey(text.encode())
    return _hex_key(path, line, text[2:])


def _hex_key(path: Path, line: int, digits: str) -> SecretKey:
    try:
        return SecretKey(bytes.fromhex(digits))
    except ValueError:
        # The value may be nearly a key: it isn't quoted.
        raise _wrong(path, line, "a key that isn't hexadecimal digits") from None


def _esp_cipher(path: Path, line: int, name: str, key: str) -> tuple[Algorithm | None, str]:
    if name in _ESP_CIPHERS:
        return Algorithm(_ESP_CIPHERS[name], _key(path, line, key)), ""
    if match := _ESP_GCM.fullmatch(name):
        bits = int(match[1]) * 8
        return Algorithm("rfc4106(gcm(aes))", _key(path, line, key), bits), ""
    if _ESP_CHACHA.fullmatch(name):
        return Algorithm("rfc7539esp(chacha20,poly1305)", _key(path, line, key), 128), ""
    return None, name


def _esp_mac(path: Path, line: int, name: str, key: str) -> tuple[Algorithm | None, str]:
    if name in _ESP_MACS:
        kernel_name, bits = _ESP_MACS[name]
        return Algorithm(kernel_name, _key(path, line, key), bits), ""
    if match := _ESP_ANY_MAC.fullmatch(name):
        return Algorithm("digest_null", SecretKey(b""), int(match[1])), ""
    return None, "" if name == "NULL" else name


def _ike_line(path: Path, line: int, fields: list[str]) -> IkeSaKeys | None:
    if len(fields) < 8:
        raise _wrong(path, line, f"{len(fields)} fields, 8 needed")
    spi_i, spi_r, sk_ei, sk_er, cipher, sk_ai, sk_ar, mac = fields[:8]
    try:
        spis = int(spi_i, 16), int(spi_r, 16)
    except ValueError:
        raise _wrong(path, line, "an IKE SPI isn't hexadecimal digits") from None
    keys = [_hex_key(path, line, text) for text in (sk_ei, sk_er, sk_ai, sk_ar)]
    if match := _IKE_GCM.fullmatch(cipher):
        name, bits, key_length = "gcm(aes)", int(match[2]) * 8, int(match[1]) // 8 + 4
        mac_name, mac_length = "", 0
    elif (match := _IKE_CBC.fullmatch(cipher)) and mac in _IKE_MACS:
        name, key_length = "cbc(aes)", int(match[1]) // 8
        mac_name, bits, mac_length = _IKE_MACS[mac]
    else:
        return None
    wanted = (key_length, key_length, mac_length, mac_length)
    if mac_length == 0:
        keys[2:] = [SecretKey(b""), SecretKey(b"")]
    for key, length in zip(keys, wanted, strict=True):
        if len(key) != length:
            raise _wrong(path, line, f"a key of {len(key)} octets for {cipher}, not {length}")
    return IkeSaKeys(*spis, name, keys[0], keys[1], bits, mac_name, keys[2], keys[3])
