"""The command: text, JSON, standard input, and files that are no captures."""

from __future__ import annotations

import io
import json
import sys
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from decode_samples import KEYS, SAMPLE, write_pcap

from dsmip_ipsec.cli.main import main
from dsmip_ipsec.wire.ip import IPv6Header, build_ipv6


def test_text_goes_down_to_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(SAMPLE), "--keys", str(KEYS)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    packets = captured.out.strip().split("\n\n")
    assert len(packets) == 58
    (update,) = [p for p in packets if p.startswith("frame 18 ")]
    lines = update.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["Ethernet", "IPv4", "UDP", "IPv6", "ESP"]
    assert "mh_type_name=Binding Update" in lines[6]
    assert "acknowledge=yes" in lines[6]
    assert lines[7].strip().startswith("IPv4 Home Address: option_type=29 prefix_length=32")
    assert lines[8].strip() == "IPv4 Care-of Address: option_type=32 address=10.0.0.100"
    notify = [line for line in captured.out.splitlines() if "UPDATE_SA_ADDRESSES" in line]
    assert all(line.startswith("    Notify:") for line in notify)


def test_keys_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--json"]):
        assert main(["decode", str(SAMPLE), "--keys", str(KEYS), *arguments]) == 0
        output = capsys.readouterr().out
        for name in ("esp_sa", "ikev2_decryption_table"):
            for line in (KEYS / name).read_text().splitlines():
                if line.startswith("#"):
                    continue
                for part in line.replace('"', "").split(","):
                    if len(part) >= 32 and not part.startswith("AES"):
                        assert part.removeprefix("0x")[:32] not in output


def test_json_has_one_object_a_packet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(SAMPLE), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    packets = [json.loads(line) for line in lines]
    assert [packet["frame"] for packet in packets] == list(range(1, 59))
    assert packets[0]["timestamp"].startswith("20")
    assert packets[0]["timestamp"].endswith("Z")
    assert packets[0]["time_ns"] < packets[-1]["time_ns"]


def test_the_error_of_a_layer_is_the_packets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packet = build_ipv6(
        IPv6Header(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2"), 135), b"\x3b\0\5"
    )
    path = write_pcap(tmp_path / "one.pcap", [packet, b"\x45", b""])
    assert main(["decode", str(path), "--json"]) == 0
    packets = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert packets[0]["error"] == packets[0]["layers"][-1]["error"]
    assert [len(packet["layers"]) for packet in packets] == [2, 1, 1]
    assert all(packet["error"] for packet in packets)
    assert main(["decode", str(path)]) == 0
    assert "error: a Mobility Header has" in capsys.readouterr().out


def test_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Input:
        buffer = io.BytesIO(SAMPLE.read_bytes())

    monkeypatch.setattr(sys, "stdin", Input())
    assert main(["decode", "-"]) == 0
    assert capsys.readouterr().out.count("\nframe ") == 57


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no capture"),
        (b"GIF89a" * 20, "no capture"),
        (b"\x1f\x8b" + bytes(20), "compressed"),
        (SAMPLE.read_bytes()[:-30], "ends in the middle"),
    ],
)
def test_no_captures(
    content: bytes, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert main(["decode", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert "hint:" in captured.err
    # Packets before the break are out.
    assert len(captured.out.splitlines()) == (58 if content.startswith(b"\n\r\r\n") else 0)


def test_unknown_link_type_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pcap(tmp_path / "usb.pcap", [b"abc"], link_type=220)
    assert main(["decode", str(path)]) == 1
    captured = capsys.readouterr()
    assert "220" in captured.err
    assert captured.out == ""


def test_files_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(tmp_path / "none.pcap")]) == 1
    assert "none.pcap can't be read" in capsys.readouterr().err
    assert main(["decode", str(SAMPLE), "--keys", str(tmp_path)]) == 1
    assert "neither esp_sa nor" in capsys.readouterr().err
    assert main(["decode", str(tmp_path)]) == 1
    assert "hint:" in capsys.readouterr().err
