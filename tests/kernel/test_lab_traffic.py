"""Probes and captures over a real network; the captures judge the probes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab_support import SMALL, attach, built, inside, nat_handover

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.capture import PROCESS, Captures
from dsmip_ipsec.lab.flow import FlowSpec, NodeLog, analyse, flows, merge
from dsmip_ipsec.lab.flow_main import clock_offset_ns
from dsmip_ipsec.lab.processes import Processes
from dsmip_ipsec.lab.spec import parse
from dsmip_ipsec.lab.topology import Topology
from dsmip_ipsec.report.captured import count_matching, incomplete

RING = 8 << 20  # octets of the capture's ring: more than that, and the kernel has no room


@pytest.fixture
async def lab() -> AsyncIterator[tuple[Topology, Processes]]:
    with built(parse(SMALL)) as topology:
        attach(topology, "visited")
        async with Processes(topology.run) as processes:
            yield topology, processes


def specs(topology: Topology) -> list[FlowSpec]:
    lab = topology.lab
    home = [lab.ipv6_address("mn"), lab.ipv4_address("mn")]
    peer = [lab.ipv6_address("cn"), lab.ipv4_address("cn")]
    return flows([a for a in home if a], [a for a in peer if a], interval_ms=5)


async def start_flows(topology: Topology, processes: Processes, work: Path) -> None:
    for node, role in (("mn", "mobile_node"), ("cn", "correspondent_node")):
        plan = {"flows": [spec.to_json() for spec in specs(topology)], "node": role}
        (work / f"{node}.plan").write_text(json.dumps(plan))
        argv = [sys.executable, "-m", "dsmip_ipsec.lab.flow_main"]
        argv += [str(work / f"{node}.plan"), str(work / f"{node}.json")]
        processes.start(
            f"flow-{node}", argv, log=work / f"{node}.log", namespace=topology.namespace(node)
        )
    for node in ("mn", "cn"):
        await processes.wait_ready(f"flow-{node}")


def tshark(path: Path, *arguments: str) -> list[str]:
    command = ["tshark", "-n", "-r", str(path), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


async def test_probes_are_what_the_captures_saw(
    lab: tuple[Topology, Processes], tmp_path: Path
) -> None:
    topology, processes = lab
    captures = Captures(topology.ports(), tmp_path, work=tmp_path, log=tmp_path / "capture.log")
    await captures.start(processes)
    await start_flows(topology, processes, tmp_path)
    await asyncio.sleep(1.5)
    for name in ("flow-mn", "flow-cn"):
        await processes.stop(name)
    files = {(f.node, f.link): f for f in await captures.stop(processes)}
    assert not any(found.dropped for found in files.values())
    logs = [NodeLog.load(tmp_path / f"{node}.json") for node in ("mn", "cn")]
    found = {s.flow.name: (s, analyse(s)) for s in merge(specs(topology), logs)}
    assert set(found) == {"mn-ipv6-up", "mn-ipv6-down", "mn-ipv4-up", "mn-ipv4-down"}
    seen = {end: probes(files[end].path) for end in (("mn", "visited"), ("cn", "shared"))}
    for name, (series, statistics) in found.items():
        assert statistics.sent > 150, name  # 1.5 s of one each 5 ms, less what a busy machine eats
        assert statistics.refused == 0
        assert statistics.delay_ms_min is not None
        assert 5 <= statistics.delay_ms_min < 8  # the shared link's one-way delay
        # The sender's own link saw as many as the sender says, down to the last.
        up = name.endswith("up")
        rows = seen["mn", "visited"] if up else seen["cn", "shared"]
        rows = [row for row in rows if row[0] == str(series.flow.source)]
        assert [int(payload[16:32], 16) for _, _, payload, _, _ in rows] == [
            number for number, _ in series.sent
        ]
        assert {direction for _, _, _, direction, _ in rows} == {"0x00000002"}
        assert {checksum for *_, checksum in rows} == {"1"}  # good: not left to an offload
        # Their clocks agree: from sendto to the wire it takes next to nothing, at best. (netem
        # delays before the capture sees a packet.)
        offset = clock_offset_ns() / 1e9
        least = min(
            float(stamp) - offset - at / 1e9
            for (_, stamp, *_), (_, at) in zip(rows, series.sent, strict=True)
        )
        assert abs(least - (0.0 if up else 0.005)) < 0.003


def probes(path: Path) -> list[list[str]]:
    """Of each probe in a capture: source, time, payload, direction, checksum's status."""
    fields = ["ipv6.src", "ip.src", "frame.time_epoch", "data.data", "frame.packet_flags_direction"]
    words = [word for field in [*fields, "udp.checksum.status"] for word in ("-e", field)]
    only = ("-Y", "udp.port == 7777 && !icmp && !icmpv6", "-o", "udp.check_checksum:TRUE")
    lines = tshark(path, *only, "-T", "fields", *words)
    rows = [line.split("\t") for line in lines]
    return [[row[0] or row[1], *row[2:]] for row in rows]


async def test_last_packets_before_the_stop_are_captured(
    lab: tuple[Topology, Processes], tmp_path: Path
) -> None:
    topology, processes = lab
    captures = Captures(topology.ports(), tmp_path, work=tmp_path, log=tmp_path / "capture.log")
    await captures.start(processes)

    def burst() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("198.51.100.1", 9))  # resolves the neighbour
            for number in range(200):
                sender.sendto(number.to_bytes(2, "big"), ("198.51.100.1", 9))

    inside(topology, "mn", burst)
    files = {(f.node, f.link): f for f in await captures.stop(processes)}
    path = files["r", "visited"].path
    assert path.name == "r-visited.pcapng"
    lines = tshark(path, "-Y", "udp.dstport == 9 && !icmp", "-T", "fields", "-e", "data.data")
    assert lines[-1] == "00c7"
    assert len(lines) == 201


def udp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


async def test_nothing_is_concluded_from_a_capture_that_the_kernel_had_no_room_for(
    lab: tuple[Topology, Processes], tmp_path: Path
) -> None:
    topology, processes = lab
    captures = Captures(topology.ports(), tmp_path, work=tmp_path, log=tmp_path / "capture.log")
    await captures.start(processes)

    sender, receiver = (inside(topology, node, udp_socket) for node in ("mn", "r"))
    receiver.bind(("198.51.100.1", 9))

    def burst(count: int) -> None:
        for _ in range(count):  # one after the other: none may be lost elsewhere
            sender.sendto(bytes(1400), ("198.51.100.1", 9))
            receiver.recv(2048)

    with sender, receiver:
        burst(100)
        processes[PROCESS].signal(signal.SIGSTOP)
        burst(RING // 1400 + 500)
        processes[PROCESS].signal(signal.SIGCONT)
    files = {(f.node, f.link): f for f in await captures.stop(processes)}
    full, other = files["r", "visited"], files["cn", "shared"]
    assert full.dropped > 100
    count, trouble = count_matching(full.path, "udp.dstport == 9", (0, time.time()), None)
    missing = RING // 1400 + 600 - count
    # Each is there, or counted as missing; so are others (of neighbour and router discovery).
    assert (0 < missing <= full.dropped < missing + 50, trouble) == (True, "")
    assert incomplete(full.path) == f"the kernel dropped {full.dropped} packets of this capture"
    assert (other.dropped, incomplete(other.path)) == (0, "")


async def test_interruption_is_measured(lab: tuple[Topology, Processes], tmp_path: Path) -> None:
    """The router drops everything for a time that we measure beside the probes."""
    topology, processes = lab
    targets = ("192.0.2.3", "198.51.100.2", "2001:db8:1::3", "2001:db8:2::2")

    def blackholes(verb: str) -> tuple[int, int]:
        before = time.monotonic_ns()
        command = ["ip", "-n", topology.namespace("r"), "-batch", "-"]
        lines = "".join(f"route {verb} blackhole {target} metric 1\n" for target in targets)
        subprocess.run(command, input=lines, text=True, check=True, timeout=20)
        return before, time.monotonic_ns()

    await start_flows(topology, processes, tmp_path)
    ready = time.monotonic_ns()
    await asyncio.sleep(0.5)
    start, interrupted = blackholes("add")
    await asyncio.sleep(0.3)
    mending, end = blackholes("del")
    await asyncio.sleep(0.7)
    processes["flow-mn"].signal(signal.SIGUSR1)  # a look while it runs
    deadline = time.monotonic() + 5
    while not (tmp_path / "mn.json").exists():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert NodeLog.load(tmp_path / "mn.json").sent["mn-ipv4-up"]
    for name in ("flow-mn", "flow-cn"):
        await processes.stop(name)
    logs = [NodeLog.load(tmp_path / f"{node}.json") for node in ("mn", "cn")]
    for series in merge(specs(topology), logs):
        least, most = (mending - interrupted) / 1e6, (end - start) / 1e6
        statistics = analyse(series, ready)
        assert statistics.interruption_ms is not None
        slack = statistics.sender_stall_ms + 30
        assert least - 10 <= statistics.interruption_ms <= most + slack, series.flow.name
        assert statistics.lost > 20
        assert least - 10 - statistics.sender_stall_ms <= statistics.outage_ms <= most + slack
        quiet = analyse(series, ready, start - 100_000_000)
        assert quiet.lost == 0


async def test_flow_without_an_address_is_refused_not_fatal(tmp_path: Path) -> None:
    """The home addresses come after the flows started, and go before they end."""
    with built(nat_handover()) as topology:
        async with Processes(topology.run) as processes:
            await start_flows(topology, processes, tmp_path)
            await asyncio.sleep(0.3)
            processes.check()
            for name in ("flow-mn", "flow-cn"):
                assert await processes.stop(name) == 0
    up = NodeLog.load(tmp_path / "mn.json")
    assert len(up.refused["mn-ipv4-up"]) == len(up.sent["mn-ipv4-up"]) > 0


async def test_capture_of_an_unknown_interface_fails_by_name(
    lab: tuple[Topology, Processes], tmp_path: Path
) -> None:
    topology, processes = lab
    ports = topology.ports()
    inside(topology, "mn", lambda: os.system("ip link del visited"))
    captures = Captures(ports, tmp_path, work=tmp_path, log=tmp_path / "capture.log")
    with pytest.raises(LabError, match="No such device"):
        await captures.start(processes)
