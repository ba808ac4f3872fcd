"""``lab run --snapshot``: what is compared, stored and told, with a recorded run's states."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dsmip_ipsec.cli.lab_snapshots import STABLE_S, Comparing, Storing, check_for, read
from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import settling, spec
from dsmip_ipsec.lab.record import NodeState, RunRecord
from dsmip_ipsec.report import snapshot
from dsmip_ipsec.resources import resource_directory

LAB = spec.load(resource_directory("labs") / "nat-handover.toml")
DATA = Path(__file__).parents[2] / "data" / "nat-handover-record.json"


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return RunRecord.model_validate_json(DATA.read_bytes())


def states(record: RunRecord) -> list[tuple[str, dict[str, NodeState]]]:
    return [(step.name, step.after) for step in record.steps]


def without_forwarding(record: RunRecord) -> RunRecord:
    """As if the home agent had forgotten a policy in the second step."""
    step = record.steps[1]
    agent = step.after["ha"]
    policies = tuple(p for p in agent.policies if p.direction != "fwd")
    assert len(policies) < len(agent.policies)
    after = {**step.after, "ha": agent.model_copy(update={"policies": policies})}
    steps = (record.steps[0], step.model_copy(update={"after": after}), *record.steps[2:])
    return record.model_copy(update={"steps": steps})


def test_a_run_like_the_stored_one_passes(record: RunRecord) -> None:
    check = Comparing(snapshot.of_record(record), LAB)
    for count in range(1, len(record.steps) + 1):
        assert check.agrees(states(record)[:count])
    judged, lines = check.conclude(record)
    assert lines == []
    assert judged.expectations[-1].name == "snapshot"
    assert judged.expectations[-1].passed
    assert len(judged.expectations) == len(record.expectations) + 1


def test_a_missing_policy_fails_the_run_and_is_shown(record: RunRecord) -> None:
    check = Comparing(snapshot.of_record(record), LAB)
    other = without_forwarding(record)
    assert check.agrees(states(other)[:1])
    assert not check.agrees(states(other)[:2])
    assert check.agrees(states(other)[:3])  # only the last step counts
    judged, lines = check.conclude(other)
    assert judged.verdict == "failed"
    assert any(line.startswith("- policy    fwd mn.home/6") for line in lines)
    shown = [line for line in lines if line.startswith(("+ ", "- "))]
    assert judged.expectations[-1].seen == f"{len(shown)} lines differ"


def test_storing_waits_until_the_state_stays(record: RunRecord, tmp_path: Path) -> None:
    now = 100.0
    check = Storing(tmp_path / "s.txt", LAB, clock=lambda: now)
    one, other = states(record)[:2], states(without_forwarding(record))[:2]
    assert not check.agrees(one)
    now += STABLE_S - 0.1
    assert not check.agrees(other)  # it has changed
    now += STABLE_S - 0.1
    assert not check.agrees(other)
    now += 0.2
    assert check.agrees(other)
    assert check.conclude(record) == (record, [])
    assert read(tmp_path / "s.txt") == snapshot.of_record(record)


def test_what_can_not_be_asked_for(tmp_path: Path) -> None:
    assert check_for(None, LAB, update=False) is None
    with pytest.raises(ConfigError, match="needs --snapshot"):
        check_for(None, LAB, update=True)
    with pytest.raises(ConfigError, match="no such snapshot") as caught:
        check_for(tmp_path / "none.txt", LAB, update=False)
    assert "--update-snapshot" in caught.value.hint
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="can't be read"):
        check_for(tmp_path / "bad.txt", LAB, update=False)
    assert isinstance(check_for(tmp_path / "new.txt", LAB, update=True), Storing)


async def test_a_state_is_waited_for_and_not_for_ever(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, first = record.steps[1].after, record.steps[0].after
    seen = iter([first, first, wanted])

    async def look() -> dict[str, NodeState]:
        return next(seen)

    found = await settling.agreed([], "x", first, look, lambda steps: steps[-1][1] is wanted)
    assert found is wanted
    monkeypatch.setattr(settling, "AGREE_S", 0.3)

    async def never() -> dict[str, NodeState]:
        return first

    began = time.monotonic()
    assert await settling.agreed([], "x", first, never, lambda steps: False) is first
    assert time.monotonic() - began < 5
    assert await settling.agreed([], "x", wanted, never, None) is wanted  # nobody waits
