"""``dsmip-ipsec control``: a command to a running daemon."""

from __future__ import annotations

import argparse
import asyncio
import json
import stat
import tomllib
from pathlib import Path
from typing import Any

from dsmip_ipsec.errors import ConfigError


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "control",
        help="ask a running daemon, or tell it to attach or deregister",
        description="Send one command to the daemon that runs with a configuration, and print "
        "its answer (JSON).",
        epilog="Commands: status; of a mobile node also attach (interface=, care_of_address=, "
        "gateway=), return_home (interface=), deregister and solicit_prefixes; docs/daemons.md has "
        "them all.",
    )
    parser.add_argument(
        "daemon", type=Path, metavar="DAEMON", help="the daemon's TOML file, or its control socket"
    )
    parser.add_argument("request", metavar="COMMAND")
    parser.add_argument("argument", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="(60)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Send the command. Raises ConfigError, and ControlError when the daemon says no."""
    from dsmip_ipsec.node.control import call

    pairs = [argument.partition("=") for argument in arguments.argument]
    for key, equals, _ in pairs:
        if not equals or not key.isidentifier() or key in ("command", "path", "timeout_s"):
            raise ConfigError(
                f"{key!r} is no argument", hint="arguments are KEY=VALUE, such as interface=eth0"
            )
    result = asyncio.run(
        call(
            socket_of(arguments.daemon),
            arguments.request,
            timeout_s=arguments.timeout,
            **{key: value for key, _, value in pairs},
        )
    )
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0


def socket_of(path: Path) -> Path:
    """The control socket that ``path`` is, or that the daemon's configuration there names.

    :raises ConfigError: it is neither.
    """
    try:
        if stat.S_ISSOCK(path.stat().st_mode):
            return path
        return Path(tomllib.loads(path.read_text(encoding="utf-8"))["control_socket"])
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", path=path, hint="name the daemon's TOML file"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            "neither a socket nor a daemon's configuration",
            path=path,
            hint="name the TOML file that the daemon was started with",
        ) from error
