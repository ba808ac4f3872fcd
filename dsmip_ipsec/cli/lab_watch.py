"""What ``dsmip-ipsec lab watch`` shows: a live table on a terminal, lines of changes elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from dsmip_ipsec.report import standing


class Screen:
    """A context manager; the terminal is as it was after it."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console()
        self._stack = ExitStack()
        self._live: Live | None = None
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = self._stack.enter_context(
                Live(console=self._console, auto_refresh=False, vertical_overflow="ellipsis")
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def show(
        self,
        states: standing.States,
        traffic: standing.Traffic,
        networks: Mapping[str, str],
    ) -> None:
        """Show one look. As lines, only what has changed since the last one is repeated."""
        now = time.strftime("%H:%M:%S")
        if self._live is not None:
            title = Text(f"{self._title}  {now}  (Ctrl-C ends)", style="bold")
            self._live.update(Group(title, standing.table(states, traffic, networks)), refresh=True)
            return
        places = [f"{node} is on {network}" for node, network in networks.items()]
        lines = [*places, *standing.lines(states, traffic)] or ["nothing"]
        for line in lines:
            if line not in self._shown:
                print(f"{now} {line}")
        sys.stdout.flush()
        self._shown = set(lines)
