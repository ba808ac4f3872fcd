"""What a forked process inherits is made its own in one go: the right pages, and as they are."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from dsmip_ipsec.lab.inherited import WrittenPages

PAGE = mmap.PAGESIZE
PAGES = 3000  # more than one system call may name
WRITTEN = range(0, PAGES, 2)


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    """Pages of this process, each with its number in it. They were a file's, since the kernel joins
    anonymous mappings that are neighbours, and Python's own memory would be counted with them."""
    with TemporaryFile() as file:
        file.truncate(PAGES * PAGE)
        area = mmap.mmap(file.fileno(), PAGES * PAGE, flags=mmap.MAP_PRIVATE)
    with area:
        for page in range(PAGES):
            area[page * PAGE : page * PAGE + 4] = page.to_bytes(4, "big")
        yield area


def address(memory: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A fork that does ``work``, and waits; its pid. An assertion that fails in it fails here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as ended:
            assert ended.read(1) == b"x", "what the child had to do went wrong"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def own_kilobytes(pid: int, start: int) -> int:
    """What the kernel says is the process's alone of the mapping with the address ``start``."""
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:
            low, high = (int(each, 16) for each in words[0].split("-"))
            inside = low <= start < high
        elif inside and words[0] == "Private_Dirty:":
            return int(words[1])
    raise AssertionError("no such mapping")


def test_next_child_has_what_the_last_one_wrote(memory: mmap.mmap) -> None:
    start = address(memory)

    def write() -> None:
        for page in WRITTEN:
            memory[page * PAGE + 8] = 1

    with child(write) as pid:
        pages = WrittenPages(pid)
        by_writing = own_kilobytes(pid, start)
    assert len(pages) >= len(WRITTEN)  # and what Python itself has written

    def become() -> None:
        pages.map_at_once()
        for page in range(PAGES):
            there = memory[page * PAGE : page * PAGE + 9]
            assert there == page.to_bytes(4, "big") + bytes(5)
        memory[0] = 255  # still ours to write

    with child(become) as pid:
        in_advance = own_kilobytes(pid, start)
    with child(lambda: None) as pid:
        by_nobody = own_kilobytes(pid, start)
    expected = len(WRITTEN) * PAGE // 1024
    assert by_nobody == 0
    assert by_writing == expected
    # And the one that it has written itself, page 0, is among them.
    assert in_advance == expected
    assert memory[0:4] == bytes(4)


def test_nothing_is_known_of_who_has_ended() -> None:
    with child(lambda: None) as pid:
        pass
    pages = WrittenPages(pid)
    assert len(pages) == 0
    with child(pages.map_at_once):
        pass
