"""What this kernel does with 1280 octets of IPv6 in a tunnel, on a link that takes 1280 in all.

RFC 2473 §7.1 and RFC 4459 §3.1 have the outer packet fragmented there. Where that doesn't happen,
the test says so: it fails on the kernel that gets it right, and then docs/kernel-notes.md is out
of date.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from lab_support import attach, built

from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.topology import Topology

LAB = """
[lab]
name = "narrow"
[nodes]
mn = { role = "mobile_node", home_address = "2001:db8:100::100" }
ha = { role = "home_agent", home_link = "home" }
r = { role = "router" }
cn = { role = "correspondent_node" }
[links.home.ends]
ha = ["203.0.113.129/25", "2001:db8:100::1/64"]
[links.far.ends]
ha = ["192.0.2.1/24", "2001:db8:1::1/64"]
cn = ["192.0.2.2/24", "2001:db8:1::2/64"]
[links.core.ends]
ha = ["203.0.113.1/30", "2001:db8:2::1/64"]
r = ["203.0.113.2/30", "2001:db8:2::2/64"]
[links.visited]
mtu = 1280
[links.visited.ends]
r = ["198.51.100.1/24", "2001:db8:3::1/64"]
mn = ["198.51.100.2/24", "2001:db8:3::2/64"]
"""
OUTER = {4: ("203.0.113.1", "198.51.100.2"), 6: ("2001:db8:2::1", "2001:db8:3::2")}
HOME, FAR = "2001:db8:100::100", "2001:db8:1::2"


class Net:
    """``built``'s namespaces, with commands run in them."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def run(self, node: str, command: str, *, check: bool = True) -> str:
        argv = ["ip", "netns", "exec", self._topology.namespace(node), *command.split()]
        done = subprocess.run(argv, check=check, capture_output=True, text=True, timeout=30)
        return done.stdout

    def esp(self, family: int, flags: str = "") -> None:
        """ESP in tunnel mode for the home address, both ways."""
        agent, care_of = OUTER[family]
        key = "aead rfc4106(gcm(aes)) 0x" + "07" * 20 + " 128"
        sa = "reqid 5 mode tunnel flag af-unspec"
        for node in ("ha", "mn"):
            for spi, ends in ((1, f"src {agent} dst {care_of}"), (2, f"src {care_of} dst {agent}")):
                state = f"ip xfrm state add {ends} proto esp spi {spi} {sa} {flags} {key}"
                self.run(node, state)
        for node, here, there, ends in (
            ("ha", "::/0", HOME, f"src {agent} dst {care_of}"),
            ("mn", HOME, "::/0", f"src {care_of} dst {agent}"),
        ):
            out, back = f"src {here} dst {there}", f"src {there} dst {here}"
            template = "proto esp reqid 5 mode tunnel"
            self.run(node, f"ip xfrm policy add dir out {out} tmpl {ends} {template}")
            for direction in ("in", "fwd"):
                self.run(node, f"ip xfrm policy add dir {direction} {back} tmpl {template}")

    def tunnel(self, kind: str, family: int) -> None:
        agent, care_of = OUTER[family]
        for node, local, remote in (("ha", agent, care_of), ("mn", care_of, agent)):
            self.run(node, f"ip link add narrow0 type {kind} local {local} remote {remote} ttl 64")
            self.run(node, "ip link set narrow0 up")
        self.run("ha", f"ip -6 route replace {HOME} dev narrow0")
        self.run("mn", f"ip -6 route add {FAR} dev narrow0 src {HOME}")

    def passes(self, octets: int) -> bool:
        """Whether IPv6 packets of that size get from the correspondent to the home address (and
        its small answers back), once the path MTU could be known."""
        ping = f"ping -6 -n -i 0.2 -W 1 -s {octets - 48}"
        self.run("cn", f"{ping} -c 3 {HOME}", check=False)
        # Counted where they arrive: the answers are as long, and MN may be short of room, too.
        before = self._heard()
        self.run("cn", f"{ping} -c 3 {HOME}", check=False)
        return self._heard() == before + 3

    def _heard(self) -> int:
        lines = self.run("mn", "cat /proc/net/snmp6").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Icmp6InEchos "))


@pytest.fixture
def net() -> Iterator[Net]:
    with built(parse(LAB)) as topology:
        net = Net(topology)
        net.run("mn", f"ip address add {HOME}/128 dev lo")
        attach(topology, "visited")
        net.run("ha", f"ip -6 route add {HOME} via 2001:db8:2::2")
        yield net


def test_esp_over_ipv4_without_df_is_fragmented(net: Net) -> None:
    net.esp(4, "flag nopmtudisc")
    assert net.passes(1280)


def test_esp_over_ipv4_with_df_is_not(net: Net) -> None:
    net.esp(4)
    assert net.passes(1200)
    assert not net.passes(1280)


def test_esp_over_ipv6_is_not_fragmented(net: Net) -> None:
    net.esp(6)
    assert net.passes(1200)
    assert not net.passes(1280), "this kernel does what RFC 2473 §7.1 wants"


def test_sit_is_fragmented(net: Net) -> None:
    net.tunnel("sit mode any pmtudisc", 4)
    assert net.passes(1280)


def test_ip6tnl_is_not_fragmented(net: Net) -> None:
    net.tunnel("ip6tnl mode any encaplimit none", 6)
    assert net.passes(1200)
    assert not net.passes(1280), "this kernel does what RFC 2473 §7.1 wants"
