"""What the daemons of both roles have in common: an engine, and what carries out its outputs."""

from __future__ import annotations

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Protocol

from dsmip_ipsec.errors import DsmipError
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.kernel.reconciler import Reconciler
from dsmip_ipsec.kernel.routing import Routing
from dsmip_ipsec.kernel.tun import TUN_NAME
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    Event,
    IcmpPacket,
    MobilityPacket,
    OuterAddress,
    Output,
    SendIcmp,
    SendMobility,
    SendTunnelled,
)
from dsmip_ipsec.node.control import Command, ControlServer
from dsmip_ipsec.node.plain_data import PlainData, Wanted
from dsmip_ipsec.node.signalling import MARK_MASK, MARK_PATTERN, SignallingPath
from dsmip_ipsec.node.timer import DeadlineTimer
from dsmip_ipsec.node.userspace_ipsec import UserspaceIpsec
from dsmip_ipsec.node.userspace_path import UserspacePath
from dsmip_ipsec.userspace.engine import Mapping as PeerMapping
from dsmip_ipsec.userspace.reconciler import UserspaceReconciler

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What both engines offer. Times are those of the event loop's clock."""

    @property
    def counters(self) -> Mapping[str, int]: ...
    def handle(self, packet: MobilityPacket, now: float) -> list[Output]: ...
    def handle_icmp(self, packet: IcmpPacket, now: float) -> list[Output]: ...
    def next_deadline(self) -> float | None: ...


class Ike(Protocol):
    """What the reconciler's findings are for: :class:`~.charon_watch.CharonWatch`."""

    def look(self) -> None: ...
    def vanished(self, associations: Iterable[SecurityAssociation]) -> None: ...


class EngineDaemon(ABC):
    """Runs until :meth:`stop`; driven by packets, time and its control socket's commands."""

    def __init__(
        self,
        engine: Engine,
        reqids: tuple[Reqids, ...],
        control_socket: Path,
        commands: Mapping[str, Command],
        userspace: UserspaceIpsec | None = None,
        *,
        kernel_headers: bool = False,
    ) -> None:
        """``userspace``: IPsec in this process instead of in the kernel. ``kernel_headers``: as of
        :class:`SignallingPath`."""
        self._common_engine = engine
        self._path: SignallingPath | UserspacePath
        self._reconciler: Reconciler | UserspaceReconciler
        if userspace is None:
            discovery = any(ids.prefix_discovery for ids in reqids)
            self._path = SignallingPath(
                random_bits=secrets.randbits,
                accepts=self._accepts,
                on_message=self._on_message,
                kernel_headers=kernel_headers,
                on_icmp=self._on_icmp if discovery else None,
            )
            self._reconciler = Reconciler(
                self._desired, reqids, self._esp_heard, self._contested, self._vanished
            )
        else:
            self._path = userspace.path(self._accepts, self._on_message, self._on_mapping)
            self._reconciler = userspace.reconciler(self._desired, reqids)
            commands = {**commands, "ipsec": userspace.describe}
        self._plain: PlainData | None = None
        self._ike: Ike | None = None
        self._routing = Routing()
        self._timer = DeadlineTimer(engine.next_deadline, self._expire)
        self._control = ControlServer(control_socket, {**commands, "status": self._status})

    async def start(self) -> None:
        """Set everything up. Raises DsmipError; nothing is left behind then."""
        try:
            await self._reconciler.open()
            self._path.open()
            await self._routing.open()
            await self._routing.signalling(TUN_NAME, MARK_PATTERN, MARK_MASK)
            if self._plain is not None:
                await self._plain.open()
            await self._set_up()
            await self._control.start()
        except DsmipError:
            await self.stop()
            raise

    async def failed(self) -> None:
        """Return when, and raise what, makes going on pointless (KernelError)."""
        if self._plain is None:
            await self._reconciler.failed()
            return
        waiting = [asyncio.ensure_future(each.failed()) for each in (self._reconciler, self._plain)]
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        for each in done:
            each.result()

    async def stop(self) -> None:
        """Take everything down: no policy, mirror, route or rule of ours is left."""
        self._timer.cancel()
        await self._control.stop()
        if self._plain is not None:
            await self._plain.close()
        await self._reconciler.close()
        await self._routing.close()
        self._path.close()

    # What a role adds --------------------------------------------------------------------------

    @abstractmethod
    async def _set_up(self) -> None:
        """The role's own addresses and sockets, before commands are taken."""

    @abstractmethod
    def _desired(self, peering: Reqids, negotiated: Iterable[SecurityAssociation]) -> DesiredState:
        """What this end must have for ``peering``, for the reconciler."""

    @abstractmethod
    def _accepts(self, source: IPv6Address, destination: IPv6Address) -> bool:
        """Whether a protected message between these may be a peer's."""

    @abstractmethod
    def _time_is_up(self, now: float) -> list[Output]:
        """The engine's deadline has come."""

    @abstractmethod
    def _follow(self, change: BindingChanged) -> None:
        """A binding changed; the reconciler is triggered afterwards, unless it is a refresh."""

    def _leave_payload_plain(self, wanted: Wanted, *, home_agent: bool) -> None:
        """Payload goes without IPsec, as ``wanted`` says. To be called before :meth:`start`."""
        assert isinstance(self._path, SignallingPath), "checked with the configuration"
        self._plain = PlainData(wanted, self._path, self._routing, home_agent=home_agent)

    def _send(self, output: SendMobility | SendIcmp) -> None:
        self._path.send(output)

    def _also(self, output: Output) -> None:
        """Do what only this role's engine asks for."""
        if isinstance(output, SendIcmp):
            self._send(output)
        elif isinstance(output, SendTunnelled) and isinstance(self._path, SignallingPath):
            self._path.send_tunnelled(output)
        else:
            log.info("left undone: %s", output)

    def _on_mapping(self, mapping: PeerMapping) -> None:
        """User-space IPsec only: a peer's ESP comes from elsewhere now."""
        log.info("ESP of spi 0x%08x comes from %s now", mapping.key[1], mapping.source)

    def _esp_heard(self, peering: Reqids, source: OuterAddress) -> None:
        """The peer's ESP comes from elsewhere than the SA says."""
        log.info("ESP of reqid %d comes from %s", peering.data, source)

    def _contested(self) -> None:
        """IKE deleted an SA while the reconciler moved it."""
        if self._ike is not None:
            self._ike.look()

    def _vanished(self, associations: Iterable[SecurityAssociation]) -> None:
        """SAs of IKE's are gone, and don't come back."""
        if self._ike is not None:
            self._ike.vanished(associations)

    def _concerned(self, change: BindingChanged) -> tuple[Reqids, ...]:
        """The peerings to reconcile for a changed binding; none: all."""
        return ()

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """The role's part of the status."""

    def _own_counters(self) -> Mapping[str, int]:
        """The role's own part of the status' counters."""
        return {}

    # The pump ------------------------------------------------------------------------------------

    def _on_icmp(self, packet: IcmpPacket) -> None:
        self._carry_out(self._common_engine.handle_icmp(packet, self._now()))

    def _on_message(self, packet: MobilityPacket) -> None:
        self._carry_out(self._common_engine.handle(packet, self._now()))

    def _expire(self) -> None:
        self._carry_out(self._time_is_up(self._now()))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _carry_out(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, SendMobility):
                self._send(output)
            elif isinstance(output, BindingChanged):
                self._follow(output)
                # A mere refresh leaves IPsec as it is, and comes often: no line for it, either.
                if output.reason is not ChangeReason.REFRESHED:
                    log.info("binding %s: %s", output.reason, output.new or output.old)
                    self._reconciler.trigger(*self._concerned(output))
                    if self._plain is not None:
                        self._plain.trigger()
            elif isinstance(output, Event):
                log.info("%s %s %s", output.kind, output.home_address or "", dict(output.detail))
            else:
                self._also(output)
        self._timer.rearm()

    async def _status(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        counters = {**self._common_engine.counters, **self._path.counters}
        if self._plain is not None:
            counters |= self._plain.counters
        counters |= self._own_counters()
        return {**self._describe(), "counters": counters}
