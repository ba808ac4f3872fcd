"""``lab run --snapshot FILE``: the IPsec state after each step, as stored or not."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dsmip_ipsec.errors import ConfigError
from dsmip_ipsec.lab import run_facts
from dsmip_ipsec.lab.record import Expectation, NodeState, RunRecord, verdict_of
from dsmip_ipsec.lab.spec import Lab
from dsmip_ipsec.report import snapshot

# How long the state must have been the same to be stored.
STABLE_S = 1.0

Steps = Sequence[tuple[str, Mapping[str, NodeState]]]


class Check(Protocol):
    """What is to become of a run's snapshot."""

    def agrees(self, steps: Steps) -> bool:
        """Whether the state after the last of ``steps`` needn't be waited for any longer."""

    def conclude(self, record: RunRecord) -> tuple[RunRecord, list[str]]:
        """The record with what came of it, and what differs, for a person. Raises ConfigError."""


def check_for(path: Path | None, lab: Lab, *, update: bool) -> Check | None:
    """What ``--snapshot`` and ``--update-snapshot`` ask for. Raises ConfigError."""
    if path is None:
        if update:
            raise ConfigError("--update-snapshot needs --snapshot", hint="say which file it is")
        return None
    return Storing(path, lab) if update else Comparing(read(path), lab)


def read(path: Path) -> snapshot.Snapshot:
    """A stored snapshot. Raises ConfigError."""
    try:
        return snapshot.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            "there is no such snapshot", path=path, hint="store one: --update-snapshot"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the snapshot can't be read: {error}", path=path) from None


class Comparing:
    """With a stored snapshot."""

    def __init__(self, stored: snapshot.Snapshot, lab: Lab) -> None:
        self._stored = stored
        self._topology = run_facts.topology(lab)
        self._sections = {(s.step, s.node): s.lines for s in stored.sections}

    def agrees(self, steps: Steps) -> bool:
        """See :class:`Check`."""
        seen = snapshot.take(self._topology, steps)
        last = seen.sections[-len(steps[-1][1]) :]
        return all(self._sections.get((one.step, one.node)) == one.lines for one in last)

    def conclude(self, record: RunRecord) -> tuple[RunRecord, list[str]]:
        """See :class:`Check`. Of a run that didn't get to its end nothing is said."""
        if record.failure is not None:
            return record, []
        lines = snapshot.difference(self._stored, snapshot.of_record(record))
        count = sum(line.startswith(("+ ", "- ")) for line in lines)
        found = Expectation(
            name="snapshot",
            expected="the IPsec state after each step as stored",
            seen="as stored" if not lines else f"{count} lines differ",
            passed=not lines,
        )
        expectations = (*record.expectations, found)
        changed = {
            "expectations": expectations,
            "verdict": verdict_of(record.steps, expectations, record.failure),
        }
        return record.model_copy(update=changed), lines


class Storing:
    """In place of what was stored, once it has stayed the same for a second."""

    def __init__(self, path: Path, lab: Lab, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._topology = run_facts.topology(lab)
        self._clock = clock
        self._last: snapshot.Snapshot | None = None
        self._since = 0.0

    def agrees(self, steps: Steps) -> bool:
        """See :class:`Check`."""
        seen = snapshot.take(self._topology, steps)
        if seen != self._last:
            self._last, self._since = seen, self._clock()
        return self._clock() - self._since >= STABLE_S

    def conclude(self, record: RunRecord) -> tuple[RunRecord, list[str]]:
        """See :class:`Check`. A run that didn't get to its end isn't stored."""
        if record.failure is not None:
            return record, ["the run failed, so its snapshot isn't stored"]
        try:
            self._path.write_text(snapshot.of_record(record).text(), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the snapshot can't be written: {error.strerror}", path=self._path
            ) from error
        return record, []
