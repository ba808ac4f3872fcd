"""What a lab needs for each of its mobile nodes: a guest's memory, and time. Pure.

A mobile node is a namespace, a charon and a daemon: 16 MB and, in User-Mode Linux, two seconds of
its one CPU until both are ready (docs/kernel-notes.md).
"""

from __future__ import annotations

from .spec_models import Lab

_MEMORY_MB = 1024
_NODE_MEMORY_MB = 24
_RUN_S = 120.0
_RUN_NODE_S = 20.0
_STEP_S = 25.0
_STEP_NODE_S = 3.0
_READY_S = 20.0
_READY_NODE_S = 5.0
_SETTLE_NODE_S = 0.5


def _further(nodes: int) -> int:
    """Those beyond the first, which the constants above have room for."""
    return max(0, nodes - 1)


def memory_mb(lab: Lab) -> int:
    """Of the guest that the lab runs in."""
    return _MEMORY_MB + _NODE_MEMORY_MB * _further(len(lab.mobile_nodes()))


def run_s(lab: Lab) -> float:
    """A deadline for all of a run. (Others below here are for bare hardware: pace.py.)"""
    return _RUN_S + _RUN_NODE_S * _further(len(lab.mobile_nodes()))


def step_s(nodes: int) -> float:
    """A deadline for a step that so many mobile nodes take: a user hears of a failure soon."""
    return _STEP_S + _STEP_NODE_S * _further(nodes)


def ready_s(nodes: int) -> float:
    """By when a process is ready that started together with those of so many mobile nodes."""
    return _READY_S + _READY_NODE_S * _further(nodes)


def settle_s(within_s: float, nodes: int) -> float:
    """``within_s``, which is one mobile node's time, for so many: their states are read in turn."""
    return within_s + _SETTLE_NODE_S * _further(nodes)
