"""The message ladder of a whole run: what mobile nodes and home agents sent each other, from the
captures at both, with what got lost on the way.

All nodes of a lab share a clock, and a NAT between them changes addresses but neither message nor
SPI: what one end sent is what the other end received a little later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path

from dsmip_ipsec.errors import LabError
from dsmip_ipsec.lab.record import RunRecord, Topology
from dsmip_ipsec.report.ladder import Message, messages
from dsmip_ipsec.userspace.capture_file import CaptureError, dropped_packets

# Longer than any delay of a lab; shorter than the time until a sequence number comes again.
_ON_THE_WAY_S = 2.0
_ENDS = ("mobile_node", "home_agent")


@dataclass(frozen=True, slots=True)
class Exchanged:
    """One message between two ends. ``seconds`` since the run's start; ``source`` and
    ``destination`` are nodes; ``wire`` the outermost addresses, as the home agent saw them if the
    message got there; ``lost``: it didn't arrive."""

    seconds: float
    source: str
    destination: str
    label: str
    wire: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class RunLadder:
    """``nodes``: mobile nodes, then home agents. ``messages`` in the order of sending."""

    nodes: tuple[str, ...]
    messages: tuple[Exchanged, ...]


def of_run(record: RunRecord, directory: Path) -> RunLadder:
    """Read the captures of a run in ``directory``.

    Raises LabError if tshark is missing or can't read one, or one lacks packets that the kernel
    dropped: what seems to be lost may be no more than that. Captures that aren't there are left
    out.
    """
    config = directory / record.artefacts.wireshark if record.artefacts.wireshark else None
    topology = record.topology
    nodes = [node.name for role in _ENDS for node in topology.nodes if node.role == role]
    seen: dict[str, list[Message]] = {}
    for name in record.artefacts.captures:
        node = _node_of(Path(name).stem, topology)
        if node in nodes and (directory / name).is_file():
            _check_whole(directory / name)
            seen.setdefault(node, []).extend(messages(directory / name, config))
    agents = {node.name for node in topology.nodes if node.role == "home_agent"}
    return RunLadder(tuple(nodes), tuple(merge(seen, topology, agents, record.started.timestamp())))


def _check_whole(capture: Path) -> None:
    """One that a kill cut off is better than none where somebody looks for a failure; what it has
    is without gaps."""
    dropped: int | None = 0
    with suppress(CaptureError), capture.open("rb") as file:
        dropped = dropped_packets(file)
    if dropped:
        raise LabError(
            f"the capture {capture.name} lacks {dropped} packets that the kernel dropped",
            hint="run the lab again when the machine isn't as busy",
        )


def _node_of(capture: str, topology: Topology) -> str:
    """Captures are called NODE-LINK, and either may have dashes."""
    names = {f"{node}-{link.name}": node for link in topology.links for node in link.ends}
    return names.get(capture, "")


def merge(
    seen: Mapping[str, Iterable[Message]], topology: Topology, agents: set[str], start: float
) -> list[Exchanged]:
    """The messages that each node saw (by node) as one list. ``agents``: which are home agents;
    ``start``: of the run, in seconds since 1970."""
    own = _addresses(topology)
    owners = {address: node for node in seen for address in own[node]}
    found: list[Exchanged] = []
    received = {
        node: sorted(
            (m for m in of_node if m.source not in own.get(node, ())), key=lambda m: m.time
        )
        for node, of_node in seen.items()
    }
    matched: set[tuple[str, int]] = set()
    sent = sorted(
        ((m, node) for node, of_node in seen.items() for m in of_node if m.source in own[node]),
        key=lambda pair: pair[0].time,
    )
    for message, node in sent:
        peers = [peer for peer in seen if (peer in agents) != (node in agents)]
        if message.destination in owners:  # no NAT before it: nobody else can get it
            peers = [owners[message.destination]]
        arrival = _arrival(message, node, owners, peers, received, matched)
        peer = arrival[0] if arrival else next(iter(peers), "")
        at_agent = message if node in agents or arrival is None else arrival[1]
        found.append(
            Exchanged(
                seconds=message.time - start,
                source=node,
                destination=peer,
                label=message.label,
                wire=f"{at_agent.source} > {at_agent.destination}",
                # Of ESP only the first packet that either end saw is here; the next may have come.
                lost=arrival is None and not message.label.startswith("ESP"),
            )
        )
    for node, of_node in received.items():
        for index, message in enumerate(of_node):
            if (node, index) not in matched:  # its sender's capture doesn't have it
                found.append(
                    Exchanged(
                        seconds=message.time - start,
                        source="",
                        destination=node,
                        label=message.label,
                        wire=f"{message.source} > {message.destination}",
                    )
                )
    return sorted(found, key=lambda message: message.seconds)


def _arrival(
    message: Message,
    node: str,
    owners: Mapping[str, str],
    peers: Iterable[str],
    received: Mapping[str, list[Message]],
    matched: set[tuple[str, int]],
) -> tuple[str, Message] | None:
    for peer in peers:
        for index, candidate in enumerate(received[peer]):
            late = candidate.time - message.time
            if late > _ON_THE_WAY_S:
                break
            # The two capture sockets are read by one process: a hair's breadth of disorder.
            if (
                late >= -0.001
                and candidate.label == message.label
                and (peer, index) not in matched
                and owners.get(candidate.source, node) == node
            ):
                matched.add((peer, index))
                return peer, candidate
    return None


def _addresses(topology: Topology) -> dict[str, set[str]]:
    own: dict[str, set[str]] = {node.name: set() for node in topology.nodes}
    for link in topology.links:
        for node, ends in link.ends.items():
            own.setdefault(node, set()).update(str(ip_interface(end).ip) for end in ends)
    return own


def text(ladder: RunLadder) -> list[str]:
    """The ladder as lines of text, for terminals and failing tests."""
    if not ladder.messages:
        return ["no IKE, Mobility Header or ESP messages"]
    width = max(len(node) for node in ladder.nodes) if ladder.nodes else 1
    lines = []
    for message in ladder.messages:
        end = f"x  lost, {message.destination}" if message.lost else f"> {message.destination}"
        lines.append(
            f"{message.seconds:9.3f} s  {message.source or '?':>{width}} --"
            f" {message.label} --{end}   [{message.wire}]"
        )
    return lines
