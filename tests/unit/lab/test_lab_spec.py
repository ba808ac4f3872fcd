"""Lab files: what is accepted, and how what isn't is told."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import routes
from dsmip_ipsec.lab.spec import Lab, MobileNode, Nat, load, parse

LAB = Path(__file__).parents[3] / "labs" / "nat-handover.toml"
TEXT = LAB.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lab() -> Lab:
    return load(LAB)


def changed(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new, 1)


def failure(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text, "x.toml")
    return caught.value


# The lab that comes along ------------------------------------------------------------------------


def test_nat_handover_lab_is_the_one_that_was_asked_for(lab: Lab) -> None:
    assert lab.lab.name == "nat-handover"
    nat = lab.nodes["nat"]
    assert isinstance(nat, Nat)
    assert nat.mapping == "random"
    inside, public = lab.ipv4_address("mn", "visited-a"), lab.ipv4_address("mn", "visited-b")
    assert inside in ip_network("10.0.0.0/8")
    assert public is not None
    assert lab.flow.interval_ms == 5
    assert lab.data.protected
    assert [(step.verb, step.network) for step in lab.steps] == [
        ("attach", "visited-a"),
        ("move", "visited-b"),
        ("move", "visited-a"),
        ("deregister", None),
    ]
    for step in lab.steps[1:3]:
        assert step.expect.interruption_max is not None
        assert step.expect.interruption_max.milliseconds(40) == 200
    assert [step.expect.nat_detected for step in lab.steps] == [True, False, True, None]


def test_every_public_prefix_is_a_documentation_prefix(lab: Lab) -> None:
    """RFC 5737, RFC 3849."""
    allowed = [
        ip_network(prefix)
        for prefix in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    ]
    found = [
        p for name in lab.links for family in (4, 6) for p in routes.prefixes(lab, name, family)
    ]
    private = ip_network("10.0.0.0/24")
    assert private in found
    for prefix in found:
        covered = [p for p in allowed if prefix.network_address in p and prefix[-1] in p]
        assert covered or prefix == private


def test_one_way_delay_to_the_home_agent_is_20_ms(lab: Lab) -> None:
    assert routes.rtt_ms(lab, "mn", "visited-a", "ha") == 40
    assert routes.rtt_ms(lab, "mn", "visited-b", "ha") == 40


def test_home_agent_addresses_come_from_the_home_link_when_not_given(lab: Lab) -> None:
    assert lab.home_agent_ipv4_address("ha") == ip_address("203.0.113.2")
    text = changed('ipv4_address = "203.0.113.2"\n', "")
    assert parse(text).home_agent_ipv4_address("ha") == ip_address("203.0.113.129")
    assert parse(text).home_agent_address("ha") == ip_address("2001:db8:100::1")


def test_models_are_immutable(lab: Lab) -> None:
    node = lab.nodes["mn"]
    assert isinstance(node, MobileNode)
    with pytest.raises(ValueError, match="frozen"):
        node.home_address = None  # type: ignore[assignment]


# Mistakes ----------------------------------------------------------------------------------------

MISTAKES = [
    # (old, new, words of the message, words of the hint); the line is the new text's last
    ("delay_ms = 20", "delay_mss = 20", "unknown key 'delay_mss' in [links.backbone]", "delay_ms"),
    ("[flow]", "[flows]", "unknown key 'flows' in the file", "did you mean 'flow'"),
    ("rtts = 2, ms", "rtts = 2, msec", "unknown key 'msec' in steps[2].expect", "mean 'ms'"),
    ("binding = true ", "bindings = true ", "unknown key 'bindings' in steps[1]", "'binding'"),
    ('role = "router"', 'role = "ruter"', "[nodes.core] has no known role", "mean 'router'"),
    ('[nodes.core]\nrole = "router"', "[nodes.core]", "[nodes.core] lacks the key 'role'", "nat"),
    ("delay_ms = 20", 'delay_ms = "20"', "links.backbone.delay_ms should be a valid number", ""),
    ("delay_ms = 20", "delay_ms = -1", "links.backbone.delay_ms should be greater", ""),
    ("interval_ms = 5", "interval_ms = nan", "flow.interval_ms", ""),
    ('"198.51.100.1/24"', '"198.51.100.1"', "links.visited-b.ends.core[1] should be an addr", ""),
    ('"198.51.100.1/24"', '"198.51.100.0/24"', "network's or broadcast address", ""),
    ('inside = "visited-a"', 'inside = "visted-a"', "'visted-a' is no link of 'nat'", "visited-a"),
    ('inside = "visited-a"', 'inside = "backbone"', "'backbone' is no link of 'nat'", "access-a"),
    ('move = "visited-b"', 'move = "visted-b"', "'visted-b' is no link of 'mn'", "visited-b"),
    ('move = "visited-b"', 'attach = "visited-b"', "is on 'visited-a' already", "move"),
    ('mn = ["198.51', 'mx = ["198.51', "'mx' is no node", "'mn'"),
    ('"2001:db8:100::100"', '"2001:db8:101::100"', "in no prefix of a home link", "100::/64"),
    ('"2001:db8:100::100"', '"2001:db8:100::1"', "an address of 'ha' too", ""),
    ('ipv4_address = "203.0.113.2"', 'ipv4_address = "203.0.113.9"', "no address of 'ha'", ".129"),
    ('mapping = "random"', 'mapping = "rnd"', "nodes.nat.mapping should be 'random' or", ""),
    ("deregister = true", "deregister = false", "steps[4].deregister should be true", ""),
    ('name = "nat-handover"', 'name = "NAT"', "the name 'NAT' should match", "lower-case"),
    ("[ike]", "[ike", "not TOML", "quote, bracket"),
    ('auth = "certificate"', 'auth = "psk"\nauth = "psk"', "not TOML: cannot overwrite", ""),
]


@pytest.mark.parametrize(("old", "new", "message", "hint"), MISTAKES)
def test_mistake_is_told_with_its_line(old: str, new: str, message: str, hint: str) -> None:
    text = changed(old, new)
    error = failure(text)
    assert message in str(error)
    assert hint in error.hint
    offset = TEXT.index(old) + len(new)
    assert error.line == text.count("\n", 0, offset) + 1
    assert str(error).startswith(f"x.toml:{error.line}: ")


@pytest.mark.parametrize("verbs", ["", 'attach = "visited-b"\nmove = "visited-b"'])
def test_step_has_exactly_one_verb(verbs: str) -> None:
    error = failure(changed('move = "visited-b"', verbs))
    assert "must have one verb" in str(error)
    assert TEXT.splitlines()[error.line - 1] == "[[steps]]"
    assert "move to the public network" in str(error)


def test_overlapping_links_are_refused_only_where_one_node_sees_both() -> None:
    assert "overlaps 192.0.2.0/30" in str(failure(changed('"192.0.2.129/25"', '"192.0.2.3/25"')))
    second = """
[nodes.nat2]
role = "nat"
inside = "private-2"
outside = "access-2"
[links.private-2]
ends = { nat2 = ["10.0.0.1/24"], mn = ["10.0.0.100/24"] }
[links.access-2]
ends = { core = ["192.0.2.5/30"], nat2 = ["192.0.2.6/30"] }
"""
    assert "private-2" in parse(TEXT + second).links  # as behind any two NATs of this world


def test_several_mistakes_are_all_named() -> None:
    error = failure(changed("delay_ms = 20", "delay = 20").replace("[flow]", "[flows]"))
    assert "unknown key 'delay'" in str(error)
    assert "unknown key 'flows'" in error.hint


def test_network_without_a_way_to_a_home_agent_is_refused() -> None:
    text = changed('access-a]\nends = { core = ["192.0.2.1/30"], ', "access-a]\nends = { ")
    error = failure(text)
    assert "no home agent can be reached from 'visited-a'" in str(error)
    assert text.splitlines()[error.line - 1] == 'attach = "visited-a"'


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="lacks the key 'lab'"):
        parse("")
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse("a = " + "[" * 5000)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files_give_typed_errors_only(data: st.DataObject) -> None:
    text = TEXT
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        inserted = data.draw(st.text("[]{}=\"'.,# \n0a:/-\\é", max_size=4))
        text = text[:start] + inserted + text[start + length :]
    line = 0
    try:
        parse(text, "x.toml")
    except ConfigError as error:
        line = error.line
    assert 0 <= line <= text.count("\n") + 1
