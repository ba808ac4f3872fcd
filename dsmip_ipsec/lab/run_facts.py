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
