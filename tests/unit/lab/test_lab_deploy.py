"""What a lab's nodes are given: deadlines of a kernel that is slow are longer."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dsmip_ipsec.lab.deploy import deploy
from dsmip_ipsec.lab.pace import PACE_VARIABLE
from dsmip_ipsec.lab.spec import load

LAB = Path(__file__).parents[3] / "labs" / "nat-handover.toml"


@pytest.mark.parametrize(
    ("pace", "timeout_s", "retransmission"), [("1", 15.0, "0.5"), ("8", 120.0, "4.0")]
)
def test_a_slow_kernel_has_more_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pace: str,
    timeout_s: float,
    retransmission: str,
) -> None:
    monkeypatch.setenv(PACE_VARIABLE, pace)
    nodes = deploy(load(LAB), tmp_path, now=datetime.now(UTC))
    daemon = tomllib.loads(nodes["mn"].daemon_config.read_text())
    assert daemon["handover_timeout_s"] == timeout_s
    assert daemon["ike"]["timeout_s"] == timeout_s
    for node in nodes.values():
        charon = node.files.strongswan_conf.read_text()
        assert f"retransmit_timeout = {retransmission}\n" in charon
