"""What is rendered, seen by an independent reader of strongSwan's syntax.

That charon takes the files is shown in tests/kernel/test_ike_charon.py.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import jinja2
import pytest

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import pki
from dsmip_ipsec.ike.inventory import (
    Deployment,
    HomeAgent,
    IkeOver,
    IkeSettings,
    MobileNode,
    MobilityMode,
    PresharedKey,
)
from dsmip_ipsec.ike.render import (
    NodeFiles,
    _environment,
    render_strongswan,
    render_swanctl,
    write_node,
    write_private,
)
from dsmip_ipsec.node.config import MobileNodeConfig
from dsmip_ipsec.node.daemon_config import daemon_config

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
KEY = b"0123456789abcdef"


def parse(text: str) -> dict[str, Any]:
    """A strict reader of the subset of strongswan.conf(5) that the templates use."""
    root: dict[str, Any] = {}
    stack = [root]
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line == "}":
            stack.pop()
        elif section := re.fullmatch(r"([\w-]+) \{", line):
            assert section[1] not in stack[-1], f"{section[1]} twice"
            child: dict[str, Any] = {}
            stack[-1][section[1]] = child
            stack.append(child)
        else:
            pair = re.fullmatch(r"([\w-]+) = (?:\"([^\"]*)\"|([^\"#{}]+))", line)
            assert pair, f"not understood: {raw!r}"
            assert pair[1] not in stack[-1], f"{pair[1]} twice"
            stack[-1][pair[1]] = pair[2] if pair[2] is not None else pair[3]
    assert stack == [root], "unbalanced braces"
    return root


def deployment(*, certificate: bool = False, settings: IkeSettings | None = None) -> Deployment:
    ca = pki.CertificateAuthority.create(now=NOW)
    ha = HomeAgent(
        "ha.example.org",
        IPv6Address("2001:db8:1::1"),
        IPv4Address("203.0.113.2"),
        ca.issue("ha.example.org", now=NOW) if certificate else None,
    )
    mobile_nodes = tuple(
        MobileNode(
            f"mn{i}",
            f"mn{i}@example.org",
            IPv6Address(f"2001:db8:1::10{i}"),
            ca.issue(f"mn{i}@example.org", now=NOW) if certificate else PresharedKey(KEY),
            signalling_reqid=100 + 2 * i,
            data_reqid=101 + 2 * i,
            ipv4_home_address=IPv4Address(f"203.0.113.13{i}") if i == 1 else None,
        )
        for i in (1, 2)
    )
    return Deployment(ha, mobile_nodes, settings or IkeSettings())


def test_home_agent_has_a_connection_for_each_mobile_node_limited_to_its_own_addresses() -> None:
    """RFC 4877 §4.2 and RFC 4301 §4.4.3: the PAD."""
    connections = parse(render_swanctl(deployment(), None))["connections"]
    assert set(connections) == {"mn1", "mn2"}
    one, two = connections["mn1"], connections["mn2"]
    assert one["remote"]["id"] == "email:mn1@example.org"
    assert two["remote"]["id"] == "email:mn2@example.org"
    assert one["local"]["id"] == "fqdn:ha.example.org"
    assert one["children"]["data"]["remote_ts"] == "2001:db8:1::101/128, 203.0.113.131/32"
    assert one["children"]["data"]["local_ts"] == "::/0, 0.0.0.0/0"
    # A node without an IPv4 home address gets no IPv4 selectors.
    assert two["children"]["data"]["remote_ts"] == "2001:db8:1::102/128"
    assert two["children"]["data"]["local_ts"] == "::/0"
    for connection, node in ((one, "2001:db8:1::101"), (two, "2001:db8:1::102")):
        for child in connection["children"].values():
            assert "2001:db8:1::102" not in str(child) or node == "2001:db8:1::102"
            assert child["policies"] == "no"
            assert child["start_action"] == "none"


def test_both_ends_agree() -> None:
    ours = deployment()
    at_ha = parse(render_swanctl(ours, None))["connections"]["mn1"]
    at_mn = parse(render_swanctl(ours, "mn1"))["connections"]["mn1"]
    connections = parse(render_swanctl(ours, "mn1"))["connections"]
    assert set(connections) == {"mn1", "mn1-ipv6"}
    # The same over IPv6: nothing but the address differs.
    assert connections["mn1-ipv6"].pop("remote_addrs") == str(ours.home_agent.ipv6)
    assert connections["mn1-ipv6"] == {k: v for k, v in at_mn.items() if k != "remote_addrs"}
    assert at_mn["remote_addrs"] == "203.0.113.2"
    assert at_mn["local_addrs"] == "%any"
    assert at_mn["local_port"] == at_mn["remote_port"] == "4500"  # RFC 5555 §5
    assert (at_mn["local"]["id"], at_mn["remote"]["id"]) == (
        at_ha["remote"]["id"],
        at_ha["local"]["id"],
    )
    for name in ("signalling", "signalling-tunnel", "data"):
        here, there = at_mn["children"][name], at_ha["children"][name]
        assert (here["local_ts"], here["remote_ts"]) == (there["remote_ts"], there["local_ts"])
        assert here["reqid"] == there["reqid"]
        assert here["mode"] == there["mode"]
    assert at_mn["children"]["signalling"]["local_ts"] == "2001:db8:1::101[135]"
    assert at_mn["children"]["signalling"]["remote_ts"] == "2001:db8:1::1[135]"
    assert at_mn["children"]["signalling"]["mode"] == "transport_proxy"
    assert at_mn["children"]["signalling-tunnel"]["mode"] == "tunnel"


def test_children_differ_in_their_selectors() -> None:
    """A responder chooses its child by traffic selectors, not by mode."""
    children = parse(render_swanctl(deployment(), None))["connections"]["mn1"]["children"]
    assert children["signalling"]["local_ts"] != children["signalling-tunnel"]["local_ts"]
    assert next(iter(children)) == "signalling"


def test_other_children_are_there_when_wanted() -> None:
    """RFC 4877 §4.2, §4.3; selectors of their own again, since they tell children apart."""
    ours = deployment()
    one = replace(ours.mobile_nodes[0], prefix_discovery_reqid=7, return_routability_reqid=8)
    ours = replace(ours, mobile_nodes=(one, ours.mobile_nodes[1]))
    at_ha = parse(render_swanctl(ours, None))["connections"]
    at_mn = parse(render_swanctl(ours, "mn1"))["connections"]["mn1"]["children"]
    names = ("prefix-discovery", "prefix-discovery-tunnel", "return-routability")
    assert not set(names) & set(at_ha["mn2"]["children"])
    for name, mode, reqid in zip(
        names, ("transport_proxy", "tunnel", "tunnel"), ("7", "7", "8"), strict=True
    ):
        here, there = at_mn[name], at_ha["mn1"]["children"][name]
        assert (here["local_ts"], here["remote_ts"]) == (there["remote_ts"], there["local_ts"])
        assert (here["mode"], here["reqid"], here["policies"]) == (mode, reqid, "no")
        assert there == {**here, "local_ts": there["local_ts"], "remote_ts": there["remote_ts"]}
    assert at_mn["prefix-discovery"]["local_ts"] == "2001:db8:1::101[58]"
    assert at_mn["return-routability"]["remote_ts"] == "::/0[135]"
    selectors = [(child["local_ts"], child["remote_ts"]) for child in at_mn.values()]
    assert len(set(selectors)) == len(selectors)
    other = replace(ours.mobile_nodes[1], prefix_discovery_reqid=7)
    with pytest.raises(ConfigError, match="share the reqid 7"):
        replace(ours, mobile_nodes=(one, other))


def test_unprotected_data_has_no_child() -> None:
    text = render_swanctl(deployment(settings=IkeSettings(protect_data=False)), "mn1")
    assert "data" not in parse(text)["connections"]["mn1"]["children"]


@pytest.mark.parametrize(
    ("mode", "mobike"),
    [
        (MobilityMode.MOBIKE, "yes"),
        (MobilityMode.K_BIT, "no"),
        (MobilityMode.RENEGOTIATE, "no"),
    ],
)
def test_mobility_mode(mode: MobilityMode, mobike: str) -> None:
    settings = IkeSettings(mobility=mode)
    for node in (None, "mn1"):
        parsed = parse(render_swanctl(deployment(settings=settings), node))
        assert parsed["connections"]["mn1"]["mobike"] == mobike


@pytest.mark.parametrize("mode", MobilityMode)
def test_without_mobike_the_routes_choose_the_source_and_the_home_agent_follows(
    tmp_path: Path, mode: MobilityMode
) -> None:
    settings = IkeSettings(mobility=mode)
    ours = deployment(settings=settings)
    by_route = mode is not MobilityMode.MOBIKE
    connections = {
        node: parse(render_swanctl(ours, node))["connections"]["mn1"] for node in (None, "mn1")
    }
    assert ("encap" in connections["mn1"]) == by_route
    assert "encap" not in connections[None]
    assert connections[None]["unique"] == ("no" if by_route else "replace")
    ipv6 = parse(render_swanctl(ours, "mn1"))["connections"]["mn1-ipv6"]
    assert "encap" not in ipv6  # no NAT to pretend: a new IKE_SA is made there
    files = NodeFiles(tmp_path, "x")
    mobile = parse(render_strongswan(settings, files))["charon"]["plugins"]
    fixed = parse(render_strongswan(settings, files, mobile=False))["charon"]["plugins"]
    assert mobile.get("socket-default") == ({"set_source": "no"} if by_route else None)
    assert ("roam_events" in mobile["kernel-netlink"]) == by_route
    assert "socket-default" not in fixed
    assert "roam_events" not in fixed["kernel-netlink"]


def test_secrets_are_tied_to_both_identities() -> None:
    ours = deployment()
    secrets = parse(render_swanctl(ours, None))["secrets"]
    assert set(secrets) == {"ike-mn1", "ike-mn2"}
    assert secrets["ike-mn1"] == {
        "id-local": "fqdn:ha.example.org",
        "id-remote": "email:mn1@example.org",
        "secret": "0x" + KEY.hex(),
    }
    assert set(parse(render_swanctl(ours, "mn1"))["secrets"]) == {"ike-mn1"}


def test_certificates_authenticate_without_secrets() -> None:
    ours = deployment(certificate=True)
    parsed = parse(render_swanctl(ours, "mn1"))
    assert "secrets" not in parsed
    connection = parsed["connections"]["mn1"]
    assert connection["local"] == {
        "id": "email:mn1@example.org",
        "auth": "pubkey",
        "certs": "mn1.pem",
    }
    assert connection["remote"]["auth"] == "pubkey"
    assert connection["remote"]["cacerts"] == "ca.pem"


def test_a_node_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no mobile node named 'mn3'") as caught:
        render_swanctl(deployment(), "mn3")
    assert "mn1, mn2" in caught.value.hint


def test_nothing_that_interferes_is_loaded() -> None:
    charon = parse(render_strongswan(IkeSettings(), NodeFiles(Path("/run/x"), "mn")))["charon"]
    plugins = set(charon["load"].split())
    assert {"kernel-netlink", "socket-default", "vici", "openssl"} <= plugins
    assert not plugins & {
        "kernel-libipsec", "bypass-lan", "forecast", "connmark", "farp", "ha", "dhcp", "unity",
        "resolve", "updown", "attr", "eap-radius", "stroke", "addrblock",
    }  # fmt: skip
    assert charon["install_routes"] == charon["install_virtual_ip"] == "no"
    assert charon["prefer_best_path"] == "yes"
    assert charon["make_before_break"] == "yes"
    assert charon["plugins"]["vici"]["socket"] == "unix:///run/x/charon.vici"
    assert charon["retransmit_timeout"] == "0.5"


def test_only_an_export_of_keys_raises_a_log_level() -> None:
    """charon prints raw messages at level 3 and keys at level 4."""

    def levels(filelog: dict[str, Any]) -> dict[str, int]:
        return {
            key: int(value)
            for key, value in filelog.items()
            if re.fullmatch(r"default|[a-z]{3}", str(key)) and re.fullmatch(r"-?\d", str(value))
        }

    plain = parse(render_strongswan(IkeSettings(), NodeFiles(Path("/run/x"), "mn")))["charon"]
    assert set(plain["filelog"]) == {"log"}
    assert max(levels(plain["filelog"]["log"]).values()) <= 2
    export = parse(render_strongswan(IkeSettings(), NodeFiles(Path("/run/x"), "mn", True)))
    assert levels(export["charon"]["filelog"]["log"]) == levels(plain["filelog"]["log"])
    assert levels(export["charon"]["filelog"]["keys"])["ike"] == 4
    assert export["charon"]["filelog"]["keys"]["path"] == "/run/x/charon-keys.log"


def test_files_and_their_modes(tmp_path: Path) -> None:
    files = write_node(deployment(certificate=True), "mn1", tmp_path)
    assert files.key_log is None
    secret = [files.swanctl_conf, tmp_path / "private" / "mn1.pem"]
    for path in secret:
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
    assert b"PRIVATE KEY" in (tmp_path / "private" / "mn1.pem").read_bytes()
    for path in tmp_path.rglob("*"):
        if path.is_file() and path not in secret:
            assert b"PRIVATE KEY" not in path.read_bytes()
    write_node(deployment(), None, tmp_path)  # once more, over the old ones
    assert KEY.hex() in files.swanctl_conf.read_text()
    assert files.swanctl_conf.stat().st_mode & 0o777 == 0o600


def test_the_key_log_is_private_before_charon_opens_it(tmp_path: Path) -> None:
    key_log = write_node(deployment(), None, tmp_path, export_keys=True).key_log
    assert key_log is not None
    assert key_log.stat().st_mode & 0o777 == 0o600


def test_interfaces() -> None:
    files = NodeFiles(Path("/run/x"), "mn")
    charon = parse(render_strongswan(IkeSettings(), files, interfaces=("eth0", "wlan0.1")))
    assert charon["charon"]["interfaces_use"] == "eth0, wlan0.1"
    for hostile in ("eth0, lo", 'e"', "", "x" * 16, "%any"):
        with pytest.raises(ConfigError, match="interface"):
            render_strongswan(IkeSettings(), files, interfaces=(hostile,))


def test_private_files_are_never_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "key").symlink_to(victim)
    write_private(tmp_path / "key", b"secret")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "key").is_symlink()
    with pytest.raises(ConfigError, match="can't write"):
        write_private(tmp_path / "missing" / "key", b"secret")


def test_unwritable_directory_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't write"):
        write_node(deployment(), "mn1", tmp_path / "file" / "x")


def test_a_value_that_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        _environment().get_template("swanctl.conf.j2").render(node="x", connections=[])


def test_thread_number_is_checked() -> None:
    with pytest.raises(ConfigError, match="threads"):
        render_strongswan(IkeSettings(), NodeFiles(Path("/run/x"), "mn"), threads=1)


def test_settings_reach_the_files() -> None:
    settings = replace(IkeSettings(), dpd_delay=7, ike_rekey_time=600, child_rekey_time=300)
    connection = parse(render_swanctl(deployment(settings=settings), None))["connections"]["mn1"]
    assert connection["dpd_delay"] == "7s"
    assert connection["rekey_time"] == "600s"
    assert {child["rekey_time"] for child in connection["children"].values()} == {"300s"}


@pytest.mark.parametrize(
    ("over", "names", "own"),
    [
        (IkeOver.IPV4, {"mn1"}, "203.0.113.2"),
        (IkeOver.IPV6, {"mn1-ipv6"}, "2001:db8:1::1"),
        (IkeOver.DUAL, {"mn1", "mn1-ipv6"}, "203.0.113.2, 2001:db8:1::1"),
    ],
)
def test_ike_begins_over_the_families_that_the_home_agent_has_it_at(
    over: IkeOver, names: set[str], own: str, tmp_path: Path
) -> None:
    ours = deployment()
    nodes = tuple(replace(mn, mirror_reqid=900 + i) for i, mn in enumerate(ours.mobile_nodes))
    ours = replace(ours, home_agent=replace(ours.home_agent, ike_over=over), mobile_nodes=nodes)
    assert set(parse(render_swanctl(ours, "mn1"))["connections"]) == names
    assert parse(render_swanctl(ours, None))["connections"]["mn1"]["local_addrs"] == own
    document = daemon_config(ours, "mn1", NodeFiles(tmp_path, "mn1"), tmp_path / "s", {})
    section = MobileNodeConfig.model_validate(document).ike
    assert section is not None
    assert {section.connection, section.ipv6_connection} - {""} == names


def test_behind_a_static_napt_the_two_ends_know_different_addresses(tmp_path: Path) -> None:
    """RFC 5555 §1.3, scenario 3."""
    ours = deployment()
    agent = replace(ours.home_agent, outer_ipv4=IPv4Address("198.51.100.9"))
    nodes = tuple(replace(mn, mirror_reqid=900 + i) for i, mn in enumerate(ours.mobile_nodes))
    ours = replace(ours, home_agent=agent, mobile_nodes=nodes)
    at_ha = parse(render_swanctl(ours, None))["connections"]["mn1"]
    assert at_ha["local_addrs"] == "203.0.113.2, 2001:db8:1::1"
    assert (
        parse(render_swanctl(ours, "mn1"))["connections"]["mn1"]["remote_addrs"] == "198.51.100.9"
    )
    for node, address in ((None, "203.0.113.2"), ("mn1", "198.51.100.9")):
        files = NodeFiles(tmp_path, node or "ha")
        section = daemon_config(ours, node, files, tmp_path / "s", {})["home_agent"]
        assert section["home_agent_ipv4"] == address
        assert section["behind_nat"] is True


@pytest.mark.parametrize(("mobile_nodes", "half_open"), [(1, "30"), (30, "30"), (1000, "1000")])
def test_a_home_agent_lets_all_its_mobile_nodes_begin_at_once(
    mobile_nodes: int, half_open: str
) -> None:
    files, keys = NodeFiles(Path("/run/x"), "x"), ("cookie_threshold", "cookie_threshold_ip",
                                                   "block_threshold")  # fmt: skip
    settings = IkeSettings()
    agent = parse(render_strongswan(settings, files, mobile=False, mobile_nodes=mobile_nodes))
    assert [agent["charon"][key] for key in keys] == [half_open] * 3
    assert not set(keys) & set(parse(render_strongswan(settings, files))["charon"])
