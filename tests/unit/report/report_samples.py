"""A run record as a run of labs/nat-handover.toml would leave it, and variations of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from dsmip_ipsec.lab.record import (
    Address,
    Artefacts,
    Binding,
    ChildSa,
    Counters,
    Encapsulation,
    Expectation,
    Failure,
    Flow,
    IkeSa,
    Kernel,
    LinkSummary,
    NodeState,
    NodeSummary,
    Phase,
    Policy,
    RunRecord,
    SecurityAssociation,
    Settings,
    StepRecord,
    Topology,
    verdict_of,
)

HOA = IPv6Address("2001:db8:1::10")
HOA4 = IPv4Address("198.51.100.10")
HA = IPv6Address("2001:db8:1::1")
HA4 = IPv4Address("203.0.113.1")
PRIVATE = IPv4Address("10.1.0.2")
NAT = IPv4Address("192.0.2.1")
PUBLIC = IPv4Address("192.0.2.130")
STARTED = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def flow(family: str, direction: str, sent: int, lost: int, gap: float | None) -> Flow:
    return Flow.model_validate(
        {
            "family": family,
            "direction": direction,
            "sent": sent,
            "received": sent - lost,
            "lost": lost,
            "interruption_ms": gap,
            "interruption_rtts": None if gap is None else gap / 40,
        }
    )


def flows(sent: int, lost: int, gap: float) -> tuple[Flow, ...]:
    return (
        flow("ipv6", "up", sent, lost, gap),
        flow("ipv6", "down", sent, lost + 4, gap + 20),
        flow("ipv4", "up", sent, lost, gap + 1.25),
        flow("ipv4", "down", sent, lost + 3, gap + 15),
    )


def state(node: str, place: str) -> NodeState:
    """What ``node`` knows while the mobile node is at ``place`` ("": nowhere)."""
    if not place:
        return NodeState()
    nat = place == "visited-a"
    care_of = PRIVATE if nat else PUBLIC
    seen = NAT if nat and node == "ha" else care_of
    port = (41011 if node == "ha" else 4500) if nat else None

    def sa(spi: int, purpose: str, ends: tuple[Address, Address]) -> SecurityAssociation:
        tunnel = purpose == "data"
        up = ends[1] in (HA, HA4)
        ports = Encapsulation(
            source_port=(port or 0) if up else 4500, destination_port=4500 if up else (port or 0)
        )
        return SecurityAssociation.model_validate(
            {
                "spi": spi,
                "source": ends[0],
                "destination": ends[1],
                "mode": "tunnel" if tunnel else "transport",
                "encapsulation": ports if tunnel and port is not None else None,
                "reqid": 2 if tunnel else 1,
                "purpose": purpose,
            }
        )

    return NodeState(
        attachment=place if node == "mn" else "",
        bindings=(
            Binding(
                home_address=HOA,
                ipv4_home_address=HOA4,
                care_of_address=care_of,
                outer_address=seen if node == "ha" else None,
                outer_port=(40123 if nat else 4191) if node == "ha" else None,
                nat_detected=nat,
                udp_encapsulation=nat,
                sequence=7,
                lifetime_s=600,
            ),
        ),
        sas=(
            sa(0xC1000001, "signalling", (HOA, HA)),
            sa(0xC2000001, "signalling", (HA, HOA)),
            sa(0xC1000002, "data", (seen, HA4)),
            sa(0xC2000002, "data", (HA4, seen)),
        ),
        policies=(
            Policy(
                direction="out",
                selector=f"{HOA} -> ::/0",
                template=f"esp tunnel {seen} -> {HA4} reqid 2",
                priority=100,
            ),
        ),
        ike=(
            IkeSa(
                name="dsmip",
                uniqueid="1",
                state="ESTABLISHED",
                local_host=str(care_of if node == "mn" else HA4),
                local_port=4500,
                remote_host=str(HA4 if node == "mn" else seen),
                remote_port=4500 if node == "mn" else (port or 4500),
                nat_local=nat and node == "mn",
                nat_remote=nat and node == "ha",
                children=(ChildSa(name="data", state="INSTALLED", spi_in="0xc2000002"),),
            ),
        ),
    )


def step(
    name: str,
    action: str,
    start: float,
    places: tuple[str, str],
    measured: tuple[Flow, ...] = (),
    expectations: tuple[Expectation, ...] = (),
) -> StepRecord:
    return StepRecord(
        name=name,
        action=action,
        started_s=start,
        ended_s=start + 4,
        flows=measured,
        before={node: state(node, places[0]) for node in ("mn", "ha")},
        after={node: state(node, places[1]) for node in ("mn", "ha")},
        expectations=expectations,
    )


def interruption(seen_ms: float, *, passed: bool = True) -> Expectation:
    return Expectation(
        name="IPv6 interruption",
        expected="at most 140 ms (1 RTT + 100 ms)",
        seen=f"{seen_ms} ms ({seen_ms / 40:.1f} RTT)",
        passed=passed,
    )


def steps(*, passed: bool = True) -> tuple[StepRecord, ...]:
    held = (Expectation(name="NAT", expected="seen", seen="seen", passed=True),)
    return (
        step("attach-a", "attach to visited-a", 3, ("", "visited-a"), (), held),
        step(
            "to-b",
            "move to visited-b",
            7,
            ("visited-a", "visited-b"),
            flows(800, 9, 45.5),
            (interruption(65.5),),
        ),
        step(
            "back-to-a",
            "move to visited-a",
            11,
            ("visited-b", "visited-a"),
            flows(800, 12, 61.0 if passed else 392.0),
            (interruption(81.0 if passed else 412.0, passed=passed),),
        ),
        step("deregister", "deregister", 15, ("visited-a", ""), (), held),
    )


def record(*, passed: bool = True, failure: Failure | None = None) -> RunRecord:
    done = steps(passed=passed)
    if failure is not None:
        done = done[:2]
    run_expectations = (
        Expectation(name="left running", expected="nothing", seen="nothing", passed=True),
    )
    return RunRecord(
        tool_version="0.1.0",
        lab="nat-handover",
        description="MN behind a NAT, to a public network and back",
        run_id="d5a1f0",
        verdict=verdict_of(done, run_expectations, failure),
        started=STARTED,
        ended=STARTED + timedelta(seconds=24.2),
        duration_s=24.2,
        phases=(Phase(name="boot", duration_s=2.1), Phase(name="topology", duration_s=0.8)),
        kernel=Kernel(kind="uml", release="6.1.176", capabilities={"esp4": True, "fou": False}),
        strongswan_version="5.9.8",
        settings=Settings(
            one_way_delay_ms=20,
            rtt_ms=40,
            probe_interval_ms=5,
            ike_authentication="certificate",
            ike_mobility="mobike",
        ),
        topology=Topology(
            nodes=(NodeSummary(name="mn", role="mobile_node"),),
            links=(LinkSummary(name="core", ends={"ha": ("203.0.113.1/24",)}, delay_ms=20),),
        ),
        steps=done,
        expectations=run_expectations,
        failure=failure,
        artefacts=Artefacts(
            captures=("captures/ha-core.pcapng", "captures/mn-visited-a.pcapng"),
            logs=("logs/ha-charon.log",),
            wireshark="wireshark",
        ),
    )


def counted(step_record: StepRecord) -> StepRecord:
    """The step with counters that moved."""
    return step_record.model_copy(
        update={"counters": {"ha": Counters(engine={"unprotected": 2}, xfrm={"XfrmInNoStates": 1})}}
    )
