"""Derived routes: a packet-by-packet walk must reach what it should and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from dsmip_ipsec.lab import routes
from dsmip_ipsec.lab.spec import Lab, load, parse

LAB = Path(__file__).parents[3] / "labs" / "nat-handover.toml"

DOUBLE_NAT = """
lab.name = "carrier-grade"
flow.correspondent = "cn"
[nodes]
mn = { role = "mobile_node", home_address = "2001:db8:100::100" }
home = { role = "nat", inside = "lan", outside = "shared" }
carrier = { role = "nat", inside = "shared", outside = "public" }
r1 = { role = "router" }
r2 = { role = "router" }
ha = { role = "home_agent", home_link = "hl" }
cn = { role = "correspondent_node" }
neighbour = { role = "correspondent_node" }
[links]
lan.ends = { home = ["192.168.1.1/24"], mn = ["192.168.1.2/24"] }
public.ends = { r1 = ["192.0.2.1/30"], carrier = ["192.0.2.2/30"] }
side.ends = { r2 = ["192.0.2.9/30"], ha = ["192.0.2.10/30"] }
side.delay_ms = 5
six.ends = { r2 = ["2001:db8:2::1/64"], ha = ["2001:db8:2::2/64"] }
hl.ends = { ha = ["203.0.113.1/24", "2001:db8:100::1/64"] }
[links.shared.ends]
carrier = ["100.64.0.1/24"]
home = ["100.64.0.2/24"]
neighbour = ["100.64.0.3/24"]
[links.trunk]
delay_ms = 10
ends.r1 = ["192.0.2.5/30", "2001:db8:1::1/64"]
ends.r2 = ["192.0.2.6/30", "2001:db8:1::2/64"]
[links.cnl.ends]
r1 = ["198.51.100.1/24", "2001:db8:3::1/64"]
cn = ["198.51.100.2/24", "2001:db8:3::2/64"]
"""


@pytest.fixture(scope="module")
def lab() -> Lab:
    return load(LAB)


@pytest.fixture(scope="module")
def double() -> Lab:
    return parse(DOUBLE_NAT)


def walk(lab: Lab, node: str, target: IPv4Address | IPv6Address) -> list[str]:
    """The nodes that a packet from ``node`` passes by the derived routes and connected prefixes,
    up to the one that is on the target's link; ends in "unreachable" or "loop"."""
    passed = [node]
    while len(passed) < 10:
        if any(target in address.network for address in lab.addresses(node)):
            return passed
        found = [r for r in routes.routes(lab, node) if target in r.destination]
        if not found:
            return [*passed, "unreachable"]
        best = max(found, key=lambda route: route.destination.prefixlen)
        assert any(best.gateway in a.network for a in lab.addresses(node, best.link))
        owner = [
            n
            for n in lab.links[best.link].ends
            for a in lab.addresses(n, best.link)
            if a.ip == best.gateway
        ]
        node = owner[0]
        passed.append(node)
    return [*passed, "loop"]


@pytest.mark.parametrize(
    ("start", "target", "way"),
    [
        ("nat", "203.0.113.2", ["nat", "core"]),
        ("cn", "203.0.113.200", ["cn", "core", "ha"]),  # a home address: to its home link
        ("cn", "2001:db8:100::100", ["cn", "core", "ha"]),
        ("ha", "198.51.100.100", ["ha", "core"]),
        ("ha", "10.0.0.100", ["ha", "core", "unreachable"]),  # private: nobody outside knows it
        ("cn", "10.0.0.100", ["cn", "core", "unreachable"]),
        ("nat", "10.0.0.100", ["nat"]),
        ("ha", "192.0.2.250", ["ha", "core"]),
        ("cn", "8.8.8.8", ["cn", "core", "unreachable"]),
    ],
)
def test_packets_go_where_they_should(lab: Lab, start: str, target: str, way: list[str]) -> None:
    assert walk(lab, start, ip_address(target)) == way


@pytest.mark.parametrize(
    ("start", "target", "way"),
    [
        ("home", "203.0.113.1", ["home", "carrier", "r1", "r2", "ha"]),
        ("neighbour", "192.168.1.2", ["neighbour", "carrier", "r1", "unreachable"]),
        ("neighbour", "203.0.113.1", ["neighbour", "carrier", "r1", "r2", "ha"]),
        ("ha", "100.64.0.3", ["ha", "r2", "unreachable"]),
        ("r1", "100.64.0.3", ["r1", "unreachable"]),
        ("cn", "2001:db8:100::5", ["cn", "r1", "r2", "ha"]),
        ("ha", "192.0.2.2", ["ha", "r2", "r1"]),
    ],
)
def test_double_nat(double: Lab, start: str, target: str, way: list[str]) -> None:
    assert [n for n in walk(double, start, ip_address(target)) if n != "ha" or n in way] == way


def test_mobile_nodes_get_attachments_and_no_routes(lab: Lab) -> None:
    assert routes.routes(lab, "mn") == []
    found = routes.attachment(lab, "mn", "visited-a")
    assert (found.interface, str(found.address(4)), str(found.gateway(4))) == (
        "visited-a",
        "10.0.0.100/24",
        "10.0.0.1",
    )
    assert found.address(6) is None
    assert found.gateway(6) is None


def test_gateway_must_be_unambiguous_or_named(double: Lab) -> None:
    assert routes.gateway_node(double, "shared", "neighbour") is None  # two NATs are on it
    table = '[links.shared]\ngateway = "carrier"\n[links.shared.ends]'
    named = DOUBLE_NAT.replace("[links.shared.ends]", table)
    assert routes.gateway_node(parse(named), "shared", "neighbour") == "carrier"


def test_rtt_is_twice_the_delays_on_the_way(double: Lab) -> None:
    assert routes.rtt_ms(double, "mn", "lan", "ha") == 2 * (10 + 5)
    assert routes.rtt_ms(double, "mn", "lan", "cn") == 0
    assert routes.rtt_ms(double, "mn", "lan", "ha", 6) is None


def test_routers_have_no_default_route(double: Lab) -> None:
    """Two that face each other would pass what neither knows to and fro."""
    for node in ("r1", "r2"):
        assert all(route.destination.prefixlen for route in routes.routes(double, node))
