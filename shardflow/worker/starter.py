"""Begins what a worker has claimed: fresh workflows at once, others with what is recorded of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..app import App
from ..core.lanes import of_version, queue_of
from ..storage import leases
from ..storage.leases import Held, Recorded
from ..storage.shard import Conn, Shard
from ..storage.turn import Claimed
from .commit import CommitLoop
from .operations import beginning
from .run import Run

log = logging.getLogger("shardflow.worker")

#: Seconds after which a workflow that this worker has no code for is offered again.
UNKNOWN_DELAY = 15.0


class Starter:
    """Arguments: `shard`; `app`, which has the code; `commit`, the loop that the runs write to (a later
    assignment)."""

    def __init__(self, shard: Shard, app: App) -> None:
        self._shard = shard
        self._app = app
        self.commit: CommitLoop

    async def begin(self, conn: Conn, rows: Sequence[Claimed]) -> None:
        """Begins the fresh ones at once and the others with their checkpoints."""
        again = [row for row in rows if row.replay]
        for row in rows if not again else [row for row in rows if not row.replay]:
            self._start(row)
        if again:
            await self.replay(conn, again)

    async def unseen(self, conn: Conn, held: Sequence[Held]) -> None:
        """Begins what the lease holds and this worker never saw, because an answer was lost."""
        attempts = {h.wf: h.attempt for h in held}
        found = await leases.submissions(self._shard, conn, list(attempts))
        rows = [
            Claimed(s.wf, s.id, s.name, s.input, attempts[s.wf], True, s.queue, s.priority, 0, s.options)
            for s in found
        ]
        await self.replay(conn, rows)

    async def replay(self, conn: Conn, rows: Sequence[Claimed]) -> None:
        """Begins them with what is recorded."""
        recorded, clock = await leases.recorded(self._shard, conn, [row.wf for row in rows])
        self.commit.clock_is(clock)
        for row in rows:
            self._start(row, recorded.get(row.wf))

    def _start(self, row: Claimed, recorded: Recorded | None = None) -> None:
        version = row.options.get("version") if row.options else None
        workflow = self._app.runner(row.name, version)
        if self.commit.control.concerned(row) and self.commit.control.refuses(row, workflow):
            return
        if row.input is None:
            self.commit.refuse(row.wf, row.attempt, 0.0, "too much at once")
            return
        if workflow is None:
            extra = {"workflow": row.id, "workflow_name": row.name, "app": self._app.name, "shard": self._shard.name}
            extra |= {} if version is None else {"version": version}
            log.error(
                "no code for this workflow here: it is offered again later; run a worker whose app has it",
                extra=extra,
            )
            self.commit.refuse(
                row.wf,
                row.attempt,
                UNKNOWN_DELAY,
                f"no worker had code for workflow {row.name!r}{of_version(version)}",
            )
            return
        checkpoints, tries, generation, input = None, None, 0, row.input
        if recorded is not None:
            checkpoints, tries = recorded
            generation, input = beginning(row.input, checkpoints)
        self.commit.start(
            Run(
                self.commit,
                row.wf,
                row.id,
                workflow,
                input,
                row.attempt,
                checkpoints,
                queue_of(row.queue),
                tries,
                row.options,
                generation,
            )
        )
