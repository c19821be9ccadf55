"""A batch that the server refuses: finds the rows, fails their workflows, commits the others.

Every part that commits is settled at once, and what was not tried is put back if the connection fails, so that a turn
in doubt is always one transaction.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import shardflow.storage.turn as turns

from ..core.failure import to_json
from ..errors import LeaseLost
from ..model import ErrorInfo, Status
from ..storage.shard import Conn
from ..storage.turn import Answer, Fence, OutcomeRow, Refused, Turn
from .gather import Doubt, Gathered, Single
from .run import Run

if TYPE_CHECKING:
    from .commit import CommitLoop

log = logging.getLogger("shardflow.worker")

#: How often a workflow's row may be there already before the workflow fails; before that all is begun over.
REPEATS = 2


class Isolation:
    """One refused batch.

    Arguments: `commit`, whose batch it is; `conn` and `fence`, by which it writes.
    """

    def __init__(self, commit: CommitLoop, conn: Conn, fence: Fence) -> None:
        self._commit = commit
        self._shard = commit.shard.name
        self._conn = conn
        self._fence = fence
        self._failed: set[int] = set()
        self._found = 0

    async def isolate(self, gathered: Gathered, turn: Turn) -> int:
        """Answers how many rows were refused; none means that it was the claim, which is left out here."""
        self._commit.doubt = None
        rest = gathered.rest()
        parts = [gathered.pieces()]
        try:
            while parts:
                part = [piece for piece in parts.pop() if _run_of(piece[0]).wf not in self._failed]
                if part and not await self._accepted(part, rest):
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
            await self._finish(rest, turn)
        except BaseException:
            for piece, _ in (piece for part in parts for piece in part):
                if _run_of(piece).wf not in self._failed:
                    rest.absorb(piece)
            self._put_back(rest)
            raise
        return self._found

    async def _send(self, part: Gathered, turn: Turn) -> None:
        """Commits and settles a part. Raises Refused."""
        commit = self._commit
        commit.doubt = Doubt(part, turn)
        try:
            answer = await self._ask(turn)
        except Refused:
            commit.doubt = None
            raise
        commit.doubt = None
        commit.settle(part)
        commit.heed(turn, answer)

    async def _ask(self, turn: Turn) -> Answer:
        return await turns.commit(self._commit.shard, self._conn, self._fence, turn)

    def _put_back(self, rest: Gathered) -> None:
        """The connection has failed, and this is neither committed nor in doubt."""
        doubt = self._commit.doubt
        if doubt is None or doubt.gathered is not rest:
            self._commit.put_back(rest)

    async def _accepted(self, part: list[tuple[Gathered, str]], rest: Gathered) -> bool:
        """Commits the part; a single piece that is refused fails its workflow, which settles it too."""
        whole = Gathered()
        for piece, _ in part:
            whole.absorb(piece)
        try:
            await self._send(whole, whole.turn())
        except Refused as error:
            if len(part) > 1:
                return False
            self._failed.add(_run_of(part[0][0]).wf)
            self._found += 1
            await self._fail(*part[0], error, rest)
        return True

    async def _fail(self, piece: Gathered, what: str, refused: Refused, rest: Gathered) -> None:
        run = _run_of(piece)
        error = self._error(what, refused)
        if refused.duplicate:
            self._commit.repeats[run.wf] += 1
            if self._commit.repeats[run.wf] < REPEATS:
                raise LeaseLost(
                    f"shard {self._shard!r}: {what} of workflow {run.id!r} is recorded already; starting over from"
                    " what the shard has"
                )
            error = ErrorInfo(
                "shardflow.errors.NonDeterminism",
                f"shard {self._shard!r}: {what} is recorded already, and was once more after starting over from what"
                " the shard has: the workflow's replay does not come by its records",
            )
        log.error("a row was refused; its workflow fails", extra={"workflow": run.id, "error": error.message})
        run.close()
        piece.cancel()
        rest.strip(run.wf)
        self._commit.strip(run.wf)
        failed = Gathered()
        failed.add_outcome(run, _end(run.wf, error))
        try:
            await self._send(failed, failed.turn())
        except Refused as again:
            raise self._hopeless(run.wf, again) from again
        self._commit.receipts.resolve(run.wf)

    # -- what nobody waits for

    async def _finish(self, rest: Gathered, turn: Turn) -> None:
        """Commits it with the receipts that the turn gives up; what is refused of it ends its workflows."""
        while True:
            last = rest.turn()
            last.dropped, last.kept = turn.dropped, turn.kept
            try:
                await self._send(rest, last)
                return
            except Refused as error:
                found = await self._search(rest.singles())
                if not found:  # it is none of these rows
                    raise
                for single, refused in found:
                    self._found += 1
                    self._replace(rest, single, refused)
                log.debug("rows are replaced", extra={"shard": self._shard, "error": str(error)})

    async def _search(self, singles: list[Single]) -> list[tuple[Single, Refused]]:
        """Those that are refused, each by itself. They are only tried: a suspension belongs into one transaction with
        the receipt that it leaves."""
        found = []
        parts = [singles] if singles else []
        while parts:
            part = parts.pop()
            whole = Gathered()
            for single in part:
                whole.absorb(single.gathered)
            trial = whole.turn()
            trial.rehearsal = True
            try:
                await self._ask(trial)
            except Refused as refused:
                if len(part) == 1:
                    found.append((part[0], refused))
                else:
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
        return found

    def _replace(self, rest: Gathered, single: Single, refused: Refused) -> None:
        """Takes the row out, and ends its workflow instead."""
        wf, error = single.wf, self._error(single.what, refused)
        if wf is None:
            entries = single.gathered.relayed
            log.error("what was delivered stays in the outbox", extra={"entries": entries, "error": error.message})
            rest.relayed = [entry for entry in rest.relayed if entry not in entries]
            self._commit.relay.stuck(entries)
            return
        if single.gathered.unbegun:
            raise self._hopeless(wf, refused)
        commit = self._commit
        run = commit.runs.get(wf)
        log.error(
            "a row was refused; its workflow fails",
            extra={"workflow": run.id if run else None, "wf": wf, "shard": self._shard, "error": error.message},
        )
        suspended = rest.strip(wf)
        if suspended:  # its receipt goes with this turn
            rest.unbegun.append(_end(wf, error))
            return
        commit.strip(wf)
        if run is not None:
            run.close()
            rest.add_outcome(run, _end(wf, error))
            commit.receipts.resolve(wf)
        else:
            commit.end_unbegun(_end(wf, error))

    def _hopeless(self, wf: int, refused: Refused) -> LeaseLost:
        """Not even its end is accepted: it goes back, and is put aside where it is claimed here again."""
        self._commit.hopeless.add(wf)
        return LeaseLost(f"shard {self._shard!r} refuses even the end of workflow {wf}: {refused}")

    def _error(self, what: str, refused: Refused) -> ErrorInfo:
        message = f"shard {self._shard!r} refused {what}: {refused}"
        return ErrorInfo("shardflow.errors.Refused", message.replace("\0", "\\0"))


def _run_of(piece: Gathered) -> Run:
    """The run of a single piece."""
    return piece.waiting[0][0] if piece.waiting else piece.ended[0]


def _end(wf: int, error: ErrorInfo) -> OutcomeRow:
    return (wf, Status.FAILED.value, None, to_json(error))
