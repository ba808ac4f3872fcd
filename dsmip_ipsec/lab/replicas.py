"""``count = 50`` in a mobile node's table: as many of the kind, numbered from 1. Pure.

Of ``[nodes.mn]`` come ``mn1``, ``mn2`` and so on, each with an end on the links of ``mn``, and with
home addresses and addresses on those links that are one higher than those of the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_interface

from ..toml_checks import Problem
from ..toml_lines import TomlLines
from .spec_models import Lab, MobileNode
from .spec_types import Interface


class ReplicaLines(TomlLines):
    """Lines of a lab file for names that aren't in it: those of whom they replicate."""

    def __init__(self, inner: TomlLines, templates: dict[str, str]) -> None:
        """``templates``: the name in the file by that of the replica."""
        self._inner, self._templates = inner, templates

    def line_of(self, path: Sequence[str | int]) -> int:
        """See :class:`TomlLines`."""
        return self._inner.line_of(
            [self._templates.get(key, key) if isinstance(key, str) else key for key in path]
        )


def replicated(lab: Lab, lines: TomlLines) -> tuple[Lab, TomlLines]:
    """The lab with all replicas, and the lines for it. ``lab`` must pass :func:`problems`."""
    templates = {name: node for name, node in lab.mobile_nodes().items() if node.count > 1}
    if not templates:
        return lab, lines
    names: dict[str, str] = {}
    nodes, links = dict(lab.nodes), dict(lab.links)
    for name, template in templates.items():
        nodes.pop(name)
        for index in range(template.count):
            names[replica := f"{name}{index + 1}"] = name
            nodes[replica] = _moved_up(template, index)
    for link_name, link in lab.links.items():
        ends: dict[str, tuple[Interface, ...]] = {}
        for end, addresses in link.ends.items():
            if end not in templates:
                ends[end] = addresses
                continue
            for index in range(templates[end].count):
                ends[f"{end}{index + 1}"] = tuple(_plus(each, index) for each in addresses)
        links[link_name] = link.model_copy(update={"ends": ends})
    whole = lab.model_copy(update={"nodes": nodes, "links": links})
    return whole, ReplicaLines(lines, names)


def problems(lab: Lab) -> Iterator[Problem]:
    """What prevents replicas."""
    for name, node in lab.mobile_nodes().items():
        if node.count == 1:
            continue
        loc = ("nodes", name, "count")
        if node.mobile_networks:
            yield loc, "mobile routers can't share their mobile networks", "declare them one by one"
        taken = [f"{name}{index + 1}" for index in range(node.count)]
        for other in lab.nodes.keys() & taken:
            yield loc, f"'{other}' is declared, too", "rename it"
        homes: list[IPv4Address | IPv6Address | None] = [node.home_address, node.ipv4_home_address]
        ends = [a for link in lab.links.values() for a in link.ends.get(name, ())]
        last = node.count - 1
        for address in [*filter(None, homes), *(each.ip for each in ends)]:
            if int(address) + last >= 1 << (32 if address.version == 4 else 128):
                yield (
                    loc,
                    f"there are no {node.count} addresses from {address} on",
                    "use lower ones",
                )
                break
        for end in ends:
            if int(end.ip) + last > int(end.network.broadcast_address):
                yield loc, f"{end.network} has no {node.count} addresses from {end.ip} on", ""


def _moved_up(node: MobileNode, index: int) -> MobileNode:
    ipv4 = node.ipv4_home_address
    return node.model_copy(
        update={
            "home_address": node.home_address + index,
            "ipv4_home_address": None if ipv4 is None else ipv4 + index,
            "count": 1,
        }
    )


def _plus(address: Interface, index: int) -> Interface:
    return ip_interface(f"{address.ip + index}/{address.network.prefixlen}")
