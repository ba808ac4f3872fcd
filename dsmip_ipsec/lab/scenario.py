"""Runs a lab's steps and makes the run record."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import dsmip_ipsec
from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.lab import flow, ipsec_kind, record, routes, run_facts, size
from dsmip_ipsec.lab.deploy import reqids
from dsmip_ipsec.lab.expect_models import OF_FLOWS
from dsmip_ipsec.lab.expectations import Ends, Observation, judge, judge_failure, not_yet
from dsmip_ipsec.lab.nursery import Nursery
from dsmip_ipsec.lab.observe import growth
from dsmip_ipsec.lab.pace import probe_interval_ms, scaled
from dsmip_ipsec.lab.settling import Agrees, agreed
from dsmip_ipsec.lab.spec import Expect, Lab, Step
from dsmip_ipsec.lab.standing import StandingLab
from dsmip_ipsec.lab.timeline import measured, timeline
from dsmip_ipsec.lab.turns import in_turns
from dsmip_ipsec.node import control
from dsmip_ipsec.node.config import IpsecKind

# How long flows are watched after a step, for late losses and to see whether data gets through.
WATCH_S = 0.6
# How long both ends may take to agree once the mobile node is done.
SETTLE_S = 3.0
# So many mobile nodes do at once what a step has all of them do: there may be one CPU, and each has
# its time for a handover.
_AT_ONCE = 4
_POLL_S = 0.05


@dataclass(slots=True)
class _Done:
    """A step that was carried out, as far as known before the flows are analysed."""

    step: Step
    nodes: tuple[str, ...]
    action: str
    started_ns: int
    acted_ns: int
    watched_ns: int
    before: dict[str, record.NodeState]
    after: dict[str, record.NodeState]
    counters: dict[str, record.Counters]
    exchanges: dict[str, dict[str, str]]
    refusals: dict[str, str]  # of a step that shall fail: what each node's daemon said
    care_of_addresses: dict[str, frozenset[IPv4Address | IPv6Address]]


class Scenario:
    """One run of ``lab``. ``say`` gets a line of progress at a time. ``agrees``: see settling.py.

    :meth:`run` does the whole of it. For steps that aren't in the lab file: :meth:`begin`,
    :meth:`step` as often as wanted, :meth:`finish` always.
    """

    def __init__(
        self,
        lab: Lab,
        out: Path,
        *,
        export_keys: bool,
        say: Callable[[str], None],
        nursery: Nursery | None = None,
        ipsec: IpsecKind = "kernel",
        agrees: Agrees | None = None,
    ) -> None:
        self.lab = lab
        self._agrees = agrees
        self.ipsec = ipsec
        self._say = say
        self.standing = StandingLab(
            lab, out, export_keys=export_keys, say=say, nursery=nursery, ipsec=ipsec
        )
        self.networks: dict[str, str] = {}  # mobile node: the link that it is on
        self._autoconfigured: dict[str, frozenset[IPv4Address | IPv6Address]] = {}
        self._nodes = tuple(lab.mobile_nodes())
        self._done: list[_Done] = []
        self._started, self._began = datetime.now(UTC), time.monotonic()
        self._origin_ns = time.monotonic_ns()
        self._failure: record.Failure | None = None

    async def run(self) -> record.RunRecord:
        """Stand the lab up, run all steps, take it down, and judge.

        A failure on the way is in the record; only what prevents a record raises DsmipError.
        """
        try:
            await self.begin()
            for step in self.lab.steps:
                await self.step(step)
        except DsmipError:
            pass  # noted where it happened
        except BaseException:
            await self.standing.down()
            raise
        return await self.finish()

    async def begin(self) -> None:
        """Stand the lab up. Raises DsmipError, which the record will tell of, too."""
        with self._noting("set-up"):
            await self.standing.up()

    async def step(self, step: Step) -> None:
        """Carry a step out. Raises DsmipError when it can't be, or not in time."""
        with self._noting(step.name):
            await self._step(step)

    async def finish(self) -> record.RunRecord:
        """Take the lab down, and judge. Raises DsmipError for what prevents a record."""
        series: list[flow.Series] = []
        try:
            if self._failure is None:
                with suppress(DsmipError), self._noting("flows"):
                    series = await self.standing.finish_flows()
        finally:
            await self.standing.down()
        return self._record(series)

    async def judged(self) -> record.StepRecord:
        """The step that was carried out last, judged by what the flows have brought so far. Raises
        LabError."""
        return self._judged(self._done[-1], await self.standing.flows_so_far(), so_far=True)

    @property
    def steps(self) -> list[Step]:
        """Those that were carried out."""
        return [done.step for done in self._done]

    @contextmanager
    def _noting(self, step_name: str) -> Iterator[None]:
        try:
            yield
        except DsmipError as error:
            if self._failure is None:
                self._failure = record.Failure(
                    step=step_name, message=error.message, hint=error.hint
                )
            raise

    def _record(self, series: list[flow.Series]) -> record.RunRecord:
        steps = tuple(self._judged(done, series) for done in self._done)
        overall = self._overall() if self._failure is None else ()
        return record.RunRecord(
            tool_version=dsmip_ipsec.__version__,
            lab=self.lab.lab.name,
            description=self.lab.lab.description,
            run_id=self.standing.run.id,
            verdict=record.verdict_of(steps, overall, self._failure),
            started=self._started,
            ended=datetime.now(UTC),
            duration_s=round(time.monotonic() - self._began, 3),
            phases=tuple(self.standing.phases),
            kernel=run_facts.kernel(),
            strongswan_version=self.standing.charons.version,
            settings=self._settings(),
            topology=run_facts.topology(self.lab),
            steps=steps,
            expectations=overall,
            failure=self._failure,
            timelines=tuple(timeline(one, one.flow.node, self._origin_ns) for one in series),
            artefacts=run_facts.artefacts(self.standing),
        )

    # One step -----------------------------------------------------------------------------------

    async def _step(self, step: Step) -> None:
        started = time.monotonic()
        self._say(f"{step.name} …")
        limit_s = scaled(size.step_s(len(self.lab.step_nodes(step))))
        try:
            async with asyncio.timeout(limit_s):
                done = await self.standing.processes.guard(self._carry_out(step))
        except TimeoutError as error:
            raise LabError(
                f"not done within {limit_s:g} s", hint="the logs tell what it waited for"
            ) from error
        self._done.append(done)
        self._say(f"{step.name}: done after {time.monotonic() - started:.1f} s")

    async def _carry_out(self, step: Step) -> _Done:
        nodes = self.lab.step_nodes(step)
        before, counted = await self.states(), await self._counters()
        started = time.monotonic_ns()
        refusals: dict[str, str] = {}
        action = await self._act(step, nodes, refusals)
        acted = time.monotonic_ns()
        await asyncio.sleep(scaled(WATCH_S))  # the flows go on, and are measured
        watched = time.monotonic_ns()
        # The state first: proving the IKE_SA alive rekeys it, and it would show as another one.
        after = await self._settled(step.expect, nodes, before=before)
        earlier = [(done.step.name, done.after) for done in self._done]
        after = await agreed(earlier, step.name, after, self.states, self._agrees)
        exchanges: dict[str, dict[str, str]] = {}
        if self.ipsec == "kernel" and step.expect.ike_alive is not None:
            exchanges = {node: await self._exchanges(node) for node in nodes}
        return _Done(
            step, nodes, action, started, acted, watched, before, after,
            growth(counted, await self._counters()), exchanges, refusals,
            {node: self._care_of_addresses(node) for node in nodes},
        )  # fmt: skip

    async def _exchanges(self, node: str) -> dict[str, str]:
        ends = (node, self.standing.agent)
        return {end: await self.standing.exchange(end, node) for end in ends}

    async def _act(self, step: Step, nodes: Sequence[str], refusals: dict[str, str]) -> str:
        if (fault := await self.standing.fault(step)) is not None:
            return fault
        if step.restart is not None:
            await self.standing.restart(step.restart)
            previous = self.networks.pop(step.restart, None)
            if previous is not None:  # a mobile node, which is nowhere now
                self.standing.leave(step.restart, previous)
            return f"restart {step.restart}"
        began = time.monotonic()

        async def place(node: str) -> None:
            try:
                await self._place(step, node)
                refusals[node] = ""
            except control.ControlError as error:
                if step.fails is None:
                    raise
                refusals[node] = f"{error.message} ({error.hint})" if error.hint else error.message
                self._say(f"{step.name}: {error.message}")

        await in_turns((place(node) for node in nodes), _AT_ONCE)
        if not any(refusals.values()):
            self.standing.bound(began)
        return "deregister" if step.network is None else f"{step.verb} to {step.network}"

    async def _place(self, step: Step, node: str) -> None:
        """Bring one mobile node where the step wants it."""
        previous = self.networks.get(node)
        if step.network is None:
            await self.standing.command(node, "deregister")
            self.networks.pop(node, None)
        elif self.lab.mobility.detect_movement:
            await self.standing.roam(node, previous, step.network)
            self.networks[node] = step.network
            self._autoconfigured[node] = await self.standing.autoconfigured(node, step.network)
            return
        else:
            timing = await self.standing.attach(node, step.network)
            self.networks[node] = step.network
            whose = f"{step.name}: " if len(self._nodes) == 1 else f"{step.name} ({node}): "
            self._say(
                whose
                + ", ".join(
                    f"{key.removesuffix('_ms')} {value:.0f} ms" for key, value in timing.items()
                )
            )
        if previous is not None and previous != self.networks.get(node):
            # Only now is the old network out of reach: until the binding is acknowledged, the old
            # path still receives (RFC 5555 §5.1).
            self.standing.leave(node, previous)

    async def _settled(
        self,
        expect: Expect,
        nodes: Sequence[str],
        within_s: float = SETTLE_S,
        before: dict[str, record.NodeState] | None = None,
    ) -> dict[str, record.NodeState]:
        """The states once they are as expected, or as they are when time is up."""
        deadline = time.monotonic() + scaled(size.settle_s(within_s, len(nodes)))
        expect = expect.model_copy(update=dict.fromkeys((*OF_FLOWS, "ike_alive")))
        expect, _ = ipsec_kind.applicable(expect, self.ipsec)
        while True:
            states = await self.states()
            found = [
                expectation
                for node in nodes
                for expectation in judge(
                    expect,
                    self._observation(node, states, self._care_of_addresses(node), before=before),
                )
            ]
            if all(e.passed for e in found) or time.monotonic() > deadline:
                return states
            await asyncio.sleep(_POLL_S)

    async def check(
        self, expect: Expect, nodes: Sequence[str], within_s: float
    ) -> list[record.Expectation]:
        """Judge expectations between steps, once they hold or time is up; the flows by what they
        bring in ``WATCH_S`` seconds from then. Raises DsmipError."""
        ipsec_kind.check_expect(expect, self.ipsec)
        states = await self._settled(expect, nodes, within_s)
        series: Sequence[flow.Series] = ()
        start = end = time.monotonic_ns()
        if any(getattr(expect, name) is not None for name in OF_FLOWS):
            await asyncio.sleep(scaled(WATCH_S))
            end = time.monotonic_ns()
            series = await self.standing.flows_so_far()
        found: list[record.Expectation] = []
        for node in nodes:
            exchanges = await self._exchanges(node) if expect.ike_alive is not None else {}
            flows = self._measure(series, start, end, node)
            seen = self._observation(
                node, states, self._care_of_addresses(node), exchanges, flows, flows
            )
            found += self._named(node, nodes, judge(expect, seen))
        return found

    async def states(self) -> dict[str, record.NodeState]:
        """What every node knows now. Raises DsmipError."""
        return {name: await observer.state() for name, observer in self.standing.observers.items()}

    async def _counters(self) -> dict[str, record.Counters]:
        return {
            name: await observer.counters() for name, observer in self.standing.observers.items()
        }

    def _care_of_addresses(self, node: str) -> frozenset[IPv4Address | IPv6Address]:
        network = self.networks.get(node)
        if network is None:
            return frozenset()
        declared = frozenset(a.ip for a in self.lab.addresses(node, network))
        return declared | self._autoconfigured.get(node, frozenset())

    # Judging ------------------------------------------------------------------------------------

    def _observation(
        self,
        node: str,
        states: dict[str, record.NodeState],
        care_of_addresses: frozenset[IPv4Address | IPv6Address],
        exchanges: dict[str, str] | None = None,
        flows: Sequence[record.Flow] = (),
        after: Sequence[record.Flow] = (),
        before: dict[str, record.NodeState] | None = None,
    ) -> Observation:
        def ends(states: dict[str, record.NodeState]) -> Ends:
            agent = states[self.standing.agent]
            return states[node], agent if len(self._nodes) == 1 else self._share(agent, node)

        mobile_node, home_agent = ends(states)
        return Observation(
            mobile_node=mobile_node,
            home_agent=home_agent,
            before=ends(before) if before is not None else None,
            care_of_addresses=care_of_addresses,
            flows=flows,
            after=after,
            exchanges=exchanges or {},
            rtt_ms=self._rtt_ms(node),
            data_protected=self.lab.data.protected,
        )

    def _share(self, agent: record.NodeState, node: str) -> record.NodeState:
        """What of the home agent's state belongs to one mobile node."""
        declared = self.lab.mobile_nodes()[node]
        ids = reqids(self.lab, self._nodes.index(node))
        addresses = {str(declared.home_address), str(declared.ipv4_home_address)}
        return agent.model_copy(
            update={
                "bindings": tuple(
                    b for b in agent.bindings if b.home_address == declared.home_address
                ),
                "sas": tuple(sa for sa in agent.sas if sa.reqid in ids),
                "ike": tuple(ike for ike in agent.ike if ike.name == node),
                "tunnels": tuple(
                    t for t in agent.tunnels if t.home_address == declared.home_address
                ),
                "policies": tuple(
                    policy
                    for policy in agent.policies
                    if addresses & set(re.split(r"[^0-9a-f.:]+", policy.selector))
                ),
            }
        )

    @staticmethod
    def _named(
        node: str, nodes: Sequence[str], found: Sequence[record.Expectation]
    ) -> list[record.Expectation]:
        if len(nodes) == 1:
            return list(found)
        return [e.model_copy(update={"name": f"{node}: {e.name}"}) for e in found]

    def _judged(
        self, done: _Done, series: Sequence[flow.Series], *, so_far: bool = False
    ) -> record.StepRecord:
        flows = self._measure(series, done.started_ns, done.watched_ns)
        expectations: list[record.Expectation] = []
        expect, not_applicable = ipsec_kind.applicable(done.step.expect, self.ipsec)
        not_applicable += not_yet(done.step.expect) if so_far else ()
        # Without the flows (the run ended early) what depends on them can't be judged.
        for node in done.nodes if series else ():
            seen = self._observation(
                node,
                done.after,
                done.care_of_addresses[node],
                done.exchanges.get(node),
                [flow for flow in flows if flow.node == node],
                self._measure(series, done.acted_ns, done.watched_ns, node),
                done.before,
            )
            if done.step.fails is not None:
                expectations += self._named(
                    node, done.nodes, [judge_failure(done.step.fails, done.refusals[node])]
                )
            expectations += self._named(node, done.nodes, judge(expect, seen))
        return record.StepRecord(
            name=done.step.name,
            action=done.action,
            started_s=round((done.started_ns - self._origin_ns) / 1e9, 3),
            ended_s=round((done.watched_ns - self._origin_ns) / 1e9, 3),
            flows=tuple(flows),
            before=done.before,
            after=done.after,
            counters=done.counters,
            expectations=tuple(expectations),
            not_applicable=not_applicable,
        )

    def _measure(
        self,
        series: Sequence[flow.Series],
        start_ns: int,
        end_ns: int,
        node: str | None = None,
    ) -> list[record.Flow]:
        found = []
        for one in series:
            if node not in (None, one.flow.node):
                continue
            found.append(measured(one, start_ns, end_ns, self._rtt_ms(one.flow.node)))
        return found

    def _overall(self) -> tuple[record.Expectation, ...]:
        """What must hold of the run as a whole: clean ends, and nothing missed."""
        ended = self.standing.ended
        bad = [f"{name}: status {status}" for name, status in ended.items() if status != 0]
        captures = self.standing.captures
        dropped = [f"{c.node} on {c.link}: {c.dropped} dropped" for c in captures if c.dropped]
        ends = (
            record.Expectation(
                name="daemons and charons end cleanly",
                expected="exit status 0 of each",
                seen="; ".join(bad) or f"0 of all {len(ended)}",
                passed=bool(ended) and not bad,
            ),
        )
        if self.lab.capture.links == ():
            return ends
        return (
            *ends,
            record.Expectation(
                name="captures are complete",
                expected="no packet dropped",
                seen="; ".join(dropped) or ("0 dropped" if captures else "they were broken off"),
                passed=bool(captures) and not dropped,
            ),
        )

    # The record's frame ---------------------------------------------------------------------------

    def _rtt_ms(self, node: str) -> float:
        """Configured round-trip time between the first visited network and the home agent."""
        visited = (s.network for s in self.lab.steps if node in self.lab.step_nodes(s))
        network = next((n for n in visited if n is not None), self.networks.get(node))
        if network is None:
            return 0.0
        agent = self.standing.agent
        found = (routes.rtt_ms(self.lab, node, network, agent, family) for family in (4, 6))
        return next((rtt for rtt in found if rtt is not None), 0.0)

    def _settings(self) -> record.Settings:
        rtt_ms = self._rtt_ms(self._nodes[0])
        return record.Settings(
            one_way_delay_ms=rtt_ms / 2,
            rtt_ms=rtt_ms,
            probe_interval_ms=probe_interval_ms(self.lab.flow.interval_ms),
            probe_protocol=self.lab.flow.protocol,
            ike_authentication=self.lab.ike.auth if self.ipsec == "kernel" else "",
            ike_mobility=self.lab.ike.mobility if self.ipsec == "kernel" else "",
            data_protected=self.lab.data.protected,
            ipsec=self.ipsec,
            delayed_by="relay" if self.standing.topology.relayed else "netem",
        )
