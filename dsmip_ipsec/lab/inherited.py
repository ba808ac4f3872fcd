"""Has pages that a forked process inherits made its own and mapped at once, not one by one.

User-Mode Linux maps none of a new process's pages in the host. The first touch of each is a fault:
a signal, two switches between processes of the host, and an mmap there, 0.1 ms of processor time.
A daemon of ours touches 5 000 until it is ready, and that is most of what its start costs.

Two things that a process may ask for go through many pages in one system call. Written from
outside, by process_vm_writev(2), they become its own, as they would by a write of its own
(copy-on-write); and when the protection of a mapping changes, the kernel maps all of it that is
present. So what one process has written until it was ready is written for the next one of its kind
in advance, and each mapping's protection is changed, and changed back.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# sys/mman.h
_READ, _WRITE, _EXECUTE = 1, 2, 4
# Documentation/admin-guide/mm/pagemap.rst
_PRESENT, _OF_A_FILE, _MAPPED_ONCE = 1 << 63, 1 << 61, 1 << 56
_ENTRY = 8
_PAGE = os.sysconf("SC_PAGE_SIZE")
_IOV_MAX = 1024  # linux/uio.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_VECTOR = (ctypes.c_void_p, ctypes.c_ulong)
_libc.process_vm_writev.argtypes = (ctypes.c_int, *_VECTOR, *_VECTOR, ctypes.c_ulong)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Private, readable and writable memory of a process."""

    start: int
    size: int
    executable: bool


def is_worthwhile() -> bool:
    """Whether this kernel is one where it helps."""
    return os.environ.get("DSMIP_GUEST") == "uml"


class WrittenPages:
    """Those that ``pid``, a child of ours, inherited and has written since. None when it has ended
    or isn't ours to look at."""

    def __init__(self, pid: int) -> None:
        try:
            ours, its = _pagemap(os.getpid()), _pagemap(pid)
        except OSError:
            ours = its = {}
        pages = [
            address
            for address, entry in its.items()
            if entry & _MAPPED_ONCE
            and not entry & _OF_A_FILE
            and ours.get(address, 0) & (_PRESENT | _OF_A_FILE) == _PRESENT
        ]
        # One octet of each. Made here: the next children inherit it.
        self._vector = (_Iovec * len(pages))(*[_Iovec(address, 1) for address in pages])

    def __len__(self) -> int:
        return len(self._vector)

    def map_at_once(self) -> None:
        """To be called by a later child, while it has but one thread: copy these pages, and map all
        that it has inherited. What can't be done for some reason is left to the faults."""
        first = 0
        while first < len(self):
            part = ctypes.byref(self._vector, first * ctypes.sizeof(_Iovec))
            count = min(_IOV_MAX, len(self) - first)
            written = _libc.process_vm_writev(os.getpid(), part, count, part, count, 0)
            first += count if written == count else max(0, written) + 1  # past what has gone
        for mapping in list(_mappings(os.getpid())):
            now = _READ | _WRITE | (_EXECUTE if mapping.executable else 0)
            # Nothing is executed there.
            _libc.mprotect(mapping.start, mapping.size, now ^ _EXECUTE)
            _libc.mprotect(mapping.start, mapping.size, now)


def _mappings(pid: int) -> Iterator[_Mapping]:
    for line in Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").splitlines():
        where, flags, _, _, _, *name = line.split(maxsplit=5)
        if flags.startswith("rw") and flags.endswith("p") and name != ["[stack]"]:
            start, end = (int(each, 16) for each in where.split("-"))
            yield _Mapping(start, end - start, "x" in flags)


def _pagemap(pid: int) -> dict[int, int]:
    """The entries of a process's pagemap, by address, of such mappings. Raises OSError."""
    found: dict[int, int] = {}
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        for mapping in _mappings(pid):
            pagemap.seek(mapping.start // _PAGE * _ENTRY)
            octets = pagemap.read(mapping.size // _PAGE * _ENTRY)
            entries = (entry for (entry,) in struct.iter_unpack("=Q", octets))
            addresses = range(mapping.start, mapping.start + mapping.size, _PAGE)
            found.update(zip(addresses, entries, strict=False))
    return found
