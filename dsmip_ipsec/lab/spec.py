"""Reading lab files: TOML to a checked :class:`Lab`, or a :class:`ConfigError` with the line."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from .. import toml_checks
from ..errors import ConfigError
from ..toml_lines import TomlLines
from . import spec_checks
from .spec_models import (
    CorrespondentNode,
    Data,
    Expect,
    Flow,
    HomeAgent,
    Ike,
    Lab,
    Limit,
    Link,
    MobileNode,
    Mobility,
    Nat,
    Router,
    Step,
)

__all__ = [
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
    "load",
    "parse",
]

KIND = toml_checks.Kind(Lab, "a lab file", "the labs in labs/")


def load(path: Path | str) -> Lab:
    """Read and check a lab file.

    :raises ConfigError: the file can't be read, isn't TOML, has an unknown key, a wrong value, or
        names something that it doesn't declare; with the line where it is.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(
            f"the lab file can't be read: {error.strerror}",
            path=path,
            hint="name a lab's TOML file; the ones that come along are in labs/",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"not UTF-8 text (octet {error.start})", path=path, hint="save the file as UTF-8"
        ) from None
    return parse(text, path)


def parse(text: str, path: Path | str = "") -> Lab:
    """:func:`load` for a text; ``path`` is named in errors.

    :raises ConfigError: as :func:`load`.
    """
    try:
        data = tomllib.loads(text)
        lines = TomlLines(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise toml_checks.syntax_error(error, text, path, KIND) from None
    try:
        lab = Lab.model_validate(data)
    except ValidationError as error:
        raise toml_checks.validation_error(error, KIND, data, lines, path) from None
    spec_checks.check(lab, lines, path)
    return lab
