"""Where a lab's output goes: what is refused before anything starts, and what is left alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from dsmip_ipsec.cli.lab_output import OUTPUT, prepare_output
from dsmip_ipsec.cli.main import main
from dsmip_ipsec.errors import ConfigError


@pytest.mark.parametrize("mark", ["record.json", "guest-console.log", "captures/ha-home.pcapng"])
def test_an_old_run_goes_and_nothing_else(tmp_path: Path, mark: str) -> None:
    for name in ("notes.txt", "logs/ha-daemon.log", mark):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with ExitStack() as stack:
        assert prepare_output(tmp_path, stack) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["captures", "logs", "wireshark"])
def test_directories_that_no_run_made_are_left_alone(tmp_path: Path, name: str) -> None:
    precious = tmp_path / name / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("x")
    with ExitStack() as stack, pytest.raises(ConfigError, match=f"{name} is in the way") as caught:
        prepare_output(tmp_path, stack)
    assert "lab's output alone" in caught.value.hint
    assert precious.read_text() == "x"


def test_empty_directories_are_nobodys(tmp_path: Path) -> None:
    for name in OUTPUT:
        (tmp_path / name).mkdir()
    with ExitStack() as stack:
        prepare_output(tmp_path, stack)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--junit"], ["--update-snapshot", "--snapshot"]])
@pytest.mark.parametrize("where", ["missing/file", "."])
def test_a_file_that_cannot_be_written_is_told_before_the_lab_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], where: str
) -> None:
    path = str(tmp_path / where)
    out = tmp_path / "out"
    assert main(["lab", "run", "nat-handover", "--out", str(out), *options, path]) == 1
    said = capsys.readouterr()
    assert f"{tmp_path / where} can't be written" in said.err
    assert "hint: name a file in a directory that exists" in said.err
    assert not out.exists()
    assert "booting" not in said.out
