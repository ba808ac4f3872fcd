"""The VICI protocol over asyncio streams; packets are coded by the ``vici`` package.

Every conversation has a connection of its own: a request on a connection that also listens for
events can take an event for its answer, and a connection per request needs no repair when charon
was restarted in between. Connecting to a Unix socket costs next to nothing.

The ``vici`` package's own Session is synchronous and, once a first octet has come, waits without
limit; so only its coding of packets and messages is used here.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vici.exception import DeserializationException
from vici.protocol import FiniteStream, Message, Packet

from dsmip_ipsec.ike.errors import CharonDiedError, IkeError, IkeTimeoutError

# charon itself refuses longer messages (VICI's README, "Transport protocol").
MAX_MESSAGE = 512 * 1024

RawMessage = dict[str, Any]


class _WholeReads(FiniteStream):  # type: ignore[misc]
    """The package's stream gives what is left when a length goes beyond the end."""

    def read(self, size: int | None = -1) -> bytes:
        data: bytes = super().read(size)
        if size is not None and len(data) < size:
            raise DeserializationException("the message is cut off")
        return data


def decode_message(payload: bytes) -> RawMessage:
    """A VICI message as nested dicts, lists and str (what isn't UTF-8 keeps U+FFFD marks).

    :raises IkeError: not a VICI message.
    """
    try:
        message: RawMessage = _text(Message.deserialize(_WholeReads(payload)))
    except (
        struct.error,
        DeserializationException,
        UnicodeDecodeError,
        KeyError,
        IndexError,
        RecursionError,
    ) as error:
        raise IkeError(
            "charon's VICI socket sent a message that can't be decoded",
            hint="check that the socket belongs to a strongSwan charon",
        ) from error
    return message


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_text(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _text(item) for key, item in value.items()}
    return value


class ViciConnection:
    """One conversation. Use :func:`connect`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._path = path

    async def _send(self, packet: bytes) -> None:
        try:
            self._writer.write(struct.pack("!I", len(packet)) + packet)
            await self._writer.drain()
        except OSError as error:
            raise self._closed() from error

    async def _receive(self) -> tuple[int, str, bytes]:
        """Next packet: (type, event name or "", payload)."""
        try:
            (length,) = struct.unpack("!I", await self._reader.readexactly(4))
            if not 1 <= length <= MAX_MESSAGE:
                raise IkeError(
                    f"charon's VICI socket announces a message of {length} octets",
                    hint="check that the socket belongs to a strongSwan charon",
                )
            packet = await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise self._closed() from error
        kind = packet[0]
        if kind != Packet.EVENT:
            return kind, "", packet[1:]
        if length < 2 or len(packet) < 2 + packet[1]:
            raise IkeError("charon's VICI socket sent an event without its name")
        end = 2 + packet[1]
        return kind, packet[2:end].decode("utf-8", "replace"), packet[end:]

    def _closed(self) -> CharonDiedError:
        return CharonDiedError(
            f"charon closed its VICI socket {self._path}",
            hint="charon has ended or was restarted: read its log beside the socket",
        )

    async def register(self, event: str) -> None:
        """Ask for an event. :raises IkeError: this charon doesn't know it."""
        await self._send(Packet.register_event(event))
        kind, _, _ = await self._receive()
        if kind == Packet.EVENT_UNKNOWN:
            raise IkeError(
                f"this charon has no VICI event {event!r}", hint="strongSwan 5.9.8 or later has it"
            )
        if kind != Packet.EVENT_CONFIRM:
            raise IkeError(f"charon answered the registration of {event!r} with packet type {kind}")

    async def events(self) -> AsyncIterator[tuple[str, RawMessage]]:
        """Events as they come, without end."""
        while True:
            kind, name, payload = await self._receive()
            if kind == Packet.EVENT:
                yield name, decode_message(payload)

    async def request(
        self, command: str, message: Mapping[str, Any] | None, stream: list[tuple[str, RawMessage]]
    ) -> RawMessage:
        """Send a command and return charon's answer; events that come before it go to ``stream``.

        :raises IkeError: an unknown command, or an answer out of the protocol.
        """
        await self._send(Packet.request(command, Message.serialize(dict(message or {}))))
        while True:
            kind, name, payload = await self._receive()
            if kind == Packet.EVENT:
                stream.append((name, decode_message(payload)))
            elif kind == Packet.CMD_RESPONSE:
                return decode_message(payload)
            elif kind == Packet.CMD_UNKNOWN:
                raise IkeError(
                    f"this charon has no VICI command {command!r}",
                    hint="check the plugins that it loads",
                )
            else:
                raise IkeError(f"charon answered {command!r} with packet type {kind}")

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connect(path: Path) -> AsyncIterator[ViciConnection]:
    """A connection to the VICI socket at ``path``. :raises CharonDiedError: nobody listens."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_MESSAGE)
    except OSError as error:
        raise CharonDiedError(
            f"no charon answers at {path}: {error.strerror or error}",
            hint="start charon first, and read its log if it ended",
        ) from error
    connection = ViciConnection(reader, writer, path)
    try:
        yield connection
    finally:
        connection.close()


async def request(
    path: Path,
    command: str,
    message: Mapping[str, Any] | None = None,
    *,
    events: Sequence[str] = (),
    timeout: float,
) -> tuple[RawMessage, list[tuple[str, RawMessage]]]:
    """One command on a connection of its own: (answer, the events streamed before it).

    :param timeout: seconds for everything, connecting included.
    :raises IkeTimeoutError: the time ran out.
    :raises CharonDiedError: charon isn't there or went away.
    :raises IkeError: an answer out of the protocol.
    """
    stream: list[tuple[str, RawMessage]] = []
    try:
        async with asyncio.timeout(timeout), connect(path) as connection:
            for event in events:
                await connection.register(event)
            return await connection.request(command, message, stream), stream
    except TimeoutError as error:
        words = [m.get("msg", "") for name, m in stream if name == "control-log"]
        last = f", last heard: {words[-1]}" if words else ""
        raise IkeTimeoutError(
            f"charon didn't answer {command!r} within {timeout:g} s{last}",
            hint="charon may be overloaded or waiting for its peer: read the logs of both ends",
        ) from error
