"""What a node knows at one moment: bindings, SAD, SPD, IKE_SAs, counters.

SAD and SPD are read from the node's own kernel namespace; bindings come from its daemon, IKE_SAs
from its charon. Three independent sources: that they agree is what a lab shows.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, TypeVar

from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeSa
from dsmip_ipsec.ipsec.desired import PRIORITY_BAND, DesiredState
from dsmip_ipsec.ipsec.model import INTERFACE_PREFIXES, Mode, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Reqids
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.kernel.tunnels import PlainTunnels
from dsmip_ipsec.lab import record
from dsmip_ipsec.lab.deploy import NodeDeployment
from dsmip_ipsec.lab.netns import enter
from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.node import control
from dsmip_ipsec.xfrm.constants import Direction, Protocol
from dsmip_ipsec.xfrm.socket import XfrmSocket
from dsmip_ipsec.xfrm.types import Policy

Result = TypeVar("Result")

STATUS_TIMEOUT_S = 5.0
_SIOCGIFADDR = 0x8915  # linux/sockios.h

_DIRECTIONS: dict[Direction, Literal["in", "out", "fwd"]] = {
    Direction.IN: "in",
    Direction.OUT: "out",
    Direction.FWD: "fwd",
}


class NodeObserver:
    """Looks at one node. ``namespace`` is the name of its network namespace."""

    def __init__(self, node: NodeDeployment, namespace: str, reqids: tuple[Reqids, ...]) -> None:
        self.node = node
        self._reqids = reqids
        self._driver = ViciDriver(node.files.vici_socket)
        # A network namespace is a thread's: this one thread lives in the node's.
        self._inside = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))

    def close(self) -> None:
        self._inside.shutdown(wait=False, cancel_futures=True)

    async def inside(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in the node's network namespace."""
        return await asyncio.get_running_loop().run_in_executor(self._inside, function)

    async def status(self) -> dict[str, Any]:
        """The daemon's status. Raises ControlError."""
        return await control.call(
            self.node.control_socket, "status", timeout_s=scaled(STATUS_TIMEOUT_S)
        )

    async def associations(self) -> list[SecurityAssociation]:
        """The SAD of the node's kernel, with keys."""
        states = await self.inside(_dump_states)
        found = [translate.state_back(state) for state in states]
        return [sa for sa in found if sa is not None]

    async def traffic(self) -> dict[str, dict[str, int]]:
        """``octets`` and ``packets`` that each SA has carried so far, by SPI and mode as in a
        record: ``0xc0ffee00 transport`` (a mirror has its origin's SPI)."""
        return {
            f"0x{state.spi:08x} {state.mode.name.lower()}": {
                "octets": state.current.bytes,
                "packets": state.current.packets,
            }
            for state in await self.inside(_dump_states)
            if state.protocol is Protocol.ESP
        }

    async def counters(self) -> record.Counters:
        """Absolute counts of the daemon and of the namespace's XFRM."""
        status = await self.status()
        xfrm = await self.inside(_xfrm_statistics)
        return record.Counters(engine=status["counters"], xfrm=xfrm)

    async def state(self) -> record.NodeState:
        """Everything, for the record. Raises ControlError, IkeError, KernelError."""
        status = await self.status()
        sas, policies = await self._databases()
        return record.NodeState(
            attachment=status.get("attachment", ""),
            bindings=tuple(record.Binding(**binding) for binding in status["bindings"]),
            sas=sas,
            policies=policies,
            ike=await self._ike_sas(),
            tunnels=await self.inside(_read_tunnels),
        )

    async def _databases(
        self,
    ) -> tuple[tuple[record.SecurityAssociation, ...], tuple[record.Policy, ...]]:
        """SAD and SPD."""
        policies = await self.inside(_dump_policies)
        sas = tuple(self._association(sa) for sa in await self.associations())
        return sas, tuple(_policy(policy) for policy in policies)

    async def _ike_sas(self) -> tuple[record.IkeSa, ...]:
        return tuple(_ike(sa) for sa in await self._driver.list_sas())

    def _association(self, sa: SecurityAssociation) -> record.SecurityAssociation:
        encapsulation = sa.encapsulation
        return record.SecurityAssociation(
            spi=f"0x{sa.spi:08x}",
            source=sa.source,
            destination=sa.destination,
            mode=sa.mode.value,
            encapsulation=record.Encapsulation(
                source_port=encapsulation.source_port,
                destination_port=encapsulation.destination_port,
            )
            if encapsulation is not None
            else None,
            reqid=sa.reqid,
            purpose=self._purpose(sa.reqid, sa.mode),
        )

    def _purpose(self, reqid: int, mode: Mode) -> str:
        """``data``; ``signalling``: the transport SA in use; ``origin``: an idle tunnel SA of IKE
        that a signalling SA mirrors."""
        for ids in self._reqids:
            if reqid == ids.data:
                return "data"
            if reqid == ids.mirror:
                return "signalling"
            if reqid == ids.signalling:
                return "origin" if mode is Mode.TUNNEL else "signalling"
            if reqid in ids:
                return "return routability" if reqid in ids.tunnels else "prefix discovery"
        return ""


class UserspaceObserver(NodeObserver):
    """Looks at a node whose daemon applies ESP itself, and tells what it has. Two sources less than
    in the kernel's case: what both ends' daemons say must still agree, and so must the packets."""

    async def _ipsec(self) -> dict[str, Any]:
        return await control.call(
            self.node.control_socket, "ipsec", timeout_s=scaled(STATUS_TIMEOUT_S)
        )

    async def traffic(self) -> dict[str, dict[str, int]]:
        """As in :class:`NodeObserver`."""
        return {
            f"0x{sa['spi']:08x} {sa['mode']}": {
                "octets": sa["octets"],
                "packets": sa["packets"],
            }
            for sa in (await self._ipsec())["associations"]
        }

    async def counters(self) -> record.Counters:
        """The daemon's, which counts what its IPsec drops, too."""
        return record.Counters(engine=(await self.status())["counters"])

    async def _databases(
        self,
    ) -> tuple[tuple[record.SecurityAssociation, ...], tuple[record.Policy, ...]]:
        found = await self._ipsec()
        sas = tuple(
            record.SecurityAssociation(
                spi=sa["spi"],
                source=sa["source"],
                destination=sa["destination"],
                mode=sa["mode"],
                encapsulation=None
                if sa["source_port"] is None
                else record.Encapsulation(
                    source_port=sa["source_port"], destination_port=sa["destination_port"]
                ),
                reqid=sa["reqid"],
                purpose=self._purpose(sa["reqid"], Mode(sa["mode"])),
            )
            for sa in found["associations"]
        )
        return sas, tuple(record.Policy(**policy) for policy in found["policies"])

    async def _ike_sas(self) -> tuple[record.IkeSa, ...]:
        return ()


def _dump_states() -> list[Any]:
    with XfrmSocket() as xfrm:
        return list(xfrm.dump_states())


def _dump_policies() -> list[Policy]:
    with XfrmSocket() as xfrm:
        return [policy for policy in xfrm.dump_policies() if policy.priority in PRIORITY_BAND]


def _read_tunnels() -> tuple[record.Tunnel, ...]:
    ours = tuple(INTERFACE_PREFIXES.values())
    if not any(name.startswith(ours) for _, name in socket.if_nameindex()):
        return ()  # as mostly: a netlink socket costs more

    async def read() -> DesiredState:
        tunnels = PlainTunnels()
        await tunnels.open()
        try:
            return await tunnels.read()
        finally:
            tunnels.leave()

    return tuple(
        record.Tunnel(local=each.local, remote=each.remote, home_address=each.home_address)
        for each in asyncio.run(read()).tunnels
    )


def _xfrm_statistics() -> dict[str, int]:
    """The counters of /proc/net/xfrm_stat that aren't zero (thread-self: this thread's netns)."""
    lines = Path("/proc/thread-self/net/xfrm_stat").read_text(encoding="ascii").splitlines()
    pairs = (line.split() for line in lines)
    return {name: int(value) for name, value in pairs if int(value)}


def _policy(policy: Policy) -> record.Policy:
    ours = translate.policy_back(policy)
    return record.Policy(
        direction=_DIRECTIONS[policy.direction],
        selector=str(ours.selector) if ours is not None else repr(policy.selector),
        template=("block" if ours is None else str(ours.template or ours.action.value)),
        priority=policy.priority,
    )


def _ike(sa: IkeSa) -> record.IkeSa:
    return record.IkeSa(
        name=sa.name,
        uniqueid=str(sa.uniqueid),
        state=sa.state,
        local_host=str(sa.local_host),
        local_port=sa.local_port,
        remote_host=str(sa.remote_host),
        remote_port=sa.remote_port,
        nat_local=sa.nat_local,
        nat_remote=sa.nat_remote,
        children=tuple(
            record.ChildSa(
                name=child.name,
                state=child.state,
                mode=child.mode,
                spi_in=f"0x{child.spi_in:08x}",
                spi_out=f"0x{child.spi_out:08x}",
                encapsulation=child.encap,
                reqid=child.reqid,
            )
            for child in sa.children
        ),
    )


def growth(
    before: dict[str, record.Counters], after: dict[str, record.Counters]
) -> dict[str, record.Counters]:
    """By how much each node's counters grew; those that stood still are left out."""

    def grown(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
        return {
            name: count - old.get(name, 0)
            for name, count in new.items()
            if count != old.get(name, 0)
        }

    return {
        name: record.Counters(
            engine=grown(before[name].engine, after[name].engine),
            xfrm=grown(before[name].xfrm, after[name].xfrm),
        )
        for name in after
    }


def addresses_of(interface: str) -> frozenset[IPv4Address | IPv6Address]:
    """Those that an interface of the calling thread's namespace has, of IPv4 the first."""
    lines = Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines)
    found: set[IPv4Address | IPv6Address] = {
        IPv6Address(bytes.fromhex(field[0])) for field in fields if field[-1] == interface
    }
    request = struct.pack("16sH14x", interface.encode(), socket.AF_INET)  # struct ifreq
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, suppress(OSError):
        answer = fcntl.ioctl(control, _SIOCGIFADDR, request)
        found.add(IPv4Address(answer[20:24]))
    return frozenset(found)
