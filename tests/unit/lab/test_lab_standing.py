"""The verbs for standing labs: what they take, and what they say when there is none, several, or
one whose holder has died."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsmip_ipsec.cli import main as cli
from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab import cleanup, held, holder
from dsmip_ipsec.lab.cleanup import Run
from dsmip_ipsec.lab.record import NodeState, SecurityAssociation
from dsmip_ipsec.report import standing


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cleanup, "state_directories", lambda: [tmp_path / "state"])
    return tmp_path / "state"


def claimed(lab: str = "nat-handover", *, alive: bool = True, socket: bool = True) -> held.Held:
    """A run that looks like a holder's."""
    run = Run.claim()
    found = held.Held(run.id, run.directory, alive, lab=lab, kernel="uml", started=1.0)
    held.write_about(found)
    if socket:
        (run.directory / held.SOCKET).touch()
    if not alive:
        journal = run.directory / "journal"
        text = journal.read_text().replace(f'"owner": {os.getpid()}', '"owner": 999999999')
        journal.write_text(text)
    return found


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["lab", *words]) == 1
    said = capsys.readouterr().err
    assert "hint:" in said
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize(
    "words",
    [("exec", "mn", "--", "true"), ("move", "mn", "home"), ("watch",)],
)
def test_nothing_stands(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = error_of(capsys, *words)
    assert "no lab stands" in said
    assert "lab up LAB" in said
    assert "no lab 'x' stands" in error_of(capsys, "status", "x")


def test_status_and_down_with_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lab", "status"]) == 0
    assert "no lab stands" in capsys.readouterr().out
    assert cli.main(["lab", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["lab", "down"]) == 0
    assert "nothing to clean up" in capsys.readouterr().out


def test_several_stand_and_one_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    one, two, other = claimed(), claimed(), claimed("ping-pong")
    said = error_of(capsys, "move", "mn", "home")
    assert "several labs stand" in said
    assert all(lab.name in said for lab in (one, two, other))
    assert "--lab NAME" in said
    assert "`all`" in error_of(capsys, "down")
    assert all(lab.directory.exists() for lab in (one, two, other))
    assert held.find("ping-pong") == other
    assert held.find(two.name) == two
    assert "stands 2 times" in error_of(capsys, "status", "nat-handover")


def test_a_holder_that_died_is_told_and_taken_away(
    state: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dead = claimed(alive=False)
    said = error_of(capsys, "exec", "mn", "--", "true")
    assert f"the holder of {dead.name} (nat-handover) has died" in said
    assert f"lab down {dead.name}" in said
    assert cli.main(["lab", "status"]) == 0
    assert "was killed" in capsys.readouterr().out
    assert cli.main(["lab", "down"]) == 0
    assert f"{dead.name}: 0 processes" in capsys.readouterr().out
    assert list(state.iterdir()) == []


def test_a_socket_without_a_holder_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    claimed()  # its owner lives (it is us), but nobody listens
    assert "has died" in error_of(capsys, "move", "mn", "home")


def test_a_lab_that_is_still_being_stood_up(capsys: pytest.CaptureFixture[str]) -> None:
    claimed(socket=False)
    assert "doesn't stand yet" in error_of(capsys, "move", "mn", "home")


def test_what_a_holder_says_of_itself_may_be_cut_short() -> None:
    lab = claimed()
    for text in ("", "{", "[]", '{"lab": 1}', "\udcff"):
        (lab.directory / held.ABOUT).write_text(text, errors="surrogateescape")
        (found,) = held.held_labs()
        assert (found.name, found.lab) == (lab.name, "")


def test_down_without_a_name_leaves_runs_alone_that_are_alive(state: Path) -> None:
    """`lab run` in place has somebody who waits for it."""
    waiting = Run.claim()
    dead = claimed(alive=False)
    assert [downed.name for downed in held.take_down(None)] == [dead.name]
    assert [path.name for path in state.iterdir()] == [waiting.id]
    with pytest.raises(LabError, match="no run 'dsmip-none'"):
        held.take_down("dsmip-none")
    waiting.finish()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("exec", "mn"), "no command to run"),
        (("exec", "mn", "--"), "no command to run"),
        (("up", "nowhere"), "there is no lab 'nowhere'"),
        (("up", "nat-handover", "--export-keys"), "--export-keys needs --out"),
    ],
)
def test_what_cannot_be_asked_for(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    claimed()
    assert said in error_of(capsys, *words)


def test_a_shell_needs_a_terminal() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dsmip_ipsec", "lab", "shell", "mn"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert "a shell needs a terminal" in result.stderr


def test_a_lab_that_cannot_be_is_told_by_its_holder(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[lab]\nnam = 1\n")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        holder.start(broken, kernel="uml", out=None, export_keys=False, say=print)


def test_traffic_is_shown_beside_its_own_sa() -> None:
    """A mirror and its origin have the same SPI."""
    ends = {"spi": "0xc0ffee00", "source": "192.0.2.1", "destination": "192.0.2.2"}
    kinds = (("transport", "signalling"), ("tunnel", "origin"))
    sas = tuple(
        SecurityAssociation.model_validate({**ends, "mode": mode, "purpose": purpose})
        for mode, purpose in kinds
    )
    traffic = {"mn": {
        "0xc0ffee00 transport": {"octets": 1344, "packets": 12},
        "0xc0ffee00 tunnel": {"octets": 0, "packets": 0},
    }}  # fmt: skip
    lines = standing.lines({"mn": NodeState(sas=sas)}, traffic)
    assert "signalling" in lines[0]
    assert "12 packets, 1344 octets" in lines[0]
    assert "0 packets, 0 octets" in lines[1]
