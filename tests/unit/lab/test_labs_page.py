"""docs/labs.md lists the labs that there are."""

from __future__ import annotations

from pathlib import Path

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import ipsec_kind
from dsmip_ipsec.lab.spec import Lab, load

PROJECT = Path(__file__).parents[3]


def userspace(lab: Lab) -> bool:
    try:
        ipsec_kind.check(lab, "userspace")
    except ConfigError:
        return False
    return True


def test_the_table_of_labs_has_each_of_them() -> None:
    rows = []
    for path in sorted((PROJECT / "labs").glob("*.toml")):
        lab = load(path)
        mark = "yes" if userspace(lab) else ""
        rows.append(f"| `{path.stem}` | {lab.lab.description} | {mark} |")
    head = "| lab | what it is about | `--ipsec userspace` |\n| --- | --- | --- |\n"
    table = head + "\n".join(rows) + "\n"
    page = (PROJECT / "docs" / "labs.md").read_text(encoding="utf-8")
    assert table in page, f"docs/labs.md should have\n{table}"
