"""Neighbor Discovery and ARP on one interface, by packet sockets: sent as we want them, and heard
whether or not the kernel takes them for itself."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Final

from dsmip_ipsec.errors import KernelError
from dsmip_ipsec.kernel import socket_filter as bpf
from dsmip_ipsec.wire.neighbour import (
    IPPROTO_ICMPV6,
    NEIGHBOR_ADVERTISEMENT,
    NEIGHBOR_SOLICITATION,
    ROUTER_ADVERTISEMENT,
)

ETH_P_IPV6: Final = 0x86DD
ETH_P_ARP: Final = 0x0806
BROADCAST: Final = b"\xff" * 6

# linux/if_packet.h
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_ALLMULTI = 2
_MREQ = struct.Struct("=iHH8s")
_PACKET_OUTGOING = 4
_MAX_PACKET = 4096

# Behind the IPv6 header without extension headers; not our own.
_FILTER = (
    (bpf.LOAD_WORD, 0, 0, bpf.PACKET_TYPE),
    (bpf.JUMP_EQUAL, 7, 0, _PACKET_OUTGOING),
    (bpf.LOAD_OCTET, 0, 0, 6),
    (bpf.JUMP_EQUAL, 0, 5, IPPROTO_ICMPV6),
    (bpf.LOAD_OCTET, 0, 0, 40),
    (bpf.JUMP_EQUAL, 2, 0, ROUTER_ADVERTISEMENT),
    (bpf.JUMP_EQUAL, 1, 0, NEIGHBOR_SOLICITATION),
    (bpf.JUMP_EQUAL, 0, 1, NEIGHBOR_ADVERTISEMENT),
    (bpf.RETURN, 0, 0, bpf.ALL),
    (bpf.RETURN, 0, 0, 0),
)


class LinkSocket:
    """Needs CAP_NET_RAW in this network namespace. Raises KernelError."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        with contextlib.ExitStack() as made:
            try:
                self.index = socket.if_nametoindex(interface)
                self._nd = made.enter_context(_packet_socket())
                bpf.attach(self._nd, _FILTER)
                self._nd.bind((interface, ETH_P_IPV6))
                self.link_address = bytes(self._nd.getsockname()[4])
                self._nd.setsockopt(
                    _SOL_PACKET,
                    _PACKET_ADD_MEMBERSHIP,
                    _MREQ.pack(self.index, _PACKET_MR_ALLMULTI, 0, bytes(8)),
                )
                self._arp = made.enter_context(_packet_socket())
                self._arp.bind((interface, ETH_P_ARP))
            except OSError as error:
                raise KernelError(
                    f"can't listen on {interface}: {error.strerror}",
                    errno=error.errno or 0,
                    hint="is there such an interface, and is this root (or CAP_NET_RAW)?",
                ) from error
            made.pop_all()

    def filenos(self) -> tuple[int, int]:
        """To wait for: of what :meth:`receive` and :meth:`receive_arp` read."""
        return self._nd.fileno(), self._arp.fileno()

    def close(self) -> None:
        self._nd.close()
        self._arp.close()

    def receive(self) -> tuple[bytes, bytes] | None:
        """The next IPv6 packet that is Neighbor Discovery, and the link-layer address that it came
        from; None when none waits."""
        return _receive(self._nd)

    def receive_arp(self) -> bytes | None:
        """The next ARP packet, None when none waits."""
        received = _receive(self._arp)
        return received[0] if received is not None else None

    def send(self, packet: bytes, link_address: bytes) -> None:
        """Send an IPv6 packet to a link-layer address. Raises KernelError."""
        self._send(self._nd, packet, ETH_P_IPV6, link_address)

    def send_arp(self, packet: bytes, link_address: bytes = BROADCAST) -> None:
        """Send an ARP packet. Raises KernelError."""
        self._send(self._arp, packet, ETH_P_ARP, link_address)

    def _send(self, by: socket.socket, packet: bytes, protocol: int, link_address: bytes) -> None:
        try:
            by.sendto(packet, (self.interface, protocol, 0, 0, link_address))
        except OSError as error:
            raise KernelError(
                f"can't send on {self.interface}: {error.strerror}", errno=error.errno or 0
            ) from error


def _packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    made.setblocking(False)
    return made


def _receive(source: socket.socket) -> tuple[bytes, bytes] | None:
    try:
        packet, address = source.recvfrom(_MAX_PACKET)
    except BlockingIOError:
        return None
    except OSError:  # ENETDOWN, once, when the interface goes down
        return b"", b""
    return packet, bytes(address[4])
