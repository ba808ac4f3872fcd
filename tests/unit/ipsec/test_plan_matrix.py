"""The handover matrix as golden files: what each move changes, readable beside RFC 5555 §5.

``pytest tests/unit/ipsec --update-golden`` writes them anew; the diff is then for a reviewer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from ipaddress import IPv4Address
from itertools import permutations
from pathlib import Path

import pytest

from dsmip_ipsec.cli.plan import load
from dsmip_ipsec.cli.situation_file import BindingTable, SituationFile
from dsmip_ipsec.ipsec.model import Mode, Policy, SecurityAssociation
from dsmip_ipsec.ipsec.peering import Role
from dsmip_ipsec.ipsec.plan import Operation, Verb
from dsmip_ipsec.ipsec.plan_text import as_ip_xfrm, as_json, as_text
from dsmip_ipsec.ipsec.situation import Situation, handover

GOLDEN = Path(__file__).parent / "golden"

# One mobile node in the places of the matrix; IPv6 is not in it yet.
PLACES: dict[str, BindingTable | None] = {
    "home": None,
    "public": BindingTable(care_of_address=IPv4Address("198.51.100.100")),
    "public 2": BindingTable(care_of_address=IPv4Address("198.51.100.222")),
    "nat": BindingTable.model_validate(
        {"care_of_address": "10.0.0.100", "outer": "192.0.2.2:40191", "nat_detected": True,
         "esp": "192.0.2.2:40450"}
    ),
    "nat rebound": BindingTable.model_validate(
        {"care_of_address": "10.0.0.100", "outer": "192.0.2.2:50191", "nat_detected": True,
         "esp": "192.0.2.2:50450"}
    ),
    "nat, ESP not heard": BindingTable.model_validate(
        {"care_of_address": "10.0.0.100", "outer": "192.0.2.2:40191", "nat_detected": True}
    ),
}  # fmt: skip
VARIANTS = {
    "mobike": {"mobike": True},
    "no-mobike": {"mobike": False},
    "no-mobike-ha-behind-nat": {"mobike": False, "home_agent_behind_nat": True},
    "unprotected-data": {"mobike": False, "protect_data": False},
}


def situation(role: Role, variant: str, place: str) -> Situation:
    file = SituationFile.model_validate(
        {
            "role": role,
            "home_address": "2001:db8:100::100",
            "ipv4_home_address": "203.0.113.200",
            "home_agent": "2001:db8:100::1",
            "home_agent_ipv4": "203.0.113.2",
            **VARIANTS[variant],
        }
    )
    return file.model_copy(update={"binding": PLACES[place]}).situation()


def moves(role: Role, variant: str, before: str, after: str) -> tuple[Operation, ...]:
    return handover(situation(role, variant, before), situation(role, variant, after))


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("variant", VARIANTS)
def test_matrix(role: Role, variant: str, request: pytest.FixtureRequest) -> None:
    sections = [
        f"=== {before} -> {after}\n\n{as_text(moves(role, variant, before, after))}"
        for before, after in permutations(PLACES, 2)
    ]
    text = f"{role.value}, {variant}\n\n" + "\n".join(sections)
    path = GOLDEN / f"{role.value}-{variant}.txt"
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.rfc("5555-5.1-6")
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("before", "after"), list(permutations(PLACES, 2)))
def test_with_mobike_no_data_sa_is_touched(role: Role, before: str, after: str) -> None:
    """RFC 5555 §5.1: "MUST NOT update their IPsec SAs locally"."""
    for operation in moves(role, "mobike", before, after):
        assert operation.verb is not Verb.MOVE_ASSOCIATION


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    ("before", "after"), list(permutations([p for p in PLACES if p != "home"], 2))
)
def test_a_move_goes_to_the_new_place_before_the_policies_do(
    role: Role, before: str, after: str
) -> None:
    operations = moves(role, "no-mobike", before, after)
    verbs = [o.verb for o in operations]
    assert verbs == sorted(verbs, key=[Verb.MOVE_ASSOCIATION, Verb.UPDATE_POLICY].index)
    moved = [o.subject for o in operations if isinstance(o.subject, SecurityAssociation)]
    templates = [
        o.subject.template
        for o in operations
        if isinstance(o.subject, Policy) and o.subject.template is not None
    ]
    for template in templates:
        assert template.mode is Mode.TUNNEL
        assert any(
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
        ("\0", "can't be parsed"),
    ],
)
def test_broken_files_are_told_by_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    command = [sys.executable, "-m", "dsmip_ipsec", "plan", "--from", str(path), "--to", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert named in result.stderr
    assert str(path) in result.stderr
    assert "Traceback" not in result.stderr
