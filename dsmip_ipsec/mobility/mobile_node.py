"""The mobile node's engine: care-of addresses and packets in, packets and bindings out
(RFC 6275 §11; RFC 3963 §5; RFC 5555 §2, §4.3, §4.4, §5.1).

It is put together of its registration with home agents, where the states are
(:mod:`dsmip_ipsec.mobility.mobile_node_registration`), mobile prefix discovery, dynamic home agent
address discovery, and the correspondents to be deregistered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.binding_update_list import BindingUpdateList
from dsmip_ipsec.mobility.correspondents import Correspondents
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.mobility.discovery_dhaad import AddressDiscovery
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_registration import Registration
from dsmip_ipsec.mobility.mobile_node_states import State
from dsmip_ipsec.mobility.prefix_discovery import PrefixDiscovery
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    DropReason,
    Event,
    EventKind,
    HomeAgentsDiscovered,
    HomePrefixesLearned,
    IcmpPacket,
    IPAddress,
    MobilityPacket,
    Output,
)
from dsmip_ipsec.wire.errors import DecodeError
from dsmip_ipsec.wire.mobility import (
    BindingAck,
    BindingError,
    BindingErrorStatus,
    BindingRefreshRequest,
    HomeTest,
    decode,
)


class MobileNode:
    """A mobile node without input and output, for one home address.

    Tell it where it is with :meth:`attach` and :meth:`detach`, hand in packets with
    :meth:`handle` and :meth:`handle_icmp`, call :meth:`tick` at :meth:`next_deadline`, and do what
    the outputs say. ``random_bits(n)`` gives an integer of ``n`` random bits.

    A binding changes only when the home agent has acknowledged (or its lifetime is over): until
    then the old care-of address stays in force, and only the binding updates themselves leave
    from the new one (RFC 5555 §5.1).

    ``counters`` counts ``sent.binding_update``, ``retransmitted``, ``acknowledged.<status>`` and
    ``dropped.<reason>`` (see :class:`DropReason`).
    """

    def __init__(self, config: MobileNodeConfig, random_bits: Callable[[int], int]) -> None:
        self.config = config
        self.correspondents = Correspondents(config.home_address, random_bits)
        self._registration = Registration(config, random_bits)
        self._prefixes = PrefixDiscovery(config.home_address, random_bits)
        self._discovery = (
            AddressDiscovery(config.home_prefix, random_bits, mobile_router=config.mobile_router)
            if config.home_prefix is not None
            else None
        )

    # --- what is known ---

    @property
    def state(self) -> State:
        """Where the registration stands."""
        return self._registration.state

    @property
    def counters(self) -> Counter[str]:
        """What was counted."""
        return self._registration.counters

    @property
    def binding_update_list(self) -> BindingUpdateList:
        """The entries for the home agent (RFC 5555 §4.4.2), and what is outstanding."""
        return self._registration.binding_update_list

    @property
    def binding(self) -> Binding | None:
        """The binding in force, None without one."""
        return self._registration.binding

    @property
    def care_of_address(self) -> IPAddress | None:
        """Where binding updates leave from: the newest care-of address, bound or not yet."""
        return self._registration.care_of_address

    @property
    def home_agent(self) -> HomeAgentAddresses:
        """Where binding updates go."""
        return self._registration.home_agents.current

    # --- from below: the network ---

    def attach(
        self,
        care_of_address: IPAddress,
        now: float,
        *,
        ipv4_alternative: IPv4Address | None = None,
        administrative_domain: str = "",
        valid_lifetime: float | None = None,
    ) -> list[Output]:
        """A new point of attachment: register it.

        In a dual-stack network, ``care_of_address`` is the IPv6 one and ``ipv4_alternative`` is
        used when binding updates from it go unanswered (RFC 5555 §4.4.1); once that has
        happened, IPv4 is used first until ``administrative_domain`` is known to have changed.
        ``valid_lifetime``: of the care-of address, in seconds (None: without end).

        Raises :class:`MobilityError` for an address that can't be a care-of address, or an IPv4
        one when no home agent's IPv4 address is known. The registration is as before then.
        """
        outputs = self._registration.attach(
            care_of_address,
            now,
            ipv4_alternative=ipv4_alternative,
            administrative_domain=administrative_domain,
            valid_lifetime=valid_lifetime,
        )
        if self._discovery is not None:
            self._discovery.stop()
        return self._follow(outputs, now)

    def detach(self, now: float) -> list[Output]:
        """The care-of address is gone and there is no other yet. The binding stays until its
        lifetime is over. A deregistration goes on in the next network."""
        if self._discovery is not None:
            self._discovery.stop()
        return self._follow(self._registration.detach(now), now)

    def report_packet_loss(self, now: float) -> list[Output]:
        """Upper layers see persistent loss (RFC 5555 §4.4.1): over IPv4, ask for UDP encapsulation
        (F); over IPv6, change to IPv4, or as the last resort to UDP over IPv6 if the
        configuration permits it.

        Does nothing where UDP is in use, or the present care-of address isn't bound.
        """
        return self._follow(self._registration.report_packet_loss(now), now)

    # --- from above: the user ---

    def register(self, now: float) -> list[Output]:
        """A binding is wanted: takes back :meth:`deregister`, and asks again after a refusal.
        Nothing where one is wanted anyway, or the home address must not be used again.

        Raises :class:`MobilityError` at home.
        """
        return self._follow(self._registration.register(now), now)

    def learn_home_agents(
        self, home_agents: Iterable[HomeAgentAddresses], now: float
    ) -> list[Output]:
        """Other home agents, found by DNS say. The present one goes on to be tried first (RFC 6275
        §11.4.1); they are tried at once if it, and all known before, failed."""
        return self._follow(self._registration.learn_home_agents(home_agents, now), now)

    def discover_home_agents(self, now: float) -> list[Output]:
        """Look for home agents by DHAAD (RFC 6275 §11.4.1). This happens by itself when those that
        are known refuse or don't answer.

        Raises :class:`MobilityError` without ``home_prefix`` or without an IPv6 care-of address.
        """
        care_of = self.care_of_address
        if self._discovery is None or not isinstance(care_of, IPv6Address):
            raise MobilityError(
                "home agents can't be discovered by anycast here",
                hint="configure home_prefix"
                if self._discovery is None
                else "in an IPv4 network, ask the DNS (RFC 5555 §2.1)",
            )
        return self._discovery.start(care_of, now)

    def solicit_prefixes(self, now: float) -> list[Output]:
        """Send a mobile prefix solicitation (RFC 6275 §11.4.2). Nothing without a binding."""
        return self._prefixes.solicit(now)

    def refresh(self, now: float) -> list[Output]:
        """Send a binding update now. Nothing if one is out already.

        Raises :class:`MobilityError` when there is no registration to refresh.
        """
        return self._follow(self._registration.refresh(now), now)

    def request_ipv4(self, wanted: bool, now: float) -> list[Output]:
        """Keep or remove only the IPv4 home address binding (RFC 5555 §4.4.2.1): the binding
        update without IPv4 home address option replaces the one that had it."""
        return self._follow(self._registration.request_ipv4(wanted, now), now)

    def deregister(self, now: float, *, at_home: bool = False) -> list[Output]:
        """Remove all bindings (RFC 5555 §4.4.2.1), also from networks still to come, until the
        home agent has acknowledged, or :meth:`register`. ``at_home``: from the home link, over
        IPv6 (RFC 6275 §11.5.5), whatever was attached before.

        Nothing when there is no binding to remove, or the home address was given up (the binding
        then ends with its lifetime). Raises :class:`MobilityError` while detached (except at home).
        """
        return self._follow(self._registration.deregister(now, at_home=at_home), now)

    # --- time ---

    def tick(self, now: float) -> list[Output]:
        """Do what is due at ``now``: retransmissions, refreshes, NAT keepalives, expiry."""
        outputs = self._follow(self._registration.tick(now), now)
        outputs += self._prefixes.tick(now)
        outputs += self.correspondents.tick(now)
        if self._discovery is not None:
            outputs += self._discovery.tick(now)
        return outputs

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`, None if there is nothing to wait for."""
        deadlines = [
            self._registration.next_deadline(),
            self._prefixes.next_deadline(),
            self.correspondents.next_deadline(),
            None if self._discovery is None else self._discovery.next_deadline(),
        ]
        return min((each for each in deadlines if each is not None), default=None)

    # --- packets ---

    def handle(self, packet: MobilityPacket, now: float) -> list[Output]:
        """Take a received Mobility Header at time ``now``. Raises nothing, whatever it holds.

        From a correspondent node, ``protected`` says that it came out of the tunnel from the home
        agent (RFC 6275 §11.6.2).
        """
        config = self.config
        registration = self._registration
        outputs: list[Output] = []

        def drop(reason: DropReason, detail: str = "") -> list[Output]:
            return registration.drop(outputs, packet, reason, detail)

        if not packet.protected:  # RFC 6275 §11.7.3
            return drop(DropReason.UNPROTECTED)
        from_agent = packet.source == self.home_agent.address
        if not from_agent and packet.source not in self.correspondents:
            return drop(DropReason.WRONG_SOURCE)
        if packet.destination != config.home_address and (
            not from_agent or packet.destination != self.care_of_address
        ):
            return drop(DropReason.WRONG_DESTINATION)
        try:
            message = decode(packet.message, packet.source, config.home_address)
        except DecodeError as error:
            # RFC 6275 §9.2's answers are for whoever serves strangers; this is our home agent.
            return drop(DropReason.MALFORMED, error.message)
        if not from_agent:
            if isinstance(message, HomeTest):
                outputs = self.correspondents.home_test(packet.source, message)
            return outputs or drop(DropReason.UNEXPECTED_MESSAGE)
        if isinstance(message, BindingAck):
            return self._follow(registration.acknowledged(outputs, packet, message, now), now)
        if isinstance(message, BindingRefreshRequest) and self.state is State.REGISTERED:
            return self._follow(registration.refresh_requested(now), now)  # RFC 6275 §11.7.4
        if isinstance(message, BindingError):
            return self._binding_error(message, now)
        return drop(DropReason.UNEXPECTED_MESSAGE)

    def handle_icmp(self, packet: IcmpPacket, now: float) -> list[Output]:
        """Take a received ICMPv6 message at time ``now``: a mobile prefix advertisement or a home
        agent address discovery reply. Ignores everything else; raises nothing."""
        outputs = self._prefixes.handle(packet, now)
        if self._discovery is not None and not outputs:
            outputs = self._discovery.handle(packet)
        for output in tuple(outputs):
            if isinstance(output, HomePrefixesLearned):
                self._registration.awaiting_prefixes = False
                self._registration.home_valid_until = self._prefixes.home_valid_until
            elif isinstance(output, HomeAgentsDiscovered):
                found = map(HomeAgentAddresses, output.home_agents)
                outputs += self._follow(self._registration.learn_home_agents(found, now), now)
        return outputs

    def _binding_error(self, message: BindingError, now: float) -> list[Output]:
        """RFC 6275 §11.3.6, from the home agent: it knows no binding, so it gets an update."""
        about: dict[str, str | int] = {"status": int(message.status)}
        outputs: list[Output] = [Event(EventKind.BINDING_ERROR, self.config.home_address, about)]
        if message.status == BindingErrorStatus.UNKNOWN_BINDING:
            outputs += self._follow(self._registration.refresh_requested(now), now)
        return outputs

    # --- what follows from a change of the registration ---

    def _follow(self, outputs: list[Output], now: float) -> list[Output]:
        """Add what the other parts do about ``outputs`` of the registration."""
        registration = self._registration
        for output in tuple(outputs):
            if isinstance(output, BindingChanged):
                self._prefixes.binding_changed(output.new)
                self._move_correspondents(output, outputs, now)
            elif (
                isinstance(output, Event)
                and output.kind is EventKind.PREFIX_DISCOVERY_NEEDED
                and not self._prefixes.pending
            ):
                outputs += self._prefixes.solicit(now)
        if self.binding is None:
            registration.awaiting_prefixes = False
        if (
            registration.out_of_home_agents
            and self._discovery is not None
            and not self._discovery.running
            and isinstance(self.care_of_address, IPv6Address)
            and any(isinstance(output, Event) for output in outputs)
        ):
            outputs += self._discovery.start(self.care_of_address, now)
        return outputs

    def _move_correspondents(
        self, change: BindingChanged, outputs: list[Output], now: float
    ) -> None:
        """RFC 5555 §5.1: "after the mobile node updates the home agent with its new location"."""
        if change.new is None or change.new.care_of_address.version == 6:
            self.correspondents.stop()
        else:
            outputs += self.correspondents.deregister_all(now)
