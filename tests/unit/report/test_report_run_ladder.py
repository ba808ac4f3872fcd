"""Messages seen at both ends become one ladder, across a NAT and with losses."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab import pcapng
from dsmip_ipsec.lab.record import LinkSummary, NodeSummary, RunRecord, Topology
from dsmip_ipsec.report.ladder import Message
from dsmip_ipsec.report.run_ladder import Exchanged, RunLadder, merge, of_run, text

DATA = Path(__file__).parents[2] / "data" / "nat-handover-record.json"

TOPOLOGY = Topology(
    nodes=tuple(
        NodeSummary(name=name, role=role)
        for name, role in (("mn", "mobile_node"), ("mn2", "mobile_node"), ("ha", "home_agent"))
    ),
    links=(
        LinkSummary(name="in", ends={"mn": ("10.0.0.2/24",), "nat": ("10.0.0.1/24",)}),
        LinkSummary(name="out", ends={"nat": ("192.0.2.2/30",)}),
        LinkSummary(name="b", ends={"mn2": ("198.51.100.9/24",)}),
        LinkSummary(name="c", ends={"ha": ("203.0.113.2/30",)}),
    ),
)
MN, MN2, NAT, HA = "10.0.0.2", "198.51.100.9", "192.0.2.2", "203.0.113.2"


def ladder(**seen: list[tuple[float, str, str, str]]) -> list[Exchanged]:
    messages = {node: [Message(*one) for one in of_node] for node, of_node in seen.items()}
    return merge(messages, TOPOLOGY, {"ha"}, 100.0)


def test_one_message_at_both_ends_of_a_nat_is_one() -> None:
    found = ladder(
        mn=[(101.0, MN, HA, "BU 1"), (101.05, HA, MN, "BA 1, status 0")],
        ha=[(101.02, NAT, HA, "BU 1"), (101.03, HA, NAT, "BA 1, status 0")],
    )
    assert [(m.source, m.destination, m.label, m.wire, m.lost) for m in found] == [
        ("mn", "ha", "BU 1", f"{NAT} > {HA}", False),
        ("ha", "mn", "BA 1, status 0", f"{HA} > {NAT}", False),
    ]
    assert round(found[0].seconds, 3) == 1.0


def test_what_never_arrived_is_lost() -> None:
    found = ladder(
        mn=[(101.0, MN, HA, "BU 1"), (102.0, MN, HA, "BU 1")], ha=[(102.02, NAT, HA, "BU 1")]
    )
    # The earliest that may be it counts as received: nothing tells two equal messages apart.
    assert [m.lost for m in found] == [False, True]
    found = ladder(mn=[(101.0, MN, HA, "BU 1"), (104.0, MN, HA, "BU 2")], ha=[])
    assert [m.lost for m in found] == [True, True]
    found = ladder(mn=[], ha=[(101.0, HA, NAT, "BA 1, status 0")])
    assert found[0].lost


def test_the_first_esp_packet_isnt_called_lost() -> None:
    assert not ladder(mn=[(101.0, MN, HA, "ESP 0x00000001")], ha=[])[0].lost


def test_equal_messages_of_two_mobile_nodes_stay_apart() -> None:
    found = ladder(
        mn=[(101.0, MN, HA, "IKE_SA_INIT request")],
        mn2=[(101.001, MN2, HA, "IKE_SA_INIT request")],
        ha=[
            (101.02, MN2, HA, "IKE_SA_INIT request"),
            (101.03, NAT, HA, "IKE_SA_INIT request"),
            (101.04, HA, MN2, "IKE_SA_INIT response"),
        ],
    )
    assert [(m.source, m.wire) for m in found[:2]] == [
        ("mn", f"{NAT} > {HA}"),
        ("mn2", f"{MN2} > {HA}"),
    ]
    assert found[2].destination == "mn2"


def test_a_message_whose_sending_nobody_saw() -> None:
    found = ladder(mn=[], ha=[(101.0, NAT, HA, "BU 1")])
    assert (found[0].source, found[0].destination) == ("", "ha")
    lines = text(RunLadder(("mn", "ha"), tuple(found)))
    assert "? -- BU 1 --> ha" in lines[0]


def test_a_capture_that_lacks_packets_is_refused(tmp_path: Path) -> None:
    record = RunRecord.model_validate_json(DATA.read_bytes())
    (tmp_path / "captures").mkdir()
    file = tmp_path / "captures" / "ha-backbone.pcapng"
    file.write_bytes(pcapng.header("mn", "", 2048) + pcapng.statistics(0, 0, 0))
    assert of_run(record, tmp_path).messages == ()
    file.write_bytes(pcapng.header("mn", "", 2048) + pcapng.statistics(0, 7, 7))
    with pytest.raises(LabError, match="lacks 7 packets"):
        of_run(record, tmp_path)


def test_as_text() -> None:
    assert text(RunLadder((), ())) == ["no IKE, Mobility Header or ESP messages"]
    found = ladder(mn=[(101.0, MN, HA, "BU 1")], ha=[])
    assert text(RunLadder(("mn", "ha"), tuple(found))) == [
        "    1.000 s  mn -- BU 1 --x  lost, ha   [10.0.0.2 > 203.0.113.2]"
    ]
