"""The lab's end of the relay that delays links where the kernel has no netem; its process is
:mod:`dsmip_ipsec.lab.relay_main`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import netns, rtnl
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.spec_models import Impair, Impairment, Lab

PROCESS = "relay"
_LOOPBACK = 1


def relayed_links(lab: Lab) -> frozenset[str]:
    """The links that a relay has to impair: all that the lab ever impairs, if the kernel can't.
    To be called with the right to make namespaces."""
    impaired = {name for name, link in lab.links.items() if link.impairs()}
    impaired |= {step.impair.link for step in lab.steps if step.impair is not None}
    return frozenset() if not impaired or _has_netem() else frozenset(impaired)


def _has_netem() -> bool:
    def attempt() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(netns.CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        batch = rtnl.Batch()
        batch.netem(_LOOPBACK, Impairment(delay_ms=1.0))
        batch.send()

    try:
        netns.isolated(attempt)
    except (OSError, LabError):
        return False
    return True


class Relay:
    """``ports``: of each link, the names of its interfaces in the switch's namespace."""

    def __init__(
        self, lab: Lab, ports: Mapping[str, Sequence[str]], *, work: Path, log: Path
    ) -> None:
        self._ports = ports
        self._impairments: dict[str, Impairment] = {name: lab.links[name] for name in ports}
        self._plan = work / "relay-plan.json"
        self._log = log
        self._generation = 0

    async def start(self, processes: Processes, namespace: str, *, nice: int) -> None:
        """Have frames pass. Raises LabError."""
        self._write()
        processes.start_module(
            PROCESS,
            "dsmip_ipsec.lab.relay_main",
            [str(self._plan)],
            log=self._log,
            namespace=namespace,
            nice=nice,
        )
        await processes.wait_ready(PROCESS)

    async def impair(self, processes: Processes, impair: Impair) -> None:
        """Change how a link is. Raises LabError."""
        self._impairments[impair.link] = impair
        self._generation += 1
        self._write()
        processes[PROCESS].signal(signal.SIGHUP)
        await processes.wait_ready(PROCESS, line=f"applied {self._generation}")

    def _write(self) -> None:
        fields = set(Impairment.model_fields)
        document = {
            "generation": self._generation,
            "links": {
                name: {
                    "ports": list(self._ports[name]),
                    "impairment": impairment.model_dump(include=fields),
                }
                for name, impairment in self._impairments.items()
            },
        }
        temporary = self._plan.with_suffix(".part")
        try:
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(self._plan)
        except OSError as error:
            raise LabError(
                f"the relay's plan can't be written: {error.strerror}", hint="is the disk full?"
            ) from error
