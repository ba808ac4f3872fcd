"""The Internet checksum, against RFC 1071's own way of adding and its example."""

from __future__ import annotations

import random

import pytest
from wire_samples import octet_sum

from dsmip_ipsec.wire.checksum import complement, internet_checksum, is_valid, words


def test_the_example_of_rfc_1071_section_3() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0xFFFF - 0xDDF2


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"", 0xFFFF), (bytes(6), 0xFFFF), (b"\xff\xff", 0), (b"\xff\xff" * 3, 0), (b"\x01", 0xFEFF)],
)
def test_edges(data: bytes, expected: int) -> None:
    """Zero has two forms in ones' complement: only all zeros sum up to the positive one."""
    assert internet_checksum(data) == expected


def test_equals_the_word_by_word_sum() -> None:
    rng = random.Random(1071)
    for _ in range(2000):
        data = rng.randbytes(rng.randrange(120))
        assert internet_checksum(data) == 0xFFFF - octet_sum(data)


def test_validity_and_every_single_bit_error() -> None:
    data = bytes.fromhex("45000073000040004011b861c0a80001c0a800c7")  # a header with its sum
    assert is_valid(words(data))
    for bit in range(len(data) * 8):
        broken = bytearray(data)
        broken[bit >> 3] ^= 1 << (bit & 7)
        assert not is_valid(words(bytes(broken)))


def test_complement_of_a_sum_of_all_ones_is_zero() -> None:
    assert complement(0xFFFF) == 0
    assert complement(0x1FFFE) == 0
