"""``dsmip-ipsec render``: strongSwan and daemon configuration for each node of a deployment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "render",
        help="configuration for each node of a deployment, from one inventory",
        description="Write strongSwan's and the daemons' configuration, certificates and secrets "
        "of every node of a deployment. Rendering again keeps keys and secrets.",
        epilog="Inventories are described in docs/render.md.",
    )
    parser.add_argument("inventory", type=Path, metavar="INVENTORY", help="a TOML file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--force", action="store_true", help="make new keys and secrets, and a new CA, too"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Render. Raises ConfigError."""
    import datetime

    from dsmip_ipsec.node import inventory_file
    from dsmip_ipsec.node.render import render

    inventory = inventory_file.load(arguments.inventory)
    now = datetime.datetime.now(datetime.UTC)
    rendered = render(inventory, arguments.out, now=now, force=arguments.force)
    for made in rendered.made:
        print(f"new: {made}")
    for node in rendered.nodes:
        print(f"{node.name}: {node.directory}")
    for warning in rendered.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"go on with {arguments.out / 'README.md'}")
    return 0
