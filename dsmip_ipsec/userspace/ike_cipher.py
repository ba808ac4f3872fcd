"""Opening the Encrypted payload of IKEv2 (RFC 7296 §3.14, RFC 5282), for reading captures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time, hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec.model import SecretKey

_SALT_LENGTH: Final = 4
_AEAD_IV_LENGTH: Final = 8
_BLOCK: Final = 16
_NONE: Final = SecretKey(b"")
_HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "hmac(sha1)": hashes.SHA1,
    "hmac(sha256)": hashes.SHA256,
    "hmac(sha384)": hashes.SHA384,
    "hmac(sha512)": hashes.SHA512,
}


class IkeDecryptionError(DsmipError):
    """An Encrypted payload that these keys don't open."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="it was changed, or the keys are another IKE_SA's")


@dataclass(frozen=True, slots=True)
class IkeSaKeys:
    """Keys of an IKE_SA (RFC 7296 §2.14). ``cipher`` is ``gcm(aes)``, ``chacha20poly1305`` (the
    salt at the end of the keys) or ``cbc(aes)`` with ``mac`` and its keys."""

    initiator_spi: int
    responder_spi: int
    cipher: str
    sk_ei: SecretKey
    sk_er: SecretKey
    icv_bits: int
    mac: str = ""
    sk_ai: SecretKey = _NONE
    sk_ar: SecretKey = _NONE


def open_encrypted(keys: IkeSaKeys, message: bytes, offset: int, *, from_initiator: bool) -> bytes:
    """The payloads in an Encrypted (or Encrypted Fragment) payload, padding taken off.

    ``message`` is the whole IKE message, ``offset`` where the IV starts, right behind the payload
    header: all in front of it is authenticated. Raises :class:`IkeDecryptionError`.
    """
    key = (keys.sk_ei if from_initiator else keys.sk_er).reveal()
    icv_length = keys.icv_bits // 8
    iv_length = _BLOCK if keys.cipher == "cbc(aes)" else _AEAD_IV_LENGTH
    if len(message) < offset + iv_length + 1 + icv_length:
        raise IkeDecryptionError("the encrypted payload is too short")
    iv = message[offset : offset + iv_length]
    ciphertext = message[offset + iv_length : -icv_length]
    icv = message[-icv_length:]
    if keys.cipher == "cbc(aes)":
        mac_key = keys.sk_ai if from_initiator else keys.sk_ar
        mac = hmac.HMAC(mac_key.reveal(), _HASHES[keys.mac]())
        mac.update(message[:-icv_length])
        if not constant_time.bytes_eq(mac.finalize()[:icv_length], icv):
            raise IkeDecryptionError("the ICV is wrong")
        if len(ciphertext) % _BLOCK:
            raise IkeDecryptionError(f"{len(ciphertext)} octets aren't whole AES blocks")
        plaintext = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor().update(ciphertext)
    else:
        nonce = key[-_SALT_LENGTH:] + iv
        try:
            plaintext = _open_aead(
                keys.cipher, key[:-_SALT_LENGTH], nonce, ciphertext, icv, message[:offset]
            )
        except InvalidTag:
            raise IkeDecryptionError("the ICV is wrong") from None
    end = len(plaintext) - 1 - plaintext[-1]
    if end < 0:
        raise IkeDecryptionError("the padding is longer than the payload")
    return plaintext[:end]


def _open_aead(
    cipher: str, key: bytes, nonce: bytes, ciphertext: bytes, icv: bytes, aad: bytes
) -> bytes:
    if cipher == "chacha20poly1305":
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext + icv, aad)
    mode = modes.GCM(nonce, icv, min_tag_length=len(icv))
    context = Cipher(algorithms.AES(key), mode).decryptor()
    context.authenticate_additional_data(aad)
    return context.update(ciphertext) + context.finalize()
