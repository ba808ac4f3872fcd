"""The holder of a lab: a process that owns a standing lab and serves those who use it.

``python -m dsmip_ipsec.lab.holder`` is started by :func:`start`, in a session of its own, so that
it outlives the terminal. It stands the lab up, then serves clients (:class:`.held.HeldLab`) on a
socket in its run's directory, until one says ``down`` or a signal ends it. What a client asks for
goes on to the lab (docs/labs.md has the requests); commands that a client started end with its
connection.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DsmipError, LabError
from ..node.config import IpsecKind
from . import cleanup, spec
from .guest_kernel import choose_kernel, in_user_namespace
from .held import LOG, SOCKET, Held, write_about
from .messages import Lines, decode, encode, error_from, failure
from .places import SESSION_S
from .session import LabSession

# What may be on its way to a client that doesn't read, for each of its commands.
WINDOW = 256 << 10
# Requests under way at once; each has a thread.
_AT_ONCE = 256
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED_ON = ("step", "move", "exec", "state", "traffic", "expect", "status")
_OF_COMMANDS = ("input", "resize", "ack", "close")


class _Client:
    """One connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.commands: set[int] = set()
        self.typed: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=16)

    def send(self, message: dict[str, Any]) -> None:
        if not self.writer.is_closing():
            self.writer.write(encode(message))


class Holder:
    """Serves a lab that stands."""

    def __init__(self, held: Held, session: LabSession) -> None:
        self._held = held
        self._session = session
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lab-request")
        self._owners: dict[int, _Client] = {}
        self._early: dict[int, list[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._down: tuple[_Client, int] | None = None
        self._ended = asyncio.Event()

    async def serve(self) -> None:
        """Serve until the end is asked for; the lab is finished (not yet closed) then."""
        loop = asyncio.get_running_loop()
        for ending in _ENDING:
            loop.add_signal_handler(ending, self._ended.set)
        self._session.on_output = lambda *what: _in(loop, partial(self._output, *what))
        server = await asyncio.start_unix_server(self._client, sock=_listen(self._held.directory))
        try:
            await self._ended.wait()
            answer: dict[str, Any] = {"result": {"out": self._held.out}}
            if self._held.out:
                try:
                    await self._in_thread(self._session.finish)
                except DsmipError as error:
                    answer = failure(error)
            await self._in_thread(self._session.close)
            if self._down is not None:
                client, number = self._down
                client.send({"id": number, **answer})
                with suppress(OSError):
                    await client.writer.drain()
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            self._session.close()  # those who wait for an answer of the lab's have it now
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def _ask(self, operation: str, **given: Any) -> Any:
        return await self._in_thread(partial(self._session.request, operation, **given))

    # Clients ---------------------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = _Client(writer)
        lines = Lines()
        typing = self._task(self._type(client))
        try:
            while data := await reader.read(65536):
                for request in lines.feed(data):
                    if request.get("op") == "input":
                        await client.typed.put(request)  # these have an order
                    else:
                        self._task(self._answer(client, request))
        except (OSError, DsmipError):
            pass  # gone, or no client of ours
        finally:
            typing.cancel()
            for number in list(client.commands):
                self._task(self._hang_up(number))
            writer.close()

    def _task(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _type(self, client: _Client) -> None:
        while True:
            # A command that doesn't read holds up what is typed, and nothing else.
            await self._answer(client, await client.typed.get())

    async def _hang_up(self, number: int) -> None:
        with suppress(DsmipError):
            await self._ask("close", terminal=number)

    async def _answer(self, client: _Client, request: dict[str, Any]) -> None:
        number = request.get("id")
        try:
            result = await self._do(client, request)
        except DsmipError as error:
            client.send({"id": number, **failure(error)})
        except (KeyError, TypeError, ValueError) as error:
            wrong = ConfigError(f"bad request: {error!r}", hint="see docs/labs.md")
            client.send({"id": number, **failure(wrong)})
        else:
            if result is not _LATER:
                client.send({"id": number, "result": result})
        with suppress(OSError):
            await client.writer.drain()

    async def _do(self, client: _Client, request: dict[str, Any]) -> Any:
        operation = request.get("op")
        given = {key: value for key, value in request.items() if key not in ("id", "op", "timeout")}
        if self._ended.is_set():
            raise LabError(f"{self._held.title} goes down just now", hint="start another")
        if operation == "down":
            self._down = client, int(request["id"])
            self._ended.set()
            return _LATER
        if operation == "terminal":
            return await self._open(client, given)
        if operation in _OF_COMMANDS:
            if given.get("terminal") not in client.commands:
                return None  # it has ended already
            return await self._ask(operation, timeout=SESSION_S, **given)
        if operation in _PASSED_ON:
            limit_s = float(given.get("timeout_s") or given.get("within_s") or 0) + 120.0
            return await self._ask(operation, timeout=limit_s, **given)
        raise ConfigError(f"a holder can't '{operation}'", hint="see docs/labs.md")

    # Commands --------------------------------------------------------------------------------

    async def _open(self, client: _Client, given: dict[str, Any]) -> dict[str, Any]:
        given["window"] = WINDOW
        answer: dict[str, Any] = await self._ask("terminal", **given)
        number = answer["terminal"]
        client.commands.add(number)
        self._owners[number] = client
        if client.writer.is_closing():
            self._task(self._hang_up(number))
        # Its first output may have come before we knew whose it is; it follows the answer.
        asyncio.get_running_loop().call_soon(self._catch_up, number)
        return answer

    def _catch_up(self, number: int) -> None:
        for message in self._early.pop(number, []):
            self._pass_on(number, message)

    def _output(self, number: int, data: bytes | None, what: int) -> None:
        message: dict[str, Any] = {"event": "output", "terminal": number}
        if data is None:
            message["status"] = what
        else:
            message |= {
                "data": base64.b64encode(data).decode(),
                "stream": "err" if what == 2 else "out",
            }
        if number not in self._owners or number in self._early:
            self._early.setdefault(number, []).append(message)
        else:
            self._pass_on(number, message)

    def _pass_on(self, number: int, message: dict[str, Any]) -> None:
        client = self._owners[number]
        client.send(message)
        if "status" in message:
            client.commands.discard(number)
            del self._owners[number]


_LATER = object()


def _in(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody listens any more
        loop.call_soon_threadsafe(function)


def _listen(directory: Path) -> socket.socket:
    """By way of the directory's descriptor: a socket's path must be short."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listening.bind(f"/proc/self/fd/{handle}/{SOCKET}")
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise LabError(f"no socket in {directory}: {error.strerror}") from error
    finally:
        os.close(handle)
    return listening


# The process -------------------------------------------------------------------------------------


class _Ended(BaseException):
    """A signal came while the lab was being stood up."""


def _raise_ended(number: int, frame: object) -> None:
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_IGN)  # once is enough: the clean-up isn't to be disturbed
    raise _Ended


class _Starter:
    """Whoever waits for the lab to stand: is told, and missed when gone."""

    def __init__(self, descriptor: int) -> None:
        self._stream = socket.socket(fileno=descriptor)
        self._done = False
        threading.Thread(target=self._miss, daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):
            self._stream.sendall(encode(message))

    def dismiss(self, message: dict[str, Any]) -> None:
        self._done = True
        self.tell(message)
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def _miss(self) -> None:
        with suppress(OSError):
            self._stream.recv(1)
        if not self._done:
            os.kill(os.getpid(), signal.SIGTERM)


def _hold(arguments: argparse.Namespace, starter: _Starter) -> None:
    declared = spec.load(arguments.lab)
    kernel = choose_kernel(arguments.kernel, ipsec=arguments.ipsec)
    run = cleanup.Run.claim()
    session: LabSession | None = None
    try:
        held = Held(
            run.id, run.directory, True, declared.lab.name, str(arguments.lab), kernel,
            str(arguments.out or ""), started=time.time(),
        )  # fmt: skip
        write_about(held)
        _speak_to(run.directory / LOG)
        work = Path(tempfile.mkdtemp(prefix="dsmip-held-"))
        run.add_directory(work)
        work.chmod(0o711)  # a guest's user must reach its share below
        session = LabSession.start(
            arguments.lab,
            out_dir=arguments.out,
            kernel=kernel,
            export_keys=arguments.export_keys,
            ipsec=arguments.ipsec,
            say=lambda line: starter.tell({"event": "say", "line": line}),
            work_in=work,
        )
        for pid in _children():
            run.add_process(pid, "the lab's place")
        if kernel == "host" and not in_user_namespace(kernel):
            held = replace(held, inner=session.run_id)
            write_about(held)
        asyncio.run(_serve(held, session, starter))
    except OSError as error:
        raise LabError(
            f"the holder's files can't be made: {error.strerror}", hint="is the disk full?"
        ) from error
    finally:
        if session is not None:
            session.close()
        run.finish()


async def _serve(held: Held, session: LabSession, starter: _Starter) -> None:
    holder = Holder(held, session)
    loop = asyncio.get_running_loop()
    loop.call_later(0, starter.dismiss, {"event": "ready", "name": held.name, "kernel": held.kernel,
                                         "namespaces": session.namespaces})  # fmt: skip
    await holder.serve()


def _speak_to(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


def _children() -> list[int]:
    """Our children; each thread has a list of those that it has started."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point. :returns: exit status."""
    parser = argparse.ArgumentParser(prog="python -m dsmip_ipsec.lab.holder")
    parser.add_argument("lab", type=Path)
    parser.add_argument("starter", type=int, help="descriptor of a socket")
    parser.add_argument("--kernel", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--export-keys", action="store_true")
    parser.add_argument("--ipsec", default="kernel", choices=("kernel", "userspace"))
    arguments = parser.parse_args(argv)
    os.set_inheritable(arguments.starter, False)
    for number in _ENDING:
        signal.signal(number, _raise_ended)
    starter = _Starter(arguments.starter)
    try:
        _hold(arguments, starter)
    except _Ended:
        starter.dismiss({"event": "failed", **failure(LabError("the lab was ended"))})
        return 143
    except DsmipError as error:
        starter.dismiss({"event": "failed", **failure(error)})
        return 1
    except Exception as error:
        broken = LabError(f"the lab's holder broke: {error!r}")
        starter.dismiss({"event": "failed", **failure(broken)})
        raise
    return 0


def start(
    lab: Path,
    *,
    kernel: str,
    out: Path | None,
    export_keys: bool,
    say: Callable[[str], None],
    ipsec: IpsecKind = "kernel",
) -> dict[str, Any]:
    """Have a holder stand ``lab`` up; returns its ``name``, ``kernel`` and ``namespaces`` when the
    lab stands. When this is interrupted the holder ends, too. Raises DsmipError."""
    ours, theirs = socket.socketpair()
    argv = [
        *(sys.executable, "-m", "dsmip_ipsec.lab.holder", str(lab.absolute())),
        *(str(theirs.fileno()), "--kernel", kernel),
        *(["--out", str(out.absolute())] if out is not None else []),
        *(["--export-keys"] if export_keys else []),
        *("--ipsec", ipsec),
    ]
    with ours:
        with theirs:
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(f"no holder can be started: {error.strerror}") from error
        stands = False
        try:
            with ours.makefile("rb") as lines:
                for line in lines:
                    message = decode(line)
                    match message.get("event"):
                        case "say":
                            say(str(message["line"]))
                        case "failed":
                            raise error_from(message)
                        case "ready":
                            stands = True
                            return message
            raise LabError(
                "the lab's holder was killed before the lab stood",
                hint="`dsmip-ipsec lab down` takes away what it left",
            )
        finally:
            if not stands:
                ours.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=60)


if __name__ == "__main__":
    sys.exit(main())
