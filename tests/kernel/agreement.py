"""Whether both ends of a lab agree after a move: bindings, SADs, SPDs and charons, each read from
its own source (daemon, kernel, charon), against the others and against where the mobile node is.

:func:`disagreements` is pure; an empty list means agreement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from daemon_lab import HOME_ADDRESS, DaemonLab

from dsmip_ipsec.ike.vici_driver import ViciDriver
from dsmip_ipsec.ike.vici_types import IkeSa
from dsmip_ipsec.ipsec.desired import PRIORITY_BAND
from dsmip_ipsec.ipsec.model import Action, Direction, Mode, Policy, SecurityAssociation
from dsmip_ipsec.ipsec.peering import numbered_reqids
from dsmip_ipsec.kernel import translate
from dsmip_ipsec.lab.record import Binding
from dsmip_ipsec.wire.ip import IKE_NATT_PORT
from dsmip_ipsec.xfrm.socket import XfrmSocket

Address = IPv4Address | IPv6Address
IDS = numbered_reqids(0)


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where the mobile node is: ``outer``: its care-of address as the home agent sees it;
    ``agent``: the home agent's outer address as the mobile node has it, ``agent_own``: the same as
    the home agent itself has it. ``home``: on its home link (and the rest means nothing)."""

    care_of_address: Address
    outer: Address
    agent: Address
    agent_own: Address
    esp_in_udp: bool
    home: bool = False

    @property
    def nat(self) -> bool:
        return self.outer != self.care_of_address


@dataclass(frozen=True, slots=True)
class End:
    """One node as its daemon, its kernel and its charon tell it."""

    bindings: tuple[Binding, ...]
    associations: tuple[SecurityAssociation, ...]
    policies: tuple[Policy, ...]
    ike: tuple[IkeSa, ...]


async def look(lab: DaemonLab, node: str) -> End:
    observer = lab.observers[node]
    bindings = (await observer.status())["bindings"]
    return End(
        bindings=tuple(Binding(**binding) for binding in bindings),
        associations=tuple(await observer.associations()),
        policies=tuple(await observer.inside(_policies)),
        ike=tuple(await ViciDriver(lab.nodes[node].files.vici_socket).list_sas()),
    )


def _policies() -> list[Policy]:
    with XfrmSocket() as xfrm:
        found = [policy for policy in xfrm.dump_policies() if policy.priority in PRIORITY_BAND]
    ours = [translate.policy_back(policy) for policy in found]
    assert None not in ours, "a policy in our band that isn't ours"
    return [policy for policy in ours if policy is not None]


def disagreements(
    mobile: End, agent: End, where: Whereabouts, *, protected: bool, one_ike_sa: bool
) -> list[str]:
    """Everything that is not as it should be. ``one_ike_sa``: neither end may have another."""
    if where.home:
        return list(_at_home(mobile, agent))
    return [
        *_bindings(mobile, agent, where),
        *_associations(mobile, agent, protected=protected),
        *_places("mn", mobile, where.care_of_address, where.agent, where),
        *_places("ha", agent, where.outer, where.agent_own, where),
        *_charons(mobile, agent, where, one_ike_sa=one_ike_sa),
        *_policy_pairs(mobile, agent),
        *_templates("mn", mobile),
        *_templates("ha", agent),
    ]


def _at_home(mobile: End, agent: End) -> Iterable[str]:
    for name, end in (("mn", mobile), ("ha", agent)):
        if end.bindings:
            yield f"{name}: bound at home"
    if mobile.associations or mobile.policies:
        yield f"mn: {len(mobile.associations)} SAs and {len(mobile.policies)} policies at home"
    # The home agent keeps what BU and BA need until IKE notices that the mobile node is gone.
    for policy in agent.policies:
        if policy.template is not None and policy.template.mode is Mode.TUNNEL:
            yield f"ha: at home {policy}"


def _bindings(mobile: End, agent: End, where: Whereabouts) -> Iterable[str]:
    for name, end in (("mn", mobile), ("ha", agent)):
        if len(end.bindings) != 1:
            yield f"{name}: {len(end.bindings)} bindings"
            continue
        (binding,) = end.bindings
        seen = binding.care_of_address, binding.nat_detected, binding.udp_encapsulation
        if seen != (where.care_of_address, where.nat, where.nat):
            yield f"{name}: {binding}"
    outer = {binding.outer_address for binding in agent.bindings}
    if outer != ({where.outer} if where.outer.version == 4 else {None}):
        yield f"ha: outer address {outer}, not {where.outer}"


def _of(end: End, reqid: int) -> list[SecurityAssociation]:
    return [sa for sa in end.associations if sa.reqid == reqid]


def _associations(mobile: End, agent: End, *, protected: bool) -> Iterable[str]:
    """The same SAs, keys included, one pair for each purpose, and no others."""

    def identity(sa: SecurityAssociation) -> tuple[int, int, Mode, bool, object]:
        keys = sa.aead, sa.encryption, sa.authentication
        return sa.spi, sa.reqid, sa.mode, sa.encapsulation is not None, keys

    ends = [{identity(sa) for sa in end.associations} for end in (mobile, agent)]
    for spi, reqid, mode, udp, _ in ends[0] ^ ends[1]:
        yield f"SA at one end only: spi {spi:#x} reqid {reqid} {mode.value} in UDP {udp}"
    for name, end in (("mn", mobile), ("ha", agent)):
        counts = [len(_of(end, reqid)) for reqid in (IDS.data, IDS.signalling, IDS.mirror)]
        if counts not in ([2 * protected, 2, 0], [2 * protected, 2, 2]):
            yield f"{name}: {counts} SAs for data, signalling, its mirror"
        if any(sa.reqid not in IDS for sa in end.associations):
            yield f"{name}: foreign SAs"
        origins, mirrors = _of(end, IDS.signalling), _of(end, IDS.mirror)
        usable = mirrors or origins
        if any(sa.mode is not Mode.TRANSPORT for sa in usable):
            yield f"{name}: signalling in tunnel mode without mirror"
        if mirrors and {sa.spi for sa in mirrors} != {sa.spi for sa in origins}:
            yield f"{name}: mirrors of other SAs"
        for sa in usable:
            if IPv6Address(HOME_ADDRESS) not in (sa.source, sa.destination) or sa.encapsulation:
                yield f"{name}: signalling by {sa}"


def _places(
    name: str, end: End, mobile: Address, agent: Address, where: Whereabouts
) -> Iterable[str]:
    """Data SAs lie between the outer addresses; ESP's port at the home agent is where IKE is."""
    for sa in _of(end, IDS.data):
        if {sa.source, sa.destination} != {mobile, agent}:
            yield f"{name}: {sa} isn't between {mobile} and {agent}"
        if (sa.encapsulation is not None) != where.esp_in_udp:
            yield f"{name}: {sa}, though ESP in UDP should be {where.esp_in_udp}"
        if name == "ha" and sa.encapsulation is not None:
            ports = {sa.encapsulation.source_port, sa.encapsulation.destination_port}
            if ports not in [{IKE_NATT_PORT, ike.remote_port} for ike in end.ike]:
                yield f"ha: {sa}, but IKE from port {[ike.remote_port for ike in end.ike]}"


def _charons(mobile: End, agent: End, where: Whereabouts, *, one_ike_sa: bool) -> Iterable[str]:
    """charon's CHILD_SAs are the kernel's SAs, and its IKE_SA leads to where the mobile node is."""
    for name, end in (("mn", mobile), ("ha", agent)):
        if one_ike_sa and len(end.ike) != 1:
            yield f"{name}: IKE_SAs {[(sa.uniqueid, sa.state) for sa in end.ike]}"
        known = {
            spi for sa in end.ike for child in sa.children for spi in (child.spi_in, child.spi_out)
        }
        kernel = {sa.spi for sa in end.associations if sa.reqid in IDS.negotiated}
        if known != kernel:
            yield f"{name}: charon knows {known}, the kernel has {kernel}"
        for sa in end.ike:
            for child in sa.children:
                if not child.installed:
                    yield f"{name}: {child.name} is {child.state}"
    if where.outer not in [sa.remote_host for sa in agent.ike if sa.established]:
        yield f"ha: IKE with {[str(sa.remote_host) for sa in agent.ike]}, not {where.outer}"
    if where.agent not in [sa.remote_host for sa in mobile.ike if sa.established]:
        yield f"mn: IKE with {[str(sa.remote_host) for sa in mobile.ike]}, not {where.agent}"


def _policy_pairs(mobile: End, agent: End) -> Iterable[str]:
    """What one end sends by a policy the other takes by one, with the same SAs or a block. The
    Mobility Header type is in outbound selectors only (docs/kernel-notes.md)."""

    def rows(end: End, direction: Direction) -> set[tuple[object, ...]]:
        found: set[tuple[object, ...]] = set()
        for policy in end.policies:
            if policy.direction is direction:
                selector, template = policy.selector, policy.template
                how = (template.mode, template.reqid) if template is not None else None
                ends = selector.source, selector.destination
                found.add((*ends, selector.protocol, selector.icmpv6_type, how))
        return found

    for way, sender, receiver in (("mn to ha", mobile, agent), ("ha to mn", agent, mobile)):
        for row in rows(sender, Direction.OUT) ^ rows(receiver, Direction.IN):
            yield f"{way}: policy at one end only: {[str(part) for part in row]}"


def _templates(name: str, end: End) -> Iterable[str]:
    """Each protecting policy has a living SA, and outbound ones name its very addresses."""
    if not any(policy.direction is Direction.OUT for policy in end.policies):
        yield f"{name}: no outbound policies"
    for policy in end.policies:
        template = policy.template
        if template is None:
            if policy.selector.protocol not in (0, 58) or policy.action is not Action.BLOCK:
                yield f"{name}: {policy}"
            continue
        fitting = [sa for sa in _of(end, template.reqid) if sa.mode is template.mode]
        if policy.direction is Direction.OUT:
            ends = template.source, template.destination
            fitting = [sa for sa in fitting if (sa.source, sa.destination) == ends]
        if not fitting:
            yield f"{name}: no SA for {policy}"


def describe(end: End) -> list[str]:
    """For a failure's report."""
    lines = [str(binding) for binding in end.bindings]
    lines += [*map(str, end.associations), *map(str, end.policies)]
    for sa in end.ike:
        children = [f"{c.name} {c.state} {c.spi_in:x} {c.spi_out:x}" for c in sa.children]
        where = f"{sa.local_host}:{sa.local_port} {sa.remote_host}:{sa.remote_port}"
        lines.append(f"IKE_SA {sa.name} {sa.uniqueid} {sa.state} {where} {children}")
    return lines
