"""Many datagrams in one call, on local sockets (the kernel tests have netlink ones)."""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsmip_ipsec.xfrm import XfrmError
from dsmip_ipsec.xfrm.batch import DATAGRAMS, BatchReceiver, _Mmsghdr, _Msghdr, _SockaddrNl


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Sender without a name, which looks like netlink's port 0, and receiver."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with sender, receiver:
        yield sender, receiver


def test_structures_have_the_sizes_of_c() -> None:
    assert [ctypes.sizeof(each) for each in (_SockaddrNl, _Msghdr, _Mmsghdr)] == [12, 56, 64]


def test_datagrams_come_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    sender, receiver = ends
    batch = BatchReceiver()
    assert batch.receive(receiver) == []
    for _ in range(3):  # the buffers serve again
        for given in ([b"one"], [b"a" * 5000, b"", b"three"], [b"x" * 60000, b"y"]):
            for datagram in given:
                sender.send(datagram)
            assert batch.receive(receiver) == given
    assert batch.receive(receiver) == []


def test_reading_goes_on_past_a_call_full_of_what_others_sent() -> None:
    """On UDP, since a local socket takes ten datagrams before it is read; the octets in the place
    of netlink's port are the sender's address."""
    count = DATAGRAMS + 3
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        for number in range(count):
            sender.sendto(b"%d" % number, receiver.getsockname())
        batch = BatchReceiver()
        assert batch.receive(receiver) == []
        with pytest.raises(BlockingIOError):
            receiver.recv(1, socket.MSG_DONTWAIT)


def test_what_others_send_is_left_out(tmp_path: Path) -> None:
    """Their port isn't 0; here, the octets in its place are of a path."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(str(tmp_path / "receiver"))
        other.bind(str(tmp_path / "other"))
        other.sendto(b"not the kernel's", str(tmp_path / "receiver"))
        assert BatchReceiver().receive(receiver) == []


def test_an_error_of_the_socket_is_typed(ends: tuple[socket.socket, socket.socket]) -> None:
    _, receiver = ends
    receiver.close()
    with pytest.raises(XfrmError):
        BatchReceiver().receive(receiver)
