"""Listening to XFRM's multicast groups, on a socket of its own: a burst of notifications can't
push out the answers to requests.

Nothing is queued in Python, but for what one system call brings. A listener that falls behind fills
the kernel's buffer, and is told so (:class:`Overrun`).
"""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType

from dsmip_ipsec.xfrm.batch import BatchReceiver
from dsmip_ipsec.xfrm.constants import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, Group
from dsmip_ipsec.xfrm.errors import XfrmError, XfrmOverrun
from dsmip_ipsec.xfrm.notifications import (
    Notification,
    Overrun,
    Unread,
    unread_notifications,
)
from dsmip_ipsec.xfrm.socket import open_netlink, socket_error

ALL_GROUPS = tuple(Group)


class XfrmMonitor:
    """A listener on ``groups``, synchronous or in asyncio.

    >>> async with XfrmMonitor([Group.SA, Group.MAPPING]) as monitor:
    ...     async for notification in monitor:
    ...         ...
    """

    def __init__(
        self, groups: Iterable[Group] = ALL_GROUPS, *, netns: str | int | None = None
    ) -> None:
        self._socket = open_netlink(netns)
        self._receiver = BatchReceiver()
        self._datagrams: deque[bytes] = deque()
        self._pending: deque[Unread | Overrun] = deque()
        try:
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise XfrmError(
                error.errno or 0,
                f"can't listen to XFRM notifications: {error}",
                hint="CAP_NET_ADMIN in the network namespace is needed, and a group of this kernel",
            ) from error

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def __enter__(self) -> XfrmMonitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> XfrmMonitor:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def receive_now(self) -> Notification | None:
        """The next notification if there is one already. Raises XfrmError if the socket fails."""
        unread = self.unread_now()
        return unread.read() if isinstance(unread, Unread) else unread

    def unread_now(self) -> Unread | Overrun | None:
        """As :meth:`receive_now`, but not decoded: for those who look at glances first."""
        while not self._pending:
            if not self._datagrams:
                try:
                    self._datagrams.extend(self._receiver.receive(self._socket))
                except XfrmOverrun:
                    return Overrun()
                if not self._datagrams:
                    return None
            self._pending.extend(unread_notifications(self._datagrams.popleft()))
        return self._pending.popleft()

    def receive(self, timeout: float | None = None) -> Notification | None:
        """Waits ``timeout`` seconds (None: for ever) for the next one; None when there is none."""
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while (notification := self.receive_now()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            poll.poll(None if left is None else left * 1000)
        return notification

    async def get(self) -> Notification:
        """Waits for the next one in asyncio."""
        while (notification := self.receive_now()) is None:
            await _readable(self._socket.fileno())
        return notification

    async def __aiter__(self) -> AsyncIterator[Notification]:
        while True:
            yield await self.get()


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(descriptor, wake)
    except OSError as error:
        raise socket_error(error) from error
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
