"""Reading lab files: TOML to a checked :class:`Lab`, or a :class:`ConfigError` with the line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from .. import toml_checks
from ..errors import ConfigError
from ..toml_lines import TomlLines
from . import extends, replicas, spec_checks
from .expect_models import Captured, Expect, Limit
from .spec_models import (
    CorrespondentNode,
    Data,
    Flow,
    HomeAgent,
    Ike,
    Lab,
    Link,
    MobileNode,
    Mobility,
    Nat,
    Router,
    Step,
)

__all__ = [
    "Captured",
    "CorrespondentNode",
    "Data",
    "Expect",
    "Flow",
    "HomeAgent",
    "Ike",
    "Lab",
    "Limit",
    "Link",
    "MobileNode",
    "Mobility",
    "Nat",
    "Router",
    "Step",
    "flat",
    "load",
    "parse",
]

KIND = toml_checks.Kind(Lab, "a lab file", "the labs in labs/")


def load(path: Path | str) -> Lab:
    """Read and check a lab file.

    :raises ConfigError: the file can't be read, isn't TOML, has an unknown key, a wrong value, or
        names something that it doesn't declare; with the line where it is.
    """
    return parse(_read(path), path)


def flat(path: Path | str) -> str:
    """The text of a lab file, or what it and the labs that it extends say together: what can be
    carried to where those aren't.

    :raises ConfigError: as :func:`load`.
    """
    text = _read(path)
    data = _content(text, path, 0)[0]
    return text if extends.KEY not in tomllib.loads(text) else tomli_w.dumps(data)


def parse(text: str, path: Path | str = "") -> Lab:
    """:func:`load` for a text; ``path`` is named in errors.

    :raises ConfigError: as :func:`load`.
    """
    return _check(*_content(text, path, 0), path)


def _read(path: Path | str) -> str:
    path = Path(path)
    try:
        octets = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the lab file can't be read: {error.strerror}",
            path=path,
            hint="name a lab's TOML file; the ones that come along are in labs/",
        ) from None
    return toml_checks.decoded(octets, path)


def _content(text: str, path: Path | str, depth: int) -> tuple[dict[str, Any], TomlLines]:
    """What a lab file says, with what it takes from another, and its lines."""
    data, lines = toml_checks.parsed(text, path, KIND)
    if extends.KEY not in data:
        return data, lines
    base = extends.base_path(data[extends.KEY], path, lines)
    if depth == extends.MAX_DEPTH:
        raise ConfigError(
            f"labs extend one another more than {depth} times",
            path=path,
            line=lines.line_of((extends.KEY,)),
            hint="does one extend itself?",
        )
    found, its_lines = _content(_read(base), base, depth + 1)
    _check(found, its_lines, base)
    whole, steps = extends.merged(found, data, path, lines)
    return whole, extends.Merged(text, steps)


def _check(data: dict[str, Any], lines: TomlLines, path: Path | str) -> Lab:
    try:
        lab = Lab.model_validate(data)
    except ValidationError as error:
        raise toml_checks.validation_error(error, KIND, data, lines, path) from None
    if problems := list(replicas.problems(lab)):
        raise toml_checks.first_of(problems, lines, path)
    lab, lines = replicas.replicated(lab, lines)
    spec_checks.check(lab, lines, path)
    return lab
