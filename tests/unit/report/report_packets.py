"""Packets made by other people's code (scapy, cryptography), and tshark to read them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import HAO, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils import PcapWriter

HOME_ADDRESS = "2001:db8:1::10"
HOME_AGENT = "2001:db8:1::1"
NAT_ADDRESS = "192.0.2.1"
HOME_AGENT_IPV4 = "203.0.113.1"
HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def binding_update() -> bytes:
    """A BU of RFC 6275 §6.1.7 with an IPv4 home address (29) and an IPv4 care-of address (32)
    option of RFC 5555 §3.1, padded to 32 octets. Its checksum is left at zero: tshark doesn't
    look at it."""
    header = bytes.fromhex("3b 03 05 00 0000")
    body = bytes.fromhex("0007 c000 0096")  # sequence 7, A and H, 600 s
    ipv4_home_address = bytes([29, 6, 32 << 2, 0, 198, 51, 100, 10])
    ipv4_care_of_address = bytes([32, 6, 0, 0, 10, 1, 0, 2])
    pad_n = bytes([1, 2, 0, 0])
    message = header + body + ipv4_home_address + ipv4_care_of_address + pad_n
    assert len(message) == 8 * (message[1] + 1)
    return message


def _trailer(payload: bytes, next_header: int, block: int) -> bytes:
    padding = -(len(payload) + 2) % block
    return payload + bytes(range(1, padding + 1)) + bytes([padding, next_header])


def esp_gcm(
    key: bytes, spi: int, payload: bytes, next_header: int, *, icv: int = 16, esn: bool = False
) -> bytes:
    """RFC 4106. ``key`` ends in the salt, ``icv`` in octets."""
    header = spi.to_bytes(4, "big") + (1).to_bytes(4, "big")
    iv = bytes(7) + b"\1"
    encryptor = Cipher(algorithms.AES(key[:-4]), modes.GCM(key[-4:] + iv)).encryptor()
    encryptor.authenticate_additional_data(header[:4] + bytes(4) + header[4:] if esn else header)
    ciphertext = encryptor.update(_trailer(payload, next_header, 4)) + encryptor.finalize()
    return header + iv + ciphertext + encryptor.tag[:icv]


def esp_hmac(
    key: bytes | None,
    mac: str,
    mac_key: bytes,
    spi: int,
    payload: bytes,
    next_header: int,
    *,
    icv: int,
) -> bytes:
    """AES-CBC (RFC 3602), or NULL (RFC 2410) without ``key``, and a truncated HMAC."""
    header = spi.to_bytes(4, "big") + (1).to_bytes(4, "big")
    if key is None:
        message = header + _trailer(payload, next_header, 4)
    else:
        iv = bytes(range(16))
        encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
        plaintext = _trailer(payload, next_header, 16)
        message = header + iv + encryptor.update(plaintext) + encryptor.finalize()
    return message + _mac(mac, mac_key, message)[:icv]


def _mac(name: str, key: bytes, message: bytes) -> bytes:
    computation = hmac.HMAC(key, HASHES[name])
    computation.update(message)
    return computation.finalize()


UPDATE_SA_ADDRESSES = bytes.fromhex("00 00 0008 00 00 4010")  # notify 16400, RFC 4555 §4.2.4
IKE_SPIS = 0x0102030405060708, 0x1112131415161718


def _ike_head(length: int) -> bytes:
    """IKE header of an INFORMATIONAL request and header of its SK payload, holding a notify."""
    spis = b"".join(spi.to_bytes(8, "big") for spi in IKE_SPIS)
    fixed = bytes([46, 0x20, 37, 0x08, 0, 0, 0, 1])
    total = 28 + 4 + length
    return spis + fixed + total.to_bytes(4, "big") + b"\x29\0" + (4 + length).to_bytes(2, "big")


def ike_gcm(key: bytes, *, icv: int = 16) -> bytes:
    """RFC 5282. ``key`` ends in the salt."""
    plaintext = UPDATE_SA_ADDRESSES + b"\0"
    iv = b"\x07" * 8
    head = _ike_head(len(iv) + len(plaintext) + icv)
    encryptor = Cipher(algorithms.AES(key[:-4]), modes.GCM(key[-4:] + iv)).encryptor()
    encryptor.authenticate_additional_data(head)
    return head + iv + encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag[:icv]


def ike_cbc(key: bytes, mac: str, mac_key: bytes, *, icv: int) -> bytes:
    """RFC 7296 §3.14."""
    padding = -(len(UPDATE_SA_ADDRESSES) + 1) % 16
    plaintext = UPDATE_SA_ADDRESSES + bytes(padding) + bytes([padding])
    iv = b"\x07" * 16
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    message = (
        _ike_head(len(iv) + len(plaintext) + icv)
        + iv
        + encryptor.update(plaintext)
        + encryptor.finalize()
    )
    return message + _mac(mac, mac_key, message)[:icv]


def signalling(esp: bytes) -> Any:
    """RFC 5555 §5.2.1: IPv4 / UDP 4191 / IPv6 (HoA, HA) / ESP."""
    return (
        IP(src=NAT_ADDRESS, dst=HOME_AGENT_IPV4)
        / UDP(sport=40000, dport=4191)
        / IPv6(src=HOME_ADDRESS, dst=HOME_AGENT, nh=50)
        / Raw(esp)
    )


def native(esp: bytes, care_of_address: str = "2001:db8:b::2") -> Any:
    """RFC 6275 §11.7.1: IPv6 (CoA, HA) / home address option / ESP."""
    return (
        IPv6(src=care_of_address, dst=HOME_AGENT)
        / IPv6ExtHdrDestOpt(nh=50, options=[HAO(hoa=HOME_ADDRESS)])
        / Raw(esp)
    )


def bare(message: bytes) -> Any:
    """A Mobility Header without ESP."""
    return IPv6(src=HOME_ADDRESS, dst=HOME_AGENT, nh=135) / Raw(message)


def udp_4500(content: bytes) -> Any:
    """RFC 3948: ESP in UDP, or IKE with its marker, from behind a NAT."""
    return IP(src=NAT_ADDRESS, dst=HOME_AGENT_IPV4) / UDP(sport=41000, dport=4500) / Raw(content)


def inner_packet() -> bytes:
    """A data packet of the mobile node, to go into a tunnel."""
    return bytes(IPv6(src=HOME_ADDRESS, dst="2001:db8:2::1") / UDP(sport=7, dport=9) / b"data")


def write_capture(path: Path, *packets: Any) -> Path:
    """A pcap file of the packets."""
    with PcapWriter(str(path), linktype=1, sync=True) as writer:
        for packet in packets:
            writer.write(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet)
    return path


def tshark(
    config: Path, capture: Path, *fields: str, options: tuple[str, ...] = ()
) -> tuple[list[dict[str, list[str]]], str]:
    """Values of the fields in each packet, and what tshark complained about."""
    command = ["tshark", "-n", "-r", str(capture), "-T", "json", *options]
    for name in ("frame.protocols", *fields):
        command += ["-e", name]
    done = subprocess.run(
        command,
        env=os.environ | {"WIRESHARK_CONFIG_DIR": str(config)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    complaints = "".join(
        line for line in done.stderr.splitlines(True) if "Running as user" not in line
    )
    packets = [packet["_source"].get("layers", {}) for packet in json.loads(done.stdout)]
    return packets, complaints.strip()
