"""Unpacking a kernel's image: Debian's own where it is installed, made ones, and broken ones."""

from __future__ import annotations

import gzip
import lzma
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from dsmip_ipsec.lab import qemu_image


def note(name: bytes, kind: int, description: bytes) -> bytes:
    return (
        struct.pack("<III", len(name), len(description), kind)
        + name.ljust(-len(name) % 4 + len(name), b"\0")
        + description.ljust(-len(description) % 4 + len(description), b"\0")
    )


PVH = note(b"Xen\0", 18, bytes(8))
OTHERS = note(b"GNU\0", 3, b"id of five"[:5]) + note(b"Xen\0", 6, b"linux\0")


def kernel(notes: bytes = OTHERS + PVH) -> bytes:
    """An ELF file of 64 bits with one segment of notes."""
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(notes), len(notes), 4)
    return header + segment + notes


def image(packed: bytes, *, magic: bytes = b"HdrS") -> bytes:
    """A bzImage with two sectors of setup and the payload 40 octets behind it."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = magic
    struct.pack_into("<II", setup, 0x248, 40, len(packed))
    return bytes(setup) + bytes(40) + packed


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_the_kernel_within_is_found(pack: Callable[[bytes], bytes]) -> None:
    # As in a real image, the size of what was packed follows.
    assert qemu_image.elf(image(pack(kernel()) + b"\x10\0\0\0")) == kernel()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        image(lzma.compress(kernel(OTHERS))),  # without the entry
        image(lzma.compress(b"no ELF file")),
        image(lzma.compress(kernel()), magic=b"other"),
        image(b"\x28\xb5\x2f\xfd"),  # zstd, which Python can't unpack
        image(lzma.compress(kernel()[:70])),
    ],
)
def test_another_kind_of_image_is_left_to_qemu(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    assert qemu_image.elf(data) is None
    assert qemu_image.unpacked(path, tmp_path, None) == path


def test_broken_images_raise_nothing() -> None:
    whole = image(lzma.compress(kernel()))
    generator = random.Random(5)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(generator.randrange(4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.3:
            del data[generator.randrange(len(data)) :]
        qemu_image.elf(bytes(data))
        inner = bytearray(kernel())
        inner[generator.randrange(6, 120)] = generator.randrange(256)
        qemu_image.elf(image(lzma.compress(inner)))


def test_it_is_kept_where_only_we_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "dsmip-ipsec"
    monkeypatch.setattr(qemu_image, "_base", lambda: tmp_path / "cache")
    scratch, path = tmp_path / "scratch", tmp_path / "vmlinuz"
    scratch.mkdir()
    path.write_bytes(image(lzma.compress(kernel())))
    kept = qemu_image.unpacked(path, scratch, None)
    assert kept.parent == cache
    assert kept.read_bytes() == kernel()
    assert [kept] == list(cache.iterdir())
    kept.write_bytes(b"as it is: it isn't unpacked twice")
    assert qemu_image.unpacked(path, scratch, None) == kept
    assert kept.read_bytes() == b"as it is: it isn't unpacked twice"
    # A directory that others may write to isn't trusted, nor is it mended behind its owner's back.
    cache.chmod(0o777)
    assert qemu_image.unpacked(path, scratch, None).parent == scratch
    assert cache.stat().st_mode & 0o777 == 0o777
