"""Many datagrams of the kernel in one system call: recvmmsg(2), which Python hasn't got.

Each notification is a datagram, and a home agent gets three for each SA that it moves. A system
call is what costs most there, on User-Mode Linux above all.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket

from dsmip_ipsec.xfrm.exchange import RECEIVE_OCTETS
from dsmip_ipsec.xfrm.socket import socket_error

#: Datagrams that one call brings at most. Only what they fill of their buffers takes memory.
DATAGRAMS = 32
_MSG_DONTWAIT = int(socket.MSG_DONTWAIT)
_libc = ctypes.CDLL(None, use_errno=True)


class _SockaddrNl(ctypes.Structure):
    """struct sockaddr_nl, linux/netlink.h"""

    _fields_ = (
        ("family", ctypes.c_ushort),
        ("padding", ctypes.c_ushort),
        ("port", ctypes.c_uint32),
        ("groups", ctypes.c_uint32),
    )


class _Iovec(ctypes.Structure):
    """struct iovec, sys/uio.h"""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    """struct msghdr, sys/socket.h"""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iov_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    """struct mmsghdr, sys/socket.h"""

    _fields_ = (("header", _Msghdr), ("length", ctypes.c_uint))


class BatchReceiver:
    """Reads datagrams of the kernel from a netlink socket, many at a time."""

    def __init__(self) -> None:
        self._octets = mmap.mmap(-1, DATAGRAMS * RECEIVE_OCTETS)
        self._senders = (_SockaddrNl * DATAGRAMS)()
        self._vectors = (_Iovec * DATAGRAMS)()
        self._headers = (_Mmsghdr * DATAGRAMS)()
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._octets))
        for at in range(DATAGRAMS):
            self._vectors[at] = _Iovec(start + at * RECEIVE_OCTETS, RECEIVE_OCTETS)
            header = self._headers[at].header
            header.name = ctypes.addressof(self._senders[at])
            header.name_length = ctypes.sizeof(_SockaddrNl)
            header.iov = ctypes.addressof(self._vectors[at])
            header.iov_length = 1

    def receive(self, sock: socket.socket) -> list[bytes]:
        """What is there now, in order; empty: nothing. Raises XfrmOverrun, XfrmError."""
        while True:
            count = _libc.recvmmsg(sock.fileno(), self._headers, DATAGRAMS, _MSG_DONTWAIT, None)
            if count < 0:
                code = ctypes.get_errno()
                if code == errno.EINTR:
                    continue
                if code == errno.EAGAIN:
                    return []
                raise socket_error(OSError(code, os.strerror(code)))
            found = []
            for at in range(count):
                # Other processes can send here too; the kernel's port is 0.
                if self._senders[at].port == 0:
                    begin = at * RECEIVE_OCTETS
                    found.append(self._octets[begin : begin + self._headers[at].length])
            if found or count == 0:
                return found
