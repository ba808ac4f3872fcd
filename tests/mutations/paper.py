"""A handover on paper: both engines, a NAT between them and the desired IPsec state of both ends,
without a kernel, and the snapshot of it.

What a lab does in half a minute is done here in a moment: a mobile node with the K bit attaches
behind a NAT, which changes its mappings, moves to a public network, comes back and deregisters. A
second mobile node asks for the first one's IPv4 home address. The mutations' judge.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from typing import Any

from dsmip_ipsec.ipsec.desired import desired
from dsmip_ipsec.ipsec.model import Mode, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Peering, Reqids, Role
from dsmip_ipsec.ipsec.placement import place
from dsmip_ipsec.lab import record
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.types import (
    Binding,
    MobilityPacket,
    OuterAddress,
    Output,
    SendMobility,
)
from dsmip_ipsec.node.describe import binding_dict
from dsmip_ipsec.report import snapshot
from dsmip_ipsec.wire.mobility import BindingAck, BindingUpdate, decode
from dsmip_ipsec.wire.options import IPv4AddressAck

HOME, HOME4 = IPv6Address("2001:db8:100::100"), IPv4Address("203.0.113.200")
THIEF, THIEF4 = IPv6Address("2001:db8:100::101"), IPv4Address("203.0.113.201")
AGENT, AGENT4 = IPv6Address("2001:db8:100::1"), IPv4Address("203.0.113.2")
PRIVATE, PUBLIC, NAT = map(IPv4Address, ("10.0.0.100", "198.51.100.100", "192.0.2.2"))
# What the NAT makes of ports 4191 and 4500, at first and later.
MAPPINGS = ((40191, 40450), (50191, 50450))
REQIDS = Reqids(55501, 55502, 55503)

TOPOLOGY = record.Topology(
    nodes=tuple(
        record.NodeSummary(name=name, role=role)
        for name, role in (("mn", "mobile_node"), ("nat", "nat"), ("ha", "home_agent"))
    ),
    links=(
        record.LinkSummary(name="visited-a", ends={"mn": (f"{PRIVATE}/24",)}),
        record.LinkSummary(name="visited-b", ends={"mn": (f"{PUBLIC}/24",)}),
        record.LinkSummary(name="access", ends={"nat": (f"{NAT}/30",)}),
        record.LinkSummary(name="core", ends={"ha": (f"{AGENT4}/30",)}),
        record.LinkSummary(name="home", ends={"ha": (f"{AGENT}/64",)}),
    ),
)


@dataclass
class Paper:
    """``messages``: what was on the wire, in words."""

    node: MobileNode
    agent: HomeAgent
    now: float = 0.0
    mapping: int = 0
    messages: list[str] = field(default_factory=list)

    def exchange(self, outputs: list[Output]) -> None:
        """Carry messages to and fro until both are silent."""
        for output in outputs:
            if not isinstance(output, SendMobility):
                continue
            assert output.local is not None
            self.now += 0.02
            if output.destination == AGENT:
                self.to_agent(output)
            else:
                self.to_node(output)

    def to_agent(self, sent: SendMobility) -> None:
        assert isinstance(sent.local, IPv4Address)
        behind = sent.local == PRIVATE
        outer = OuterAddress(NAT, MAPPINGS[self.mapping][0]) if behind else None
        outer = outer or OuterAddress(sent.local, 4191)
        self.note(sent, f"from {outer.address} port {outer.port}")
        packet = MobilityPacket(sent.source, sent.destination, sent.message, outer)
        self.exchange(self.agent.handle(packet, self.now))

    def to_node(self, sent: SendMobility) -> None:
        where = sent.remote
        self.note(sent, f"to {where.address} port {where.port}" if where else "natively")
        # What isn't sent to where the update came from doesn't pass the NAT.
        care_of = self.node.care_of_address
        behind = care_of == PRIVATE
        reachable = (NAT, MAPPINGS[self.mapping][0]) if behind else (care_of, 4191)
        if where is None or (where.address, where.port) != reachable:
            return
        packet = MobilityPacket(
            sent.source, sent.destination, sent.message, OuterAddress(AGENT4, 4191)
        )
        self.exchange(self.node.handle(packet, self.now))

    def note(self, sent: SendMobility, way: str) -> None:
        message: Any = decode(sent.message, sent.source, sent.destination)
        assert isinstance(message, BindingUpdate | BindingAck)
        name = "BU" if isinstance(message, BindingUpdate) else f"BA status {message.status}"
        text = f"{name}, {'K' if message.key_mobility else 'no K'}"
        for option in message.options:
            if isinstance(option, IPv4AddressAck):
                text += f", {option.address} status {option.status}"
        self.messages.append(f"{text}, {way}")


def peering(role: Role) -> Peering:
    return Peering(
        role, HOME, HOME4, AGENT, AGENT4, REQIDS, moves_associations=True, native_signalling=False
    )


def negotiated(role: Role, binding: Binding, heard: OuterAddress | None) -> list[Any]:
    """What IKE installs at this end behind the NAT: tunnels, for signalling to be mirrored."""
    found = []
    for spi, reqid in ((1, REQIDS.signalling), (2, REQIDS.signalling), (3, 55503), (4, 55503)):
        ends = (HOME, AGENT) if spi % 2 else (AGENT, HOME)
        sa = SecurityAssociation(spi, *ends, Mode.TUNNEL, reqid)
        found.append(place(peering(role), binding, sa, heard))
    return found


def state(
    role: Role, binding: Binding | None, sas: list[SecurityAssociation], heard: OuterAddress | None
) -> tuple[record.NodeState, list[SecurityAssociation]]:
    """What this end has to have, as a record has it; and its SAs, to start from next time."""
    active = binding is not None
    wanted = desired(
        peering(role),
        active=active,
        binding=binding,
        negotiated=sas if active else [],
        esp_care_of=heard,
        at_home=not active,
    )
    placed = {sa.spi: sa for sa in wanted.placed}
    kept = [placed.get(sa.spi, sa) for sa in sas] if active else []
    purposes = {REQIDS.data: "data", REQIDS.mirror: "signalling", REQIDS.signalling: "origin"}
    attachment = ""
    if role is Role.MOBILE_NODE and binding is not None:
        attachment = "visited-a" if binding.care_of_address == PRIVATE else "visited-b"
    return (
        record.NodeState(
            attachment=attachment,
            bindings=()
            if binding is None
            else (
                record.Binding.model_validate(binding_dict(binding, seen=role is Role.HOME_AGENT)),
            ),
            sas=tuple(
                record.SecurityAssociation(
                    spi=f"0x{sa.spi:08x}",
                    source=sa.source,
                    destination=sa.destination,
                    mode=sa.mode.value,
                    encapsulation=None
                    if sa.encapsulation is None
                    else record.Encapsulation(
                        source_port=sa.encapsulation.source_port,
                        destination_port=sa.encapsulation.destination_port,
                    ),
                    reqid=sa.reqid,
                    purpose=purposes[sa.reqid],
                )
                for sa in (*kept, *wanted.associations)
            ),
            policies=tuple(
                record.Policy(
                    direction=policy.direction.value,
                    selector=str(policy.selector),
                    template="block" if policy.template is None else str(policy.template),
                    priority=policy.priority,
                )
                for policy in wanted.policies
            ),
        ),
        kept,
    )


def agent() -> HomeAgent:
    return HomeAgent(
        HomeAgentConfig(
            AGENT,
            AGENT4,
            {
                HOME: Subscriber(IPv4Interface(f"{HOME4}/32")),
                THIEF: Subscriber(IPv4Interface(f"{THIEF4}/32")),
            },
            key_mobility=True,
        )
    )


def mobile_node(home: IPv6Address, home4: IPv4Address) -> MobileNode:
    config = MobileNodeConfig(home, AGENT, AGENT4, IPv4Interface(f"{home4}/32"), key_mobility=True)
    return MobileNode(config, lambda bits: 0)


def text() -> str:
    """The messages of the whole handover, then its snapshot."""
    paper = Paper(mobile_node(HOME, HOME4), agent())
    steps: list[tuple[str, dict[str, record.NodeState]]] = []
    sas: dict[Role, list[SecurityAssociation]] = {role: [] for role in Role}
    for name, care_of, mapping in (
        ("attach behind the NAT", PRIVATE, 0),
        ("the NAT forgets its mappings", PRIVATE, 1),
        ("move to the public network", PUBLIC, 1),
        ("move back behind the NAT", PRIVATE, 1),
        ("deregister", None, 1),
    ):
        paper.now += 10
        paper.mapping = mapping
        paper.messages.append(f"-- {name}")
        if care_of is None:
            paper.exchange(paper.node.deregister(paper.now))
        elif care_of == paper.node.care_of_address:
            paper.exchange(paper.node.refresh(paper.now))
        else:
            paper.exchange(paper.node.attach(care_of, paper.now))
        states = {}
        for role, node in ((Role.MOBILE_NODE, "mn"), (Role.HOME_AGENT, "ha")):
            binding = paper.node.binding
            heard = None
            if role is Role.HOME_AGENT:
                binding = paper.agent.binding_cache.get(HOME)
                if care_of == PRIVATE:
                    heard = OuterAddress(NAT, MAPPINGS[mapping][1])
            if binding is not None and not sas[role]:
                sas[role] = negotiated(role, binding, heard)
            states[node], sas[role] = state(role, binding, sas[role], heard)
        steps.append((name, states))
    paper.messages.append("-- another mobile node asks for the same IPv4 home address")
    thief = Paper(mobile_node(THIEF, HOME4), paper.agent, now=paper.now + 10)
    thief.messages = paper.messages
    thief.exchange(thief.node.attach(PUBLIC, thief.now))
    stolen = paper.agent.binding_cache.get(THIEF)
    given = None if stolen is None or stolen.ipv4_home_address is None else stolen.ipv4_home_address
    paper.messages.append(f"it got {given.ip if given else 'no IPv4 home address'}")
    return "\n".join([*paper.messages, "", snapshot.take(TOPOLOGY, steps).text()])


if __name__ == "__main__":
    sys.stdout.write(text())
