"""The mobile node's engine: care-of addresses in, binding updates and bindings out
(RFC 6275 §11.7, §11.8; RFC 3963 §5; RFC 5555 §4.3, §4.4, §5.1).

Its states and transitions are the table in :mod:`dsmip_ipsec.mobility.mobile_node_states`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address

from dsmip_ipsec.errors import MobilityError
from dsmip_ipsec.mobility.binding_update import (
    ack_options,
    binding_from_ack,
    build_update,
)
from dsmip_ipsec.mobility.binding_update_list import (
    BindingUpdateList,
    SentUpdate,
    next_sequence,
    sequence_greater,
)
from dsmip_ipsec.mobility.care_of_selection import CareOfSelection
from dsmip_ipsec.mobility.constants import (
    INITIAL_BINDACK_TIMEOUT,
    MAX_BINDACK_TIMEOUT,
    REFRESH_FRACTION,
)
from dsmip_ipsec.mobility.ipv4_memory import IPv4Answer, IPv4Memory
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State, Trigger, transition
from dsmip_ipsec.mobility.retransmission import Retransmission
from dsmip_ipsec.mobility.types import (
    Binding,
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
from dsmip_ipsec.wire.errors import DecodeError
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
    BindingAck,
    BindingRefreshRequest,
    BindingStatus,
    decode,
)

# Refusals that may pass: the binding update is sent again, slowly.
_PASSING = frozenset((BindingStatus.REASON_UNSPECIFIED, BindingStatus.INSUFFICIENT_RESOURCES))


class MobileNode:
    """A mobile node without input and output, for one home address.

    Tell it where it is with :meth:`attach` and :meth:`detach`, hand in packets with
    :meth:`handle`, call :meth:`tick` at :meth:`next_deadline`, and do what the outputs say.
    ``random_bits(n)`` gives an integer of ``n`` random bits.

    A binding changes only when the home agent has acknowledged (or its lifetime is over): until
    then the old care-of address stays in force, and only the binding updates themselves leave
    from the new one (RFC 5555 §5.1).

    ``counters`` counts ``sent.binding_update``, ``retransmitted``, ``acknowledged.<status>`` and
    ``dropped.<reason>`` (see :class:`DropReason`).
    """

    def __init__(self, config: MobileNodeConfig, random_bits: Callable[[int], int]) -> None:
        self.config = config
        self.state = State.DETACHED
        self.binding_update_list = BindingUpdateList()
        self.counters: Counter[str] = Counter()
        self._sequence = random_bits(16)
        self._selection = CareOfSelection(ipv4_usable=config.home_agent_ipv4 is not None)
        self._force_udp = config.force_udp
        self._ipv4 = IPv4Memory(config)
        self._timer = Retransmission()
        self._refresh_at: float | None = None
        # The home agent may hold a binding until then, whether we know of it or not.
        self._remembered_until = 0.0

    # --- what is known ---

    @property
    def binding(self) -> Binding | None:
        """The binding in force, None without one."""
        return self.binding_update_list.binding

    @property
    def care_of_address(self) -> IPAddress | None:
        """Where binding updates leave from: the newest care-of address, bound or not yet."""
        return self._selection.current

    # --- from below: the network ---

    def attach(
        self,
        care_of_address: IPAddress,
        now: float,
        *,
        ipv4_alternative: IPv4Address | None = None,
        administrative_domain: str = "",
    ) -> list[Output]:
        """A new point of attachment: register it.

        In a dual-stack network, ``care_of_address`` is the IPv6 one and ``ipv4_alternative`` is
        used when binding updates from it go unanswered (RFC 5555 §4.4.1); once that has
        happened, IPv4 is used first until ``administrative_domain`` is known to have changed.

        Raises :class:`MobilityError` for an address that can't be a care-of address, or an IPv4
        one when the home agent's IPv4 address isn't known. Nothing has changed then.
        """
        self._selection.attach(care_of_address, ipv4_alternative, administrative_domain)
        self._force_udp = self.config.force_udp
        outputs: list[Output] = []
        self._go(Trigger.ATTACH, outputs)
        self._start(outputs, now)
        return outputs

    def detach(self, now: float) -> list[Output]:
        """The care-of address is gone and there is no other yet. The binding stays until its
        lifetime is over."""
        outputs: list[Output] = []
        self._go(Trigger.DETACH, outputs)
        self._selection.leave()
        self._stop()
        return outputs

    def report_packet_loss(self, now: float) -> list[Output]:
        """Upper layers see persistent loss: ask for UDP encapsulation (RFC 5555 §4.4.1, F).

        Does nothing where IP-in-IP in IPv4 isn't what is in use.
        """
        binding = self.binding
        if (
            binding is None
            or self.state not in (State.REGISTERED, State.REFRESHING)
            or binding.care_of_address.version == 6
            or binding.udp_encapsulation
        ):
            return []
        self._force_udp = True
        return self._update(now)

    # --- from above: the user ---

    def refresh(self, now: float) -> list[Output]:
        """Send a binding update now. Nothing if one is out already.

        Raises :class:`MobilityError` when there is no registration to refresh.
        """
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
        """Remove all bindings (RFC 5555 §4.4.2.1). ``at_home``: from the home link, over IPv6
        (RFC 6275 §11.5.5), whatever was attached before.

        Nothing when there is no binding to remove. Raises :class:`MobilityError` while detached
        (except at home).
        """
        if self.state is State.IDLE or (self.state is State.DEREGISTERING and not at_home):
            return []
        if self.state is State.DETACHED and not at_home:
            raise MobilityError(
                "there is no network to deregister from",
                hint="attach first; without that, the binding ends with its lifetime",
            )
        if at_home:
            self._selection.leave(self.config.home_address)
        outputs: list[Output] = []
        self._go(Trigger.DEREGISTER, outputs)
        # Even a node that has forgotten (or never knew of) a binding asks long enough.
        self._remembered_until = max(self._remembered_until, now + 2 * MAX_BINDACK_TIMEOUT)
        self._start(outputs, now)
        return outputs

    # --- time ---

    def tick(self, now: float) -> list[Output]:
        """Do what is due at ``now``: retransmissions, refreshes, NAT keepalives, expiry."""
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
        if self.state is State.DEREGISTERING and self._remembered_until <= now:
            # Nobody answers, but no home agent can have a binding of ours any more.
            self._removed(outputs, ChangeReason.EXPIRED)
        if self._timer.is_due(now):
            if self._timer.held_back:
                self._send(outputs, now)
            else:
                self._retransmit(outputs, now)
        if (
            self.state is State.REGISTERED
            and self._refresh_at is not None
            and self._refresh_at <= now
        ):
            outputs += self._update(now)
        return outputs

    def next_deadline(self) -> float | None:
        """When to call :meth:`tick`, None if there is nothing to wait for."""
        deadlines = [] if self._timer.due_at is None else [self._timer.due_at]
        if self.state is State.REGISTERED and self._refresh_at is not None:
            deadlines.append(self._refresh_at)
        if self.state is State.DEREGISTERING:
            deadlines.append(self._remembered_until)
        if self.binding is not None:
            deadlines.append(self.binding.expires_at)
        return min(deadlines, default=None)

    # --- packets ---

    def handle(self, packet: MobilityPacket, now: float) -> list[Output]:
        """Take a received Mobility Header at time ``now``. Raises nothing, whatever it holds."""
        outputs: list[Output] = []
        config = self.config
        if not packet.protected:  # RFC 6275 §11.7.3
            return self._drop(outputs, packet, DropReason.UNPROTECTED)
        if packet.source != config.home_agent:
            return self._drop(outputs, packet, DropReason.WRONG_SOURCE)
        if packet.destination != config.home_address and packet.destination != self.care_of_address:
            return self._drop(outputs, packet, DropReason.WRONG_DESTINATION)
        try:
            message = decode(packet.message, packet.source, config.home_address)
        except DecodeError as error:
            # RFC 6275 §9.2's answers are for whoever serves strangers; this is our home agent.
            return self._drop(outputs, packet, DropReason.MALFORMED, error.message)
        if isinstance(message, BindingAck):
            return self._acknowledged(outputs, packet, message, now)
        if isinstance(message, BindingRefreshRequest) and self.state is State.REGISTERED:
            return self._update(now)  # RFC 6275 §11.7.4
        return self._drop(outputs, packet, DropReason.UNEXPECTED_MESSAGE)

    def _acknowledged(
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
                return self._drop(outputs, packet, DropReason.NOT_OUTSTANDING)
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
            return self._drop(outputs, packet, DropReason.NOT_OUTSTANDING)
        pending.settle(acknowledgement.sequence)
        self.counters[f"acknowledged.{int(status)}"] += 1
        if status >= 128:
            self._refused(outputs, sent, status, now)
        elif sent.lifetime_units == 0:
            self._removed(outputs, ChangeReason.DEREGISTERED)
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
        new = binding_from_ack(self.config, sent, acknowledgement, options, ipv4)
        old = self.binding
        self.binding_update_list.binding = new
        # What else was sent meanwhile says the same, and its acknowledgement still counts.
        self._stop_timers()
        refresh_in = new.lifetime * REFRESH_FRACTION
        if new.nat_detected:  # RFC 5555 §4.3
            refresh_in = min(refresh_in, new.nat_refresh_time)
        if options.refresh_advice:
            refresh_in = min(refresh_in, options.refresh_advice)
        self._refresh_at = sent.sent_at + refresh_in
        outputs.append(BindingChanged(old, new, change_reason(old, new)))
        self._go(Trigger.ACCEPTED, outputs)
        if acknowledgement.status == BindingStatus.ACCEPTED_PREFIX_DISCOVERY_NECESSARY:
            outputs.append(Event(EventKind.PREFIX_DISCOVERY_NEEDED, self.config.home_address))
        if self.config.mobile_router and not acknowledgement.mobile_router:
            # RFC 3963 §5.3: "MUST also de-register with the Home Agent that did not support it".
            outputs.append(Event(EventKind.MOBILE_ROUTER_UNSUPPORTED, self.config.home_address))
            outputs += self.deregister(now)
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
        if sent.lifetime_units == 0 and status == BindingStatus.NOT_HOME_AGENT_FOR_THIS_MOBILE_NODE:
            self._removed(outputs, ChangeReason.DEREGISTERED)
            return
        if status == BindingStatus.CANNOT_FORCE_UDP_ENCAPSULATION and sent.force_udp:
            # RFC 5555 §4.4.2: "MAY resend the binding update without setting the F flag".
            self._force_udp = False
            outputs.append(Event(EventKind.FORCED_UDP_REFUSED, self.config.home_address, about))
            outputs += self._update(now)
            return
        outputs.append(Event(EventKind.REGISTRATION_REFUSED, self.config.home_address, about))
        if status in _PASSING:
            self._timer.pause(now)
            if self.state is State.REGISTERED:
                self._go(Trigger.UPDATE, outputs)
            return
        self._go(Trigger.REFUSED, outputs)
        self._stop()

    def _removed(self, outputs: list[Output], reason: ChangeReason) -> None:
        old = self.binding
        self.binding_update_list.binding = None
        self._ipv4.forget()
        self._stop()
        if old is not None:
            outputs.append(BindingChanged(old, None, reason))
        self._go(Trigger.REMOVED, outputs)

    # --- sending ---

    def _update(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        self._go(Trigger.UPDATE, outputs)
        self._start(outputs, now)
        return outputs

    def _start(self, outputs: list[Output], now: float) -> None:
        """Begin a new exchange: what was sent before needs no answer any more."""
        self._stop()
        # RFC 6275 §11.8: longer the first time, the home agent has duplicates to look for.
        first = self.binding is None
        self._timer.start(
            self.config.first_registration_timeout if first else INITIAL_BINDACK_TIMEOUT
        )
        self._send(outputs, now)

    def _retransmit(self, outputs: list[Output], now: float) -> None:
        unanswered = self.care_of_address
        if self._selection.fall_back(self._timer.attempts):
            about: dict[str, str | int] = {
                "from": str(unanswered),
                "to": str(self.care_of_address),
            }
            outputs.append(Event(EventKind.FAMILY_FALLBACK, self.config.home_address, about))
            if self.state is State.REFRESHING:
                self._go(Trigger.ATTACH, outputs)
            self._start(outputs, now)
            return
        self._timer.back_off()
        self.counters["retransmitted"] += 1
        outputs.append(
            Event(
                EventKind.RETRANSMITTED,
                self.config.home_address,
                {
                    "attempt": self._timer.attempts + 1,
                    "timeout_ms": int(self._timer.timeout * 1000),
                },
            )
        )
        self._send(outputs, now)

    def _send(self, outputs: list[Output], now: float) -> None:
        """Send a binding update, unless MAX_UPDATE_RATE (RFC 6275 §11.8: MUST NOT be exceeded)
        has it wait. Each has a new sequence number, retransmissions too."""
        if self._timer.hold(now):
            return
        care_of = self.care_of_address
        assert care_of is not None  # every state that sends has one
        removes = self.state is State.DEREGISTERING
        self._sequence = next_sequence(self._sequence)
        update = SentUpdate(
            sequence=self._sequence,
            sent_at=now,
            care_of_address=care_of,
            lifetime_units=0 if removes else self.config.lifetime // LIFETIME_UNIT,
            # RFC 5555 §3.1.3: "SHOULD NOT be set when ... configured with an IPv6 care-of address".
            force_udp=self._force_udp and care_of.version == 4 and not removes,
            ipv4_options=() if removes else self._ipv4.options(),
        )
        outputs.append(build_update(self.config, update))
        self.binding_update_list.sent(update)
        if not removes:
            # The update may take its time on the way: the home agent counts from its arrival.
            self._remembered_until = now + self.config.lifetime + MAX_BINDACK_TIMEOUT
        self.counters["sent.binding_update"] += 1
        self._timer.sent(now)

    def _stop_timers(self) -> None:
        self._timer.stop()
        self._refresh_at = None

    def _stop(self) -> None:
        self._stop_timers()
        self.binding_update_list.forget_outstanding()

    # --- small things ---

    def _go(self, trigger: Trigger, outputs: list[Output]) -> None:
        old = self.state
        self.state = transition(old, trigger)
        if self.state is not old:
            about: dict[str, str | int] = {
                "from": str(old),
                "to": str(self.state),
                "trigger": str(trigger),
            }
            outputs.append(Event(EventKind.STATE_CHANGED, self.config.home_address, about))

    def _drop(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        reason: DropReason,
        detail: str = "",
    ) -> list[Output]:
        self.counters[f"dropped.{reason}"] += 1
        outputs.append(drop_event(packet, self.config.home_address, reason, detail))
        return outputs
