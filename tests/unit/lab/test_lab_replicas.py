"""``count`` of mobile nodes, DHCP, and what labs with many nodes need."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab import leasing, size
from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.turns import in_turns

LABS = Path(__file__).parents[3] / "labs"


def text(name: str) -> str:
    return (LABS / f"{name}.toml").read_text(encoding="utf-8")


def test_replicas_count_up() -> None:
    lab = parse(text("fifty"))
    names = [f"mn{number}" for number in range(1, 51)]
    assert list(lab.mobile_nodes()) == names
    assert list(lab.links["visited-b"].ends) == ["core", *names]
    last = lab.mobile_nodes()["mn50"]
    assert str(last.home_address) == "2001:db8:100::131"
    assert str(last.ipv4_home_address) == "203.0.113.199"
    assert lab.links["visited-a"].ends["mn50"] == (ip_interface("198.51.100.69/25"),)
    assert len({node.home_address for node in lab.mobile_nodes().values()}) == 50


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("count = 50", "count = 0", r"x.toml:\d+: .*count"),
        ('"203.0.113.150"', '"203.0.113.220"', "x.toml:20: 203.0.113.255|in no prefix"),
        ('mn = ["198.51.100.20/25"]', 'mn = ["198.51.100.100/25"]', "no 50 addresses from"),
        ("[nodes.core]", '[nodes.mn7]\nrole = "router"\n[nodes.core]', "'mn7' is declared, too"),
        ('"mn50"]', '"mn51"]', "'mn51' is no mobile node"),
        ('"203.0.113.150"', '"255.255.255.250"', "no 50 addresses from 255.255.255.250"),
    ],
)
def test_replicas_that_cannot_be(old: str, new: str, complaint: str) -> None:
    assert old in text("fifty")
    with pytest.raises(ConfigError, match=complaint):
        parse(text("fifty").replace(old, new, 1), "x.toml")


def test_an_error_about_a_replica_names_the_line_of_its_template() -> None:
    wrong = text("fifty").replace('ipv4_home_address = "203.0.113.150"', 'home_addres = "x"')
    line = 1 + text("fifty").splitlines().index(
        "[nodes.mn]                    # mn1 to mn50, with addresses that count up from these"
    )
    with pytest.raises(ConfigError, match="unknown key 'home_addres'"):
        parse(wrong, "x.toml")
    outside = text("fifty").replace("2001:db8:100::100", "2001:db8:999::100")
    with pytest.raises(ConfigError) as caught:
        parse(outside, "x.toml")
    assert caught.value.line == line + 3


def test_many_nodes_need_more() -> None:
    one, fifty = parse(text("nat-handover")), parse(text("fifty"))
    assert size.memory_mb(one) == 1024
    assert size.memory_mb(fifty) - 1024 == 49 * 24
    assert size.run_s(one) < size.run_s(fifty)


async def test_turns_are_taken_and_a_failure_ends_them() -> None:
    running = most = 0
    done: list[int] = []

    async def one(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if number == 5:
            raise LabError("the fifth")
        done.append(number)

    await in_turns((one(number) for number in range(5)), 2)
    assert (sorted(done), most) == ([0, 1, 2, 3, 4], 2)
    with pytest.raises(LabError, match="the fifth"):
        await in_turns((one(number) for number in range(5, 50)), 2)
    assert 49 not in done


def test_dhcp_leases_the_upper_half() -> None:
    lab = parse(text("dhcp"))
    assert leasing.servers(lab) == {"core": ["visited"], "nat": ["private"]}
    assert list(leasing.clients(lab)) == [("mn", "visited"), ("mn", "private")]
    network = ip_network("10.0.0.0/24")
    assert network.version == 4
    assert leasing.leased_range(network) == ("10.0.0.128", "10.0.0.254")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('core = ["198.51.100.1/24"]', 'core = ["198.51.100.200/24"]', "is among the leased ones"),
        ('core = ["198.51.100.1/24"]', 'core = ["198.51.100.1/30"]', "too small for DHCP"),
        ("detect_movement = true", "lifetime_s = 600", "need no DHCP"),
        ("dhcp = true\n", "", "can't find out that it is on"),
    ],
)
def test_dhcp_that_cannot_be(old: str, new: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text("dhcp").replace(old, new, 1))
