"""A lab file that is another one with changes: what is merged, and which file an error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import spec

LABS = Path(__file__).parents[3] / "labs"
HEAD = 'extends = "nat-handover"\n[lab]\nname = "mine"\n'


def written(directory: Path, text: str, name: str = "mine.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_tables_are_merged_and_the_rest_replaced(tmp_path: Path) -> None:
    text = HEAD + (
        '[links.backbone]\ndelay_ms = 3\n[links.internet]\nends = { cn = ["192.0.2.201/25"] }\n'
        '[flow]\nfamilies = ["ipv6"]\n'
    )
    base, lab = spec.load(LABS / "nat-handover.toml"), spec.load(written(tmp_path, text))
    assert (lab.lab.name, lab.lab.description) == ("mine", base.lab.description)
    assert lab.links["backbone"].delay_ms == 3
    assert lab.links["backbone"].ends == base.links["backbone"].ends
    assert list(map(str, lab.links["internet"].ends["cn"])) == ["192.0.2.201/25"]
    assert lab.links["internet"].ends["core"] == base.links["internet"].ends["core"]
    assert lab.flow.families == ("ipv6",)
    assert lab.steps == base.steps


def test_a_step_changes_its_namesake_and_others_come_last(tmp_path: Path) -> None:
    text = HEAD + (
        '[[steps]]\nname = "come back"\nattach = "visited-b"\n'
        '[[steps]]\nname = "move to the public network"\nexpect = { binding = false }\n'
    )
    base, lab = spec.load(LABS / "nat-handover.toml"), spec.load(written(tmp_path, text))
    assert [s.name for s in lab.steps] == [*(s.name for s in base.steps), "come back"]
    changed, was = lab.steps[1], base.steps[1]
    assert changed.expect.binding is False
    assert changed.expect.model_copy(update={"binding": True}) == was.expect
    assert changed.move == was.move
    assert lab.steps[0] == base.steps[0]


def test_the_flat_text_is_the_same_lab(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + '[ike]\nmobility = "k-bit"\n')
    assert spec.parse(spec.flat(path)) == spec.load(path)
    plain = LABS / "nat-handover.toml"
    assert spec.flat(plain) == plain.read_text()  # comments, lines and all


def test_a_file_beside_comes_before_a_lab_that_comes_along(tmp_path: Path) -> None:
    mine = (LABS / "nat-handover.toml").read_text().replace("delay_ms = 20", "delay_ms = 7")
    written(tmp_path, mine, "nat-handover.toml")
    assert spec.load(written(tmp_path, HEAD)).links["backbone"].delay_ms == 7
    # Nor does a file of the base's name mean itself.
    other = tmp_path / "other"
    other.mkdir()
    assert spec.load(written(other, HEAD, "nat-handover.toml")).links["backbone"].delay_ms == 20


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (HEAD.replace('"nat-handover"', '"nat-hndover"'), "there is no lab 'nat-hndover'", 1),
        (HEAD.replace('"nat-handover"', '"none.toml"'), "no lab file 'none.toml'", 1),
        (HEAD.replace('"nat-handover"', "7"), "'extends' should be the name of a lab", 1),
        ('extends = "mine.toml"\n', "no lab file 'mine.toml'", 1),
        (HEAD + "steps = 3\n", "unknown key 'steps' in [lab]", 4),
        ("steps = 3\n" + HEAD, "'steps' should be an array of tables", 1),
        (HEAD + '[flow]\nintervall_ms = 3\n', "unknown key 'intervall_ms'", 5),
        (HEAD + '[[steps]]\nname = "deregister"\n[steps.expect]\nbindng = true\n', "bindng", 7),
        (HEAD + '[[steps]]\nname = "x"\nmove = "nowhere"\n', "'nowhere' is no link", 6),
        (HEAD + '[[steps]]\nname = "x"\nmove = "visited-b"\n', "attached nowhere", 6),
        (HEAD + '[[steps]]\nmove = "visited-b"\n', "lacks the key 'name'", 4),
        (
            HEAD + '[[steps]]\nname = "deregister"\n[[steps]]\nname = "deregister"\n'
            "deregister = true\n",
            "another step is called 'deregister'",
            7,
        ),
    ],
)  # fmt: skip
def test_mistakes_name_this_file_and_the_line(
    tmp_path: Path, text: str, words: str, line: int
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        spec.load(path)
    assert words in caught.value.message
    assert (caught.value.path, caught.value.line) == (str(path), line)


def test_mistakes_of_the_base_name_the_base(tmp_path: Path) -> None:
    base = written(tmp_path, (LABS / "nat-handover.toml").read_text() + "x = 1\n", "base.toml")
    with pytest.raises(ConfigError, match="unknown key 'x'") as caught:
        spec.load(written(tmp_path, HEAD.replace("nat-handover", "base")))
    assert caught.value.path == str(base)


def test_circles_end(tmp_path: Path) -> None:
    written(tmp_path, 'extends = "one"\n', "two.toml")
    path = written(tmp_path, 'extends = "two"\n', "one.toml")
    with pytest.raises(ConfigError, match="extend one another"):
        spec.load(path)
