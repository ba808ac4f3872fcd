"""Which probes a lab has, and the nodes that send and receive them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from .flow import FlowSpec, flows
from .pace import probe_interval_ms
from .spec_models import Lab


def flow_specs(lab: Lab) -> list[FlowSpec]:
    """Probes between mobile nodes' home addresses, or hosts behind them, and the correspondent."""
    correspondents = [a.ip for a in lab.addresses(lab.correspondent())]
    settings = lab.flow
    found: list[FlowSpec] = []
    for name in lab.flow_nodes():
        node = lab.mobile_nodes()[name]
        homes: list[IPv4Address | IPv6Address] = []
        host = lab.host_behind(name)
        behind = lab.ipv6_address(host) if host is not None else None
        if "ipv6" in settings.families:
            homes.append(behind or node.home_address)
        if "ipv4" in settings.families and node.ipv4_home_address is not None:
            homes.append(node.ipv4_home_address)
        of_node = flows(
            homes,
            correspondents,
            interval_ms=probe_interval_ms(settings.interval_ms),
            size=settings.size,
            port=settings.port,
            traffic_class=settings.traffic_class,
            protocol=settings.protocol,
            node=name,
            first=len(found),
        )
        for one in of_node:
            of_host = behind in (one.source, one.destination)
            found.append(replace(one, end=host) if host is not None and of_host else one)
    return found


def flow_ends(lab: Lab, specs: Sequence[FlowSpec]) -> dict[str, list[FlowSpec]]:
    """The flows that each node is an end of, the correspondent's last."""
    ends: dict[str, list[FlowSpec]] = {node: [] for node in lab.flow_nodes()}
    for spec in specs:
        ends.setdefault(spec.end or spec.node, []).append(spec)
    return {**ends, lab.correspondent(): list(specs)}
