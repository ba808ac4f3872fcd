"""Line numbers in TOML: compared with what stands on the lines."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from dsmip_ipsec.toml_lines import TomlLines, nearest_present

# Every value that is an integer is the number of its own line.
DOCUMENT = '''\
# comment = [
plain = 2
"quoted key" = 3
'literal.key' = 4
dotted.one."t.w\\u006f" = 5
string = "with # no comment, = and ] and \\" quote" # comment
literal = 'C:\\' # comment
date = 1979-05-27 07:32:00
[table]
a = 10
b = { c = 11, "d e" = { f = 11 }, g = [11, 11] }
[ table . "sub table" ]
x = 13
multi = """
not = 1
""\\"""" # ends with two quotes
after = 17
raw = \'\'\'
[not.a.table]
\'\'\'
array = [ # comment ]
  22, { k = 22 },

  [ 24,
    25 ], # ]
]
[[list]]
n = 28
[list.inner]
n = 30
[[list.more]]
n = 32
[[list.more]]
n = 34
[[list]]
inner.n = 36
[[list.more]]
n = 38
escaped = "x\\" y = ["
quotes = ["""a""""",
  41]
'''


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], int]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]
    return [(path, value)] if isinstance(value, int) else []


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_value_is_found_on_its_line(newline: str) -> None:
    text = DOCUMENT.replace("\n", newline)
    lines = TomlLines(text)
    found = leaves(tomllib.loads(text))
    assert len(found) == 22
    assert {path: lines.line_of(path) for path, _ in found} == dict(found)


def test_tables_and_what_is_absent() -> None:
    lines = TomlLines(DOCUMENT)
    assert lines.line_of(("table",)) == 9
    assert lines.line_of(("table", "sub table")) == 12
    assert lines.line_of(("list", 1)) == 35
    assert lines.line_of(("list", 0, "more", 1)) == 33
    assert lines.line_of(("list", 1, "more", 0, "absent", 7)) == 37
    assert lines.line_of(("absent",)) == 0
    assert TomlLines("").line_of(("a",)) == 0


def test_tags_that_are_not_keys_are_left_out() -> None:
    data = {"nodes": {"mn": {"role": "nat"}}, "steps": [{"name": ""}]}
    assert nearest_present(data, ("nodes", "mn", "nat", "role")) == ("nodes", "mn", "role")
    assert nearest_present(data, ("nodes", "mn", "nat", "inside")) == ("nodes", "mn", "inside")
    assert nearest_present(data, ("steps", 0, "name")) == ("steps", 0, "name")
