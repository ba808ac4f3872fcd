"""Every lab that comes along passes, each in a guest of its own, and judges what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_runs import LABS, run_lab

# nat-handover is measured, and alone: test_nat_handover.py.
SCENARIOS = sorted({path.stem for path in LABS.glob("*.toml")} - {"nat-handover"})


SNAPSHOTS = Path(__file__).parent / "snapshots"


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, tmp_path: Path) -> None:
    # Where the state after each step is the same in each run, it is stored: with
    # `lab run NAME --snapshot FILE --update-snapshot`.
    stored = SNAPSHOTS / f"{name}.txt"
    run = run_lab(name, tmp_path / "out", *(["--snapshot", str(stored)] * stored.is_file()))
    failed = [
        (step["name"], expectation)
        for step in [*run.record["steps"], {**run.record, "name": ""}]
        for expectation in step["expectations"]
        if not expectation["passed"]
    ]
    assert (run.status, failed, run.record["failure"]) == (0, [], None), run.output
    moving = [step for step in run.record["steps"] if step["expectations"]]
    assert len(moving) >= 3
