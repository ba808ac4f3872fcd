"""Many mobile nodes behind one NAT begin at the same moment, as after a power cut."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest
from daemon_lab import LAB, daemon_lab, until

pytestmark = pytest.mark.kernel

COUNT = 12
MANY = (
    LAB.replace('mn = { role = "mobile_node",', f'mn = {{ role = "mobile_node", count = {COUNT},')
    .replace('mn = ["203.0.113.131/25", "2001:db8:100::131/64"]\n', "")
    .replace("[flow]", '[capture]\nlinks = []\n[flow]\nnodes = ["mn1"]')
)


async def test_a_nats_whole_network_attaches_at_once(tmp_path: Path) -> None:
    """charon as it comes serves five of an address at a time, and asks more than three of them for
    a cookie (docs/strongswan-notes.md). The home agent's is held up until all have called twice, so
    that they do come at once."""
    async with daemon_lab(tmp_path, MANY) as lab:
        nodes = [f"mn{number}" for number in range(1, COUNT + 1)]
        charon = lab.processes["charon of ha"].pid

        def called() -> bool:
            logs = (lab.nodes[node].files.log_file.read_text() for node in nodes)
            return all("retransmit 1 of request with message ID 0" in log for log in logs)

        os.kill(charon, signal.SIGSTOP)
        try:
            moves = [asyncio.ensure_future(lab.move("private", node)) for node in nodes]
            await until(called, "all have called twice")
        finally:
            os.kill(charon, signal.SIGCONT)
        await asyncio.gather(*moves)
        bindings = (await lab.observers["ha"].status())["bindings"]
        assert len(bindings) == COUNT
    said = lab.log_of("ha-charon")
    assert len(re.findall(r"IKE_SA .* established between", said)) == COUNT
    assert "MAC mismatched" not in said
    assert "COOKIE" not in said
