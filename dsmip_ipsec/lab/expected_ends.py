"""Judges what both ends of a mobile node's binding have. Pure functions.

``Ends``: (what the end is called, what it knows), of the mobile node and of its home agent.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsmip_ipsec.lab.record import Expectation, NodeState, Tunnel

Ends = Sequence[tuple[str, NodeState]]


def ipv4_home_address(wanted: bool, ends: Ends) -> Expectation:
    """Whether the binding has one, the same at both ends."""
    found = [[binding.ipv4_home_address for binding in state.bindings] for _, state in ends]
    held = all(len(of_end) == 1 and (of_end[0] is not None) == wanted for of_end in found)
    return Expectation(
        name="IPv4 home address",
        expected="one, at both ends" if wanted else "none, at either end",
        seen="; ".join(
            f"{name}: {', '.join(str(address or 'none') for address in of_end) or 'no binding'}"
            for (name, _), of_end in zip(ends, found, strict=True)
        ),
        passed=held and found[0] == found[1],
    )


def tunnels(wanted: int, ends: Ends) -> Expectation:
    """How many each end has, and that they are those of its binding and of the other end."""
    passed = all(len(state.tunnels) == wanted for _, state in ends) and all(
        _of_binding(tunnel, mobile_node=index == 0, state=state)
        for index, (_, state) in enumerate(ends)
        for tunnel in state.tunnels
    )
    here, there = ({(tunnel.local, tunnel.remote) for tunnel in state.tunnels} for _, state in ends)
    return Expectation(
        name="tunnels",
        expected=f"{wanted} at each end, to the other end" if wanted else "none at either end",
        seen="; ".join(
            f"{name}: {', '.join(map(_words, state.tunnels)) or 'none'}" for name, state in ends
        ),
        passed=passed and here == {(remote, local) for local, remote in there},
    )


def _of_binding(tunnel: Tunnel, *, mobile_node: bool, state: NodeState) -> bool:
    """No NAT is on the way of a tunnel that isn't in UDP: it leads to the care-of address."""
    end = tunnel.local if mobile_node else tunnel.remote
    return end in {binding.care_of_address for binding in state.bindings}


def _words(tunnel: Tunnel) -> str:
    return f"{tunnel.local} - {tunnel.remote}"
