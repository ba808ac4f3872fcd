"""Snapshots are equal where nothing of meaning differs, and differ where something does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from report_samples import record

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab.record import (
    LinkSummary,
    NodeState,
    NodeSummary,
    Policy,
    RunRecord,
    SecurityAssociation,
    Topology,
)
from dsmip_ipsec.report import snapshot

TOPOLOGY = Topology(
    nodes=(
        NodeSummary(name="mn", role="mobile_node"),
        NodeSummary(name="nat", role="nat"),
        NodeSummary(name="ha", role="home_agent"),
    ),
    links=(
        LinkSummary(name="visited-a", ends={"mn": ("10.1.0.2/24",), "nat": ("10.1.0.1/24",)}),
        LinkSummary(name="visited-b", ends={"mn": ("192.0.2.130/25",)}),
        LinkSummary(name="access", ends={"nat": ("192.0.2.1/30",)}),
        LinkSummary(name="core", ends={"ha": ("203.0.113.1/24",)}),
        LinkSummary(name="home", ends={"ha": ("2001:db8:1::1/64",)}),
    ),
)


def sample() -> RunRecord:
    return record().model_copy(update={"topology": TOPOLOGY})


def changed(change: Callable[[dict[str, Any]], None]) -> RunRecord:
    """The sample with a change made to its JSON."""
    content = sample().model_dump(mode="json")
    change(content)
    return RunRecord.model_validate(content)


def by_text(*replacements: tuple[str, str]) -> RunRecord:
    text = sample().model_dump_json()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    return RunRecord.model_validate_json(text)


def after(content: dict[str, Any], step: int, node: str) -> dict[str, Any]:
    state: dict[str, Any] = content["steps"][step]["after"][node]
    return state


def difference(other: RunRecord) -> list[str]:
    return snapshot.difference(snapshot.of_record(sample()), snapshot.of_record(other))


def test_names_are_the_same_at_both_ends() -> None:
    text = snapshot.of_record(sample()).text()
    for spi in ("data mn>ha", "data ha>mn", "signalling mn>ha", "signalling ha>mn"):
        # Three steps with SAs, at two ends.
        assert len(re.findall(rf"^SA        {spi}: ", text, re.MULTILINE)) == 6
    # The binding's port (Z) and the SAs' are two mappings of the NAT.
    assert re.findall(r"port (nat\d)", text) == ["nat1", "nat2"] * 2
    assert "UDP nat2 > 4500" in text
    assert "mn.home/6 -> ::/0: esp tunnel mn@visited-b/4 -> ha@core/4 reqid data" in text


def test_it_is_stored_and_read_back() -> None:
    taken = snapshot.of_record(sample())
    assert snapshot.parse(taken.text()) == taken
    assert snapshot.difference(taken, snapshot.parse(taken.text())) == []


def test_nothing_random_is_in_it() -> None:
    other = by_text(
        ('"0xc1000001"', '"0xd7000009"'),
        ('"0xc2000001"', '"0x00000777"'),
        ('"0xc1000002"', '"0xffffff02"'),
        ('"0xc2000002"', '"0x00000500"'),
        ("41011", "1044"),
        ("40123", "65000"),
        ('"sequence":7', '"sequence":65535'),
        ('"reqid":2', '"reqid":5000'),
        ("reqid 2", "reqid 5000"),
        ('"uniqueid":"1"', '"uniqueid":"91"'),
        ('"lifetime_s":600', '"lifetime_s":588'),
    )
    assert snapshot.of_record(other) == snapshot.of_record(sample())


def test_the_order_of_a_dump_says_nothing() -> None:
    def reverse(content: dict[str, Any]) -> None:
        for step in content["steps"]:
            for state in step["after"].values():
                for key in ("sas", "policies", "ike", "bindings"):
                    state[key].reverse()

    assert snapshot.of_record(changed(reverse)) == snapshot.of_record(sample())


def test_a_missing_policy_shows_with_its_step_and_node() -> None:
    def drop(content: dict[str, Any]) -> None:
        after(content, 1, "ha")["policies"].clear()

    lines = difference(changed(drop))
    assert lines[0] == "step 'to-b', node ha:"
    assert [line for line in lines if line.startswith("-")] == [
        "- policy    out mn.home/6 -> ::/0: esp tunnel mn@visited-b/4 -> ha@core/4 "
        "reqid data, priority 100"
    ]
    assert not [line for line in lines if line.startswith("+")]
    assert any(line.startswith("  ") and "SA " in line for line in lines)


def test_an_old_encapsulation_shows() -> None:
    def keep(content: dict[str, Any]) -> None:
        old = after(content, 0, "ha")["sas"][2]["encapsulation"]
        after(content, 1, "ha")["sas"][2]["encapsulation"] = old

    lines = difference(changed(keep))
    assert any(line.startswith("- SA        data mn>ha") and "no UDP" in line for line in lines)
    assert any(line.startswith("+ SA") and "UDP nat2 > 4500" in line for line in lines)


def test_an_old_port_shows() -> None:
    """The NAT gave another port after coming back, which one SA doesn't follow."""

    def move(content: dict[str, Any], *, all_of_them: bool) -> None:
        sas = after(content, 2, "ha")["sas"]
        sas[2]["encapsulation"]["source_port"] = 50001
        if all_of_them:
            sas[3]["encapsulation"]["destination_port"] = 50001

    moved = snapshot.of_record(changed(lambda c: move(c, all_of_them=True)))
    stale = snapshot.of_record(changed(lambda c: move(c, all_of_them=False)))
    lines = snapshot.difference(moved, stale)
    assert lines[0] == "step 'back-to-a', node ha:"
    assert any(line.startswith("- SA        data ha>mn") and "> nat3" in line for line in lines)
    assert any(line.startswith("+ SA        data ha>mn") and "> nat2" in line for line in lines)


def test_a_rekeyed_sa_has_another_name_at_both_ends() -> None:
    def rekey(content: dict[str, Any]) -> None:
        for node in ("mn", "ha"):
            after(content, 2, node)["sas"][2]["spi"] = "0xdeadbeef"

    lines = difference(changed(rekey))
    assert [line for line in lines if "data mn>ha#2" in line and line.startswith("+")]
    assert {line for line in lines if line.startswith("step")} == {
        "step 'back-to-a', node ha:",
        "step 'back-to-a', node mn:",
    }


def test_an_sa_at_one_end_only_shows() -> None:
    def differ(content: dict[str, Any]) -> None:
        after(content, 2, "mn")["sas"][2]["spi"] = "0xdeadbeef"

    assert difference(changed(differ))


def test_steps_that_are_missing_or_new_show() -> None:
    short = changed(lambda content: content["steps"].pop())
    assert "step 'deregister', node ha: stored, but not seen" in difference(short)
    taken = snapshot.of_record(sample())
    assert "step 'deregister', node mn: seen, but not stored" in snapshot.difference(
        snapshot.of_record(short), taken
    )


def test_names_of_earlier_steps_dont_depend_on_later_ones() -> None:
    steps = [(step.name, step.after) for step in sample().steps]
    whole = snapshot.take(TOPOLOGY, steps).text()
    for count in range(1, len(steps)):
        part = snapshot.take(TOPOLOGY, steps[:count]).text()
        assert whole.startswith(part)


def test_addresses_of_no_lab_file() -> None:
    """Given by DHCP or SLAAC: the mobile node's; others are numbered."""
    sas = [
        SecurityAssociation.model_validate(
            {"spi": 1, "source": source, "destination": "203.0.113.1", "mode": "tunnel"}
        )
        for source in ("192.0.2.130", "192.0.2.77")
    ]
    mobile = sample().steps[1].after["mn"].model_copy(update={"sas": tuple(sas)})
    bare = TOPOLOGY.model_copy(update={"links": TOPOLOGY.links[3:]})
    text = snapshot.take(bare, [("one", {"mn": mobile})]).text()
    assert "care-of mn@visited-b/4" in text
    assert "tunnel mn@visited-b/4 > ha@core/4" in text
    assert "tunnel address1 > ha@core/4" in text


def test_hostile_names_dont_break_the_format() -> None:
    state = NodeState(
        policies=(
            Policy(direction="in", selector="x\n== fake == mn", template="reqid 99999 1:2:3/4"),
        )
    )
    taken = snapshot.take(Topology(), [("a == b ==\nc", {"mn": state})])
    again = snapshot.parse(taken.text())
    assert len(again.sections) == 1
    assert snapshot.difference(taken, again) == []


@pytest.mark.parametrize("text", ["", "nonsense\n", snapshot.FORMAT + "\nSA lost\n"])
def test_other_files_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        snapshot.parse(text)
    assert "--dsmip-update-snapshots" in caught.value.hint
