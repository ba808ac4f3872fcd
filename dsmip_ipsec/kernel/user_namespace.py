"""Being root without being it: a user namespace of one's own (user_namespaces(7)).

Root there may make network namespaces, links, TUN devices and NATs; nothing outside changes.
Modules can't be loaded from there, and nothing can be made more urgent than it is.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from dsmip_ipsec.errors import KernelError

# linux/sched.h, sys/mount.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MS_REC = 16384

_RUN = Path("/run")
# What ours make below /run, where only the real root may.
_OWN = frozenset({"netns", "dsmip-ipsec"})

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def unshare_as_root(flags: int) -> None:
    """Enter new namespaces (``flags``, and a user namespace) in which we are root. Only a process
    without other threads can. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", flags | CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path("/proc/self", name).write_text(text)


def enter() -> None:
    """Make this process root in user, network and mount namespaces of its own, with a ``/run``
    where namespaces can get names. Files stay those of the user. They all go with the last
    process in them.

    Raises KernelError; the process may be in new namespaces then, and should end.
    """
    try:
        unshare_as_root(CLONE_NEWNET | CLONE_NEWNS)
        _writable_run()
    except OSError as error:
        raise KernelError(
            f"no user namespace: {error.strerror}",
            errno=error.errno or 0,
            hint="run it in a guest (--kernel uml), or as root",
        ) from error


def _writable_run() -> None:
    """A tmpfs, in which the directories of before are still to be found."""
    before = os.open(_RUN, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _call("mount", b"none", os.fsencode(_RUN), b"tmpfs", ctypes.c_ulong(0), b"mode=755")
        for entry in os.scandir(f"/proc/self/fd/{before}"):
            if entry.is_dir(follow_symlinks=False) and entry.name not in _OWN:
                target = _RUN / entry.name
                target.mkdir()
                with suppress(OSError):  # one that we may not see stays empty
                    flags = ctypes.c_ulong(MS_BIND | MS_REC)
                    _call("mount", os.fsencode(entry.path), os.fsencode(target), None, flags, None)
    finally:
        os.close(before)
