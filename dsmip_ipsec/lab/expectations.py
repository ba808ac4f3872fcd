"""Judges a step: what the lab file expects against what was seen. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.lab.record import (
    Binding,
    Expectation,
    Flow,
    NodeState,
    SecurityAssociation,
)
from dsmip_ipsec.lab.spec_models import Expect


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of one step, after it.

    ``care_of_addresses``: the mobile node's in the network that the step brought it to (empty:
    none). ``flows``: of the step's whole window; ``after``: of the time after the step was done.
    ``exchanges``: outcome of an IKE exchange begun at each end, by node ("" when it succeeded).
    ``data_protected``: payload is in ESP, so that there are data SAs to judge.
    """

    mobile_node: NodeState
    home_agent: NodeState
    care_of_addresses: frozenset[IPv4Address | IPv6Address]
    flows: Sequence[Flow]
    after: Sequence[Flow]
    exchanges: dict[str, str]
    rtt_ms: float
    data_protected: bool = True


def judge(expect: Expect, seen: Observation) -> tuple[Expectation, ...]:
    """One expectation for each key that the step sets (one a flow where flows are judged)."""
    found: list[Expectation] = []
    if expect.binding is not None:
        found.append(_binding(expect.binding, seen))
    for name in ("nat_detected", "udp_encapsulation"):
        wanted = getattr(expect, name)
        if wanted is not None:
            found.append(_flag(name, wanted, seen))
    if expect.udp_encapsulation is not None and seen.data_protected:
        found.append(_esp_in_udp(expect.udp_encapsulation, seen))
    if expect.ike_alive is not None:
        found.append(_ike_alive(expect.ike_alive, seen))
    if expect.sad_consistent is not None:
        found.append(_sad_consistent(expect.sad_consistent, seen))
    for name, attribute in (("security_associations", "sas"), ("policies", "policies")):
        count = getattr(expect, name)
        if count is not None:
            found.append(_count(name.replace("_", " "), count, attribute, seen))
    if expect.data is not None:
        found.append(_data(expect.data, seen.after))
    if expect.interruption_max is not None:
        # A limit for bare hardware: what interrupts is the daemons' and charon's own work, too.
        limit = scaled(expect.interruption_max.milliseconds(seen.rtt_ms))
        found += [_interruption(limit, flow) for flow in seen.flows]
    if expect.lost_max is not None:
        found += [_lost(expect.lost_max, flow) for flow in seen.flows]
    return tuple(found)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _ends(seen: Observation) -> tuple[tuple[str, NodeState], tuple[str, NodeState]]:
    return ("mobile node", seen.mobile_node), ("home agent", seen.home_agent)


def _words(bindings: Iterable[Binding]) -> str:
    return ", ".join(str(binding.care_of_address) for binding in bindings) or "none"


def _binding(wanted: bool, seen: Observation) -> Expectation:
    texts = [f"{name}: {_words(state.bindings)}" for name, state in _ends(seen)]
    if not wanted:
        passed = not any(state.bindings for _, state in _ends(seen))
        return Expectation(
            name="binding", expected="none at either end", seen="; ".join(texts), passed=passed
        )
    passed = all(
        len(state.bindings) == 1 and state.bindings[0].care_of_address in seen.care_of_addresses
        for _, state in _ends(seen)
    )
    addresses = " or ".join(sorted(map(str, seen.care_of_addresses)))
    return Expectation(
        name="binding",
        expected=f"care-of address {addresses} at both ends",
        seen="; ".join(texts),
        passed=passed,
    )


def _flag(name: str, wanted: bool, seen: Observation) -> Expectation:
    values = [
        (end, [getattr(binding, name) for binding in state.bindings]) for end, state in _ends(seen)
    ]
    return Expectation(
        name=name.replace("_", " ").replace("nat", "NAT").replace("udp", "UDP"),
        expected=f"{_yes(wanted)} at both ends",
        seen="; ".join(
            f"{end}: {', '.join(map(_yes, flags)) or 'no binding'}" for end, flags in values
        ),
        passed=all(flags == [wanted] for _, flags in values),
    )


def _data_sas(state: NodeState) -> list[SecurityAssociation]:
    return [sa for sa in state.sas if sa.purpose == "data"]


def _esp_in_udp(wanted: bool, seen: Observation) -> Expectation:
    """The kernel's view: every data SA of both ends, not what a binding says about it."""
    found = {
        end: [sa.encapsulation is not None for sa in _data_sas(state)] for end, state in _ends(seen)
    }
    return Expectation(
        name="ESP in UDP",
        expected=f"{_yes(wanted)} for the data SAs of both ends",
        seen="; ".join(
            f"{end}: {', '.join(map(_yes, flags)) or 'no data SA'}" for end, flags in found.items()
        ),
        passed=all(flags and set(flags) == {wanted} for flags in found.values()),
    )


def _ike_alive(wanted: bool, seen: Observation) -> Expectation:
    texts = [f"from {node}: {error or 'answered'}" for node, error in seen.exchanges.items()]
    alive = len(seen.exchanges) == 2 and not any(seen.exchanges.values())
    return Expectation(
        name="IKE exchange",
        expected="answered in both directions" if wanted else "not answered",
        seen="; ".join(texts) or "none was made",
        passed=alive == wanted,
    )


def _sad_consistent(wanted: bool, seen: Observation) -> Expectation:
    mobile, agent = ({_identity(sa) for sa in state.sas} for _, state in _ends(seen))
    differing = sorted(spi for spi, *_ in mobile ^ agent)
    return Expectation(
        name="SADs agree",
        expected="the same SAs at both ends" if wanted else "different SAs",
        seen=f"{len(mobile & agent)} agree"
        + (f", differing: {' '.join(differing)}" * bool(differing)),
        passed=(bool(mobile) and mobile == agent) == wanted,
    )


def _identity(sa: SecurityAssociation) -> tuple[str, str, bool, str, str]:
    """What both ends must have in common; a NAT lies between their outer addresses and ports."""
    outer = sa.mode == "tunnel"
    return (
        sa.spi,
        sa.mode,
        sa.encapsulation is not None,
        "" if outer else str(sa.source),
        "" if outer else str(sa.destination),
    )


def _count(name: str, wanted: int, attribute: str, seen: Observation) -> Expectation:
    counts = [(end, len(getattr(state, attribute))) for end, state in _ends(seen)]
    return Expectation(
        name=name,
        expected=f"{wanted} at each end",
        seen="; ".join(f"{end}: {count}" for end, count in counts),
        passed=all(count == wanted for _, count in counts),
    )


def _label(flow: Flow) -> str:
    return f"{flow.family.replace('ip', 'IP')} {flow.direction}"


def _data(wanted: bool, flows: Sequence[Flow]) -> Expectation:
    texts = [f"{_label(flow)} {flow.received}/{flow.sent}" for flow in flows]
    delivering = [flow.received > 0 for flow in flows]
    return Expectation(
        name="data",
        expected="every flow delivers" if wanted else "no flow delivers",
        seen=", ".join(texts) or "no flow was measured",
        passed=bool(flows) and all(value == wanted for value in delivering),
    )


def _interruption(limit_ms: float, flow: Flow) -> Expectation:
    gap = flow.interruption_ms
    return Expectation(
        name=f"{_label(flow)} interruption",
        expected=f"at most {limit_ms:.0f} ms",
        seen="nothing arrived" if gap is None else f"{gap:.1f} ms",
        passed=gap is not None and gap <= limit_ms,
    )


def _lost(limit: int, flow: Flow) -> Expectation:
    return Expectation(
        name=f"{_label(flow)} loss",
        expected=f"at most {limit} probes",
        seen=f"{flow.lost} of {flow.sent}",
        passed=flow.lost <= limit,
    )
