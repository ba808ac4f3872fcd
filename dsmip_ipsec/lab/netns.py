"""Named network namespaces, as ``ip netns`` keeps them, without starting a process for each.

pyroute2 has this too, but forks a child for every namespace and mounts ``/proc/self/ns/net``,
which names the main thread's namespace. In a guest kernel a fork is what costs; here one thread
hops through the namespaces and is thrown away, so that a caller never finds itself in another
namespace than before.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..errors import LabError

T = TypeVar("T")

DIRECTORY = Path("/run/netns")

# linux/sched.h, linux/mount.h, sys/mount.h
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384
MS_SHARED = 1 << 20
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: bytes | None, target: bytes, flags: int) -> None:
    _call("mount", source, target, b"none", ctypes.c_ulong(flags), None)


def path(name: str) -> Path:
    """Where the namespace ``name`` is mounted."""
    return DIRECTORY / name


def isolated(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread of its own, which may enter namespaces as it likes.

    Processes that it starts inherit the namespace that the thread is in. What it raises is raised
    here.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # handed to the caller, whatever it is
            failures.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def enter(name: str) -> None:
    """Move the calling thread into the namespace ``name`` (call it within :func:`isolated`).

    :raises LabError: there is no such namespace, or it may not be entered.
    """
    try:
        descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", descriptor, CLONE_NEWNET)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failure(f"the network namespace '{name}' can't be entered", error) from None


def enter_descriptor(descriptor: int) -> None:
    """:func:`enter` for an open file; safe between fork and exec (it only calls setns).

    :raises OSError: setns failed.
    """
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def visit(descriptor: int) -> Iterator[None]:
    """Have the calling thread in another namespace meanwhile: what it starts there stays there.

    :raises OSError: setns failed.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_descriptor(descriptor)
        try:
            yield
        finally:
            enter_descriptor(own)
    finally:
        os.close(own)


@contextmanager
def descriptors(names: Iterable[str]) -> Iterator[dict[str, int]]:
    """Open files of several namespaces, by name, closed at the end.

    :raises LabError: one of them doesn't exist.
    """
    opened: dict[str, int] = {}
    try:
        for name in names:
            try:
                opened[name] = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _failure(f"no network namespace '{name}'", error) from None
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def create(name: str) -> None:
    """Make the namespace ``name`` and leave the calling thread in it (call it within
    :func:`isolated`).

    :raises LabError: it exists, or we may not make one.
    """
    target = path(name)
    try:
        _share_directory()
        os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except OSError as error:
        raise _failure(f"the network namespace '{name}' can't be made", error) from None
    try:
        _call("unshare", CLONE_NEWNET)
        _mount(b"/proc/thread-self/ns/net", os.fsencode(target), MS_BIND)
    except OSError as error:
        with suppress(OSError):
            target.unlink()
        raise _failure(f"the network namespace '{name}' can't be made", error) from None


def _share_directory() -> None:
    """Make the directory a shared mount, as ``ip netns add`` does, so that a namespace that is
    unmounted in one mount namespace goes away in all."""
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = os.fsencode(DIRECTORY)
    try:
        _mount(b"", directory, MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(directory, directory, MS_BIND | MS_REC)  # EINVAL: not a mount point yet
        _mount(b"", directory, MS_SHARED | MS_REC)


def remove(name: str) -> bool:
    """Take the namespace's name away; it ends with its last process and socket.

    :returns: whether there was one.
    :raises LabError: it can't be removed.
    """
    target = path(name)
    with suppress(OSError):  # EINVAL: made, but never mounted
        _call("umount2", os.fsencode(target), MNT_DETACH)
    try:
        target.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _failure(f"the network namespace '{name}' can't be removed", error) from None
    return True


def pids(names: Iterable[str]) -> set[int]:
    """Processes whose network namespace is one of ``names``."""
    wanted = set()
    for name in names:
        with suppress(OSError):
            status = path(name).stat()
            wanted.add((status.st_dev, status.st_ino))
    found: set[int] = set()
    for entry in os.listdir("/proc") if wanted else ():
        if entry.isdigit():
            # Gone meanwhile, a zombie, or not ours to look at.
            with suppress(OSError):
                status = os.stat(f"/proc/{entry}/ns/net")
                if (status.st_dev, status.st_ino) in wanted:
                    found.add(int(entry))
    return found


def _failure(message: str, error: OSError) -> LabError:
    hint = "run `dsmip-ipsec lab down` if an earlier run was killed"
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = "namespaces need root: run the lab in a guest (--kernel uml), or as root"
    return LabError(f"{message}: {error.strerror}", hint=hint)
