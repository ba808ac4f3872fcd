"""User-space IPsec in labs: what is refused, by which name, and what can't be judged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomli_w

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import ipsec_kind
from dsmip_ipsec.lab.expect_models import Expect
from dsmip_ipsec.lab.spec import Lab, load, parse
from dsmip_ipsec.lab.spec_models import Step

PROJECT = Path(__file__).parents[3]
LABS = PROJECT / "labs"
# Labs that can't, with the words that say why. docs/labs.md tells it, too.
UNFIT = {
    "dual-stack-fallback": "IPv6 care-of address on dual",
    "ipv4-applications": "IPv6 care-of address on six",
    "home-agent-restart": "sequence numbers, hence IVs, again",
    "home-link": "mn returns home",
    "ipv6-handover": "IPv6 care-of address on six-b",
    "narrow-link": "copy_df = false",
    "narrow-link-plain": "protected = false",
    "nat-handover-k-bit": "mobility = 'k-bit'",
    "nat-handover-renegotiate": "mobility = 'renegotiate'",
    "plain-data": "protected = false",
    "slaac": "IPv6 router advertisements",
    "small-mtu": "narrow (visited-a)",
}


def lab(**changes: object) -> Lab:
    text = (LABS / "nat-handover.toml").read_text(encoding="utf-8")
    return parse(re.sub(r"(?m)^\[\[steps\]\](.|\n)*", "", text) + tomli_w.dumps(changes))


def refusal(name: str) -> str:
    """What a lab that comes along is refused with; "" if it isn't."""
    declared = load(LABS / f"{name}.toml")
    ipsec_kind.check(declared, "kernel")
    try:
        ipsec_kind.check(declared, "userspace")
    except ConfigError as error:
        return f"{error.message} ({error.hint})"
    return ""


@pytest.mark.parametrize("name", UNFIT)
def test_a_lab_that_cannot_run_says_why(name: str) -> None:
    said = refusal(name)
    assert UNFIT[name] in said
    assert f"the lab {name} can't" in said
    assert "without --ipsec userspace" in said


def test_the_manual_is_right_about_labs() -> None:
    text = (PROJECT / "docs" / "labs.md").read_text(encoding="utf-8")
    section = text.split("## Without ESP in the kernel", 1)[1].split("\n## ", 1)[0]
    _, _, refused = section.partition("| lab | why not |")
    unfit = re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"(?m)^\|([^|]*)\|", refused)))
    assert [name for name in unfit if not refusal(name)] == []
    assert set(unfit) == UNFIT.keys()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"kill": "charon of mn"}, "there is no charon of mn"),
        ({"restart": "ha"}, "restart"),
        ({"move": "home"}, "returns home"),
    ],
)
def test_steps_are_refused_one_by_one(step: dict[str, str], words: str) -> None:
    text = re.sub(r"ends = { ha = (\[.*?\]) }", r"ends = { ha = \1, mn = [] }",
                  (LABS / "nat-handover.toml").read_text(encoding="utf-8"))  # fmt: skip
    declared, wanted = parse(text), Step.model_validate({"name": "one", **step})
    ipsec_kind.check_step(declared, wanted, "kernel")
    with pytest.raises(ConfigError, match=words):
        ipsec_kind.check_step(declared, wanted, "userspace")


def test_steps_that_can_be_are() -> None:
    for step in ({"move": "visited-b"}, {"kill": "daemon of ha"}, {"deregister": True}):
        ipsec_kind.check_step(lab(), Step.model_validate({"name": "one", **step}), "userspace")


def test_a_wrong_key_of_ike_is_refused() -> None:
    text = (LABS / "nat-handover.toml").read_text(encoding="utf-8")
    declared = parse(text.replace("[ike]", '[ike]\nwrong_key = "mn"'))
    with pytest.raises(ConfigError, match="wrong_key"):
        ipsec_kind.check(declared, "userspace")


EVERYTHING = {
    "binding": True,
    "ike_alive": True,
    "same_ike_sa": True,
    "sad_consistent": True,
    "security_associations": 0,
    "policies": 0,
    "ike_sas": 1,
    "esp_in_udp": True,
    "data": True,
}


def test_what_cannot_be_judged_is_taken_out_and_named() -> None:
    expect = Expect.model_validate(EVERYTHING)
    assert ipsec_kind.applicable(expect, "kernel") == (expect, ())
    left, missing = ipsec_kind.applicable(expect, "userspace")
    assert left.model_dump(exclude_defaults=True) == {
        "binding": True, "sad_consistent": True, "esp_in_udp": True, "data": True,
    }  # fmt: skip
    assert [item.name for item in missing] == [
        "IKE exchange", "same IKE_SA", "IKE_SAs", "security associations", "policies",
    ]  # fmt: skip
    assert all(item.reason for item in missing)


def test_asked_for_alone_it_is_an_error() -> None:
    ipsec_kind.check_expect(Expect(ike_alive=True), "kernel")
    ipsec_kind.check_expect(Expect(sad_consistent=True), "userspace")
    with pytest.raises(ConfigError, match="'IKE exchange' can't be judged"):
        ipsec_kind.check_expect(Expect(ike_alive=True), "userspace")
