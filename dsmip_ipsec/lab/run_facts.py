"""What a run record tells of its surroundings: kernel, topology, files."""

from __future__ import annotations

import os
import platform
from typing import Any

from dsmip_ipsec.lab import record
from dsmip_ipsec.lab.guest_kernel import KERNEL_KIND_VARIABLE
from dsmip_ipsec.lab.spec import Lab
from dsmip_ipsec.lab.standing import StandingLab


def kernel() -> record.Kernel:
    """The kernel that this process runs on, as whoever started the guest calls it."""
    kind: Any = os.environ.get(KERNEL_KIND_VARIABLE, "host")
    return record.Kernel(kind=kind, release=platform.release())


def topology(lab: Lab) -> record.Topology:
    """The lab's nodes and links."""
    return record.Topology(
        nodes=tuple(
            record.NodeSummary(name=name, role=node.role) for name, node in lab.nodes.items()
        ),
        links=tuple(
            record.LinkSummary(
                name=name,
                ends={node: tuple(map(str, ends)) for node, ends in link.ends.items()},
                delay_ms=link.delay_ms,
            )
            for name, link in lab.links.items()
        ),
    )


def artefacts(standing: StandingLab) -> record.Artefacts:
    """The files that a run has left."""
    out = standing.out
    return record.Artefacts(
        captures=tuple(str(capture.path.relative_to(out)) for capture in standing.captures),
        logs=tuple(str(path.relative_to(out)) for path in sorted((out / "logs").glob("*"))),
    )
