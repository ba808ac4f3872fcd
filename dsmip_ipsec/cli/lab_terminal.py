"""Commands in a node of a standing lab with our own input and output: piped, or on a terminal."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
import termios
import threading
import tty
from contextlib import suppress
from typing import Any

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.lab.guest import run_until_signal
from dsmip_ipsec.lab.held import Held, HeldLab, died

CHUNK = 16384


def run_piped(lab: Held, node: str, argv: list[str], *, stdin: bool) -> int:
    """Run a command; its output and errors become ours, octet by octet, and its exit status is
    returned (128 and the number for a signal). Interrupted, it ends there, too."""
    return run_until_signal(_run(lab, node, argv, stdin=stdin, pipes=True))


def run_on_terminal(lab: Held, node: str, argv: list[str]) -> int:
    """The same on a terminal of its own, which ours stands for; ours is restored in the end."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        return run_until_signal(_run(lab, node, argv, stdin=True, pipes=False))
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _run(lab: Held, node: str, argv: list[str], *, stdin: bool, pipes: bool) -> int:
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[int, bytes | None, int]] = asyncio.Queue()
    async with HeldLab(lab) as connection:
        connection.on_output = lambda *event: events.put_nowait(event)
        settings: dict[str, Any] = {"pipes": True} if pipes else _terminal()
        number = await connection.command(node, argv, **settings)
        if not pipes:
            tty.setraw(sys.stdin.fileno())
            loop.add_signal_handler(signal.SIGWINCH, _resized, connection, number)
        if stdin:
            _read_stdin(connection, number)
        else:
            await connection.request("input", terminal=number, data="")
        while True:
            _, data, what = await events.get()
            if data is None:
                if what == -1:
                    raise died(lab)
                return what if what >= 0 else 128 - what
            _write(what, data)
            await _quietly(connection, "ack", terminal=number, octets=len(data))


def _terminal() -> dict[str, Any]:
    size = os.get_terminal_size(sys.stdin.fileno())
    return {
        "rows": size.lines,
        "columns": size.columns,
        "term": os.environ.get("TERM", "dumb"),
    }


def _resized(connection: HeldLab, number: int) -> None:
    size = os.get_terminal_size(sys.stdin.fileno())
    asyncio.ensure_future(  # noqa: RUF006 - its end is nobody's concern
        _quietly(connection, "resize", terminal=number, rows=size.lines, columns=size.columns)
    )


async def _quietly(connection: HeldLab, operation: str, **given: Any) -> None:
    """What fails because the command has ended, or the lab, is told by its output's end."""
    with suppress(DsmipError):
        await connection.request(operation, **given)


def _read_stdin(connection: HeldLab, number: int) -> None:
    """In a thread, since a regular file can't be waited for: pass on what we read, and its end."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with suppress(OSError, RuntimeError, DsmipError):
            while True:
                data = os.read(0, CHUNK)
                text = base64.b64encode(data).decode()
                # A command that reads slowly is waited for, for as long as it runs.
                work = connection.request(
                    "input", timeout_s=7 * 86400.0, terminal=number, data=text
                )
                asyncio.run_coroutine_threadsafe(work, loop).result()
                if not data:
                    return

    threading.Thread(target=read, name="stdin", daemon=True).start()


def _write(stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]
