"""A lab under the control of a Python program: stand it up, do things with it, look at it.

    with LabSession.start("nat-handover") as lab:
        lab.move("mn", "visited-a")
        assert lab.state()["ha"].bindings[0].nat_detected
        status, out, err = lab.exec("mn", ["ip", "-s", "xfrm", "state"])

Everything is synchronous; several sessions can be used at once, also from several threads. The lab
runs where ``kernel`` says: in place, or in a guest of its own. Whichever side ends first, the other
notices and nothing is left behind. docs/labs.md tells the rest.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from ..errors import ConfigError, DsmipError, LabError
from ..node.config import IpsecKind
from . import cleanup, ipsec_kind, record, size, spec
from .guest import collect_share
from .guest_kernel import KERNEL_KIND_VARIABLE, Kernel, choose_kernel, in_user_namespace
from .library import find_lab
from .messages import Lines, encode, error_from
from .places import SESSION_S, Place, place_for

# From nothing to a lab that stands, the guest's boot included: on a busy machine, and for many
# mobile nodes.
START_S = 180.0
REQUEST_S = 120.0
_SERVER = "dsmip_ipsec.cli.lab_server"


class ExecResult(NamedTuple):
    """What a command came to: exit status (negative: a signal's number), output, errors."""

    status: int
    out: str
    err: str


class LabSession:
    """A lab that stands. Made by :meth:`start`; a context manager, at whose end the lab goes down.

    ``record`` is what :meth:`finish` returned, and None before. Every method raises DsmipError:
    ConfigError for what can't be asked for, LabError, GuestError and others for what went wrong.
    """

    def __init__(
        self, lab: spec.Lab, out_dir: Path, work: Path, *, say: Callable[[str], None]
    ) -> None:
        """Not to be called: see :meth:`start`."""
        self.lab = lab
        self.out_dir = out_dir
        self.record: record.RunRecord | None = None
        self.run_id = ""
        self.namespaces: dict[str, str] = {}
        self.output: list[str] = []
        self.on_output: Callable[[int, bytes | None, int], None] | None = None
        self._work = work
        self._say = say
        self._place: Place | None = None
        self._on_host = False
        self._ours, self._theirs = socket.socketpair()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._ready: Future[dict[str, Any]] = Future()
        self._last = 0
        self._error: DsmipError | None = None
        self._closed = False
        self._temporary = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[int] | None = None
        self._threads: list[threading.Thread] = []

    @classmethod
    def start(
        cls,
        lab: str | Path | spec.Lab,
        *,
        out_dir: Path | str | None = None,
        kernel: str = "auto",
        keep: bool = False,
        export_keys: bool = False,
        say: Callable[[str], None] = lambda line: None,
        work_in: Path | None = None,
        ipsec: IpsecKind = "kernel",
    ) -> LabSession:
        """Stand a lab up and return when it stands.

        ``lab``: a name in ``labs/``, or a lab file. ``out_dir``: where :meth:`finish` leaves
        record.json, captures and logs (made when missing; without it, a temporary one, which
        goes with the session unless ``keep``). ``kernel``: auto, host, uml or qemu.
        ``export_keys``: leave the keys of all SAs in ``out_dir/wireshark``. ``say`` gets lines of
        progress. ``ipsec``: kernel, or userspace: the daemons apply ESP, with keys of this session.
        """
        if isinstance(lab, spec.Lab):
            raise ConfigError("a lab's file is wanted", hint="give the path of a TOML file")
        path = find_lab(str(lab))
        declared = spec.load(path)
        ipsec_kind.check(declared, ipsec)
        chosen = choose_kernel(kernel, ipsec=ipsec)
        work = Path(tempfile.mkdtemp(prefix="dsmip-lab-", dir=work_in))
        work.chmod(0o711)  # a guest's user must reach its share below
        made: LabSession | None = None
        try:
            out = work / "out" if out_dir is None else Path(out_dir)
            if out_dir is None and keep:
                out = Path(tempfile.mkdtemp(prefix="dsmip-lab-out-"))
            out.mkdir(parents=True, exist_ok=True)
            place = place_for(
                chosen, work, out / "guest-console.log", memory_mb=size.memory_mb(declared)
            )
            (place.share / "lab.toml").write_text(spec.flat(path), encoding="utf-8")
            made = cls(declared, out, work, say=say)
            made._temporary = out_dir is None and not keep
            made._begin(place, chosen, export_keys, ipsec)
        except OSError as error:
            _give_up(made, work)
            raise LabError(
                f"the lab's files can't be prepared: {error.strerror}", hint="is the disk full?"
            ) from error
        except BaseException:
            _give_up(made, work)
            raise
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.record is None and self._error is None and not self._temporary:
                with suppress(DsmipError):  # what happened inside the block matters more
                    self.finish()
        finally:
            self.close()

    # What one does with a lab ---------------------------------------------------------------------

    def step(self, step: Mapping[str, Any]) -> record.StepRecord:
        """Carry out a step, in the words of a lab file: ``{"move": "visited-b", "expect": {...}}``.

        Returns it with states before and after, flows and judged expectations. Raises DsmipError
        when it can't be carried out; an expectation that doesn't hold raises nothing.
        """
        limit_s = REQUEST_S + size.step_s(len(self.lab.mobile_nodes()))
        return record.StepRecord.model_validate(self._ask("step", timeout=limit_s, step=dict(step)))

    def move(self, node: str, network: str) -> record.StepRecord:
        """Have a mobile node move to a network, or appear there when it is in none."""
        return record.StepRecord.model_validate(self._ask("move", node=node, network=network))

    def exec(
        self, node: str, argv: Sequence[str], *, input: str = "", timeout_s: float = 30.0
    ) -> ExecResult:
        """Run a command as root in a node's namespace, to its end."""
        answer = self._ask(
            "exec", timeout=timeout_s + REQUEST_S,
            node=node, argv=list(argv), input=input, timeout_s=timeout_s,
        )  # fmt: skip
        return ExecResult(answer["status"], answer["out"], answer["err"])

    def state(self) -> dict[str, record.NodeState]:
        """Bindings, SAD (without keys), SPD and IKE_SAs of every mobile node and home agent."""
        answer = self._ask("state")
        return {name: record.NodeState.model_validate(state) for name, state in answer.items()}

    def expect(
        self, expect: Mapping[str, Any], *, node: str | None = None, within_s: float = 3.0
    ) -> list[record.Expectation]:
        """Wait until the expectations of a step's ``expect`` hold, at most ``within_s`` seconds.

        Returns what was seen. ``node``: the mobile node; all of them when None. Raises LabError,
        with what was expected and seen, when one doesn't hold.
        """
        answer = self._ask(
            "expect", timeout=within_s + REQUEST_S,
            expect=dict(expect), node=node, within_s=within_s,
        )  # fmt: skip
        found = [record.Expectation.model_validate(item) for item in answer]
        bad = [f"{e.name}: expected {e.expected}, saw {e.seen}" for e in found if not e.passed]
        if bad:
            raise LabError("; ".join(bad), hint=f"logs and captures come to {self.out_dir}")
        return found

    def status(self) -> dict[str, Any]:
        """``run``, ``namespaces`` and ``phases`` of the lab, and ``networks``: where each mobile
        node is."""
        answer: dict[str, Any] = self._ask("status")
        return answer

    def finish(self) -> record.RunRecord:
        """Take the lab down; ``out_dir`` has record.json, captures and logs then, as after
        ``lab run``. Returns the record."""
        if self.record is None:
            answer = self._ask("finish", timeout=REQUEST_S)
            self.record = record.RunRecord.model_validate(answer)
            assert self._place is not None
            try:
                collect_share(self._place.share / "out", self.out_dir)
            except OSError as error:
                raise LabError(
                    f"the lab's output can't be copied to {self.out_dir}: {error.strerror}",
                    hint="is the disk full?",
                ) from error
        return self.record

    def request(self, operation: str, **arguments: Any) -> Any:
        """A request as docs/labs.md describes them, for what has no method here."""
        return self._ask(operation, **arguments)

    def close(self) -> None:
        """Take the lab down and forget it. Idempotent, and never raises DsmipError."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):
            self._ours.sendall(encode({"op": "bye"}))
        if self._on_host:  # it takes itself down when the stream ends; a guest is just ended
            with suppress(OSError):
                self._ours.shutdown(socket.SHUT_WR)
            self._threads[0].join(timeout=20)
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed: it ended already
                self._loop.call_soon_threadsafe(self._task.cancel)
        for thread in self._threads[:1]:
            thread.join(timeout=40)
        for end in (self._ours, self._theirs):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads[1:]:
            thread.join(timeout=5)
        self._fail(LabError("the lab is down", hint="start another session"))
        if self._on_host and self.run_id:
            with suppress(DsmipError):  # nothing is there unless its server was killed
                cleanup.down(self.run_id)
        shutil.rmtree(self._work, ignore_errors=True)

    # The other side -------------------------------------------------------------------------------

    def _begin(self, place: Place, kernel: Kernel, export_keys: bool, ipsec: IpsecKind) -> None:
        self._place, self._on_host = place, kernel == "host"
        argv = [
            *(sys.executable, "-m", _SERVER),
            *(str(place.seen_at / "lab.toml"), str(place.seen_at / "out")),
            *(["--export-keys"] if export_keys else []),
            *("--ipsec", ipsec),
            *(["--user-namespace"] if in_user_namespace(kernel) else []),
        ]
        limit_s = (START_S + size.ready_s(len(self.lab.mobile_nodes()))) * place.pace
        started = threading.Event()
        for target in (lambda: self._host(argv, kernel, started), self._listen):
            thread = threading.Thread(target=target, name="lab-session", daemon=True)
            self._threads.append(thread)
            thread.start()
        started.wait()
        try:
            ready = self._ready.result(timeout=limit_s)
        except TimeoutError:
            raise LabError(
                f"the lab doesn't stand after {limit_s:g} s; it last said: {self._said()}",
                hint=f"see what is in {self.out_dir}",
            ) from None
        self.run_id, self.namespaces = ready["run"], ready["namespaces"]

    def _host(self, argv: list[str], kernel: str, started: threading.Event) -> None:
        """In a thread: the place's life."""

        async def live() -> int:
            self._loop = asyncio.get_running_loop()
            self._task = asyncio.ensure_future(
                self._place.run(  # type: ignore[union-attr]
                    argv,
                    env={KERNEL_KIND_VARIABLE: kernel},
                    deadline_s=SESSION_S,
                    on_line=self._heard,
                    stream=self._theirs,
                )
            )
            started.set()
            return await self._task

        try:
            status = asyncio.run(live())
            error: DsmipError = LabError(
                f"the lab's server ended with status {status}; it last said: {self._said()}",
                hint="start another session",
            )
        except asyncio.CancelledError:
            error = LabError("the lab is down", hint="start another session")
        except DsmipError as found:
            error = found
        except Exception as found:  # whatever it is, those who wait must hear of it
            error = LabError(f"the lab's place broke: {found!r}")
        finally:
            started.set()
        self._fail(error)

    def _heard(self, line: str) -> None:
        self.output = [*self.output[-199:], line]
        self._say(line)

    def _said(self) -> str:
        return "\n".join(self.output[-5:]) or "nothing"

    def _listen(self) -> None:
        """In a thread: answers and events."""
        lines = Lines()
        try:
            while data := self._ours.recv(65536):
                for message in lines.feed(data):
                    self._deliver(message)
        except (OSError, ValueError):
            pass
        except DsmipError as error:
            self._fail(error)

    def _deliver(self, message: dict[str, Any]) -> None:
        event = message.get("event")
        if event == "ready":
            self._ready.set_result(message)
        elif event == "failed":
            self._fail(error_from(message))
        elif event == "output" and self.on_output is not None:
            self.on_output(message["terminal"], *_output(message))
        elif (number := message.get("id")) is not None:
            with self._lock:
                waiting = self._waiting.pop(number, None)
            if waiting is None:
                return
            if "error" in message:
                waiting.set_exception(error_from(message))
            else:
                waiting.set_result(message.get("result"))

    def _fail(self, error: DsmipError) -> None:
        """No answer will come any more: everybody who waits hears why."""
        with self._lock:
            self._error = self._error or error
            waiting, self._waiting = [*self._waiting.values(), self._ready], {}
        for future in waiting:
            if not future.done():
                future.set_exception(self._error)

    def _ask(self, operation: str, *, timeout: float = REQUEST_S, **arguments: Any) -> Any:
        answer: Future[Any] = Future()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._last += 1
            number = self._last
            self._waiting[number] = answer
            try:
                self._ours.sendall(encode({"id": number, "op": operation, **arguments}))
            except OSError:
                self._waiting.pop(number, None)
                raise LabError("the lab is gone", hint="start another session") from None
        try:
            return answer.result(timeout=timeout * (self._place.pace if self._place else 1))
        except TimeoutError:
            with self._lock:
                self._waiting.pop(number, None)
            raise LabError(
                f"no answer to '{operation}' within {timeout:g} s", hint="the machine may be busy"
            ) from None


def _output(message: Mapping[str, Any]) -> tuple[bytes | None, int]:
    """Octets that a command printed and where (1: output, or a terminal; 2: errors), or None and
    the status that it ended with."""
    if "data" in message:
        return base64.b64decode(message["data"]), 2 if message.get("stream") == "err" else 1
    return None, int(message["status"])


def _give_up(made: LabSession | None, work: Path) -> None:
    if made is not None:
        # The guest's console may tell why: it stays when somebody named a place for it.
        made.close()
    shutil.rmtree(work, ignore_errors=True)
