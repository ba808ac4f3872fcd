"""Imports point one way, and the sans-IO layers do no input or output."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import dsmip_ipsec

PACKAGE = Path(dsmip_ipsec.__file__).parent

# A layer may import itself and those before it.
ORDER = [
    "errors",
    "resources",
    "toml_lines",
    "toml_checks",
    "wire",
    "mobility",
    "ipsec",
    "xfrm",
    "kernel",
    "userspace",
    "ike",
    "node",
    "lab",
    "report",
    "pytest_plugin",
    "cli",
]
SANS_IO = ("wire", "mobility", "ipsec")
INPUT_OUTPUT = {
    "asyncio", "fcntl", "multiprocessing", "os", "pathlib", "pexpect", "pyroute2", "random",
    "secrets", "select", "selectors", "shutil", "socket", "ssl", "subprocess", "tempfile",
    "threading", "time", "vici",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    package = ["dsmip_ipsec", *path.relative_to(PACKAGE).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module or ""]).strip(".")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def own_layers(path: Path) -> set[str]:
    parts = (name.split(".") for name in imported(path) if name.startswith("dsmip_ipsec."))
    return {part[1] for part in parts if part[1] != "__version__"}


def test_the_walk_finds_imports() -> None:
    """Guards the guard: a known arrow is seen."""
    assert "wire" in own_layers(PACKAGE / "ipsec" / "model.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = layer_of(path)
    if layer in ("__init__", "__main__"):
        return
    allowed = set(ORDER[: ORDER.index(layer) + 1])
    if layer == "xfrm":
        allowed = {"xfrm"}  # fit to be offered upstream
    assert own_layers(path) <= allowed


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if layer_of(path) in SANS_IO],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_sans_io_layers_do_no_input_or_output(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & INPUT_OUTPUT


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_small_rooms(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
