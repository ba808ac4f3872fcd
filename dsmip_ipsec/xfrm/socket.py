"""The synchronous XFRM socket: a request or a batch of them, answered before the call returns."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, TypeVar

from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm.constants import (
    NETLINK_CAP_ACK,
    NETLINK_EXT_ACK,
    NETLINK_XFRM,
    SOL_NETLINK,
    PolicyType,
    Protocol,
)
from dsmip_ipsec.xfrm.errors import XfrmDecodeError, XfrmError, XfrmOverrun, XfrmTimeout
from dsmip_ipsec.xfrm.exchange import (
    RECEIVE_OCTETS,
    Exchange,
    Request,
    Result,
    Sequences,
    not_sent,
    split,
)
from dsmip_ipsec.xfrm.move import Move, MoveInProgress, deal
from dsmip_ipsec.xfrm.types import (
    AddressFilter,
    Policy,
    PolicyId,
    State,
    StateId,
)

T = TypeVar("T")

#: Seconds to wait for answers. The kernel has them ready when a request has been sent.
TIMEOUT = 10.0
BUFFER_OCTETS = 1 << 20
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def open_netlink(netns: str | int | None = None) -> socket.socket:
    """A NETLINK_XFRM socket, set up for :class:`Exchange`, non-blocking.

    ``netns``: name or path of the network namespace to open it in, or a descriptor of one;
    None is the caller's. Raises XfrmError if the kernel has no XFRM or the namespace can't be
    entered.
    """
    try:
        sock = _create(netns)
    except OSError as error:
        hint = "the kernel needs CONFIG_XFRM_USER"
        if netns is not None:
            hint += ", and the network namespace must exist and be ours to enter"
        code = error.errno or errno.EIO
        raise XfrmError(code, f"can't open an XFRM socket: {error}", hint=hint) from error
    prepare(sock)
    sock.setblocking(False)
    return sock


def _create(netns: str | int | None) -> socket.socket:
    if netns is None:
        return socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_XFRM
        )
    from pyroute2 import netns as namespaces

    path = f"/proc/{os.getpid()}/fd/{netns}" if isinstance(netns, int) else netns
    created: socket.socket = namespaces.create_socket(
        path, socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_XFRM, flags=0
    )
    return created


def prepare(sock: socket.socket) -> None:
    """Buffers that hold the answers to a batch; errors with the kernel's words and without the
    request (which may hold keys)."""
    sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    for forced, plain in (
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, BUFFER_OCTETS)
        except OSError:  # without CAP_NET_ADMIN in the first user namespace
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, plain, BUFFER_OCTETS)


class Receiver:
    """Reads whole datagrams of the kernel from a non-blocking netlink socket."""

    def __init__(self) -> None:
        self._buffer = bytearray(RECEIVE_OCTETS)
        self._view = memoryview(self._buffer)

    def receive(self, sock: socket.socket) -> bytes | None:
        """A datagram, or None if there is none now. Raises XfrmOverrun, XfrmError."""
        while True:
            try:
                size, (sender, _) = sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                return None
            except OSError as error:
                raise socket_error(error) from error
            if sender == 0:  # the kernel: other processes can send here too
                return bytes(self._view[:size])


def socket_error(error: OSError) -> XfrmError:
    """The typed error for one of the socket calls."""
    if error.errno == errno.ENOBUFS:
        return XfrmOverrun("the kernel had more to say than the socket's buffer holds")
    code = error.errno or errno.EIO
    return XfrmError(code, f"the XFRM socket failed: {os.strerror(code)}")


def drain(exchange: Exchange, receiver: Receiver, sock: socket.socket) -> None:
    """Reads a dump that broke off to its end: the kernel refuses another one before (EBUSY)."""
    with contextlib.suppress(XfrmError):
        while not exchange.done and exchange.requests[-1].is_dump:
            datagram = receiver.receive(sock)
            if datagram is None:
                return
            with contextlib.suppress(XfrmDecodeError):
                exchange.receive(datagram)


class XfrmSocket:
    """A blocking XFRM socket. Not for several threads at a time.

    >>> with XfrmSocket() as xfrm:
    ...     xfrm.add_state(state)
    ...     results = xfrm.request_all([requests.add_policy(policy), ...])
    """

    def __init__(self, netns: str | int | None = None, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._socket = open_netlink(netns)
        self._receiver = Receiver()
        self._sequences = Sequences()

    def __enter__(self) -> XfrmSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def request_all(self, requests: Iterable[Request[Any]]) -> list[Result[Any]]:
        """Sends requests, many to a datagram; one result each, in order. Only what breaks the
        exchange itself stops it: the results of the rest say so. Never raises XfrmError."""
        pending = list(requests)
        results: list[Result[Any]] = []
        for group in split(pending):
            exchange = Exchange(group, self._sequences.take(len(group)))
            try:
                self._run(exchange)
            except XfrmError as error:
                exchange.fail(error)
                results += exchange.results
                return results + not_sent(pending[len(results) :])
            results += exchange.results
        return results

    def request(self, request: Request[T]) -> T:
        """Sends one request; returns its answer, raises its error."""
        (result,) = self.request_all([request])
        value: T = result.unwrap()
        return value

    def _run(self, exchange: Exchange) -> None:
        try:
            self._socket.send(exchange.datagram)
        except OSError as error:
            raise socket_error(error) from error
        deadline = time.monotonic() + self.timeout
        try:
            while not exchange.done:
                datagram = self._receiver.receive(self._socket)
                if datagram is not None:
                    exchange.receive(datagram)
                elif not self._wait(deadline - time.monotonic()):
                    raise XfrmTimeout(f"the kernel didn't answer within {self.timeout:g} s")
        finally:
            drain(exchange, self._receiver, self._socket)

    def _wait(self, seconds: float) -> bool:
        if seconds <= 0:
            return False
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    # The verbs of requests.py; those that aren't here: request(requests.VERB(…)).

    def add_state(self, state: State) -> None:
        self.request(verbs.add_state(state))

    def update_state(self, state: State) -> None:
        self.request(verbs.update_state(state))

    def delete_state(self, state_id: StateId) -> None:
        self.request(verbs.delete_state(state_id))

    def get_state(self, state_id: StateId) -> State:
        return self.request(verbs.get_state(state_id))

    def dump_states(
        self,
        protocol: Protocol = Protocol.NONE,
        address_filter: AddressFilter | None = None,
    ) -> list[State]:
        return self.request(verbs.dump_states(protocol, address_filter))

    def flush_states(self, protocol: Protocol = Protocol.NONE) -> None:
        self.request(verbs.flush_states(protocol))

    def allocate_spi(self, state: State, low: int = 0x100, high: int = 0xFFFFFFFF) -> State:
        return self.request(verbs.allocate_spi(state, low, high))

    def add_policy(self, policy: Policy) -> None:
        self.request(verbs.add_policy(policy))

    def update_policy(self, policy: Policy) -> None:
        self.request(verbs.update_policy(policy))

    def delete_policy(self, policy_id: PolicyId) -> None:
        self.request(verbs.delete_policy(policy_id))

    def get_policy(self, policy_id: PolicyId) -> Policy:
        return self.request(verbs.get_policy(policy_id))

    def dump_policies(self) -> list[Policy]:
        return self.request(verbs.dump_policies())

    def flush_policies(self, type_: PolicyType = PolicyType.MAIN) -> None:
        self.request(verbs.flush_policies(type_))

    def move_states(self, moves: Sequence[Move]) -> list[Result[StateId]]:
        """Moves SAs to other outer addresses or encapsulation, keeping keys, counters and
        lifetimes (see move.py), all of them in the same few datagrams. One result a move, its
        value the new
        identity."""
        running = [MoveInProgress(move) for move in moves]
        asked: list[Sequence[Request[Any]]] = [move.read for move in running]
        for step in (MoveInProgress.make, MoveInProgress.settle):
            results = self.request_all(chain.from_iterable(asked))
            asked = [step(*dealt) for dealt in deal(running, asked, results)]
        results = self.request_all(chain.from_iterable(asked))
        for move, own in deal(running, asked, results):
            move.end(own)
        return [move.result for move in running]
