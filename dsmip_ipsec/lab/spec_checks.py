"""What doesn't fit together in a lab file: names and addresses, in words that name the line.

Text that isn't TOML, and keys and values that the models refuse, are judged by
:mod:`dsmip_ipsec.toml_checks`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from itertools import combinations
from pathlib import Path
from typing import get_args

from ..toml_checks import Problem, first_of
from ..toml_lines import TomlLines
from . import routes
from .leasing import leased_range
from .spec_models import Block, CorrespondentNode, HomeAgent, Lab, Link, MobileNode, Nat, Step, Verb

# Names that the kernel gives to interfaces of its own, or that /proc/sys gives a meaning.
RESERVED_LINKS = frozenset({"lo", "all", "default"})
# Prefixes of the kernel's fallback tunnels (sit0, tunl0, ip6tnl0) and of what daemons create.
RESERVED_LINK_PREFIXES = ("sit", "tunl", "ip6tnl", "gre", "dsmip")
# The namespace that holds a lab's bridges.
SWITCH_NODE = "switch"


def check(lab: Lab, lines: TomlLines, path: Path | str) -> None:
    """Check what one table alone can't show.

    :raises ConfigError: a name that isn't declared, addresses that clash, a step that can't be.
    """
    problems = [*_check_links(lab), *_check_nodes(lab)]
    for index, name in enumerate(lab.capture.links or ()):
        if name not in lab.links:
            problems.append((("capture", "links", index), *_unknown("link", name, lab.links)))
    if not problems:  # these rest on the declared names being right
        problems = [*_check_prefixes(lab), *_check_flow(lab), *_check_steps(lab)]
    if problems:
        raise first_of(problems, lines, path)


def _unknown(what: str, name: str, declared: Iterable[str]) -> tuple[str, str]:
    declared = list(declared)
    close = difflib.get_close_matches(name, declared, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"'{name}' is no {what}", f"{hint}declared: {', '.join(declared) or 'none'}"


def _check_links(lab: Lab) -> Iterator[Problem]:
    for name, link in lab.links.items():
        loc = ("links", name)
        if name in RESERVED_LINKS or name.startswith(RESERVED_LINK_PREFIXES):
            yield loc, f"the link name '{name}' is the kernel's or a daemon's own", "choose another"
        for node in link.ends:
            if node not in lab.nodes:
                yield (*loc, "ends", node), *_unknown("node", node, lab.nodes)
        if link.gateway is not None and link.gateway not in link.ends:
            yield (*loc, "gateway"), *_unknown("end", link.gateway, link.ends)
        yield from _check_addresses(name, link)
        if link.dhcp:
            yield from _check_dhcp(lab, name, link)


def _check_addresses(name: str, link: Link) -> Iterator[Problem]:
    seen: dict[object, str] = {}
    for node, addresses in link.ends.items():
        for index, address in enumerate(addresses):
            loc = ("links", name, "ends", node, index)
            if address.ip in seen:
                yield loc, f"{seen[address.ip]} has the address {address.ip} on this link too", ""
            seen[address.ip] = node
            wide = address.network.prefixlen < address.max_prefixlen - 1
            edges = (address.network.network_address, address.network.broadcast_address)
            if address.version == 4 and wide and address.ip in edges:
                yield loc, f"{address} is its network's or broadcast address", "take one between"


def _check_dhcp(lab: Lab, name: str, link: Link) -> Iterator[Problem]:
    loc = ("links", name, "dhcp")
    if not lab.mobility.detect_movement:
        yield loc, "mobile nodes that are told where they are need no DHCP", "set detect_movement"
    router = routes.gateway_node(lab, name, "")
    address = router and routes.address_on(lab, router, name, 4)
    if not isinstance(address, IPv4Interface):
        yield loc, f"'{name}' has no single router with an IPv4 address", "set 'gateway'"
        return
    if address.network.prefixlen > 29:
        yield loc, f"{address.network} is too small for DHCP", "use a /29 or more"
        return
    first, last = map(IPv4Address, leased_range(address.network))
    for node, addresses in link.ends.items():
        for index, each in enumerate(addresses):
            if each.version == 4 and int(first) <= int(each.ip) <= int(last):
                where = ("links", name, "ends", node, index)
                yield where, f"{each.ip} is among the leased ones", f"those are {first} to {last}"


def _check_nodes(lab: Lab) -> Iterator[Problem]:
    if SWITCH_NODE in lab.nodes:
        yield ("nodes", SWITCH_NODE), f"the name '{SWITCH_NODE}' is the lab's own", "rename it"
    for name, node in lab.nodes.items():
        loc = ("nodes", name)
        ends = [link for link in lab.links if name in lab.links[link].ends]
        if not ends:
            yield loc, f"'{name}' is on no link", f"add it to some link's ends: {name} = [...]"
        match node:
            case Nat():
                for key in ("inside", "outside"):
                    if getattr(node, key) not in ends:
                        yield (*loc, key), *_unknown(f"link of '{name}'", getattr(node, key), ends)
                    elif not routes.address_on(lab, name, getattr(node, key), 4):
                        link = getattr(node, key)
                        yield (*loc, key), f"'{name}' has no IPv4 address on '{link}'", "add one"
                if node.inside == node.outside:
                    yield (*loc, "outside"), "inside and outside are the same link", ""
                if node.filters_loosely() and len(routes.inside_addresses(lab, name)) != 1:
                    problem = f"with {node.filtering} filtering '{name}' must have one node inside"
                    yield (*loc, "filtering"), problem, f"see the ends of '{node.inside}'"
                yield from _check_forwarding(lab, name, node)
            case HomeAgent():
                yield from _check_home_agent(lab, name, node, ends)
    homes = [n.home_link for n in lab.home_agents().values() if n.home_link in lab.links]
    for name, node in lab.mobile_nodes().items():
        yield from _check_home_addresses(lab, name, node, homes)
        yield from _check_mobile_networks(lab, name, node)


def _check_forwarding(lab: Lab, name: str, node: Nat) -> Iterator[Problem]:
    if node.forward_to is None or node.inside not in lab.links:
        return
    inside = [end for end in lab.links[node.inside].ends if end != name]
    if node.forward_to not in inside:
        yield (
            ("nodes", name, "forward_to"),
            *_unknown(f"node inside of '{name}'", node.forward_to, inside),
        )
    elif not routes.address_on(lab, node.forward_to, node.inside, 4):
        problem = f"'{node.forward_to}' has no IPv4 address on '{node.inside}'"
        yield ("nodes", name, "forward_to"), problem, "add one"


def _check_home_agent(lab: Lab, name: str, node: HomeAgent, ends: list[str]) -> Iterator[Problem]:
    loc = ("nodes", name)
    if node.home_link not in ends:
        yield (*loc, "home_link"), *_unknown(f"link of '{name}'", node.home_link, ends)
        return
    own = {address.ip for address in lab.addresses(name)}
    for key in ("address", "ipv4_address"):
        address = getattr(node, key)
        if address is not None and address not in own:
            known = ", ".join(str(a) for a in own if a.version == address.version)
            yield (*loc, key), f"{address} is no address of '{name}'", f"it has {known or 'none'}"
    if lab.home_agent_address(name) is None:
        yield loc, f"'{name}' has no IPv6 address on its home link", "add one, or set 'address'"
    if lab.home_agent_ipv4_address(name) is None:
        yield loc, f"'{name}' has no IPv4 address on its home link", "set 'ipv4_address'"
    outer = node.outer_ipv4_address
    if outer is not None and routes.static_nat(lab, name) is None:
        problem = f"no NAT forwards from {outer} to '{name}'"
        yield (*loc, "outer_ipv4_address"), problem, f'give one forward_to = "{name}"'


def _check_home_addresses(
    lab: Lab, name: str, node: MobileNode, homes: list[str]
) -> Iterator[Problem]:
    if not homes:
        yield ("nodes", name), f"'{name}' has no home agent", 'add a node with role = "home_agent"'
        return
    taken = {address.ip: end for end in lab.nodes for address in lab.addresses(end)}
    for other, mobile in lab.mobile_nodes().items():
        if other != name:
            taken[mobile.home_address] = other
            if mobile.ipv4_home_address:
                taken[mobile.ipv4_home_address] = other
    for key in ("home_address", "ipv4_home_address"):
        address = getattr(node, key)
        if address is None:
            continue
        loc = ("nodes", name, key)
        networks = [p for link in homes for p in routes.prefixes(lab, link, address.version)]
        if not any(address in network for network in networks):
            shown = ", ".join(map(str, networks)) or "none"
            yield loc, f"{address} is in no prefix of a home link", f"home prefixes: {shown}"
        if address in taken:
            yield loc, f"{address} is an address of '{taken[address]}' too", "take a free one"


def _check_mobile_networks(lab: Lab, name: str, node: MobileNode) -> Iterator[Problem]:
    for index, link in enumerate(node.mobile_networks):
        loc = ("nodes", name, "mobile_networks", index)
        ends = [each for each in lab.links if name in lab.links[each].ends]
        if link not in ends:
            yield loc, *_unknown(f"link of '{name}'", link, ends)
        elif not routes.address_on(lab, name, link, 6):
            yield loc, f"'{name}' has no IPv6 address on '{link}'", "add one"
        elif any(routes.prefixes(lab, link, 4)):
            yield loc, f"the mobile network '{link}' has IPv4 addresses", "use IPv6 only there"


def _check_prefixes(lab: Lab) -> Iterator[Problem]:
    """No node may see two links with overlapping prefixes: its routes would be ambiguous. Two
    private networks behind different NATs may overlap, as they do in the world."""
    reported: set[frozenset[str]] = set()
    for node in lab.nodes:
        for family in (4, 6):
            seen = [
                (link, prefix)
                for link in routes.ways(lab, node, family)
                for prefix in routes.prefixes(lab, link, family)
            ]
            for (one, prefix), (other, clash) in combinations(seen, 2):
                pair = frozenset({one, other})
                # A mobile node is on one link at a time.
                if isinstance(lab.nodes[node], MobileNode) or pair in reported:
                    continue
                if one != other and prefix.overlaps(clash):
                    reported.add(pair)
                    reason = f"{clash} overlaps {prefix} of the link '{one}'"
                    yield ("links", other), f"{reason} as '{node}' sees them", "renumber one"


def _check_flow(lab: Lab) -> Iterator[Problem]:
    correspondents = [
        name for name, node in lab.nodes.items() if isinstance(node, CorrespondentNode)
    ]
    for index, node in enumerate(lab.flow.nodes):
        if node not in lab.mobile_nodes():
            yield ("flow", "nodes", index), *_unknown("mobile node", node, lab.mobile_nodes())
    named = lab.flow.correspondent
    if named is not None and named not in correspondents:
        yield (
            ("flow", "correspondent"),
            *_unknown("correspondent node", named, correspondents),
        )
    elif named is None and len(correspondents) > 1:
        yield (
            ("flow",),
            "[flow] must say which correspondent",
            f"one of {', '.join(correspondents)}",
        )
    elif not correspondents:
        yield (
            ("nodes",),
            "there is no correspondent node",
            'add a node with role = "correspondent_node"',
        )


def _check_steps(lab: Lab) -> Iterator[Problem]:
    placed: dict[str, str] = {}  # mobile node -> the link it is on
    for index, step in enumerate(lab.steps):
        loc = ("steps", index)
        verbs = step.verbs()
        if len(verbs) != 1:
            had = f"has {' and '.join(verbs)}" if verbs else "has none"
            yield (
                loc,
                f"step '{step.name}' must have one verb and {had}",
                ", ".join(get_args(Verb)),
            )
            continue
        if index != next(i for i, s in enumerate(lab.steps) if s.name == step.name):
            yield (*loc, "name"), f"another step is called '{step.name}' too", "rename one"
        yield from check_step(lab, step, loc, placed)


def check_step(
    lab: Lab, step: Step, loc: tuple[str | int, ...], placed: dict[str, str]
) -> Iterator[Problem]:
    """What is wrong with a step of one verb, done when the mobile nodes are on the links
    ``placed``, which is brought up to date."""
    mobiles = lab.mobile_nodes()
    yield from _check_captured(lab, step, loc)
    if step.fails is not None and step.verb not in ("attach", "move", "deregister"):
        yield (
            (*loc, "fails"),
            f"step '{step.name}' is no mobile node's, which could fail",
            "omit it",
        )
    if step.node is not None and step.node not in mobiles:
        yield (*loc, "node"), *_unknown("mobile node", step.node, mobiles)
    elif step.verb in (
        "block", "unblock", "rebind", "congest", "impair", "kill", "restart", "wait_s",
    ):  # fmt: skip
        yield from _check_fault(lab, step, loc, placed)
    else:
        for node in lab.step_nodes(step):
            yield from _check_network(lab, step, node, loc, placed)


def _check_captured(lab: Lab, step: Step, loc: tuple[str | int, ...]) -> Iterator[Problem]:
    for index, wanted in enumerate(step.expect.captured or ()):
        here = (*loc, "expect", "captured", index)
        links = lab.links if lab.capture.links is None else lab.capture.links
        if wanted.link not in links:
            yield (*here, "link"), *_unknown("link that is captured", wanted.link, links)
        elif wanted.node not in lab.links[wanted.link].ends:
            ends = lab.links[wanted.link].ends
            yield (*here, "node"), *_unknown(f"end of '{wanted.link}'", wanted.node, ends)


def _check_fault(
    lab: Lab, step: Step, loc: tuple[str | int, ...], placed: dict[str, str]
) -> Iterator[Problem]:
    for verb, block in (("block", step.block), ("unblock", step.unblock)):
        forwarding = [name for name in lab.nodes if routes.forwards(lab, name)]
        if block is not None and block.node not in forwarding:
            yield (*loc, verb, "node"), *_unknown("node that forwards", block.node, forwarding)
    if step.unblock is not None and not _is_blocked(lab, step, step.unblock):
        yield (*loc, "unblock"), f"{step.unblock} isn't blocked then", "block it in a step before"
    if step.congest is not None:
        routers = [name for name in lab.nodes if routes.forwards(lab, name)]
        if step.congest not in routers:
            yield (*loc, "congest"), *_unknown("node that forwards", step.congest, routers)
    if step.rebind is not None:
        nats = [name for name, node in lab.nodes.items() if isinstance(node, Nat)]
        if step.rebind.node not in nats:
            yield (*loc, "rebind", "node"), *_unknown("NAT", step.rebind.node, nats)
        elif (
            (nat := lab.nodes[step.rebind.node])
            and isinstance(nat, Nat)
            and nat.mapping != "random"
        ):
            reason = f"'{step.rebind.node}' preserves ports, and would give the same mapping again"
            yield (*loc, "rebind", "node"), reason, 'give it mapping = "random"'
    if step.impair is not None and step.impair.link not in lab.links:
        yield (*loc, "impair", "link"), *_unknown("link", step.impair.link, lab.links)
    if step.restart is not None:
        ends = [*lab.home_agents(), *lab.mobile_nodes()]
        if step.restart not in ends:
            yield (*loc, "restart"), *_unknown("home agent or mobile node", step.restart, ends)
        placed.pop(step.restart, None)  # a mobile node that starts again is attached nowhere
    if step.kill is not None:
        known = process_names(lab)
        if step.kill not in known:
            yield (*loc, "kill"), *_unknown("process", step.kill, known)


def _is_blocked(lab: Lab, step: Step, rule: Block) -> bool:
    """Whether the steps before ``step`` leave ``rule`` in force. A step that isn't the lab file's
    comes after what only its author knows."""
    if step not in lab.steps:
        return True
    blocked = 0
    for before in lab.steps[: lab.steps.index(step)]:
        blocked += (before.block == rule) - (before.unblock == rule)
    return blocked > 0


def process_names(lab: Lab) -> list[str]:
    """Names of the processes that a lab runs, as ``kill`` takes them."""
    ends = [*lab.home_agents(), *lab.mobile_nodes()]
    behind = [host for node in lab.flow_nodes() if (host := lab.host_behind(node))]
    probing = [*lab.flow_nodes(), *behind, lab.correspondent()]
    return [
        *(["capture"] if lab.capture.links != () else []),
        *(f"{what} of {node}" for node in ends for what in ("charon", "daemon")),
        *(f"flows of {node}" for node in probing),
    ]


def _check_network(
    lab: Lab, step: Step, node: str, loc: tuple[str | int, ...], placed: dict[str, str]
) -> Iterator[Problem]:
    verb, network, name = step.verb, step.network, step.name
    if network is None:
        if placed.pop(node, None) is None:
            yield (*loc, verb), f"step '{name}': '{node}' is attached nowhere", "attach it before"
        return
    links = routes.visits(lab, node)
    if network not in links:
        yield (*loc, verb), *_unknown(f"link of '{node}'", network, links)
        return
    if step.fails is not None:  # where it was, it stays
        if verb == "move" and node not in placed:
            yield (*loc, verb), f"step '{name}' moves '{node}', which is attached nowhere", "attach"
        return
    if verb == "move" and node not in placed:
        yield (*loc, verb), f"step '{name}' moves '{node}', which is attached nowhere", "use attach"
    if verb == "attach" and node in placed:
        yield (*loc, verb), f"step '{name}': '{node}' is on '{placed[node]}' already", "use move"
    placed[node] = network
    link = lab.links[network]
    if lab.mobility.detect_movement and not (link.router_advertisements or link.dhcp):
        reason = f"'{node}' can't find out that it is on '{network}'"
        yield ("links", network), reason, "set router_advertisements = true, or dhcp = true"
    where = routes.attachment(lab, node, network)
    home_agents = lab.home_agents()
    if not where.gateways:
        yield ("links", network), f"'{network}' has no single router for '{node}'", "set 'gateway'"
    elif not any(
        routes.rtt_ms(lab, node, network, ha, f) is not None for ha in home_agents for f in (4, 6)
    ):
        yield (*loc, verb), f"no home agent can be reached from '{network}'", "see the links' ends"
