"""The asyncio XFRM socket, a pyroute2 AsyncNetlinkSocket.

The kernel has the answers to XFRM requests ready when the call that sends them returns, so a
batch is sent and answered without giving up control, as fast as a blocking socket does it;
between batches and within long dumps other tasks run. pyroute2's own ``nlm_request`` works beside
that, with the message classes of messages.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

from dsmip_ipsec.xfrm import requests as verbs
from dsmip_ipsec.xfrm._pyroute2 import AsyncNetlinkSocket, CoreDatagramProtocol
from dsmip_ipsec.xfrm.constants import NETLINK_XFRM, Group, PolicyType, Protocol
from dsmip_ipsec.xfrm.errors import XfrmDecodeError, XfrmError, XfrmTimeout
from dsmip_ipsec.xfrm.exchange import (
    RECEIVE_OCTETS,
    Exchange,
    Request,
    Result,
    Sequences,
    not_sent,
    split,
)
from dsmip_ipsec.xfrm.messages import MarshalXfrm
from dsmip_ipsec.xfrm.monitor import ALL_GROUPS, XfrmMonitor
from dsmip_ipsec.xfrm.move import Move, MoveInProgress, deal
from dsmip_ipsec.xfrm.socket import TIMEOUT, Receiver, drain, open_netlink, socket_error
from dsmip_ipsec.xfrm.types import AddressFilter, Policy, PolicyId, State, StateId

T = TypeVar("T")

#: Datagrams of a dump that are read before other tasks get a turn.
_TURN = 16


class _Protocol(CoreDatagramProtocol):
    """pyroute2's, except that a lost notification or answer doesn't end the socket."""

    def __init__(self, owner: AsyncXfrmSocket, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._owner = owner

    def error_received(self, exc: Exception) -> None:
        self._owner.failed(exc if isinstance(exc, OSError) else OSError(0, str(exc)))


class AsyncXfrmSocket(AsyncNetlinkSocket):
    """An XFRM socket for asyncio; tasks of one loop can share it.

    ``netns``: name, path or descriptor of the network namespace to open it in (None: ours).
    Groups are listened to on a socket of their own: :meth:`monitor`.

    >>> async with AsyncXfrmSocket() as xfrm:
    ...     await xfrm.add_state(state)
    ...     results = await xfrm.request_all([requests.add_policy(policy), ...])
    """

    marshal_class = MarshalXfrm

    def __init__(
        self, netns: str | int | None = None, *, timeout: float = TIMEOUT, **options: Any
    ) -> None:
        self.timeout = timeout
        self._namespace = netns
        self._receiver = Receiver()
        self._sequences = Sequences()
        self._turn = asyncio.Lock()
        self._exchange: Exchange | None = None
        self._answered = asyncio.Event()
        self._failure: XfrmError | None = None
        super().__init__(family=NETLINK_XFRM, ext_ack=True, **options)

    async def __aenter__(self) -> AsyncXfrmSocket:
        await self.setup_endpoint()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()

    # What AsyncNetlinkSocket calls.

    def setup_socket(self) -> Any:
        return open_netlink(self._namespace)

    async def setup_endpoint(self) -> None:
        if getattr(self.local, "transport", None) is not None:
            return
        sock = self.socket
        sock.setblocking(False)
        transport, protocol = await self.event_loop.create_datagram_endpoint(
            lambda: _Protocol(
                self,
                self.connection_lost,
                self.enqueue,
                None,
                self.status,
            ),
            sock=sock,
        )
        # asyncio would read with 256 KiB (see RECEIVE_OCTETS).
        transport.max_size = RECEIVE_OCTETS  # type: ignore[attr-defined]
        self.local.transport, self.local.protocol = transport, protocol

    def enqueue(self, data: bytes, addr: Any) -> None:
        """A datagram came: for the exchange that is under way, or for pyroute2's requests."""
        if addr is not None and addr[0] != 0:
            return  # not from the kernel
        exchange = self._exchange
        if exchange is not None:
            try:
                if exchange.receive(data):
                    self._answered.set()
            except XfrmDecodeError as error:
                self._failure = error
                self._answered.set()
        if len(data) >= 16 and not self._is_ours(data):
            super().enqueue(data, addr)

    @staticmethod
    def _is_ours(data: bytes) -> bool:
        return Sequences.owns(int.from_bytes(data[8:12], sys.byteorder))

    def failed(self, error: OSError) -> None:
        """The socket has an error: the exchange under way fails."""
        self._failure = socket_error(error)
        self._answered.set()

    # Requests.

    async def request_all(self, requests: Iterable[Request[Any]]) -> list[Result[Any]]:
        """Sends requests, many to a datagram; one result each, in order. Only what breaks the
        exchange itself stops it: the results of the rest say so. Never raises XfrmError.

        A task that is cancelled here may have had its requests done, all or none of a datagram.
        """
        pending = list(requests)
        results: list[Result[Any]] = []
        await self.setup_endpoint()
        async with self._turn:
            for group in split(pending):
                exchange = Exchange(group, self._sequences.take(len(group)))
                try:
                    await self._run(exchange)
                except XfrmError as error:
                    exchange.fail(error)
                    results += exchange.results
                    return results + not_sent(pending[len(results) :])
                results += exchange.results
        return results

    async def request(self, request: Request[T]) -> T:
        """Sends one request; returns its answer, raises its error."""
        (result,) = await self.request_all([request])
        value: T = result.unwrap()
        return value

    async def _run(self, exchange: Exchange) -> None:
        self._failure = None
        self._answered.clear()
        self._exchange = exchange
        sock = self.socket
        try:
            try:
                sock.send(exchange.datagram)
            except OSError as error:
                raise socket_error(error) from error
            read = 0
            while not exchange.done:
                datagram = self._receiver.receive(sock)
                if datagram is None:
                    break
                self.enqueue(datagram, None)
                if self._failure is not None:
                    raise self._failure
                read += 1
                if read % _TURN == 0:
                    await asyncio.sleep(0)
            if not exchange.done:
                await self._wait()
        finally:
            self._exchange = None
            drain(exchange, self._receiver, sock)

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._answered.wait(), self.timeout)
        except TimeoutError:
            raise XfrmTimeout(f"the kernel didn't answer within {self.timeout:g} s") from None
        if self._failure is not None:
            raise self._failure

    def monitor(self, groups: Iterable[Group] = ALL_GROUPS) -> XfrmMonitor:
        """A listener on multicast groups in the same network namespace."""
        return XfrmMonitor(groups, netns=self._namespace)

    # The verbs of requests.py; those that aren't here: request(requests.VERB(…)).

    async def add_state(self, state: State) -> None:
        await self.request(verbs.add_state(state))

    async def update_state(self, state: State) -> None:
        await self.request(verbs.update_state(state))

    async def delete_state(self, state_id: StateId) -> None:
        await self.request(verbs.delete_state(state_id))

    async def get_state(self, state_id: StateId) -> State:
        return await self.request(verbs.get_state(state_id))

    async def dump_states(
        self,
        protocol: Protocol = Protocol.NONE,
        address_filter: AddressFilter | None = None,
    ) -> list[State]:
        return await self.request(verbs.dump_states(protocol, address_filter))

    async def flush_states(self, protocol: Protocol = Protocol.NONE) -> None:
        await self.request(verbs.flush_states(protocol))

    async def allocate_spi(self, state: State, low: int = 0x100, high: int = 0xFFFFFFFF) -> State:
        return await self.request(verbs.allocate_spi(state, low, high))

    async def add_policy(self, policy: Policy) -> None:
        await self.request(verbs.add_policy(policy))

    async def update_policy(self, policy: Policy) -> None:
        await self.request(verbs.update_policy(policy))

    async def delete_policy(self, policy_id: PolicyId) -> None:
        await self.request(verbs.delete_policy(policy_id))

    async def get_policy(self, policy_id: PolicyId) -> Policy:
        return await self.request(verbs.get_policy(policy_id))

    async def dump_policies(self) -> list[Policy]:
        return await self.request(verbs.dump_policies())

    async def flush_policies(self, type_: PolicyType = PolicyType.MAIN) -> None:
        await self.request(verbs.flush_policies(type_))

    async def move_states(self, moves: Sequence[Move]) -> list[Result[StateId]]:
        """As :meth:`XfrmSocket.move_states`."""
        running = [MoveInProgress(move) for move in moves]
        asked: list[Sequence[Request[Any]]] = [move.read for move in running]
        for step in (MoveInProgress.make, MoveInProgress.settle):
            results = await self.request_all(chain.from_iterable(asked))
            asked = [step(*dealt) for dealt in deal(running, asked, results)]
        results = await self.request_all(chain.from_iterable(asked))
        for move, own in deal(running, asked, results):
            move.end(own)
        return [move.result for move in running]
