"""Key tables as Wireshark has them, and which of their lines opens a packet."""

from __future__ import annotations

import hmac
import stat
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from userspace_samples import AGENT4, CARE_OF, HOME6, PEER6, tunnel_sa

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike.keylog import IkeKeys
from dsmip_ipsec.ipsec.esp import EspSender
from dsmip_ipsec.ipsec.esp_errors import IntegrityError
from dsmip_ipsec.ipsec.model import Algorithm, SecretKey
from dsmip_ipsec.report.wireshark import SaKeys, export
from dsmip_ipsec.userspace.dissect_ike import dissect_ike
from dsmip_ipsec.userspace.ike_cipher import IkeDecryptionError, IkeSaKeys, open_encrypted
from dsmip_ipsec.userspace.key_ring import KeyRing, NoKey
from dsmip_ipsec.userspace.key_tables import read_esp_sa, read_ikev2_table

WIRESHARK = Path(__file__).parents[2] / "data" / "decode" / "wireshark"
SA = tunnel_sa(CARE_OF, AGENT4, 0x1001)
HERE = [(CARE_OF, AGENT4)]
GCM = "AES-GCM with 16 octet ICV [RFC4106]"


def line(
    source: str, destination: str, key: str, spi: str = "0x00001001", cipher: str = GCM
) -> str:
    return f'"IPv4","{source}","{destination}","{spi}","{cipher}","{key}","NULL",""\n'


def ring(tmp_path: Path, text: str) -> KeyRing:
    (tmp_path / "esp_sa").write_text(text)
    return KeyRing.read(tmp_path)


def good_key() -> str:
    assert SA.aead is not None
    return "0x" + SA.aead.key.reveal().hex()


def test_every_suite_that_we_export_is_read_back(tmp_path: Path) -> None:
    """report/wireshark.py writes, this reads: the same algorithms and keys."""
    mac = {bits: Algorithm(f"hmac(sha{bits})", SecretKey(bytes(bits // 8)), bits // 2)
           for bits in (256, 384, 512)}  # fmt: skip
    suites: list[dict[str, Algorithm | None]] = [
        {"aead": Algorithm("rfc4106(gcm(aes))", SecretKey(bytes(range(length))), icv)}
        for length in (20, 28, 36)
        for icv in (64, 96, 128)
    ]
    for bits, cipher_length in ((256, 16), (384, 24), (512, 32)):
        cipher = Algorithm("cbc(aes)", SecretKey(bytes(range(cipher_length))))
        null = Algorithm("ecb(cipher_null)", SecretKey(b""))
        suites += [
            {"aead": None, "encryption": cipher, "authentication": mac[bits]},
            {"aead": None, "encryption": null, "authentication": mac[bits]},
        ]
    sas = []
    for number, suite in enumerate(suites, start=1):
        sas.append(
            replace(
                SA,
                spi=number,
                aead=suite["aead"],
                encryption=suite.get("encryption"),
                authentication=suite.get("authentication"),
            )
        )
    assert not export(tmp_path, map(SaKeys.of, sas)).skipped
    lines = read_esp_sa(tmp_path / "esp_sa")
    assert len(lines) == 3 * len(sas)
    keys = KeyRing.read(tmp_path)
    for sa in sas:
        packet = EspSender(sa, random=bytes).seal(b"payload", 17)
        assert keys.open(packet, HERE)[:2] == (b"payload", 17)
        assert keys.open(packet, [(HOME6, PEER6)])[:2] == (b"payload", 17)


def test_exact_addresses_come_before_wildcards(tmp_path: Path) -> None:
    """Two receivers chose one SPI: the line with the addresses is the right one, whatever the
    order; the wildcard's is tried when that fails."""
    wrong = "0x" + "00" * 20
    packet = EspSender(SA).seal(b"payload", 17)
    for text in (
        line("*", "*", wrong) + line(str(CARE_OF), str(AGENT4), good_key()),
        line("*", "*", good_key()) + line(str(CARE_OF), str(AGENT4), wrong),
        line("*", "*", wrong, spi="*") + line("*", str(AGENT4), good_key()),
        line("*", "*", good_key(), spi="*"),
    ):
        assert ring(tmp_path, text).open(packet, HERE) == (b"payload", 17, 3)
    with pytest.raises(NoKey):
        ring(tmp_path, line("192.0.2.99", "*", good_key())).open(packet, HERE)
    with pytest.raises(IntegrityError):
        ring(tmp_path, line("*", "*", wrong)).open(packet, HERE)


def test_the_complaint_is_the_exact_lines(tmp_path: Path) -> None:
    unsupported = line("*", "*", "0x00", cipher="TripleDES-CBC [RFC2451]")
    wrong = line(str(CARE_OF), str(AGENT4), "0x" + "00" * 20)
    with pytest.raises(IntegrityError):
        ring(tmp_path, unsupported + wrong).open(EspSender(SA).seal(b"", 59), HERE)


def test_extended_sequence_numbers_are_tried(tmp_path: Path) -> None:
    packet = EspSender(SA, esn=True).seal(b"payload", 17)
    assert ring(tmp_path, line("*", "*", good_key())).open(packet, HERE)[0] == b"payload"


def test_unknown_ciphers_are_no_error_of_the_packet(tmp_path: Path) -> None:
    text = line("*", "*", "0x00", cipher="TripleDES-CBC [RFC2451]")
    with pytest.raises(NoKey, match="TripleDES"):
        ring(tmp_path, text).open(EspSender(SA).seal(b"", 59), HERE)


@pytest.mark.parametrize(
    "bad",
    [
        '"IPv4","*"\n',
        line("*", "*", "0xZZ"),
        line("*", "*", "0x00", spi="0"),
        line("*", "*", "0x00", spi="many"),
        line("10.0.0.*", "*", "0x00"),
        line("2001:db8::1", "*", "0x00"),
        line("*", "*", "0x00").replace("IPv4", "IPX"),
        '"IPv4","*","*\n',
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "esp_sa"
    path.write_text("# comment\n\n" + bad)
    with pytest.raises(ConfigError) as caught:
        read_esp_sa(path)
    assert caught.value.line == 3
    assert "ZZ" not in str(caught.value)


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        KeyRing.read(tmp_path)
    (tmp_path / "esp_sa").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        KeyRing.read(tmp_path)


def test_ikev2_table_is_read_back(tmp_path: Path) -> None:
    ours = [
        IkeKeys("a", 1, 17, 18, ("AES_GCM_16_128", "PRF", "ECP"), bytes(20), bytes(range(20))),
        IkeKeys("b", 2, 19, 20, ("AES_GCM_8_256", "PRF", "ECP"), bytes(36), bytes(36)),
        IkeKeys("c", 3, 21, 22, ("AES_CBC_256", "HMAC_SHA2_384_192"),
                bytes(32), bytes(32), bytes(48), bytes(range(48))),
    ]  # fmt: skip
    export(tmp_path, [], ours)
    read = read_ikev2_table(tmp_path / "ikev2_decryption_table")
    assert [(keys.initiator_spi, keys.responder_spi) for keys in read] == [
        (17, 18),
        (19, 20),
        (21, 22),
    ]
    assert [keys.icv_bits for keys in read] == [128, 64, 192]
    assert read[0].sk_er == SecretKey(bytes(range(20)))
    assert read[2].sk_ar == SecretKey(bytes(range(48)))
    assert read[2].mac == "hmac(sha384)"
    for text in map(repr, read):
        assert "000102" not in text
        assert "\\x01" not in text


@pytest.mark.parametrize(
    "bad",
    [
        "1,2,3\n",
        'xx,01,00,00,"AES-GCM-128 with 16 octet ICV [RFC5282]",,,"NONE [RFC4306]"\n',
        '01,02,00,00,"AES-GCM-128 with 16 octet ICV [RFC5282]",,,"NONE [RFC4306]"\n',
    ],
)
def test_bad_ike_lines(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "ikev2_decryption_table"
    path.write_text(bad)
    with pytest.raises(ConfigError) as caught:
        read_ikev2_table(path)
    assert caught.value.line == 1


# RFC 7634, appendix B
IKE_MESSAGE = bytes.fromhex(
    "c0c1c2c3c4c5c6c7d0d1d2d3d4d5d6d72e202500000000090000004529000029"
    "10111213141516176103947 01f8d017f7c129248896b71bfe25236efd7cdc6706690 6315b2".replace(" ", "")
)


def test_rfc7634_ike_message() -> None:
    material = SecretKey(bytes(range(0x80, 0xA4)))
    keys = IkeSaKeys(
        0xC0C1C2C3C4C5C6C7, 0xD0D1D2D3D4D5D6D7, "chacha20poly1305", material, material, 128
    )
    plaintext = open_encrypted(keys, IKE_MESSAGE, 32, from_initiator=False)
    assert plaintext.hex() == "0000000c000040010000000a"
    for index in range(len(IKE_MESSAGE)):
        broken = bytearray(IKE_MESSAGE)
        broken[index] ^= 1
        with pytest.raises(IkeDecryptionError):
            open_encrypted(keys, bytes(broken), 32, from_initiator=False)
    for length in range(32, len(IKE_MESSAGE)):
        with pytest.raises(IkeDecryptionError):
            open_encrypted(keys, IKE_MESSAGE[:length], 32, from_initiator=False)


def ike_message(cipher: str, padding: int, *, fragment: tuple[int, int] | None = None) -> bytes:
    """An IKE message with one Notify inside an Encrypted (or Fragment) payload, as RFC 7296
    §3.14, RFC 5282 §3 and RFC 7383 §2.5 have it; keys are all zero."""
    inside = bytes.fromhex("0000000800004000") + bytes(padding) + bytes((padding,))
    head = b"" if fragment is None else struct.pack("!HH", *fragment)
    iv = bytes(16 if cipher == "cbc" else 8)
    length = 4 + len(head) + len(iv) + len(inside) + 16
    kind = 46 if fragment is None else 53
    header = struct.pack("!QQBBBBII", 1, 2, kind, 0x20, 37, 8, 5, 28 + length)
    front = header + struct.pack("!BBH", 41, 0, length) + head
    if cipher == "gcm":
        return front + iv + AESGCM(bytes(16)).encrypt(bytes(4) + iv, inside, front)
    encryptor = Cipher(algorithms.AES(bytes(16)), modes.CBC(iv)).encryptor()
    packet = front + iv + encryptor.update(inside)
    return packet + hmac.digest(bytes(32), packet, "sha256")[:16]


GCM_KEYS = IkeSaKeys(1, 2, "gcm(aes)", SecretKey(bytes(20)), SecretKey(b"x" * 20), 128)
CBC_KEYS = IkeSaKeys(
    *(1, 2, "cbc(aes)", SecretKey(bytes(16)), SecretKey(b"x" * 16), 128),
    *("hmac(sha256)", SecretKey(bytes(32)), SecretKey(b"x" * 32)),
)


@pytest.mark.parametrize(
    ("cipher", "keys", "padding"),
    [("gcm", GCM_KEYS, 0), ("gcm", GCM_KEYS, 5), ("cbc", CBC_KEYS, 7), ("cbc", CBC_KEYS, 23)],
)
def test_encrypted_payloads(cipher: str, keys: IkeSaKeys, padding: int) -> None:
    message = ike_message(cipher, padding)
    inside = open_encrypted(keys, message, 32, from_initiator=True)
    assert inside.hex() == "0000000800004000"
    layer = dissect_ike(message, {(1, 2): keys})
    assert layer.error == ""
    assert [p["payload_type"] for p in layer.fields["payloads"]] == [46, 41]
    assert layer.fields["payloads"][1]["notify_message_type_name"] == "INITIAL_CONTACT"
    broken = message[:-1] + bytes((message[-1] ^ 1,))
    assert "ICV" in dissect_ike(broken, {(1, 2): keys}).error
    with pytest.raises(IkeDecryptionError):  # the responder's keys are others
        open_encrypted(keys, message, 32, from_initiator=False)


def test_encrypted_fragments() -> None:
    layer = dissect_ike(ike_message("gcm", 0, fragment=(1, 1)), {(1, 2): GCM_KEYS})
    assert [p["payload_type"] for p in layer.fields["payloads"]] == [53, 41]
    layer = dissect_ike(ike_message("gcm", 0, fragment=(2, 3)), {(1, 2): GCM_KEYS})
    (payload,) = layer.fields["payloads"]
    assert payload["decrypted"] is True
    assert (payload["fragment_number"], payload["total_fragments"]) == (2, 3)
    assert "fragments" in layer.note


def test_padding_longer_than_the_payload() -> None:
    header = struct.pack("!QQBBBBII", 1, 2, 46, 0x20, 37, 8, 5, 57)
    front = header + struct.pack("!BBH", 41, 0, 29)
    message = front + bytes(8) + AESGCM(bytes(16)).encrypt(bytes(12), b"\x01", front)
    with pytest.raises(IkeDecryptionError, match="padding"):
        open_encrypted(GCM_KEYS, message, 32, from_initiator=True)


def test_committed_keys_are_readable_and_few() -> None:
    """They are throw-away, and stay the only ones."""
    keys = KeyRing.read(WIRESHARK)
    assert keys.ike
    assert not (WIRESHARK / "esp_sa").stat().st_mode & stat.S_IXUSR
    text = (WIRESHARK.parent / "README.md").read_text()
    assert "throw-away" in text
