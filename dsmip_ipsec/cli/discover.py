"""``dsmip-ipsec discover``: find home agents, by DNS or by asking the home link (RFC 5555 §2.1)."""

from __future__ import annotations

import argparse
import asyncio
import json
from ipaddress import IPv6Address, IPv6Network
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "discover",
        help="find home agents by DNS or by anycast",
        description="Find home agents and print them, the most preferred one first. The answer "
        "isn't authenticated: IKE has to do that.",
    )
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--name", help="of a home agent, in the DNS (RFC 5026 §5.1.1)")
    how.add_argument("--domain", help="that offers the service, in the DNS (RFC 5026 §5.1.2)")
    how.add_argument(
        "--home-prefix",
        type=IPv6Network,
        metavar="PREFIX",
        help="of the home link: ask its home agents by anycast (RFC 6275 §11.4.1; IPv6 only)",
    )
    parser.add_argument(
        "--from",
        dest="care_of_address",
        type=IPv6Address,
        metavar="ADDRESS",
        help="with --home-prefix: the care-of address to ask from (that of the route)",
    )
    parser.add_argument(
        "--mobile-router",
        action="store_true",
        help="with --home-prefix: those that serve mobile routers (RFC 3963 §7)",
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="(10)")
    parser.add_argument("--json", action="store_true", help="machine-readable, on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found. Raises MobilityError when nothing was, KernelError without rights."""
    found: list[dict[str, str | None]]
    if arguments.home_prefix is not None:
        from dsmip_ipsec.node.address_discovery import ask_home_agents

        addresses = asyncio.run(
            ask_home_agents(
                arguments.home_prefix,
                arguments.care_of_address,
                mobile_router=arguments.mobile_router,
                timeout=arguments.timeout,
            )
        )
        found = [{"home_agent": str(address), "home_agent_ipv4": None} for address in addresses]
    else:
        from dsmip_ipsec.node.discovery import discover_home_agents

        agents = asyncio.run(
            discover_home_agents(
                arguments.name or arguments.domain,
                service=arguments.domain is not None,
                timeout=arguments.timeout,
            )
        )
        found = [
            {
                "home_agent": str(agent.address),
                "home_agent_ipv4": None if agent.ipv4 is None else str(agent.ipv4),
            }
            for agent in agents
        ]
    if arguments.json:
        print(json.dumps({"home_agents": found}, indent=2))
    else:
        for agent in found:
            print(" ".join(filter(None, agent.values())))
    return 0
