"""IKEv2 messages as layers (RFC 7296 §3): the header, and the payloads as far as keys reach."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.userspace.ike_cipher import IkeDecryptionError, IkeSaKeys, open_encrypted
from dsmip_ipsec.userspace.layers import Fields, Layer

_HEADER: Final = struct.Struct("!QQBBBBII")
_INITIATOR: Final = 0x08
_RESPONSE: Final = 0x20
_VERSION: Final = 0x10
_ENCRYPTED: Final = 46
_ENCRYPTED_FRAGMENT: Final = 53
_MAX_PAYLOADS: Final = 256

_EXCHANGES: Final = {
    34: "IKE_SA_INIT",
    35: "IKE_AUTH",
    36: "CREATE_CHILD_SA",
    37: "INFORMATIONAL",
    38: "IKE_SESSION_RESUME",
    43: "IKE_INTERMEDIATE",
}
_PAYLOADS: Final = {
    33: "Security Association",
    34: "Key Exchange",
    35: "Identification - Initiator",
    36: "Identification - Responder",
    37: "Certificate",
    38: "Certificate Request",
    39: "Authentication",
    40: "Nonce",
    41: "Notify",
    42: "Delete",
    43: "Vendor ID",
    44: "Traffic Selector - Initiator",
    45: "Traffic Selector - Responder",
    46: "Encrypted and Authenticated",
    47: "Configuration",
    48: "Extensible Authentication",
    53: "Encrypted and Authenticated Fragment",
}
_NOTIFY: Final = {
    1: "UNSUPPORTED_CRITICAL_PAYLOAD",
    4: "INVALID_IKE_SPI",
    5: "INVALID_MAJOR_VERSION",
    7: "INVALID_SYNTAX",
    9: "INVALID_MESSAGE_ID",
    11: "INVALID_SPI",
    14: "NO_PROPOSAL_CHOSEN",
    17: "INVALID_KE_PAYLOAD",
    24: "AUTHENTICATION_FAILED",
    34: "SINGLE_PAIR_REQUIRED",
    35: "NO_ADDITIONAL_SAS",
    36: "INTERNAL_ADDRESS_FAILURE",
    37: "FAILED_CP_REQUIRED",
    38: "TS_UNACCEPTABLE",
    39: "INVALID_SELECTORS",
    40: "UNACCEPTABLE_ADDRESSES",
    41: "UNEXPECTED_NAT_DETECTED",
    43: "TEMPORARY_FAILURE",
    44: "CHILD_SA_NOT_FOUND",
    16384: "INITIAL_CONTACT",
    16385: "SET_WINDOW_SIZE",
    16386: "ADDITIONAL_TS_POSSIBLE",
    16387: "IPCOMP_SUPPORTED",
    16388: "NAT_DETECTION_SOURCE_IP",
    16389: "NAT_DETECTION_DESTINATION_IP",
    16390: "COOKIE",
    16391: "USE_TRANSPORT_MODE",
    16392: "HTTP_CERT_LOOKUP_SUPPORTED",
    16393: "REKEY_SA",
    16394: "ESP_TFC_PADDING_NOT_SUPPORTED",
    16395: "NON_FIRST_FRAGMENTS_ALSO",
    16396: "MOBIKE_SUPPORTED",
    16397: "ADDITIONAL_IP4_ADDRESS",
    16398: "ADDITIONAL_IP6_ADDRESS",
    16399: "NO_ADDITIONAL_ADDRESSES",
    16400: "UPDATE_SA_ADDRESSES",
    16401: "COOKIE2",
    16402: "NO_NATS_ALLOWED",
    16403: "AUTH_LIFETIME",
    16404: "MULTIPLE_AUTH_SUPPORTED",
    16406: "REDIRECT_SUPPORTED",
    16417: "EAP_ONLY_AUTHENTICATION",
    16418: "CHILDLESS_IKEV2_SUPPORTED",
    16430: "IKEV2_FRAGMENTATION_SUPPORTED",
    16431: "SIGNATURE_HASH_ALGORITHMS",
}


class _Malformed(DsmipError):
    """A payload that isn't what its RFC says; becomes the ``error`` of its layer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="compare the message with RFC 7296 §3")


def dissect_ike(
    message: bytes, keys: Mapping[tuple[int, int], IkeSaKeys], *, cut: bool = False
) -> Layer:
    """One layer for a message; ``payloads`` lists its payloads. ``cut``: the capture has not all
    of the packet."""
    layer = Layer("IKEv2")
    if len(message) < _HEADER.size:
        layer.error = f"an IKE header has 28 octets, here are {len(message)}"
        return layer
    spi_i, spi_r, next_payload, version, exchange, flags, message_id, length = _HEADER.unpack_from(
        message
    )
    layer.fields = {
        "initiator_spi": f"{spi_i:016x}",
        "responder_spi": f"{spi_r:016x}",
        "next_payload": next_payload,
        "major_version": version >> 4,
        "minor_version": version & 15,
        "exchange_type": exchange,
        "exchange_type_name": _EXCHANGES.get(exchange, "unknown"),
        "initiator": bool(flags & _INITIATOR),
        "version": bool(flags & _VERSION),
        "response": bool(flags & _RESPONSE),
        "message_id": message_id,
        "length": length,
    }
    if version >> 4 != 2:
        layer.note = "not IKEv2"
        return layer
    if length < _HEADER.size or length > len(message):
        layer.error = f"length {length}, " + ("captured" if cut else "here") + f" {len(message)}"
    message = message[:length] if length >= _HEADER.size else message
    payloads: list[Fields] = []
    layer.fields["payloads"] = payloads
    walker = _Walker(message, keys.get((spi_i, spi_r)), bool(flags & _INITIATOR), payloads)
    try:
        walker.walk(message, _HEADER.size, next_payload)
    except DsmipError as error:
        layer.error = layer.error or error.message
    layer.note = walker.note
    return layer


class _Walker:
    def __init__(
        self, message: bytes, keys: IkeSaKeys | None, from_initiator: bool, found: list[Fields]
    ) -> None:
        self._message = message
        self._keys = keys
        self._from_initiator = from_initiator
        self._found = found
        self._inside = False
        self.note = ""

    def walk(self, data: bytes, offset: int, kind: int) -> None:
        """Payloads from ``offset`` on. Raises DsmipError at the first that is malformed."""
        while kind:
            if len(self._found) >= _MAX_PAYLOADS:
                raise _Malformed("too many payloads")
            if offset + 4 > len(data):
                raise _Malformed(f"payload {kind} is cut short")
            following, critical, length = struct.unpack_from("!BBH", data, offset)
            if length < 4 or offset + length > len(data):
                raise _Malformed(f"payload {kind} of {length} octets doesn't fit the message")
            body = data[offset + 4 : offset + length]
            entry: Fields = {
                "payload": _PAYLOADS.get(kind, "unknown"),
                "payload_type": kind,
                "critical": bool(critical & 0x80),
                "payload_length": length,
            }
            self._found.append(entry)
            if kind in (_ENCRYPTED, _ENCRYPTED_FRAGMENT):
                # RFC 7296 §3.14: the last payload; its Next Payload is that of the first inside.
                self._encrypted(entry, kind, offset + 4, body, following)
                return
            reader = _READERS.get(kind)
            if reader is not None:
                try:
                    entry.update(reader(body))
                except (struct.error, IndexError, ValueError):
                    entry["error"] = f"a malformed {entry['payload']} payload"
                    raise _Malformed(entry["error"]) from None
            offset += length
            kind = following

    def _encrypted(
        self, entry: Fields, kind: int, start: int, body: bytes, first_inside: int
    ) -> None:
        if self._inside:
            raise _Malformed("an encrypted payload inside another")
        self._inside = True
        if kind == _ENCRYPTED_FRAGMENT:
            # RFC 7383 §2.5
            if len(body) < 4:
                raise _Malformed("an encrypted fragment payload is cut short")
            number, total = struct.unpack_from("!HH", body)
            entry.update(fragment_number=number, total_fragments=total)
            start += 4
        if self._keys is None:
            entry["decrypted"] = False
            self.note = "no key for this IKE_SA"
            return
        try:
            plaintext = open_encrypted(
                self._keys, self._message, start, from_initiator=self._from_initiator
            )
        except IkeDecryptionError as error:
            entry["decrypted"] = False
            entry["error"] = error.message
            raise
        entry["decrypted"] = True
        if kind == _ENCRYPTED_FRAGMENT and entry["total_fragments"] != 1:
            self.note = "fragments aren't put together"
            return
        self.walk(plaintext, 0, first_inside)


# --- the content of payloads, as far as it tells something ---


def _security_association(body: bytes) -> Fields:
    proposals = []
    offset, more = 0, 2
    while more:
        more, _, length, number, protocol, spi_size, count = struct.unpack_from(
            "!BBHBBBB", body, offset
        )
        if length < 8 + spi_size or offset + length > len(body):
            raise ValueError
        proposals.append(
            {
                "proposal_num": number,
                "protocol_id": protocol,
                "spi": body[offset + 8 : offset + 8 + spi_size].hex(),
                "transforms": _transforms(body[offset + 8 + spi_size : offset + length], count),
            }
        )
        offset += length
    return {"proposals": proposals}


def _transforms(body: bytes, count: int) -> list[Fields]:
    transforms: list[Fields] = []
    offset = 0
    for _ in range(count):
        _, _, length, kind, _, identifier = struct.unpack_from("!BBHBBH", body, offset)
        if length < 8 or offset + length > len(body):
            raise ValueError
        transform: Fields = {"transform_type": kind, "transform_id": identifier}
        if length >= 12:
            attribute, value = struct.unpack_from("!HH", body, offset + 8)
            if attribute == 0x800E:
                transform["key_length"] = value
        transforms.append(transform)
        offset += length
    return transforms


def _key_exchange(body: bytes) -> Fields:
    (group,) = struct.unpack_from("!H", body)
    return {"diffie_hellman_group_num": group, "key_exchange_data_length": len(body) - 4}


def _identification(body: bytes) -> Fields:
    kind, data = body[0], body[4:]
    if kind == 1:
        text = str(IPv4Address(data))
    elif kind == 5:
        text = str(IPv6Address(data))
    elif kind in (2, 3):
        text = data.decode("utf-8", "replace")
    else:
        text = data.hex()
    return {"id_type": kind, "identification_data": text}


def _certificate(body: bytes) -> Fields:
    return {"cert_encoding": body[0], "certificate_data_length": len(body) - 1}


def _authentication(body: bytes) -> Fields:
    return {"auth_method": body[0], "authentication_data_length": max(len(body) - 4, 0)}


def _nonce(body: bytes) -> Fields:
    return {"nonce_data_length": len(body)}


def _notify(body: bytes) -> Fields:
    protocol, spi_size, kind = struct.unpack_from("!BBH", body)
    if len(body) < 4 + spi_size:
        raise ValueError
    return {
        "protocol_id": protocol,
        "spi": body[4 : 4 + spi_size].hex(),
        "notify_message_type": kind,
        "notify_message_type_name": _NOTIFY.get(kind, "unknown"),
        "notification_data": body[4 + spi_size :].hex(),
    }


def _delete(body: bytes) -> Fields:
    protocol, spi_size, count = struct.unpack_from("!BBH", body)
    if len(body) != 4 + spi_size * count:
        raise ValueError
    spis = [body[4 + i * spi_size : 4 + (i + 1) * spi_size].hex() for i in range(count)]
    return {"protocol_id": protocol, "spis": spis if spi_size else []}


def _traffic_selectors(body: bytes) -> Fields:
    selectors = []
    offset = 4
    for _ in range(body[0]):
        kind, protocol, length, first, last = struct.unpack_from("!BBHHH", body, offset)
        if length < 8 or offset + length > len(body):
            raise ValueError
        addresses = body[offset + 8 : offset + length]
        half = len(addresses) // 2
        ends = {4: IPv4Address, 16: IPv6Address}.get(half)
        if ends is None:
            raise ValueError
        selectors.append(
            {
                "ts_type": kind,
                "ip_protocol_id": protocol,
                "start_port": first,
                "end_port": last,
                "starting_address": str(ends(addresses[:half])),
                "ending_address": str(ends(addresses[half:])),
            }
        )
        offset += length
    return {"traffic_selectors": selectors}


def _vendor_id(body: bytes) -> Fields:
    return {"vendor_id": body.hex()}


_READERS: Final[dict[int, Callable[[bytes], Fields]]] = {
    33: _security_association,
    34: _key_exchange,
    35: _identification,
    36: _identification,
    37: _certificate,
    38: _certificate,
    39: _authentication,
    40: _nonce,
    41: _notify,
    42: _delete,
    43: _vendor_id,
    44: _traffic_selectors,
    45: _traffic_selectors,
}
