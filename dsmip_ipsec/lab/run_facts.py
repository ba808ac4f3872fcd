"""What a run record tells of its surroundings, and how counters grew."""

from __future__ import annotations

import os
import platform
from typing import Any

from dsmip_ipsec.lab import record

KERNEL_KIND_VARIABLE = "DSMIP_KERNEL_KIND"


def kernel() -> record.Kernel:
    """The kernel that this process runs on, as whoever started the guest calls it."""
    kind: Any = os.environ.get(KERNEL_KIND_VARIABLE, "host")
    return record.Kernel(kind=kind, release=platform.release())


def growth(
    before: dict[str, record.Counters], after: dict[str, record.Counters]
) -> dict[str, record.Counters]:
    """By how much each node's counters grew."""

    def grown(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
        return {
            name: count - old.get(name, 0)
            for name, count in new.items()
            if count != old.get(name, 0)
        }

    return {
        name: record.Counters(
            engine=grown(before[name].engine, after[name].engine),
            xfrm=grown(before[name].xfrm, after[name].xfrm),
        )
        for name in after
    }
