"""The run record: what one lab run did, measured and concluded, as data.

``DIR/record.json`` is the one result of a run; the terminal table, HTML, JUnit, pytest failures
and benchmarks are views of it (:mod:`dsmip_ipsec.report`). Its fields are documented in
``docs/record.md``, which is generated from these models.

Names end in their unit: ``_ms`` milliseconds, ``_s`` seconds, ``_rtts`` multiples of the lab's
``rtt_ms``. Points in time are UTC in ISO 8601, or seconds since the run's ``started``.

No model has a field for key material, and every model refuses fields that it doesn't name: a
record can be published.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from dsmip_ipsec.errors import ConfigError, LabError
from dsmip_ipsec.lab.record_types import Address as Address
from dsmip_ipsec.lab.record_types import (
    Count,
    Milliseconds,
    Port,
    RelativePath,
    Seconds,
    Spi,
    Utc,
    Verdict,
)
from dsmip_ipsec.lab.record_types import Model as _Model

SCHEMA_VERSION = 4
"""Grows with every change of the fields below. A new field gets a default, so that older records
stay readable; a removed field, or one with a new meaning, raises ``OLDEST_READABLE``, too."""

OLDEST_READABLE = 1


class Kernel(_Model):
    """The kernel that the lab's nodes ran on."""

    kind: Literal["host", "uml", "qemu"] = Field(description="Where the kernel ran.")
    release: str = Field(description="As `uname -r` prints it.")
    capabilities: dict[str, bool] = Field(
        default={}, description="What `dsmip-ipsec doctor` found by trying, by its names."
    )


class NodeSummary(_Model):
    """One node of the topology."""

    name: str = Field(description="The node's name in the lab file.")
    role: str = Field(description="Its role in the lab file, such as `home_agent`.")


class LinkSummary(_Model):
    """One link of the topology."""

    name: str = Field(description="The link's name in the lab file.")
    ends: dict[str, tuple[str, ...]] = Field(
        description="Addresses with prefix lengths of each node on the link, by node."
    )
    delay_ms: Milliseconds = Field(default=0, description="One-way delay of the link.")


class Topology(_Model):
    """The topology, in short."""

    nodes: tuple[NodeSummary, ...] = Field(default=(), description="In the lab file's order.")
    links: tuple[LinkSummary, ...] = Field(default=(), description="In the lab file's order.")


class Settings(_Model):
    """What the lab file set, as far as the measurements depend on it."""

    one_way_delay_ms: Milliseconds = Field(
        description="Configured delay between mobile node and home agent."
    )
    rtt_ms: Milliseconds = Field(description="Twice that delay: the unit of every `_rtts` field.")
    probe_interval_ms: Milliseconds = Field(
        description="Time between two probes of a flow: the resolution of interruptions."
    )
    probe_protocol: Literal["udp", "tcp"] = Field(
        default="udp", description="Whether probes are datagrams, or parts of TCP connections."
    )
    ike_authentication: str = Field(default="", description="`certificate` or `psk`.")
    ike_mobility: str = Field(
        default="", description="How the IKE_SA follows a handover, such as `mobike`."
    )
    data_protected: bool = Field(default=True, description="Whether the data is in ESP.")
    ipsec: Literal["kernel", "userspace"] = Field(
        default="kernel", description="Who applies ESP: the kernel, or the daemons themselves."
    )
    delayed_by: Literal["netem", "relay"] = Field(
        default="netem", description="What makes links slow or lossy: kernel, or a relay of ours."
    )


class Phase(_Model):
    """One stretch of the run outside its steps, such as booting the guest."""

    name: str = Field(description="Such as `boot`, `topology`, `daemons`, `teardown`; see labs.md.")
    duration_s: Seconds = Field(description="How long it took.")


class Flow(_Model):
    """What a step did to one probe flow (one family, one direction)."""

    node: str = Field(default="mn", description="The mobile node at one end of the flow.")
    family: Literal["ipv6", "ipv4"] = Field(description="Family of the home address in use.")
    direction: Literal["up", "down"] = Field(
        description="`up`: mobile node to correspondent node; `down`: the other way."
    )
    sent: Count = Field(description="Probes sent in the step's window.")
    received: Count = Field(description="Of these, those that arrived, each counted once.")
    lost: Count = Field(description="`sent` less `received`.")
    duplicates: Count = Field(default=0, description="Arrivals of a probe after its first.")
    reordered: Count = Field(default=0, description="Probes that a later one overtook.")
    refused: Count = Field(
        default=0, description="Of the lost ones, those that the sender's kernel didn't take."
    )
    interruption_ms: Milliseconds | None = Field(
        description="How much longer than the probe interval the receiver waited at most, to "
        "the window's edges too, less what the sender left out; null: nothing arrived."
    )
    interruption_rtts: float | None = Field(
        default=None, ge=0, description="`interruption_ms` in RTTs; null also when RTT is 0."
    )
    outage_ms: Milliseconds = Field(
        default=0, description="By time of sending: the longest run of consecutive lost probes."
    )
    sender_stall_ms: Milliseconds = Field(
        default=0,
        description="Longest time between two probes' sending beyond the probe interval: for so "
        "long nobody looked whether the network delivers.",
    )
    delay_ms_min: Milliseconds | None = Field(
        default=None, description="Least one-way delay; null: not measured."
    )
    delay_ms_max: Milliseconds | None = Field(
        default=None, description="Greatest one-way delay; null: not measured."
    )

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.lost != self.sent - self.received:
            raise ValueError("lost must be sent less received")
        return self


class FlowTimeline(_Model):
    """One probe flow over the whole run, in bins of equal length."""

    node: str = Field(description="The mobile node at one end of the flow.")
    family: Literal["ipv6", "ipv4"] = Field(description="Family of the home address in use.")
    direction: Literal["up", "down"] = Field(description="As in a step's flow.")
    start_s: Seconds = Field(description="Start of the first bin, counted from the run's.")
    bin_ms: Annotated[float, Field(gt=0)] = Field(description="Length of a bin.")
    sent: tuple[Count, ...] = Field(description="Probes sent in each bin.")
    lost: tuple[Count, ...] = Field(description="Of these, those that never arrived.")
    wait_ms: tuple[Milliseconds, ...] = Field(
        description="Longest time between two arrivals of which the later is in the bin."
    )

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if not len(self.sent) == len(self.lost) == len(self.wait_ms):
            raise ValueError("sent, lost and wait_ms must be of the same length")
        return self


class Binding(_Model):
    """A binding, as a home agent's cache or a mobile node's update list has it."""

    home_address: IPv6Address = Field(description="The IPv6 home address.")
    ipv4_home_address: IPv4Address | None = Field(
        default=None, description="The IPv4 home address; null: none is bound."
    )
    care_of_address: Address = Field(description="The care-of address in the binding update.")
    outer_address: Address | None = Field(
        default=None,
        description="V4ADDR of RFC 5555: the source of the outer header as the home agent saw "
        "it; null: the binding update came natively.",
    )
    outer_port: Port | None = Field(
        default=None, description="Z of RFC 5555 §4.2: the UDP source port beside V4ADDR."
    )
    nat_detected: bool = Field(description="Whether a NAT was found on the path.")
    udp_encapsulation: bool = Field(description="Whether UDP encapsulation is in use.")
    k_bit: bool = Field(default=False, description="K of RFC 6275 §6.1.8 (since version 4).")
    sequence: int = Field(ge=0, le=65535, description="Last accepted sequence number.")
    lifetime_s: Seconds = Field(description="Granted lifetime.")


class Encapsulation(_Model):
    """UDP encapsulation of an SA (RFC 3948)."""

    source_port: Port = Field(description="UDP source port.")
    destination_port: Port = Field(description="UDP destination port.")


class SecurityAssociation(_Model):
    """One SA of a node's SAD. Its keys are never recorded."""

    spi: Spi = Field(description="Security parameters index, eight hex digits after `0x`.")
    source: Address = Field(description="Outer source (tunnel) or source (transport).")
    destination: Address = Field(description="Outer destination, or destination.")
    mode: Literal["transport", "tunnel"] = Field(description="ESP mode.")
    encapsulation: Encapsulation | None = Field(
        default=None, description="Ports of ESP in UDP; null: plain ESP."
    )
    reqid: Count = Field(default=0, description="What ties the SA to policies.")
    purpose: str = Field(default="", description="Such as `signalling` or `data`.")


class Policy(_Model):
    """One policy of a node's SPD."""

    direction: Literal["in", "out", "fwd"] = Field(description="As Linux has it.")
    selector: str = Field(description="Source, destination, protocol and type, in words.")
    template: str = Field(
        description="What the policy asks for; `block` if it discards, `bypass` if nothing."
    )
    priority: Count = Field(default=0, description="Lower wins.")


class ChildSa(_Model):
    """A CHILD_SA as charon lists it."""

    name: str = Field(description="Name in the configuration.")
    state: str = Field(description="charon's word, such as `INSTALLED`.")
    mode: str = Field(default="", description="charon's word, such as `TUNNEL`.")
    spi_in: Spi | None = Field(default=None, description="Inbound SPI.")
    spi_out: Spi | None = Field(default=None, description="Outbound SPI.")
    encapsulation: bool = Field(default=False, description="ESP in UDP.")
    reqid: Count = Field(default=0, description="Its reqid.")


class IkeSa(_Model):
    """An IKE_SA as charon lists it."""

    name: str = Field(default="", description="Name of its connection.")
    uniqueid: str = Field(description="charon's number for it.")
    state: str = Field(description="charon's word, such as `ESTABLISHED`.")
    local_host: str = Field(description="This end's address.")
    local_port: Port = Field(description="This end's UDP port.")
    remote_host: str = Field(description="The other end's address, as this end sees it.")
    remote_port: Port = Field(description="The other end's UDP port, as this end sees it.")
    nat_local: bool = Field(default=False, description="This end is behind a NAT.")
    nat_remote: bool = Field(default=False, description="The other end is behind a NAT.")
    children: tuple[ChildSa, ...] = Field(default=(), description="Its CHILD_SAs.")


class Tunnel(_Model):
    """A tunnel of the kernel's for payload without IPsec. (One in UDP has no interface.)"""

    local: Address = Field(description="This end's outer address.")
    remote: Address = Field(description="The other end's outer address.")
    home_address: IPv6Address = Field(description="Of the mobile node that it belongs to.")


class NodeState(_Model):
    """What one node knew at one moment."""

    attachment: str = Field(
        default="", description="Link that a mobile node is attached to; empty: none."
    )
    bindings: tuple[Binding, ...] = Field(default=(), description="All bindings.")
    sas: tuple[SecurityAssociation, ...] = Field(default=(), description="The whole SAD.")
    policies: tuple[Policy, ...] = Field(default=(), description="The whole SPD.")
    ike: tuple[IkeSa, ...] = Field(default=(), description="All IKE_SAs.")
    tunnels: tuple[Tunnel, ...] = Field(
        default=(), description="Of payload without IPsec (since version 4)."
    )


class Counters(_Model):
    """By how much a node's counters grew during a step; those that stood still are left out."""

    engine: dict[str, int] = Field(default={}, description="Of the engine, by drop reason.")
    xfrm: dict[str, int] = Field(default={}, description="Of `/proc/net/xfrm_stat`.")


class Expectation(_Model):
    """Something that the scenario demands, and what came of it."""

    name: str = Field(description="What is looked at, such as `IPv6 interruption`.")
    expected: str = Field(description="What was demanded, in words and units.")
    seen: str = Field(description="What was seen, in the same words and units.")
    passed: bool = Field(description="Whether it held.")


class NotApplicable(_Model):
    """Something that the scenario demands and that this run couldn't judge: nothing held."""

    name: str = Field(description="What would have been looked at, such as `IKE exchange`.")
    reason: str = Field(description="Why there is nothing to judge by.")


class StepRecord(_Model):
    """One step of the scenario."""

    name: str = Field(description="The step's name in the lab file.")
    action: str = Field(description="What was done, such as `move to visited-b`.")
    started_s: Seconds = Field(description="Start, counted from the run's.")
    ended_s: Seconds = Field(description="End, counted from the run's start.")
    flows: tuple[Flow, ...] = Field(default=(), description="Measured flows.")
    before: dict[str, NodeState] = Field(default={}, description="State before, by node.")
    after: dict[str, NodeState] = Field(default={}, description="State after, by node.")
    counters: dict[str, Counters] = Field(default={}, description="Counters, by node.")
    expectations: tuple[Expectation, ...] = Field(default=(), description="The step's.")
    not_applicable: tuple[NotApplicable, ...] = Field(
        default=(), description="Of those, what couldn't be judged: neither held nor failed."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.ended_s < self.started_s:
            raise ValueError("ended_s is before started_s")
        return self

    @property
    def passed(self) -> bool:
        """True if every expectation of the step held."""
        return all(expectation.passed for expectation in self.expectations)


class Failure(_Model):
    """The error that ended the run before its last step was done."""

    step: str = Field(default="", description="The step it struck; empty: before the first.")
    message: str = Field(description="One sentence: what is wrong.")
    hint: str = Field(default="", description="What to do next.")


class Artefacts(_Model):
    """Files beside the record. Paths are relative to the record's directory."""

    captures: tuple[RelativePath, ...] = Field(default=(), description="pcapng files.")
    logs: tuple[RelativePath, ...] = Field(default=(), description="Logs of all processes.")
    wireshark: RelativePath | None = Field(
        default=None, description="A ready `WIRESHARK_CONFIG_DIR`; null: keys weren't exported."
    )


def verdict_of(
    steps: Iterable[StepRecord],
    expectations: Iterable[Expectation] = (),
    failure: Failure | None = None,
) -> Verdict:
    """The verdict of a run: ``error`` if something ended it early, ``passed`` if every
    expectation of every step and of the run held and there was at least one, else ``failed``."""
    if failure is not None:
        return "error"
    results = [e.passed for step in steps for e in step.expectations]
    results += [e.passed for e in expectations]
    return "passed" if results and all(results) else "failed"


class RunRecord(_Model):
    """One run of a lab."""

    # The default serves writers only: load() refuses a file without it.
    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this schema.")
    tool_version: str = Field(description="Version of dsmip-ipsec that ran the lab.")
    lab: str = Field(description="The lab's name.")
    description: str = Field(default="", description="The lab's description.")
    run_id: str = Field(description="The run's short id: the prefix of its namespaces.")
    verdict: Verdict = Field(
        description="`passed`: every expectation held; `failed`: one didn't, or there was "
        "none; `error`: the run didn't get to its end."
    )
    started: Utc = Field(description="Start, UTC.")
    ended: Utc = Field(description="End, UTC.")
    duration_s: Seconds = Field(description="How long it took, by a monotonic clock.")
    phases: tuple[Phase, ...] = Field(default=(), description="What that went to.")
    kernel: Kernel = Field(description="The kernel.")
    strongswan_version: str = Field(default="", description="As charon names it over VICI.")
    settings: Settings = Field(description="The lab's settings.")
    topology: Topology = Field(default=Topology(), description="The lab's topology.")
    steps: tuple[StepRecord, ...] = Field(default=(), description="In order.")
    expectations: tuple[Expectation, ...] = Field(
        default=(), description="Of the whole run, such as `nothing is left running`."
    )
    failure: Failure | None = Field(default=None, description="What ended the run early.")
    timelines: tuple[FlowTimeline, ...] = Field(
        default=(), description="All flows over the whole run (since version 2)."
    )
    artefacts: Artefacts = Field(default=Artefacts(), description="Files of the run.")

    @model_validator(mode="after")
    def _honest(self) -> Self:
        """A record can't claim a verdict that its own expectations contradict."""
        due = verdict_of(self.steps, self.expectations, self.failure)
        if self.verdict != due:
            raise ValueError(f"verdict is {self.verdict!r}, its expectations make it {due!r}")
        return self

    @property
    def passed(self) -> bool:
        """True if a command that ran this lab may exit 0."""
        return self.verdict == "passed"

    def all_expectations(self) -> list[tuple[str, Expectation]]:
        """(step name, expectation) of all; the step name is "" for those of the run."""
        pairs = [(step.name, e) for step in self.steps for e in step.expectations]
        return pairs + [("", e) for e in self.expectations]

    def all_not_applicable(self) -> list[tuple[str, NotApplicable]]:
        """(step name, what couldn't be judged) of all."""
        return [(step.name, e) for step in self.steps for e in step.not_applicable]

    def write(self, path: Path) -> None:
        """Write the record as JSON (UTF-8, indented), whole or not at all.

        Raises LabError if the directory can't be written.
        """
        text = self.model_dump_json(indent=2) + "\n"
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp's 0600 suits secrets. A record holds none and is there to be read.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except (OSError, UnicodeError) as error:
            if temporary:
                with suppress(OSError):
                    os.unlink(temporary)
            raise LabError(
                f"the run record {path} can't be written: {error}",
                hint="check that the directory exists, is yours and has room",
            ) from error


def load(path: Path) -> RunRecord:
    """Read a record. Raises ConfigError for anything that isn't a readable record."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the run record can't be read: {error.strerror}",
            path=path,
            hint="hand over the record.json of a finished run, as `lab run --out` writes it",
        ) from error
    try:
        content = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ConfigError(
            f"the run record isn't JSON: {error}",
            path=path,
            hint="the file is damaged or isn't a run record; run the lab again",
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is not int:
        raise ConfigError(
            "this isn't a run record: it has no schema_version",
            path=path,
            hint="hand over the record.json of a finished run",
        )
    if not OLDEST_READABLE <= version <= SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise ConfigError(
            f"the run record has schema version {version}; "
            f"this release reads {OLDEST_READABLE} to {SCHEMA_VERSION}",
            path=path,
            hint="read it with a newer release of dsmip-ipsec" if newer else "run the lab again",
        )
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            _explain(error),
            path=path,
            hint="the file was edited or is damaged; docs/record.md says what belongs there",
        ) from error


def _explain(error: ValidationError) -> str:
    """The first fault, with its place as `steps[0].name`; never the value, which may be long."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    place = ""
    for part in faults[0]["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    text = f"{place or 'the record'}: {faults[0]['msg']}"
    return text if len(faults) == 1 else f"{text} (and {len(faults) - 1} more)"
