"""Inventories: what is wrong is named with its line; nothing in one can break out."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.cli.main import main
from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.node import config, inventory_file
from dsmip_ipsec.node.render import render

NOW = datetime.datetime.now(datetime.UTC)
GOOD = """\
[home_agent]
identity = "ha.example.org"
ipv6 = "2001:db8:100::1"
ipv4 = "203.0.113.2"

[pools]
ipv6 = "2001:db8:100::100/120"

[mobile_nodes.mn1]
identity = "mn1@example.org"
[mobile_nodes.mn2]
identity = "mn2@example.org"
credentials = { kind = "x509", key_type = "ed25519" }
[mobile_nodes.mn3]
identity = "mn3@example.org"
credentials = { kind = "eap-md5" }
"""
MN1 = 'identity = "mn1@example.org"'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "inventory.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("[pools]", 'ipv5 = "x"\n[pools]', 6, "unknown key 'ipv5'"),
        ('"ha.example.org"', '"ha.example.org\\n}"', 2, "identity"),
        ('"mn1@example.org"', '"*@example.org"', 10, "identity"),
        ("[mobile_nodes.mn1]", '[mobile_nodes."../x"]', 9, "should match"),
        ("[mobile_nodes.mn1]", '[mobile_nodes."include x"]', 9, "should match"),
        ("[mobile_nodes.mn1]", "[mobile_nodes.ha]", 9, "home agent's directory"),
        ("[mobile_nodes.mn1]", "[mobile_nodes.include]", 9, "another file"),
        ("[mobile_nodes.mn1]", "[mobile_nodes.ca]", 9, "CA's directory"),
        ("[mobile_nodes.mn1]", "[mobile_nodes.secrets]", 9, "secrets' directory"),
        ("[mobile_nodes.mn1]", '[mobile_nodes."\\u001b[31m"]', 9, "\\x1b[31m"),
        ("[pools]", '[ca]\nname = "' + 33 * "é" + '"\n[pools]', 7, "64 octets"),
        ("[pools]", "[ike]\nike_proposals = []\n[pools]", 7, "at least one"),
        ("203.0.113.2", "0.0.0.0", 4, "can't be a home agent's address"),
        ("2001:db8:100::1", "ff02::1", 3, "can't be a home agent's address"),
        ("[pools]", 'outer_ipv4 = "203.0.113.2"\n[pools]', 6, "outer_ipv4 is ipv4"),
        ("[pools]", '[ike]\nike_proposals = ["aes256-sha257-ecp256"]\n[pools]', 7, "'sha257'"),
        ("[pools]", '[ike]\nike_proposals = ["aes128gcm16-ecp256"]\n[pools]', 7, "a PRF"),
        ("[pools]", '[ike]\nesp_proposals = ["aes256"]\n[pools]', 7, "without integrity"),
        ("[home_agent]", 'directory = "/a/../b"\n[home_agent]', 1, "'..'"),
        ('"x509"', '"x508"', 13, "no known kind"),
        ('"ed25519"', '"dsa"', 13, "key_type"),
        ("mn2@", "MN1@", 12, "same identity"),
        ("::100/120", "::100/127", 14, "pool"),
        ('"2001:db8:100::1"', '"fe80::1%eth0"', 3, "scope"),
        (
            MN1,
            MN1 + '\nmobile_network_prefixes = ["2001:db8:1::1/64"]',
            11,
            "mobile_network_prefixes",
        ),
        (MN1, MN1 + '\nmobile_network_prefixes = ["fe80::/64"]', 11, "can't be a mobile network's"),
        (MN1, MN1 + '\nmobile_network_prefixes = ["::/0"]', 11, "can't be a mobile network's"),
        (
            MN1,
            MN1 + '\nmobile_network_prefixes = ["2001:db8:100::/64"]',
            11,
            "holds 2001:db8:100::1 of",
        ),
        (MN1, MN1 + '\nmobile_network_prefixes = ["2001:db8:100::102/127"]', 11, "of mn2"),
        (
            MN1,
            MN1 + '\nmobile_network_prefixes = ["2001:db8:8::/48", "2001:db8:8:1::/64"]',
            11,
            "overlaps with 2001:db8:8::/48 of mn1",
        ),
        ('"eap-md5"', '"eap-aka"', 16, "lacks the key 'file'"),
        ('kind = "eap-md5"', 'kind = "psk", file = "../k"', 16, "'..'"),
        ('kind = "eap-md5"', 'kind = "psk", file = "/etc/shadow"', 16, "directory"),
        ("[pools]", '[ike]\nike_proposals = ["aes } x"]\n[pools]', 7, "proposal"),
        ("[pools]", '[overrides.mn9]\nswanctl = "x"\n[pools]', 6, "no node"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, reason: str
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        inventory_file.load(written(tmp_path, GOOD.replace(old, new, 1)))
    assert caught.value.line == line, caught.value
    assert reason in caught.value.message
    assert caught.value.hint


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_an_inventory_or_a_typed_error(text: str) -> None:
    for document in (text, GOOD + text, GOOD.replace("mn1@example.org", text, 1)):
        with contextlib.suppress(ConfigError):
            inventory_file.parse(document, Path("x.toml"))


def test_the_daemons_take_what_is_rendered(tmp_path: Path) -> None:
    out = tmp_path / "out"
    render(inventory_file.load(written(tmp_path, GOOD)), out, now=NOW)
    agent = config.load(out / "ha" / "daemon.toml", config.HomeAgentConfig)
    for index, name in enumerate(("mn1", "mn2", "mn3")):
        node = config.load(out / name / "daemon.toml", config.MobileNodeConfig)
        assert node.mobile_node == agent.mobile_nodes[index]


def test_the_networks_behind_a_mobile_router_are_ikes_and_the_daemons(tmp_path: Path) -> None:
    networks = ["2001:db8:8::/48", "2001:db8:9:1::/64"]
    text = GOOD.replace(MN1, f"{MN1}\nmobile_network_prefixes = {json.dumps(networks)}")
    out = tmp_path / "out"
    render(inventory_file.load(written(tmp_path, text)), out, now=NOW)
    for node, key in (("ha", "remote_ts"), ("mn1", "local_ts")):
        selectors = [
            line.partition(" = ")[2]
            for line in (out / node / "swanctl.conf").read_text().splitlines()
            if line.strip().startswith(f"{key} = ") and "::101/128" in line and "[" not in line
        ]
        assert [each for each in selectors if networks[0] in each and networks[1] in each], node
    assert networks[0] not in (out / "mn2" / "swanctl.conf").read_text()
    agent = config.load(out / "ha" / "daemon.toml", config.HomeAgentConfig)
    for peer in (
        agent.mobile_nodes[0],
        config.load(out / "mn1" / "daemon.toml", config.MobileNodeConfig).mobile_node,
    ):
        assert [str(each) for each in peer.mobile_network_prefixes] == networks
    assert agent.mobile_nodes[1].mobile_network_prefixes == ()


def test_rendering_again_keeps_keys_and_force_does_not(tmp_path: Path) -> None:
    path, out = written(tmp_path, GOOD), tmp_path / "out"
    secret = ("secrets/mn1.psk", "secrets/mn3.password", "ca/ca-key.pem", "mn2/private/mn2.pem",
              "ha/private/ha.pem")  # fmt: skip

    def keys() -> list[bytes]:
        return [(out / name).read_bytes() for name in secret]

    assert main(["render", str(path), "--out", str(out)]) == 0
    first = keys()
    assert main(["render", str(path), "--out", str(out)]) == 0
    assert keys() == first
    assert main(["render", str(path), "--out", str(out), "--force"]) == 0
    assert not set(keys()) & set(first)


def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        out = tmp_path / "out"
        render(inventory_file.load(written(tmp_path, GOOD)), out, now=NOW)
    finally:
        os.umask(previous)
    psk = (out / "secrets" / "mn1.psk").read_text().strip()
    password = (out / "secrets" / "mn3.password").read_text().strip()
    holding = [
        path
        for path in out.rglob("*")
        if path.is_file() and any(s in path.read_text() for s in (psk, password, "PRIVATE KEY"))
    ]
    assert len(holding) == 10
    assert {path.stat().st_mode & 0o777 for path in holding} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700
    assert psk not in (out / "mn2" / "swanctl.conf").read_text()


def test_a_link_out_of_the_inventorys_directory_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("0123456789abcdef0123")
    base = tmp_path / "base"
    base.mkdir()
    (base / "key").symlink_to(outside)
    text = GOOD.replace('kind = "eap-md5"', 'kind = "psk", file = "key"')
    with pytest.raises(ConfigError, match="outside"):
        render(inventory_file.load(written(base, text)), tmp_path / "out", now=NOW)


@pytest.mark.parametrize("protected", [True, False])
def test_sas_of_rfc_4877_beside_those_of_binding_updates(tmp_path: Path, protected: bool) -> None:
    wanted = "[ike]\nprefix_discovery = true\nreturn_routability = true\n"
    text = GOOD + wanted + f"[data]\nprotected = {str(protected).lower()}\n"
    out = tmp_path / "out"
    render(inventory_file.load(written(tmp_path, text)), out, now=NOW)
    for node in ("ha", "mn1"):
        swanctl = (out / node / "swanctl.conf").read_text()
        daemon = (out / node / "daemon.toml").read_text()
        assert "prefix-discovery {" in swanctl
        assert "prefix_discovery_reqid = 55504" in daemon
        # Where payload is protected, HoTI and HoT are payload (RFC 4877 §6.4).
        assert ("return-routability {" in swanctl) != protected
        assert ("return_routability_reqid = 55505" in daemon) != protected


def test_overrides_are_included_last(tmp_path: Path) -> None:
    (tmp_path / "mine.conf").write_text("connections { mn1 { dpd_delay = 77s } }\n")
    text = GOOD + '[overrides.ha]\nswanctl = "mine.conf"\nstrongswan = "mine.conf"\n'
    out = tmp_path / "out"
    render(inventory_file.load(written(tmp_path, text)), out, now=NOW)
    for name in ("swanctl", "strongswan"):
        assert (
            (out / "ha" / f"{name}.conf").read_text().endswith(f"include {name}-overrides.conf\n")
        )
        assert "77s" in (out / "ha" / f"{name}-overrides.conf").read_text()
    assert "include" not in (out / "mn1" / "swanctl.conf").read_text()
    render(inventory_file.load(written(tmp_path, GOOD)), out, now=NOW)
    assert not (out / "ha" / "swanctl-overrides.conf").exists()


def test_a_readmes_commands_are_a_shells_words_wherever_they_are(tmp_path: Path) -> None:
    out = tmp_path / "a b"
    render(inventory_file.load(written(tmp_path, GOOD)), out, now=NOW)
    for node, role in (("ha", "ha"), ("mn1", "mn")):
        text = (out / node / "README.md").read_text()
        commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
        charon, wait, load, daemon, wait_for_it, *others = map(shlex.split, commands)
        files = out / node
        assert charon == [
            f"STRONGSWAN_CONF={files}/strongswan.conf",
            "/usr/sbin/charon-systemd",
            "&",
        ]
        assert wait[0] == "until"
        for words in (wait, load):
            assert f"unix://{files}/charon.vici" in [word.rstrip(";") for word in words]
        assert wait_for_it[:4] == ["until", "dsmip-ipsec", "control", f"{files}/daemon.toml"]
        assert daemon == ["dsmip-ipsec", role, "--config", f"{files}/daemon.toml", "&"]
        assert all(
            words[:3] == ["dsmip-ipsec", "control", f"{files}/daemon.toml"] for words in others
        )


def test_the_readmes_inventory_is_that_of_the_example() -> None:
    """Which a kernel test stands up, so that the README's can't go wrong unnoticed."""
    root = Path(__file__).parents[3]
    text = (root / "docs" / "examples" / "deployment" / "inventory.toml").read_text()
    shown = "".join(f"    {line}" if line.strip() else line for line in text.splitlines(True))
    assert shown in (root / "README.md").read_text()
