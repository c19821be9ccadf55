"""What gathers for the next turn of a commit loop, column by column, while the last one is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..storage.turn import Outcomes, Steps, Turn, Waits

if TYPE_CHECKING:
    from .run import Run

#: A turn's caps. Beyond them more rows cost the same each and only delay those that wait.
MAX_ROWS = 2_000
MAX_BYTES = 8 << 20


class Gathered:
    """The writes of one turn with whom to tell: `waiting` (run, future) per step, `ended` a run per outcome."""

    __slots__ = ("bytes", "ended", "outcomes", "steps", "waiting", "waits")

    def __init__(self) -> None:
        self.steps = Steps()
        self.outcomes = Outcomes()
        self.waits = Waits()
        self.waiting: list[tuple[Run, asyncio.Future[None]]] = []
        self.ended: list[Run] = []
        self.bytes = 0

    @property
    def rows(self) -> int:
        return len(self.waiting) + len(self.ended) + len(self.waits.wfs)

    def turn(self) -> Turn:
        """These writes as a turn, as yet without receipts and claim."""
        return Turn(steps=self.steps, outcomes=self.outcomes, waits=self.waits)

    def add_step(
        self,
        run: Run,
        future: asyncio.Future[None],
        seq: int,
        attempts: int,
        name: str,
        output: bytes | None,
        error: str | None,
    ) -> None:
        steps = self.steps
        steps.wfs.append(run.wf)
        steps.seqs.append(seq)
        steps.attempts.append(min(attempts, 32767))
        steps.names.append(name)
        steps.outputs.append(output)
        steps.errors.append(error)
        self.waiting.append((run, future))
        self.bytes += len(output or b"") + len(error or "")

    def add_outcome(self, run: Run, status: str, output: bytes | None, error: str | None) -> None:
        outcomes = self.outcomes
        outcomes.wfs.append(run.wf)
        outcomes.statuses.append(status)
        outcomes.outputs.append(output)
        outcomes.errors.append(error)
        self.ended.append(run)
        self.bytes += len(output or b"") + len(error or "")

    def add_wait(self, wf: int, delay: float, attempt: int, reason: str) -> None:
        self.waits.wfs.append(wf)
        self.waits.delays.append(delay)
        self.waits.attempts.append(attempt)
        self.waits.reasons.append(reason)

    def pieces(self) -> list[tuple[Gathered, str]]:
        """Every step and outcome alone, for finding the one that the server refuses; waits are left out."""
        found = []
        s, o = self.steps, self.outcomes
        for i, (run, future) in enumerate(self.waiting):
            one = Gathered()
            one.add_step(run, future, s.seqs[i], s.attempts[i], s.names[i], s.outputs[i], s.errors[i])
            found.append((one, f"the outcome of step {s.seqs[i]} ({s.names[i]!r})"))
        for i, run in enumerate(self.ended):
            one = Gathered()
            one.add_outcome(run, o.statuses[i], o.outputs[i], o.errors[i])
            found.append((one, "the workflow's result"))
        return found

    def cancel(self) -> None:
        """Tells those who wait for these checkpoints that there will be none."""
        for _, future in self.waiting:
            future.cancel()

    def absorb(self, other: Gathered) -> None:
        """Adds all that the other has."""
        for name in ("wfs", "seqs", "attempts", "names", "outputs", "errors"):
            getattr(self.steps, name).extend(getattr(other.steps, name))
        for name in ("wfs", "statuses", "outputs", "errors"):
            getattr(self.outcomes, name).extend(getattr(other.outcomes, name))
        for name in ("wfs", "delays", "attempts", "reasons"):
            getattr(self.waits, name).extend(getattr(other.waits, name))
        self.waiting.extend(other.waiting)
        self.ended.extend(other.ended)
        self.bytes += other.bytes


class Pending:
    """A queue of `Gathered`, the last of which is open for more."""

    def __init__(self) -> None:
        self._queue: deque[Gathered] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def open(self) -> Gathered:
        """Where the next write goes."""
        queue = self._queue
        if not queue or queue[-1].rows >= MAX_ROWS or queue[-1].bytes >= MAX_BYTES:
            queue.append(Gathered())
        return queue[-1]

    def take(self) -> Gathered | None:
        """The oldest, or None."""
        return self._queue.popleft() if self._queue else None

    def put_back(self, gathered: Gathered) -> None:
        """Returns what `take` gave, to be the next again."""
        self._queue.appendleft(gathered)

    def clear(self) -> None:
        """Forgets everything; whoever waits for a checkpoint of it is told that there will be none."""
        for gathered in self._queue:
            gathered.cancel()
        self._queue.clear()
