"""How much slower this kernel is than one on bare hardware, and what that does to deadlines.

Deadlines in a lab are about what may take how long on a real machine. A kernel whose every
instruction is translated needs more; by how much is said here, once, when a guest is started, and
told to what runs in it by an environment variable.
"""

from __future__ import annotations

import os

PACE_VARIABLE = "DSMIP_PACE"

# QEMU without KVM: measured in docs/kernel-notes.md.
TRANSLATED = 8.0


def pace() -> float:
    """The factor for this process; 1 where nothing was said."""
    try:
        value = float(os.environ.get(PACE_VARIABLE, "1"))
    except ValueError:
        return 1.0
    return min(max(value, 1.0), 100.0)


def scaled(seconds: float) -> float:
    """A deadline for bare hardware, as it is here."""
    return seconds * pace()


def probe_interval_ms(milliseconds: float) -> float:
    """A flow's interval for bare hardware, as it is here: flows are watched for longer where
    everything is slower, and probes that a kernel can't keep up with measure nothing else."""
    return scaled(milliseconds)
