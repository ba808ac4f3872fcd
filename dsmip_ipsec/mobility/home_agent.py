"""The home agent's engine: binding updates in, binding acknowledgements and bindings out
(RFC 6275 §9.5, §10.3; RFC 3963 §6; RFC 5555 §4.5, §5.1).

A home address has one of three states in the binding cache, and this is all that moves it::

    state       binding update (valid, authorised)      time
    ---------   -------------------------------------   ---------------------------------
    none        lifetime > 0 -> BOUND, status 0         -
                lifetime = 0 -> none, status 133
    BOUND       lifetime > 0 -> BOUND, status 0         lifetime over -> none
                lifetime = 0 -> BURIED, status 0
    BURIED      lifetime > 0 -> BOUND, status 0         MAX_DELETE_BCE_TIMEOUT over -> none
                lifetime = 0 -> BURIED, status 0

A binding update that is refused, whatever the reason, changes no binding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.mobility.acknowledgement import (
    acknowledge,
    binding_error,
    nat_detection,
    options_without_binding,
    refresh_request,
)
from dsmip_ipsec.mobility.binding_cache import BindingCache, BindingCacheEntry
from dsmip_ipsec.mobility.binding_update_list import sequence_greater
from dsmip_ipsec.mobility.constants import (
    MAX_DELETE_BCE_TIMEOUT,
    MAX_ERROR_RATE,
    REFRESH_TIME_IGNORE,
)
from dsmip_ipsec.mobility.home_agent_config import HomeAgentConfig, Subscriber
from dsmip_ipsec.mobility.ipv4_home import (
    NO_GRANT,
    IPv4Grant,
    IPv4Pool,
    grant_ipv4,
)
from dsmip_ipsec.mobility.registration import (
    Refusal,
    Registration,
    care_of_address_of,
    is_routable_unicast,
    mobile_network_prefixes_of,
    options_of,
)
from dsmip_ipsec.mobility.types import (
    Binding,
    BindingChanged,
    ChangeReason,
    DropReason,
    Event,
    EventKind,
    MobilityPacket,
    Output,
    SendParameterProblem,
    change_reason,
    drop_event,
)
from dsmip_ipsec.wire.errors import DecodeError, ParameterProblem, PrefixLengthError
from dsmip_ipsec.wire.mobility import (
    LIFETIME_UNIT,
    BindingStatus,
    BindingUpdate,
    UnknownMessage,
    decode,
    refusal,
)
from dsmip_ipsec.wire.options import BindingRefreshAdvice, MobilityOption

_ACCEPTED = BindingStatus.ACCEPTED
_ANSWERED = {status.value: f"answered.{status.value}" for status in BindingStatus}


class HomeAgent:
    """A home agent without input and output.

    Hand in packets with :meth:`handle`, call :meth:`expire` at :meth:`next_deadline`, and do what
    the outputs say, in their order: within one call the binding changes before its
    acknowledgement is sent, so that what the mobile node sends next finds it in place.

    ``counters`` counts ``received.<message>``, ``dropped.<reason>`` (see :class:`DropReason`)
    and ``answered.<status>``.
    """

    def __init__(self, config: HomeAgentConfig) -> None:
        self.config = config
        self.binding_cache = BindingCache()
        self.counters: Counter[str] = Counter()
        static = (s.ipv4_home_address for s in config.subscribers.values())
        reserved = {IPv4Address(address.ip) for address in static if address is not None}
        if config.home_agent_ipv4 is not None:
            reserved.add(config.home_agent_ipv4)
        self.ipv4_pool = IPv4Pool(config.ipv4_pool, frozenset(reserved))
        self._max_units = config.max_lifetime // LIFETIME_UNIT
        self._errors_since = 0.0
        self._errors = 0

    # --- the driver's side ---

    def handle(self, packet: MobilityPacket, now: float) -> list[Output]:
        """Take a received Mobility Header at time ``now``. Raises nothing, whatever it holds."""
        outputs: list[Output] = []
        deadline = self.binding_cache.next_deadline()
        if deadline is not None and deadline <= now:
            outputs += self.expire(now)
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

    def expire(self, now: float) -> list[Output]:
        """Remove the bindings whose lifetime is over at ``now`` (RFC 6275 §10.3.1: MUST be
        deleted)."""
        outputs: list[Output] = []
        for binding in self.binding_cache.expire(now):
            self.ipv4_pool.release(binding.home_address)
            self.counters["expired"] += 1
            outputs.append(BindingChanged(binding, None, ChangeReason.EXPIRED))
        return outputs

    def next_deadline(self) -> float | None:
        """When to call :meth:`expire`, None if there is nothing to wait for."""
        return self.binding_cache.next_deadline()

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
            return self._not_home_registration(outputs, registration, old)
        if options.nonce_indices:
            return self._drop(outputs, packet, DropReason.NONCE_INDICES)
        if entry is not None and not sequence_greater(update.sequence, entry.sequence):
            return self._refuse(
                outputs,
                registration,
                BindingStatus.SEQUENCE_NUMBER_OUT_OF_WINDOW,
                sequence=entry.sequence,
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

        if subscriber is None:
            return self._refuse(outputs, registration, self._not_ours(home_address))
        # §10.3.2; RFC 3963 §6.2 for a care-of address that is the home address.
        if update.lifetime == 0 or (care_of == home_address and update.mobile_router):
            return self._deregister(outputs, registration, entry, now)
        status = self._check(registration, subscriber, old, invalid_prefix)
        if status is not None:
            return self._refuse(outputs, registration, status)
        return self._register(outputs, registration, subscriber, old, now)

    def _not_home_registration(
        self, outputs: list[Output], registration: Registration, old: Binding | None
    ) -> list[Output]:
        """H is clear: correspondent or MAP registration, neither of which we offer."""
        update = registration.update
        if update.mobile_router:  # RFC 3963 §6.2
            status = BindingStatus.MOBILE_ROUTER_OPERATION_NOT_PERMITTED
        elif old is not None:  # RFC 6275 §9.5.1
            status = BindingStatus.REGISTRATION_TYPE_CHANGE_DISALLOWED
        elif update.map_registration:  # RFC 5380: no MAP here; existing codes are to be used
            status = BindingStatus.ADMINISTRATIVELY_PROHIBITED
        else:
            # RFC 6275 §9.5.1: without nonces and keys of ours it fails a test -> silence.
            return self._drop(outputs, registration.packet, DropReason.NOT_HOME_REGISTRATION)
        return self._refuse(outputs, registration, status)

    def _not_ours(self, home_address: IPv6Address) -> BindingStatus:
        prefixes = self.config.home_prefixes
        if prefixes and not any(home_address in prefix for prefix in prefixes):
            return BindingStatus.NOT_HOME_SUBNET
        return BindingStatus.ADMINISTRATIVELY_PROHIBITED

    def _check(
        self,
        registration: Registration,
        subscriber: Subscriber,
        old: Binding | None,
        invalid_prefix: bool,
    ) -> BindingStatus | None:
        """The status to refuse a registration with, or None."""
        update = registration.update
        config = self.config
        if invalid_prefix:
            return BindingStatus.REASON_UNSPECIFIED
        if old is None and len(self.binding_cache) >= config.max_bindings:
            return BindingStatus.INSUFFICIENT_RESOURCES
        if registration.care_of_address == registration.home_address:
            return BindingStatus.INVALID_CARE_OF_ADDRESS
        if update.force_udp:
            # RFC 5555 §4.5: "the home agent needs to determine whether it accepts forcing".
            ipv6 = registration.care_of_address.version == 6
            if not (config.accept_force_udp_ipv6 if ipv6 else config.accept_force_udp):
                return BindingStatus.CANNOT_FORCE_UDP_ENCAPSULATION
        if old is not None and old.mobile_router is not update.mobile_router:  # RFC 3963 §6.2
            return BindingStatus.REGISTRATION_TYPE_CHANGE_DISALLOWED
        if update.mobile_router:
            prefixes = mobile_network_prefixes_of(registration, subscriber)
            if isinstance(prefixes, BindingStatus):
                return prefixes
            registration.mobile_network_prefixes = prefixes
        return None

    def _register(
        self,
        outputs: list[Output],
        registration: Registration,
        subscriber: Subscriber,
        old: Binding | None,
        now: float,
    ) -> list[Output]:
        """RFC 6275 §10.3.1 from the point where everything is in order."""
        update = registration.update
        config = self.config
        home_address = registration.home_address
        outer = registration.packet.outer
        care_of = registration.care_of_address
        requests = registration.options.ipv4_home_addresses
        grant = (
            grant_ipv4(requests, home_address, subscriber, self.ipv4_pool) if requests else NO_GRANT
        )
        units = min(update.lifetime, self._max_units)
        if grant.leased:  # RFC 5555 §2.5
            units = min(units, config.ipv4_lease_time // LIFETIME_UNIT)
        else:
            self.ipv4_pool.release(home_address)
        # RFC 5555 §4.2: the outer source against the care-of address in the update.
        nat = outer is not None and outer.address != care_of
        forced = outer is not None and (
            update.force_udp or (config.force_udp and care_of.version == 4)
        )
        key_mobility = update.key_mobility and config.key_mobility
        if old is not None:
            # Equal objects are kept: it saves memory, and makes later comparisons short.
            care_of = old.care_of_address if old.care_of_address == care_of else care_of
            outer = old.outer if old.outer == outer else outer
        new = Binding(
            home_address,
            config.home_agent_address,
            care_of,
            update.sequence,
            units * LIFETIME_UNIT,
            now,
            now + units * LIFETIME_UNIT,
            config.home_agent_ipv4,
            grant.home_address,
            grant.prefixes,
            registration.mobile_network_prefixes,
            outer,
            nat,
            nat or forced,
            forced,
            key_mobility,
            update.mobile_router,
            config.nat_refresh_time if nat else REFRESH_TIME_IGNORE,
        )
        self.binding_cache.put(new)
        outputs.append(BindingChanged(old, new, change_reason(old, new)))
        self._refused_ipv4(outputs, home_address, grant)
        options: list[MobilityOption] = list(grant.acknowledgements)
        if outer is not None:
            options.append(nat_detection(config, nat, forced))
        advice = config.refresh_advice // LIFETIME_UNIT
        if 0 < advice < units:  # §10.3.1: MUST be less than the lifetime
            options.append(BindingRefreshAdvice(advice))
        self._answer(
            outputs, registration, _ACCEPTED, update.sequence, units, options, key_mobility
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
        if entry is None:
            return self._refuse(
                outputs, registration, BindingStatus.NOT_HOME_AGENT_FOR_THIS_MOBILE_NODE
            )
        update = registration.update
        # A tombstone again: the acknowledgement was lost, the mobile node has asked once more.
        old = self.binding_cache.bury(registration.home_address, now + MAX_DELETE_BCE_TIMEOUT)
        if old is not None:
            self.ipv4_pool.release(registration.home_address)
            outputs.append(BindingChanged(old, None, ChangeReason.DEREGISTERED))
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
        answer = refusal(error, packet.home_address_option)
        if isinstance(answer, ParameterProblem) and self._may_answer_error(packet, now):
            outputs.append(SendParameterProblem(packet, answer.code, answer.pointer))
        return outputs

    def _unknown_message(
        self, outputs: list[Output], packet: MobilityPacket, message: UnknownMessage, now: float
    ) -> list[Output]:
        """RFC 6275 §9.2: a binding error with status 2, to the source address (§9.3.3)."""
        self._drop(outputs, packet, DropReason.UNKNOWN_MESSAGE, f"message type {message.mh_type}")
        answer = refusal(message, packet.home_address_option)
        if answer is None or isinstance(answer, ParameterProblem):
            return outputs
        if not self._may_answer_error(packet, now):
            return outputs
        outputs.append(binding_error(self.config, answer, packet.source, packet.outer))
        return outputs

    def _may_answer_error(self, packet: MobilityPacket, now: float) -> bool:
        if not is_routable_unicast(packet.source):
            return False
        if now - self._errors_since >= 1.0:
            self._errors_since = now
            self._errors = 0
        self._errors += 1
        return self._errors <= MAX_ERROR_RATE
