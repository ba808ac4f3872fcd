"""docs/conformance.md: what the RFCs demand, and which tests show it.

    python tests/conformance/conformance.py            write the document
    python tests/conformance/conformance.py --check    fail when it isn't what would be written

The demands are in rfc*.toml beside this file, the tests name them by ``@pytest.mark.rfc(...)``.
Marks are read from the source, without importing it: kernel tests count wherever this runs.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DOCUMENT = ROOT / "docs" / "conformance.md"

_KEYS = {"id", "role", "level", "quote", "left_out", "note"}
_KEYWORDS = re.compile(
    r"\b(MUST NOT|MUST|SHOULD NOT|SHOULD|SHALL NOT|SHALL|NOT RECOMMENDED|RECOMMENDED|REQUIRED)\b"
)


class ConformanceError(Exception):
    """A catalogue or a mark that can't be used."""


@dataclass(frozen=True)
class Sentence:
    """A demand of an RFC. ``left_out``: why no test shows it. ``note``: what a reader of the
    tests should know, such as what they don't show."""

    id: str
    role: str
    level: str
    quote: str
    left_out: str = ""
    note: str = ""

    @property
    def section(self) -> str:
        """The section's number, as in "4.2"."""
        return self.id.split("-")[1]


@dataclass
class Catalogue:
    """The demands of one RFC, in the order of its text."""

    rfc: int
    title: str
    about: str
    sentences: list[Sentence]
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """A test that says it shows a sentence."""

    sentence: str
    path: str
    line: int
    test: str


def catalogues() -> list[Catalogue]:
    """All rfc*.toml, checked. Raises ConformanceError."""
    return [read_catalogue(path) for path in sorted(HERE.glob("rfc*.toml"))]


def read_catalogue(path: Path) -> Catalogue:
    """One catalogue. ``[reasons]`` holds texts that several sentences share: a ``left_out`` that
    is the name of one of them stands for its text. Raises ConformanceError."""
    raw = tomllib.loads(path.read_text())
    reasons: dict[str, str] = raw.get("reasons", {})
    sentences: list[Sentence] = []
    seen: set[str] = set()
    for entry in raw["sentence"]:
        if unknown := entry.keys() - _KEYS:
            raise ConformanceError(f"{path.name}: {entry.get('id')}: unknown key {unknown}")
        sentence = Sentence(**entry)
        if not re.fullmatch(rf"{raw['rfc']}-\d+(\.\d+)*-\d+[a-z]?", sentence.id):
            raise ConformanceError(f"{path.name}: {sentence.id!r} is no name of a sentence")
        if sentence.id in seen:
            raise ConformanceError(f"{path.name}: {sentence.id} is there twice")
        seen.add(sentence.id)
        if sentence.left_out in reasons:
            sentence = Sentence(**{**entry, "left_out": reasons[sentence.left_out]})
        elif sentence.left_out and " " not in sentence.left_out:
            raise ConformanceError(f"{path.name}: no reason called {sentence.left_out!r}")
        sentences.append(sentence)
    return Catalogue(raw["rfc"], raw["title"], raw["about"], sentences, reasons)


def marks(root: Path = ROOT / "tests") -> list[Mark]:
    """Every ``pytest.mark.rfc`` below ``root``. Raises ConformanceError for one that isn't on a
    test, or whose arguments aren't plain strings."""
    found: list[Mark] = []
    for path in sorted(root.rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        place = path.relative_to(root.parent).as_posix()
        calls = {id(call): call for call in _rfc_calls(tree)}
        for test, node in _tests(tree):
            for decorator in node.decorator_list:
                for call in _rfc_calls(decorator):
                    calls.pop(id(call), None)
                    found += [Mark(name, place, node.lineno, test) for name in _names(call, place)]
        for call in calls.values():
            raise ConformanceError(f"{place}:{call.lineno}: mark.rfc is not on a test")
    return found


def _tests(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Test functions, and state machines (whose ``TestCase`` carries on their marks)."""
    machines = {
        node.value.value.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "TestCase"
        and isinstance(node.value.value, ast.Name)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test_"):
                yield node.name, node
        elif isinstance(node, ast.ClassDef) and (
            node.name.startswith("Test") or node.name in machines
        ):
            yield node.name, node
            for inner in node.body:
                if isinstance(
                    inner, ast.FunctionDef | ast.AsyncFunctionDef
                ) and inner.name.startswith("test_"):
                    yield f"{node.name}::{inner.name}", inner


def _rfc_calls(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rfc":
            yield node


def _names(call: ast.Call, place: str) -> list[str]:
    names = []
    for argument in call.args:
        if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
            raise ConformanceError(f"{place}:{call.lineno}: mark.rfc takes plain strings")
        names.append(argument.value)
    if not names or call.keywords:
        raise ConformanceError(f"{place}:{call.lineno}: mark.rfc takes names of sentences")
    return names


def faults(known: Iterable[Catalogue], found: Iterable[Mark]) -> list[str]:
    """What is wrong: sentences with neither test nor reason, marks of unknown sentences,
    reasons to leave out what is tested."""
    sentences = {each.id: each for catalogue in known for each in catalogue.sentences}
    shown: set[str] = set()
    wrong: list[str] = []
    for mark in found:
        shown.add(mark.sentence)
        if mark.sentence not in sentences:
            wrong.append(f"{mark.path}:{mark.line}: no sentence is called {mark.sentence}")
    for sentence in sentences.values():
        if sentence.id in shown and sentence.left_out:
            wrong.append(f"{sentence.id} is tested, but also left out: {sentence.left_out}")
        if sentence.id not in shown and not sentence.left_out:
            wrong.append(f"{sentence.id} has neither a test nor a reason: {sentence.quote}")
    return wrong


def document(known: Iterable[Catalogue], found: Iterable[Mark]) -> str:
    """The text of docs/conformance.md."""
    known = list(known)
    tests: dict[str, list[Mark]] = {}
    for mark in found:
        tests.setdefault(mark.sentence, []).append(mark)
    lines = [
        "# Conformance",
        "",
        "Made by `python tests/conformance/conformance.py` from `tests/conformance/rfc*.toml` and",
        "the marks on the tests; a test fails when it is out of date. Don't edit it.",
        "",
        "| | sentences | shown by tests | left out |",
        "| --- | ---: | ---: | ---: |",
    ]
    for each in known:
        shown = sum(sentence.id in tests for sentence in each.sentences)
        left = len(each.sentences) - shown
        lines.append(f"| RFC {each.rfc} | {len(each.sentences)} | {shown} | {left} |")
    lines += [
        "",
        "MN: mobile node, HA: home agent. A level in small letters: an obligation that the RFC",
        "states without a capital word.",
    ]
    for each in known:
        lines += ["", f"## RFC {each.rfc}: {each.title}", "", each.about.strip()]
        section = ""
        for sentence in each.sentences:
            if sentence.section != section:
                section = sentence.section
                lines += ["", f"### RFC {each.rfc} §{section}", ""]
            lines += _entry(sentence, tests.get(sentence.id, []))
    return "\n".join(lines) + "\n"


def _entry(sentence: Sentence, found: list[Mark]) -> list[str]:
    lines = [f"* **{sentence.id}** ({sentence.role}, {sentence.level}) “{_plain(sentence.quote)}”"]
    if found:
        by_file: dict[str, list[str]] = {}
        for mark in found:
            names = by_file.setdefault(mark.path, [])
            if mark.test not in names:
                names.append(mark.test)
        for path, names in by_file.items():
            lines.append(f"  * `{path}`: {', '.join(f'`{name}`' for name in names)}")
    if sentence.left_out:
        lines.append(f"  * *Left out:* {sentence.left_out}")
    if sentence.note:
        lines.append(f"  * *Note:* {sentence.note}")
    return lines


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


# --- the RFC's own text, where it is at hand ---


def plain_text(rfc: str) -> str:
    """An RFC's text in one line: without page breaks, words hyphenated over lines put together."""
    rfc = re.sub(r"\n*[^\n]*\[Page \d+\]\s*\n\f?\n*(RFC \d+[^\n]*\n)?", "\n", rfc)
    rfc = re.sub(r"(\w)-\n\s*(\w)", r"\1-\2", rfc)
    return " ".join(rfc.split())


def missing_quotes(catalogue: Catalogue, text: str) -> list[str]:
    """The sentences whose quotes aren't in an RFC's ``text``. " … " stands for words left out."""
    text = plain_text(text)
    return [
        sentence.id
        for sentence in catalogue.sentences
        if not all(part.strip() in text for part in sentence.quote.split("…"))
    ]


def keywords(text: str) -> int:
    """How many capital words of RFC 2119 that demand something are in ``text``."""
    return len(_KEYWORDS.findall(text))


def main(arguments: list[str]) -> int:
    """Write or check the document. 0: all is well."""
    known, found = catalogues(), marks()
    wrong = faults(known, found)
    text = document(known, found)
    if arguments == ["--check"]:
        if not DOCUMENT.exists() or DOCUMENT.read_text() != text:
            wrong.append(f"{DOCUMENT.relative_to(ROOT)} is out of date: run {Path(__file__).name}")
    else:
        DOCUMENT.write_text(text)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
