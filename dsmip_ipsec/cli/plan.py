"""``dsmip-ipsec plan``: what a handover changes, without a kernel, a charon or root; or what a
running daemon has, or lacks."""

from __future__ import annotations

import argparse
import json
import tomllib
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmip_ipsec.errors import ConfigError

if TYPE_CHECKING:
    from dsmip_ipsec.ipsec.plan import Operation
    from dsmip_ipsec.ipsec.situation import Situation

EXAMPLE = """\
A situation is a TOML (or JSON) file:

  role = "home_agent"              # or "mobile_node": whose plan it is
  mobike = true                    # false: the data SAs are ours to move (RFC 5555 5.1)
  home_address = "2001:db8:100::100"
  ipv4_home_address = "203.0.113.200"
  home_agent = "2001:db8:100::1"
  home_agent_ipv4 = "203.0.113.2"

  [binding]                        # leave it out: at home
  care_of_address = "10.0.0.100"   # the one in the binding update; IPv4 or IPv6
  outer = "192.0.2.2:40191"        # V4ADDR and Z, as the home agent saw them
  nat_detected = true
  esp = "192.0.2.2:41234"          # where the home agent last heard ESP from; may be left out

Further keys, with their defaults: protect_data = true, home_agent_behind_nat = false,
native_signalling = true, prefix_discovery = false, return_routability = false (SAs of their own for
mobile prefix discovery, and for HoTI and HoT), mobile_network_prefixes = [].

"nothing" in place of a file is a machine without the daemon. "live" is a running one: --config
names its configuration; its binding comes from its control socket, policies and SAs from the
kernel (as root, in its namespace). "--from live --to live" shows what the kernel lacks.
"""
NOTHING, LIVE = "nothing", "live"


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "plan",
        help="what a handover changes in policies and SAs",
        description="Print the ordered operations that lead one end from one situation to another.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    side = "a situation's file, nothing, or live"
    parser.add_argument("--from", dest="before", required=True, metavar="A", help=side)
    parser.add_argument("--to", dest="after", required=True, metavar="B", help=side)
    parser.add_argument("--config", type=Path, metavar="FILE", help="of the daemon that is live")
    parser.add_argument(
        "--mobile-node", metavar="HOME_ADDRESS", help="which one of a home agent's that is live"
    )
    parser.add_argument("--format", choices=("text", "json", "ip-xfrm"), default="text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan. Raises ConfigError."""
    from dsmip_ipsec.ipsec import plan_commands, plan_text

    operations = _operations(arguments)
    if arguments.format == "json":
        print(json.dumps(plan_text.as_json(operations), indent=2, ensure_ascii=False))
    elif arguments.format == "ip-xfrm":
        print(plan_commands.as_ip_xfrm(operations), end="")
    else:
        print(plan_text.as_text(operations), end="")
    return 0


def _operations(arguments: argparse.Namespace) -> tuple[Operation, ...]:
    from dsmip_ipsec.ipsec.situation import handover

    sides = arguments.before, arguments.after
    if LIVE in sides:
        return _with_live(arguments)
    if arguments.config is not None or arguments.mobile_node is not None:
        raise ConfigError(
            "--config and --mobile-node belong to a live daemon", hint="say --from or --to live"
        )
    before, after = (None if side == NOTHING else load(Path(side)) for side in sides)
    # That a home agent's NAT comes and goes is part of the matrix; the rest is configuration.
    if before is not None and after is not None and not _same_peering(before, after):
        raise ConfigError(
            "the two situations aren't of the same peering",
            path=Path(arguments.after),
            hint="but for [binding] and home_agent_behind_nat both files have to say the same",
        )
    return handover(before, after)


def _same_peering(before: Situation, after: Situation) -> bool:
    behind = after.peering.home_agent_behind_nat
    return replace(before.peering, home_agent_behind_nat=behind) == after.peering


def _with_live(arguments: argparse.Namespace) -> tuple[Operation, ...]:
    """From the live kernel: to what the daemon's binding asks for, or a file's. To the live kernel:
    from what a file asks for, with the SAs that IKE has now."""
    from dsmip_ipsec.cli.live import read_live
    from dsmip_ipsec.ipsec.desired import DesiredState
    from dsmip_ipsec.ipsec.plan import plan
    from dsmip_ipsec.ipsec.situation import settled, state_of

    if arguments.config is None:
        raise ConfigError("which daemon is live?", hint="name its configuration with --config")
    live = read_live(arguments.config, _home_address(arguments.mobile_node))

    def asked(side: str) -> DesiredState:
        situation = None if side == NOTHING else live.situation
        if side not in (NOTHING, LIVE):
            there = load(Path(side))
            situation = replace(there, peering=live.peering)
            if not _same_ends(there, situation):
                raise ConfigError(
                    "the situation isn't that of the live daemon",
                    path=Path(side),
                    hint="role, home addresses and home agent have to be the same",
                )
        if situation is None:
            return DesiredState()
        return state_of(situation, settled(situation, live.negotiated))

    if arguments.before == LIVE:
        return plan(live.current, asked(arguments.after))
    return plan(asked(arguments.before), live.current)


def _same_ends(one: Situation, other: Situation) -> bool:
    a, b = one.peering, other.peering
    return (a.role, a.home_address, a.ipv4_home_address, a.home_agent, a.home_agent_ipv4) == (
        b.role, b.home_address, b.ipv4_home_address, b.home_agent, b.home_agent_ipv4,
    )  # fmt: skip


def _home_address(text: str | None) -> IPv6Address | None:
    try:
        return None if text is None else IPv6Address(text)
    except ValueError as error:
        raise ConfigError(
            f"--mobile-node {text}: {error}", hint="give the mobile node's IPv6 home address"
        ) from error


def load(path: Path) -> Situation:
    """Read a situation. Raises ConfigError, which names the key, and in TOML its line."""
    from pydantic import ValidationError

    from dsmip_ipsec import toml_checks
    from dsmip_ipsec.cli.situation_file import SituationFile
    from dsmip_ipsec.toml_lines import TomlLines

    kind = toml_checks.Kind(SituationFile, "a situation", "`dsmip-ipsec plan --help`")
    lines = TomlLines("")  # JSON has no lines that were worth telling
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            data = json.loads(text)
        else:
            data, lines = tomllib.loads(text), TomlLines(text)
        return SituationFile.model_validate(data).situation()
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", path=path, hint="see `dsmip-ipsec plan --help`"
        ) from error
    except ValidationError as error:
        found = data if isinstance(data, dict) else {}
        raise toml_checks.validation_error(error, kind, found, lines, path) from None
    except (ValueError, RecursionError) as error:  # neither TOML nor JSON, nor UTF-8
        raise ConfigError(
            f"can't be parsed: {error}", path=path, hint="see `dsmip-ipsec plan --help`"
        ) from error
