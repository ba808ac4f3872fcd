"""Mobile node and home agents back to back over a bad network: whatever happens, once the network
is good again they agree on one binding, or on none.

The network loses, duplicates, delays and so reorders; its NAT forgets mappings; it lets only UDP
through, or no IPv6 at all; home agents restart and fall silent; the mobile node moves, detaches,
deregisters and changes its mind, asks for prefixes, and has a correspondent node.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from mobile_node_network import (
    AGENTS,
    CORRESPONDENT,
    HOME_LINK,
    LIFETIME,
    NETWORKS,
    ONE_WAY,
    PRIVATE_NETWORK,
    SECOND_AGENT,
    Network,
)
from mobility_samples import AGENT, AGENT_IPV4, HOME, HOME_IPV4

from dsmip_ipsec.mobility.home_agent import HomeAgent
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.mobile_node import MobileNode
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    IcmpPacket,
    MobilityPacket,
    OuterAddress,
    SendIcmp,
    SendMobility,
)
from dsmip_ipsec.wire.mobility import BindingUpdate, HomeTest, HomeTestInit, decode, encode


class BadNetwork(Network):
    """What may happen to the network, and to the engines at its ends."""

    @initialize(
        accept_force=st.booleans(),
        force=st.booleans(),
        dynamic=st.booleans(),
        udp_over_ipv6=st.booleans(),
        several=st.booleans(),
        seed=st.integers(0),
    )
    def start(
        self,
        accept_force: bool,
        force: bool,
        dynamic: bool,
        udp_over_ipv6: bool,
        several: bool,
        seed: int,
    ) -> None:
        self.random_bits = random.Random(seed).getrandbits
        self.configs = {
            address: HomeAgentConfig(
                address,
                ipv4,
                {HOME: Subscriber(None if dynamic else HOME_IPV4)},
                home_prefixes=(HOME_LINK,),
                max_lifetime=100,
                nat_refresh_time=30,
                accept_force_udp=accept_force,
                accept_force_udp_ipv6=accept_force,
                key_mobility=True,
                ipv4_pool=(IPv4Network("192.0.2.128/29"),),
            )
            for address, ipv4 in AGENTS.items()
        }
        self.agents = {
            address: HomeAgent(config, self.random_bits) for address, config in self.configs.items()
        }
        self.agent_bindings = dict.fromkeys(AGENTS)
        config = MobileNodeConfig(
            HOME,
            AGENT,
            AGENT_IPV4,
            None if dynamic else HOME_IPV4,
            request_ipv4=dynamic,
            lifetime=LIFETIME,
            force_udp=force,
            key_mobility=True,
            other_home_agents=(SECOND_AGENT,) if several else (),
            home_prefix=HOME_LINK,
            udp_over_ipv6=udp_over_ipv6,
        )
        self.node = MobileNode(config, self.random_bits)

    # --- what may happen ---

    @rule(where=st.sampled_from(sorted(NETWORKS)), data=st.data())
    def attach(self, where: str, data: st.DataObject) -> None:
        self.data = data
        care_of, alternative = NETWORKS[where]
        self.reachable += [care_of] if alternative is None else [alternative, care_of]
        outputs = self.node.attach(care_of, self.now, ipv4_alternative=alternative)
        self.send(outputs)

    @rule()
    def detach(self) -> None:
        self.reachable.clear()
        assert not [each for each in self.node.detach(self.now) if isinstance(each, SendMobility)]

    @rule(data=st.data())
    @precondition(lambda self: self.node.state is not State.DETACHED)
    def deregister(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.deregister(self.now))

    @rule(data=st.data())
    def return_home(self, data: st.DataObject) -> None:
        self.data = data
        self.reachable.append(HOME)
        self.send(self.node.deregister(self.now, at_home=True))

    @rule(data=st.data())
    @precondition(
        lambda self: self.node.state in (State.REGISTERING, State.REGISTERED, State.REFRESHING)
    )
    def refresh(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.refresh(self.now))

    @rule(data=st.data())
    def lose_packets(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.report_packet_loss(self.now))

    @rule(wanted=st.booleans(), data=st.data())
    def want_ipv4(self, wanted: bool, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.request_ipv4(wanted, self.now))

    @rule(data=st.data())
    def ask_for_refresh(self, data: st.DataObject) -> None:
        self.data = data
        for address, agent in self.agents.items():
            self.send(agent.request_refresh(HOME), address)

    @rule()
    def rebind_nat(self) -> None:
        self.mapping += 1

    @rule(state=st.sampled_from(["works", "udp only", "broken"]))
    def break_ipv6(self, state: str) -> None:
        self.ipv6 = state

    @rule(address=st.sampled_from(sorted(AGENTS)))
    def restart_agent(self, address: IPv6Address) -> None:
        self.agents[address] = HomeAgent(self.configs[address], self.random_bits)
        self.agent_bindings[address] = None

    @rule(silent=st.sets(st.sampled_from(sorted(AGENTS))))
    def silence_agents(self, silent: set[IPv6Address]) -> None:
        self.silent = silent

    @rule(address=st.sampled_from(sorted(AGENTS)), data=st.data())
    def outlast(self, address: IPv6Address, data: st.DataObject) -> None:
        """A home agent is silent for longer than a whole back-off."""
        self.data = data
        self.silent = {address}
        self.run_until(self.now + 100.0)

    @rule(data=st.data())
    def outlast_native_ipv6(self, data: st.DataObject) -> None:
        self.data = data
        self.ipv6, self.silent = "udp only", set()
        self.run_until(self.now + 100.0)

    @rule(data=st.data())
    def want_binding(self, data: st.DataObject) -> None:
        """Takes a deregistration back."""
        self.data = data
        if self.node.care_of_address != HOME:
            self.send(self.node.register(self.now))

    @rule(data=st.data())
    def learn_home_agents(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.learn_home_agents([SECOND_AGENT], self.now))

    @rule(data=st.data())
    def solicit_prefixes(self, data: st.DataObject) -> None:
        self.data = data
        self.send(self.node.solicit_prefixes(self.now))

    @rule(seconds=st.sampled_from([1.0, 50.0, 400.0]))
    def have_correspondent(self, seconds: float) -> None:
        self.node.correspondents.record(CORRESPONDENT, 1, self.now + seconds)

    @rule(data=st.data())
    def answer_as_correspondent(self, data: st.DataObject) -> None:
        """What the node sends it through the tunnel is a test, or (after that) an end."""
        self.data = data
        tests, self.tests = self.tests, []
        for each in tests:
            message = decode(each.message, HOME, CORRESPONDENT)
            if isinstance(message, HomeTestInit):
                raw = encode(HomeTest(1, message.cookie, bytes(8)), CORRESPONDENT, HOME)
                packet = MobilityPacket(CORRESPONDENT, HOME, raw, None)
                self.send(self.node.handle(packet, self.now))
            else:
                assert isinstance(message, BindingUpdate)
                assert message.lifetime == 0

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0, 5.0, 40.0, 150.0]), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        self.data = data
        self.run_until(self.now + seconds)

    @rule(noise=st.binary(max_size=48), to_agent=st.booleans(), protected=st.booleans())
    def noise(self, noise: bytes, to_agent: bool, protected: bool) -> None:
        """Bytes of anybody's: no exception, no answer but to errors, no change."""
        source, destination = (HOME, AGENT) if to_agent else (AGENT, HOME)
        packet = MobilityPacket(source, destination, noise, None, protected=protected)
        engine = self.agents[AGENT] if to_agent else self.node
        outputs = engine.handle(packet, self.now)
        icmp = IcmpPacket(source, destination, noise, type2_routing=HOME, protected=protected)
        assert not [e for e in engine.handle_icmp(icmp, self.now) if isinstance(e, SendIcmp)]
        if not protected:
            assert not [each for each in outputs if isinstance(each, SendMobility)]

    @rule()
    def forge(self) -> None:
        """What is under way, once more, without ESP and from elsewhere: nothing happens."""
        for packet in self.in_flight:
            sent = packet.sent
            if isinstance(sent, SendIcmp):
                continue
            forged = MobilityPacket(
                sent.source,
                sent.destination,
                sent.message,
                OuterAddress(IPv4Address("198.18.0.66"), 666),
                sent.home_address_option,
                protected=False,
            )
            engine = self.agents[packet.agent] if packet.to_agent else self.node
            deadline = self.agents[packet.agent].next_deadline()
            if deadline is None or deadline > self.now:
                assert not [
                    each
                    for each in engine.handle(forged, self.now)
                    if isinstance(each, SendMobility | BindingChanged)
                ]

    @rule()
    def settle(self) -> None:
        """The network becomes good: both ends must come to agree."""
        self.good, state, self.ipv6 = True, self.ipv6, "works"
        silent, self.silent = self.silent, set()
        # Longer than any lifetime, back-off and delay together.
        self.run_until(self.now + 500.0)
        for _ in range(4):  # a refresh may just be under way
            if self.in_flight:
                self.run_until(self.now + ONE_WAY)
        assert not self.in_flight
        self.good, self.ipv6, self.silent = False, state, silent
        node = self.node.binding
        held = {a: engine.binding_cache.get(HOME) for a, engine in self.agents.items()}
        if self.node.state in (State.DETACHED, State.IDLE):
            assert node is None
            assert not any(held.values())
            return
        assert self.node.state is State.REGISTERED
        assert node is not None
        agent = held.pop(node.home_agent)
        assert not any(held.values()), "a binding with another home agent"
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
        elif node.udp_encapsulation:
            assert agent.outer == OuterAddress(node.care_of_address, 4191)
        else:
            assert agent.outer is None

    # --- what always holds ---

    @invariant()
    def what_is_told_is_what_is(self) -> None:
        if hasattr(self, "agents"):
            assert self.node.binding == self.node_binding
            for address, agent in self.agents.items():
                binding = self.agent_bindings[address]
                assert agent.binding_cache.get(HOME) == binding
                assert len(agent.binding_cache) == (binding is not None)

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
