"""Refusals in what charon 5.9.8 says over VICI; its lines are copied from one that refused."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsmip_ipsec.ike.refusals import Refusal, RefusalReader, RefusedFor

PACKET = "received packet: from 198.51.0.2[4500] to 203.0.113.2[4500] (354 bytes)"
LOOKING = "looking for peer configs matching 203.0.113.2[ha.org]...198.51.0.2[mn3@example.org]"


def read(*lines: tuple[str, str], thread: str = "5") -> list[Refusal]:
    reader = RefusalReader()
    found = (reader.read({"thread": thread, "ikesa-name": n, "msg": m}) for n, m in lines)
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    ("name", "words", "reason"),
    [
        ("mn1", "traffic selectors ::/0 0.0.0.0/0 === 2001:db8:100::102/128 unacceptable",
         RefusedFor.TRAFFIC_SELECTORS),
        ("mn1", "tried 1 shared key for 'ha.example.org' - 'mn1@example.org', but MAC mismatched",
         RefusedFor.AUTHENTICATION),
        ("mn3", "EAP method EAP_MD5 failed for peer mn3@example.org", RefusedFor.AUTHENTICATION),
        ("(unnamed)", "no matching peer config found", RefusedFor.PEER),
        ("(unnamed)", "received proposals unacceptable", RefusedFor.PROPOSAL),
        ("mn1", "no acceptable proposal found", RefusedFor.PROPOSAL),
    ],
)  # fmt: skip
def test_what_charon_says(name: str, words: str, reason: RefusedFor) -> None:
    (refusal,) = read(("(unnamed)", PACKET), ("(unnamed)", LOOKING), (name, words))
    connection = "" if name == "(unnamed)" else name
    source = IPv4Address("198.51.0.2")
    assert refusal == Refusal(reason, connection, "mn3@example.org", source, words)


def test_one_attempt_is_one_refusal_with_its_cause() -> None:
    (refusal,) = read(
        ("(unnamed)", PACKET),
        ("(unnamed)", LOOKING),
        ("mn3", "constraint check failed: EAP identity 'user3@example.net' required "),
        ("mn3", "selected peer config 'mn3' unacceptable: non-matching authentication done"),
        ("mn3", "no alternative config found"),
    )
    assert refusal.reason is RefusedFor.AUTHENTICATION
    assert "EAP identity 'user3@example.net'" in refusal.message


def test_success_and_trying_on_are_no_refusals() -> None:
    assert not read(
        ("(unnamed)", PACKET),
        ("(unnamed)", "no matching proposal found, trying alternative config"),
        ("mn3", "constraint check failed: EAP identity 'user3@example.net' required "),
        ("mn1", "IKE_SA mn1[1] established between 203.0.113.2[ha]...198.51.0.2[mn1]"),
    )


def test_threads_are_told_apart_and_a_packet_ends_what_was_before() -> None:
    reader = RefusalReader()
    refused = {"ikesa-name": "(unnamed)", "msg": "no matching peer config found"}
    for thread, message in (("5", PACKET), ("5", LOOKING), ("6", PACKET.replace("0.2", "9.9", 1))):
        assert reader.read({"thread": thread, "msg": message}) is None
    other = reader.read({"thread": "6", **refused})
    assert other is not None
    assert (other.identity, other.source) == ("", IPv4Address("198.51.9.9"))
    assert reader.read({"thread": "5", "msg": PACKET}) is None
    later = reader.read({"thread": "5", **refused})
    assert later is not None
    assert later.identity == ""


@given(st.dictionaries(st.sampled_from(["msg", "thread", "ikesa-name"]), st.text(max_size=400)))
def test_no_line_is_too_much(line: dict[str, str]) -> None:
    reader = RefusalReader()
    for words in (line.get("msg", ""), f"traffic selectors {line.get('msg', '')} unacceptable"):
        refusal = reader.read({**line, "msg": words})
        if refusal is not None:
            # It ends up in a log, a status, a terminal.
            assert refusal.message.isprintable()
            assert len(refusal.message) <= 300
