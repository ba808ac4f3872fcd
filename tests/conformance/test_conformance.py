"""docs/conformance.md keeps up with the RFCs' sentences and with the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conformance import (
    DOCUMENT,
    Catalogue,
    ConformanceError,
    Mark,
    Sentence,
    catalogues,
    document,
    faults,
    keywords,
    marks,
    missing_quotes,
    plain_text,
    read_catalogue,
)

CATALOGUES = catalogues()
REFERENCE = os.environ.get("DSMIP_RFC_DIRECTORY", "")  # a directory with rfc5555.txt and so on


def test_every_sentence_has_a_test_or_a_reason_and_every_mark_a_sentence() -> None:
    assert not faults(CATALOGUES, marks())


def test_the_document_is_what_would_be_written() -> None:
    assert document(CATALOGUES, marks()) == DOCUMENT.read_text(), (
        "run python tests/conformance/conformance.py"
    )


def test_levels_are_the_words_of_the_quotes() -> None:
    for catalogue in CATALOGUES:
        for sentence in catalogue.sentences:
            if sentence.level.isupper() and sentence.id[-1].isdigit():
                assert all(word in sentence.quote for word in sentence.level.split(", "))


@pytest.mark.parametrize("catalogue", CATALOGUES, ids=lambda each: f"rfc{each.rfc}")
def test_quotes_are_in_the_rfc_and_none_is_missing(catalogue: Catalogue) -> None:
    """Only where the RFCs are at hand: they don't come with this project."""
    if not REFERENCE:
        assert all(sentence.quote for sentence in catalogue.sentences)
        return
    text = (Path(REFERENCE) / f"rfc{catalogue.rfc}.txt").read_text()
    assert not missing_quotes(catalogue, text)
    if catalogue.rfc == 5555:
        # All of it, but for §1.1, which lists the words.
        start = text.rindex("Motivation for Using Mobile IPv6 Only")
        quoted = sum(
            keywords(sentence.quote)
            for sentence in catalogue.sentences
            if sentence.id[-1].isdigit()
        )
        assert quoted == keywords(plain_text(text[start:]))


A = Sentence("1-2-1", "MN", "MUST", "It MUST.")
B = Sentence("1-2-2", "HA", "MUST", "It MUST, too.", left_out="It can't be.")


def test_what_is_wrong_is_told() -> None:
    known = [Catalogue(1, "One", "About it.", [A, B])]
    assert faults(known, [Mark("1-2-1", "tests/t.py", 1, "test_a")]) == []
    assert "1-2-1 has neither" in faults(known, [])[0]
    both = [Mark("1-2-1", "tests/t.py", 1, "test_a"), Mark("1-2-2", "tests/t.py", 5, "test_b")]
    assert "1-2-2 is tested, but also left out" in faults(known, both)[0]
    assert "tests/t.py:5: no sentence is called 1-9-9" in faults(
        known, [both[0], Mark("1-9-9", "tests/t.py", 5, "test_b")]
    )
    text = document(known, both[:1])
    assert "* **1-2-1** (MN, MUST) “It MUST.”\n  * `tests/t.py`: `test_a`\n" in text
    assert "*Left out:* It can't be." in text


SOURCE = """
import pytest
from hypothesis.stateful import RuleBasedStateMachine

@pytest.mark.parametrize("a", [1])
@pytest.mark.rfc("1-2-1", "1-2-2")
def test_a(a): ...

@pytest.mark.rfc("1-2-3")
class Machine(RuleBasedStateMachine): ...

TestMachine = Machine.TestCase

class TestIt:
    @pytest.mark.rfc("1-2-4")
    async def test_b(self): ...
"""


def test_marks_are_read_from_the_source(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_x.py").write_text(SOURCE)
    assert [(mark.sentence, mark.test) for mark in marks(tests)] == [
        ("1-2-1", "test_a"),
        ("1-2-2", "test_a"),
        ("1-2-3", "Machine"),
        ("1-2-4", "TestIt::test_b"),
    ]


@pytest.mark.parametrize(
    "source",
    [
        '@pytest.mark.rfc("1-2-1")\ndef helper(): ...',
        "@pytest.mark.rfc(NAME)\ndef test_a(): ...",
        "@pytest.mark.rfc()\ndef test_a(): ...",
        'unused = pytest.mark.rfc("1-2-1")',
    ],
)
def test_marks_that_would_be_lost_are_errors(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_x.py").write_text(source)
    with pytest.raises(ConformanceError, match=r"test_x\.py:1: "):
        marks(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        'id = "1-2-1"\nqoute = "x"',
        'id = "2-2-1"\nquote = "x"',
        'id = "1-2-1"\nquote = "x"\nleft_out = "unheard-of"',
    ],
)
def test_broken_catalogues_are_errors(tmp_path: Path, entry: str) -> None:
    path = tmp_path / "rfc1.toml"
    head = 'rfc = 1\ntitle = "t"\nabout = "a"\n[[sentence]]\nrole = "MN"\nlevel = "MUST"\n'
    path.write_text(head + entry)
    with pytest.raises(ConformanceError):
        read_catalogue(path)
