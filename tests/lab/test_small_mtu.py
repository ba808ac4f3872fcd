"""Path MTU discovery through the tunnel: who tells whom, as tshark reads it in the captures."""

from __future__ import annotations

from pathlib import Path

from lab_runs import run_lab_in_time


def test_the_path_mtu_reaches_the_correspondent(tmp_path: Path) -> None:
    run = run_lab_in_time("small-mtu", tmp_path / "out")
    assert run.status == 0, run.output
    # RFC 1191: the visited network's router tells the home agent.
    told = run.tshark("ha-backbone", "icmp.type == 3 && icmp.code == 4", "ip.src", "icmp.mtu")
    assert ["203.0.113.1", "1360"] in [[sources.split(";")[0], mtu] for sources, mtu in told]
    # RFC 4459 §3.2: the home agent tells the correspondent, less what ESP adds, in both families.
    ipv4 = run.tshark("cn-internet", "icmp.type == 3 && icmp.code == 4", "icmp.mtu")
    ipv6 = run.tshark("cn-internet", "icmpv6.type == 2", "icmpv6.mtu")
    for family in (ipv4, ipv6):
        assert any(1280 <= int(mtu) < 1360 for (mtu,) in family), family
