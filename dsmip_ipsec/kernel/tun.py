"""A TUN interface: where the kernel hands us IPv6 packets after ESP has protected them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

from dsmip_ipsec.errors import KernelError

# linux/if_tun.h; struct ifreq is char name[16] and a short of flags here.
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("16sH22x")

MAX_PACKET = 65535

# The daemons' interface. It carries the home addresses, so charon must not look at it.
TUN_NAME = "dsmip0"


def open_tun(name: str) -> int:
    """Create the TUN interface ``name`` in this network namespace; return its descriptor.

    The descriptor is non-blocking and carries bare IP packets, one a read or write. The interface
    goes when the descriptor is closed. Raises KernelError.
    """
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(
            f"can't open /dev/net/tun: {error.strerror}",
            errno=error.errno or 0,
            hint="the kernel needs the tun module, and this process CAP_NET_ADMIN",
        ) from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        os.close(descriptor)
        raise KernelError(
            f"can't create the TUN interface {name}: {error.strerror}",
            errno=error.errno or 0,
            hint="another process may hold an interface of that name in this namespace",
        ) from error
    _silence(name)
    return descriptor


def _silence(name: str) -> None:
    """No link-local address, hence no router solicitations and MLD reports into the TUN."""
    with contextlib.suppress(OSError):  # a kernel that lacks the setting: they are dropped later
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1", encoding="ascii")
