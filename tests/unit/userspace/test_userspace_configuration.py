"""Configured SAs: what a daemon's file may say, and what it is told otherwise."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.node.config import HomeAgentConfig, MobileNodeConfig, load
from dsmip_ipsec.node.configured_sas import associations

CBC = {"name": "cbc(aes)", "key": "11" * 16}
MAC = {"name": "hmac(sha256)", "key": "22" * 32, "icv_bits": 128}
GCM = {"name": "rfc4106(gcm(aes))", "key": "33" * 20, "icv_bits": 128}


def sas(**changes: Any) -> list[dict[str, Any]]:
    """The four SAs of a mobile node; ``changes`` go into the first."""
    pairs = [(use, to) for use in ("signalling", "data") for to in ("home_agent", "mobile_node")]
    found: list[dict[str, Any]] = [
        {"use": use, "to": to, "spi": 0x1001 + i, "encryption": CBC, "authentication": MAC}
        for i, (use, to) in enumerate(pairs)
    ]
    found[0] = {k: v for k, v in {**found[0], **changes}.items() if v is not None}
    return found


def write(path: Path, sections: list[dict[str, Any]], **changes: Any) -> Path:
    peer = {
        "home_address": "2001:db8:100::100",
        "signalling_reqid": 1,
        "mirror_reqid": 2,
        "data_reqid": 3,
        "associations": sections,
    }
    document = {
        "control_socket": "mn.sock",
        "ipsec": "userspace",
        "home_agent": {"home_agent": "2001:db8:100::1", "home_agent_ipv4": "203.0.113.2"},
        "mobile_node": peer,
        **changes,
    }
    path.touch(mode=0o600)
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    return path


def read(path: Path, sections: list[dict[str, Any]], **changes: Any) -> list[str]:
    config = load(write(path / "mn.toml", sections, **changes), MobileNodeConfig)
    return [str(sa) for sa in associations(config.peering(), config.mobile_node.associations)]


def test_four_sas_of_a_mobile_node(tmp_path: Path) -> None:
    assert read(tmp_path, sas()) == [
        "esp transport 2001:db8:100::100 -> 2001:db8:100::1 spi 0x00001001 reqid 1",
        "esp transport 2001:db8:100::1 -> 2001:db8:100::100 spi 0x00001002 reqid 1",
        "esp tunnel 0.0.0.0 -> 203.0.113.2 spi 0x00001003 reqid 3",
        "esp tunnel 203.0.113.2 -> 0.0.0.0 spi 0x00001004 reqid 3",
    ]


NO_CBC = {"encryption": None, "authentication": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use": "data", "to": "home_agent"}, "2 data SAs to the home agent"),
        ({"spi": 0x1002}, "an SPI of 2001:db8:100::100 is there twice"),
        ({"authentication": None}, "SA 0x00001001 has no integrity"),
        ({"encryption": {**CBC, "key": "xx"}}, "the key of cbc(aes) isn't hexadecimal"),
        ({"encryption": {**CBC, "key": "11" * 5}}, "takes a key of 16 or 24 or 32 octets"),
        ({"encryption": {**CBC, "name": "rot13"}}, "no encryption algorithm 'rot13'"),
        ({**NO_CBC}, "neither an AEAD nor an encryption algorithm"),
        ({"aead": GCM}, "an AEAD needs no other algorithm"),
        ({**NO_CBC, "aead": GCM}, "rfc4106(gcm(aes)) with a configured key"),
    ],
)
def test_sas_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, sas(**changes))
    assert message in caught.value.message
    assert "11" * 5 not in str(caught.value)


def test_aead_with_a_fresh_key(tmp_path: Path) -> None:
    assert len(read(tmp_path, sas(**NO_CBC, aead=GCM, fresh_key=True))) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ipsec": "kernel"}, '"associations" belong to ipsec = "userspace"'),
        ({"ike": {"vici_socket": "x", "connection": "y"}}, 'a section "ike" belongs to'),
        ({"ipsec": "magic"}, "ipsec should be 'kernel' or 'userspace'"),
    ],
)
def test_keys_come_from_one_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, sas(), **changes)
    assert message in caught.value.message
    assert "11" * 16 not in str(caught.value)


@pytest.mark.parametrize(
    ("reqid", "changes", "message"),
    [
        ("prefix_discovery_reqid", {"ipsec": "userspace"}, 'belongs to ipsec = "kernel"'),
        ("return_routability_reqid", {}, "belongs to protect_data = false"),
    ],
)
def test_reqids_without_sas(
    tmp_path: Path, reqid: str, changes: dict[str, Any], message: str
) -> None:
    """RFC 4877's other SAs: IKE has to make them, and HoTI and HoT may be payload."""
    path = write(tmp_path / "mn.toml", [])
    document = tomllib.loads(path.read_text())
    document["mobile_node"][reqid] = 4
    ike = {"vici_socket": "x", "connection": "y"}
    document |= {"ipsec": "kernel", "ike": ike, **changes}
    path.write_text(tomli_w.dumps(document), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load(path, MobileNodeConfig)
    if not changes:
        path.write_text(tomli_w.dumps({**document, "protect_data": False}), encoding="utf-8")
        assert load(path, MobileNodeConfig).peering().reqids.return_routability == 4


@pytest.mark.parametrize(
    ("before", "after", "message", "hint"),
    [
        ("ipsec =", "ipsek =", "mn.toml:2: unknown key 'ipsek'", "did you mean 'ipsec'?"),
        (
            'control_socket = "mn.sock"',
            "",
            "mn.toml: the file lacks the key 'control_socket'",
            "add 'control_socket'",
        ),
        ('"userspace"', '"userspace', "mn.toml:2: not TOML", "missing quote"),
        ("spi = 4097", "spi = 7", "[1].spi should be greater than 255", "docs/daemons.md"),
    ],
)
def test_mistakes_are_told_with_line_and_hint(
    tmp_path: Path, before: str, after: str, message: str, hint: str
) -> None:
    path = write(tmp_path / "mn.toml", sas())
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        load(path, MobileNodeConfig)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("key", ["1" * 32, '"' + "1" * 32 + '"', '["' + "1" * 32 + '"]'])
@pytest.mark.parametrize("name", ["encryption", "encryption.key", "spi", "aead"])
def test_no_key_is_shown_wherever_it_was_put(tmp_path: Path, name: str, key: str) -> None:
    path = write(tmp_path / "mn.toml", [])
    path.write_text(f"{path.read_text()}\n[[mobile_node.associations]]\n{name} = {key}\n")
    path.write_text(path.read_text().replace("associations = []\n", ""))
    with pytest.raises(ConfigError) as caught:
        load(path, MobileNodeConfig)
    assert "associations[1]" in str(caught.value) + caught.value.hint
    assert "1" * 32 not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    "content", [b"\xff", b"a = " + b"[" * 3000, b"x" * 100, b"[mobile_node]\n" * 2]
)
def test_what_is_no_configuration_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mn.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, MobileNodeConfig)
    assert caught.value.hint


def test_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mn.toml", sas())
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others may read it") as caught:
        load(path, MobileNodeConfig)
    assert "chmod 600" in caught.value.hint


def test_keys_stay_out_of_reprs(tmp_path: Path) -> None:
    config = load(write(tmp_path / "mn.toml", sas()), MobileNodeConfig)
    assert "11" * 16 not in repr(config) + repr(config.mobile_node.associations)
    sections = {"mobile_nodes": [config.mobile_node.model_dump()]}
    assert "11" * 16 not in str(sections)
    assert HomeAgentConfig.model_fields["ipsec"].default == "kernel"
