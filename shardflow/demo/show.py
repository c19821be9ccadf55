"""What the demo shows while it runs: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

#: Seconds between two lines where there is no terminal.
EVERY = 2.0


class Show:
    """Progress per shard, for use as a context.

    Arguments: `console`; `totals`, how many workflows each shard has.
    """

    def __init__(self, console: Console, totals: Mapping[str, int]) -> None:
        self._console = console
        self._totals = totals
        self._began = time.monotonic()
        self._said = self._began
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("  {task.description:<7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>6.0f}/s"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        for shard, total in self._totals.items():
            self._tasks[shard] = self._progress.add_task(shard, total=total, rate=0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, ended: Mapping[str, int]) -> None:
        """Shows how many workflows of each shard have ended."""
        now = time.monotonic()
        rates = {shard: count / max(now - self._began, 0.001) for shard, count in ended.items()}
        for shard, count in ended.items():
            self._progress.update(self._tasks[shard], completed=count, rate=rates[shard])
        finished = all(ended[shard] >= total for shard, total in self._totals.items())
        if not self._console.is_terminal and (now - self._said >= EVERY or finished):
            self._said = now
            parts = [f"{shard} {ended[shard]}/{self._totals[shard]} {rates[shard]:.0f}/s" for shard in ended]
            self.say("  " + "   ".join(parts))

    def say(self, line: str) -> None:
        """A line that stays, above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
