"""The mobile node's registration with its home agents: care-of addresses in, binding updates and
bindings out (RFC 6275 §11.7, §11.8; RFC 3963 §5; RFC 5555 §4.3, §4.4, §5.1).

Its states and transitions are the table in :mod:`dsmip_ipsec.mobility.mobile_node_states`; what a
refusal leads to is the table in :mod:`dsmip_ipsec.mobility.binding_update`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.binding_update import (
    Reaction,
    ack_options,
    binding_from_ack,
    reaction_to,
)
from dsmip_ipsec.mobility.binding_update_list import (
    SentUpdate,
    sequence_greater,
)
from dsmip_ipsec.mobility.constants import (
    MAX_BINDACK_TIMEOUT,
    REFRESH_FRACTION,
)
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses
from dsmip_ipsec.mobility.ipv4_memory import IPv4Answer
from dsmip_ipsec.mobility.mobile_node_sending import UpdateSender
from dsmip_ipsec.mobility.mobile_node_states import State, Trigger
from dsmip_ipsec.mobility.types import (
    BindingChanged,
    ChangeReason,
    DropReason,
    Event,
    EventKind,
    IPAddress,
    MobilityPacket,
    Output,
    change_reason,
    drop_event,
)
from dsmip_ipsec.wire.mobility import (
    BindingAck,
    BindingStatus,
)

_WANTED = frozenset((State.REGISTERING, State.REGISTERED, State.REFRESHING))
_UNWANTED = frozenset((State.DEREGISTERING, State.LEAVING))


class Registration(UpdateSender):
    """The registration of one home address with one home agent at a time, without input and output.

    The part of :class:`~dsmip_ipsec.mobility.mobile_node.MobileNode` that speaks with home agents;
    see there for what the methods mean.
    """

    # --- from below: the network ---

    def attach(
        self,
        care_of_address: IPAddress,
        now: float,
        *,
        ipv4_alternative: IPv4Address | None,
        administrative_domain: str,
        valid_lifetime: float | None,
    ) -> list[Output]:
        outputs: list[Output] = []
        self.home_agents.restart()
        selection = self._selection
        other = None
        if care_of_address.version == 4 and not selection.ipv4_usable:
            # The present home agent can't be reached from there. Another one, perhaps.
            other = None if self.state in _UNWANTED else self.home_agents.next(ipv4=True)
            selection.ipv4_usable = other is not None
        try:
            selection.attach(care_of_address, ipv4_alternative, administrative_domain)
        finally:
            selection.ipv4_usable = self.home_agents.current.ipv4 is not None
        if other is not None:
            self._use(other, outputs)
        self._care_of_valid_until = None if valid_lifetime is None else now + valid_lifetime
        self._force_udp = self.config.force_udp
        self._last_resort = False
        self._go(Trigger.ATTACH, outputs)
        if self.state is not State.ABANDONED:
            self._start(outputs, now)
        return outputs

    def detach(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        self._go(Trigger.DETACH, outputs)
        self._selection.leave()
        self._stop()
        return outputs

    def report_packet_loss(self, now: float) -> list[Output]:
        """RFC 5555 §4.4.1's preferences: IPv6, then IPv4, then UDP."""
        binding = self.binding
        if (
            binding is None
            or self.state not in (State.REGISTERED, State.REFRESHING)
            or binding.care_of_address != self.care_of_address
            or binding.udp_encapsulation
        ):
            return []
        outputs: list[Output] = []
        if binding.care_of_address.version == 4:
            self._force_udp = True
        elif not self._fall_back(outputs) and not self._try_last_resort(outputs):
            return []
        if self.state is State.REGISTERED:
            self._go(Trigger.UPDATE, outputs)
        self._start(outputs, now)
        return outputs

    # --- from above: the user ---

    def register(self, now: float) -> list[Output]:
        if self.state in _WANTED or self.state in (State.DETACHED, State.ABANDONED):
            return []
        if self.care_of_address == self.config.home_address:
            raise MobilityError(
                "at home there is nothing to register", hint="attach to a visited network first"
            )
        outputs: list[Output] = []
        self._go(Trigger.REGISTER, outputs)
        self._next_agent_after_removal = False
        if self.state is State.REGISTERING:
            self._start(outputs, now)
        return outputs

    def learn_home_agents(
        self, home_agents: Iterable[HomeAgentAddresses], now: float
    ) -> list[Output]:
        self.home_agents.learn(home_agents)
        outputs: list[Output] = []
        if self.out_of_home_agents and self.state in (State.REFUSED, State.REGISTERING):
            self._next_agent(outputs, now)
        return outputs

    def refresh(self, now: float) -> list[Output]:
        if self.state in (State.REGISTERING, State.REFRESHING):
            return []
        return self._update(now)

    def request_ipv4(self, wanted: bool, now: float) -> list[Output]:
        """Keep or remove only the IPv4 home address binding (RFC 5555 §4.4.2.1): the binding
        update without IPv4 home address option replaces the one that had it."""
        self._ipv4.wanted = wanted
        if wanted:
            self._ipv4.supported = True
        if self.state in (State.REGISTERING, State.REGISTERED, State.REFRESHING):
            return self._update(now)
        return []

    def deregister(self, now: float, *, at_home: bool = False) -> list[Output]:
        if self.state in (State.IDLE, State.ABANDONED):
            if at_home:
                self._selection.leave(self.config.home_address)
            return []
        if self.state in _UNWANTED and not at_home:
            self._next_agent_after_removal = False
            return []
        if self.state is State.DETACHED and not at_home:
            raise MobilityError(
                "there is no network to deregister from",
                hint="attach first; without that, the binding ends with its lifetime",
            )
        outputs: list[Output] = []
        if at_home:
            # RFC 6275 §11.5.5: the home agent defends the address while there is a binding.
            skip = "skip" if self.binding is not None else "perform"
            about: dict[str, str | int] = {"duplicate_address_detection": skip}
            outputs.append(Event(EventKind.RETURNING_HOME, self.config.home_address, about))
            self._selection.leave(self.config.home_address)
            self._last_resort = False
        self._next_agent_after_removal = False
        binding = self.binding
        if binding is not None and binding.home_agent != self.home_agents.current.address:
            agent = self.home_agents.find(binding.home_agent)
            if agent is not None and not (self._over_ipv4() and agent.ipv4 is None):
                self._use(agent, outputs)
        self._go(Trigger.DEREGISTER, outputs)
        # Even a node that has forgotten (or never knew of) a binding asks long enough.
        self._remembered_until = max(self._remembered_until, now + 2 * MAX_BINDACK_TIMEOUT)
        self._start(outputs, now)
        return outputs

    # --- time ---

    def tick(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        binding = self.binding
        if binding is not None and binding.expires_at <= now:
            self.binding_update_list.binding = None
            self._ipv4.forget()
            outputs.append(BindingChanged(binding, None, ChangeReason.EXPIRED))
            was = self.state
            self._go(Trigger.EXPIRED, outputs)
            if was is State.REGISTERED:
                self._start(outputs, now)
        if self.state in _UNWANTED and self._remembered_until <= now:
            # Nobody answers, but no home agent can have a binding of ours any more.
            self._removed(outputs, ChangeReason.EXPIRED, now)
        if self._timer.is_due(now):
            if self._timer.held_back:
                self._send(outputs, now)
            else:
                self._retransmit(outputs, now)
        refresh_at = self._refresh_deadline()
        if refresh_at is not None and refresh_at <= now:
            outputs += self._update(now)
        return outputs

    def next_deadline(self) -> float | None:
        deadlines = [self._timer.due_at, self._refresh_deadline()]
        if self.state in _UNWANTED:
            deadlines.append(self._remembered_until)
        if self.binding is not None:
            deadlines.append(self.binding.expires_at)
        return min((each for each in deadlines if each is not None), default=None)

    def _refresh_deadline(self) -> float | None:
        """When to refresh. RFC 6275 §11.7.1: after status 1, not before prefix discovery has
        answered; but a binding isn't let go for that, should no answer come."""
        binding = self.binding
        if self.state is not State.REGISTERED or self._refresh_at is None or binding is None:
            return None
        if not self.awaiting_prefixes:
            return self._refresh_at
        return max(self._refresh_at, binding.registered_at + REFRESH_FRACTION * binding.lifetime)

    # --- what the home agent says ---

    def refresh_requested(self, now: float) -> list[Output]:
        """RFC 6275 §11.7.4, and §11.3.6 for a binding error of status 1."""
        return self._update(now) if self.state is State.REGISTERED else []

    def acknowledged(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        acknowledgement: BindingAck,
        now: float,
    ) -> list[Output]:
        """RFC 6275 §11.7.3."""
        pending = self.binding_update_list
        status = acknowledgement.status
        if status == BindingStatus.SEQUENCE_NUMBER_OUT_OF_WINDOW:
            last = pending.last()
            # The number in it is the home agent's last. If ours is beyond, this answers an
            # older copy of something (the network duplicates), and ours will be accepted.
            if last is None or sequence_greater(last.sequence, acknowledgement.sequence):
                return self.drop(outputs, packet, DropReason.NOT_OUTSTANDING)
            self.counters[f"acknowledged.{int(status)}"] += 1
            self._sequence = acknowledgement.sequence
            pending.forget_outstanding()
            if self.state is State.REGISTERED:
                self._go(Trigger.UPDATE, outputs)
            detail: dict[str, str | int] = {"sequence": acknowledgement.sequence}
            outputs.append(
                Event(EventKind.SEQUENCE_RESYNCHRONISED, self.config.home_address, detail)
            )
            self._send(outputs, now)
            return outputs
        sent = pending.match(acknowledgement.sequence)
        if sent is None:
            return self.drop(outputs, packet, DropReason.NOT_OUTSTANDING)
        pending.settle(acknowledgement.sequence)
        self.counters[f"acknowledged.{int(status)}"] += 1
        if status >= 128:
            self._refused(outputs, sent, status, now)
        elif sent.lifetime_units == 0:
            self._removed(outputs, ChangeReason.DEREGISTERED, now)
        elif acknowledgement.lifetime == 0:
            # Accepted for no time at all: not a binding, and no reason to hurry.
            self._refused(outputs, sent, BindingStatus.REASON_UNSPECIFIED, now)
        else:
            self._accepted(outputs, sent, acknowledgement, now)
        return outputs

    def _accepted(
        self,
        outputs: list[Output],
        sent: SentUpdate,
        acknowledgement: BindingAck,
        now: float,
    ) -> None:
        options = ack_options(acknowledgement)
        ipv4 = self._ipv4.read(sent.ipv4_options, options.ipv4)
        agent = self.home_agents.current
        new = binding_from_ack(self.config, agent, sent, acknowledgement, options, ipv4)
        old = self.binding
        self.binding_update_list.binding = new
        # What else was sent meanwhile says the same, and its acknowledgement still counts.
        self._stop_timers()
        self.home_agents.restart()
        self.out_of_home_agents = False
        refresh_in = new.lifetime * REFRESH_FRACTION
        if new.nat_detected:  # RFC 5555 §4.3
            refresh_in = min(refresh_in, new.nat_refresh_time)
        if options.refresh_advice:
            refresh_in = min(refresh_in, options.refresh_advice)
        self._refresh_at = sent.sent_at + refresh_in
        outputs.append(BindingChanged(old, new, change_reason(old, new)))
        self._go(Trigger.ACCEPTED, outputs)
        if acknowledgement.status == BindingStatus.ACCEPTED_PREFIX_DISCOVERY_NECESSARY:
            self.awaiting_prefixes = True
            outputs.append(Event(EventKind.PREFIX_DISCOVERY_NEEDED, self.config.home_address))
        if self.config.mobile_router and not acknowledgement.mobile_router:
            # RFC 3963 §5.3: "MUST also de-register with the Home Agent that did not support it".
            outputs.append(Event(EventKind.MOBILE_ROUTER_UNSUPPORTED, self.config.home_address))
            self.home_agents.refused()
            outputs += self.deregister(now)
            self._next_agent_after_removal = True
            return
        if self._learn_ipv4(outputs, sent, ipv4):
            outputs += self._update(now)

    def _learn_ipv4(self, outputs: list[Output], sent: SentUpdate, ipv4: IPv4Answer) -> bool:
        """Take note of what was granted in IPv4. True: ask again, now."""
        home_address = self.config.home_address
        if sent.ipv4_options and not ipv4.given:
            # RFC 5555 §2.3.1: "SHOULD NOT include the option in future binding updates".
            self._ipv4.supported = False
            outputs.append(Event(EventKind.IPV4_HOME_ADDRESS_UNSUPPORTED, home_address))
            return False
        for refused in ipv4.refused:
            about: dict[str, str | int] = {
                "status": int(refused.status),
                "address": str(refused.address),
            }
            outputs.append(Event(EventKind.IPV4_HOME_ADDRESS_REFUSED, home_address, about))
        return self._ipv4.learn(ipv4)

    def _refused(self, outputs: list[Output], sent: SentUpdate, status: int, now: float) -> None:
        about: dict[str, str | int] = {"status": int(status), "sequence": sent.sequence}
        home_address = self.config.home_address
        reaction = reaction_to(status, sent, self.config)
        if reaction is Reaction.REMOVED:
            self._removed(outputs, ChangeReason.DEREGISTERED, now)
            return
        if reaction is Reaction.WITHOUT_FORCE:
            self._force_udp = self._last_resort = False
            outputs.append(Event(EventKind.FORCED_UDP_REFUSED, home_address, about))
            outputs += self._update(now)
            return
        outputs.append(Event(EventKind.REGISTRATION_REFUSED, home_address, about))
        others = (Reaction.LATER, Reaction.OTHER_AGENT, Reaction.OTHER_AGENT_OR_NEVER)
        if sent.lifetime_units and reaction in others:
            self.home_agents.refused()
            if self._next_agent(outputs, now):
                return
        if reaction is Reaction.LATER:
            self._timer.pause(now)
            if self.state is State.REGISTERED:
                self._go(Trigger.UPDATE, outputs)
            return
        if reaction in (Reaction.NEVER, Reaction.OTHER_AGENT_OR_NEVER):
            taken = status == BindingStatus.DUPLICATE_ADDRESS_DETECTION_FAILED
            kind = EventKind.HOME_ADDRESS_TAKEN if taken else EventKind.MOBILE_ROUTER_REFUSED
            outputs.append(Event(kind, home_address, about))
            self._go(Trigger.ABANDON, outputs)
        else:
            self._go(Trigger.REFUSED, outputs)
        self._stop()

    def _removed(self, outputs: list[Output], reason: ChangeReason, now: float) -> None:
        old = self.binding
        self.binding_update_list.binding = None
        self._ipv4.forget()
        self._stop()
        if old is not None:
            outputs.append(BindingChanged(old, None, reason))
        if self.care_of_address == self.config.home_address:
            outputs.append(Event(EventKind.RETURNED_HOME, self.config.home_address))
        self._go(Trigger.REMOVED, outputs)
        if self._next_agent_after_removal:
            self._next_agent_after_removal = False
            if self.state is State.IDLE and not self._next_agent(outputs, now):
                self.out_of_home_agents = True

    # --- small things ---

    def drop(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        reason: DropReason,
        detail: str = "",
    ) -> list[Output]:
        self.counters[f"dropped.{reason}"] += 1
        outputs.append(drop_event(packet, self.config.home_address, reason, detail))
        return outputs
