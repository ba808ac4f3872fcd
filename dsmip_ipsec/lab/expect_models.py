"""The models of what a lab file expects after a step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from .spec_types import LinkName, NodeName, NotNegative, Table, as_tuple


class Limit(Table):
    """A time of ``rtts`` round trips (mobile node to home agent) plus ``ms`` milliseconds."""

    rtts: NotNegative = 0.0
    ms: NotNegative = 0.0

    def milliseconds(self, rtt_ms: float) -> float:
        """The limit in milliseconds where a round trip takes ``rtt_ms``."""
        return self.rtts * rtt_ms + self.ms


class Captured(Table):
    """Packets in the capture at ``node``'s end of ``link``, of the time from the step's start to
    its end, which match ``filter``, a display filter of tshark's (with the keys of all SAs): at
    least ``min`` and at most ``max``. One with neither must be there."""

    node: NodeName
    link: LinkName
    filter: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.max is not None and self.least > self.max:
            raise ValueError("should not have a 'min' above its 'max'")
        return self

    def __str__(self) -> str:
        return f"{self.words} of '{self.filter}' at {self.node} on {self.link}"

    @property
    def words(self) -> str:
        """How many there must be."""
        if self.max is None:
            return f"at least {self.least}"
        return f"{self.least}" if self.least == self.max else f"{self.least} to {self.max}"

    @property
    def least(self) -> int:
        """``min``, or what is meant without it."""
        if self.min is not None:
            return self.min
        return 1 if self.max is None else 0


class Expect(Table):
    """What must hold after a step. A key that is absent is not judged.

    ``binding``: home agent and mobile node hold a binding for the care-of address of the network
    that the node is in (``false``: neither holds any). ``care_of_family``: of that care-of address,
    where a network has both. ``ipv4_home_address``: both ends have the same one bound (``false``:
    none). ``nat_detected``, ``udp_encapsulation``: of that binding, and the latter of ESP, too.
    ``k_bit``: of that binding, as acknowledged (RFC 6275 §6.1.8). ``esp_in_udp``: of ESP alone.
    ``ike_alive``: an exchange succeeds in each direction. ``sad_consistent``: both ends hold the
    same SAs. ``security_associations``, ``policies``, ``ike_sas``: how many of ours each end holds
    (the home agent: for this mobile node). ``tunnels``: the kernel's, for payload without IPsec, of
    which each end has so many, and the same ones; payload in UDP needs none. ``data``: every flow
    delivers (``false``: none does). ``interruption_max``: of each flow. ``lost_max``: probes of
    each flow. ``same_ike_sa``: each end has the IKE_SA that it had before the step.
    ``reordered_max``: probes of each flow that a later one overtook (RFC 4737). ``delay_max``: of
    any probe that arrived, one way. ``captured``: packets that are in captures.
    ``signalling_port_changed``, ``esp_port_changed``: whether the home agent sees the mobile node's
    UDP port of DSMIPv6, or of its data SAs, changed by the step.
    """

    binding: bool | None = None
    care_of_family: Literal["ipv4", "ipv6"] | None = None
    ipv4_home_address: bool | None = None
    nat_detected: bool | None = None
    k_bit: bool | None = None
    udp_encapsulation: bool | None = None
    esp_in_udp: bool | None = None
    ike_alive: bool | None = None
    sad_consistent: bool | None = None
    security_associations: Annotated[int, Field(ge=0)] | None = None
    policies: Annotated[int, Field(ge=0)] | None = None
    ike_sas: Annotated[int, Field(ge=0)] | None = None
    tunnels: Annotated[int, Field(ge=0)] | None = None
    data: bool | None = None
    interruption_max: Limit | None = None
    lost_max: Annotated[int, Field(ge=0)] | None = None
    reordered_max: Annotated[int, Field(ge=0)] | None = None
    delay_max: Limit | None = None
    same_ike_sa: bool | None = None
    signalling_port_changed: bool | None = None
    esp_port_changed: bool | None = None
    captured: Annotated[tuple[Captured, ...] | None, BeforeValidator(as_tuple)] = None


OF_FLOWS = ("data", "interruption_max", "lost_max", "reordered_max", "delay_max")
"""The keys of :class:`Expect` that are about the probe flows."""
