"""ESP's cryptography: from an SA's algorithms to two functions, ``seal`` and ``open``.

AES-GCM (RFC 4106), ChaCha20-Poly1305 (RFC 7634), AES-CBC (RFC 3602) or NULL (RFC 2410) with
HMAC-SHA-2 (RFC 4868); HMAC-SHA-1-96 (RFC 2404) for those who still have it. Algorithms are
named as in the kernel's crypto API; an AEAD's key ends with its salt.

They are closures over ready cipher objects: one packet costs little more than the cipher does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time, hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dsmip_ipsec.ipsec.esp_errors import AlgorithmError, EspFormatError, IntegrityError
from dsmip_ipsec.ipsec.model import Algorithm, SecurityAssociation
from dsmip_ipsec.wire.errors import EncodeError
from dsmip_ipsec.wire.esp import HEADER_LENGTH, trailer

AES_GCM: Final = "rfc4106(gcm(aes))"
CHACHA20_POLY1305: Final = "rfc7539esp(chacha20,poly1305)"
AES_CBC: Final = "cbc(aes)"
NULL_CIPHERS: Final = frozenset({"ecb(cipher_null)", "cipher_null"})
NULL_MAC: Final = "digest_null"

Random = Callable[[int], bytes]
"""So many unpredictable octets (``os.urandom``): for the IVs of AES-CBC."""

Seal = Callable[[int, bytes, int], bytes]
Open = Callable[[bytes, int], bytes]

_SALT_LENGTH: Final = 4
_AEAD_IV_LENGTH: Final = 8
_AEAD_TAG_LENGTH: Final = 16
_BLOCK: Final = 16
_LOW: Final = 0xFFFFFFFF

# (hash, octets of the key, octets of the ICV), by name and bits of the ICV. RFC 4868 §2.1.1:
# no other key lengths.
_MACS: Final[dict[tuple[str, int], tuple[Callable[[], hashes.HashAlgorithm], int]]] = {
    ("hmac(sha256)", 128): (hashes.SHA256, 32),
    ("hmac(sha384)", 192): (hashes.SHA384, 48),
    ("hmac(sha512)", 256): (hashes.SHA512, 64),
    ("hmac(sha1)", 96): (hashes.SHA1, 20),
}


@dataclass(frozen=True, slots=True)
class EspCipher:
    """The two directions of an SA's cryptography, without any state of sequence numbers.

    ``seal(sequence, payload, next_header)`` gives the whole ESP packet, from SPI to ICV.

    ``open(packet, sequence)`` checks the ICV and gives the plaintext with its trailer; it raises
    :class:`EspFormatError` and :class:`IntegrityError`. ``sequence`` is the full number: with
    ESN, its high half goes into the ICV.

    ``overhead`` is the number of octets around a payload, padding aside; ``alignment`` that of
    the payload with its trailer. ``integrity`` is False where nothing checks a packet.
    """

    seal: Seal
    open: Open
    overhead: int
    alignment: int
    integrity: bool


def esp_cipher(
    sa: SecurityAssociation, *, esn: bool = False, random: Random | None = None
) -> EspCipher:
    """The cryptography of ``sa``. ``random`` is needed to send with AES-CBC.

    Raises :class:`AlgorithmError`.
    """
    if not 0 < sa.spi <= _LOW:
        raise AlgorithmError(f"{sa.spi} isn't an SPI")
    if sa.aead is not None:
        if sa.encryption is not None or sa.authentication is not None:
            raise AlgorithmError("an AEAD needs no other algorithm beside it", spi=sa.spi)
        return _aead(sa.spi, sa.aead, esn)
    if sa.encryption is None:
        raise AlgorithmError("neither an AEAD nor an encryption algorithm", spi=sa.spi)
    return _cipher_and_mac(sa, sa.encryption, sa.authentication, esn, random)


class _Trailers(dict[int, tuple[bytes, ...]]):
    """Next Header -> the trailer for each length of payload, modulo the alignment."""

    def __init__(self, alignment: int) -> None:
        self._alignment = alignment

    def __missing__(self, next_header: int) -> tuple[bytes, ...]:
        made = tuple(
            trailer(length, self._alignment, next_header) for length in range(self._alignment)
        )
        self[next_header] = made
        return made


# --- combined modes ---

_TRAILERS_4: Final = _Trailers(4)


def _check_key(spi: int, algorithm: Algorithm, lengths: tuple[int, ...]) -> bytes:
    key = algorithm.key.reveal()
    if len(key) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise AlgorithmError(
            f"{algorithm.name} takes a key of {wanted} octets, this one has {len(key)}", spi=spi
        )
    return key


def _aead(spi: int, algorithm: Algorithm, esn: bool) -> EspCipher:
    aead: AESGCM | ChaCha20Poly1305
    tag_length = algorithm.icv_bits // 8
    if algorithm.name == AES_GCM:
        key = _check_key(spi, algorithm, (20, 28, 36))
        aead = AESGCM(key[:-_SALT_LENGTH])
        lengths: tuple[int, ...] = (64, 96, 128)
    elif algorithm.name == CHACHA20_POLY1305:
        key = _check_key(spi, algorithm, (36,))
        aead = ChaCha20Poly1305(key[:-_SALT_LENGTH])
        lengths = (128,)
    else:
        raise AlgorithmError(f"no AEAD {algorithm.name!r}", spi=spi)
    if algorithm.icv_bits not in lengths:
        raise AlgorithmError(f"{algorithm.name} with an ICV of {algorithm.icv_bits} bits", spi=spi)
    salt = key[-_SALT_LENGTH:]
    seal = _aead_seal(spi, aead, salt, esn)
    if tag_length == _AEAD_TAG_LENGTH:
        opening = _aead_open(spi, aead, salt, esn)
    else:
        cut = tag_length - _AEAD_TAG_LENGTH
        whole = seal

        def seal(sequence: int, payload: bytes, next_header: int) -> bytes:
            return whole(sequence, payload, next_header)[:cut]

        opening = _short_gcm_open(spi, algorithms.AES(key[:-_SALT_LENGTH]), salt, tag_length, esn)
    overhead = HEADER_LENGTH + _AEAD_IV_LENGTH + 2 + tag_length
    return EspCipher(seal, opening, overhead, 4, True)


def _aead_seal(spi: int, aead: AESGCM | ChaCha20Poly1305, salt: bytes, esn: bool) -> Seal:
    """The IV is the sequence number: it never repeats under one key (RFC 4106 §3.1)."""
    encrypt = aead.encrypt
    trailers = _TRAILERS_4
    pack = struct.Struct("!IIQ").pack
    pack_extended = struct.Struct("!IQ").pack

    def seal(sequence: int, payload: bytes, next_header: int) -> bytes:
        head = pack(spi, sequence, sequence)
        return head + encrypt(
            salt + head[8:], payload + trailers[next_header][len(payload) & 3], head[:8]
        )

    def seal_extended(sequence: int, payload: bytes, next_header: int) -> bytes:
        # RFC 4106 §5: all 64 bits are authenticated, the low 32 are sent.
        head = pack(spi, sequence & _LOW, sequence)
        return head + encrypt(
            salt + head[8:],
            payload + trailers[next_header][len(payload) & 3],
            pack_extended(spi, sequence),
        )

    return seal_extended if esn else seal


_AEAD_MINIMUM: Final = HEADER_LENGTH + _AEAD_IV_LENGTH + 2


def _aead_open(spi: int, aead: AESGCM | ChaCha20Poly1305, salt: bytes, esn: bool) -> Open:
    decrypt = aead.decrypt
    minimum = _AEAD_MINIMUM + _AEAD_TAG_LENGTH
    pack_extended = struct.Struct("!IQ").pack

    def open_(packet: bytes, sequence: int) -> bytes:
        if len(packet) < minimum:
            raise _too_short(spi, packet, minimum)
        aad = pack_extended(spi, sequence) if esn else packet[:8]
        try:
            return decrypt(salt + packet[8:16], packet[16:], aad)
        except InvalidTag:
            raise IntegrityError(spi) from None

    return open_


def _short_gcm_open(spi: int, aes: algorithms.AES, salt: bytes, tag_length: int, esn: bool) -> Open:
    """ICVs of 8 and 12 octets (RFC 4106 §6): not in the one-call interface."""
    minimum = _AEAD_MINIMUM + tag_length
    pack_extended = struct.Struct("!IQ").pack

    def open_(packet: bytes, sequence: int) -> bytes:
        if len(packet) < minimum:
            raise _too_short(spi, packet, minimum)
        mode = modes.GCM(salt + packet[8:16], packet[-tag_length:], min_tag_length=tag_length)
        context = Cipher(aes, mode).decryptor()
        context.authenticate_additional_data(pack_extended(spi, sequence) if esn else packet[:8])
        plaintext = context.update(packet[16:-tag_length])
        try:
            return plaintext + context.finalize()
        except InvalidTag:
            raise IntegrityError(spi) from None

    return open_


def _too_short(spi: int, packet: bytes, minimum: int) -> EspFormatError:
    return EspFormatError(f"{len(packet)} octets, at least {minimum} needed", spi=spi)


# --- a cipher and a separate ICV ---


def _cipher_and_mac(
    sa: SecurityAssociation,
    cipher: Algorithm,
    mac: Algorithm | None,
    esn: bool,
    random: Random | None,
) -> EspCipher:
    icv_length, icv = _icv(sa.spi, mac)
    if cipher.name in NULL_CIPHERS:
        if icv is None and not icv_length:
            # RFC 4303 §3.2.1
            raise AlgorithmError("neither encryption nor integrity", spi=sa.spi)
        aes, iv_length, alignment = None, 0, 4
    elif cipher.name == AES_CBC:
        aes = algorithms.AES(_check_key(sa.spi, cipher, (16, 24, 32)))
        iv_length, alignment = _BLOCK, _BLOCK
    else:
        raise AlgorithmError(f"no encryption algorithm {cipher.name!r}", spi=sa.spi)
    overhead = HEADER_LENGTH + iv_length + 2 + icv_length
    return EspCipher(
        _seal(sa.spi, aes, icv, alignment, esn, random),
        _open(sa.spi, aes, icv, icv_length, esn),
        overhead,
        alignment,
        icv is not None,
    )


def _icv(spi: int, mac: Algorithm | None) -> tuple[int, Callable[[bytes], bytes] | None]:
    """Octets of the ICV, and the function that makes it; None: it is there, but can't be made."""
    if mac is None or mac.name == NULL_MAC:
        bits = mac.icv_bits if mac is not None else 0
        if bits % 8 or not 0 <= bits <= 512:
            raise AlgorithmError(f"an ICV of {bits} bits", spi=spi)
        return bits // 8, None
    if (mac.name, mac.icv_bits) not in _MACS:
        raise AlgorithmError(f"no {mac.name!r} with an ICV of {mac.icv_bits} bits", spi=spi)
    algorithm, key_length = _MACS[mac.name, mac.icv_bits]
    keyed = hmac.HMAC(_check_key(spi, mac, (key_length,)), algorithm())
    length = mac.icv_bits // 8

    def icv(data: bytes) -> bytes:
        context = keyed.copy()
        context.update(data)
        return context.finalize()[:length]

    return length, icv


def _seal(
    spi: int,
    aes: algorithms.AES | None,
    icv: Callable[[bytes], bytes] | None,
    alignment: int,
    esn: bool,
    random: Random | None,
) -> Seal:
    trailers = _TRAILERS_4 if alignment == 4 else _Trailers(alignment)
    mask = alignment - 1
    pack = struct.Struct("!II").pack

    def seal(sequence: int, payload: bytes, next_header: int) -> bytes:
        packet = pack(spi, sequence & _LOW)
        plaintext = payload + trailers[next_header][len(payload) & mask]
        if aes is None:
            packet += plaintext
        else:
            if random is None:
                raise AlgorithmError("AES-CBC needs a source of random IVs to send", spi=spi)
            iv = random(_BLOCK)
            if len(iv) != _BLOCK:
                raise EncodeError(f"an IV of {len(iv)} octets")
            context = Cipher(aes, modes.CBC(iv)).encryptor()
            packet += iv + context.update(plaintext)
        if icv is None:
            return packet
        # RFC 4303 §2.8: the high half stands behind the trailer for the ICV, and isn't sent.
        high = (sequence >> 32).to_bytes(4, "big") if esn else b""
        return packet + icv(packet + high)

    return seal


def _open(
    spi: int,
    aes: algorithms.AES | None,
    icv: Callable[[bytes], bytes] | None,
    icv_length: int,
    esn: bool,
) -> Open:
    start = HEADER_LENGTH + (_BLOCK if aes is not None else 0)
    minimum = start + (_BLOCK if aes is not None else 2) + icv_length

    def open_(packet: bytes, sequence: int) -> bytes:
        if len(packet) < minimum:
            raise _too_short(spi, packet, minimum)
        end = len(packet) - icv_length
        if icv is not None:
            high = (sequence >> 32).to_bytes(4, "big") if esn else b""
            if not constant_time.bytes_eq(icv(packet[:end] + high), packet[end:]):
                raise IntegrityError(spi)
        if aes is None:
            return packet[start:end]
        if (end - start) % _BLOCK:
            raise EspFormatError(f"{end - start} octets aren't whole AES blocks", spi=spi)
        context = Cipher(aes, modes.CBC(packet[HEADER_LENGTH:start])).decryptor()
        return context.update(packet[start:end])

    return open_
