"""A kernel's image unpacked, since a kernel that unpacks itself takes five seconds without KVM.

QEMU starts the ELF file within by its PVH entry (a note that x86 kernels have for Xen and QEMU). It
is kept in a cache: ``/var/cache/dsmip-ipsec`` for root, else ``$XDG_CACHE_HOME/dsmip-ipsec``. Where
that can't be, it is unpacked for one run; where the image is of another kind, it is used as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import struct
import tempfile
import zlib
from pathlib import Path

from dsmip_ipsec.lab import guest_code

# Linux: Documentation/x86/boot.rst, the real-mode kernel header.
_SETUP_SECTS, _MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248
_UNPACKERS = {b"\xfd7zXZ\x00": "xz", b"\x1f\x8b": "gzip"}
_PT_NOTE = 4
# Xen: xen/include/public/elfnote.h.
_XEN_ELFNOTE_PHYS32_ENTRY = 18


def unpacked(image: Path, scratch: Path, user: guest_code.User | None) -> Path:
    """The file that QEMU shall start: in the cache, or in ``scratch``, or ``image`` itself.

    ``user``: who must be able to read it.
    """
    try:
        data = image.read_bytes()
    except OSError:
        return image  # QEMU says what is wrong with it
    name = f"vmlinux-{hashlib.sha256(data).hexdigest()[:32]}"
    cache = _cache(user)
    if cache is not None and (cache / name).is_file():
        return cache / name
    kernel = elf(data)
    if kernel is None:
        return image
    for directory in [scratch] if cache is None else [cache, scratch]:
        try:
            return _write(kernel, directory, name)
        except OSError:
            continue
    return image


def _base() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache")
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))


def _cache(user: guest_code.User | None) -> Path | None:
    """A directory that nobody else can write to, or None."""
    base = _base()
    if not base.is_absolute():
        return None
    directory = base / "dsmip-ipsec"
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)  # the guest's user reads it
        info = directory.lstat()
    except OSError:
        return None
    ours = info.st_uid == os.geteuid() and not info.st_mode & 0o022
    return directory if ours and guest_code.reaches(directory, user) else None


def _write(kernel: bytes, directory: Path, name: str) -> Path:
    """Under its name only when it is complete: several guests may start at once."""
    descriptor, part = tempfile.mkstemp(prefix=".part-", dir=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(kernel)
        os.chmod(part, 0o644)
        os.rename(part, directory / name)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    return directory / name


def elf(image: bytes) -> bytes | None:
    """The ELF file in a bzImage, None if there is none that QEMU can start."""
    try:
        if image[_MAGIC : _MAGIC + 4] != b"HdrS":
            return None
        offset, length = struct.unpack_from("<II", image, _PAYLOAD)
        offset += (image[_SETUP_SECTS] + 1) * 512
        packed = image[offset : offset + length]
        kind = next((kind for magic, kind in _UNPACKERS.items() if packed.startswith(magic)), "")
        if kind == "xz":
            kernel = lzma.LZMADecompressor().decompress(packed)
        elif kind == "gzip":
            kernel = zlib.decompressobj(wbits=31).decompress(packed)
        else:
            return None
        return kernel if _has_pvh_entry(kernel) else None
    except (struct.error, lzma.LZMAError, zlib.error, IndexError, ValueError, OverflowError):
        return None


def _has_pvh_entry(kernel: bytes) -> bool:
    if kernel[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian
        return False
    (table,) = struct.unpack_from("<Q", kernel, 32)
    size, count = struct.unpack_from("<HH", kernel, 54)
    for start in range(table, table + size * count, size):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, start)
        end = offset + length
        while kind == _PT_NOTE and offset < end:
            name, description, note = struct.unpack_from("<III", kernel, offset)
            if note == _XEN_ELFNOTE_PHYS32_ENTRY and kernel[offset + 12 : offset + 16] == b"Xen\0":
                return True
            offset += 12 + (name + 3 & ~3) + (description + 3 & ~3)
    return False
