"""Labs that stand on their own: which there are, and how one speaks to them.

``dsmip-ipsec lab up`` leaves a process behind, the holder (:mod:`dsmip_ipsec.lab.holder`), that
owns the lab. It is a run like any other (:mod:`dsmip_ipsec.lab.cleanup`): its directory, which is
ours alone, has its journal, what it says of itself (``held.json``), its log and its socket.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..errors import DsmipError, LabError
from . import cleanup
from .messages import Lines, encode, error_from

ABOUT, LOG, SOCKET = "held.json", "holder.log", "socket"
REQUEST_S = 150.0
# The whole record is made and copied home meanwhile.
DOWN_S = 120.0
LIST_HINT = "`dsmip-ipsec lab status` lists those that stand"


@dataclass(frozen=True, slots=True)
class Held:
    """A lab that a holder has, or had. ``inner``: the run of its lab when that is on this kernel,
    too. ``out``: where its record will be, or nothing."""

    name: str
    directory: Path
    alive: bool
    lab: str = ""
    file: str = ""
    kernel: str = ""
    out: str = ""
    inner: str = ""
    started: float = 0.0

    @property
    def standing(self) -> bool:
        """It can be spoken to."""
        return self.alive and (self.directory / SOCKET).exists()

    @property
    def title(self) -> str:
        return f"{self.name} ({self.lab})"


@dataclass(frozen=True, slots=True)
class Downed:
    """What was taken down: a lab in order (``cleaned`` is None), or the rest of a run."""

    name: str
    lab: str = ""
    out: str = ""
    cleaned: cleanup.Cleaned | None = None
    problem: DsmipError | None = field(default=None, compare=False)


def held_labs() -> list[Held]:
    """All labs of this user that have a holder, or had one that was killed."""
    return [found for journal in cleanup.runs() if (found := _read(journal)) is not None]


def _read(journal: cleanup.Journal) -> Held | None:
    try:
        about = json.loads((journal.directory / ABOUT).read_text(encoding="utf-8"))
        words = {key: str(about[key]) for key in ("lab", "file", "kernel", "out", "inner")}
        started = float(about["started"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError):  # cut short: it is one, but can't say which
        words, started = {}, 0.0
    return Held(journal.run, journal.directory, journal.alive, started=started, **words)


def write_about(held: Held) -> None:
    """Leave what a holder says of itself in its directory, whole or not at all."""
    names = ("lab", "file", "kernel", "out", "inner", "started")
    new = held.directory / f"{ABOUT}.new"
    new.write_text(json.dumps({name: getattr(held, name) for name in names}), encoding="utf-8")
    new.replace(held.directory / ABOUT)


def find(name: str | None) -> Held:
    """The standing lab that is meant: by its run's name, by its lab's, or the only one.

    Raises LabError, with what to do, when there is none, more than one, or its holder has died.
    """
    known = held_labs()
    if name is not None:
        return _speaking(_named(known, name))
    alive = [held for held in known if held.alive]
    if len(alive) == 1:
        return _speaking(alive[0])
    if alive:
        raise LabError(
            f"several labs stand: {', '.join(held.title for held in alive)}",
            hint="say which: `--lab NAME`, or its name where a command takes one",
        )
    if known:
        return _speaking(known[0])
    raise LabError("no lab stands", hint="`dsmip-ipsec lab up LAB` stands one up")


def _named(known: list[Held], name: str) -> Held:
    matching = [held for held in known if held.name == name]
    matching = matching or [held for held in known if held.lab == name]
    if not matching:
        names = ", ".join(held.title for held in known)
        raise LabError(
            f"no lab '{name}' stands",
            hint=f"those that stand: {names}" if names else "`dsmip-ipsec lab up` stands one up",
        )
    if len(matching) > 1:
        raise LabError(
            f"'{name}' stands {len(matching)} times", hint=f"name a run: {_names(matching)}"
        )
    return matching[0]


def _names(labs: list[Held]) -> str:
    return ", ".join(held.name for held in labs)


def _speaking(held: Held) -> Held:
    if not held.alive:
        raise died(held)
    if not held.standing:
        raise LabError(
            f"{held.title} doesn't stand yet, or goes down just now", hint="try again in a moment"
        )
    return held


def died(held: Held) -> LabError:
    """The error that says so."""
    return LabError(
        f"the holder of {held.title} has died, and its lab with it",
        hint=f"`dsmip-ipsec lab down {held.name}` takes away what it left",
    )


class HeldLab:
    """A connection to a holder; an async context manager.

    ``on_output`` gets (number, octets or None, stream or exit status) of commands that
    :meth:`command` started.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self.on_output: Callable[[int, bytes | None, int], None] = lambda *_: None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._last = 0
        self._error: DsmipError | None = None

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=_connect(self.held))
        self._listening = asyncio.ensure_future(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def request(self, operation: str, *, timeout_s: float = REQUEST_S, **given: Any) -> Any:
        """Ask, and return the answer. Raises DsmipError: what the holder says, or that it died."""
        if self._error is not None:
            raise self._error
        self._last += 1
        number = self._last
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(encode({"id": number, "op": operation, **given}))
            await self._writer.drain()
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise LabError(
                f"no answer to '{operation}' within {timeout_s:g} s",
                hint=f"the machine may be busy; else see {self.held.directory / LOG}",
            ) from None
        except OSError:
            raise died(self.held) from None
        finally:
            self._waiting.pop(number, None)

    async def command(self, node: str, argv: list[str], **settings: Any) -> int:
        """Start a command in a node, on a terminal or on ``pipes``; returns its number."""
        answer = await self.request("terminal", node=node, argv=argv, **settings)
        return int(answer["terminal"])

    async def _listen(self) -> None:
        lines = Lines()
        error: DsmipError = died(self.held)
        try:
            while data := await self._reader.read(65536):
                for message in lines.feed(data):
                    self._deliver(message)
        except OSError:
            pass
        except DsmipError as found:
            error = found
        finally:
            self._error = error
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(error)
            self.on_output(-1, None, -1)

    def _deliver(self, message: dict[str, Any]) -> None:
        if message.get("event") == "output":
            data = message.get("data")
            if data is None:
                self.on_output(message["terminal"], None, message["status"])
            else:
                stream = 2 if message.get("stream") == "err" else 1
                self.on_output(message["terminal"], base64.b64decode(data), stream)
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(error_from(message))
        else:
            answer.set_result(message.get("result"))


def _connect(held: Held) -> socket.socket:
    """By way of the directory's descriptor: a socket's path must be short."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        directory = os.open(held.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        finally:
            os.close(directory)
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise died(held) from None
    return connection


def call(held: Held, operation: str, **given: Any) -> Any:
    """One request on a connection of its own. Raises DsmipError."""

    async def ask() -> Any:
        async with HeldLab(held) as lab:
            return await lab.request(operation, **given)

    return with_loop(ask())


def with_loop(work: Awaitable[Any]) -> Any:
    """``asyncio.run`` for what is awaitable."""

    async def main() -> Any:
        return await work

    return asyncio.run(main())


# Taking down -------------------------------------------------------------------------------------


def take_down(name: str | None) -> list[Downed]:
    """Take a lab down: in order, or, after its holder was killed, what is left of it.

    ``name``: a run, or a lab; ``all`` is everything. None: the lab that stands, and what killed
    runs left; a run that is alive and nobody's holder's is left alone. Raises LabError.
    """
    known = held_labs()
    if name == "all":
        done = [_down(held) for held in known]
        return [*done, *(Downed(rest.run, cleaned=rest) for rest in cleanup.down())]
    if name is not None:
        if not any(name in (held.name, held.lab) for held in known):
            return [Downed(rest.run, cleaned=rest) for rest in cleanup.down(name)]
        return [_down(_named(known, name))]
    alive = [held for held in known if held.alive]
    if len(alive) > 1:
        raise LabError(
            f"several labs stand: {', '.join(held.title for held in alive)}",
            hint="name one, or say `all`",
        )
    done = [_down(held) for held in known]
    left = [journal.run for journal in cleanup.runs() if not journal.alive]
    return [*done, *(Downed(rest.run, cleaned=rest) for run in left for rest in cleanup.down(run))]


def _wait_for_end(held: Held) -> None:
    """Give a holder that has taken its lab down the time to end."""
    for journal in cleanup.runs():
        if journal.run == held.name and journal.owner is not None:
            cleanup.wait(journal.owner, wait_s=10.0)


def _down(held: Held) -> Downed:
    problem: DsmipError | None = None
    in_order = False
    if held.standing:
        try:
            call(held, "down", timeout_s=DOWN_S)
            in_order = True
            _wait_for_end(held)
        except DsmipError as error:
            problem = error
    cleaned: cleanup.Cleaned | None = None
    # The holder itself, when it is still there or was killed; then the lab's own run, which ends
    # by itself, too, when its holder is gone.
    for run in filter(None, (held.name, held.inner)):
        if any(journal.run == run for journal in cleanup.runs()):
            found = cleanup.down(run)[0]
            before = cleaned or cleanup.Cleaned(held.name, 0, 0, 0)
            cleaned = cleanup.Cleaned(
                held.name,
                before.processes + found.processes,
                before.namespaces + found.namespaces,
                before.directories + found.directories,
            )
    return Downed(held.name, held.lab, held.out, None if in_order else cleaned, problem)
