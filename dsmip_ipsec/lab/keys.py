"""Every key that lived during a run, for the Wireshark export; only when the user asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from dsmip_ipsec.ike import keylog
from dsmip_ipsec.ike.keylog import IkeKeys
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.lab import netns
from dsmip_ipsec.xfrm.constants import Group
from dsmip_ipsec.xfrm.monitor import XfrmMonitor
from dsmip_ipsec.xfrm.notifications import StateAdded, StateUpdated


class KeyRecorder:
    """Collects the SAs of some namespaces from the kernel's notifications, which carry keys."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self._namespaces = tuple(namespaces)
        self._monitors: list[XfrmMonitor] = []
        self._found: dict[SecurityAssociation, None] = {}

    @property
    def associations(self) -> tuple[SecurityAssociation, ...]:
        """Every SA in every place that it had, in order of appearance."""
        return tuple(self._found)

    def open(self) -> None:
        """Listen. Raises XfrmError."""
        loop = asyncio.get_running_loop()
        for namespace in self._namespaces:
            monitor = netns.isolated(partial(_monitor, namespace))
            self._monitors.append(monitor)
            loop.add_reader(monitor.fileno(), self._collect, monitor)

    def close(self) -> None:
        """Stop listening; what was collected stays."""
        loop = asyncio.get_running_loop()
        for monitor in self._monitors:
            loop.remove_reader(monitor.fileno())
            self._collect(monitor)
            monitor.close()
        self._monitors.clear()

    def _collect(self, monitor: XfrmMonitor) -> None:
        while (notification := monitor.receive_now()) is not None:
            if isinstance(notification, StateAdded | StateUpdated):
                association = translate.state_back(notification.state)
                if association is not None:
                    self._found[association] = None


def _monitor(namespace: str) -> XfrmMonitor:
    """A socket stays in the namespace that its maker was in."""
    netns.enter(namespace)
    return XfrmMonitor((Group.SA,))


def ike_keys(key_logs: Iterable[Path]) -> tuple[IkeKeys, ...]:
    """The keys of all IKE_SAs in charon's key logs, each once. Raises OSError."""
    found: dict[tuple[int, int], IkeKeys] = {}
    for path in key_logs:
        with path.open(encoding="utf-8", errors="replace") as lines:
            parsed = keylog.parse(lines)
        for keys in parsed:
            found.setdefault((keys.initiator_spi, keys.responder_spi), keys)
    return tuple(found.values())
