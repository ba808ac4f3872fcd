"""DSCP and ECN through both ends' ESP, as tshark reads them in the captures."""

from __future__ import annotations

from pathlib import Path

from lab_runs import LabRun, run_lab_in_time

EF, ECT0, CE = "46", "2", "3"


def marks(run: LabRun, capture: str, packets: str, version: str) -> set[tuple[str, str]]:
    """DSCP and ECN of the packets that match, once each."""
    names = {
        "ip": ("ip.dsfield.dscp", "ip.dsfield.ecn"),
        "ipv6": ("ipv6.tclass.dscp", "ipv6.tclass.ecn"),
    }[version]
    return {(dscp, ecn) for dscp, ecn in run.tshark(capture, packets, *names)}


def test_marks_go_through_the_tunnels(tmp_path: Path) -> None:
    run = run_lab_in_time("ecn-dscp", tmp_path / "out")
    assert run.status == 0, run.output
    # Outside: what ESP shows is what the probes say, before and after the congested router.
    outside = marks(run, "ha-backbone", "esp && ip.dst == 203.0.113.2", "ip")
    assert {(EF, ECT0), (EF, CE)} <= outside
    sent = marks(run, "ha-backbone", "esp && ip.src == 203.0.113.2", "ip")
    # The home agent sends on what the congested router has marked before, IPv4's share of it.
    assert (EF, ECT0) in sent
    # Inside: the correspondent gets both; for IPv6 the outer header's CE is the only source.
    for version, home in (("ip", "203.0.113.200"), ("ipv6", "2001:db8:100::100")):
        arrived = marks(run, "cn-internet", f"udp.port == 7777 && {version}.src == {home}", version)
        assert arrived == {(EF, ECT0), (EF, CE)}, version
