"""A bad network for the engines of a mobile node and of home agents, with time of its own.

It loses, duplicates, delays and so reorders; its NAT forgets mappings; it lets only UDP through, or
no IPv6 at all. What happens when is for :mod:`test_mobility_channel` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from mobility_samples import AGENT, AGENT_IPV4, CARE_OF, PRIVATE, PUBLIC

from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    IcmpPacket,
    IPAddress,
    MobilityPacket,
    OuterAddress,
    Output,
    SendIcmp,
    SendMobility,
    SendTunnelled,
)

LIFETIME = 120
ONE_WAY = 0.02
# When the copies of a packet arrive. None lives longer than the home agent remembers a
# deregistration: ten seconds (RFC 6275 §10.3.2).
FATES = st.sampled_from(
    [(ONE_WAY,), (ONE_WAY,), (ONE_WAY,), (), (), (0.4,), (2.5,), (8.0,), (ONE_WAY, 0.4), (0.4, 2.5)]
)
SECOND_PRIVATE = IPv4Address("10.77.0.3")
SECOND_CARE_OF = IPv6Address("2001:db8:3::7")
NETWORKS: dict[str, tuple[IPAddress, IPv4Address | None]] = {
    "nat": (PRIVATE, None),
    "other nat": (SECOND_PRIVATE, None),
    "public": (PUBLIC, None),
    "ipv6": (CARE_OF, None),
    "dual": (SECOND_CARE_OF, PRIVATE),
}
SECOND_AGENT = HomeAgentAddresses(IPv6Address("2001:db8:1::2"), IPv4Address("198.51.100.2"))
AGENTS = {AGENT: AGENT_IPV4, SECOND_AGENT.address: SECOND_AGENT.ipv4}
HOME_LINK = IPv6Network("2001:db8:1::/64")
CORRESPONDENT = IPv6Address("2001:db8:9::5")
PRIVATE_NETWORK = IPv4Network("10.0.0.0/8")


@dataclass(order=True)
class InFlight:
    due: float
    number: int
    agent: IPv6Address = field(compare=False)  # the home agent at one of its ends
    to_agent: bool = field(compare=False)
    sent: SendMobility | SendIcmp = field(compare=False)
    outer: OuterAddress | None = field(compare=False)


class Network(RuleBasedStateMachine):
    """The network, with the engines at its ends."""

    node: MobileNode
    agents: dict[IPv6Address, HomeAgent]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.good = False
        self.data: st.DataObject | None = None
        self.in_flight: list[InFlight] = []
        self.count = 0
        self.reachable: list[IPAddress] = []  # newest last; the one before still receives
        self.mapping = 1024
        self.ipv6 = "works"
        self.silent: set[IPv6Address] = set()
        self.sent_at: list[float] = []
        self.node_binding: Binding | None = None
        self.agent_bindings: dict[IPv6Address, Binding | None] = {}
        self.tests: list[SendTunnelled] = []

    # --- the network ---

    def outer_of(self, local: IPAddress) -> OuterAddress:
        if isinstance(local, IPv4Address) and local in PRIVATE_NETWORK:
            return OuterAddress(IPv4Address("203.0.113.7"), self.mapping)
        return OuterAddress(local, 4191)

    def passes(self, outer: bool, address: IPAddress) -> bool:
        """Whether the network lets something through."""
        return address.version == 4 or self.ipv6 == "works" or (outer and self.ipv6 == "udp only")

    def send(self, outputs: list[Output], agent: IPv6Address | None = None) -> None:
        """Put ``outputs`` of ``agent``, or of the mobile node, on the network."""
        for output in outputs:
            if isinstance(output, BindingChanged):
                self.follow(output, agent)
            elif isinstance(output, SendTunnelled):
                self.tests.append(output)
            elif isinstance(output, SendMobility | SendIcmp):
                if agent is None:
                    self.send_from_node(output)
                else:
                    self.send_from_agent(output, agent)

    def send_from_node(self, output: SendMobility | SendIcmp) -> None:
        if isinstance(output, SendMobility):
            self.sent_at.append(self.now)
            assert output.local == self.node.care_of_address
            assert output.destination == self.node.home_agent.address
        assert output.local is not None
        outer = None
        agents = [output.destination]
        if output.remote is not None:
            assert output.remote.port == 4191
            assert output.remote.address in (output.destination, AGENTS[output.destination])
            outer = self.outer_of(output.local)
            if isinstance(output, SendIcmp) and not output.udp:
                outer = OuterAddress(outer.address, 0)
        elif output.destination not in AGENTS:  # anycast: whoever is nearest
            agents = [AGENT]
        if self.passes(outer is not None, output.local):
            for agent in agents:
                self.put(agent, True, output, outer)

    def send_from_agent(self, output: SendMobility | SendIcmp, agent: IPv6Address) -> None:
        outer = None
        if output.remote is not None:
            ours = agent if output.remote.address.version == 6 else AGENTS[agent]
            assert ours is not None
            outer = OuterAddress(ours, 4191)
        where = output.destination if output.remote is None else output.remote.address
        if self.passes(outer is not None, where):
            self.put(agent, False, output, outer)

    def put(
        self,
        agent: IPv6Address,
        to_agent: bool,
        output: SendMobility | SendIcmp,
        outer: OuterAddress | None,
    ) -> None:
        delays: tuple[float, ...] = (ONE_WAY,)
        if not self.good:
            assert self.data is not None
            delays = self.data.draw(FATES)
        for delay in delays:
            self.count += 1
            self.in_flight.append(
                InFlight(self.now + delay, self.count, agent, to_agent, output, outer)
            )

    def follow(self, change: BindingChanged, agent: IPv6Address | None) -> None:
        """Changes must form a chain: who follows them always knows the binding in force."""
        if agent is not None:
            assert change.old == self.agent_bindings[agent]
            self.agent_bindings[agent] = change.new
        else:
            assert change.old == self.node_binding
            self.node_binding = change.new

    def arrives(self, packet: InFlight) -> bool:
        if packet.to_agent:
            return packet.agent not in self.silent
        here = self.reachable[-2:]
        remote = packet.sent.remote
        if remote is None:
            return packet.sent.destination in here
        return any(self.outer_of(local).address == remote.address for local in here) and (
            remote.port in (0, self.mapping, 4191)
        )

    def deliver(self, packet: InFlight) -> None:
        if not self.arrives(packet):
            return
        sent = packet.sent
        agent = packet.agent
        if isinstance(sent, SendIcmp):
            icmp = IcmpPacket(
                sent.source,
                sent.destination,
                sent.message,
                packet.outer,
                sent.home_address_option,
                sent.type2_routing,
                sent.protected,
            )
            if packet.to_agent:
                self.send(self.agents[agent].handle_icmp(icmp, self.now), agent)
            else:
                self.send(self.node.handle_icmp(icmp, self.now))
            return
        received = MobilityPacket(
            sent.source, sent.destination, sent.message, packet.outer, sent.home_address_option
        )
        if packet.to_agent:
            self.send(self.agents[agent].handle(received, self.now), agent)
        else:
            self.send(self.node.handle(received, self.now))

    def deadlines(self) -> list[float]:
        engines: tuple[MobileNode | HomeAgent, ...] = (self.node, *self.agents.values())
        return [each for engine in engines if (each := engine.next_deadline()) is not None]

    def run_until(self, end: float) -> None:
        for _ in range(5000):
            self.in_flight.sort()
            times = [packet.due for packet in self.in_flight[:1]]
            times += self.deadlines()
            next_ = min(times, default=end)
            if next_ > end:
                break
            self.now = max(self.now, next_)
            if self.in_flight and self.in_flight[0].due <= self.now:
                self.deliver(self.in_flight.pop(0))
                continue
            self.send(self.node.tick(self.now))
            for address, agent in self.agents.items():
                self.send(agent.expire(self.now), address)
            assert all(each > self.now for each in self.deadlines()), "a deadline never passes"
            if not times:
                break
        else:
            raise AssertionError("the engines never come to rest")
        self.now = end
