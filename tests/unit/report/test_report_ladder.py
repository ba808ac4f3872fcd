"""The ladder of a capture that scapy wrote and tshark reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_packets as packets
from test_report_wireshark import KEY, SPI, ike_gcm_keys, sa_gcm

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.report.ladder import Message, ladder, messages
from dsmip_ipsec.report.wireshark import export

NODES = {
    "nat": [packets.NAT_ADDRESS],
    "core": ["203.0.113.254"],
    "ha": [packets.HOME_AGENT_IPV4, packets.HOME_AGENT],
}


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    bu = packets.esp_gcm(sa_gcm().encryption_key, SPI, packets.binding_update(), 135)
    data = packets.esp_gcm(KEY[:20], 0xC2, packets.inner_packet(), 41)
    ike = bytes(4) + packets.ike_gcm(ike_gcm_keys().sk_ei)
    export(tmp_path / "wireshark", [sa_gcm()], [ike_gcm_keys()])
    written = (packets.udp_4500(ike), packets.signalling(bu), packets.native(bu))
    return packets.write_capture(
        tmp_path / "c.pcap", *written, packets.udp_4500(data), packets.udp_4500(data)
    )


def test_messages_with_keys(capture: Path) -> None:
    found = messages(capture, capture.parent / "wireshark")
    outer = packets.NAT_ADDRESS, packets.HOME_AGENT_IPV4
    assert [(m.source, m.destination, m.label) for m in found] == [
        (*outer, "INFORMATIONAL request"),
        (*outer, "BU 7"),
        ("2001:db8:b::2", packets.HOME_AGENT, "BU 7"),
        (*outer, "ESP 0x000000c2 in UDP 4500"),  # the second one is not news
    ]


def test_unprotected_binding_update_is_shown(tmp_path: Path) -> None:
    bare = packets.bare(packets.binding_update())
    found = messages(packets.write_capture(tmp_path / "c.pcap", bare))
    assert [message.label for message in found] == ["BU 7"]


def test_messages_without_keys(capture: Path, tmp_path: Path) -> None:
    labels = [message.label for message in messages(capture, tmp_path / "empty")]
    assert labels[1] == f"ESP {SPI:#010x} in UDP 4191"
    assert labels[2] == f"ESP {SPI:#010x}"


def test_ladder_draws_each_message_between_its_nodes() -> None:
    found = [
        Message(100.0, packets.NAT_ADDRESS, packets.HOME_AGENT_IPV4, "BU 7"),
        Message(100.04, packets.HOME_AGENT_IPV4, packets.NAT_ADDRESS, "BA 7, status 0"),
        Message(100.5, "203.0.113.254", packets.HOME_AGENT, "ESP 0x000000c2"),
        Message(101.0, "198.18.0.1", packets.HOME_AGENT, "BU 8"),
    ]
    lines = ladder(found, NODES)
    assert lines == [
        "            nat                             core                            ha",
        f"    0.000 s |{' BU 7 '.center(62, '-')}>|",
        f"    0.040 s |<{' BA 7, status 0 '.center(62, '-')}|",
        f"    0.500 s |{'':31}|{' ESP 0x000000c2 '.center(30, '-')}>|",
        f"    1.000 s 198.18.0.1 > {packets.HOME_AGENT}: BU 8",
    ]
    # Heads, arrow tails and arrow heads stand in the same columns.
    assert {line.rindex("|") for line in lines[1:4]} == {lines[0].index("ha")}
    assert ladder(found[1:2], NODES, start=99.0)[1].startswith("    1.040 s ")


def test_long_label_is_cut_to_its_column() -> None:
    found = [Message(0, "203.0.113.254", packets.HOME_AGENT, "x" * 99)]
    line = ladder(found, NODES)[1]
    assert line.endswith(">|")
    assert len(line) == len(
        ladder([Message(0, "203.0.113.254", packets.HOME_AGENT, "x")], NODES)[1]
    )


def test_empty_capture_says_so(tmp_path: Path) -> None:
    capture = packets.write_capture(tmp_path / "c.pcap")
    assert ladder(messages(capture), NODES) == ["no IKE, Mobility Header or ESP messages"]


@pytest.mark.parametrize("content", [None, b"not a capture"])
def test_unreadable_capture_is_a_lab_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.pcap"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError) as caught:
        messages(path)
    assert caught.value.hint


def test_capture_cut_off_in_its_last_packet_is_read_up_to_there(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:-20])
    found = messages(capture, capture.parent / "wireshark")
    assert [m.label for m in found][-1] == "ESP 0x000000c2 in UDP 4500"


def test_missing_tshark_is_a_lab_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="isn't installed"):
        messages(tmp_path / "c.pcap")
