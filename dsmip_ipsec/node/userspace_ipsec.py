"""IPsec in the daemon's own process: the engine, what feeds it, and what it holds, for a person."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv6Address
from typing import Any

from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import Address, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.mobility.types import MobilityPacket
from dsmip_ipsec.node.userspace_path import UserspacePath
from dsmip_ipsec.userspace.engine import Engine
from dsmip_ipsec.userspace.engine import Mapping as PeerMapping
from dsmip_ipsec.userspace.reconciler import UserspaceReconciler


class UserspaceIpsec:
    """One daemon's. ``local_addresses``: see Engine. ``keeps_alive``: see UserspacePath."""

    def __init__(
        self,
        configured: Iterable[SecurityAssociation],
        *,
        local_addresses: Iterable[Address] | None = None,
        keeps_alive: bool = False,
    ) -> None:
        self._configured = tuple(configured)
        self._keeps_alive = keeps_alive
        self.engine = Engine(os.urandom, local_addresses=local_addresses)

    def path(
        self,
        accepts: Callable[[IPv6Address, IPv6Address], bool],
        on_message: Callable[[MobilityPacket], None],
        on_mapping: Callable[[PeerMapping], None],
    ) -> UserspacePath:
        return UserspacePath(
            self.engine,
            accepts=accepts,
            on_message=on_message,
            on_mapping=on_mapping,
            keeps_alive=self._keeps_alive,
        )

    def reconciler(
        self,
        desired: Callable[[Reqids, Sequence[SecurityAssociation]], DesiredState],
        reqids: tuple[Reqids, ...],
    ) -> UserspaceReconciler:
        return UserspaceReconciler(self.engine, desired, reqids, self._configured)

    async def describe(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """SAs and policies as the control socket tells them: no keys."""
        return {
            "associations": [
                {
                    "spi": sa.spi,
                    "source": str(sa.source),
                    "destination": str(sa.destination),
                    "mode": sa.mode.value,
                    "reqid": sa.reqid,
                    "source_port": sa.encapsulation and sa.encapsulation.source_port,
                    "destination_port": sa.encapsulation and sa.encapsulation.destination_port,
                    "packets": entry.packets,
                    "octets": entry.octets,
                }
                for entry in self.engine.associations
                for sa in [entry.association]
            ],
            "policies": [
                {
                    "direction": policy.direction.value,
                    "selector": str(policy.selector),
                    "priority": policy.priority,
                    "template": str(policy.template) if policy.template else "block",
                }
                for policy in self.engine.policies
            ],
        }
