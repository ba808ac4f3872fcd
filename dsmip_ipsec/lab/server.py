"""A lab under remote control: stands it up, then does what it is asked over a stream.

Runs where the lab's kernel is (in a guest, or in place on the host); the other end is
:mod:`dsmip_ipsec.lab.session`. Requests are served side by side, steps one after the other. When
the stream ends the lab is taken down.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, DsmipError, LabError
from . import ipsec_kind, spec_checks
from .expect_models import Expect
from .guest_stream import Acknowledged, write_all
from .messages import Lines, encode, failure
from .record import RunRecord
from .scenario import Scenario
from .spec_models import Step
from .terminals import Terminals

EXEC_S = 30.0
MAX_OUTPUT = 4 << 20

Completes = Callable[[Scenario, RunRecord], RunRecord]


class LabServer:
    """Serves one lab over ``descriptor``, a non-blocking one that is both read and written;
    ``pumped``: see :class:`~dsmip_ipsec.lab.guest_stream.Acknowledged`.

    ``complete`` gets the record when the lab is down: to add to it, and to write it.
    """

    def __init__(
        self, scenario: Scenario, descriptor: int, complete: Completes, *, pumped: bool = False
    ) -> None:
        self._scenario = scenario
        self._descriptor = descriptor
        self._pumped = pumped
        self._complete = complete
        self._writing = asyncio.Lock()
        self._stepping = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._terminals = Terminals(scenario.standing, self._send)
        self._steps = 0
        self._finished = False

    async def run(self) -> int:
        """Serve until the client is done or gone; the lab is down then. :returns: exit status."""
        serving = asyncio.ensure_future(self._serve())
        try:
            try:
                beginning = asyncio.ensure_future(self._scenario.begin())
                # A client that goes away meanwhile ends it.
                await asyncio.wait({serving, beginning}, return_when=asyncio.FIRST_COMPLETED)
                if not beginning.done():
                    beginning.cancel()
                    await asyncio.gather(beginning, return_exceptions=True)
                    return 1
                beginning.result()
            except DsmipError as error:
                await self._send({"event": "failed", **failure(error)})
            else:
                await self._send({"event": "ready", **self._standing()})
            await serving
            return 0
        finally:
            serving.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(serving, *self._tasks, return_exceptions=True)
            await self._terminals.close_all()
            if not self._finished:
                await self._scenario.standing.down()

    async def _serve(self) -> None:
        lines = Lines()
        stream = Acknowledged(self._descriptor, pumped=self._pumped)
        while data := await stream.read():
            for request in lines.feed(data):
                if request.get("op") == "bye":
                    return
                task = asyncio.ensure_future(self._answer(request))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send(self, message: dict[str, Any]) -> None:
        async with self._writing:
            with suppress(OSError):  # the client is gone; reading will tell
                await write_all(self._descriptor, encode(message))

    async def _answer(self, request: dict[str, Any]) -> None:
        operations: dict[str, Callable[[Mapping[str, Any]], Awaitable[Any]]] = {
            "step": self._step,
            "move": self._move,
            "exec": self._exec,
            "state": self._state,
            "traffic": self._traffic,
            "expect": self._expect,
            "status": self._status,
            "finish": self._finish,
            "terminal": self._terminals.open,
            "input": self._terminals.input,
            "resize": self._terminals.resize,
            "ack": self._terminals.ack,
            "close": self._terminals.close,
        }
        answer: dict[str, Any] = {"id": request.get("id")}
        try:
            operation = operations[request["op"]]
            answer["result"] = await operation(request)
        except DsmipError as error:
            answer |= failure(error)
        except ValidationError as error:
            answer |= failure(_invalid(error))
        except (KeyError, TypeError, ValueError) as error:
            answer |= failure(ConfigError(f"bad request: {error!r}", hint="see docs/labs.md"))
        except OSError as error:
            answer |= failure(LabError(f"{request['op']}: {error}", hint="see docs/labs.md"))
        await self._send(answer)

    # What can be asked for ------------------------------------------------------------------------

    def _standing(self) -> dict[str, Any]:
        standing = self._scenario.standing
        return {
            "run": standing.run.id,
            "namespaces": {
                node: standing.topology.namespace(node) for node in self._scenario.lab.nodes
            },
            "phases": [phase.model_dump(mode="json") for phase in standing.phases],
        }

    async def _status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._standing(), "networks": self._scenario.networks}

    async def _step(self, request: Mapping[str, Any]) -> dict[str, Any]:
        async with self._stepping:
            return await self._do(Step.model_validate({"name": self._name(), **request["step"]}))

    async def _move(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A step that moves a node, or attaches it where it is on no link yet."""
        node, network = str(request["node"]), str(request["network"])
        async with self._stepping:
            verb = "move" if node in self._scenario.networks else "attach"
            name = self._name(f"{verb} {node} to {network}")
            return await self._do(Step.model_validate({"name": name, "node": node, verb: network}))

    def _name(self, text: str = "step") -> str:
        self._steps += 1
        return f"{self._steps}: {text}"

    async def _do(self, step: Step) -> dict[str, Any]:
        scenario = self._scenario
        if len(step.verbs()) != 1:
            raise ConfigError(
                f"step '{step.name}' must have one verb", hint="see docs/labs.md for the verbs"
            )
        placed = dict(scenario.networks)
        for _, reason, hint in spec_checks.check_step(scenario.lab, step, (), placed):
            raise ConfigError(reason, hint=hint)
        ipsec_kind.check_step(scenario.lab, step, scenario.ipsec)
        await scenario.step(step)
        return (await scenario.judged()).model_dump(mode="json")

    async def _state(self, request: Mapping[str, Any]) -> dict[str, Any]:
        states = await self._scenario.states()
        return {name: state.model_dump(mode="json") for name, state in states.items()}

    async def _traffic(self, request: Mapping[str, Any]) -> dict[str, Any]:
        observers = self._scenario.standing.observers
        return {name: await observer.traffic() for name, observer in observers.items()}

    async def _expect(self, request: Mapping[str, Any]) -> list[dict[str, Any]]:
        scenario = self._scenario
        known = tuple(scenario.lab.mobile_nodes())
        node = request.get("node")
        if node is not None and node not in known:
            raise _no_such("mobile node", node, known)
        expect = Expect.model_validate(request["expect"])
        if expect.captured:
            raise ConfigError("'captured' is for steps", hint="put it into one")
        found = await scenario.check(
            expect,
            known if node is None else (node,),
            float(request.get("within_s", 3.0)),
        )
        return [expectation.model_dump(mode="json") for expectation in found]

    async def _exec(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Run a command in a node's namespace, to its end."""
        node, argv = request["node"], [str(word) for word in request["argv"]]
        if node not in self._scenario.lab.nodes:
            raise _no_such("node", node, self._scenario.lab.nodes)
        if not argv:
            raise ConfigError("no command to execute", hint="pass a list of words")
        limit_s = float(request.get("timeout_s", EXEC_S))
        process = await self._scenario.standing.execute(node, argv)
        given = str(request.get("input", "")).encode()
        try:
            async with asyncio.timeout(limit_s):
                out, err = await process.communicate(given)
        except TimeoutError:
            raise LabError(
                f"'{argv[0]}' on {node} isn't done after {limit_s:g} s", hint="raise timeout_s"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                await process.wait()
        return {
            "status": process.returncode,
            "out": out[:MAX_OUTPUT].decode("utf-8", "replace"),
            "err": err[:MAX_OUTPUT].decode("utf-8", "replace"),
        }

    async def _finish(self, request: Mapping[str, Any]) -> dict[str, Any]:
        async with self._stepping:
            if self._finished:
                raise LabError("the lab is finished already", hint="start another")
            self._finished = True
            await self._terminals.close_all()
            record = await self._scenario.finish()
            complete = partial(self._complete, self._scenario, record)
            return (await asyncio.to_thread(complete)).model_dump(mode="json")


def _no_such(what: str, name: object, known: Any) -> ConfigError:
    return ConfigError(f"there is no {what} '{name}'", hint=f"there are: {', '.join(known)}")


def _invalid(error: ValidationError) -> ConfigError:
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return ConfigError(f"{where or 'the request'}: {problem['msg']}", hint="see docs/labs.md")
