"""``dsmip-ipsec mn`` and ``dsmip-ipsec ha``: run a daemon in the foreground."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add both sub-commands."""
    for name, role in (("mn", "mobile node"), ("ha", "home agent")):
        parser = commands.add_parser(
            name,
            help=f"run the {role}'s daemon",
            description=f"Run the {role}'s daemon in the foreground until SIGTERM or Ctrl-C.",
        )
        parser.add_argument(
            "--config", type=Path, required=True, metavar="FILE", help="its TOML configuration"
        )
        parser.add_argument("--verbose", action="store_true", help="log debugging messages, too")
        parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the daemon that ``arguments.command`` names."""
    from dsmip_ipsec.node.main import run_home_agent, run_mobile_node

    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    # The netlink library logs every message that it sends at this level.
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    daemon = run_mobile_node if arguments.command == "mn" else run_home_agent
    daemon(arguments.config)
    return 0
