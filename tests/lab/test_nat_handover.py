"""The main job, end to end on real parts, judged by tshark and not by ourselves."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_runs import LABS, LabRun, assert_nothing_left, run_lab_in_time

HOME, HOME4 = "2001:db8:100::100", "203.0.113.200"
AGENT, AGENT4 = "2001:db8:100::1", "203.0.113.2"
NAT, PRIVATE, PUBLIC = "192.0.2.2", "10.0.0.100", "198.51.100.100"
CORRESPONDENT = {"2001:db8:0:2::200", "192.0.2.200"}

UPDATE = ("ip.src", "ip.dst", "udp.srcport", "udp.dstport", "ipv6.src", "ipv6.dst", "ipv6.flow")


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """The run's own directory for what is temporary: others' labs have theirs elsewhere."""
    with tempfile.TemporaryDirectory(prefix="dsmip-test-") as name:
        Path(name).chmod(0o755)  # a guest's user looks into it
        yield Path(name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> LabRun:
    out = tmp_path_factory.mktemp("lab") / "out"
    stored = Path(__file__).parent / "snapshots" / "nat-handover.txt"
    options = ("--export-keys", "--snapshot", str(stored))
    env = {**os.environ, "TMPDIR": str(temporary)}
    return run_lab_in_time(LABS / "nat-handover.toml", out, *options, env=env)


def test_the_run_passes_and_says_so(run: LabRun) -> None:
    assert run.status == 0, run.output
    assert run.record["verdict"] == "passed"
    assert run.output.rstrip().splitlines()[-1].startswith("PASS")
    assert str(run.out) in run.output


def test_every_step_was_judged(run: LabRun) -> None:
    steps = run.record["steps"]
    assert [step["name"] for step in steps] == [
        "attach behind the NAT",
        "move to the public network",
        "move back behind the NAT",
        "deregister",
    ]
    for step in steps:
        assert len(step["expectations"]) >= 4
        assert all(expectation["passed"] for expectation in step["expectations"])


@pytest.mark.rfc(
    "5555-2.3.2.1-1",
    "5555-2.3.2.1-2",
    "5555-4.1-2",
    "5555-4.2-1",
    "5555-4.4.2-1",
    "5555-4.4.2-1a",
    "5555-4.4.2-1b",
    "5555-4.4.2-1c",
    "5555-4.4.2-1d",
    "5555-4.4.2-2",
    "5555-5-2",
)
def test_binding_updates_on_the_wire_are_those_of_rfc5555_4_2(run: LabRun) -> None:
    """IPv4 (V4ADDR, HA) / UDP (Z, 4191) / IPv6 (HoA, HA) / ESP / MH / BU with its options."""
    rows = run.tshark(
        "ha-backbone",
        "mip6.mhtype == 5",
        *UPDATE,
        "esp.spi",
        "mip6.bu.lifetime",
        "mip6.bu.a_flag",
        "mip6.bu.h_flag",
        "mip6.ipv4ha.ha",
        "mip6.ipv4coa.addr",
    )
    assert len(rows) == 4
    for row, source, care_of, lifetime in zip(
        rows,
        (NAT, PUBLIC, NAT, NAT),
        (PRIVATE, PUBLIC, PRIVATE, PRIVATE),
        ("150", "150", "150", "0"),
        strict=True,
    ):
        assert row[:2] == [source, AGENT4]
        assert row[3] == "4191"
        assert row[4:6] == [HOME, AGENT]
        assert int(row[6], 16) == 0, "a token reached the wire"
        assert row[7].startswith("0x")
        assert row[8] == lifetime
        assert row[9:11] == ["1", "1"]
        # Lifetime zero removes all bindings, no home address option needed (§4.4.2.1).
        assert row[11:] == [HOME4 if lifetime != "0" else "", care_of]
    # The NAT remaps ports: Z is not 4191 behind it, and is without it.
    assert [row[2] == "4191" for row in rows] == [False, True, False, False]


@pytest.mark.rfc(
    "5555-2.3.2.2-5",
    "5555-2.3.2.2-6",
    "5555-2.3.2.2-7",
    "5555-4.2-2",
    "5555-4.2-3",
    "5555-4.5-12",
    "5555-4.5-15",
)
def test_acknowledgements_go_back_to_v4addr_and_z_with_the_options(run: LabRun) -> None:
    """RFC 5555 §4.2: always in UDP when the BU was; NAT detection in each; status 0."""
    updates = run.tshark("ha-backbone", "mip6.mhtype == 5", "ip.src", "udp.srcport")
    rows = run.tshark(
        "ha-backbone",
        "mip6.mhtype == 6",
        *UPDATE,
        "mip6.ba.status",
        "mip6.ipv4aa.sts",
        "mip6.ipv4ha.ha",
        "mip6.natd.refresh_t",
    )
    assert [[row[1], row[3]] for row in rows] == updates
    for row in rows:
        assert row[0] == AGENT4
        assert row[2] == "4191"
        assert row[4:6] == [AGENT, HOME]
        assert int(row[6], 16) == 0, "a token reached the wire"
        assert row[7] == "0"
    # An IPv4 address acknowledgement wherever a home address option was, and no NAT: all ones.
    assert [row[8:10] for row in rows[:3]] == [["0", HOME4]] * 3
    assert [row[10] for row in rows[:3]] == ["110", str(0xFFFFFFFF), "110"]


@pytest.mark.rfc(
    "5555-5.2.2-1",
    "6275-8.4-3",
    "6275-8.4-4",
    "6275-8.5-3",
    "6275-10.4.2-1",
    "6275-10.4.5-1",
    "6275-10.4.2-8",
)
def test_payload_behind_the_nat_is_esp_in_udp_4500(run: LabRun) -> None:
    """RFC 5555 §5.2.2: IPv4 / UDP (Y, 4500) / ESP / IP (HoA, CN), IPv6 and IPv4 inside."""
    rows = run.tshark(
        "ha-backbone", f"esp and udp.port == 4500 and ip.src == {NAT}",
        "ip.src", "udp.dstport", "ipv6.src", "ipv6.dst",
    )  # fmt: skip
    inner = {(row[0].partition(";")[2], row[2]) for row in rows}
    assert inner == {("", HOME), (HOME4, "")}
    assert {row[1].split(";")[0] for row in rows} == {"4500"}


@pytest.mark.rfc("5555-4.5-13", "6275-8.4-3")
def test_payload_in_the_public_network_is_plain_esp(run: LabRun) -> None:
    rows = run.tshark(
        "ha-backbone", f"esp and not udp.port in {{4500, 4191}} and ip.dst == {PUBLIC}",
        "ip.src", "ipv6.dst", "ip.proto",
    )  # fmt: skip
    assert {row[2].split(";")[0] for row in rows} == {"50"}
    assert {row[1] for row in rows} == {HOME, ""}
    assert len(rows) > 20


@pytest.mark.parametrize("capture", ["nat-visited-a", "core-visited-b", "nat-access-a"])
def test_nothing_of_the_home_addresses_leaves_in_clear(run: LabRun, capture: str) -> None:
    """Every packet that names a home address is inside ESP, on every access link.

    Seen by the other end: a capture at an end of the tunnel shows decapsulated packets too.
    """
    named = f"ip.addr == {HOME4} or ipv6.addr == {HOME}"
    assert run.tshark(capture, f"({named}) and not esp", "frame.number") == []
    assert run.tshark(capture, f"({named}) and esp", "frame.number")


@pytest.mark.rfc("5555-5-4", "6275-11.3.2-4")
def test_ike_is_on_port_4500_from_the_first_packet(run: LabRun) -> None:
    """RFC 5555 §5: over port 4500, regardless of the presence of a NAT."""
    rows = run.tshark("mn-visited-a", "isakmp", "udp.srcport", "udp.dstport")
    assert rows
    assert {port for row in rows for port in row} == {"4500"}
    assert run.tshark("mn-visited-a", "udp.port == 500", "frame.number") == []


def test_exported_keys_decrypt_ike(run: LabRun) -> None:
    """Traffic selectors are inside the encrypted payload."""
    rows = run.tshark("ha-backbone", "isakmp.ts.start_ipv6", "isakmp.ts.start_ipv6")
    assert any(HOME in row[0] for row in rows)


@pytest.mark.rfc("5555-5.1-6")
def test_keys_stay_the_same_over_the_handovers(run: LabRun) -> None:
    """One SA pair each for signalling and data, moved and not renegotiated."""
    for node in ("mn", "ha"):
        spis = [
            {(sa["spi"], sa["purpose"]) for sa in run.step(name)["after"][node]["sas"]}
            for name in (
                "attach behind the NAT",
                "move to the public network",
                "move back behind the NAT",
            )
        ]
        assert spis[0] == spis[1] == spis[2]
        assert len(spis[0]) == 6


def test_interruptions_are_reported_and_within_the_limit(run: LabRun) -> None:
    limit = 2 * run.record["settings"]["rtt_ms"] + 120
    for name in ("move to the public network", "move back behind the NAT"):
        flows = run.step(name)["flows"]
        assert {(flow["family"], flow["direction"]) for flow in flows} == {
            (family, direction) for family in ("ipv4", "ipv6") for direction in ("up", "down")
        }
        for flow in flows:
            assert flow["interruption_ms"] <= limit
            assert flow["sent"] > 50


def test_secrets_are_only_in_the_export(run: LabRun) -> None:
    keys: set[str] = set()
    for line in (run.out / "wireshark" / "esp_sa").read_text().splitlines():
        keys |= {cell.strip('"').removeprefix("0x") for cell in line.split(",") if "0x" in cell}
    keys = {key for key in keys if len(key) > 16}
    assert keys
    for path in [run.out / "record.json", *(run.out / "logs").iterdir()]:
        text = path.read_text(errors="replace").lower()
        assert not [key for key in keys if key.lower() in text], path
    for path in [run.out / "wireshark", *(run.out / "wireshark").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_all_artefacts_are_there(run: LabRun) -> None:
    artefacts = run.record["artefacts"]
    assert len(artefacts["captures"]) == 11
    for name in [*artefacts["captures"], *artefacts["logs"], "guest-console.log"]:
        assert (run.out / name).stat().st_size > 0, name
    assert {Path(name).name for name in artefacts["logs"]} >= {
        "mn-charon.log",
        "ha-charon.log",
        "mn-daemon.log",
        "ha-daemon.log",
    }


def test_nothing_is_left_behind(run: LabRun, temporary: Path) -> None:
    """Not in the temporary directory either."""
    assert run.record["ended"]
    assert_nothing_left(temporary, within_s=20)
