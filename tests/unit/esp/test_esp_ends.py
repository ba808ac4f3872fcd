"""Sender and receiver: refusals, and that none of them moves the replay window."""

from __future__ import annotations

from dataclasses import replace

import pytest
from esp_samples import SUITES, CountingRandom, association, gcm, hmac, key
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec.esp import EspReceiver, EspSender
from dsmip_ipsec.ipsec.esp_ciphers import esp_cipher
from dsmip_ipsec.ipsec.esp_errors import (
    AlgorithmError,
    DuplicateError,
    EspError,
    EspFormatError,
    IntegrityError,
    SequenceExhausted,
)
from dsmip_ipsec.ipsec.model import Algorithm, SecretKey
from dsmip_ipsec.wire.esp import PaddingError, trailer

SECRET = key(36).reveal()


def ends(suite: str, *, esn: bool = False, start: int = 0) -> tuple[EspSender, EspReceiver]:
    sa = association(suite)
    sender = EspSender(sa, esn=esn, random=CountingRandom(5), sequence=start)
    return sender, EspReceiver(sa, esn=esn, highest=start)


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("suite", SUITES)
def test_every_changed_octet_is_noticed(suite: str, esn: bool) -> None:
    """Whatever octet changes, the packet is refused, and the original is accepted afterwards."""
    sender, receiver = ends(suite, esn=esn, start=10)
    packet = sender.seal(b"fifteen octets.", 17)
    for index in range(len(packet)):
        broken = bytearray(packet)
        broken[index] ^= 1
        with pytest.raises(EspError):
            receiver.open(bytes(broken))
    assert receiver.window.highest == 10
    assert receiver.open(packet) == (b"fifteen octets.", 17)
    with pytest.raises(DuplicateError):
        receiver.open(packet)


@pytest.mark.parametrize("suite", SUITES)
def test_every_cut_is_noticed(suite: str) -> None:
    sender, receiver = ends(suite)
    packet = sender.seal(b"x" * 40, 17)
    for length in range(len(packet)):
        with pytest.raises((EspFormatError, IntegrityError)):
            receiver.open(packet[:length])
    assert receiver.window.highest == 0


@pytest.mark.parametrize("suite", SUITES)
def test_a_forged_high_number_moves_no_window(suite: str) -> None:
    """The classic attack: push the window ahead so that honest packets fall out of it."""
    sender, receiver = ends(suite)
    honest = sender.seal(b"honest", 17)
    forged = honest[:4] + b"\xff\xff\xff\xf0" + honest[8:]
    with pytest.raises(IntegrityError):
        receiver.open(forged)
    assert receiver.open(honest)[0] == b"honest"


@pytest.mark.parametrize("suite", SUITES)
def test_esn_high_half_is_authenticated(suite: str) -> None:
    start = 3 << 32
    sender, receiver = ends(suite, esn=True, start=start)
    packet = sender.seal(b"payload", 17)
    assert packet[4:8] == b"\0\0\0\1"  # only the low half is sent
    elsewhere = EspReceiver(association(suite), esn=True, highest=4 << 32)
    with pytest.raises(IntegrityError):
        elsewhere.open(packet)
    assert receiver.open(packet) == (b"payload", 17)
    assert receiver.window.highest == start + 1


@pytest.mark.parametrize("esn", [False, True])
def test_sequence_numbers_end(esn: bool) -> None:
    last = (1 << (64 if esn else 32)) - 1
    sender = EspSender(association(), esn=esn, sequence=last - 1)
    sender.seal(b"the last", 17)
    for _ in range(2):
        with pytest.raises(SequenceExhausted) as caught:
            sender.seal(b"one too many", 17)
        assert caught.value.hint
    assert sender.sequence == last


@pytest.mark.parametrize("padding", [b"\1\3", b"\0\0", b"\2\1"])
def test_wrong_padding(padding: bytes) -> None:
    """Authentic, but not RFC 4303's padding: refused; the number is used up all the same."""
    sa = association("gcm128")
    packet = _sealed_without_trailer(b"twelve octet" + padding + bytes((2, 17)))
    receiver = EspReceiver(sa)
    with pytest.raises(PaddingError):
        receiver.open(packet)
    assert receiver.window.highest == 1
    honest = _sealed_without_trailer(b"twelve octet\1\2\2\x11")
    assert esp_cipher(sa).seal(1, b"twelve octet", 17) == honest


@pytest.mark.parametrize("plaintext", [b"abcd\x07\x11", b"\xff\x11"])
def test_padding_longer_than_the_payload(plaintext: bytes) -> None:
    with pytest.raises(PaddingError):
        EspReceiver(association("gcm128")).open(_sealed_without_trailer(plaintext))


def _sealed_without_trailer(plaintext: bytes) -> bytes:
    """An AES-GCM packet around a plaintext as it is, number 1 (RFC 4106, by the library)."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    material = key(20).reveal()
    head = (0x1000).to_bytes(4, "big") + (1).to_bytes(4, "big")
    iv = (1).to_bytes(8, "big")
    return head + iv + AESGCM(material[:16]).encrypt(material[16:] + iv, plaintext, head)


def test_iv_never_repeats() -> None:
    sender, _ = ends("gcm128")
    ivs = {sender.seal(b"", 59)[8:16] for _ in range(100)}
    assert len(ivs) == 100


def test_cbc_takes_its_iv_from_the_caller() -> None:
    sender = EspSender(association("cbc128-sha256"), random=CountingRandom(41))
    assert sender.seal(b"", 59)[8:24] == (42).to_bytes(16, "big")
    with pytest.raises(AlgorithmError):
        EspSender(association("cbc128-sha256")).seal(b"", 59)


@pytest.mark.parametrize(
    "change",
    [
        {"aead": Algorithm("rfc4106(gcm(aes))", key(16), 128)},
        {"aead": Algorithm("rfc4106(gcm(aes))", key(20), 120)},
        {"aead": Algorithm("rfc7539esp(chacha20,poly1305)", key(32), 128)},
        {"aead": Algorithm("rfc7539esp(chacha20,poly1305)", key(36), 64)},
        {"aead": Algorithm("rfc4543(gcm(aes))", key(20), 128)},
        {**gcm(), "authentication": hmac(256)},
        {"aead": None},
        {"aead": None, "encryption": Algorithm("cbc(aes)", key(15)), "authentication": hmac(256)},
        {
            "aead": None,
            "encryption": Algorithm("cbc(aes)", key(16)),
            "authentication": Algorithm("hmac(sha256)", key(31), 128),
        },
        {
            "aead": None,
            "encryption": Algorithm("cbc(aes)", key(16)),
            "authentication": Algorithm("hmac(sha256)", key(32), 96),
        },
        {"aead": None, "encryption": Algorithm("cbc(des3_ede)", key(24))},
        {"aead": None, "encryption": Algorithm("ecb(cipher_null)", key(0))},
        {"spi": 0},
    ],
)
def test_what_no_sa_can_be(change: dict[str, object]) -> None:
    sa = replace(association("gcm128"), **change)  # type: ignore[arg-type]
    with pytest.raises(AlgorithmError) as caught:
        EspSender(sa)
    assert caught.value.hint
    with pytest.raises(AlgorithmError):
        EspReceiver(sa)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SUITES)), st.binary(max_size=200))
def test_garbage_is_a_typed_error(suite: str, garbage: bytes) -> None:
    receiver = EspReceiver(association(suite))
    for packet in (garbage, b"\0\0\x10\0" + garbage):
        with pytest.raises(DsmipError):
            receiver.open(packet)
    assert receiver.window.highest == 0


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SUITES)), st.binary(max_size=300), st.integers(0, 255), st.booleans())
def test_what_is_sealed_opens(suite: str, payload: bytes, next_header: int, esn: bool) -> None:
    sender, receiver = ends(suite, esn=esn, start=(1 << 32) - 2 if esn else 0)
    for _ in range(3):
        packet = sender.seal(payload, next_header)
        assert len(packet) % 4 == 0
        assert receiver.open(packet) == (payload, next_header)


@pytest.mark.parametrize("suite", SUITES)
def test_keys_never_print(suite: str) -> None:
    sender, receiver = ends(suite)
    algorithms = SUITES[suite].values()
    packet = bytearray(sender.seal(b"x", 17))
    packet[-1] ^= 1
    with pytest.raises(IntegrityError) as caught:
        receiver.open(bytes(packet))
    texts = [repr(part) for part in (sender, receiver, sender.association, caught.value)]
    texts += [repr(esp_cipher(association(suite))), str(caught.value), caught.value.hint]
    for algorithm in algorithms:
        digits = algorithm.key.reveal()[:8].hex()
        for text in texts:
            assert not digits or digits not in text
            assert repr(algorithm.key.reveal()[:6])[2:-1] not in text or not digits


def test_trailer_padding_is_the_rfcs() -> None:
    assert trailer(5, 16, 4) == bytes(range(1, 10)) + b"\x09\x04"
    assert trailer(14, 16, 41) == b"\x00\x29"
    assert SecretKey(SECRET) == key(36)
