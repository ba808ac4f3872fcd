"""The parts of pyroute2 (which has no type annotations) that this package builds on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator
    from socket import socket as Socket

    class nlmsg(dict[str, Any]):
        fields: tuple[tuple[str, str], ...]
        data: bytearray
        offset: int
        length: int

        def __init__(self, data: bytes | None = None, offset: int = 0) -> None: ...
        def setvalue(self, value: Any) -> Any: ...
        def encode(self) -> None: ...
        def decode(self) -> None: ...
        def dump(self) -> dict[str, Any]: ...
        def load(self, dump: dict[str, Any]) -> Any: ...
        def get_attr(self, name: str, default: Any = None) -> Any: ...
        def get_attrs(self, name: str) -> list[Any]: ...

    class nla(nlmsg):
        value: Any

    class nla_string(nla):
        pass

    class Marshal:
        msg_map: dict[int, type[nlmsg]]

        def parse(
            self,
            data: bytes,
            seq: int | None = None,
            callback: Any = None,
            skip_alien_seq: bool = False,
        ) -> Iterator[nlmsg]: ...

    class AsyncNetlinkSocket:
        local: Any
        status: dict[str, Any]
        socket: Socket
        event_loop: asyncio.AbstractEventLoop
        connection_lost: asyncio.Future[bool]

        def __init__(self, family: int, **options: Any) -> None: ...
        def setup_socket(self) -> Socket: ...
        async def setup_endpoint(self) -> None: ...
        async def nlm_request(
            self, msg: nlmsg, msg_type: int, msg_flags: int = 0
        ) -> AsyncIterator[nlmsg]: ...
        def enqueue(self, data: bytes, addr: Any) -> Any: ...
        def close(self, code: int = 0) -> None: ...

    class NetlinkSocket:
        async_class: type[AsyncNetlinkSocket]

    class CoreDatagramProtocol(asyncio.DatagramProtocol):
        def __init__(self, *arguments: Any) -> None: ...
        def error_received(self, exc: Exception) -> None: ...

else:
    from pyroute2.netlink import nla, nla_string, nlmsg
    from pyroute2.netlink.core import CoreDatagramProtocol
    from pyroute2.netlink.marshal import Marshal
    from pyroute2.netlink.nlsocket import AsyncNetlinkSocket, NetlinkSocket

__all__ = [
    "AsyncNetlinkSocket",
    "CoreDatagramProtocol",
    "Marshal",
    "NetlinkSocket",
    "nla",
    "nla_string",
    "nlmsg",
]
