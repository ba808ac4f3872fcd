"""The mobile node's daemon: engine, signalling path, IPsec, routes and charon, tied together.

At a handover (RFC 5555 §5.1) the BU leaves by the new attachment while the old one still carries
the tunnel; on the BA the route to the home agent changes, charon's MOBIKE moves IKE_SA and data
SAs, and our policies follow the SAs. In MOBIKE mode the SAs are charon's alone to move.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.errors import ConfigError, DsmipError, IkeError, MobilityError
from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import outbound
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.kernel.routing import Attachment, Routing
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig as EngineConfig
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    Event,
    MobilityPacket,
    Output,
    SendMobility,
)
from dsmip_ipsec.node.config import MobileNodeConfig
from dsmip_ipsec.node.control import ControlServer
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.node.signalling import MARK_MASK, MARK_PATTERN, SignallingPath
from dsmip_ipsec.node.timer import DeadlineTimer

log = logging.getLogger(__name__)


class MobileNodeDaemon:
    """Runs until :meth:`stop`; driven by its control socket's commands."""

    def __init__(self, config: MobileNodeConfig) -> None:
        self._config = config
        self._peering = config.peering()
        self._driver = ViciDriver(config.ike.vici_socket)
        self._engine = MobileNode(
            EngineConfig(
                home_address=self._peering.home_address,
                home_agent=self._peering.home_agent,
                home_agent_ipv4=self._peering.home_agent_ipv4,
                ipv4_home_address=IPv4Interface(self._peering.ipv4_home_address)
                if self._peering.ipv4_home_address is not None
                else None,
                lifetime=config.lifetime_s,
            ),
            secrets.randbits,
        )
        self._path = SignallingPath(
            random_bits=secrets.randbits, accepts=self._accepts, on_message=self._on_message
        )
        self._reconciler = Reconciler(self._desired, (self._peering.reqids,))
        self._routing = Routing()
        self._timer = DeadlineTimer(self._engine.next_deadline, self._tick)
        self._control = ControlServer(
            config.control_socket,
            {"attach": self._attach, "deregister": self._deregister, "status": self._status},
        )
        self._active = False
        self._binding: Binding | None = None
        self._binding_changed = asyncio.Event()
        self._attachment: Attachment | None = None
        self._moving = asyncio.Lock()

    async def start(self) -> None:
        """Set everything up. Raises DsmipError; nothing is left behind then."""
        try:
            await self._reconciler.open()
            self._path.open()
            await self._routing.open()
            await self._routing.signalling(TUN_NAME, MARK_PATTERN, MARK_MASK)
            await self._routing.home_addresses(TUN_NAME, self._home_addresses())
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
        self._active, self._binding = False, None
        await self._reconciler.close()
        await self._routing.close()
        self._path.close()

    def _home_addresses(self) -> list[IPv4Address | IPv6Address]:
        ipv4 = self._peering.ipv4_home_address
        return [self._peering.home_address, *([ipv4] if ipv4 is not None else [])]

    # What the parts ask -----------------------------------------------------------------------

    def _desired(self, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        return desired(
            self._peering, active=self._active, binding=self._binding, negotiated=negotiated
        )

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        peering = self._peering
        return source == peering.home_agent and destination == peering.home_address

    def _on_message(self, packet: MobilityPacket) -> None:
        self._carry_out(self._engine.handle(packet, self._now()))

    def _tick(self) -> None:
        self._carry_out(self._engine.tick(self._now()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, SendMobility):
                self._path.send(output)
            elif isinstance(output, BindingChanged):
                log.info("binding %s: %s", output.reason, output.new)
                self._binding = output.new
                self._binding_changed.set()
                self._reconciler.trigger()
            elif isinstance(output, Event):
                log.info("%s %s", output.kind, dict(output.detail))
        self._timer.rearm()

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
            await self._driver.establish(
                self._config.ike.connection,
                data=self._peering.protect_data,
                timeout=self._config.ike.timeout_s,
            )
            reached("ike")
            await self._reconciler.reconcile()
        self._binding_changed.clear()
        self._carry_out(self._engine.attach(care_of_address, now=self._now()))
        await self._bound(care_of_address)
        reached("binding")
        previous, self._attachment = self._attachment, attachment
        await self._routing.use(attachment, self._peering.home_agent_ipv4)
        if self._peering.protect_data:
            await self._data_moved(care_of_address)
        await self._reconciler.reconcile()
        reached("sas")
        if previous is not None and previous != attachment:
            self._path.unbind(previous.care_of_address)
            await self._routing.detach(previous.interface)
        return milestones

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
        """Wait until charon has the data SAs of both directions at ``care_of_address``."""

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
            if self._attachment is not None:
                await self._driver.terminate(
                    self._config.ike.connection, timeout=self._config.ike.timeout_s
                )
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

    async def _status(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "bindings": [binding_dict(self._binding, seen=False)]
            if self._binding is not None
            else [],
            "attachment": self._attachment.interface if self._attachment is not None else "",
            "counters": {**self._engine.counters, **self._path.counters},
        }
