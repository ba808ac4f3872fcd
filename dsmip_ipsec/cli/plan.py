"""``dsmip-ipsec plan``: what a handover changes, without a kernel, a charon or root."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsmip_ipsec.errors import ConfigError

if TYPE_CHECKING:
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
  care_of_address = "10.0.0.100"   # the one in the binding update
  outer = "192.0.2.2:40191"        # V4ADDR and Z, as the home agent saw them
  nat_detected = true
  esp = "192.0.2.2:41234"          # where the home agent last heard ESP from; may be left out
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "plan",
        help="what a handover changes in policies and SAs",
        description="Print the ordered operations that lead one end from one situation to another.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from", dest="before", type=Path, required=True, metavar="A")
    parser.add_argument("--to", dest="after", type=Path, required=True, metavar="B")
    parser.add_argument("--format", choices=("text", "json", "ip-xfrm"), default="text")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan. Raises ConfigError."""
    from dsmip_ipsec.ipsec import plan_commands, plan_text
    from dsmip_ipsec.ipsec.situation import handover

    before, after = load(arguments.before), load(arguments.after)
    if before.peering != after.peering:
        raise ConfigError(
            "the two situations aren't of the same peering",
            path=arguments.after,
            hint="everything outside [binding] has to be the same in both files",
        )
    operations = handover(before, after)
    if arguments.format == "json":
        print(json.dumps(plan_text.as_json(operations), indent=2, ensure_ascii=False))
    elif arguments.format == "ip-xfrm":
        print(plan_commands.as_ip_xfrm(operations), end="")
    else:
        print(plan_text.as_text(operations), end="")
    return 0


def load(path: Path) -> Situation:
    """Read a situation. Raises ConfigError, which names the key."""
    from pydantic import ValidationError

    from dsmip_ipsec.cli.situation_file import SituationFile

    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return SituationFile.model_validate(data).situation()
    except OSError as error:
        raise ConfigError(
            f"can't be read: {error.strerror}", path=path, hint="see `dsmip-ipsec plan --help`"
        ) from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise ConfigError(
            f"{where}: {problem['msg']}", path=path, hint="see `dsmip-ipsec plan --help`"
        ) from error
    except ValueError as error:  # neither TOML nor JSON, nor UTF-8
        raise ConfigError(f"can't be parsed: {error}", path=path) from error
