"""The home agent's engine: binding updates in, binding acknowledgements and bindings out
(RFC 6275 §9.5, §10.3; RFC 3963 §6; RFC 5555 §4.5, §5.1).

A home address has one of four states, and this is all that moves it::

    state       binding update (valid, authorised)      time, driver
    ---------   -------------------------------------   ---------------------------------
    none        lifetime > 0 -> TENTATIVE               -
                lifetime = 0 -> none, status 133
    TENTATIVE   lifetime > 0 -> TENTATIVE, replaced     address unique -> BOUND, status 0
                lifetime = 0 -> none, status 133        duplicate -> none, status 134
                                                        DAD_ANSWER_TIMEOUT over -> none
    BOUND       lifetime > 0 -> BOUND, status 0         lifetime over -> none
                lifetime = 0 -> BURIED, status 0        prefix of the home link gone -> none
    BURIED      lifetime > 0 -> TENTATIVE               MAX_DELETE_BCE_TIMEOUT over -> none
                lifetime = 0 -> BURIED, status 0

Without duplicate address detection TENTATIVE is passed at once. Status 1 takes the place of 0
where the home prefix's lifetime wants it. A binding update that is refused, whatever the reason,
changes no binding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Address

from dsmip_ipsec.mobility.acknowledgement import (
    acknowledge,
    options_with_binding,
    options_without_binding,
    refresh_request,
)
from dsmip_ipsec.mobility.binding_cache import BindingCacheEntry
from dsmip_ipsec.mobility.binding_update_list import sequence_greater
from dsmip_ipsec.mobility.constants import MAX_DELETE_BCE_TIMEOUT
from dsmip_ipsec.mobility.home_agent_bindings import HomeBindings
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.home_agent_discovery import HomeAgentDiscovery
from dsmip_ipsec.mobility.home_agent_errors import ErrorRate, answer_to
from dsmip_ipsec.mobility.home_agents_list import HomeAgentAdvertisement
from dsmip_ipsec.mobility.home_link import addresses_to_defend
from dsmip_ipsec.mobility.home_link_types import DetectDuplicateAddress
from dsmip_ipsec.mobility.home_prefixes import LinkPrefix
from dsmip_ipsec.mobility.ipv4_home import IPv4Grant
from dsmip_ipsec.mobility.registration import (
    Refusal,
    Registration,
    care_of_address_of,
    check,
    is_routable_unicast,
    options_of,
    other_registration,
)
from dsmip_ipsec.mobility.tentative import Tentative
from dsmip_ipsec.mobility.types import (
    Binding,
    DropReason,
    Event,
    EventKind,
    IcmpPacket,
    MobilityPacket,
    Output,
    drop_event,
)
from dsmip_ipsec.wire.errors import DecodeError, PrefixLengthError
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
    BindingStatus,
    BindingUpdate,
    UnknownMessage,
    decode,
)
from dsmip_ipsec.wire.options import MobilityOption

_ACCEPTED = BindingStatus.ACCEPTED
_ANSWERED = {status.value: f"answered.{status.value}" for status in BindingStatus}


def _zero(bits: int) -> int:
    return 0


class HomeAgent:
    """A home agent without input and output.

    Hand in Mobility Headers with :meth:`handle` and ICMPv6 with :meth:`handle_icmp`, tell it of
    the home link (:meth:`set_prefixes`, :meth:`router_advertisement`), call :meth:`expire` at
    :meth:`next_deadline`, and do what the outputs say, in their order: within one call the
    binding changes before its acknowledgement is sent, so that what the mobile node sends next
    finds it in place.

    ``random_bits(n)`` gives an integer of n random bits. It spreads advertisements in time and
    load over home agents; with its default nothing is spread.

    ``counters`` counts ``received.<message>``, ``dropped.<reason>`` (see :class:`DropReason`)
    and ``answered.<status>``.
    """

    def __init__(self, config: HomeAgentConfig, random_bits: Callable[[int], int] = _zero) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.discovery = HomeAgentDiscovery(config, random_bits)
        self._bindings = HomeBindings(config, self.discovery)
        self.binding_cache = self._bindings.cache
        self.ipv4_pool = self._bindings.ipv4_pool
        self.ipv4_prefix_pool = self._bindings.ipv4_prefix_pool
        self._tentative = Tentative()
        self._error_rate = ErrorRate()

    # --- the driver's side ---

    def handle(self, packet: MobilityPacket, now: float) -> list[Output]:
        """Take a received Mobility Header at time ``now``. Raises nothing, whatever it holds."""
        outputs = self._due(now)
        home_address = packet.home_address_option or packet.source
        # RFC 5555 §5: "the binding update message MUST be protected using ESP". Nothing else
        # that a home agent takes comes without it either.
        if not packet.protected:
            return self._drop(outputs, packet, DropReason.UNPROTECTED)
        if packet.destination != self.config.home_agent_address:
            return self._drop(outputs, packet, DropReason.WRONG_DESTINATION)
        invalid_prefix = False
        try:
            message = decode(packet.message, home_address, packet.destination)
        except PrefixLengthError as error:
            # RFC 5555 §3.1.1: a prefix length of zero "MUST be considered an error". The
            # sender is known, so he is told.
            if not isinstance(error.partial, BindingUpdate):
                return self._malformed(outputs, packet, error, now)
            message = error.partial
            invalid_prefix = True
        except DecodeError as error:
            return self._malformed(outputs, packet, error, now)
        if type(message) is BindingUpdate:
            self.counters["received.binding_update"] += 1
            return self._binding_update(outputs, packet, home_address, message, invalid_prefix, now)
        if type(message) is UnknownMessage:
            return self._unknown_message(outputs, packet, message, now)
        return self._drop(outputs, packet, DropReason.UNEXPECTED_MESSAGE)

    def handle_icmp(self, packet: IcmpPacket, now: float) -> list[Output]:
        """Take a received ICMPv6 message at time ``now``: discovery of home agents and of
        prefixes (RFC 6275 §10.5.1, §10.6.2). Raises nothing, whatever it holds."""
        outputs = self._due(now)
        answer = self.discovery.answer(packet, now)
        if not isinstance(answer, DropReason) and not self._error_rate.allows(packet.source, now):
            answer = DropReason.WRONG_SOURCE
        if isinstance(answer, DropReason):
            self.counters[f"dropped.{answer}"] += 1
            home_address = packet.home_address_option or packet.source
            outputs.append(drop_event(packet, home_address, answer))
            return outputs
        self.counters["answered.icmp"] += 1
        outputs.append(answer)
        return outputs

    def expire(self, now: float) -> list[Output]:
        """Remove the bindings whose lifetime is over at ``now`` (RFC 6275 §10.3.1: MUST be
        deleted), and send the prefix advertisements that are due."""
        outputs: list[Output] = []
        self._tentative.expire(now)
        expired = self._bindings.expire(outputs, now)
        if expired:
            self.counters["expired"] += expired
        return outputs

    def next_deadline(self) -> float | None:
        """When to call :meth:`expire`, None if there is nothing to wait for."""
        deadline = self.binding_cache.next_deadline()
        for other in (
            self._tentative.next_deadline(),
            self.discovery.advertising.next_deadline(),
        ):
            if other is not None and (deadline is None or other < deadline):
                deadline = other
        return deadline

    def duplicate_address_result(
        self, home_address: IPv6Address, duplicate: bool, now: float
    ) -> list[Output]:
        """What came of a :class:`DetectDuplicateAddress`. ``duplicate``: another node has one of
        the addresses. Nothing happens when nobody waits for it any more."""
        outputs = self._due(now)
        registration = self._tentative.pop(home_address)
        subscriber = self.config.subscribers.get(home_address)
        if registration is None or subscriber is None:
            return outputs
        if not self.discovery.prefixes.is_at_home(home_address, now):  # no longer
            return self._refuse(outputs, registration, BindingStatus.NOT_HOME_SUBNET)
        if duplicate:
            outputs.append(Event(EventKind.ADDRESS_IN_USE, home_address))
            return self._refuse(
                outputs, registration, BindingStatus.DUPLICATE_ADDRESS_DETECTION_FAILED
            )
        return self._register(outputs, registration, subscriber, None, now)

    def set_prefixes(
        self,
        prefixes: Iterable[LinkPrefix],
        now: float,
        *,
        managed: bool = False,
        other: bool = False,
    ) -> list[Output]:
        """Put ``prefixes`` in place of the home link's (RFC 6275 §10.6.1: those that this and
        other home agents advertise; ``managed`` and ``other`` are their M and O flags).

        Bindings end with the validity of their prefix (§10.3.1), and mobile nodes will be told
        (§10.6.2).
        """
        outputs = self._due(now)
        change = self.discovery.change(prefixes, managed, other)
        self._bindings.follow_prefixes(outputs, change, now)
        return outputs

    def router_advertisement(self, advertisement: HomeAgentAdvertisement, now: float) -> None:
        """Take note of a home agent on the home link (RFC 6275 §10.5.1)."""
        self.discovery.home_agents.learn(advertisement, now)

    def request_refresh(self, home_address: IPv6Address) -> list[Output]:
        """Ask a mobile node for a binding update (RFC 6275 §9.5.5). Nothing without a binding."""
        binding = self.binding_cache.get(home_address)
        if binding is None:
            return []
        return [refresh_request(self.config, binding)]

    # --- binding updates ---

    def _binding_update(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        home_address: IPv6Address,
        update: BindingUpdate,
        invalid_prefix: bool,
        now: float,
    ) -> list[Output]:
        """RFC 6275 §9.5.1, then §10.3.1 or §10.3.2."""
        options = options_of(update)
        entry = self.binding_cache.entry(home_address)
        old = None if entry is None else entry.binding
        subscriber = self.config.subscribers.get(home_address)
        registration = Registration(packet, home_address, update, options)

        # §9.5.1: unicast routable home address. A subscriber's was looked at by who made him one.
        if subscriber is None and not is_routable_unicast(home_address):
            return self._drop(outputs, packet, DropReason.HOME_ADDRESS_INVALID)
        if not update.home_registration:
            other = other_registration(registration, old)
            if isinstance(other, DropReason):
                return self._drop(outputs, packet, other)
            return self._refuse(outputs, registration, other)
        if options.nonce_indices:
            return self._drop(outputs, packet, DropReason.NONCE_INDICES)
        last = entry.sequence if entry is not None else self._tentative.sequence(home_address)
        if last is not None and not sequence_greater(update.sequence, last):
            return self._refuse(
                outputs,
                registration,
                BindingStatus.SEQUENCE_NUMBER_OUT_OF_WINDOW,
                sequence=last,
            )
        care_of = care_of_address_of(registration)
        if isinstance(care_of, DropReason):
            return self._drop(outputs, packet, care_of)
        if entry is not None:
            # §9.5.1: "valid according to the tests above" stores the number, whatever follows.
            entry.sequence = update.sequence
        if isinstance(care_of, Refusal):
            return self._refuse(outputs, registration, care_of.status)
        registration.care_of_address = care_of

        at_home = self.discovery.prefixes.is_at_home(home_address, now)
        # §10.3.2; RFC 3963 §6.2 for a care-of address that is the home address.
        if subscriber is not None and (
            update.lifetime == 0 or (care_of == home_address and update.mobile_router)
        ):
            return self._deregister(outputs, registration, entry, now)
        status: BindingStatus | None
        if not at_home:
            status = BindingStatus.NOT_HOME_SUBNET
        elif subscriber is None:
            status = BindingStatus.ADMINISTRATIVELY_PROHIBITED
        elif invalid_prefix:
            status = BindingStatus.REASON_UNSPECIFIED
        elif old is None and self._full(home_address):
            status = BindingStatus.INSUFFICIENT_RESOURCES
        else:
            status = check(self.config, registration, subscriber, old)
            if status is None:
                if old is None and self.config.duplicate_address_detection:
                    return self._detect_duplicate(outputs, registration, now)
                return self._register(outputs, registration, subscriber, old, now)
        return self._refuse(outputs, registration, status)

    def _full(self, home_address: IPv6Address) -> bool:
        waiting = len(self._tentative)
        if waiting and self._tentative.sequence(home_address) is not None:
            waiting -= 1  # it has its place
        return len(self.binding_cache) + waiting >= self.config.max_bindings

    def _detect_duplicate(
        self, outputs: list[Output], registration: Registration, now: float
    ) -> list[Output]:
        """RFC 6275 §10.3.1: detection "before returning the Binding Acknowledgement"."""
        home_address = registration.home_address
        if self._tentative.put(registration, now):
            addresses = addresses_to_defend(
                home_address,
                registration.update.link_local,
                self.discovery.prefixes.prefix_length_of(home_address),
            )
            outputs.append(DetectDuplicateAddress(home_address, addresses))
        return outputs

    def _register(
        self,
        outputs: list[Output],
        registration: Registration,
        subscriber: Subscriber,
        old: Binding | None,
        now: float,
    ) -> list[Output]:
        """RFC 6275 §10.3.1 from the point where everything is in order."""
        new, grant, discover = self._bindings.establish(outputs, registration, subscriber, old, now)
        self._refused_ipv4(outputs, registration.home_address, grant)
        self._answer(
            outputs,
            registration,
            BindingStatus.ACCEPTED_PREFIX_DISCOVERY_NECESSARY if discover else _ACCEPTED,
            new.sequence,
            new.lifetime // LIFETIME_UNIT,
            options_with_binding(self.config, new, grant),
            new.key_mobility,
        )
        return outputs

    def _deregister(
        self,
        outputs: list[Output],
        registration: Registration,
        entry: BindingCacheEntry | None,
        now: float,
    ) -> list[Output]:
        """RFC 6275 §10.3.2: removes "all bindings for the mobile node" (RFC 5555 §4.4.2.1)."""
        self._tentative.pop(registration.home_address)
        if entry is None:
            return self._refuse(
                outputs, registration, BindingStatus.NOT_HOME_AGENT_FOR_THIS_MOBILE_NODE
            )
        update = registration.update
        until = now + MAX_DELETE_BCE_TIMEOUT
        self._bindings.bury(outputs, registration.home_address, until)
        key_mobility = update.key_mobility and self.config.key_mobility
        options = options_without_binding(self.config, registration)
        self._answer(outputs, registration, _ACCEPTED, update.sequence, 0, options, key_mobility)
        return outputs

    # --- answers ---

    def _refuse(
        self,
        outputs: list[Output],
        registration: Registration,
        status: BindingStatus,
        *,
        sequence: int | None = None,
    ) -> list[Output]:
        """RFC 5555 §5.1: a refusal goes "to the same address from which the BU was received"."""
        number = registration.update.sequence if sequence is None else sequence
        outputs.append(
            Event(
                EventKind.BINDING_REFUSED,
                registration.home_address,
                {"status": int(status), "sequence": registration.update.sequence},
            )
        )
        options = options_without_binding(self.config, registration)
        self._answer(outputs, registration, status, number, 0, options, False)
        return outputs

    def _answer(
        self,
        outputs: list[Output],
        registration: Registration,
        status: BindingStatus,
        sequence: int,
        units: int,
        options: Sequence[MobilityOption],
        key_mobility: bool,
    ) -> None:
        """Append the binding acknowledgement. The A bit doesn't matter: RFC 6275 §10.3.1."""
        self.counters[_ANSWERED[status]] += 1
        outputs.append(
            acknowledge(self.config, registration, status, sequence, units, options, key_mobility)
        )

    def _refused_ipv4(
        self, outputs: list[Output], home_address: IPv6Address, grant: IPv4Grant
    ) -> None:
        for acknowledgement in grant.acknowledgements:
            if acknowledgement.status >= 128:
                outputs.append(
                    Event(
                        EventKind.IPV4_HOME_ADDRESS_REFUSED,
                        home_address,
                        {
                            "status": int(acknowledgement.status),
                            "address": str(acknowledgement.address),
                        },
                    )
                )

    # --- what isn't a binding update ---

    def _drop(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        reason: DropReason,
        detail: str = "",
    ) -> list[Output]:
        self.counters[f"dropped.{reason}"] += 1
        home_address = packet.home_address_option or packet.source
        outputs.append(drop_event(packet, home_address, reason, detail))
        return outputs

    def _malformed(
        self, outputs: list[Output], packet: MobilityPacket, error: DecodeError, now: float
    ) -> list[Output]:
        """RFC 6275 §9.2."""
        self._drop(outputs, packet, DropReason.MALFORMED, error.message)
        return self._answer_error(outputs, packet, error, now)

    def _unknown_message(
        self, outputs: list[Output], packet: MobilityPacket, message: UnknownMessage, now: float
    ) -> list[Output]:
        """RFC 6275 §9.2: a binding error with status 2, to the source address (§9.3.3)."""
        self._drop(outputs, packet, DropReason.UNKNOWN_MESSAGE, f"message type {message.mh_type}")
        return self._answer_error(outputs, packet, message, now)

    def _answer_error(
        self,
        outputs: list[Output],
        packet: MobilityPacket,
        refused: DecodeError | UnknownMessage,
        now: float,
    ) -> list[Output]:
        answer = answer_to(self.config, packet, refused)
        if answer is not None and self._error_rate.allows(packet.source, now):
            outputs.append(answer)
        return outputs

    def _due(self, now: float) -> list[Output]:
        """What time alone has brought about before something else happens at ``now``."""
        deadline = self.next_deadline()
        if deadline is not None and deadline <= now:
            return self.expire(now)
        return []
