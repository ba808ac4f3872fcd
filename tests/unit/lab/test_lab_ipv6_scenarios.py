"""What the IPv6 scenarios need of the lab language."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import advertising, routes
from dsmip_ipsec.lab.spec import parse

LABS = Path(__file__).parents[3] / "labs"


def text(name: str) -> str:
    return (LABS / f"{name}.toml").read_text(encoding="utf-8")


def test_routers_advertise_the_prefixes_of_their_links() -> None:
    lab = parse(text("slaac"))
    assert advertising.advertisers(lab) == {"core": ["visited-a", "visited-b"]}
    written = advertising.configuration(lab, ["visited-b"])
    assert "interface visited-b {" in written
    assert "prefix 2001:db8:b::/64 {" in written
    assert "visited-a" not in written


def test_a_node_that_detects_movement_needs_router_advertisements() -> None:
    silent = text("slaac").replace("router_advertisements = true\n", "", 1)
    with pytest.raises(ConfigError, match="can't find out that it is on 'visited-a'"):
        parse(silent)


def test_the_way_home_has_a_delay_without_an_address_there() -> None:
    lab = parse(text("home-link"))
    assert routes.is_home(lab, "mn", "home")
    assert not routes.is_home(lab, "mn", "six")
    assert not routes.is_home(lab, "neighbour", "home")
    assert routes.rtt_ms(lab, "mn", "six", "ha", 6) == 40


def test_only_nodes_with_a_daemon_restart() -> None:
    wrong = text("home-agent-restart").replace('restart = "ha"', 'restart = "core"')
    with pytest.raises(ConfigError, match="'core' is no home agent or mobile node"):
        parse(wrong)


def test_who_restarted_is_attached_nowhere() -> None:
    wrong = text("home-agent-restart").replace('attach = "six"', 'move = "six"')
    with pytest.raises(ConfigError, match="attached nowhere"):
        parse(wrong)


def test_a_mobile_network_is_reached_by_the_home_agent() -> None:
    lab = parse(text("mobile-router"))
    prefix = ip_network("2001:db8:beef::/64")
    assert [str(r.gateway) for r in routes.routes(lab, "core") if r.destination == prefix] == [
        "2001:db8:0:1::2"
    ]
    # Behind the home agent there are its daemon's routes only.
    assert prefix not in [route.destination for route in routes.routes(lab, "ha")]
    (default,) = routes.routes(lab, "passenger")
    assert (str(default.destination), str(default.gateway)) == ("::/0", "2001:db8:beef::1")
    assert routes.visits(lab, "mn") == ["six", "six-b", "private"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('["car"]', '["cart"]', "'cart' is no link of 'mn'"),
        ('["car"]', '["private"]', "'mn' has no IPv6 address on 'private'"),
        ("beef::100/64", 'beef::100/64", "10.9.9.1/24', "has IPv4 addresses"),
        ('attach = "six"', 'attach = "car"', "'car' is no link of 'mn'"),
    ],
)
def test_mobile_networks_that_cannot_be(old: str, new: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text("mobile-router").replace(old, new, 1))
