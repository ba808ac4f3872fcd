"""The mobile node's daemon: engine, signalling path, IPsec, routes and charon, tied together.

At a handover (RFC 5555 §5.1) the BU leaves by the new attachment while the old one still carries
the tunnel; on the BA the route to the home agent changes. With MOBIKE, charon then moves IKE_SA
and data SAs, and our policies follow the SAs, which are charon's alone to move; without it, we
move the data SAs at once and have the IKE_SA follow (``key_management``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.errors import ConfigError, DsmipError, IkeError, MobilityError
from dsmip_ipsec.ike.inventory import MobilityMode
from dsmip_ipsec.ipsec.desired import DesiredState, desired
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.ipsec.placement import data_is_at
from dsmip_ipsec.kernel.routing import Address, Attachment
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig as EngineConfig
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    HomePrefixesLearned,
    Output,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.node.background import Background
from dsmip_ipsec.node.config import MobileNodeConfig
from dsmip_ipsec.node.configured_sas import associations
from dsmip_ipsec.node.daemon import EngineDaemon
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.node.home_prefixes import HomePrefixes
from dsmip_ipsec.node.key_management import KeyManagement
from dsmip_ipsec.node.movement import Movement, Where
from dsmip_ipsec.node.native import kernel_headers
from dsmip_ipsec.node.place import Home, Place, read_place, still_bound, unanswered
from dsmip_ipsec.node.plain_data import plain_state
from dsmip_ipsec.node.pursuit import Pursuit
from dsmip_ipsec.node.returning import HomeInterface
from dsmip_ipsec.node.userspace_ipsec import UserspaceIpsec
from dsmip_ipsec.node.userspace_path import UserspacePath

log = logging.getLogger(__name__)


class MobileNodeDaemon(EngineDaemon):
    """A mobile node; it moves when it is told to, by the command ``attach``."""

    def __init__(self, config: MobileNodeConfig) -> None:
        self._config = config
        self._native = kernel_headers(config)
        self._peering = config.peering(native=self._native)
        home = self._peering.ipv4_home_address
        self._engine = MobileNode(
            EngineConfig(
                home_address=self._peering.home_address,
                home_agent=self._peering.home_agent,
                home_agent_ipv4=self._peering.home_agent_ipv4,
                ipv4_home_address=IPv4Interface(home) if home is not None else None,
                lifetime=config.lifetime_s,
                mobile_router=bool(self._peering.mobile_network_prefixes),
                mobile_network_prefixes=self._peering.mobile_network_prefixes
                if config.explicit_prefixes
                else (),
                force_udp=config.force_udp,
                key_mobility=config.ike is not None
                and config.ike.mobility_mode is MobilityMode.K_BIT,
            ),
            secrets.randbits,
        )
        self._active = False
        self._signalling_care_of: IPv6Address | None = None
        self._binding: Binding | None = None
        self._home_prefixes = HomePrefixes(
            lambda: self._carry_out(self._engine.solicit_prefixes(self._now())),
            bound=lambda: self._binding is not None,
            reqid=self._peering.reqids.prefix_discovery,
        )
        self._binding_changed = asyncio.Event()
        self._place: Place | None = None  # the newest network
        self._attachments: list[Attachment] = []  # set up: the newest network's, and older ones
        self._in_use: Attachment | None = None  # by the tunnel
        self._moving = asyncio.Lock()
        self._background = Background("the mobile node")
        self._home: HomeInterface | None = None
        self._pursuit: Pursuit[Place | Home] = Pursuit(self._reach)
        self._movement: Movement | None = None
        if config.interfaces:
            self._movement = Movement(
                config.interfaces,
                home_prefix=config.home_prefix,
                own=self._home_addresses(),
                moved=self._moved,
            )
        super().__init__(
            self._engine,
            (self._peering.reqids,),
            config.control_socket,
            {
                "attach": self._attach,
                "deregister": self._deregister,
                "return_home": self._go_home,
                "solicit_prefixes": self._home_prefixes.command,
            },
            userspace=UserspaceIpsec(
                associations(self._peering, config.mobile_node.associations), keeps_alive=True
            )
            if config.ipsec == "userspace"
            else None,
            kernel_headers=self._native,
        )
        if not config.protect_data:
            self._leave_payload_plain(self._payload_wanted, home_agent=False)
        self._keys: KeyManagement | None = None
        if config.ike is not None:
            self._ike = self._keys = KeyManagement(
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
        if self._movement is not None:
            self._movement.close()
        await self._pursuit.stop()
        await self._background.stop()
        if self._home is not None:
            self._home.close()
            self._home = None
        if self._active and self._keys is not None:
            with contextlib.suppress(IkeError):
                await self._keys.terminate(force=True)
        if self._keys is not None:
            await self._keys.stop()
        self._active, self._binding, self._in_use = False, None, None
        await super().stop()

    async def _set_up(self) -> None:
        if self._keys is not None:
            self._keys.start()
        networks = self._peering.mobile_network_prefixes
        await self._routing.home_addresses(TUN_NAME, self._home_addresses(), networks)
        if self._movement is not None:
            self._movement.open()

    def _home_addresses(self) -> list[IPv4Address | IPv6Address]:
        ipv4 = self._peering.ipv4_home_address
        return [self._peering.home_address, *([ipv4] if ipv4 is not None else [])]

    def _desired(self, peering: Reqids, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        return desired(
            self._peering,
            active=self._active,
            binding=self._binding,
            negotiated=negotiated,
            signalling_care_of=self._signalling_care_of,
            retired=self._keys.retired if self._keys is not None else (),
        )

    def _payload_wanted(self) -> DesiredState:
        return plain_state([] if self._binding is None else [(self._peering, self._binding)])

    def _also(self, output: Output) -> None:
        if isinstance(output, HomePrefixesLearned):
            self._home_prefixes.learn(output)
        else:
            super()._also(output)

    def _send(self, output: SendMobility | SendIcmp) -> None:
        native = output.remote is None and output.home_address_option is not None
        care_of_address = output.source if native else None
        if not self._native or care_of_address == self._signalling_care_of:
            super()._send(output)
            return
        # The kernel has a state for one care-of address, and it has to be this one first.
        self._signalling_care_of = care_of_address
        self._background.start(self._reconcile_and_send(output))

    async def _reconcile_and_send(self, output: SendMobility | SendIcmp) -> None:
        await self._reconciler.reconcile()
        super()._send(output)

    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        peering = self._peering
        return source == peering.home_agent and destination == peering.home_address

    def _time_is_up(self, now: float) -> list[Output]:
        return self._engine.tick(now)

    def _follow(self, change: BindingChanged) -> None:
        self._binding = change.new
        self._binding_changed.set()
        if change.new is not None and not self._moving.locked() and self._elsewhere() is not None:
            # RFC 5555 §4.4.1: the engine changed the family by itself, or an answer came late.
            self._background.start(self._settle_alone())

    def _describe(self) -> dict[str, Any]:
        binding = self._binding
        return {
            "bindings": [] if binding is None else [binding_dict(binding, seen=False)],
            "attachment": self._in_use.interface if self._in_use is not None else "",
            "state": str(self._engine.state),
            "home_prefixes": self._home_prefixes.describe(),
        }

    # Commands ---------------------------------------------------------------------------------

    async def _attach(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Attach to a visited network: the first time, or as a handover.

        Arguments as of :func:`read_place`; the result has ``*_ms`` since the start of the
        command: ``ike`` up, ``binding`` acknowledged, ``sas`` moved.
        """
        place = read_place(arguments)
        if self._moving.locked():
            raise MobilityError("a handover is under way", hint="wait until it is done")
        async with self._moving:
            return await self._hand_over(place)

    def _moved(self, where: Where) -> None:
        """Movement detection has found out something."""
        if where is None:
            # Whatever network comes next: until then the binding stays.
            self._carry_out(self._engine.detach(self._now()))
        else:
            self._pursuit.aim(where)

    async def _reach(self, where: Place | Home) -> None:
        async with self._moving:
            if isinstance(where, Home):
                await self._return_home(where.interface)
            else:
                await self._hand_over(where)

    async def _go_home(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """The mobile node is on its home link: remove the bindings, use the home addresses there.

        Argument ``interface``.
        """
        if "interface" not in arguments:
            raise ConfigError("which interface is on the home link?", hint="give interface")
        async with self._moving:
            await self._return_home(str(arguments["interface"]))
        return {}

    async def _return_home(self, interface: str) -> None:
        """RFC 6275 §11.5.5."""
        peering = self._peering
        if self._home is not None and self._home.interface != interface:
            await self._leave_home()
        if self._home is None:
            self._home = HomeInterface(
                interface, peering.home_address, peering.ipv4_home_address, peering.home_agent
            )
        if self._active:
            await self._routing.on_link(interface, peering.home_agent)
            self._binding_changed.clear()
            self._carry_out(self._engine.deregister(self._now(), at_home=True))
            await self._unbound()
            await self._quit()
        lengths = {6: 64, 4: self._config.ipv4_home_prefix_length}
        if self._config.home_prefix is not None:
            lengths[6] = self._config.home_prefix.prefixlen
        await self._routing.at_home(
            interface, [(each, lengths[each.version]) for each in self._home_addresses()]
        )
        self._home.stop_answering()
        self._home.advertise()

    async def _leave_home(self) -> None:
        if self._home is not None:
            self._home.close()
            self._home = None
            await self._routing.not_at_home()

    async def _hand_over(self, place: Place) -> Mapping[str, Any]:
        started = time.monotonic()
        milestones: dict[str, float] = {}

        def reached(name: str) -> None:
            milestones[f"{name}_ms"] = round(1000 * (time.monotonic() - started), 1)

        await self._leave_home()
        for attachment in place.attachments:
            await self._routing.attach(attachment)
            if isinstance(attachment.care_of_address, IPv4Address):
                self._path.bind(attachment.care_of_address)
            if attachment not in self._attachments:
                self._attachments.append(attachment)
        if not self._active:
            await self._begin(place)
            if self._keys is not None:
                reached("ike")
        self._place = place
        self._binding_changed.clear()
        self._carry_out(
            self._engine.attach(
                place.primary.care_of_address,
                now=self._now(),
                ipv4_alternative=place.ipv4_alternative,
                administrative_domain=place.domain,
            )
        )
        attachment = await self._bound(place)
        reached("binding")
        await self._settle(attachment, reached)
        return milestones

    async def _begin(self, place: Place) -> None:
        """Away from home, for the first time: policies, routes, IKE_SA."""
        # First the policies that block, then the routes that lead payload to them.
        self._active = True
        await self._reconciler.reconcile()
        await self._routing.payload(TUN_NAME, self._home_addresses())
        try:
            await self._establish(place)
        except (IkeError, asyncio.CancelledError):
            if self._keys is not None:
                with contextlib.suppress(IkeError):
                    await self._keys.terminate(force=True)
            self._active = False
            await self._routing.leave()
            await self._routing.no_payload()
            await self._reconciler.reconcile(settled=True)
            raise
        await self._reconciler.reconcile()

    async def _establish(self, place: Place) -> None:
        """An IKE_SA with its CHILD_SAs, over whichever family works, IPv6 first. Without IKE
        (user-space IPsec), only the route to the home agent.

        Raises IkeError of the last one that was tried.
        """
        failure: IkeError | None = None
        for attachment in place.attachments:
            await self._routing.use(attachment, self._agent_addresses())
            try:
                if self._keys is not None:
                    await self._keys.establish(attachment.care_of_address)
            except IkeError as error:
                failure = error
                log.info("IKE from %s: %s", attachment.care_of_address, error)
            else:
                self._in_use = attachment
                return
        assert failure is not None, "a place has an attachment"
        raise failure

    async def _keys_restored(self) -> None:
        """There are new SAs; the home agent may have lost the binding with the old ones."""
        await self._reconciler.reconcile()
        if self._binding is not None:
            self._carry_out(self._engine.refresh(self._now()))

    def _agent_addresses(self) -> tuple[Address, ...]:
        return (self._peering.home_agent, self._peering.home_agent_ipv4)

    def _elsewhere(self) -> Attachment | None:
        """The attachment of the binding, if the tunnel isn't there."""
        if self._binding is None or self._place is None:
            return None
        attachment = self._place.of(self._binding.care_of_address)
        return attachment if attachment != self._in_use else None

    async def _settle_alone(self) -> None:
        async with self._moving:
            attachment = self._elsewhere()
            if attachment is not None and self._active:
                try:
                    await self._settle(attachment)
                except DsmipError as error:
                    log.warning("following the binding: %s", error)

    async def _settle(
        self, attachment: Attachment, reached: Callable[[str], None] = lambda _: None
    ) -> None:
        """The home agent has bound ``attachment``: IKE_SA, SAs and routes follow. ``reached`` is
        told of ``sas`` and ``keys``."""
        moved = attachment != self._in_use
        await self._routing.use(attachment, self._agent_addresses())
        self._in_use = attachment
        if self._keys is not None:
            await self._keys.cross_to_ipv4(attachment.care_of_address)
        if self._peering.protect_data and self._keys is not None:
            await self._data_moved(attachment.care_of_address)
        await self._reconciler.reconcile()
        if self._plain is not None:
            await self._plain.settled()
        if isinstance(self._path, UserspacePath):
            self._path.announce()
        reached("sas")
        if moved and self._keys is not None:
            await self._keys.follow(
                attachment.care_of_address,
                key_mobility=self._binding is not None and self._binding.key_mobility,
            )
            reached("keys")
        here = self._place.attachments if self._place is not None else ()
        for other in [each for each in self._attachments if each not in here]:
            await self._detach(other)

    async def _detach(self, attachment: Attachment) -> None:
        self._attachments.remove(attachment)
        address = attachment.care_of_address
        shared = any(address == other.care_of_address for other in self._attachments)
        if isinstance(address, IPv4Address) and not shared:
            self._path.unbind(address)
        await self._routing.detach(attachment)

    async def _bound(self, place: Place) -> Attachment:
        """Wait for the BA that binds a care-of address of ``place``; return which one."""
        limit = self._config.handover_timeout_s
        try:
            async with asyncio.timeout(limit):
                while True:
                    if self._binding is not None:
                        attachment = place.of(self._binding.care_of_address)
                        if attachment is not None:
                            return attachment
                    await self._binding_changed.wait()
                    self._binding_changed.clear()
        except TimeoutError as error:
            raise unanswered(place, limit) from error

    async def _data_moved(self, care_of_address: Address) -> None:
        """Wait until charon has the data SAs of both directions at ``care_of_address``."""
        limit = self._config.handover_timeout_s
        there = partial(data_is_at, self._peering, care_of_address)
        if not await self._reconciler.wait_for(there, limit):
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
            await self._quit()
        return {}

    async def _quit(self) -> None:
        """Without a binding: the IKE_SA goes, and with it every SA and policy."""
        if self._active and self._keys is not None:
            try:
                # At home the care-of address is gone, and with it most probably charon's path.
                await self._keys.terminate(force=self._home is not None)
            except IkeError as error:
                log.info("the IKE_SA is dropped: %s", error)
                with contextlib.suppress(IkeError):
                    await self._keys.terminate(force=True)
        await self._routing.leave()
        await self._routing.no_payload()
        self._active = False
        await self._reconciler.reconcile(settled=True)
        if self._plain is not None:
            await self._plain.settled()
        for attachment in list(self._attachments):
            await self._detach(attachment)
        self._place = self._in_use = None

    async def _unbound(self) -> None:
        limit = self._config.handover_timeout_s
        try:
            async with asyncio.timeout(limit):
                while self._binding is not None:
                    await self._binding_changed.wait()
                    self._binding_changed.clear()
        except TimeoutError as error:
            raise still_bound(limit) from error
