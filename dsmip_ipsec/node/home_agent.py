"""The home agent's daemon: engine, signalling path and IPsec for all its mobile nodes."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig as EngineConfig
from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.types import Binding, BindingChanged, Output
from dsmip_ipsec.node.charon_watch import CharonWatch, discard
from dsmip_ipsec.node.config import HomeAgentConfig
from dsmip_ipsec.node.daemon import EngineDaemon
from dsmip_ipsec.node.describe import binding_dict

# For mobile nodes to acknowledge that their IKE_SA of before is deleted.
PEERS_S = 1.0


class HomeAgentDaemon(EngineDaemon):
    """The home agent of the mobile nodes that its configuration names."""

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
                key_mobility=config.ike.mobility_mode is MobilityMode.K_BIT,
            )
        )
        self._bindings: dict[IPv6Address, Binding] = {}
        reqids = tuple(peering.reqids for peering in self._peerings.values())
        super().__init__(self._engine, reqids, config.control_socket, {})
        self._negotiable = {reqid for ids in reqids for reqid in (ids.signalling, ids.data)}
        self._watch: CharonWatch | None = None
        if config.ike.vici_socket is not None:
            self._watch = CharonWatch(
                ViciDriver(config.ike.vici_socket),
                associations=lambda: self._reconciler.associations,
                reqids=self._negotiable,
                changed=self._reconciler.trigger,
            )

    async def stop(self) -> None:
        """Take everything down: no policy, mirror, route or rule of ours is left."""
        if self._watch is not None:
            await self._watch.stop()
        self._bindings.clear()
        await super().stop()

    async def _set_up(self) -> None:
        self._path.bind(self._config.home_agent.home_agent_ipv4)
        if self._watch is not None and self._config.ike.vici_socket is not None:
            # The mobile nodes hear of it, come back and register: we know none of their bindings.
            await discard(
                ViciDriver(self._config.ike.vici_socket), self._negotiable, timeout=PEERS_S
            )
            self._watch.start()

    def _desired(self, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        associations = list(negotiated)
        retired = self._watch.retired if self._watch is not None else frozenset()
        state = DesiredState()
        for peering in self._peerings.values():
            mine = [sa for sa in associations if sa.reqid in peering.reqids]
            signalling = any(
                sa.reqid == peering.reqids.signalling and sa.spi not in retired for sa in mine
            )
            state += desired(
                peering,
                active=signalling,
                binding=self._bindings.get(peering.home_address),
                negotiated=mine,
                retired=retired,
            )
        return state

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        return destination == self._config.home_agent.home_agent and source in self._peerings

    def _time_is_up(self, now: float) -> list[Output]:
        return self._engine.expire(now)

    def _follow(self, change: BindingChanged) -> None:
        if change.new is not None:
            self._bindings[change.new.home_address] = change.new
        elif change.old is not None:
            self._bindings.pop(change.old.home_address, None)

    def _describe(self) -> dict[str, Any]:
        return {"bindings": [binding_dict(binding) for binding in self._bindings.values()]}


def _interface(peering: Peering) -> IPv4Interface | None:
    home = peering.ipv4_home_address
    return IPv4Interface(home) if home is not None else None
