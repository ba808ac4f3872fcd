"""The home agent's daemon: engine, signalling path and IPsec for all its mobile nodes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import Address, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering, Reqids
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig as EngineConfig
from dsmip_ipsec.mobility.home_agent_config import Subscriber
from dsmip_ipsec.mobility.home_link_types import DetectDuplicateAddress, HomeLinkChanged
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    OuterAddress,
    Output,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.node.abandoned_ike import AbandonedIkeSas
from dsmip_ipsec.node.address_discovery import HomeAgentAnswers
from dsmip_ipsec.node.background import Background
from dsmip_ipsec.node.charon_watch import CharonWatch, discard
from dsmip_ipsec.node.config import HomeAgentConfig
from dsmip_ipsec.node.configured_sas import associations
from dsmip_ipsec.node.daemon import EngineDaemon
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.node.home_link import HomeLink
from dsmip_ipsec.node.native import kernel_headers
from dsmip_ipsec.node.plain_data import PlainData, plain_state
from dsmip_ipsec.node.refusals import Refusals
from dsmip_ipsec.node.userspace_ipsec import UserspaceIpsec
from dsmip_ipsec.userspace.engine import Mapping

log = logging.getLogger(__name__)

# For mobile nodes to acknowledge that their IKE_SA of before is deleted.
PEERS_S = 1.0


class HomeAgentDaemon(EngineDaemon):
    """The home agent of the mobile nodes that its configuration names."""

    def __init__(self, config: HomeAgentConfig) -> None:
        self._config = config
        native = kernel_headers(config)
        self._peerings: dict[IPv6Address, Peering] = {
            peering.home_address: peering for peering in config.peerings(native=native)
        }
        self._engine = HomeAgent(
            EngineConfig(
                home_agent_address=config.home_agent.home_agent,
                home_agent_ipv4=config.home_agent.home_agent_ipv4,
                subscribers={
                    peering.home_address: Subscriber(
                        ipv4_home_address=_interface(peering),
                        mobile_network_prefixes=peering.mobile_network_prefixes,
                    )
                    for peering in self._peerings.values()
                },
                max_lifetime=config.max_lifetime_s,
                nat_refresh_time=config.nat_refresh_time_s,
                home_prefixes=config.home_prefixes,
                duplicate_address_detection=config.detects_duplicates,
                key_mobility=config.ike.mobility_mode is MobilityMode.K_BIT,
                # They need SAs of their own (RFC 4877 §4.2).
                prefix_advertisements=any(
                    peering.reqids.prefix_discovery for peering in self._peerings.values()
                ),
            ),
            secrets.randbits,
        )
        self._answers = HomeAgentAnswers(
            config.home_prefixes,
            config.home_link or None,
            lambda packet: self._carry_out(self._engine.handle_icmp(packet, self._now())),
        )
        self._home_link = HomeLink(
            config.home_link or None,
            TUN_NAME,
            config.home_agent.home_agent,
            lambda home_address, duplicate: self._carry_out(
                self._engine.duplicate_address_result(home_address, duplicate, self._now())
            ),
            lambda advertisement: self._engine.router_advertisement(advertisement, self._now()),
        )
        self._bindings: dict[IPv6Address, Binding] = {}
        self._by_reqids = {peering.reqids: peering for peering in self._peerings.values()}
        self._esp_care_of: dict[IPv6Address, OuterAddress] = {}
        self._userspace = config.ipsec == "userspace"
        self._delivering = asyncio.Lock()
        self._background = Background("the home agent")
        agent = config.home_agent
        super().__init__(
            self._engine,
            tuple(self._by_reqids),
            config.control_socket,
            {},
            userspace=UserspaceIpsec(
                (
                    association
                    for node in config.mobile_nodes
                    for association in associations(
                        self._peerings[node.home_address], node.associations
                    )
                ),
                local_addresses=(agent.home_agent, agent.home_agent_ipv4),
            )
            if self._userspace
            else None,
            kernel_headers=native,
        )
        if not config.protect_data:
            self._leave_payload_plain(self._payload_wanted, home_agent=True)
        self._negotiable = {reqid for ids in self._by_reqids for reqid in ids.negotiated}
        self._watch: CharonWatch | None = None
        self._abandoned: AbandonedIkeSas | None = None
        self._refusals: Refusals | None = None
        if config.ike.vici_socket is not None:
            driver = ViciDriver(config.ike.vici_socket)
            self._abandoned = AbandonedIkeSas(driver, map(_needed, self._peerings.values()))
            self._refusals = Refusals(config.ike.vici_socket)
            self._ike = self._watch = CharonWatch(
                driver,
                associations=lambda: self._reconciler.associations,
                reqids=self._negotiable,
                changed=self._reconciler.trigger,
                events=self._abandoned.heard,
                there=self._abandoned.charon_is_there,
            )

    async def stop(self) -> None:
        """Take everything down: no policy, mirror, route or rule of ours is left."""
        await self._background.stop()
        if self._watch is not None:
            await self._watch.stop()
        if self._abandoned is not None:
            await self._abandoned.stop()
        if self._refusals is not None:
            await self._refusals.stop()
        self._bindings.clear()
        self._home_link.close()
        self._answers.close()
        await super().stop()

    async def _set_up(self) -> None:
        await self._routing.keep(
            network
            for peering in self._peerings.values()
            for network in peering.mobile_network_prefixes
        )
        self._home_link.open()
        self._answers.open()
        self._path.bind(self._config.home_agent.home_agent_ipv4)
        if self._watch is not None and self._config.ike.vici_socket is not None:
            # The mobile nodes hear of it, come back and register: we know none of their bindings.
            await discard(
                ViciDriver(self._config.ike.vici_socket), self._negotiable, timeout=PEERS_S
            )
            self._watch.start()
        if self._refusals is not None:
            self._refusals.start()

    def _desired(self, ids: Reqids, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        peering = self._by_reqids[ids]
        associations = list(negotiated)
        retired = self._watch.retired if self._watch is not None else frozenset()
        # Without SA and binding there is nothing of that node here. Nor does a BU get in then: the
        # sockets take nothing but what ESP has let through.
        signalling = any(
            sa.reqid == ids.signalling and sa.spi not in retired for sa in associations
        )
        return desired(
            peering,
            active=signalling,
            binding=self._bindings.get(peering.home_address),
            negotiated=associations,
            esp_care_of=self._esp_care_of.get(peering.home_address),
            retired=retired,
        )

    def _payload_wanted(self) -> DesiredState:
        return plain_state(
            (self._peerings[home], binding) for home, binding in self._bindings.items()
        )

    def _send(self, output: SendMobility | SendIcmp) -> None:
        on_link = output.remote is None and output.type2_routing is None
        peering = self._peerings.get(output.destination)
        unbound = peering is not None and peering.home_address not in self._bindings
        acknowledges = isinstance(output, SendMobility)  # and no prefix advertisement
        if acknowledges and on_link and unbound and peering and self._abandoned is not None:
            # The answer to a binding update from the home link (RFC 6275 §11.5.5).
            self._abandoned.returned_home(peering.reqids.negotiated)
        if self._plain is None or not on_link:
            super()._send(output)
            return
        # To a home address on its link: not into the tunnel that has been its way until now.
        self._background.start(self._send_settled(self._plain, output))

    async def _send_settled(self, plain: PlainData, output: SendMobility | SendIcmp) -> None:
        await plain.settled()
        super()._send(output)

    def _concerned(self, change: BindingChanged) -> tuple[Reqids, ...]:
        binding = change.new or change.old
        peering = self._peerings.get(binding.home_address) if binding is not None else None
        return (peering.reqids,) if peering is not None else ()

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        return destination == self._config.home_agent.home_agent and source in self._peerings

    def _also(self, output: Output) -> None:
        if isinstance(output, HomeLinkChanged):
            self._home_link.change(output)
        elif isinstance(output, DetectDuplicateAddress):
            self._home_link.detect(output)
        elif isinstance(output, SendIcmp) and not output.protected:
            self._answers.send(output)
        else:
            super()._also(output)

    def _time_is_up(self, now: float) -> list[Output]:
        return self._engine.expire(now)

    def _follow(self, change: BindingChanged) -> None:
        if change.new is not None:
            self._bindings[change.new.home_address] = change.new
        elif change.old is not None:
            self._bindings.pop(change.old.home_address, None)
        home = change.new or change.old
        if self._userspace and home is not None:
            self._background.start(self._deliver(home.home_address))

    async def _deliver(self, home_address: IPv6Address) -> None:
        """Lead payload for a mobile node into the TUN while it has a binding."""
        peering = self._peerings[home_address]
        ipv4 = peering.ipv4_home_address
        addresses: list[Address] = [home_address, *([ipv4] if ipv4 is not None else [])]
        async with self._delivering:
            bound = home_address in self._bindings
            await self._routing.deliver(TUN_NAME, addresses if bound else [], str(home_address))

    def _on_mapping(self, mapping: Mapping) -> None:
        """RFC 5555 §5.1: ESP's care-of address is learnt from ESP."""
        _, spi = mapping.key
        reqid = next((sa.reqid for sa in self._reconciler.associations if sa.spi == spi), None)
        ids = next((ids for ids in self._by_reqids if ids.data == reqid), None)
        if ids is not None and mapping.port is not None:
            self._esp_heard(ids, OuterAddress(mapping.source, mapping.port))

    def _esp_heard(self, peering: Reqids, source: OuterAddress) -> None:
        home_address = self._by_reqids[peering].home_address
        # The kernel says it with every packet until the SA has moved.
        if self._esp_care_of.get(home_address) != source:
            log.info("ESP of %s comes from %s", home_address, source)
            self._esp_care_of[home_address] = source
            self._reconciler.trigger(peering)

    def _describe(self) -> dict[str, Any]:
        refused = self._refusals.describe() if self._refusals is not None else []
        return {
            "bindings": [binding_dict(binding) for binding in self._bindings.values()],
            "refused": refused,
        }

    def _own_counters(self) -> dict[str, int]:
        return {**self._home_link.counters, **self._answers.counters}


def _needed(peering: Peering) -> tuple[int, ...]:
    """Reqids of the CHILD_SAs without which an IKE_SA is of no use."""
    data = (peering.reqids.data,) if peering.protect_data else ()
    return (peering.reqids.signalling, *data)


def _interface(peering: Peering) -> IPv4Interface | None:
    home = peering.ipv4_home_address
    return IPv4Interface(home) if home is not None else None
