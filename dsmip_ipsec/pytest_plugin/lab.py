"""A lab in a test: a :class:`~dsmip_ipsec.lab.session.LabSession` whose steps are asserted, and
whose history can be compared and reported."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from dsmip_ipsec.errors import DsmipError, LabError
from dsmip_ipsec.lab.record import (
    Expectation,
    LinkSummary,
    NodeState,
    NodeSummary,
    RunRecord,
    StepRecord,
    Topology,
)
from dsmip_ipsec.pytest_plugin.views import Node
from dsmip_ipsec.report import run_ladder, snapshot

if TYPE_CHECKING:
    from dsmip_ipsec.lab.session import ExecResult, LabSession
    from dsmip_ipsec.lab.spec_models import Lab as LabFile

# What a step expects of captures is judged when these are complete.
CAPTURED = "captured"

# Lines of the ladder in a failure; the HTML report has all.
MAX_LADDER = 80


class Lab:
    """A lab that stands. ``lab["mn"]`` is a node of it; ``out_dir`` gets record, captures, logs
    and keys when it is finished. ``shared``: other tests use it, too, so a failure of one must
    not end it."""

    def __init__(self, session: LabSession, path: Path, *, shared: bool = False) -> None:
        self.session = session
        self.shared = shared
        self.path = path
        self.out_dir = session.out_dir
        self.topology = _topology(session.lab)
        self.steps: list[StepRecord] = []

    def __getitem__(self, name: str) -> Node:
        if name not in self.session.lab.nodes:
            known = ", ".join(self.session.lab.nodes)
            raise LabError(f"the lab has no node '{name}'", hint=f"it has: {known}")
        return Node(self, name)

    def first(self, role: str) -> Node:
        """The first node of that role, as the lab file has them. Raises LabError without one."""
        for name, node in self.session.lab.nodes.items():
            if node.role == role:
                return Node(self, name)
        raise LabError(f"the lab has no {role.replace('_', ' ')}", hint=f"see {self.path}")

    # What one does with it ----------------------------------------------------------------------

    def step(self, step: Mapping[str, Any]) -> StepRecord:
        """Do one step, in the words of a lab file: ``{"move": "visited-b", "expect": {...}}``.

        Fails the test when an expectation in it doesn't hold. Raises DsmipError when the step
        can't be done.
        """
        return self._done(self.session.step(step))

    def move(self, node: str, network: str, **expect: Any) -> StepRecord:
        """Move a mobile node to a network, or attach it there first. ``expect``: what must hold
        then, in the words of a lab file: ``nat_detected=True``. Fails and raises as a step does."""
        if not expect:
            return self._done(self.session.move(node, network))
        verb = "move" if node in self.session.status()["networks"] else "attach"
        return self.step({"node": node, verb: network, "expect": expect})

    def run(self) -> None:
        """Do all steps of the lab file, each with what it expects. Fails and raises as a step."""
        from dsmip_ipsec.lab import spec

        content = tomllib.loads(spec.flat(self.path))
        for step in content.get("steps", []):
            self.step(step)

    def exec(
        self, node: str, argv: Sequence[str], *, input: str = "", timeout_s: float = 30.0
    ) -> ExecResult:
        """Run a command as root on a node: exit status, output, errors."""
        return self.session.exec(node, argv, input=input, timeout_s=timeout_s)

    def state(self) -> dict[str, NodeState]:
        """What mobile nodes and home agents know now, by name."""
        return self.session.state()

    def state_of(self, node: str) -> NodeState:
        """What one of them knows now. Raises LabError for other nodes."""
        states = self.state()
        if node not in states:
            raise LabError(
                f"{node} has no IPsec or mobility state",
                hint=f"these have: {', '.join(states)}",
            )
        return states[node]

    def expect(
        self, *, node: str | None = None, within_s: float = 3.0, **expect: Any
    ) -> list[Expectation]:
        """Wait until what ``expect`` says holds: ``lab.expect(nat_detected=True)``. Raises
        LabError, which fails the test, when it doesn't in time."""
        return self.session.expect(expect, node=node, within_s=within_s)

    def finish(self) -> RunRecord:
        """Take the lab down; ``out_dir`` is complete then. Idempotent. Fails the test when what a
        step expected of the captures isn't there."""
        record = self.session.finish()
        for step in record.steps:
            _assert_all(step, [e for e in step.expectations if e.name.startswith(CAPTURED)])
        return record

    def _done(self, step: StepRecord) -> StepRecord:
        self.steps.append(step)
        _assert_all(step, step.expectations)
        return step

    # What it leaves -------------------------------------------------------------------------------

    def snapshot(self, *, fresh: bool = True) -> snapshot.Snapshot:
        """The snapshot of all steps so far; ``fresh``: with the state of now after the last."""
        steps: list[tuple[str, Mapping[str, NodeState]]]
        steps = [(step.name, step.after) for step in self.steps]
        if fresh:
            name = steps.pop()[0] if steps else "set-up"
            steps.append((name, self.state()))
        return snapshot.take(self.topology, steps)

    def close(self, *, keep: bool, pcap: bool) -> None:
        """Take the lab down; leave only what is asked for in ``out_dir``. Fails the test as
        :meth:`finish` does, where a step expected something of the captures."""
        unjudged = any(item.name == CAPTURED for step in self.steps for item in step.not_applicable)
        try:
            if (keep or pcap or unjudged) and self.session.record is None:
                self.finish()
        finally:
            self.session.close()
            if not keep:
                _tidy(self.out_dir, pcap)

    def sections(self) -> list[tuple[str, str]]:
        """(title, text) of what helps with a failure. Never raises DsmipError."""
        found = [("what the last step changed", "\n".join(self._changed()))]
        if not self.shared:
            try:
                record = self.session.finish()
                ladder = run_ladder.text(run_ladder.of_run(record, self.out_dir))
                cut = [f"(the last {MAX_LADDER} of {len(ladder)} messages)"]
                if len(ladder) > MAX_LADDER:
                    ladder = cut + ladder[-MAX_LADDER:]
                found.append(("messages", "\n".join(ladder)))
            except DsmipError as error:
                found.append(("messages", f"none: {error.message} ({error.hint})"))
        found.append(("files", "\n".join(self._files())))
        said = self.session.output[-20:]
        return [*found, ("what the lab said last", "\n".join(said))]

    def _changed(self) -> list[str]:
        """The SADs and the rest of the state before and after the last step, as a diff."""
        if not self.steps:
            return ["no step was done"]
        last = self.steps[-1]
        earlier = [(step.name, step.after) for step in self.steps[:-1]]
        before = snapshot.take(self.topology, [*earlier, (last.name, last.before)])
        after = snapshot.take(self.topology, [*earlier, (last.name, last.after)])
        return snapshot.difference(before, after) or [f"step '{last.name}' changed nothing"]

    def _files(self) -> list[str]:
        names = [self.out_dir / "record.json", self.out_dir / "guest-console.log"]
        for directory in ("captures", "logs"):
            names += sorted((self.out_dir / directory).glob("*"))
        names += [self.out_dir / "wireshark"]
        found = [str(path) for path in names if path.exists()]
        if (self.out_dir / "record.json").exists():
            found.append(f"for a page of it all: dsmip-ipsec report {self.out_dir}")
        return found or [f"none yet; they come to {self.out_dir}"]


def _assert_all(step: StepRecord, expectations: Sequence[Expectation]) -> None:
    bad = [e for e in expectations if not e.passed]
    told = "\n".join(f"  {e.name}: expected {e.expected}, saw {e.seen}" for e in bad)
    assert not bad, f"step '{step.name}':\n{told}"


def lab_file(scenario: str, directory: Path, mobility: str | None, scratch: Path) -> Path:
    """The lab file that a test means: beside it in ``directory``, or one that comes along.

    ``mobility``: a copy in ``scratch`` with another way for the IKE_SA to follow a move. Raises
    ConfigError.
    """
    from dsmip_ipsec.lab import spec
    from dsmip_ipsec.lab.library import find_lab

    beside = directory / scenario
    path = beside if beside.is_file() else find_lab(scenario)
    if mobility is None:
        return path
    content = tomllib.loads(spec.flat(path))
    content.setdefault("ike", {})["mobility"] = mobility
    copy = scratch / f"{path.stem}-{mobility}.toml"
    copy.write_text(tomli_w.dumps(content), encoding="utf-8")
    return copy


def _topology(lab: LabFile) -> Topology:
    """As a record has it."""
    return Topology(
        nodes=tuple(NodeSummary(name=name, role=node.role) for name, node in lab.nodes.items()),
        links=tuple(
            LinkSummary(
                name=name,
                ends={node: tuple(map(str, ends)) for node, ends in link.ends.items()},
                delay_ms=link.delay_ms,
            )
            for name, link in lab.links.items()
        ),
    )


def _tidy(directory: Path, pcap: bool) -> None:
    """Remove what a passed test needn't leave behind."""
    kept = {"captures", "wireshark", "record.json"} if pcap else set()
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if not kept and directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
