"""Runs a lab's steps and makes the run record."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import dsmip_ipsec
from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.lab import flow, record, routes
from dsmip_ipsec.lab.expectations import Observation, judge
from dsmip_ipsec.lab.nursery import Nursery
from dsmip_ipsec.lab.spec import Lab, Step
from dsmip_ipsec.lab.standing import StandingLab
from dsmip_ipsec.lab.timeline import timeline

# A step that isn't done by then has failed: a user hears of it within half a minute.
STEP_S = 25.0
# How long flows are watched after a step, for late losses and to see whether data gets through.
WATCH_S = 0.6
# How long both ends may take to agree once the mobile node is done.
SETTLE_S = 3.0
_POLL_S = 0.05

KERNEL_KIND_VARIABLE = "DSMIP_KERNEL_KIND"


@dataclass(slots=True)
class _Done:
    """A step that was carried out, as far as known before the flows are analysed."""

    step: Step
    action: str
    started_ns: int
    acted_ns: int
    watched_ns: int
    before: dict[str, record.NodeState]
    after: dict[str, record.NodeState]
    counters: dict[str, record.Counters]
    exchanges: dict[str, str]
    care_of_addresses: frozenset[IPv4Address | IPv6Address]


class Scenario:
    """One run of ``lab``. ``say`` gets a line of progress at a time."""

    def __init__(
        self,
        lab: Lab,
        out: Path,
        *,
        export_keys: bool,
        say: Callable[[str], None],
        nursery: Nursery | None = None,
    ) -> None:
        self._lab = lab
        self._say = say
        self.standing = StandingLab(lab, out, export_keys=export_keys, say=say, nursery=nursery)
        self._node = next(iter(lab.mobile_nodes()))
        self._network: str | None = None
        self._done: list[_Done] = []
        self._origin_ns = 0

    async def run(self) -> record.RunRecord:
        """Stand the lab up, run all steps, take it down, and judge.

        A failure on the way is in the record; only what prevents a record raises DsmipError.
        """
        started, began = datetime.now(UTC), time.monotonic()
        self._origin_ns = time.monotonic_ns()
        failure: record.Failure | None = None
        series: list[flow.Series] = []
        step_name = ""
        try:
            step_name = "set-up"
            await self.standing.up()
            for step in self._lab.steps:
                step_name = step.name
                await self._step(step)
            step_name = "flows"
            series = await self.standing.finish_flows()
        except DsmipError as error:
            failure = record.Failure(step=step_name, message=error.message, hint=error.hint)
        finally:
            await self.standing.down()
        steps = tuple(self._judged(done, series) for done in self._done)
        overall = self._overall() if failure is None else ()
        return record.RunRecord(
            tool_version=dsmip_ipsec.__version__,
            lab=self._lab.lab.name,
            description=self._lab.lab.description,
            run_id=self.standing.run.id,
            verdict=record.verdict_of(steps, overall, failure),
            started=started,
            ended=datetime.now(UTC),
            duration_s=round(time.monotonic() - began, 3),
            phases=tuple(self.standing.phases),
            kernel=_kernel(),
            strongswan_version=self.standing.strongswan_version,
            settings=self._settings(),
            topology=self._topology(),
            steps=steps,
            expectations=overall,
            failure=failure,
            timelines=tuple(timeline(one, self._node, self._origin_ns) for one in series),
            artefacts=self._artefacts(),
        )

    # One step -----------------------------------------------------------------------------------

    async def _step(self, step: Step) -> None:
        """Raises DsmipError when the step can't be carried out, or not in time."""
        started = time.monotonic()
        self._say(f"{step.name} …")
        try:
            async with asyncio.timeout(STEP_S):
                done = await self.standing.processes.guard(self._carry_out(step))
        except TimeoutError as error:
            raise LabError(
                f"not done within {STEP_S:g} s", hint="the logs tell what it waited for"
            ) from error
        self._done.append(done)
        self._say(f"{step.name}: done after {time.monotonic() - started:.1f} s")

    async def _carry_out(self, step: Step) -> _Done:
        before, counted = await self._states(), await self._counters()
        started = time.monotonic_ns()
        action = await self._act(step)
        acted = time.monotonic_ns()
        await asyncio.sleep(WATCH_S)  # the flows go on, and are measured
        watched = time.monotonic_ns()
        # The state first: proving the IKE_SA alive rekeys it, and it would show as another one.
        after = await self._settled(step)
        exchanges: dict[str, str] = {}
        if step.expect.ike_alive is not None:
            for name in (self._node, self.standing.agent):
                exchanges[name] = await self.standing.exchange(name)
        return _Done(
            step, action, started, acted, watched, before, after,
            _growth(counted, await self._counters()), exchanges, self._care_of_addresses(),
        )  # fmt: skip

    async def _act(self, step: Step) -> str:
        if step.block is not None:
            await self.standing.block(step.block)
            return f"block {step.block.protocol} port {step.block.port} at {step.block.node}"
        if step.kill is not None:
            self.standing.processes[step.kill].signal(signal.SIGKILL)
            return f"kill {step.kill}"
        previous = self._network
        if step.network is None:
            await self.standing.command(self._node, "deregister")
            self._network = None
            action = "deregister"
        else:
            timing = await self.standing.attach(self._node, step.network)
            self._network = step.network
            action = f"{step.verb} to {step.network}"
            self._say(
                f"{step.name}: "
                + ", ".join(
                    f"{key.removesuffix('_ms')} {value:.0f} ms" for key, value in timing.items()
                )
            )
        if previous is not None and previous != self._network:
            # Only now is the old network out of reach: until the binding is acknowledged, the old
            # path still receives (RFC 5555 §5.1).
            self.standing.leave(self._node, previous)
        return action

    async def _settled(self, step: Step) -> dict[str, record.NodeState]:
        """The states once they are as expected, or as they are when time is up."""
        deadline = time.monotonic() + SETTLE_S
        expect = step.expect.model_copy(
            update=dict.fromkeys(("data", "interruption_max", "lost_max", "ike_alive"))
        )
        while True:
            states = await self._states()
            seen = self._observation(states, {}, (), (), self._care_of_addresses())
            if all(e.passed for e in judge(expect, seen)) or time.monotonic() > deadline:
                return states
            await asyncio.sleep(_POLL_S)

    async def _states(self) -> dict[str, record.NodeState]:
        return {name: await observer.state() for name, observer in self.standing.observers.items()}

    async def _counters(self) -> dict[str, record.Counters]:
        return {
            name: await observer.counters() for name, observer in self.standing.observers.items()
        }

    def _care_of_addresses(self) -> frozenset[IPv4Address | IPv6Address]:
        if self._network is None:
            return frozenset()
        return frozenset(a.ip for a in self._lab.addresses(self._node, self._network))

    # Judging ------------------------------------------------------------------------------------

    def _observation(
        self,
        states: dict[str, record.NodeState],
        exchanges: dict[str, str],
        flows: Sequence[record.Flow],
        after: Sequence[record.Flow],
        care_of_addresses: frozenset[IPv4Address | IPv6Address],
    ) -> Observation:
        return Observation(
            mobile_node=states[self._node],
            home_agent=states[self.standing.agent],
            care_of_addresses=care_of_addresses,
            flows=flows,
            after=after,
            exchanges=exchanges,
            rtt_ms=self._rtt_ms,
        )

    def _judged(self, done: _Done, series: Sequence[flow.Series]) -> record.StepRecord:
        flows = self._measure(series, done.started_ns, done.watched_ns)
        after = self._measure(series, done.acted_ns, done.watched_ns)
        seen = self._observation(done.after, done.exchanges, flows, after, done.care_of_addresses)
        return record.StepRecord(
            name=done.step.name,
            action=done.action,
            started_s=round((done.started_ns - self._origin_ns) / 1e9, 3),
            ended_s=round((done.watched_ns - self._origin_ns) / 1e9, 3),
            flows=tuple(flows),
            before=done.before,
            after=done.after,
            counters=done.counters,
            # Without the flows (the run ended early) what depends on them can't be judged.
            expectations=judge(done.step.expect, seen) if series else (),
        )

    def _measure(
        self, series: Sequence[flow.Series], start_ns: int, end_ns: int
    ) -> list[record.Flow]:
        found = []
        for one in series:
            numbers = flow.analyse(one, start_ns, end_ns)
            gap = numbers.interruption_ms
            found.append(
                record.Flow(
                    node=self._node,
                    family=one.flow.family,
                    direction=one.flow.direction,
                    sent=numbers.sent,
                    received=numbers.received,
                    lost=numbers.lost,
                    duplicates=numbers.duplicates,
                    reordered=numbers.reordered,
                    refused=numbers.refused,
                    outage_ms=round(numbers.outage_ms, 2),
                    sender_stall_ms=round(numbers.sender_stall_ms, 2),
                    delay_ms_min=numbers.delay_ms_min,
                    delay_ms_max=numbers.delay_ms_max,
                    interruption_ms=None if gap is None else round(gap, 2),
                    interruption_rtts=round(gap / self._rtt_ms, 3)
                    if gap is not None and self._rtt_ms
                    else None,
                )
            )
        return found

    def _overall(self) -> tuple[record.Expectation, ...]:
        """What must hold of the run as a whole: clean ends, and nothing missed."""
        ended = self.standing.ended
        bad = [f"{name}: status {status}" for name, status in ended.items() if status != 0]
        dropped = sum(capture.dropped for capture in self.standing.captures)
        return (
            record.Expectation(
                name="daemons and charons end cleanly",
                expected="exit status 0 of each",
                seen="; ".join(bad) or f"0 of all {len(ended)}",
                passed=bool(ended) and not bad,
            ),
            record.Expectation(
                name="captures are complete",
                expected="no packet dropped",
                seen=f"{dropped} dropped",
                passed=bool(self.standing.captures) and dropped == 0,
            ),
        )

    # The record's frame ---------------------------------------------------------------------------

    @property
    def _rtt_ms(self) -> float:
        """Configured round-trip time between the first visited network and the home agent."""
        network = next((s.network for s in self._lab.steps if s.network is not None), None)
        if network is None:
            return 0.0
        return routes.rtt_ms(self._lab, self._node, network, self.standing.agent) or 0.0

    def _settings(self) -> record.Settings:
        return record.Settings(
            one_way_delay_ms=self._rtt_ms / 2,
            rtt_ms=self._rtt_ms,
            probe_interval_ms=self._lab.flow.interval_ms,
            ike_authentication=self._lab.ike.auth,
            ike_mobility=self._lab.ike.mobility,
            data_protected=self._lab.data.protected,
        )

    def _topology(self) -> record.Topology:
        return record.Topology(
            nodes=tuple(
                record.NodeSummary(name=name, role=node.role)
                for name, node in self._lab.nodes.items()
            ),
            links=tuple(
                record.LinkSummary(
                    name=name,
                    ends={node: tuple(map(str, ends)) for node, ends in link.ends.items()},
                    delay_ms=link.delay_ms,
                )
                for name, link in self._lab.links.items()
            ),
        )

    def _artefacts(self) -> record.Artefacts:
        out = self.standing.out
        return record.Artefacts(
            captures=tuple(
                str(capture.path.relative_to(out)) for capture in self.standing.captures
            ),
            logs=tuple(str(path.relative_to(out)) for path in sorted((out / "logs").glob("*"))),
        )


def _kernel() -> record.Kernel:
    kind: Any = os.environ.get(KERNEL_KIND_VARIABLE, "host")
    return record.Kernel(kind=kind, release=platform.release())


def _growth(
    before: dict[str, record.Counters], after: dict[str, record.Counters]
) -> dict[str, record.Counters]:
    def grown(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
        return {
            name: count - old.get(name, 0)
            for name, count in new.items()
            if count != old.get(name, 0)
        }

    return {
        name: record.Counters(
            engine=grown(before[name].engine, after[name].engine),
            xfrm=grown(before[name].xfrm, after[name].xfrm),
        )
        for name in after
    }
