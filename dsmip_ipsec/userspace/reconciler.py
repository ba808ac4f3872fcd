"""The counterpart of the kernel's reconciler for the in-process engine: the same plans, applied to
its SPD and SAD.

The engine is ours alone, so nothing changes behind our back: no notifications, no races. The SAs
are those of the configuration (there is no IKE without a kernel to install what it negotiates),
and moving them at a handover is ours (RFC 5555 §5.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.ipsec.plan import Operation, plan
from dsmip_ipsec.userspace.engine import Engine

log = logging.getLogger(__name__)

Associations = tuple[SecurityAssociation, ...]


class UserspaceReconciler:
    """Keeps ``engine`` as ``desired`` says; the interface is that of
    :class:`dsmip_ipsec.kernel.reconciler.Reconciler`.

    ``configured`` are the SAs of the configuration. ``failed`` never returns: an operation on the
    engine fails at once, in the caller.
    """

    def __init__(
        self,
        engine: Engine,
        desired: Callable[[Reqids, Sequence[SecurityAssociation]], DesiredState],
        reqids: tuple[Reqids, ...],
        configured: Associations,
    ) -> None:
        self._engine = engine
        self._desired = desired
        self._reqids = reqids
        self._configured = configured
        self._open = False
        self._scheduled = False

    @property
    def associations(self) -> Associations:
        """The SAs as they are placed now, newest first."""
        return tuple(entry.association for entry in self._engine.associations)[::-1]

    async def open(self) -> None:
        """Install the configured SAs and what they make desirable. Raises EspError."""
        for association in self._configured:
            self._engine.add_association(association)
        self._open = True
        await self.reconcile()

    async def close(self) -> None:
        """Take everything out of the engine. Idempotent."""
        self._open = False
        self._engine.replace_policies(())
        for entry in self._engine.associations:
            self._engine.remove_association(entry.association.key)

    async def failed(self) -> None:
        """Wait for ever (see the class)."""
        await asyncio.get_running_loop().create_future()

    def trigger(self, *peerings: Reqids) -> None:
        """Reconcile soon: once, however often this is called before. It is cheap enough here to
        be done for all peerings."""
        if self._open and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._background)

    async def reconcile(self, *peerings: Reqids, settled: bool = False) -> tuple[Operation, ...]:
        """Reconcile now; return what was done. Raises EspError."""
        return self._converge()

    async def wait_for(self, predicate: Callable[[Associations], bool], timeout_s: float) -> bool:
        """Whether ``predicate`` holds for the SAs; only a reconciliation changes them."""
        return predicate(self.associations)

    def _background(self) -> None:
        self._scheduled = False
        if self._open:
            self._converge()

    def _converge(self) -> tuple[Operation, ...]:
        present = self.associations
        current = DesiredState(
            tuple(p for p in self._engine.policies if p.priority in PRIORITY_BAND), (), present
        )
        wanted = DesiredState()
        for ids in self._reqids:
            wanted += self._desired(ids, [sa for sa in present if sa.reqid in ids]).ipsec()
        # Mobile IPv6's extension headers are a kernel's business.
        operations = plan(current, replace(wanted, extensions=()))
        for operation in operations:
            log.info("%s", operation)
        self._engine.apply(operations)
        return operations
