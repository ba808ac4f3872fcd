"""What a test does with a lab, and what a failure shows, on a session that plays a record back.

Labs that stand are for tests/lab/test_pytest_plugin.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab import spec
from dsmip_ipsec.lab.record import (
    Expectation,
    NodeState,
    NotApplicable,
    RunRecord,
    SecurityAssociation,
    StepRecord,
)
from dsmip_ipsec.lab.spec_models import Ike
from dsmip_ipsec.pytest_plugin import views
from dsmip_ipsec.pytest_plugin.fixtures import SnapshotCheck
from dsmip_ipsec.pytest_plugin.hooks import MOBILITY_MODES
from dsmip_ipsec.pytest_plugin.lab import Lab, lab_file
from dsmip_ipsec.report import snapshot
from dsmip_ipsec.resources import resource_directory

HANDOVER = resource_directory("labs") / "nat-handover.toml"
# A real run's states and flows. What was expected of it, its counters and timelines are left out.
RECORDED = Path(__file__).parents[2] / "data" / "nat-handover-record.json"


class Playback:
    """Has a session's methods, and answers as a recorded run did."""

    def __init__(self, out: Path) -> None:
        self.lab = spec.load(HANDOVER)
        self.out_dir = out
        self.recorded = RunRecord.model_validate_json(RECORDED.read_bytes())
        self.record: RunRecord | None = None
        self.output = ["something was said"]
        self.done: list[Mapping[str, Any]] = []
        self.later: list[dict[str, NodeState]] = []
        self.closed = False

    def step(self, step: Mapping[str, Any]) -> StepRecord:
        self.done.append(step)
        return self.recorded.steps[len(self.done) - 1]

    def move(self, node: str, network: str) -> StepRecord:
        return self.step({"node": node, "move": network})

    def state(self) -> dict[str, NodeState]:
        if self.later:
            return self.later.pop(0)
        return self.recorded.steps[len(self.done) - 1].after

    def status(self) -> dict[str, Any]:
        return {"networks": {"mn": "visited-a"} if self.done else {}}

    def exec(self, node: str, argv: Sequence[str], **more: Any) -> Any:
        from dsmip_ipsec.lab.session import ExecResult

        return ExecResult(int(argv[0] == "false"), "out", "no such thing")

    def finish(self) -> RunRecord:
        self.record = self.recorded
        (self.out_dir / "logs").mkdir(exist_ok=True)
        (self.out_dir / "logs" / "mn-daemon.log").write_text("x")
        (self.out_dir / "captures").mkdir(exist_ok=True)
        (self.out_dir / "captures" / "kept.pcapng").write_text("x")
        return self.recorded

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def played(tmp_path: Path) -> Playback:
    return Playback(tmp_path)


@pytest.fixture
def lab(played: Playback) -> Lab:
    return Lab(played, HANDOVER)  # type: ignore[arg-type]


def bad_step(step: StepRecord) -> StepRecord:
    wrong = Expectation(name="NAT", expected="yes", seen="nothing", passed=False)
    return step.model_copy(update={"expectations": (wrong,)})


def test_what_is_expected_of_captures_is_judged_at_the_end(lab: Lab, played: Playback) -> None:
    first, *others = played.recorded.steps
    later = NotApplicable(name="captured", reason="judged when the lab is finished")
    found = Expectation(name="captured at mn on visited-a", expected="1", seen="0", passed=False)
    told = first.model_copy(update={"not_applicable": (later,)})
    played.recorded = played.recorded.model_copy(update={"steps": (told, *others)})
    lab.step({"attach": "visited-a"})  # nothing is known yet
    judged = first.model_copy(update={"expectations": (found,)})
    played.recorded = played.recorded.model_copy(update={"steps": (judged, *others)})
    with pytest.raises(AssertionError, match="captured at mn on visited-a: expected 1, saw 0"):
        lab.close(keep=False, pcap=False)
    assert played.closed


def test_nodes_by_name_and_role(lab: Lab) -> None:
    assert lab["mn"].name == lab.first("mobile_node").name == "mn"
    assert lab.first("home_agent").name == "ha"
    assert lab.first("correspondent_node").name == "cn"
    with pytest.raises(LabError) as caught:
        lab["mn2"]
    assert "core" in caught.value.hint
    with pytest.raises(LabError):
        lab.move("mn", "visited-a") and lab["core"].state


def test_a_step_that_fails_fails_the_test(lab: Lab, played: Playback) -> None:
    played.recorded = played.recorded.model_copy(
        update={"steps": (bad_step(played.recorded.steps[0]),)}
    )
    with pytest.raises(AssertionError, match="saw nothing"):
        lab.step({"attach": "visited-a"})
    assert len(lab.steps) == 1  # what happened is there for the report


def test_move_attaches_first(lab: Lab, played: Playback) -> None:
    lab.move("mn", "visited-a", nat_detected=True)
    lab["mn"].move("visited-b", nat_detected=False)
    assert played.done == [
        {"node": "mn", "attach": "visited-a", "expect": {"nat_detected": True}},
        {"node": "mn", "move": "visited-b", "expect": {"nat_detected": False}},
    ]


def test_run_does_the_lab_files_steps(lab: Lab, played: Playback) -> None:
    lab.run()
    assert [step["name"] for step in played.done] == [s.name for s in played.lab.steps]
    assert played.done[0]["expect"]["nat_detected"] is True


def test_sads(lab: Lab) -> None:
    lab.move("mn", "visited-a")
    behind = lab["ha"].sad
    assert len(behind) == 6
    assert len(behind.data) == len(behind.signalling) == 2
    assert behind.data.udp_encapsulated
    assert not behind.udp_encapsulated
    assert not views.Sad(()).udp_encapsulated
    assert repr(views.Sad(())) == "<SAD: empty>"
    # What pytest shows of a value ends after 240 characters.
    assert len(repr(behind.data)) < 240
    assert repr(behind.data).count(" data ") == repr(behind.data).count("UDP 4500 >") + 1 == 2
    lab.move("mn", "visited-b")
    public = lab["ha"].sad
    assert public != behind
    assert public.spis == behind.spis
    lines = views.compared(public, behind)
    # pytest cuts off after eight lines.
    assert len(lines) == 5
    assert sum("UDP 4500 >" in line and "no UDP" in line for line in lines) == 2


def test_a_dumps_order_doesnt_matter_to_sads(lab: Lab) -> None:
    lab.move("mn", "visited-a")
    state = lab["ha"].state
    turned = state.model_copy(update={"sas": tuple(reversed(state.sas))})
    assert views.Sad.of(turned) == views.Sad.of(state)


def test_commands_must_succeed(lab: Lab) -> None:
    assert lab["cn"].run("true").out == "out"
    with pytest.raises(AssertionError, match="false on cn: 1: no such thing"):
        lab["cn"].run("false")
    assert lab["cn"].run("false", check=False).status == 1


def test_a_failure_shows_what_the_step_changed(lab: Lab) -> None:
    lab.move("mn", "visited-a")
    lab.move("mn", "visited-b")
    sections = dict(lab.sections())
    changed = sections["what the last step changed"].splitlines()
    assert "step 'move to the public network', node ha:" in changed
    assert any(
        line.startswith("- SA        data") and "UDP 4500 > nat2" in line for line in changed
    )
    assert any(line.startswith("+ SA        data") and "no UDP" in line for line in changed)
    assert str(lab.out_dir / "logs" / "mn-daemon.log") in sections["files"]
    assert sections["what the lab said last"] == "something was said"


def test_a_shared_lab_stands_on(lab: Lab, played: Playback) -> None:
    lab.shared = True
    lab.move("mn", "visited-a")
    assert "messages" not in dict(lab.sections())
    assert played.record is None


@pytest.mark.parametrize(
    ("keep", "pcap", "left"),
    [(False, False, []), (False, True, ["captures"]), (True, False, ["captures", "logs"])],
)
def test_what_is_left(lab: Lab, played: Playback, keep: bool, pcap: bool, left: list[str]) -> None:
    lab.close(keep=keep, pcap=pcap)
    assert played.closed
    there = sorted(p.name for p in played.out_dir.iterdir()) if played.out_dir.exists() else []
    assert there == left


# Snapshots ---------------------------------------------------------------------------------------


def check(lab: Lab, tmp_path: Path, *, update: bool = False) -> SnapshotCheck:
    return SnapshotCheck(lab, tmp_path / "snapshots" / "test_x" / "test_y.txt", update=update)


def test_snapshots_are_stored_and_compared(lab: Lab, tmp_path: Path) -> None:
    lab.move("mn", "visited-a")
    with pytest.raises(pytest.fail.Exception, match="--dsmip-update-snapshots"):
        check(lab, tmp_path)()
    check(lab, tmp_path, update=True)()
    check(lab, tmp_path)()
    assert snapshot.parse(check(lab, tmp_path).path.read_text()).sections


def without_forward_policies(state: NodeState) -> NodeState:
    kept = tuple(policy for policy in state.policies if policy.direction != "fwd")
    return state.model_copy(update={"policies": kept})


def test_a_state_that_comes_late_is_waited_for(lab: Lab, played: Playback, tmp_path: Path) -> None:
    lab.move("mn", "visited-a")
    check(lab, tmp_path, update=True)()
    now = played.state()
    played.later = [{n: without_forward_policies(s) for n, s in now.items()}] * 3
    check(lab, tmp_path)()
    assert played.later == []


def test_a_state_that_is_wrong_fails_with_a_diff(
    lab: Lab, played: Playback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.move("mn", "visited-a")
    check(lab, tmp_path, update=True)()
    monkeypatch.setattr("dsmip_ipsec.pytest_plugin.fixtures.SETTLE_S", 0.3)
    wrong = {n: without_forward_policies(s) for n, s in played.state().items()}
    monkeypatch.setattr(played, "state", lambda: wrong)
    with pytest.raises(pytest.fail.Exception) as caught:
        check(lab, tmp_path)()
    text = str(caught.value)
    assert "step 'attach behind the NAT', node ha:" in text
    assert "- policy    fwd mn.home/6 -> ::/0" in text


def test_an_unsettled_state_isnt_stored(
    lab: Lab, played: Playback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.move("mn", "visited-a")
    monkeypatch.setattr("dsmip_ipsec.pytest_plugin.fixtures.SETTLE_S", 0.5)
    states = [played.state(), {n: without_forward_policies(s) for n, s in played.state().items()}]
    played.later = states * 20
    with pytest.raises(pytest.fail.Exception, match="doesn't settle"):
        check(lab, tmp_path, update=True)()
    assert not check(lab, tmp_path).path.exists()


def test_a_file_that_isnt_a_snapshot(lab: Lab, tmp_path: Path) -> None:
    lab.move("mn", "visited-a")
    path = check(lab, tmp_path).path
    path.parent.mkdir(parents=True)
    for content in (b"something else\n", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(pytest.fail.Exception, match="--dsmip-update-snapshots"):
            check(lab, tmp_path)()


# Lab files ---------------------------------------------------------------------------------------


def test_a_lab_file_beside_the_test_comes_first(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("x")
    assert lab_file("mine.toml", tmp_path, None, tmp_path) == tmp_path / "mine.toml"
    assert lab_file("nat-handover", tmp_path, None, tmp_path) == HANDOVER
    with pytest.raises(ConfigError):
        lab_file("other", tmp_path, None, tmp_path)


def test_all_mobility_modes_are_offered() -> None:
    assert get_args(Ike.model_fields["mobility"].annotation) == MOBILITY_MODES


@pytest.mark.parametrize("mode", MOBILITY_MODES)
def test_mobility_modes_change_that_and_nothing_else(tmp_path: Path, mode: str) -> None:
    changed = spec.load(lab_file("nat-handover", tmp_path, mode, tmp_path))
    assert changed.ike.mobility == mode
    original = spec.load(HANDOVER)
    assert changed == original.model_copy(
        update={"ike": original.ike.model_copy(update={"mobility": mode})}
    )


def test_a_broken_lab_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[")
    with pytest.raises(ConfigError):
        lab_file("mine.toml", tmp_path, "k-bit", tmp_path)


def test_keys_are_no_part_of_a_sad() -> None:
    assert not {"key", "keys"} & set(SecurityAssociation.model_fields)
