"""Judges a step: what the lab file expects against what was seen. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.lab import expected_ends
from dsmip_ipsec.lab.expect_models import Expect
from dsmip_ipsec.lab.pace import scaled
from dsmip_ipsec.lab.record import (
    Binding,
    Expectation,
    Flow,
    NodeState,
    NotApplicable,
    SecurityAssociation,
)
from dsmip_ipsec.wire.ip import IKE_NATT_PORT

Ends = tuple[NodeState, NodeState]
"""Mobile node and home agent."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of one step, after it.

    ``care_of_addresses``: the mobile node's in the network that the step brought it to (empty:
    none). ``flows``: of the step's whole window; ``after``: of the time after the step was done.
    ``exchanges``: outcome of an IKE exchange begun at each end, by node ("" when it succeeded).
    ``before``: the ends before the step, where there was one.
    ``data_protected``: payload is in ESP, so that there are data SAs to judge.
    """

    mobile_node: NodeState
    home_agent: NodeState
    care_of_addresses: frozenset[IPv4Address | IPv6Address]
    flows: Sequence[Flow]
    after: Sequence[Flow]
    exchanges: dict[str, str]
    rtt_ms: float
    before: Ends | None = None
    data_protected: bool = True


def judge(expect: Expect, seen: Observation) -> tuple[Expectation, ...]:
    """One expectation for each key that the step sets (one a flow where flows are judged)."""
    found: list[Expectation] = []
    if expect.binding is not None:
        found.append(_binding(expect.binding, seen))
    if expect.care_of_family is not None:
        found.append(_care_of_family(expect.care_of_family, seen))
    if expect.ipv4_home_address is not None:
        found.append(expected_ends.ipv4_home_address(expect.ipv4_home_address, _ends(seen)))
    if expect.tunnels is not None:
        found.append(expected_ends.tunnels(expect.tunnels, _ends(seen)))
    for name in ("nat_detected", "udp_encapsulation", "k_bit"):
        wanted = getattr(expect, name)
        if wanted is not None:
            found.append(_flag(name, wanted, seen))
    esp_in_udp = expect.esp_in_udp
    if esp_in_udp is None and seen.data_protected:
        esp_in_udp = expect.udp_encapsulation
    if esp_in_udp is not None:
        found.append(_esp_in_udp(esp_in_udp, seen))
    if expect.ike_alive is not None:
        found.append(_ike_alive(expect.ike_alive, seen))
    if expect.sad_consistent is not None:
        found.append(_sad_consistent(expect.sad_consistent, seen))
    for key, name, attribute in (
        ("security_associations", "security associations", "sas"),
        ("policies", "policies", "policies"),
        ("ike_sas", "IKE_SAs", "ike"),
    ):
        count = getattr(expect, key)
        if count is not None:
            found.append(_count(name, count, attribute, seen))
    found += _changes(expect, seen)
    if expect.data is not None:
        found.append(_data(expect.data, seen.after))
    if expect.interruption_max is not None:
        # A limit for bare hardware: what interrupts is the daemons' and charon's own work, too.
        limit = scaled(expect.interruption_max.milliseconds(seen.rtt_ms))
        found += [_interruption(limit, flow) for flow in seen.flows]
    if expect.lost_max is not None:
        found += [_lost(expect.lost_max, flow) for flow in seen.flows]
    if expect.reordered_max is not None:
        found += [_reordered(expect.reordered_max, flow) for flow in seen.flows]
    if expect.delay_max is not None:
        limit = scaled(expect.delay_max.milliseconds(seen.rtt_ms))
        found += [_delay(limit, flow) for flow in seen.flows]
    return tuple(found)


def judge_failure(words: str, said: str) -> Expectation:
    """Whether a step that shall fail did, and with ``words`` in what the daemon said ("": it did
    not fail)."""
    return Expectation(
        name="fails",
        expected=f"'{words}' in the error",
        seen=said or "it succeeded",
        passed=words in said,
    )


def not_yet(expect: Expect) -> tuple[NotApplicable, ...]:
    """What of a step that was just done can only be judged when the lab is finished."""
    if not expect.captured:
        return ()
    return (NotApplicable(name="captured", reason="judged when the lab is finished"),)


def _changes(expect: Expect, seen: Observation) -> list[Expectation]:
    """What a step changed or left."""
    if seen.before is None:
        return []
    found: list[Expectation] = []
    if expect.same_ike_sa is not None:
        old, new = (
            [
                sorted(sa.uniqueid for sa in state.ike if sa.state == "ESTABLISHED")
                for state in states
            ]
            for states in (seen.before, (seen.mobile_node, seen.home_agent))
        )
        same = [bool(a) and a == b for a, b in zip(old, new, strict=True)]
        found.append(
            Expectation(
                name="same IKE_SA",
                expected=f"{_yes(expect.same_ike_sa)} at both ends",
                seen="; ".join(
                    f"{end}: {' '.join(a) or 'none'} → {' '.join(b) or 'none'}"
                    for (end, _), a, b in zip(_ends(seen), old, new, strict=True)
                ),
                passed=all(value == expect.same_ike_sa for value in same),
            )
        )
    for name, wanted, ports in (
        ("signalling port changed", expect.signalling_port_changed, _signalling_ports),
        ("ESP port changed", expect.esp_port_changed, _esp_ports),
    ):
        if wanted is not None:
            was, now = ports(seen.before[1]), ports(seen.home_agent)
            known = bool(was) and bool(now)
            found.append(
                Expectation(
                    name=name,
                    expected=f"{_yes(wanted)}, as the home agent sees it",
                    seen=f"{_numbers(was)} → {_numbers(now)}",
                    passed=known and (was.isdisjoint(now) if wanted else was == now),
                )
            )
    return found


def _numbers(ports: Iterable[int]) -> str:
    return " ".join(map(str, sorted(ports))) or "none"


def _signalling_ports(home_agent: NodeState) -> set[int]:
    return {binding.outer_port for binding in home_agent.bindings if binding.outer_port is not None}


def _esp_ports(home_agent: NodeState) -> set[int]:
    """The mobile node's: that of the two which isn't RFC 3948's own. (Both are, without a NAT.)"""
    found: set[int] = set()
    for sa in _data_sas(home_agent):
        if sa.encapsulation is not None:
            ports = {sa.encapsulation.source_port, sa.encapsulation.destination_port}
            found |= ports - {IKE_NATT_PORT} or ports
    return found


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


def _care_of_family(wanted: str, seen: Observation) -> Expectation:
    versions = [[b.care_of_address.version for b in state.bindings] for _, state in _ends(seen)]
    return Expectation(
        name="family of the care-of address",
        expected=f"{wanted.replace('ip', 'IP')} at both ends",
        seen="; ".join(f"{name}: {_words(state.bindings)}" for name, state in _ends(seen)),
        passed=versions == [[int(wanted[-1])]] * 2,
    )


def _flag(name: str, wanted: bool, seen: Observation) -> Expectation:
    values = [
        (end, [getattr(binding, name) for binding in state.bindings]) for end, state in _ends(seen)
    ]
    return Expectation(
        name=name.replace("_", " ").replace("nat", "NAT").replace("udp", "UDP").replace("k ", "K "),
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


def _reordered(limit: int, flow: Flow) -> Expectation:
    return Expectation(
        name=f"{_label(flow)} reordering",
        expected=f"at most {limit} probes overtaken",
        seen=f"{flow.reordered} of {flow.received}",
        passed=flow.received > 0 and flow.reordered <= limit,
    )


def _delay(limit_ms: float, flow: Flow) -> Expectation:
    longest = flow.delay_ms_max
    return Expectation(
        name=f"{_label(flow)} one-way delay",
        expected=f"at most {limit_ms:.0f} ms",
        seen="nothing arrived" if longest is None else f"{longest:.1f} ms",
        passed=longest is not None and longest <= limit_ms,
    )
