"""Known answers of the RFCs: RFC 7634 (ChaCha20-Poly1305), RFC 3602 (AES-CBC), RFC 4868 (HMAC)."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from esp_samples import SUITES, association

from dsmip_ipsec.ipsec.esp import EspReceiver, EspSender
from dsmip_ipsec.ipsec.esp_ciphers import esp_cipher
from dsmip_ipsec.ipsec.esp_packet import encapsulator, from_tunnel, to_transport, view
from dsmip_ipsec.ipsec.model import Algorithm, Mode, SecretKey, SecurityAssociation
from dsmip_ipsec.wire.esp import split_trailer

# --- RFC 7634, Appendix A ---

CHACHA_SOURCE = bytes.fromhex(
    "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f"
    "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"
)
CHACHA_PACKET = bytes.fromhex(
    "4500008c234500004032de5bcb007199cb00710501020304000000051011121314151617"
    "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6"
    "14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2fac"
    "c638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0"
    "76aaa8266b7fb0f7b11b369907e1ad43"
)
CHACHA_SA = SecurityAssociation(
    0x01020304,
    IPv4Address("203.0.113.153"),
    IPv4Address("203.0.113.5"),
    Mode.TUNNEL,
    1,
    aead=Algorithm(
        "rfc7539esp(chacha20,poly1305)",
        SecretKey(bytes(range(0x80, 0xA0)) + bytes(range(0xA0, 0xA4))),
        128,
    ),
)


def test_rfc7634_packet_opens() -> None:
    payload, next_header = EspReceiver(CHACHA_SA).open(CHACHA_PACKET[20:])
    assert next_header == 4
    assert from_tunnel(payload, next_header, 0, CHACHA_SA.spi) == CHACHA_SOURCE


def test_rfc7634_packet_is_made() -> None:
    """Our IV is the sequence number, the example's is another. With ESN a sequence number can
    have the example's IV for its value; the ciphertext is the same then, but not the ICV, which
    covers the sequence number."""
    iv = int.from_bytes(CHACHA_PACKET[28:36], "big")
    sealed = esp_cipher(CHACHA_SA, esn=True).seal(iv, CHACHA_SOURCE, 4)
    assert sealed[8:16] == CHACHA_PACKET[28:36]
    assert sealed[16:-16] == CHACHA_PACKET[36:-16]
    assert len(sealed) == len(CHACHA_PACKET) - 20


# --- RFC 3602, section 4, cases 5 to 8: ESP packets without ICV ---

ECHO = "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637"  # noqa: E501
CBC_CASES = {
    "case 5": (
        "90d382b410eeba7ad938c46cec1a82bf",
        0x4321,
        1,
        "e96e8c08ab465763fd098d45dd3ff893",
        "08000ebda70a00008e9c083db95b0700" + ECHO,
        1,
        "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856"
        "a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a"
        "a269add047ad2d5913ac19b7cfbad4a6",
    ),
    "case 6": (
        "90d382b410eeba7ad938c46cec1a82bf",
        0x4321,
        8,
        "69d08df7d203329db093fc4924e5bd80",
        "0800b5e8a80a0500a69c083d0b660e00777777777777777777777777",
        1,
        "f51995881ec4e0c4488987ce742e8109689bb379d2d750c0d915dca346a89f75",
    ),
    "case 7": (
        "0123456789abcdef0123456789abcdef",
        0x8765,
        2,
        "f4e765244f6407adf13dc1380f673f37",
        "45000054090400004001f988c0a87b03c0a87bc808009f76a90a0100b49c083d02a20400" + ECHO,
        4,
        "773b5241a4c449225e4f3ce5ed611b0c237ca96cf74a93013c1b0ea1a0cf70f8"
        "e4ecaec78ac53aad7a0f022b859243c647752e94a859352b8a4d4d2decd136e5"
        "c177f132ad3fbfb2201ac9904c74ee0a109e0ca1e4dfe9d5a100b842f1c22f0d",
    ),
    "case 8": (
        "0123456789abcdef0123456789abcdef",
        0x8765,
        5,
        "85d47224b5f3dd5d2101d4ea8dffab22",
        "45000044090c00004001f990c0a87b03c0a87bc80800d63caa0a0200c69c083da3de0300" + "ff" * 32,
        4,
        "15b92683819596a8047232cc00f7048fe45318e11f8a0f62ede3c3fc61203bb5"
        "0f980a08c9843fd3a1b06d5c07ff9639b7eb7dfb3512e5de435e7207ed971ef3"
        "d2726d9b5ef6affc6d17a0decbb13892",
    ),
}


@pytest.mark.parametrize("case", CBC_CASES.values(), ids=CBC_CASES)
def test_rfc3602(case: tuple[str, int, int, str, str, int, str]) -> None:
    cipher_key, spi, sequence, iv, plaintext, next_header, ciphertext = case
    end = ip_address("192.168.123.3")
    sa = SecurityAssociation(
        spi,
        end,
        end,
        Mode.TRANSPORT,
        1,
        encryption=Algorithm("cbc(aes)", SecretKey(bytes.fromhex(cipher_key))),
    )
    packet = spi.to_bytes(4, "big") + sequence.to_bytes(4, "big") + bytes.fromhex(iv + ciphertext)
    cipher = esp_cipher(sa, random=lambda length: bytes.fromhex(iv))
    assert cipher.seal(sequence, bytes.fromhex(plaintext), next_header) == packet
    assert split_trailer(cipher.open(packet, sequence)) == (bytes.fromhex(plaintext), next_header)


def test_rfc3602_case_5_with_its_ip_header() -> None:
    """Transport mode: the whole packet, IP header and all."""
    cipher_key, spi, sequence, iv, plaintext, _, ciphertext = CBC_CASES["case 5"]
    original = bytes.fromhex("4500005408f200004001f9fec0a87b03c0a87b64" + plaintext)
    sa = SecurityAssociation(
        spi,
        ip_address("192.168.123.3"),
        ip_address("192.168.123.100"),
        Mode.TRANSPORT,
        1,
        encryption=Algorithm("cbc(aes)", SecretKey(bytes.fromhex(cipher_key))),
    )
    sender = EspSender(sa, random=lambda length: bytes.fromhex(iv), sequence=sequence - 1)
    assert to_transport(sender, original, view(original)) == bytes.fromhex(
        "4500007c08f200004032f9a5c0a87b03c0a87b64" + "0000432100000001" + iv + ciphertext
    )


# --- RFC 4868, section 2.7.2: AUTH256-4, AUTH384-4, AUTH512-4 ---
# Their data is no ESP packet; as octets 8 to the end of one, with SPI and sequence of the same
# octets in front, it is: 0xcdcdcdcd is an SPI like another.

ONE = "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20"
TEN = "0a0b0c0d0e0f10111213141516171819"
MAC_CASES = {
    "AUTH256-4": (256, ONE, "372efcf9b40b35c2115b1346903d2ef4"),
    "AUTH384-4": (384, ONE + TEN, "5b540085c6e6358096532b2493609ed1cb298f774f87bb5c"),
    "AUTH512-4": (
        512,
        # The RFC prints 80 octets for a key "(64 bytes)": the first line doesn't belong there.
        ONE + "2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40",
        "5e6688e5a3daec826ca32eaea224eff5e700628947470e13ad01302561bab108",
    ),
}


@pytest.mark.parametrize("case", MAC_CASES.values(), ids=MAC_CASES)
def test_rfc4868(case: tuple[int, str, str]) -> None:
    bits, mac_key, icv = case
    end = ip_address("192.0.2.1")
    sa = SecurityAssociation(
        0xCDCDCDCD,
        end,
        end,
        Mode.TRANSPORT,
        1,
        encryption=Algorithm("ecb(cipher_null)", SecretKey(b"")),
        authentication=Algorithm(f"hmac(sha{bits})", SecretKey(bytes.fromhex(mac_key)), bits // 2),
    )
    data = b"\xcd" * 50
    assert esp_cipher(sa).open(data + bytes.fromhex(icv), 0xCDCDCDCD) == data[8:]


def test_tunnel_headers_are_those_of_the_rfc() -> None:
    """RFC 7634's outer header, where we make the same choices (all but identification and DF)."""
    outer = encapsulator(EspSender(CHACHA_SA, sequence=4))(CHACHA_SOURCE)
    assert outer[:4] == CHACHA_PACKET[:4]
    assert outer[8:10] == CHACHA_PACKET[8:10]
    assert outer[12:28] == CHACHA_PACKET[12:28]


@pytest.mark.parametrize("suite", SUITES)
def test_length_is_foretold(suite: str) -> None:
    sender = EspSender(association(suite), random=bytes)
    for length in (0, 1, 2, 13, 14, 15, 16, 17, 1400):
        assert len(sender.seal(bytes(length), 17)) == sender.length(length)
