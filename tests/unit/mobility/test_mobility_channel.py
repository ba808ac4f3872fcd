"""Mobile node and home agent back to back over a bad network: whatever happens, once the network
is good again they agree on one binding, or on none.

The network loses, duplicates, delays and so reorders; its NAT forgets mappings; the home agent
restarts; the mobile node moves, detaches, deregisters and changes its mind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from mobility_samples import AGENT, AGENT_IPV4, CARE_OF, HOME, HOME_IPV4, PRIVATE, PUBLIC

from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    IPAddress,
    MobilityPacket,
    OuterAddress,
    Output,
    SendMobility,
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
PRIVATE_NETWORK = IPv4Network("10.0.0.0/8")


@dataclass(order=True)
class InFlight:
    due: float
    number: int
    to_agent: bool = field(compare=False)
    sent: SendMobility = field(compare=False)
    outer: OuterAddress | None = field(compare=False)


class BadNetwork(RuleBasedStateMachine):
    """The network, with both engines at its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.good = False
        self.data: st.DataObject | None = None
        self.in_flight: list[InFlight] = []
        self.count = 0
        self.reachable: list[IPAddress] = []  # newest last; the one before still receives
        self.mapping = 1024
        self.ipv6_works = True
        self.sent_at: list[float] = []
        self.node_binding: Binding | None = None
        self.agent_binding: Binding | None = None

    @initialize(
        accept_force=st.booleans(), force=st.booleans(), dynamic=st.booleans(), seed=st.integers(0)
    )
    def start(self, accept_force: bool, force: bool, dynamic: bool, seed: int) -> None:
        self.agent_config = HomeAgentConfig(
            AGENT,
            AGENT_IPV4,
            {HOME: Subscriber(None if dynamic else HOME_IPV4)},
            max_lifetime=100,
            nat_refresh_time=30,
            accept_force_udp=accept_force,
            key_mobility=True,
            ipv4_pool=(IPv4Network("192.0.2.128/29"),),
        )
        self.agent = HomeAgent(self.agent_config)
        config = MobileNodeConfig(
            HOME,
            AGENT,
            AGENT_IPV4,
            None if dynamic else HOME_IPV4,
            request_ipv4=dynamic,
            lifetime=LIFETIME,
            force_udp=force,
            key_mobility=True,
        )
        self.node = MobileNode(config, random.Random(seed).getrandbits)

    # --- the network ---

    def outer_of(self, local: IPAddress) -> OuterAddress:
        assert isinstance(local, IPv4Address)
        if local in PRIVATE_NETWORK:
            return OuterAddress(IPv4Address("203.0.113.7"), self.mapping)
        return OuterAddress(local, 4191)

    def send(self, outputs: list[Output], *, to_agent: bool) -> None:
        for output in outputs:
            if isinstance(output, BindingChanged):
                self.follow(output, at_agent=not to_agent)
            if not isinstance(output, SendMobility):
                continue
            if to_agent:
                self.sent_at.append(self.now)
                assert output.local == self.node.care_of_address
            outer = None
            if output.remote is not None:
                if to_agent:
                    assert output.remote == OuterAddress(AGENT_IPV4, 4191)
                    assert output.local is not None
                    outer = self.outer_of(output.local)
                else:
                    outer = OuterAddress(AGENT_IPV4, 4191)
            elif not self.ipv6_works:
                continue
            delays: tuple[float, ...] = (ONE_WAY,)
            if not self.good:
                assert self.data is not None
                delays = self.data.draw(FATES)
            for delay in delays:
                self.count += 1
                self.in_flight.append(
                    InFlight(self.now + delay, self.count, to_agent, output, outer)
                )

    def follow(self, change: BindingChanged, *, at_agent: bool) -> None:
        """Changes must form a chain: who follows them always knows the binding in force."""
        if at_agent:
            assert change.old == self.agent_binding
            self.agent_binding = change.new
        else:
            assert change.old == self.node_binding
            self.node_binding = change.new

    def arrives(self, packet: InFlight) -> bool:
        if packet.to_agent:
            return True
        here = self.reachable[-2:]
        if packet.sent.remote is None:
            return packet.sent.destination in here
        return any(
            isinstance(local, IPv4Address) and self.outer_of(local) == packet.sent.remote
            for local in here
        )

    def deliver(self, packet: InFlight) -> None:
        if not self.arrives(packet):
            return
        sent = packet.sent
        received = MobilityPacket(
            sent.source, sent.destination, sent.message, packet.outer, sent.home_address_option
        )
        if packet.to_agent:
            self.send(self.agent.handle(received, self.now), to_agent=False)
        else:
            self.send(self.node.handle(received, self.now), to_agent=True)

    def run_until(self, end: float) -> None:
        for _ in range(5000):
            self.in_flight.sort()
            times = [packet.due for packet in self.in_flight[:1]]
            times += [
                each
                for each in (self.node.next_deadline(), self.agent.next_deadline())
                if each is not None
            ]
            next_ = min(times, default=end)
            if next_ > end:
                break
            self.now = max(self.now, next_)
            if self.in_flight and self.in_flight[0].due <= self.now:
                self.deliver(self.in_flight.pop(0))
                continue
            self.send(self.node.tick(self.now), to_agent=True)
            self.send(self.agent.expire(self.now), to_agent=False)
            for deadline in (self.node.next_deadline(), self.agent.next_deadline()):
                assert deadline is None or deadline > self.now, "a deadline that never passes"
            if not times:
                break
        else:
            raise AssertionError("the engines never come to rest")
        self.now = end

    # --- what may happen ---

    @rule(where=st.sampled_from(sorted(NETWORKS)), data=st.data())
    def attach(self, where: str, data: st.DataObject) -> None:
        self.data = data
        care_of, alternative = NETWORKS[where]
        self.reachable += [care_of] if alternative is None else [alternative, care_of]
        outputs = self.node.attach(care_of, self.now, ipv4_alternative=alternative)
        self.send(outputs, to_agent=True)

    @rule()
    def detach(self) -> None:
        self.reachable.clear()
        assert not [each for each in self.node.detach(self.now) if isinstance(each, SendMobility)]

    @rule(data=st.data())
    @precondition(lambda self: self.node.state is not State.DETACHED)
    def deregister(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.deregister(self.now), to_agent=True)

    @rule(data=st.data())
    def return_home(self, data: st.DataObject) -> None:
        self.data = data
        self.reachable.append(HOME)
        if self.node.state is not State.IDLE:
            self.send(self.node.deregister(self.now, at_home=True), to_agent=True)

    @rule(data=st.data())
    @precondition(
        lambda self: self.node.state in (State.REGISTERING, State.REGISTERED, State.REFRESHING)
    )
    def refresh(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.refresh(self.now), to_agent=True)

    @rule(data=st.data())
    def lose_packets(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.report_packet_loss(self.now), to_agent=True)

    @rule(wanted=st.booleans(), data=st.data())
    def want_ipv4(self, wanted: bool, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.request_ipv4(wanted, self.now), to_agent=True)

    @rule(data=st.data())
    def ask_for_refresh(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.agent.request_refresh(HOME), to_agent=False)

    @rule()
    def rebind_nat(self) -> None:
        self.mapping += 1

    @rule(works=st.booleans())
    def break_ipv6(self, works: bool) -> None:
        self.ipv6_works = works

    @rule()
    def restart_agent(self) -> None:
        self.agent = HomeAgent(self.agent_config)
        self.agent_binding = None

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 5.0, 40.0, 150.0]), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        self.data = data
        self.run_until(self.now + seconds)

    @rule(noise=st.binary(max_size=48), to_agent=st.booleans(), protected=st.booleans())
    def noise(self, noise: bytes, to_agent: bool, protected: bool) -> None:
        """Bytes of anybody's: no exception, no answer but to errors, no change."""
        source, destination = (HOME, AGENT) if to_agent else (AGENT, HOME)
        packet = MobilityPacket(source, destination, noise, None, protected=protected)
        engine = self.agent if to_agent else self.node
        outputs = engine.handle(packet, self.now)
        if not protected:
            assert not [each for each in outputs if isinstance(each, SendMobility)]

    @rule()
    def forge(self) -> None:
        """What is under way, once more, without ESP and from elsewhere: nothing happens."""
        for packet in self.in_flight:
            sent = packet.sent
            forged = MobilityPacket(
                sent.source,
                sent.destination,
                sent.message,
                OuterAddress(IPv4Address("198.18.0.66"), 666),
                sent.home_address_option,
                protected=False,
            )
            engine = self.agent if packet.to_agent else self.node
            deadline = self.agent.next_deadline()
            if deadline is None or deadline > self.now:
                assert not [
                    each
                    for each in engine.handle(forged, self.now)
                    if isinstance(each, SendMobility | BindingChanged)
                ]

    @rule()
    def settle(self) -> None:
        """The network becomes good: both ends must come to agree."""
        self.good, works, self.ipv6_works = True, self.ipv6_works, True
        # Longer than any lifetime, back-off and delay together.
        self.run_until(self.now + 500.0)
        for _ in range(4):  # a refresh may just be under way
            if self.in_flight:
                self.run_until(self.now + ONE_WAY)
        assert not self.in_flight
        self.good, self.ipv6_works = False, works
        node, agent = self.node.binding, self.agent.binding_cache.get(HOME)
        if self.node.state in (State.DETACHED, State.IDLE):
            assert node is None
            assert agent is None
            return
        assert self.node.state is State.REGISTERED
        assert node is not None
        assert agent is not None
        for name in (
            "home_address",
            "home_agent",
            "care_of_address",
            "sequence",
            "lifetime",
            "home_agent_ipv4",
            "ipv4_home_address",
            "nat_detected",
            "udp_encapsulation",
            "force_udp",
            "key_mobility",
        ):
            assert getattr(node, name) == getattr(agent, name), name
        assert node.care_of_address == self.node.care_of_address
        assert node.registered_at <= agent.registered_at
        assert node.expires_at <= agent.expires_at
        if isinstance(node.care_of_address, IPv4Address):
            assert agent.outer == self.outer_of(node.care_of_address)
            assert node.nat_detected is (node.care_of_address in PRIVATE_NETWORK)
        else:
            assert agent.outer is None

    # --- what always holds ---

    @invariant()
    def what_is_told_is_what_is(self) -> None:
        if hasattr(self, "agent"):
            assert self.node.binding == self.node_binding
            assert self.agent.binding_cache.get(HOME) == self.agent_binding
            assert len(self.agent.binding_cache) == (self.agent_binding is not None)

    @invariant()
    def no_more_than_three_updates_a_second(self) -> None:
        """RFC 6275 §11.8."""
        recent = self.sent_at[-4:]
        assert len(recent) < 4 or recent[3] - recent[0] >= 1.0 - 1e-9
        del self.sent_at[:-8]

    @invariant()
    def what_waits_has_a_deadline(self) -> None:
        """A node that wants an answer will ask again."""
        if hasattr(self, "node") and self.node.state in (
            State.REGISTERING,
            State.REFRESHING,
            State.DEREGISTERING,
        ):
            assert self.node.next_deadline() is not None


TestBadNetwork = BadNetwork.TestCase
TestBadNetwork.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
