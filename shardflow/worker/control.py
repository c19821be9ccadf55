"""What ends a run from outside: cancellation, its time limit, and too many workers that died under it.

Guarantee: nothing of such a workflow is written after its end. A suspect, under which several workers have died, runs
here beside no other suspect, so that innocents prove themselves and only the count of the one that kills goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..core.failure import to_json
from ..core.lanes import SUSPECT
from ..core.lowwater import START
from ..definitions import Workflow
from ..model import ErrorInfo, Status
from ..storage.turn import Answer, Claimed, ClaimWanted, Turn, WaitRow

if TYPE_CHECKING:
    from .commit import CommitLoop
    from .gather import Gathered
    from .run import Run

log = logging.getLogger("shardflow.worker")

#: Seconds between looks at what is to be cancelled; a claim that took something says whether there is any, too.
LOOK = 0.5
#: Seconds between looks into the lanes of suspects.
SUSPECT_LOOK = 0.25
#: Leases that may expire under a workflow before it is a suspect; `lane` in the shard's schema has the same number.
SUSPICIOUS = 3
#: Seconds for which a workflow is put aside whose end the shard refuses.
ASIDE = 60.0
#: Seconds by which a deadline may have been rounded on its way.
ROUNDING = 0.001


class Control:
    """The ends from outside of one shard's runs.

    Arguments: `commit`, their commit loop; `open`, which gives the writes that are being gathered; `lanes` that it
    serves.
    """

    def __init__(self, commit: CommitLoop, open: Callable[[], Gathered], lanes: Sequence[str]) -> None:
        self._commit = commit
        self._open = open
        self._loop = commit.loop
        self._lanes = [lane + SUSPECT for lane in lanes]
        self._look_at = 0.0
        self._suspects_at = 0.0
        self._suspects: set[Run] = set()
        self._timers: dict[Run, asyncio.TimerHandle] = {}
        self._asked: dict[int, str | None] = {}

    # -- what the commit loop calls

    @property
    def lanes(self) -> Sequence[str]:
        """The lanes from which a suspect may be claimed now."""
        return () if self._suspects else self._lanes

    def patience(self, now: float) -> float:
        """Seconds until a look is due."""
        return max(0.0, self._look_at - now) if self._commit.runs else math.inf

    def due(self, now: float) -> bool:
        """Whether a look is due."""
        return now >= self._look_at and bool(self._commit.runs)

    def ask(self, turn: Turn, now: float) -> None:
        """Lets a turn that takes place look, and claim a suspect where there is none here."""
        turn.heed = self.due(now)
        if turn.claim is not None and not self._suspects and now >= self._suspects_at:
            self._suspects_at = now + SUSPECT_LOOK
            marks = [START] * len(self._lanes)
            number = self._commit.receipts.number()
            turn.suspects = ClaimWanted(number, self._lanes, 1, marks, turn.claim.limited)

    def told(self, answer: Answer) -> None:
        """What a turn has found."""
        if answer.cancelled is not None:
            self.heed(answer.cancelled)

    def heed(self, asked: Iterable[tuple[int, str | None]]) -> None:
        """These are to be cancelled, whoever holds them."""
        self._look_at = self._loop.time() + LOOK
        self._asked = dict(asked)
        for wf, reason in self._asked.items():
            if (run := self._commit.runs.get(wf)) is not None:
                self.end(run, Status.CANCELLED, cancelled(reason))

    def began(self, run: Run) -> None:
        """A run has begun here."""
        if run.attempt > SUSPICIOUS:
            self._suspects.add(run)
        if run.options is not None and (deadline := deadline_of(run.options)) is not None:
            left = deadline - self._commit.server_time()
            self._timers[run] = self._loop.call_later(max(0.0, left), self._overdue, run)

    def forget(self, run: Run) -> None:
        """The run is gone from here."""
        if self._suspects:
            self._suspects.discard(run)
        if self._timers and (timer := self._timers.pop(run, None)) is not None:
            timer.cancel()

    def limited(self, run: Run, row: WaitRow) -> WaitRow:
        """A suspension that ends at the workflow's deadline at the latest."""
        deadline = deadline_of(run.options)
        if deadline is None:
            return row
        left = max(0.0, deadline - self._commit.server_time())
        return (row[0], left if row[1] is None else min(left, row[1]), *row[2:])

    # -- ends

    def concerned(self, row: Claimed) -> bool:
        """Whether there may be anything here about it; for most workflows there is not."""
        known = self._commit.hopeless
        return row.options is not None or row.attempt > SUSPICIOUS or row.wf in self._asked or row.wf in known

    def refuses(self, row: Claimed, workflow: Workflow[..., Any] | None) -> bool:
        """Whether a workflow that was claimed is not to begin; then it is seen to."""
        if row.wf in self._commit.hopeless:
            self._commit.refuse(row.wf, row.attempt, ASIDE, "the shard refuses its end")
            return True
        if row.wf in self._asked:
            self._end(row, Status.CANCELLED, cancelled(self._asked[row.wf]), severed=True)
            return True
        deadline = deadline_of(row.options)
        if deadline is not None and self._commit.server_time() >= deadline - ROUNDING:
            self._end(row, Status.FAILED, timed_out(row.options), severed=True)
            return True
        if row.attempt <= SUSPICIOUS or workflow is None:
            return False
        if row.attempt > max(workflow.max_recoveries, SUSPICIOUS + 1):
            log.error(
                "a workflow is given up: its workers died under it",
                extra={"workflow": row.id, "shard": self._commit.shard.name, "attempts": row.attempt},
            )
            self._end(row, Status.DEAD, dead(row.attempt))
            return True
        if not row.queue.endswith(SUSPECT):  # it was woken in between, and waits now for a worker beside no other one
            self._commit.refuse(row.wf, row.attempt, 0.0, "suspect")
            return True
        return False

    def _end(self, row: Claimed, status: Status, error: str, *, severed: bool = False) -> None:
        self._open().add_unbegun((row.wf, status.value, None, error), severed)
        self._commit.nudge()

    def end(self, run: Run, status: Status, error: str) -> None:
        """Ends a run that is under way, and its children."""
        if run.closed:
            return
        if (commit := self._commit.transactions.closing(run.wf)) is not None:  # which comes first
            commit.add_done_callback(lambda _: self.end(run, status, error))
            return
        starting = [id for children in run.starting or () for id in children.ids]
        gathered = self._open()
        gathered.add_outcome(run, (run.wf, status.value, None, error))
        gathered.severed[run.wf] = starting
        run.closed = True
        run.close()
        self._commit.nudge()

    def _overdue(self, run: Run) -> None:
        deadline = deadline_of(run.options)
        left = 0.0 if deadline is None else deadline - self._commit.server_time()
        if left > ROUNDING:  # the clocks do not go alike
            self._timers[run] = self._loop.call_later(left, self._overdue, run)
        else:
            self.end(run, Status.FAILED, timed_out(run.options))


def deadline_of(options: Any) -> float | None:
    """When the workflow is to be ended, in seconds since 1970 by the server's clock."""
    return options.get("deadline") if options else None


def cancelled(reason: str | None) -> str:
    """The error of a workflow that was cancelled."""
    return to_json(ErrorInfo("shardflow.errors.WorkflowCancelled", reason or "cancelled"))


def timed_out(options: Any) -> str:
    """The error of a workflow whose time is over."""
    message = f"the workflow was not done within {options.get('timeout', 0):g} s of its submission"
    return to_json(ErrorInfo("shardflow.errors.WorkflowTimeout", message))


def dead(attempts: int) -> str:
    """The error of a workflow that is not tried again."""
    message = f"{attempts} workers died, or lost their leases, while they ran it; see to the cause, then resume it"
    return to_json(ErrorInfo("shardflow.errors.WorkflowDead", message))
