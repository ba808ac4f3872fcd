"""A running daemon as a situation: its binding by the control socket, the rest from the kernel."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ipsec.desired import DesiredState
from dsmip_ipsec.ipsec.model import SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering, Role, outbound
from dsmip_ipsec.ipsec.situation import Situation
from dsmip_ipsec.kernel.snapshot import read_snapshot
from dsmip_ipsec.kernel.tunnels import PlainTunnels
from dsmip_ipsec.mobility.types import Binding, OuterAddress
from dsmip_ipsec.node.config import HomeAgentConfig, MobileNodeConfig, load
from dsmip_ipsec.node.control import ControlError, call
from dsmip_ipsec.node.native import kernel_headers
from dsmip_ipsec.wire.ip import DSMIP_PORT

TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Live:
    """``current``: what is ours in the kernel; ``negotiated``: what is IKE's. ``situation`` is None
    for a mobile node that isn't attached anywhere: it wants nothing."""

    peering: Peering
    situation: Situation | None
    current: DesiredState
    negotiated: list[SecurityAssociation]


def read_live(config: Path, home_address: IPv6Address | None) -> Live:
    """What the daemon with this configuration has at the moment.

    ``home_address`` chooses a mobile node of a home agent that has several. Raises ConfigError,
    ControlError (no daemon), KernelError (no rights, no XFRM).
    """
    control_socket, peerings = _peerings(config)
    peering = _chosen(config, peerings, home_address)
    status = asyncio.run(call(control_socket, "status", timeout_s=TIMEOUT_S))
    binding = _binding(peering, status)
    snapshot = read_snapshot(peering, binding)
    negotiated = list(snapshot.negotiated)
    away = peering.role is Role.MOBILE_NODE and bool(status.get("attachment"))
    situation = None
    if away or binding is not None or peering.role is Role.HOME_AGENT:
        situation = Situation(peering, binding, _esp_care_of(peering, negotiated), away)
    current = snapshot.current
    if not peering.protect_data:
        current += asyncio.run(_tunnels(peering))
    return Live(peering, situation, current, negotiated)


def _peerings(path: Path) -> tuple[Path, tuple[Peering, ...]]:
    """The control socket and what is configured; which daemon's file it is shows in its keys."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8")).keys()
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", path=path, hint="give the daemon's TOML file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"not TOML: {error}", path=path) from error
    if "mobile_nodes" in keys:
        agent = load(path, HomeAgentConfig)
        kind, socket = agent.ipsec, agent.control_socket
        peerings = agent.peerings(native=kernel_headers(agent))
    else:
        node = load(path, MobileNodeConfig)
        kind, socket = node.ipsec, node.control_socket
        peerings = (node.peering(native=kernel_headers(node)),)
    if kind != "kernel":
        raise ConfigError(
            "this daemon applies IPsec itself: there is nothing of it in the kernel",
            path=path,
            hint='`plan` reads daemons with ipsec = "kernel"',
        )
    return socket, peerings


def _chosen(path: Path, peerings: tuple[Peering, ...], home_address: IPv6Address | None) -> Peering:
    if home_address is None and len(peerings) == 1:
        return peerings[0]
    for peering in peerings:
        if peering.home_address == home_address:
            return peering
    known = ", ".join(str(peering.home_address) for peering in peerings[:5])
    what = "which mobile node?" if home_address is None else f"no mobile node {home_address}"
    raise ConfigError(what, path=path, hint=f"--mobile-node takes one of: {known}")


def _binding(peering: Peering, status: Mapping[str, Any]) -> Binding | None:
    """The peering's binding in a status answer. Raises ControlError when it can't be read."""
    try:
        for found in status["bindings"]:
            if IPv6Address(found["home_address"]) == peering.home_address:
                return _one_binding(peering, found)
    except (KeyError, TypeError, ValueError) as error:
        raise ControlError(
            f"the daemon's status can't be understood: {error}",
            hint="are daemon and command of the same version?",
        ) from error
    return None


def _one_binding(peering: Peering, found: Mapping[str, Any]) -> Binding:
    care_of = ip_address(found["care_of_address"])
    outer = None
    if found.get("outer_address"):
        outer = OuterAddress(ip_address(found["outer_address"]), int(found["outer_port"]))
    elif peering.role is Role.MOBILE_NODE and isinstance(care_of, IPv4Address):
        outer = OuterAddress(peering.home_agent_ipv4, DSMIP_PORT)
    home = found.get("ipv4_home_address")
    return Binding(
        home_address=peering.home_address,
        home_agent=peering.home_agent,
        care_of_address=care_of,
        sequence=int(found["sequence"]),
        lifetime=int(found["lifetime_s"]),
        registered_at=0.0,
        expires_at=0.0,
        home_agent_ipv4=peering.home_agent_ipv4,
        ipv4_home_address=IPv4Interface(home) if home else None,
        mobile_network_prefixes=tuple(
            IPv6Network(prefix) for prefix in found.get("mobile_network_prefixes", ())
        ),
        outer=outer,
        nat_detected=bool(found["nat_detected"]),
        udp_encapsulation=bool(found["udp_encapsulation"]),
    )


def _esp_care_of(peering: Peering, negotiated: list[SecurityAssociation]) -> OuterAddress | None:
    """Where ESP comes from, as the inbound SA has it: at the home agent, behind a NAT."""
    if peering.role is not Role.HOME_AGENT:
        return None
    for sa in negotiated:
        if sa.reqid == peering.reqids.data and not outbound(peering, sa) and sa.encapsulation:
            return OuterAddress(sa.source, sa.encapsulation.source_port)
    return None


async def _tunnels(peering: Peering) -> DesiredState:
    tunnels = PlainTunnels()
    await tunnels.open()
    try:
        found = await tunnels.read()
    finally:
        tunnels.leave()
    key = peering.home_address
    return DesiredState(
        tunnels=tuple(t for t in found.tunnels if t.home_address == key),
        routes=tuple(r for r in found.routes if r.tunnel.home_address == key),
    )
