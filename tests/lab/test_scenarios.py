"""Every lab that comes along passes, each in a guest of its own, and judges what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lab_runs import LABS, LIMIT_S, run_lab_in_time

from dsmip_ipsec.lab.size import run_s
from dsmip_ipsec.lab.spec import load

# Labs that tests of their own run, and look into more closely.
OWN = {
    "nat-handover": "test_nat_handover.py",
    "ecn-dscp": "test_ecn_dscp.py",
    "small-mtu": "test_small_mtu.py",
}
SCENARIOS = sorted({path.stem for path in LABS.glob("*.toml")} - OWN.keys())


SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.mark.parametrize(("name", "test"), OWN.items())
def test_labs_that_are_not_run_here_are_run_there(name: str, test: str) -> None:
    text = (Path(__file__).parent / test).read_text(encoding="utf-8")
    assert re.search(rf'run_lab_in_time\((LABS / )?"{name}(\.toml)?",', text)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, tmp_path: Path) -> None:
    # A lab with many nodes has its own deadline in the guest, too.
    limit_s = max(LIMIT_S, 30 + run_s(load(LABS / f"{name}.toml")))
    # Where the state after each step is the same in each run, it is stored: with
    # `lab run NAME --snapshot FILE --update-snapshot`.
    stored = SNAPSHOTS / f"{name}.txt"
    options = ["--snapshot", str(stored)] * stored.is_file()
    run = run_lab_in_time(name, tmp_path / "out", *options, limit_s=limit_s)
    assert (run.status, run.failed, run.record["failure"]) == (0, [], None), run.output
    moving = [step for step in run.record["steps"] if step["expectations"]]
    assert len(moving) >= 3
