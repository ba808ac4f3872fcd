"""``dsmip-ipsec control`` where no daemon is."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmip_ipsec.cli.main import main


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"control_socket", b"control_socket = 1", b"a = " + b"[" * 5000],
)
def test_what_is_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "mn.toml"
    path.write_bytes(content)
    assert main(["control", str(path), "status"]) == 1
    said = capsys.readouterr().err
    assert str(path) in said
    assert "hint: name the TOML file that the daemon was started with" in said


def test_a_daemon_that_isnt_there_is_told_by_its_whole_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mn.toml"
    path.write_text(f'control_socket = "{tmp_path}/mn.sock"')
    assert main(["control", str(path), "status"]) == 1
    assert f"no daemon answers at {tmp_path}/mn.sock" in capsys.readouterr().err


def test_without_a_command_only_that_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["control", "mn.toml"])
    assert caught.value.code == 2
    assert "arguments are required: COMMAND\n" in capsys.readouterr().err
