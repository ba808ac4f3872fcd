"""Sending binding updates: when, from where, to which home agent (RFC 6275 §11.4.1, §11.7.1,
§11.8; RFC 5555 §4.4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address

from dsmip_ipsec.mobility.binding_update import (
    build_update,
)
from dsmip_ipsec.mobility.binding_update_list import (
    BindingUpdateList,
    SentUpdate,
    next_sequence,
)
from dsmip_ipsec.mobility.care_of_selection import CareOfSelection
from dsmip_ipsec.mobility.constants import (
    INITIAL_BINDACK_TIMEOUT,
    MAX_BINDACK_TIMEOUT,
)
from dsmip_ipsec.mobility.discovery import HomeAgentAddresses, HomeAgentList
from dsmip_ipsec.mobility.ipv4_memory import IPv4Memory
from dsmip_ipsec.mobility.mobile_node_config import MobileNodeConfig
from dsmip_ipsec.mobility.mobile_node_states import State, Trigger, transition
from dsmip_ipsec.mobility.retransmission import Retransmission
from dsmip_ipsec.mobility.types import (
    Binding,
    Event,
    EventKind,
    HomeAgentChanged,
    IPAddress,
    Output,
)
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
)


class UpdateSender:
    """What a registration consists of, and the sending half of it.

    The other half, which reads acknowledgements, is
    :class:`~dsmip_ipsec.mobility.mobile_node_registration.Registration`.
    """

    def __init__(self, config: MobileNodeConfig, random_bits: Callable[[int], int]) -> None:
        self.config = config
        self.state = State.DETACHED
        self.binding_update_list = BindingUpdateList()
        self.counters: Counter[str] = Counter()
        self.home_agents = HomeAgentList(
            HomeAgentAddresses(config.home_agent, config.home_agent_ipv4), config.other_home_agents
        )
        self.out_of_home_agents = False
        """True while no home agent that is known answers or accepts."""
        self.awaiting_prefixes = False
        """True from status 1 until mobile prefix discovery is over."""
        self.home_valid_until: float | None = None
        """When the prefix of the home address ends to be valid, None if that isn't known."""
        self._random_bits = random_bits
        # RFC 6275 §11.1: for each destination. Of others than the present home agent.
        self._sequences: dict[IPv6Address, int] = {}
        self._sequence = random_bits(16)
        self._selection = CareOfSelection(ipv4_usable=config.home_agent_ipv4 is not None)
        self._care_of_valid_until: float | None = None
        self._force_udp = config.force_udp
        self._last_resort = False  # UDP over IPv6
        self._next_agent_after_removal = False  # RFC 3963 §5.3
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
        """Where binding updates leave from."""
        return self._selection.current

    # --- sending ---

    def _update(self, now: float) -> list[Output]:
        outputs: list[Output] = []
        self._go(Trigger.UPDATE, outputs)
        self._start(outputs, now)
        return outputs

    def _start(self, outputs: list[Output], now: float, *, not_before: float | None = None) -> None:
        """Begin a new exchange: what was sent before needs no answer any more."""
        self._stop()
        # RFC 6275 §11.8: longer the first time, the home agent has duplicates to look for.
        binding = self.binding
        first = binding is None or binding.home_agent != self.home_agents.current.address
        self._timer.start(
            self.config.first_registration_timeout if first else INITIAL_BINDACK_TIMEOUT
        )
        if not_before is not None and not_before > now:
            self._timer.wait_until(not_before)
            return
        self._send(outputs, now)

    def _retransmit(self, outputs: list[Output], now: float) -> None:
        if self._fall_back(outputs, self._timer.attempts):
            self._start(outputs, now)
            return
        if self._timer.exhausted and self._exhausted(outputs, now):
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

    def _exhausted(self, outputs: list[Output], now: float) -> bool:
        """The back-off has come to its end: another way, another home agent (RFC 6275 §11.7.1)."""
        if self._try_last_resort(outputs):
            self._start(outputs, now)
            return True
        if self.state is State.DEREGISTERING:
            return False
        self.home_agents.silent()
        if self._next_agent(outputs, now):
            self._last_resort = False
            return True
        # All were silent: round again, for as long as it takes.
        went_on = self._next_agent(outputs, now, again=True)
        self.out_of_home_agents = True
        return went_on

    def _lifetime_units(self, now: float) -> int:
        """What to ask for. RFC 6275 §11.7.1: "SHOULD be less than or equal to the remaining valid
        lifetime of the home address and the care-of address", and MUST be above zero."""
        seconds = float(self.config.lifetime)
        for until in (self.home_valid_until, self._care_of_valid_until):
            if until is not None:
                seconds = min(seconds, until - now)
        return max(1, int(seconds) // LIFETIME_UNIT)

    def _send(self, outputs: list[Output], now: float) -> None:
        """Send a binding update, unless MAX_UPDATE_RATE (RFC 6275 §11.8: MUST NOT be exceeded)
        has it wait. Each has a new sequence number, retransmissions too."""
        if self._timer.hold(now):
            return
        care_of = self.care_of_address
        assert care_of is not None  # every state that sends has one
        removes = self.state is State.DEREGISTERING
        over_ipv4 = self._over_ipv4()
        self._sequence = next_sequence(self._sequence)
        update = SentUpdate(
            sequence=self._sequence,
            sent_at=now,
            care_of_address=care_of,
            lifetime_units=0 if removes else self._lifetime_units(now),
            # RFC 5555 §3.1.3: "SHOULD NOT be set when ... configured with an IPv6 care-of address
            # -- with the exception of the scenario mentioned in Section 4.4.1".
            force_udp=not removes and (self._force_udp if over_ipv4 else self._last_resort),
            ipv4_options=() if removes else self._ipv4.options(),
            udp_over_ipv6=self._last_resort and not over_ipv4,
        )
        outputs.append(build_update(self.config, self.home_agents.current, update))
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

    # --- from one home agent to the next (RFC 6275 §11.4.1, §11.7.1) ---

    def _next_agent(self, outputs: list[Output], now: float, *, again: bool = False) -> bool:
        """Go on with another home agent, if there is one left to try."""
        agent = self.home_agents.next(ipv4=self._over_ipv4(), again=again)
        if agent is None:
            self.out_of_home_agents = True
            return False
        self.out_of_home_agents = False
        self._use(agent, outputs)
        if self.state in (State.REGISTERED, State.REFRESHING):
            self._go(Trigger.ATTACH, outputs)
        elif self.state in (State.IDLE, State.REFUSED):
            self._go(Trigger.REGISTER, outputs)
        # "MUST, however, wait at least InitialBindackTimeoutFirstReg seconds".
        last = self._timer.last_sent_at
        wait_until = now if last is None else last + self.config.first_registration_timeout
        self._start(outputs, now, not_before=wait_until)
        return True

    def _use(self, agent: HomeAgentAddresses, outputs: list[Output]) -> None:
        old = self.home_agents.current
        self._sequences[old.address] = self._sequence
        self.home_agents.current = agent
        self._sequence = self._sequences.pop(agent.address, self._random_bits(16))
        self._selection.ipv4_usable = agent.ipv4 is not None
        self._ipv4.supported = True  # RFC 5555 §2.3.1: unanswered options are "that home agent"'s
        self.binding_update_list.forget_outstanding()
        outputs.append(HomeAgentChanged(old.address, agent.address, agent.ipv4))

    def _over_ipv4(self) -> bool:
        return self.care_of_address is not None and self.care_of_address.version == 4

    def _fall_back(self, outputs: list[Output], attempts: int | None = None) -> bool:
        """RFC 5555 §4.4.1: from IPv6 to IPv4. Without ``attempts``, whatever was tried."""
        before = self.care_of_address
        selection = self._selection
        fell = selection.fall_back() if attempts is None else selection.fall_back(attempts)
        if fell:
            about: dict[str, str | int] = {"from": str(before), "to": str(self.care_of_address)}
            outputs.append(Event(EventKind.FAMILY_FALLBACK, self.config.home_address, about))
            if self.state in (State.REGISTERED, State.REFRESHING):
                self._go(Trigger.ATTACH, outputs)
        return fell

    def _try_last_resort(self, outputs: list[Output]) -> bool:
        """RFC 5555 §4.4.1, §4.4.3: from IPv6 to UDP over IPv6."""
        if (
            self._last_resort
            or not self.config.udp_over_ipv6
            or self._over_ipv4()
            or self.care_of_address == self.config.home_address
        ):
            return False
        self._last_resort = True
        outputs.append(Event(EventKind.LAST_RESORT_UDP, self.config.home_address))
        return True

    # --- states ---

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
