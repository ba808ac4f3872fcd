"""Captures of every end of every link: ``<node>-<link>.pcapng``.

One process of our own takes them all (:mod:`dsmip_ipsec.lab.capture_main`), not one dumpcap each:
in the one-CPU guest, eleven dumpcaps took 3 s to start and under 800 probes/s cost more than the
probes themselves, and their wake-ups held senders up by 30 ms. It also ends without losing the
last packets, which dumpcap keeps in an unfinished block of its ring.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LabError
from .processes import Processes
from .topology import Port

PROCESS = "capture"


@dataclass(frozen=True, slots=True)
class CaptureFile:
    """A finished capture. ``dropped``: packets that the kernel had no room for."""

    node: str
    link: str
    path: Path
    packets: int
    dropped: int


class Captures:
    """The captures of ``ports``, as files in ``directory``; ``work`` is for what goes between us
    and the process. All three directories' files are made by the process, which runs as we do."""

    def __init__(self, ports: Sequence[Port], directory: Path, *, work: Path, log: Path) -> None:
        self._ports = list(ports)
        self._directory = directory
        self._plan = work / "capture-plan.json"
        self._result = work / "capture-result.json"
        self._log = log

    def path(self, node: str, link: str) -> Path:
        """The file of ``node``'s end of ``link``."""
        return self._directory / f"{node}-{link}.pcapng"

    async def start(self, processes: Processes, *, deadline_s: float = 10.0) -> None:
        """Start capturing; returns when every capture sees packets.

        :raises LabError: it can't capture, or isn't ready in time.
        """
        plan = [
            {
                "namespace": port.namespace,
                "interface": port.interface,
                "comment": f"{port.node}'s end of {port.link}",
                "file": str(self.path(port.node, port.link)),
            }
            for port in self._ports
        ]
        self._plan.write_text(json.dumps(plan), encoding="utf-8")
        arguments = [str(self._plan), str(self._result)]
        processes.start_module(PROCESS, "dsmip_ipsec.lab.capture_main", arguments, log=self._log)
        await processes.wait_ready(PROCESS, deadline_s=deadline_s)

    async def stop(self, processes: Processes) -> list[CaptureFile]:
        """Stop capturing; everything that was seen is in the files.

        :raises LabError: the process didn't end well.
        """
        status = await processes.stop(PROCESS, grace_s=10.0)
        try:
            counts = json.loads(self._result.read_text(encoding="utf-8"))
            found = [
                CaptureFile(p.node, p.link, self.path(p.node, p.link), int(seen), int(dropped))
                for p, (seen, dropped) in zip(self._ports, counts, strict=True)
            ]
        except (OSError, ValueError, TypeError) as error:
            raise LabError(
                f"the captures aren't complete (exit status {status}): {error}",
                hint=f"read {self._log}",
            ) from None
        return found
