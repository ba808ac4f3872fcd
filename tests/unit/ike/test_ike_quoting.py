"""No value of an inventory can say more to strongSwan than its own value."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ike import proposals, quoting
from dsmip_ipsec.ike.inventory import (
    Deployment,
    HomeAgent,
    IkeSettings,
    MobileNode,
    PresharedKey,
)
from dsmip_ipsec.ike.render import NodeFiles, render_strongswan

HOSTILE = [
    'mn"',
    "mn\\",
    "mn\n}",
    "mn }",
    "mn{",
    "mn # x",
    "include /etc/passwd",
    "../../etc/x",
    "mn\x00",
    "mn\r",
    "mn;x",
    "$mn",
    "",
    " ",
    "mn : x",
    "é.example",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_names_and_identities_are_refused_by_name(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        quoting.identity(value, "mobile node identity")
    assert "mobile node identity" in caught.value.message
    assert caught.value.hint
    with pytest.raises(ConfigError, match="mobile node name"):
        quoting.section_name(value, "mobile node name")
    for use in ("IKE", "ESP"):
        with pytest.raises(ConfigError, match="proposal"):
            proposals.check(value, use, "proposal")


@pytest.mark.parametrize(
    "value",
    ["%any", "*", "*.example.org", "*@example.org", "@#aabb", "fqdn:x", "asn1dn:CN=*", "a@@b", "@b",
     "a@", "a..b", "-a.b", "x" * 64 + ".org", "mn@%any"],
)  # fmt: skip
def test_identities_that_match_other_peers_are_refused(value: str) -> None:
    """RFC 4301 §4.4.3: a wildcard in the PAD would give one peer another's SAs."""
    with pytest.raises(ConfigError):
        quoting.identity(value, "identity")


@pytest.mark.parametrize(
    ("value", "typed"),
    [
        ("mn.example.org", "fqdn:mn.example.org"),
        ("mn", "fqdn:mn"),
        ("mn+1@example.org", "email:mn+1@example.org"),
    ],
)
def test_identities_are_typed(value: str, typed: str) -> None:
    assert quoting.typed_identity(value) == typed


@given(st.text(max_size=40))
def test_what_is_quoted_has_nothing_that_the_parser_knows(value: str) -> None:
    try:
        text = quoting.quoted(value)
    except ConfigError:
        return
    assert text == f'"{value}"'
    assert value.isascii()
    assert not set(value) & set("\"\\{}#$\n\r\t\0'`")


@pytest.mark.parametrize("path", ['/tmp/a"b', "/tmp/a\nb", "/tmp/a{b", "/tmp/a\\b"])
def test_hostile_directories_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="can't stand in a configuration"):
        render_strongswan(IkeSettings(), NodeFiles(Path(path), "mn"))


def test_too_long_a_socket_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="107 octets"):
        render_strongswan(IkeSettings(), NodeFiles(Path("/tmp/" + "x" * 100), "mn"))


@pytest.mark.parametrize("value", ["fe80::1%eth0", "1.2.3", "::/0", "x", "1.2.3.4[135]"])
def test_only_addresses_are_addresses(value: str) -> None:
    with pytest.raises(ConfigError):
        quoting.address(value)


@pytest.mark.parametrize(
    "change",
    [
        {"dpd_delay": 0},
        {"retransmit_base": float("nan")},
        {"retransmit_timeout": -1.0},
        {"retransmit_tries": 1000},
        {"ike_proposals": ()},
        {"esp_proposals": ("aes128gcm16; x",)},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        IkeSettings(**change)  # type: ignore[arg-type]
    assert next(iter(change)) in caught.value.message


def _mobile_node(**change: object) -> MobileNode:
    values: dict[str, object] = {
        "name": "mn",
        "identity": "mn.example.org",
        "home_address": IPv6Address("2001:db8:1::2"),
        "credentials": PresharedKey(bytes(16)),
        "signalling_reqid": 1,
        "data_reqid": 2,
        "ipv4_home_address": IPv4Address("203.0.113.130"),
        **change,
    }
    return MobileNode(**values)  # type: ignore[arg-type]


HOME_AGENT = HomeAgent("ha.example.org", IPv6Address("2001:db8:1::1"), IPv4Address("203.0.113.2"))


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("name", {"name": "mn"}),
        ("identity", {"identity": "MN.example.org"}),
        ("home address", {"home_address": IPv6Address("2001:db8:1::2")}),
        ("IPv4 home address", {"ipv4_home_address": IPv4Address("203.0.113.130")}),
        ("reqid", {"data_reqid": 1}),
    ],
)
def test_two_mobile_nodes_share_nothing(what: str, change: dict[str, object]) -> None:
    other: dict[str, object] = {
        "name": "other",
        "identity": "other.example.org",
        "home_address": IPv6Address("2001:db8:1::3"),
        "ipv4_home_address": IPv4Address("203.0.113.131"),
        "signalling_reqid": 3,
        "data_reqid": 4,
    }
    Deployment(HOME_AGENT, (_mobile_node(), _mobile_node(**other)))
    with pytest.raises(ConfigError, match=what):
        Deployment(HOME_AGENT, (_mobile_node(), _mobile_node(**{**other, **change})))


def test_a_mobile_node_can_not_be_the_home_agent() -> None:
    with pytest.raises(ConfigError, match="home agent's identity"):
        Deployment(HOME_AGENT, (_mobile_node(identity="HA.example.org"),))


def test_a_mobile_nodes_two_reqids_differ() -> None:
    with pytest.raises(ConfigError, match="reqid"):
        _mobile_node(signalling_reqid=2)
    with pytest.raises(ConfigError, match="outside"):
        _mobile_node(signalling_reqid=0)


def test_short_keys_are_refused_and_keys_never_show() -> None:
    with pytest.raises(ConfigError, match="too short"):
        PresharedKey(b"secret")
    key = PresharedKey(b"correct horse battery staple")
    assert "horse" not in repr(key)
    assert "horse" not in repr(_mobile_node(credentials=key))


def test_a_dead_peer_is_noticed_within_20_s() -> None:
    settings = IkeSettings()
    # 0.5 s · (1.5⁰ + … + 1.5⁵)
    assert settings.retransmission_time() == pytest.approx(10.390625)
    assert settings.dpd_delay + settings.retransmission_time() < 20
