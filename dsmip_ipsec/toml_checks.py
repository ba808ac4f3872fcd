"""What is wrong with a TOML file of ours, in words that name the line.

Two kinds of mistake are judged here: text that isn't TOML, and keys and values that the file's
models refuse. What has to fit together across a file is the file's own module to check;
:func:`first_of` words it the same way.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import ConfigError
from .toml_lines import TomlLines, nearest_present

_LONGEST = 400  # characters of one reason or hint

Problem = tuple[tuple[str | int, ...], str, str]  # path in the file, reason, hint


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file: its model, what people call it, and where good ones can be seen.
    ``secrets``: it may hold keys, so that no value of it is shown."""

    model: type[BaseModel]
    name: str
    examples: str
    secrets: bool = False


def decoded(octets: bytes, path: Path | str) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 text (octet {error.start})", path=path, hint="save the file as UTF-8"
        ) from None


def parsed(text: str, path: Path | str, kind: Kind) -> tuple[dict[str, Any], TomlLines]:
    """A TOML text, and on which lines things stand in it. Raises ConfigError."""
    try:
        return tomllib.loads(text), TomlLines(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise syntax_error(error, text, path, kind) from None


def syntax_error(error: Exception, text: str, path: Path | str, kind: Kind) -> ConfigError:
    """tomllib's complaint (``... (at line 3, column 7)``) as a :class:`ConfigError`."""
    if isinstance(error, RecursionError):
        return ConfigError(
            "nested too deeply", path=path, hint=f"{kind.name} nests a few levels only"
        )
    message = str(error)
    place = re.search(r" \(at line (\d+), column \d+\)$", message)
    line = int(place[1]) if place else text.count("\n") + 1
    reason = message[: place.start()] if place else message.removesuffix(" (at end of document)")
    return ConfigError(
        f"not TOML: {reason[:1].lower()}{reason[1:]}",
        path=path,
        line=line,
        hint="look at this line, and at the one before it for a missing quote, bracket or comma",
    )


def validation_error(
    error: ValidationError, kind: Kind, data: dict[str, Any], lines: TomlLines, path: Path | str
) -> ConfigError:
    """pydantic's complaints as one :class:`ConfigError`, about the first of them in the file."""
    return first_of((_problem(e, kind, data) for e in error.errors()), lines, path)


def first_of(problems: Iterable[Problem], lines: TomlLines, path: Path | str) -> ConfigError:
    """``problems`` as one :class:`ConfigError`: the first of them in the file, and the lines of
    the others in its hint."""
    # What is missing from the whole file has no line (0), and comes after what is wrong on one.
    placed = sorted(
        ((lines.line_of(loc), _shown(reason), _shown(hint)) for loc, reason, hint in problems),
        key=lambda problem: (problem[0] == 0, problem),
    )
    line, reason, hint = placed[0]
    if len(placed) > 1:
        others = "; ".join(
            f"line {other}: {text}" if other else text for other, text, _ in placed[1:6]
        )
        hint = f"{hint}; then see {others}" if hint else f"then see {others}"
    return ConfigError(reason, path=path, line=line, hint=hint)


def _shown(text: str) -> str:
    """What the file has may be of any length, and say things to a terminal."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST // 2]} … {plain[-80:]}"


def _problem(error: ErrorDetails, kind: Kind, data: dict[str, Any]) -> Problem:
    loc = nearest_present(data, error["loc"])
    table, key = _table(loc[:-1]), loc[-1] if loc else ""
    what = error["type"]
    if what == "extra_forbidden":
        known = sorted(_keys(kind.model, error["loc"][:-1]))
        close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return loc, f"unknown key '{key}' in {table}", f"{hint}known keys: {', '.join(known)}"
    if what == "missing":
        return loc, f"{table} lacks the key '{key}'", f"add '{key}'"
    if what in ("union_tag_not_found", "union_tag_invalid"):
        context = error.get("ctx", {})
        discriminator = str(context.get("discriminator", "")).strip("'")
        tags = _tags(kind.model, error["loc"], discriminator)
        known_tags = f"{discriminator}s: {', '.join(tags)}"
        if what == "union_tag_not_found":
            return loc, f"{_table(loc)} lacks the key '{discriminator}'", known_tags
        close = difflib.get_close_matches(str(context.get("tag", "")), tags, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return (
            (*loc, discriminator),
            f"{_table(loc)} has no known {discriminator}",
            f"{hint}{known_tags}",
        )
    if what == "string_pattern_mismatch":
        pattern = error.get("ctx", {}).get("pattern", "")
        named = "the name" if kind.secrets else f"the name '{error['input']}'"
        return loc, f"{named} should match {pattern}", "use lower-case letters, digits and hyphens"
    reason = re.sub(r"^(Value error|Assertion failed), ", "", error["msg"])
    reason = reason.replace("Input should", "should")
    shown = error["input"]
    showable = isinstance(shown, str | int | float) and not kind.secrets
    seen = f", not {json.dumps(shown)}" if showable else ""
    reason = reason.replace("should be True", "should be true")
    place = _dotted(loc) or "the file"
    return loc, f"{place} {reason[:1].lower()}{reason[1:]}{seen}", f"compare {kind.examples}"


def _dotted(loc: tuple[str | int, ...]) -> str:
    """A path for people: ``links.home.delay_ms``, ``steps[2].expect`` (the second step)."""
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.lstrip(".")


def _table(loc: tuple[str | int, ...]) -> str:
    """A table's path as its header says it: ``[links.home]``."""
    if not loc:
        return "the file"
    return _dotted(loc) if any(isinstance(part, int) for part in loc) else f"[{_dotted(loc)}]"


def _keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> set[str]:
    """The keys that the table at pydantic's ``loc`` may have, from the models' own annotations."""
    annotation: Any = model
    for part in loc:
        annotation = _descend(annotation, part)
    return {key for candidate in _models(annotation) for key in candidate.model_fields}


def _tags(model: type[BaseModel], loc: tuple[str | int, ...], discriminator: str) -> list[str]:
    """The tags of the discriminated union at pydantic's ``loc``, in the order of its models."""
    annotation: Any = model
    for part in loc:
        annotation = _descend(annotation, part)
    return [
        str(tag)
        for candidate in _models(annotation)
        for tag in get_args(candidate.model_fields[discriminator].annotation)
    ]


def _descend(annotation: Any, part: str | int) -> Any:
    for candidate in _models(annotation):
        if part in candidate.model_fields:
            return candidate.model_fields[str(part)].annotation
        for field in candidate.model_fields.values():
            if part in get_args(field.annotation):
                return candidate  # a discriminated union's tag
    for inner in _unwrapped(annotation):
        if get_origin(inner) in (dict, tuple, list):
            arguments = get_args(inner)
            return arguments[1] if get_origin(inner) is dict else arguments[0]
    return None


def _unwrapped(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation, without Annotated and Union around them."""
    if getattr(annotation, "__metadata__", None) is not None:
        yield from _unwrapped(get_args(annotation)[0])
    elif get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for argument in get_args(annotation):
            yield from _unwrapped(argument)
    else:
        yield annotation


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [
        inner
        for inner in _unwrapped(annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel)
    ]
