"""The daemons' control socket: one JSON object a line, a request and its answer.

A request is ``{"command": NAME, ...arguments}``; the answer ``{"ok": true, "result": {...}}`` or
``{"ok": false, "error": TEXT, "hint": TEXT}``. The socket is only the owner's (0600): commands
move a node's traffic.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import ConfigError, DsmipError

log = logging.getLogger(__name__)

MAX_LINE = 1 << 20

Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class ControlError(DsmipError):
    """A daemon can't be reached, or refused a command."""


class ControlServer:
    """Serves ``commands`` on a UNIX socket at ``path``."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Raises ConfigError when the socket can't be made."""
        self._path.unlink(missing_ok=True)
        previous = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, path=str(self._path), limit=MAX_LINE
            )
        except OSError as error:
            raise ConfigError(
                f"can't listen on control socket {self._path}: {error.strerror}",
                hint="its directory has to exist and be writable; UNIX paths have 107 octets",
            ) from error
        finally:
            os.umask(previous)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                answer = await self._answer(line)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError) as error:
            log.info("control connection ended: %s", error)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request.pop("command")
            command = self._commands[name]
        except (ValueError, AttributeError, KeyError, TypeError):
            known = ", ".join(sorted(self._commands))
            return {"ok": False, "error": "not a command", "hint": f"commands are: {known}"}
        try:
            return {"ok": True, "result": dict(await command(request))}
        except DsmipError as error:
            return {"ok": False, "error": error.message, "hint": error.hint}
        except (KeyError, TypeError, ValueError) as error:
            return {"ok": False, "error": f"bad arguments for {name}: {error}", "hint": ""}


async def call(path: Path, command: str, *, timeout_s: float, **arguments: Any) -> dict[str, Any]:
    """Send one command to the daemon at ``path`` and return its result.

    Raises ControlError when there is no daemon, no answer in time, or the daemon says no.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_LINE)
            try:
                request = {"command": command, **arguments}
                writer.write(json.dumps(request).encode() + b"\n")
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError as error:
        raise ControlError(f"no answer to '{command}' within {timeout_s:g} s") from error
    except OSError as error:
        raise ControlError(
            f"no daemon answers at {path}: {error.strerror or error}",
            hint="is it running (starting takes a second or two), and is this its control socket?",
        ) from error
    try:
        answer = json.loads(line)
        ok = answer["ok"]
    except (ValueError, KeyError, TypeError) as error:
        raise ControlError(f"the daemon ended before it answered '{command}'") from error
    if not ok:
        raise ControlError(answer["error"], hint=answer.get("hint", ""))
    result: dict[str, Any] = answer["result"]
    return result
