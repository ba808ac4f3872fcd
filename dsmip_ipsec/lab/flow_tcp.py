"""Probes in a TCP connection: what an application sees of a handover.

The mobile node connects from its home address, again and again until somebody answers, and both
ends send their probes in that connection, each as a record of the same length. A probe that TCP
had to repeat arrives late, and so do those behind it: the interruption is the connection's stall.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

# linux/in.h, linux/in6.h; Python has no names for these.
IP_FREEBIND = 15
IPV6_FREEBIND = 78

_RETRY_NS = 300_000_000
# A SYN that was lost is repeated after a second; a new one may go the right way by then.
_CONNECT_NS = 1_000_000_000
_WAITING = (errno.EINPROGRESS, errno.EALREADY)


def freebind(bound: socket.socket) -> None:
    """Let ``bound`` have an address that comes later than we do."""
    if bound.family == socket.AF_INET6:
        bound.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)


class Connection:
    """One end of the connection between ``local`` and ``remote``: the mobile node's, which
    connects to ``port``, or the correspondent's, which has it (``listens``). ``size``: of a
    record."""

    def __init__(self, local: str, remote: str, port: int, size: int, *, listens: bool) -> None:
        self._local, self._remote, self._port, self._size = local, remote, port, size
        self._family = socket.AF_INET6 if ":" in local else socket.AF_INET
        self._listening = self._listen() if listens else None
        self._socket: socket.socket | None = None
        self._connected = False
        self._tried_ns = 0
        self._unsent = b""
        self._received = b""

    def sockets(self) -> list[socket.socket]:
        """Those to wait for until one can be read."""
        return [one for one in (self._listening, self._socket) if one is not None]

    def tick(self) -> None:
        """Have the connection made, and what is left of a record sent. Call it often."""
        now = time.monotonic_ns()
        if self._listening is not None:
            self._accept(self._listening)
        elif self._socket is None:
            if now - self._tried_ns >= _RETRY_NS:
                self._tried_ns = now
                self._connect()
        elif not self._connected:
            self._finish(self._socket, late=now - self._tried_ns >= _CONNECT_NS)
        self._flush()

    def send(self, record: bytes) -> None:
        """Send a record. Raises OSError where it isn't taken: no connection, no room."""
        if self._socket is None or not self._connected:
            raise OSError(errno.ENOTCONN, "no connection")
        self._flush()
        if self._unsent:
            raise OSError(errno.EAGAIN, "no room")
        self._unsent = record
        self._flush()

    def receive(self) -> Iterator[bytes]:
        """The records that have arrived."""
        while self._socket is not None and self._connected:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.drop()
                return
            self._received += data
            while len(self._received) >= self._size:
                record, self._received = (
                    self._received[: self._size], self._received[self._size :],
                )  # fmt: skip
                yield record

    def drop(self) -> None:
        """End the connection; the next one starts with a whole record."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._connected = None, False
        self._unsent = self._received = b""

    def _listen(self) -> socket.socket:
        listening = socket.socket(self._family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind((self._local, self._port))
        listening.listen()
        return listening

    def _accept(self, listening: socket.socket) -> None:
        try:
            accepted, (remote, *_) = listening.accept()
        except OSError:
            return
        if remote != self._remote:
            accepted.close()
            return
        self.drop()  # the other end has given the old one up
        self._take(accepted)
        self._connected = True

    def _connect(self) -> None:
        made = socket.socket(self._family, socket.SOCK_STREAM)
        freebind(made)
        self._take(made)
        try:
            made.bind((self._local, 0))
        except OSError:
            self.drop()
            return
        if (error := made.connect_ex((self._remote, self._port))) and error not in _WAITING:
            self.drop()

    def _finish(self, made: socket.socket, *, late: bool) -> None:
        """See what has become of an attempt."""
        error = made.connect_ex((self._remote, self._port))
        if error in (0, errno.EISCONN):
            self._connected = True
        elif error not in _WAITING or late:
            self.drop()

    def _take(self, one: socket.socket) -> None:
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = one

    def _flush(self) -> None:
        if self._socket is None or not self._connected or not self._unsent:
            return
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self.drop()
