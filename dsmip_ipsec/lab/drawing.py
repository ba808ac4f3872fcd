"""A lab's topology as text: a tree of links and nodes, generated from the lab file. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from .spec_models import HomeAgent, Lab, Link, MobileNode, Nat, Router


def draw(lab: Lab) -> str:
    """One line an end: every link, with what it does to packets, and who is on it.

    A node that is on several links is drawn with the rest of its links below it where it is first
    met, and as ``(see above)`` afterwards; mobile nodes are listed on each link that they visit,
    with their mobile networks on the first.
    """
    start = next(
        (name for name, node in lab.nodes.items() if isinstance(node, Router)),
        next(iter(lab.nodes)),
    )
    drawn: set[str] = set()
    lines = [start, *_below(lab, start, None, "", drawn)]
    for name in lab.links:
        if name not in drawn:  # an island
            drawn.add(name)
            lines += [f"[{_link(name, lab.links[name])}]", *_ends(lab, name, start, "", drawn)]
    return "\n".join(lines)


def _below(lab: Lab, node: str, came: str | None, indent: str, drawn: set[str]) -> Iterator[str]:
    declared = lab.nodes[node]
    ours = declared.mobile_networks if isinstance(declared, MobileNode) else lab.links
    links = [name for name in ours if node in lab.links[name].ends and name not in drawn]
    drawn.update(links)
    for position, name in enumerate(links):
        last = position == len(links) - 1
        own = ", ".join(map(str, lab.links[name].ends[node]))
        yield f"{indent}{'`' if last else '|'}-- {_link(name, lab.links[name])}  {own}".rstrip()
        yield from _ends(lab, name, node, indent + ("    " if last else "|   "), drawn)


def _ends(lab: Lab, link: str, but: str, indent: str, drawn: set[str]) -> Iterator[str]:
    others = [node for node in lab.links[link].ends if node != but]
    for position, node in enumerate(others):
        last = position == len(others) - 1
        addresses = ", ".join(map(str, lab.links[link].ends[node]))
        yield f"{indent}{'`' if last else '|'}-- {node}{_role(lab, node)}  {addresses}".rstrip()
        yield from _below(lab, node, link, indent + ("    " if last else "|   "), drawn)


def _role(lab: Lab, node: str) -> str:
    match lab.nodes[node]:
        case Nat() as nat:
            loosely = f", {nat.filtering} filtering" * nat.filters_loosely()
            return f" [NAT, {nat.mapping} ports{loosely}]"
        case MobileNode() as mobile:
            homes = [mobile.home_address, mobile.ipv4_home_address]
            return f" [mobile node of {', '.join(str(a) for a in homes if a is not None)}]"
        case HomeAgent():
            return " [home agent]"
        case declared:
            return f" [{declared.role.replace('_', ' ')}]"


def _link(name: str, link: Link) -> str:
    terms = [
        f"{link.delay_ms:g} ms" * bool(link.delay_ms),
        f"jitter {link.jitter_ms:g} ms" * bool(link.jitter_ms),
        f"loss {link.loss_percent:g} %" * bool(link.loss_percent),
        f"{link.rate_kbit} kbit/s" * bool(link.rate_kbit),
        f"MTU {link.mtu}" * bool(link.mtu),
    ]
    shown = ", ".join(filter(None, terms))
    return f"{name} ({shown})" if shown else name
