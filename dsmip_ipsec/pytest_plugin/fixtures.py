"""The fixtures: ``dsmip_lab`` and its nodes, ``dsmip_start`` for labs of any scope, and
``snapshot_dsmip``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dsmip_ipsec.errors import DsmipError

if TYPE_CHECKING:
    from dsmip_ipsec.pytest_plugin.lab import Lab
    from dsmip_ipsec.pytest_plugin.views import Node
    from dsmip_ipsec.report import snapshot

# How long a lab's state may take to become what a snapshot has, and how long it must stay as it
# is to become one.
SETTLE_S = 5.0
STABLE_S = 1.0
_POLL_S = 0.1

StartLab = Callable[..., AbstractContextManager["Lab"]]


@pytest.fixture
def dsmip_mobility() -> str | None:
    """The mobility mode that this test runs in (marker ``dsmip_mobility``); None: the lab's."""
    return None


@pytest.fixture
def dsmip_kernel(request: pytest.FixtureRequest) -> str:
    """The kernel that this test's lab runs on (marker ``dsmip_kernel``, ``--dsmip-kernel``)."""
    return "auto"


@pytest.fixture(scope="session")
def dsmip_start(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> StartLab:
    """Start labs yourself: ``with dsmip_start("nat-handover") as lab``.

    For several labs in a test, and for labs that several tests share: a fixture of yours, with
    the scope that you want, yields it. Arguments: the scenario, then ``mobility``, ``kernel`` and
    ``directory`` (where a lab file that isn't ours is looked for).
    """
    config = request.config

    @contextmanager
    def start(
        scenario: str,
        *,
        mobility: str | None = None,
        kernel: str = "auto",
        directory: Path | None = None,
        shared: bool = True,
        failed: Callable[[], bool] = lambda: False,
    ) -> Iterator[Lab]:
        from dsmip_ipsec.lab.session import LabSession
        from dsmip_ipsec.pytest_plugin.lab import Lab, lab_file

        stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(scenario).stem)[:40]
        out = tmp_path_factory.mktemp(f"dsmip-{stem}")
        try:
            path = lab_file(scenario, directory or config.rootpath, mobility, out)
            session = LabSession.start(
                path,
                out_dir=out,
                kernel=kernel,
                export_keys=True,
                ipsec=config.option.dsmip_ipsec,
            )
        except DsmipError as error:
            hint = f"\n  hint: {error.hint}" if error.hint else ""
            pytest.fail(f"the lab {scenario} doesn't stand: {error.message}{hint}", pytrace=False)
        lab = Lab(session, path, shared=shared)
        crashed = True
        try:
            yield lab
            crashed = False
        finally:
            options = config.option
            lab.close(keep=options.dsmip_keep or crashed or failed(), pcap=options.dsmip_pcap)

    return start


@pytest.fixture
def dsmip_lab(
    request: pytest.FixtureRequest,
    dsmip_start: StartLab,
    dsmip_mobility: str | None,
    dsmip_kernel: str,
) -> Iterator[Lab]:
    """The lab of this test's marker ``dsmip_scenario``, standing, with no mobile node attached."""
    marker = request.node.get_closest_marker("dsmip_scenario")
    if marker is None or len(marker.args) != 1 or not isinstance(marker.args[0], str):
        pytest.fail(
            "dsmip_lab doesn't know which lab: mark the test with one, such as\n"
            '  @pytest.mark.dsmip_scenario("nat-handover")',
            pytrace=False,
        )
    from dsmip_ipsec.pytest_plugin.hooks import FAILED

    with dsmip_start(
        marker.args[0],
        mobility=dsmip_mobility,
        kernel=dsmip_kernel,
        directory=request.path.parent,
        shared=False,
        failed=lambda: bool(request.node.stash.get(FAILED, False)),
    ) as lab:
        yield lab


@pytest.fixture
def mn(dsmip_lab: Lab) -> Node:
    """The lab's (first) mobile node."""
    return dsmip_lab.first("mobile_node")


@pytest.fixture
def ha(dsmip_lab: Lab) -> Node:
    """The lab's (first) home agent."""
    return dsmip_lab.first("home_agent")


@pytest.fixture
def cn(dsmip_lab: Lab) -> Node:
    """The lab's (first) correspondent node."""
    return dsmip_lab.first("correspondent_node")


class SnapshotCheck:
    """Compares the IPsec state after all steps so far with the one stored beside the test."""

    def __init__(self, lab: Lab, path: Path, *, update: bool) -> None:
        self._lab = lab
        self.path = path
        self._update = update

    def __call__(self) -> None:
        """Fail the test unless the state is (within five seconds) as stored; with
        ``--dsmip-update-snapshots`` store it, once it has been the same for a second."""
        from dsmip_ipsec.report import snapshot

        if self._update:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self._stable().text(), encoding="utf-8")
            return
        how = "To store what is there now, once you have read it: pytest --dsmip-update-snapshots"
        if not self.path.is_file():
            pytest.fail(
                f"there is no snapshot yet: {self.path}\n{how}\n\n{self._lab.snapshot().text()}",
                pytrace=False,
            )
        try:
            stored = snapshot.parse(self.path.read_text(encoding="utf-8"))
        except (DsmipError, ValueError) as error:
            pytest.fail(f"{self.path}: {error}\n{how}", pytrace=False)
        deadline = time.monotonic() + SETTLE_S
        while lines := snapshot.difference(stored, self._lab.snapshot()):
            if time.monotonic() > deadline:
                told = "\n".join(lines)
                pytest.fail(
                    f"the IPsec state isn't as in {self.path}\n"
                    f"(- stored, + seen)\n\n{told}\n\n{how}",
                    pytrace=False,
                )
            time.sleep(_POLL_S)

    def _stable(self) -> snapshot.Snapshot:
        deadline = time.monotonic() + SETTLE_S
        last, since = self._lab.snapshot(), time.monotonic()
        while time.monotonic() - since < STABLE_S:
            if time.monotonic() > deadline:
                pytest.fail(f"the IPsec state doesn't settle in {SETTLE_S:g} s", pytrace=False)
            time.sleep(_POLL_S)
            now = self._lab.snapshot()
            if now != last:
                last, since = now, time.monotonic()
        return last


@pytest.fixture
def snapshot_dsmip(
    request: pytest.FixtureRequest, dsmip_lab: Lab, dsmip_kernel: str
) -> SnapshotCheck:
    """Call it: ``snapshot_dsmip()`` compares the IPsec state of all ends after each step so far
    with ``snapshots/TEST_FILE/TEST.txt`` beside the test file."""
    # Kernels share a snapshot: that they agree is what running on several is for.
    name = re.sub(rf"(?<=[\[-]){dsmip_kernel}(?=[\]-])", "", request.node.name)
    name = re.sub(r"[^\w.]+", "-", name).strip("-")
    path = request.path.parent / "snapshots" / request.path.stem / f"{name}.txt"
    return SnapshotCheck(dsmip_lab, path, update=request.config.option.dsmip_update_snapshots)
