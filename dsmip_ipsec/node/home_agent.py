"""The home agent's daemon: engine, signalling path and IPsec for all its mobile nodes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.kernel.routing import Routing
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig as EngineConfig
from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    Event,
    MobilityPacket,
    Output,
    SendMobility,
)
from dsmip_ipsec.node.config import HomeAgentConfig
from dsmip_ipsec.node.control import ControlServer
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.node.signalling import MARK_MASK, MARK_PATTERN, SignallingPath
from dsmip_ipsec.node.timer import DeadlineTimer

log = logging.getLogger(__name__)


class HomeAgentDaemon:
    """Runs until :meth:`stop`."""

    def __init__(self, config: HomeAgentConfig) -> None:
        self._config = config
        self._peerings: dict[IPv6Address, Peering] = {
            peering.home_address: peering for peering in config.peerings()
        }
        self._engine = HomeAgent(
            EngineConfig(
                home_agent_address=config.home_agent.home_agent,
                home_agent_ipv4=config.home_agent.home_agent_ipv4,
                subscribers={
                    peering.home_address: Subscriber(ipv4_home_address=_interface(peering))
                    for peering in self._peerings.values()
                },
                max_lifetime=config.max_lifetime_s,
                nat_refresh_time=config.nat_refresh_time_s,
            )
        )
        self._path = SignallingPath(
            random_bits=secrets.randbits, accepts=self._accepts, on_message=self._on_message
        )
        self._reconciler = Reconciler(
            self._desired, tuple(peering.reqids for peering in self._peerings.values())
        )
        self._routing = Routing()
        self._timer = DeadlineTimer(self._engine.next_deadline, self._expire)
        self._control = ControlServer(config.control_socket, {"status": self._status})
        self._bindings: dict[IPv6Address, Binding] = {}

    async def start(self) -> None:
        """Set everything up. Raises DsmipError; nothing is left behind then."""
        try:
            await self._reconciler.open()
            self._path.open()
            self._path.bind(self._config.home_agent.home_agent_ipv4)
            await self._routing.open()
            await self._routing.signalling(TUN_NAME, MARK_PATTERN, MARK_MASK)
            await self._control.start()
        except DsmipError:
            await self.stop()
            raise

    async def failed(self) -> None:
        """Return when, and raise what, makes going on pointless (KernelError)."""
        await self._reconciler.failed()

    async def stop(self) -> None:
        """Take everything down: no policy, mirror, route or rule of ours is left."""
        self._timer.cancel()
        await self._control.stop()
        self._bindings.clear()
        await self._reconciler.close()
        await self._routing.close()
        self._path.close()

    def _desired(self, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        associations = list(negotiated)
        state = DesiredState()
        for peering in self._peerings.values():
            mine = [sa for sa in associations if sa.reqid in peering.reqids]
            signalling = any(sa.reqid == peering.reqids.signalling for sa in mine)
            state += desired(
                peering,
                active=signalling,
                binding=self._bindings.get(peering.home_address),
                negotiated=mine,
            )
        return state

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        return destination == self._config.home_agent.home_agent and source in self._peerings

    def _on_message(self, packet: MobilityPacket) -> None:
        self._carry_out(self._engine.handle(packet, self._now()))

    def _expire(self) -> None:
        self._carry_out(self._engine.expire(self._now()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, SendMobility):
                self._path.send(output)
            elif isinstance(output, BindingChanged):
                log.info("binding %s: %s", output.reason, output.new or output.old)
                self._follow(output)
            elif isinstance(output, Event):
                log.info("%s %s %s", output.kind, output.home_address, dict(output.detail))
        self._timer.rearm()

    def _follow(self, change: BindingChanged) -> None:
        if change.new is not None:
            self._bindings[change.new.home_address] = change.new
        elif change.old is not None:
            self._bindings.pop(change.old.home_address, None)
        self._reconciler.trigger()

    async def _status(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "bindings": [binding_dict(binding) for binding in self._bindings.values()],
            "counters": {**self._engine.counters, **self._path.counters},
        }


def _interface(peering: Peering) -> IPv4Interface | None:
    home = peering.ipv4_home_address
    return IPv4Interface(home) if home is not None else None
