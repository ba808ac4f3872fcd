"""Where in a TOML file a value stands: the line numbers behind error messages.

:mod:`tomllib` gives values without positions. This walks the same text once more, after tomllib
has accepted it, and therefore only has to find the ends of things, never to judge them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

Path = tuple[str | int, ...]

_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
_BARE_ENDS = " \t\r\n,]}#="


class TomlLines:
    """Line numbers (1-based) of every key, table header and array element of a TOML text.

    A path is the sequence of keys and array indices that leads to a value, as pydantic's ``loc``:
    ``("steps", 0, "attach")``. ``text`` must be valid TOML (TOML 1.0.0).
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._newlines = [i for i, character in enumerate(text) if character == "\n"]
        self._lines: dict[Path, int] = {}
        self._array_lengths: dict[Path, int] = {}
        self._document()

    def line_of(self, path: Sequence[str | int]) -> int:
        """Line of the value at ``path``, or of the nearest enclosing one that is in the text; 0
        when nothing of it is."""
        for length in range(len(path), 0, -1):
            if line := self._lines.get(tuple(path[:length])):
                return line
        return 0

    # The scanner. Each method takes the offset where its construct starts and returns the offset
    # just behind it.

    def _record(self, path: Path, offset: int) -> None:
        # The first mention wins: a table that a dotted key opened stands where it was opened.
        self._lines.setdefault(path, bisect_right(self._newlines, offset - 1) + 1)

    def _at(self, offset: int, token: str) -> bool:
        return self._text.startswith(token, offset)

    def _blank(self, offset: int, *, newlines: bool = False) -> int:
        skipped = " \t\r\n" if newlines else " \t"
        while offset < len(self._text):
            if self._text[offset] in skipped:
                offset += 1
            elif newlines and self._text[offset] == "#":
                offset = self._line_end(offset)
            else:
                break
        return offset

    def _line_end(self, offset: int) -> int:
        end = self._text.find("\n", offset)
        return len(self._text) if end < 0 else end

    def _document(self) -> None:
        table: Path = ()
        offset = self._blank(0, newlines=True)
        while offset < len(self._text):
            if self._at(offset, "[["):
                table = self._header(offset, 2)
                offset = self._line_end(offset)
            elif self._at(offset, "["):
                table = self._header(offset, 1)
                offset = self._line_end(offset)
            else:
                offset = self._pair(offset, table)
            offset = self._blank(offset, newlines=True)

    def _header(self, offset: int, brackets: int) -> Path:
        keys, _ = self._key(self._blank(offset + brackets))
        path: Path = ()
        for key in keys[:-1]:
            path = self._in_last_element((*path, key))
            self._record(path, offset)
        path = (*path, keys[-1])
        if brackets == 2:
            self._record(path, offset)
            index = self._array_lengths.get(path, 0)
            self._array_lengths[path] = index + 1
            path = (*path, index)
        else:
            path = self._in_last_element(path)
        self._record(path, offset)
        return path

    def _in_last_element(self, path: Path) -> Path:
        """[a.b] below [[a]] means the element of ``a`` that was opened last."""
        length = self._array_lengths.get(path, 0)
        return (*path, length - 1) if length else path

    def _pair(self, offset: int, table: Path) -> int:
        keys, end = self._key(offset)
        path = table
        for key in keys:
            path = (*path, key)
            self._record(path, offset)
        end = self._blank(self._blank(end) + 1)  # behind the "="
        return self._value(end, path)

    def _key(self, offset: int) -> tuple[list[str], int]:
        keys: list[str] = []
        while True:
            offset = self._blank(offset)
            start = offset
            if self._text[offset] in "\"'":
                offset = self._string_end(offset)
                keys.append(_unquote(self._text[start:offset]))
            else:
                while self._text[offset] not in _BARE_ENDS + ".":
                    offset += 1
                keys.append(self._text[start:offset])
            offset = self._blank(offset)
            if not self._at(offset, "."):
                return keys, offset
            offset += 1

    def _string_end(self, offset: int) -> int:
        quote = self._text[offset]
        multi = self._text.startswith(quote * 3, offset)
        closing = quote * 3 if multi else quote
        offset += len(closing)
        while not self._at(offset, closing):
            # Only basic strings know escapes.
            offset += 2 if quote == '"' and self._text[offset] == "\\" else 1
        offset += len(closing)
        # A multi-line string may end in up to two quotes of its own.
        while multi and self._at(offset, quote):
            offset += 1
        return offset

    def _value(self, offset: int, path: Path) -> int:
        character = self._text[offset]
        if character in "\"'":
            return self._string_end(offset)
        if character == "[":
            return self._array(offset + 1, path)
        if character == "{":
            return self._inline_table(offset + 1, path)
        while offset < len(self._text) and self._text[offset] not in ",]}#\n":
            offset += 1  # a number, a boolean, or a date (which may have a space in it)
        return offset

    def _array(self, offset: int, path: Path) -> int:
        index = 0
        while True:
            offset = self._blank(offset, newlines=True)
            if self._at(offset, "]"):
                return offset + 1
            if self._at(offset, ","):
                offset += 1
                continue
            self._record((*path, index), offset)
            offset = self._value(offset, (*path, index))
            index += 1

    def _inline_table(self, offset: int, path: Path) -> int:
        while True:
            offset = self._blank(offset, newlines=True)
            if self._at(offset, "}"):
                return offset + 1
            offset = offset + 1 if self._at(offset, ",") else self._pair(offset, path)


def _unquote(token: str) -> str:
    if token[0] == "'":
        return token[1:-1]
    parts: list[str] = []
    offset = 1
    while offset < len(token) - 1:
        if token[offset] != "\\":
            parts.append(token[offset])
            offset += 1
            continue
        letter = token[offset + 1]
        width = {"u": 4, "U": 8}.get(letter, 0)
        parts.append(
            chr(int(token[offset + 2 : offset + 2 + width], 16)) if width else _ESCAPES[letter]
        )
        offset += 2 + width
    return "".join(parts)


def nearest_present(data: Any, loc: Sequence[str | int]) -> Path:
    """``loc`` without the parts that no key of ``data`` answers to.

    pydantic puts the tag of a discriminated union into its locations
    (``("nodes", "mn", "mobile_node", "role")``); a reader's file has no such key. The last part
    is kept even when it is absent, since that is how a missing key is named.
    """
    path: list[str | int] = []
    for position, part in enumerate(loc):
        keys = (
            data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
        )
        if part in keys:
            data = data[part]
        elif position < len(loc) - 1:
            continue
        path.append(part)
    return tuple(path)
