"""How long it took until a lab could begin: the first phases of a run record."""

from __future__ import annotations

import os
import time
from pathlib import Path

from dsmip_ipsec.lab.record import Phase

# proc(5): starttime is the 22nd field, the 20th after the name in parentheses.
_START_TIME = 19


def startup() -> list[Phase]:
    """``boot``, in a guest: from its kernel's first moment to the start of this program.
    ``program``: from there until now, which is mostly Python's imports.

    To be called by a program that does nothing but run a lab, when the lab is to begin.
    """
    stat = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
    ticks = int(stat[stat.rindex(")") + 2 :].split()[_START_TIME])
    started = ticks / os.sysconf("SC_CLK_TCK")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    program = Phase(name="program", duration_s=round(max(0.0, now - started), 3))
    if "DSMIP_GUEST" not in os.environ:
        return [program]
    return [Phase(name="boot", duration_s=round(started, 3)), program]
