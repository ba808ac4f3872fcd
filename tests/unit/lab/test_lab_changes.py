"""Steps that take something away and give it back, static NATs, and what is judged of changes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import nat, routes
from dsmip_ipsec.lab.expect_models import Expect
from dsmip_ipsec.lab.expectations import Observation, judge, judge_failure
from dsmip_ipsec.lab.flow import FlowSpec, flows
from dsmip_ipsec.lab.record import Binding, Encapsulation, IkeSa, NodeState, SecurityAssociation
from dsmip_ipsec.lab.spec import Nat, load, parse
from dsmip_ipsec.lab.spec_checks import process_names

LABS = Path(__file__).parents[3] / "labs"

MISTAKES = [
    (
        "nat-kinds",
        'mapping = "preserve"\nfiltering = "end',
        'filtering = "end',
        "should have mapping",
    ),
    (
        "nat-kinds",
        'mn = ["10.0.0.100/24"]',
        'mn = [], core = ["10.0.0.2/24"], cn = ["10.0.0.3/24"]',
        "must have one node inside",
    ),
    ("nat-kinds", 'filtering = "address-dependent"', 'filtering = "none"', "endpoint-independent"),
    ("nat-rebinding", 'mapping = "random"', 'mapping = "preserve"', "preserves ports"),
    ("nat-rebinding", "wait_s = 7", "wait_s = 0", "wait_s"),
    ("ecn-dscp", 'congest = "core"', 'congest = "cn"', "no node that forwards"),
    ("ecn-dscp", "traffic_class = 0xba", "traffic_class = 256", "traffic_class"),
    # (lab, old, new, words of the message)
    ("blocked-4191", 'unblock = { node = "hotel"', 'unblock = { node = "core"', "isn't blocked"),
    ("blocked-4191", 'unblock = { node = "hotel"', 'unblock = { node = "hotl"', "no node that"),
    ("blocked-4191", "\nunblock", '\nfails = "x"\nunblock', "no mobile node's"),
    ("blocked-4191", 'fails = "does', 'failz = "does', "unknown key 'failz'"),
    ("blocked-4191", "links = []", 'links = ["acces"]', "'acces' is no link"),
    ("blocked-4191", "handover_timeout_s = 4", "handover_timeout_s = 0", "handover_timeout_s"),
    ("nat-rebinding", 'rebind = { node = "nat" }', 'rebind = { node = "core" }', "is no NAT"),
    (
        "nat-rebinding",
        'rebind = { node = "nat" }',
        'rebind = { node = "nat", prt = 1 }',
        "unknown key 'prt'",
    ),
    ("nat-rebinding", "nat_refresh_time_s = 1", "nat_refresh_time_s = 0", "nat_refresh_time_s"),
    ("home-agent-behind-napt", 'forward_to = "ha"', 'forward_to = "cn"', "no node inside"),
    ("home-agent-behind-napt", 'forward_to = "ha"\n', "", "forward_to"),
    ("home-agent-behind-napt", '= "203.0.113.2"', '= "203.0.113.1"', "no NAT forwards"),
]


@pytest.mark.parametrize(("lab", "old", "new", "words"), MISTAKES)
def test_mistakes_are_told_with_their_line(lab: str, old: str, new: str, words: str) -> None:
    text = (LABS / f"{lab}.toml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ConfigError) as caught:
        parse(text.replace(old, new, 1), "x.toml")
    assert words in str(caught.value)
    assert caught.value.line is not None


def test_a_lab_without_captures_has_no_capture_process() -> None:
    assert "capture" not in process_names(load(LABS / "nat-rebinding.toml"))
    assert "capture" in process_names(load(LABS / "nat-kinds.toml"))


def test_the_way_to_a_home_agent_behind_a_nat_ends_at_the_nat() -> None:
    lab = load(LABS / "home-agent-behind-napt.toml")
    assert routes.static_nat(lab, "ha") == "napt"
    assert routes.rtt_ms(lab, "mn", "visited-a", "ha") == 40
    # Nothing outside has a route to the private prefix.
    assert all(route.destination.version == 6 or str(route.destination)[:3] != "10."
               for route in routes.routes(lab, "core"))  # fmt: skip


def test_static_nat_rules_forward_each_port() -> None:
    declared = load(LABS / "home-agent-behind-napt.toml").nodes["napt"]
    assert isinstance(declared, Nat)
    inside = IPv4Address("10.1.0.2")
    rules = nat.iptables_rules(declared, inside)
    for port in (500, 4191, 4500):
        assert f"--dport {port} -j DNAT --to-destination 10.1.0.2\n" in rules
    assert "dport { 500, 4191, 4500 } dnat to 10.1.0.2" in nat.nft_rules(declared, inside)
    assert "{ tcp, udp } masquerade\n" in nat.nft_rules(declared, inside)
    assert "DNAT" not in nat.iptables_rules(declared)


def state(ike: str, zed: int, esp: int, leaving: str = "") -> NodeState:
    def ike_sa(number: str, word: str) -> IkeSa:
        return IkeSa(uniqueid=number, state=word, local_host="a", local_port=1,
                     remote_host="b", remote_port=1)  # fmt: skip

    return NodeState(
        bindings=(
            Binding(
                home_address=IPv6Address("2001:db8::1"), care_of_address=ip_address("10.0.0.1"),
                outer_address=ip_address("192.0.2.1"), outer_port=zed, nat_detected=True,
                udp_encapsulation=True, sequence=1, lifetime_s=4,
            ),
        ),
        sas=(
            SecurityAssociation(
                spi="0x00000001", source=ip_address("192.0.2.1"), mode="tunnel", purpose="data",
                destination=ip_address("192.0.2.9"),
                encapsulation=Encapsulation(source_port=esp, destination_port=4500),
            ),
        ),
        ike=(ike_sa(ike, "ESTABLISHED"), *([ike_sa(leaving, "DELETING")] if leaving else [])),
    )  # fmt: skip


def verdicts(expect: Expect, before: NodeState, after: NodeState) -> list[bool]:
    seen = Observation(
        mobile_node=after, home_agent=after, care_of_addresses=frozenset(), flows=(), after=(),
        exchanges={}, rtt_ms=0, before=(before, before),
    )  # fmt: skip
    return [expectation.passed for expectation in judge(expect, seen)]


@pytest.mark.parametrize("wanted", [True, False])
def test_changes_are_judged_by_what_was_before(wanted: bool) -> None:
    was, other_ike = state("3", 20001, 20002), state("4", 20001, 20002)
    rekeyed = state("3", 20001, 20002, leaving="2")
    kept = Expect(same_ike_sa=wanted)
    assert verdicts(kept, was, was) == verdicts(kept, rekeyed, was) == [wanted]
    assert verdicts(kept, was, other_ike) == [not wanted]
    assert verdicts(kept, NodeState(), NodeState()) == [not wanted]
    zed = Expect(signalling_port_changed=wanted)
    esp = Expect(esp_port_changed=wanted)
    assert verdicts(zed, was, state("3", 30000, 20002)) == [wanted]
    assert verdicts(zed, was, state("3", 20001, 30000)) == [not wanted]
    assert verdicts(esp, was, state("3", 20001, 30000)) == [wanted]
    assert verdicts(esp, was, state("3", 30000, 20002)) == [not wanted]
    assert verdicts(esp, was, NodeState()) == [False]


def test_a_step_that_shall_fail() -> None:
    assert judge_failure("port 4191", "does UDP port 4191 pass?").passed
    assert not judge_failure("port 4191", "the home agent refused").passed
    assert not judge_failure("port 4191", "").passed


def test_probes_carry_the_traffic_class_of_the_lab() -> None:
    home, peer = ip_address("203.0.113.200"), ip_address("192.0.2.200")
    found = flows([home], [peer], interval_ms=5, traffic_class=0xBA)
    assert [FlowSpec.from_json(spec.to_json()).traffic_class for spec in found] == [0xBA, 0xBA]
