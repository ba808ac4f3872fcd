"""Fresh network namespaces for the XFRM tests, and iproute2 to judge by."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import subprocess
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def fresh_netns() -> Iterator[None]:
    """This process (and what it starts) is in a new network namespace with a loopback."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            ip("link set lo up")
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(home)


def ip(arguments: str) -> str:
    """What ``ip ARGUMENTS`` prints. Raises CalledProcessError."""
    command = ["ip", *shlex.split(arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ip_objects(listing: str) -> list[str]:
    """The objects of ``ip -d xfrm state`` or ``policy``, sorted: their order is not ours."""
    return sorted(re.split(r"\n(?=src )", ip(listing).strip()))
