"""Starts our own Python processes by fork, from a process that has imported everything.

In a guest kernel, starting Python and importing what a daemon needs takes over a second of its one
CPU; a lab starts five such processes. The nursery is a fork of the lab's process made before that
has threads or an event loop; each process of the lab is a fork of the nursery.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import DsmipError, LabError
from . import netns
from .inherited import WrittenPages, is_worthwhile

# What is forked often; importing them is the point.
PRELOADED = (
    "dsmip_ipsec.cli.daemons",
    "dsmip_ipsec.cli.main",
    "dsmip_ipsec.lab.capture_main",
    "dsmip_ipsec.lab.flow_main",
    "dsmip_ipsec.lab.relay_main",
    "dsmip_ipsec.node.main",
)

_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class Nursery:
    """The lab's end. Use :meth:`start` in the main thread, before threads and event loops."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self._connection = connection

    @classmethod
    def start(cls) -> Nursery:
        """Fork the nursery."""
        for module in PRELOADED:
            importlib.import_module(module)
        # A collection would write to every object there is, and with that have the child's own
        # copy of every page made: seconds of a guest's processor time.
        gc.freeze()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs, parent)
        theirs.close()
        return cls(pid, ours)

    def fork(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        log: int,
        namespace: int | None,
        nice: int = 0,
    ) -> int:
        """Run ``main(arguments)`` of ``module`` in a process of its own; return its pid.

        ``log``: descriptor for its standard output and error. ``namespace``: that of a network
        namespace. The process leads a session, and dies with the nursery, which dies with us.
        Raises LabError when the nursery is gone.
        """
        request = {"module": module, "arguments": list(arguments), "nice": nice}
        descriptors = [log] if namespace is None else [log, namespace]
        return int(self._ask(request, descriptors))

    def wait(self, pid: int) -> int:
        """Reap a process that has ended; return its status as subprocess has it."""
        return int(self._ask({"wait": pid}, []))

    def call(self, module: str, function: str) -> None:
        """Call ``function()`` of ``module`` in the nursery: what it finds out and keeps, all later
        processes have. It mustn't leave a thread behind. Raises LabError."""
        self._ask({"call": [module, function]}, [])

    def learn(self, module: str, pid: int) -> None:
        """``pid`` runs ``module`` and is ready: later ones shall be so sooner (:mod:`.inherited`).
        Raises LabError."""
        if is_worthwhile():
            self._ask({"learn": pid, "module": module}, [])

    def stop(self) -> None:
        """End the nursery, and with it what it started. Idempotent."""
        self._connection.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> Any:
        try:
            socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
            answer = self._connection.recv(_MAX_MESSAGE)
        except OSError as error:
            raise LabError(
                f"the process that starts the lab's processes is gone: {error.strerror}",
                hint="was it killed? start the lab again",
            ) from error
        if not answer:
            raise LabError(
                "the process that starts the lab's processes is gone",
                hint="was it killed? start the lab again",
            )
        return json.loads(answer)


def _serve(connection: socket.socket, parent: int) -> NoReturn:
    """The nursery's life: fork and wait on request, until the lab closes the connection."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # Ctrl-C in the terminal is for the lab, which ends its processes in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    learned: dict[str, WrittenPages] = {}
    try:
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 4)
            if not message:
                break
            request = json.loads(message)
            if "wait" in request:
                _, status = os.waitpid(request["wait"], 0)
                answer = os.waitstatus_to_exitcode(status)
            elif "call" in request:
                module, function = request["call"]
                getattr(importlib.import_module(module), function)()
                answer = 0
            elif "learn" in request:
                learned[request["module"]] = WrittenPages(request["learn"])
                answer = 0
            else:
                answer = os.fork()
                if answer == 0:
                    connection.close()
                    _become(request, descriptors, learned.get(request["module"]))
            for descriptor in descriptors:
                os.close(descriptor)
            connection.send(json.dumps(answer).encode())
    finally:
        # Not sys.exit: the lab's own clean-up, which we have a copy of, isn't ours to run.
        os._exit(0)


def _become(
    request: dict[str, Any], descriptors: list[int], pages: WrittenPages | None
) -> NoReturn:
    """The new process, from its first breath to its exit status."""
    status = 1
    try:
        parent = os.getppid()
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        if pages is not None:
            pages.map_at_once()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        if len(descriptors) > 1:
            netns.enter_descriptor(descriptors[1])
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(descriptors[0], 1)
        os.dup2(descriptors[0], 2)
        for descriptor in descriptors:
            os.close(descriptor)
        renice(request["nice"])
        module = importlib.import_module(request["module"])
        status = module.main(request["arguments"]) or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except DsmipError as error:
        print(f"error: {error.message}\n  hint: {error.hint}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def renice(nice: int, pid: int = 0) -> None:
    """Have ``pid`` (0: us) ``nice`` above our own nice value, or leave it where we may not: in a
    user namespace nobody may be more urgent. One that has ended has no use for it."""
    with suppress(PermissionError, ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
