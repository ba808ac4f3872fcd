"""Movement detection with real daemons: nobody tells the mobile node where it is."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon_lab import HOME_ADDRESS, IPV4_HOME_ADDRESS, DaemonLab, daemon_lab, until

MN = {
    "interfaces": ["home", "six", "dual", "private"],
    "home_prefix": "2001:db8:100::/64",
    "ipv4_home_prefix_length": 25,
}
HA = {"home_link": "home"}
CN6, CN4 = "2001:db8:0:2::200", "192.0.2.200"

ADVERTISING = """
interface %s {
    AdvSendAdvert on;
    MinRtrAdvInterval 3;
    MaxRtrAdvInterval 4;
    AdvIntervalOpt on;
    prefix %s { AdvOnLink on; AdvAutonomous on; };
};
"""


@contextlib.contextmanager
def radvd(lab: DaemonLab, node: str, **links: str) -> Iterator[None]:
    """A router advertisement daemon on ``node`` for the prefixes of ``links``."""
    directory = lab.out / f"radvd-{node}"
    directory.mkdir()
    configuration = directory / "radvd.conf"
    configuration.write_text("".join(ADVERTISING % link for link in links.items()))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", lab.topology.namespace(node), "radvd", "-n", "-m", "stderr",
             "-C", str(configuration), "-p", str(directory / "pid")],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=10)


def autoconfigure(lab: DaemonLab, *links: str) -> None:
    """Let the mobile node's kernel take addresses from router advertisements, as hosts do."""
    for link in links:
        for name in ("accept_ra", "autoconf"):
            lab.exec("mn", "sysctl", "-qw", f"net.ipv6.conf.{link}.{name}=1")


async def bound_in(lab: DaemonLab, prefix: str) -> dict[str, Any]:
    """Wait for a binding at both ends whose care-of address begins with ``prefix``."""

    async def there() -> dict[str, Any] | None:
        at_agent, own = await lab.binding("ha"), await lab.binding("mn")
        for binding in (at_agent, own):
            if binding is None or not binding["care_of_address"].startswith(prefix):
                return None
        return at_agent

    binding: dict[str, Any] = await until(there, f"a binding in {prefix}", 40)
    # The data SAs have followed when the daemon says that it uses the attachment.
    return binding


def carrier(lab: DaemonLab, node: str, link: str, state: str) -> None:
    """Plug the cable of the mobile node's ``link`` in or out, at its other end."""
    lab.exec(node, "ip", "link", "set", link, state)


async def reaches_both(lab: DaemonLab) -> None:
    await until(lambda: lab.reaches("mn", HOME_ADDRESS, CN6, 1), "IPv6 payload")
    await until(lambda: lab.reaches("mn", IPV4_HOME_ADDRESS, CN4, 1), "IPv4 payload")


async def test_links_that_come_and_go(tmp_path: Path) -> None:
    async with daemon_lab(tmp_path, mn=MN, ha=HA) as lab:
        carrier(lab, "neighbour", "home", "up")
        lab.exec("mn", "ip", "link", "set", "home", "down")
        autoconfigure(lab, "six", "dual", "home")
        carrier(lab, "nat", "private", "down")
        carrier(lab, "core", "dual", "down")
        with radvd(lab, "core", six="2001:db8:6::/64", dual="2001:db8:d::/64"):
            # SLAAC gives an address; nothing else is needed.
            await bound_in(lab, "2001:db8:6:")
            await reaches_both(lab)
            # Out of one network, into the next.
            carrier(lab, "core", "six", "down")
            carrier(lab, "core", "dual", "up")
            await bound_in(lab, "2001:db8:d:")
            await reaches_both(lab)
            # Into a private IPv4 network, its address and route as a DHCP client sets them.
            carrier(lab, "core", "dual", "down")
            carrier(lab, "nat", "private", "up")
            lab.exec(
                "mn", "ip", "addr", "add", "10.0.0.77/24", "dev", "private",
                "valid_lft", "600", "preferred_lft", "600",
            )  # fmt: skip
            lab.exec(
                "mn", "ip", "route", "add", "default", "via", "10.0.0.1", "dev", "private",
                "metric", "100",
            )  # fmt: skip
            binding = await bound_in(lab, "10.0.0.77")
            assert binding["outer_address"] == "192.0.2.2"
            await reaches_both(lab)
            # Another address in the same network.
            lab.exec("mn", "ip", "addr", "del", "10.0.0.77/24", "dev", "private")
            lab.exec("mn", "ip", "addr", "add", "10.0.0.78/24", "dev", "private")
            lab.exec(
                "mn", "ip", "route", "add", "default", "via", "10.0.0.1", "dev", "private",
                "metric", "100",
            )  # fmt: skip
            await bound_in(lab, "10.0.0.78")
            await reaches_both(lab)
            # Back: a network that is preferred comes into reach.
            carrier(lab, "core", "six", "up")
            await bound_in(lab, "2001:db8:6:")
            await reaches_both(lab)
        # And home, known by its prefix.
        with radvd(lab, "neighbour", home="2001:db8:100::/64"):
            lab.exec("mn", "ip", "link", "set", "home", "up")

            async def nowhere() -> bool:
                return await lab.binding("ha") is None and await lab.binding("mn") is None

            await until(nowhere, "deregistered at home", 40)
            assert lab.reaches("neighbour", "2001:db8:100::2", HOME_ADDRESS)
