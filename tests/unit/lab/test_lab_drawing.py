"""Drawings are generated: every node, link and address of a lab file is in its drawing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmip_ipsec.lab import spec
from dsmip_ipsec.lab.drawing import draw

LABS = sorted((Path(__file__).parents[3] / "labs").glob("*.toml"))


@pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)
def test_nothing_is_left_out_and_every_link_is_drawn_once(path: Path) -> None:
    lab = spec.load(path)
    drawing = draw(lab)
    words = drawing.split()
    for name in lab.links:
        assert words.count(name) == 1, name
    for node in lab.nodes:
        assert node in words
    for link in lab.links.values():
        for addresses in link.ends.values():
            for address in addresses:
                assert str(address) in drawing


def test_a_drawing_can_be_read() -> None:
    drawing = draw(spec.load(LABS[0].parent / "nat-handover.toml"))
    assert "|-- access-a  192.0.2.1/30\n|   `-- nat [NAT, random ports]  192.0.2.2/30" in drawing
    assert "backbone (20 ms)" in drawing
