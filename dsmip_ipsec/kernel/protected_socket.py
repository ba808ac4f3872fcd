"""Mobility Headers straight from a link, for a mobile node at home: neither UDP nor an option is
around them there, and no token comes with them.

The socket has a policy of its own, so that the kernel hands over nothing that didn't come under ESP
in transport mode, even while the SPD has no policy for that peer; the SA's selector ties a packet
to its peer.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.kernel import socket_filter as bpf
from dsmip_ipsec.kernel.mobility_socket import MAX_MESSAGE, ReceivedMobility
from dsmip_ipsec.wire.ip import IPPROTO_ESP, IPPROTO_MH
from dsmip_ipsec.xfrm.constants import Action, Direction, Mode
from dsmip_ipsec.xfrm.structs import SELECTOR, TEMPLATE, USERPOLICY_INFO

# linux/in6.h, not in Python's socket module.
_IPV6_XFRM_POLICY = 35
_PKTINFO = struct.Struct("=16si")

# Inbound: everything over IPv6 needs ESP in transport mode, by any SA with any algorithm.
_ESP_ONLY = USERPOLICY_INFO.pack(
    SELECTOR.pack(bytes(16), bytes(16), 0, 0, 0, 0, socket.AF_INET6, 0, 0, 0, 0, 0),
    *(0,) * 12,
    *(0, 0, Direction.IN, Action.ALLOW, 0, 0),
) + TEMPLATE.pack(
    bytes(16), 0, IPPROTO_ESP, socket.AF_INET6, bytes(16),
    *(0, Mode.TRANSPORT, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
)  # fmt: skip

# What has a mark was injected, and comes by another socket.
_UNMARKED = (
    (bpf.LOAD_WORD, 0, 0, bpf.PACKET_MARK),
    (bpf.JUMP_EQUAL, 0, 1, 0),
    (bpf.RETURN, 0, 0, bpf.ALL),
    (bpf.RETURN, 0, 0, 0),
)


class ProtectedSocket:
    """Needs CAP_NET_RAW and CAP_NET_ADMIN in this network namespace. Raises KernelError."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, IPPROTO_MH)
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_XFRM_POLICY, _ESP_ONLY)
            bpf.attach(self._socket, _UNMARKED)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            while self.receive() is not None:  # what came before policy and filter stood
                pass
        except OSError as error:
            raise KernelError(
                f"can't open a raw Mobility Header socket with a policy: {error.strerror}",
                errno=error.errno or 0,
                hint="run as root (or with CAP_NET_RAW and CAP_NET_ADMIN)",
            ) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> ReceivedMobility | None:
        """Return the next message, None when none waits."""
        try:
            message, ancillary, _, sender = self._socket.recvmsg(
                MAX_MESSAGE, socket.CMSG_SPACE(_PKTINFO.size)
            )
        except BlockingIOError:
            return None
        destination = IPv6Address(0)
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                destination = IPv6Address(_PKTINFO.unpack(data)[0])
        source = IPv6Address(sender[0].partition("%")[0])
        return ReceivedMobility(source, destination, 0, message)
