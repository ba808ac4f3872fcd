"""The handover matrix as golden files: what each move changes, readable beside RFC 5555 §5.

One file for each role, way of moving the data SAs, and protection; in it a section for each ordered
pair of places, in it a line for each operation. Addresses have names (the file's head explains).

Not in the files, because a test shows that it changes nothing: the K bit (it says who updates the
IKE_SA, which is no kernel state), and MOBIKE where no data SA exists. K = 1 together with MOBIKE is
legal and idle: MOBIKE moves the IKE_SA in any case (RFC 5555 §5.1).

``pytest tests/unit/ipsec --update-golden`` writes them anew; the diff is then for a reviewer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from dsmip_ipsec.cli.plan import load
from dsmip_ipsec.cli.situation_file import SituationFile
from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.ipsec.model import Action, Mode, Policy, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Role
from dsmip_ipsec.ipsec.plan import Operation, Verb
from dsmip_ipsec.ipsec.plan_commands import as_ip_xfrm
from dsmip_ipsec.ipsec.plan_text import as_json, as_text
from dsmip_ipsec.ipsec.situation import Situation, handover

GOLDEN = Path(__file__).parent / "golden"

NAT = {"care_of_address": "10.0.0.100", "nat_detected": True}
# What a situation file says of each place of the matrix.
PLACES: dict[str, dict[str, Any]] = {
    "home": {},
    "ipv6": {"binding": {"care_of_address": "2001:db8:2::100"}},
    "ipv6 2": {"binding": {"care_of_address": "2001:db8:3::100"}},
    "public": {"binding": {"care_of_address": "198.51.100.100"}},
    "nat": {"binding": {**NAT, "outer": "192.0.2.2:40191", "esp": "192.0.2.2:40450"}},
    "nat rebound": {"binding": {**NAT, "outer": "192.0.2.2:50191", "esp": "192.0.2.2:50450"}},
    "nat, ESP not heard": {"binding": {**NAT, "outer": "192.0.2.2:40191"}},
    "HA behind NAT": {
        "home_agent_behind_nat": True, "binding": {"care_of_address": "198.51.100.100"},
    },
}  # fmt: skip
AWAY = [place for place in PLACES if place != "home"]
NAMES = {
    "2001:db8:100::100": "HoA", "203.0.113.200": "HoA4", "2001:db8:100::1": "HA",
    "203.0.113.2": "HA4", "2001:db8:2::100": "CoA6", "2001:db8:3::100": "CoA6'",
    "198.51.100.100": "CoA4", "10.0.0.100": "CoA-private", "192.0.2.2": "NAT",
    "2001:db8:100:1::": "MNP",
}  # fmt: skip
REQIDS = {
    "55501": "signalling", "55502": "mirror", "55503": "data", "55504": "prefix-discovery",
    "55505": "return-routability",
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "mobike": {"mobike": True},
    "no-mobike": {"mobike": False},
    "mobile-router": {"mobike": False, "mobile_network_prefixes": ["2001:db8:100:1::/64"]},
    "unprotected-data": {
        "mobike": False, "protect_data": False, "prefix_discovery": True,
        "return_routability": True,
    },
    "unprotected-data-and-signalling-only": {"mobike": False, "protect_data": False},
}  # fmt: skip


ORDER = [
    Verb.MOVE_ASSOCIATION, Verb.ADD_EXTENSION, Verb.UPDATE_EXTENSION, Verb.UPDATE_POLICY,
    Verb.DELETE_EXTENSION,
]  # fmt: skip


def situation(role: Role, variant: str, place: str, **overridden: Any) -> Situation:
    return SituationFile.model_validate(
        {
            "role": role,
            "home_address": "2001:db8:100::100",
            "ipv4_home_address": "203.0.113.200",
            "home_agent": "2001:db8:100::1",
            "home_agent_ipv4": "203.0.113.2",
            **VARIANTS[variant],
            **PLACES[place],
            **overridden,
        }
    ).situation()


def moves(role: Role, variant: str, before: str, after: str) -> tuple[Operation, ...]:
    return handover(situation(role, variant, before), situation(role, variant, after))


def compact(operations: tuple[Operation, ...]) -> str:
    """One line an operation, from the text that users read."""
    lines = []
    for paragraph in re.split(r"\n(?= ?\d+ )", as_text(operations).rstrip()):
        parts = [" ".join(line.split()) for line in paragraph.split("\n")]
        lines.append("; ".join(parts))
    return re.sub(r"reqid (\d+)", lambda m: f"reqid {REQIDS[m[1]]}", _named("\n".join(lines)))


def _named(text: str) -> str:
    for address in sorted(NAMES, key=len, reverse=True):
        text = re.sub(
            rf"(?<![\w:.]){re.escape(address)}(/128|/32)?(?![\w:.])", NAMES[address], text
        )
    return text


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matrix(role: Role, variant: str, request: pytest.FixtureRequest) -> None:
    names = ", ".join(f"{name} {address}" for address, name in NAMES.items())
    sections = [
        f"=== {before} -> {after}\n{compact(moves(role, variant, before, after))}\n"
        for before, after in permutations(PLACES, 2)
    ]
    text = f"{role.value}, {variant}\n{names}\n\n" + "\n".join(sections)
    path = GOLDEN / f"{role.value}-{variant}.txt"
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_k_bit_changes_nothing_in_the_kernel(role: Role, variant: str) -> None:
    for before, after in permutations(PLACES, 2):
        old, new = situation(role, variant, before), situation(role, variant, after)
        if new.binding is not None:
            moved = replace(new, binding=replace(new.binding, key_mobility=True))
            assert handover(old, moved) == handover(old, new)


@pytest.mark.parametrize("role", Role)
def test_without_data_sas_mobike_changes_nothing(role: Role) -> None:
    variant = "unprotected-data-and-signalling-only"
    for before, after in permutations(PLACES, 2):
        old, new = (situation(role, variant, place, mobike=True) for place in (before, after))
        assert handover(old, new) == moves(role, variant, before, after)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_a_mobile_node_at_home_may_say_in_clear_has_no_policy(
    role: Role, variant: str
) -> None:
    """Every selector of an away mobile node is protected or blocked, never let through, but for
    what stays in the networks behind it."""
    for place in AWAY:
        operations = moves(role, variant, "home", place)
        policies = [o.subject for o in operations if isinstance(o.subject, Policy)]
        assert all(p.template is None or p.template.reqid for p in policies)
        inside = VARIANTS[variant].get("mobile_network_prefixes", [])
        for policy in policies:
            ends = {str(policy.selector.source), str(policy.selector.destination)}
            assert policy.action is not Action.BYPASS or ends & set(inside)
            assert policy.action is not Action.BYPASS or not ends & {"::/0", "0.0.0.0/0"}
        payload = [p for p in policies if str(p.selector.destination) in ("::/0", "0.0.0.0/0")]
        if VARIANTS[variant].get("protect_data", True):
            assert payload


@pytest.mark.rfc("5555-5.1-6")
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("before", "after"), list(permutations(PLACES, 2)))
def test_with_mobike_no_data_sa_is_touched(role: Role, before: str, after: str) -> None:
    """RFC 5555 §5.1: "MUST NOT update their IPsec SAs locally"."""
    for operation in moves(role, "mobike", before, after):
        assert operation.verb is not Verb.MOVE_ASSOCIATION


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("before", "after"), list(permutations(AWAY, 2)))
def test_a_move_goes_to_the_new_place_before_the_policies_do(
    role: Role, before: str, after: str
) -> None:
    operations = moves(role, "no-mobike", before, after)
    verbs = [o.verb for o in operations]
    assert verbs == sorted(verbs, key=ORDER.index)
    moved = [o.subject for o in operations if isinstance(o.subject, SecurityAssociation)]
    templates = [
        o.subject.template
        for o in operations
        if isinstance(o.subject, Policy) and o.subject.template is not None
    ]
    for template in templates:
        assert template.mode is Mode.TRANSPORT or any(
            (sa.source, sa.destination) == (template.source, template.destination) for sa in moved
        )


def test_there_and_back_is_nothing() -> None:
    for role in Role:
        for variant in VARIANTS:
            for place in PLACES:
                assert moves(role, variant, place, place) == ()


def test_json_has_every_operation_and_no_key() -> None:
    operations = moves(Role.HOME_AGENT, "no-mobike", "nat", "public")
    values = json.loads(json.dumps(as_json(operations)))
    assert [v["operation"] for v in values] == [o.verb.value for o in operations]
    assert values[0]["before"]["encapsulation"] == {
        "source_port": 40450,
        "destination_port": 4500,
    }
    assert values[0]["subject"]["encapsulation"] is None
    assert "key" not in json.dumps(values).lower()


def test_ip_xfrm_commands_name_what_is_to_be_filled_in() -> None:
    text = as_ip_xfrm(moves(Role.MOBILE_NODE, "no-mobike", "home", "nat"))
    commands = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(line.startswith(("ip xfrm policy ", "ip xfrm state ")) for line in commands)
    assert set(re.findall(r"\$KEY_\w+", text)) == {"$KEY_00000001", "$KEY_00000002"}


def test_the_command_reads_toml_and_json(tmp_path: Path) -> None:
    common = (
        'role = "home_agent"\nmobike = false\nhome_address = "2001:db8:100::100"\n'
        'home_agent = "2001:db8:100::1"\nhome_agent_ipv4 = "203.0.113.2"\n'
    )
    a, b = tmp_path / "a.toml", tmp_path / "b.json"
    a.write_text(common + '[binding]\ncare_of_address = "198.51.100.1"\n')
    b.write_text(
        json.dumps(
            {
                "role": "home_agent", "mobike": False, "home_address": "2001:db8:100::100",
                "home_agent": "2001:db8:100::1", "home_agent_ipv4": "203.0.113.2",
                "binding": {
                    "care_of_address": "10.0.0.2", "outer": "192.0.2.2:4", "nat_detected": True
                },
            }
        )
    )  # fmt: skip
    command = [sys.executable, "-m", "dsmip_ipsec", "plan", "--from", str(a), "--to", str(b)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "move sa 0x00000003" in result.stdout
    assert "there is a NAT" in result.stdout
    assert as_text(handover(load(a), load(b))) == result.stdout


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("role = 1", "role"),
        ("nonsense", "can't be parsed"),
        ('role = "home_agent"\nbogus = 1', "home_address"),
        ('role = "home_agent"\nmobil = true', "x.toml:2: unknown key 'mobil'"),
        ("\nmobil = true", "did you mean 'mobike'?"),
        ("\0", "can't be parsed"),
        ("a = " + "[" * 5000, "can't be parsed"),
    ],
)
def test_broken_files_are_told_by_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    command = [sys.executable, "-m", "dsmip_ipsec", "plan", "--from", str(path), "--to", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert named in result.stderr
    assert "hint: " in result.stderr
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "named"),
    [("[]", "valid dictionary"), ('{"mobil": 1}', "lacks the key"), ("[" * 100000, "parsed")],
)
def test_broken_json_is_told_by_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load(path)
    assert caught.value.hint
