"""The mobile node's daemon: engine, signalling path, IPsec, routes and charon, tied together.

At a handover (RFC 5555 §5.1) the BU leaves by the new attachment while the old one still carries
the tunnel; on the BA the route to the home agent changes. With MOBIKE, charon then moves IKE_SA
and data SAs, and our policies follow the SAs, which are charon's alone to move; without it, we
move the data SAs at once and have the IKE_SA follow (``key_management``).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.errors import ConfigError, IkeError, MobilityError
from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids, outbound
from dsmip_ipsec.kernel.routing import Attachment
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig as EngineConfig
from dsmip_ipsec.mobility.types import Binding, BindingChanged, Output
from dsmip_ipsec.node.config import MobileNodeConfig
from dsmip_ipsec.node.configured_sas import associations
from dsmip_ipsec.node.daemon import EngineDaemon
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.node.key_management import KeyManagement
from dsmip_ipsec.node.userspace_ipsec import UserspaceIpsec
from dsmip_ipsec.node.userspace_path import UserspacePath


class MobileNodeDaemon(EngineDaemon):
    """A mobile node; it moves when it is told to, by the command ``attach``."""

    def __init__(self, config: MobileNodeConfig) -> None:
        self._config = config
        self._peering = config.peering()
        home = self._peering.ipv4_home_address
        self._engine = MobileNode(
            EngineConfig(
                home_address=self._peering.home_address,
                home_agent=self._peering.home_agent,
                home_agent_ipv4=self._peering.home_agent_ipv4,
                ipv4_home_address=IPv4Interface(home) if home is not None else None,
                lifetime=config.lifetime_s,
                force_udp=config.force_udp,
                key_mobility=config.ike is not None
                and config.ike.mobility_mode is MobilityMode.K_BIT,
            ),
            secrets.randbits,
        )
        self._active = False
        self._binding: Binding | None = None
        self._binding_changed = asyncio.Event()
        self._attachment: Attachment | None = None
        self._moving = asyncio.Lock()
        super().__init__(
            self._engine,
            (self._peering.reqids,),
            config.control_socket,
            {"attach": self._attach, "deregister": self._deregister},
            userspace=UserspaceIpsec(
                associations(self._peering, config.mobile_node.associations), keeps_alive=True
            )
            if config.ipsec == "userspace"
            else None,
        )
        self._keys: KeyManagement | None = None
        if config.ike is not None:
            self._keys = KeyManagement(
                config.ike,
                self._peering,
                associations=lambda: self._reconciler.associations,
                changed=self._reconciler.trigger,
                restored=self._keys_restored,
            )

    async def stop(self) -> None:
        """Take everything down: no policy, mirror, route or rule of ours is left, and no IKE_SA.

        Its mirrors would be made anew by the next daemon, with sequence numbers from 1: replays.
        """
        if self._active and self._keys is not None:
            with contextlib.suppress(IkeError):
                await self._keys.terminate(force=True)
        if self._keys is not None:
            await self._keys.stop()
        self._active, self._binding = False, None
        await super().stop()

    async def _set_up(self) -> None:
        if self._keys is not None:
            self._keys.start()
        await self._routing.home_addresses(TUN_NAME, self._home_addresses())

    def _home_addresses(self) -> list[IPv4Address | IPv6Address]:
        ipv4 = self._peering.ipv4_home_address
        return [self._peering.home_address, *([ipv4] if ipv4 is not None else [])]

    def _desired(self, peering: Reqids, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        return desired(
            self._peering,
            active=self._active,
            binding=self._binding,
            negotiated=negotiated,
            retired=self._keys.retired if self._keys is not None else (),
        )

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        peering = self._peering
        return source == peering.home_agent and destination == peering.home_address

    def _time_is_up(self, now: float) -> list[Output]:
        return self._engine.tick(now)

    def _follow(self, change: BindingChanged) -> None:
        self._binding = change.new
        self._binding_changed.set()

    def _describe(self) -> dict[str, Any]:
        binding = self._binding
        return {
            "bindings": [] if binding is None else [binding_dict(binding, seen=False)],
            "attachment": self._attachment.interface if self._attachment is not None else "",
        }

    # Commands ---------------------------------------------------------------------------------

    async def _attach(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Attach to a visited network: the first time, or as a handover.

        Arguments ``interface``, ``care_of_address``, ``gateway``; the result has ``*_ms`` since
        the start of the command: ``ike`` up, ``binding`` acknowledged, ``sas`` moved.
        """
        try:
            attachment = Attachment(
                str(arguments["interface"]),
                IPv4Address(arguments["care_of_address"]),
                IPv4Address(arguments["gateway"]),
            )
        except ValueError as error:
            raise ConfigError(f"not an attachment: {error}") from error
        if self._moving.locked():
            raise MobilityError("a handover is under way", hint="wait until it is done")
        async with self._moving:
            return await self._hand_over(attachment)

    async def _hand_over(self, attachment: Attachment) -> Mapping[str, Any]:
        started = time.monotonic()
        milestones: dict[str, float] = {}

        def reached(name: str) -> None:
            milestones[f"{name}_ms"] = round(1000 * (time.monotonic() - started), 1)

        care_of_address = attachment.care_of_address
        await self._routing.attach(attachment)
        self._path.bind(care_of_address)
        if self._attachment is None:
            # First the policies that block, then the routes that lead payload to them.
            self._active = True
            await self._reconciler.reconcile()
            await self._routing.payload(TUN_NAME, self._home_addresses())
            await self._routing.use(attachment, self._peering.home_agent_ipv4)
            if self._keys is not None:
                await self._keys.establish()
                reached("ike")
            await self._reconciler.reconcile()
        self._binding_changed.clear()
        self._carry_out(self._engine.attach(care_of_address, now=self._now()))
        await self._bound(care_of_address)
        reached("binding")
        previous, self._attachment = self._attachment, attachment
        await self._routing.use(attachment, self._peering.home_agent_ipv4)
        if self._peering.protect_data and self._keys is not None:
            await self._data_moved(care_of_address)
        await self._reconciler.reconcile()
        if isinstance(self._path, UserspacePath):
            self._path.announce()
        reached("sas")
        if previous is not None and self._keys is not None:
            await self._keys.follow(
                care_of_address,
                key_mobility=self._binding is not None and self._binding.key_mobility,
            )
            reached("keys")
        if previous is not None and previous != attachment:
            self._path.unbind(previous.care_of_address)
            await self._routing.detach(previous.interface)
        return milestones

    async def _keys_restored(self) -> None:
        """There are new SAs; the home agent may have lost the binding with the old ones."""
        await self._reconciler.reconcile()
        if self._binding is not None:
            self._carry_out(self._engine.refresh(self._now()))

    async def _bound(self, care_of_address: IPv4Address) -> None:
        """Wait for the BA that binds ``care_of_address``."""
        limit = self._config.handover_timeout_s
        try:
            async with asyncio.timeout(limit):
                while self._binding is None or self._binding.care_of_address != care_of_address:
                    await self._binding_changed.wait()
                    self._binding_changed.clear()
        except TimeoutError as error:
            raise MobilityError(
                f"no binding acknowledgement for {care_of_address} within {limit:g} s",
                hint="does UDP port 4191 pass to the home agent and back, and is the home agent's "
                "daemon running? its log and counters tell whether the binding update arrived",
            ) from error

    async def _data_moved(self, care_of_address: IPv4Address) -> None:
        """Wait until the data SAs of both directions are at ``care_of_address``."""

        def moved(associations: tuple[SecurityAssociation, ...]) -> bool:
            data = [sa for sa in associations if sa.reqid == self._peering.reqids.data]
            sending = [sa for sa in data if outbound(self._peering, sa)]
            return (
                len(data) > len(sending) > 0
                and all(sa.source == care_of_address for sa in sending)
                and all(sa.destination == care_of_address for sa in data if sa not in sending)
            )

        limit = self._config.handover_timeout_s
        if not await self._reconciler.wait_for(moved, limit):
            raise IkeError(
                f"charon didn't move the data SAs to {care_of_address} within {limit:g} s",
                hint="does UDP port 4500 pass to the home agent and back? charon's logs at both "
                "ends tell how far MOBIKE came",
            )

    async def _deregister(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Remove all bindings (lifetime 0), then the IKE_SA and with it every SA and policy."""
        async with self._moving:
            if self._binding is not None:
                self._binding_changed.clear()
                self._carry_out(self._engine.deregister(self._now()))
                await self._unbound()
            if self._attachment is not None and self._keys is not None:
                await self._keys.terminate()
            await self._routing.no_payload()
            self._active = False
            await self._reconciler.reconcile(settled=True)
            if self._attachment is not None:
                self._path.unbind(self._attachment.care_of_address)
                await self._routing.detach(self._attachment.interface)
                self._attachment = None
        return {}

    async def _unbound(self) -> None:
        limit = self._config.handover_timeout_s
        try:
            async with asyncio.timeout(limit):
                while self._binding is not None:
                    await self._binding_changed.wait()
                    self._binding_changed.clear()
        except TimeoutError as error:
            raise MobilityError(
                f"the home agent didn't acknowledge the deregistration within {limit:g} s",
                hint="the binding expires there by its lifetime; look at the home agent's log",
            ) from error
