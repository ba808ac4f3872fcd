"""The mobility modes of RFC 5555 §5.1 with real charons: after each move IKE exchanges work from
both ends, both SADs and both charons agree, and data flows in both families."""

from __future__ import annotations

from pathlib import Path

import pytest
from mobility_lab import MODES, NAT, PUBLIC, mobility_lab, until

pytestmark = pytest.mark.kernel


@pytest.mark.rfc("5555-5.1-3", "5555-5.1-4", "5555-5.1-5", "5555-5.1-6")
@pytest.mark.parametrize("mode", MODES)
async def test_moves(tmp_path: Path, mode: str) -> None:
    """Behind the NAT, to the public network, back, and another port of the same NAT."""
    async with mobility_lab(tmp_path / "out", mode) as lab:
        for network in ("visited-a", "visited-b", "visited-a"):
            await lab.move(network)
            await lab.placed()
            await lab.data_flows()
            await lab.exchanges()
            await lab.data_flows()
            await lab.agree()
            await lab.placed()
        before = (await lab.ike("ha")).remote_port
        lab.rebind()

        async def followed() -> bool:
            return (await lab.ike("ha")).remote_port != before

        await until(followed, "the home agent's IKE_SA follows to the NAT's new port", 20)
        await lab.data_flows()
        await lab.exchanges()
        await lab.placed()
        await lab.agree()
    lab.nothing_in_clear()
    rows = lab.captured("ha-backbone", "isakmp", "ip.src", "udp.dstport", "isakmp.exchangetype")
    assert {row[1] for row in rows if row[0] in (NAT, PUBLIC)} == {"4500"}
    initial = [row for row in rows if row[0] in (NAT, PUBLIC) and row[2] == "34"]
    # One IKE_SA for good, unless the mode is to make a new one for each of the two moves.
    assert len(initial) == (3 if mode == "renegotiate" else 1)
