"""The commit loop of one shard: group commit without a timer.

Each turn takes everything that has gathered and sends it as one transaction with the fence in front and a claim
behind; while it is under way the next batch gathers. A workflow goes on when its checkpoint has committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import shardflow.storage.turn as turns

from ..core.failure import to_json
from ..errors import LeaseLost
from ..model import ErrorInfo, Status
from ..storage.shard import Conn, Shard
from ..storage.turn import Claimed, Fence, Refused, Turn
from .claims import BUSY, IDLE_LOOK, Claims
from .gather import Gathered, Pending
from .places import Place
from .receipts import Receipts
from .run import Run

log = logging.getLogger("shardflow.worker")

#: Seconds that a turn may remain unanswered before its connection is given up; never more than the lease's TTL.
PATIENCE = 30.0

#: Due workflows woken in one turn at the most, and seconds between looks for them while busy.
WAKE = 1_000
WAKE_EVERY = 0.5


@dataclass(slots=True)
class Doubt:
    """A turn whose answer was lost: committed or not."""

    gathered: Gathered
    turn: Turn


class CommitLoop:
    """Gathers the writes of a shard's runs and commits them; see `run.Sink` for what runs call.

    Arguments: `shard`; `queues` that the worker serves; `place`, the shard's part of the worker's places;
    `threads`, for plain `def` functions; `begin`, called with the workflows claimed in a turn.
    """

    def __init__(
        self,
        shard: Shard,
        queues: Sequence[str],
        place: Place,
        threads: ThreadPoolExecutor,
        begin: Callable[[Conn, Sequence[Claimed]], Awaitable[None]],
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        self.shard = shard
        self.loop = asyncio.get_running_loop()
        self.threads = threads
        self.receipts = Receipts()
        self.runs: dict[int, Run] = {}
        self.claims = Claims(queues, place, deaf=shard.config.pooler)
        self.doubt: Doubt | None = None
        self.draining = False
        self.closing = False
        self.valid_until = 0.0
        self._queues = list(queues)
        self._place = place
        self._pending = Pending()
        self._awake = asyncio.Event()
        self._begin = begin
        self._woke_at = 0.0

    # -- what runs call

    def checkpoint(
        self, run: Run, seq: int, name: str, attempts: int, output: bytes | None, error: str | None
    ) -> asyncio.Future[None]:
        """See `run.Sink`."""
        future = self.loop.create_future()
        if run.closed:
            future.cancel()
        else:
            row = (run.wf, seq, min(attempts, 32767), name, output, error)
            self._pending.open().add_step(run, future, row)
            self._awake.set()
        return future

    def finish(self, run: Run, status: Status, output: bytes | None, error: str | None) -> None:
        """See `run.Sink`."""
        self._pending.open().add_outcome(run, (run.wf, status.value, output, error))
        self._awake.set()

    # -- what the link calls

    def refuse(self, wf: int, attempt: int, delay: float, reason: str) -> None:
        """Suspends a claimed workflow that did not begin, for `delay` seconds."""
        self._pending.open().add_wait((wf, delay, attempt, reason))
        self._awake.set()

    def wake(self) -> None:
        """There may be something to claim: the bell rang, or places became free."""
        self.claims.look()
        self._awake.set()

    def start(self, run: Run) -> None:
        """Takes a run in and begins it."""
        self.runs[run.wf] = run
        self._place.running += 1
        run.start()

    def drain(self) -> None:
        """No more claims; a workflow ends or stops at its next checkpoint. `serve` returns when all have."""
        self.draining = True
        self._awake.set()

    def close(self, closing: bool) -> None:
        """Whether to claim nothing more and let all that runs here run to its end. `serve` returns then."""
        self.closing = closing
        self.wake()

    @property
    def leaving(self) -> bool:
        """Whether nothing more is to be claimed."""
        return self.draining or self.closing

    def abandon(self) -> None:
        """Closes every run and forgets all that was to be written: the lease is not held any more."""
        for run in list(self.runs.values()):
            self._forget(run)
        self._pending.clear()
        if self.doubt is not None:
            self.doubt.gathered.cancel()
        self.receipts = Receipts()
        self.claims.answered()
        self.doubt = None

    def suspending(self) -> set[int]:
        """Claimed workflows without a run, which a coming turn suspends."""
        return self._pending.suspending()

    def put_back(self, gathered: Gathered) -> None:
        """Writes of a turn that did not commit, to be sent again first."""
        self._pending.put_back(gathered)

    async def serve(self, conn: Conn, fence: Fence) -> None:
        """Turns until drained or closed. Raises what `turn.commit` raises; a turn in doubt is then in `doubt`."""
        while True:
            gathered = self._pending.take()
            turn = self._compose(gathered)
            if turn is None:
                if self.leaving and not self.runs:
                    return
                await self._sleep(conn)
                continue
            async with self.shard.deadline(conn, self._patience, "a turn"):
                await self._commit(conn, fence, gathered or Gathered(), turn)

    # -- a turn

    def _compose(self, gathered: Gathered | None) -> Turn | None:
        turn = gathered.turn() if gathered else Turn()
        ending = 0
        if gathered is not None:
            for run in gathered.ended:
                self.receipts.resolve(run.wf)
            ending = len(gathered.ended)
            turn.dropped, turn.kept = self.receipts.settle(row[0] for row in gathered.waits)
        if not self.leaving:
            now = self.loop.time()
            turn.claim = self.claims.wish(ending, self.receipts.number(), now, anyway=gathered is not None)
            if turn.claim is not None:
                turn.bell = self.claims.bell()
                if now - self._woke_at >= WAKE_EVERY:
                    turn.wake, self._woke_at = WAKE, now
        return turn if gathered is not None or turn.claim is not None else None

    async def _commit(self, conn: Conn, fence: Fence, gathered: Gathered, turn: Turn) -> None:
        self.doubt = Doubt(gathered, turn)
        began = self.loop.time()
        try:
            claimed = await turns.commit(self.shard, conn, fence, turn)
        except Refused as error:
            self.claims.answered()
            if turn.bell is not None:
                self.claims.bell_is(turn.bell)  # a session's lock stays when the transaction is rolled back
            if not await self._isolate(conn, fence, gathered, turn) and turn.claim is not None:
                log.error("a claim was refused", extra={"shard": self.shard.name, "error": str(error)})
                self.claims.put_off(self.loop.time())
            return
        self.doubt = None
        self.settle(gathered)
        if turn.bell is not None:
            self.claims.bell_is(turn.bell)
        if turn.claim is not None:
            now = self.loop.time()
            self.claims.got(turn.claim, claimed, now, now - began)
            if claimed:
                self.receipts.add(turn.claim.batch, {row.wf: row.attempt for row in claimed})
                await self._begin(conn, claimed)
                if len(claimed) < BUSY:
                    # Few run quickly to where they write: that goes into the next turn, instead of waiting for it.
                    await asyncio.sleep(0)
            self.claims.answered()

    def settle(self, gathered: Gathered) -> None:
        """Lets the runs whose writes have committed go on, or end."""
        for run, future in gathered.waiting:
            if self.draining:
                self._forget(run)  # it stays in its receipt, which goes back with the lease
                future.cancel()
            elif not future.done():
                future.set_result(None)
        for run in gathered.ended:
            self._forget(run, close=False)
        if gathered.ended:
            self._place.freed()

    def _forget(self, run: Run, *, close: bool = True) -> None:
        if self.runs.pop(run.wf, None) is not None:
            if run.blocking and run.thread is not None and not run.thread.done():
                # A thread cannot be stopped: the place is free when it has ended.
                run.thread.add_done_callback(lambda _: self._call_soon(self._vacate))
            else:
                self._place.running -= 1
        run.closed = True
        if close:
            run.close()

    def _vacate(self) -> None:
        self._place.running -= 1
        self._place.freed()
        self.wake()

    def _call_soon(self, callback: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop is closed: the worker has ended

    async def _sleep(self, conn: Conn) -> None:
        self._awake.clear()
        patience = IDLE_LOOK if self.leaving else self.claims.patience(self.loop.time())
        try:
            # Not wait_for, which before Python 3.12 can swallow a cancellation.
            async with asyncio.timeout(patience):
                await self._awake.wait()
        except TimeoutError:
            if not self.leaving and self.claims.settled:
                async with self.shard.deadline(conn, self._patience, "a look at the queues"):
                    if await turns.probe(self.shard, conn, self._queues):
                        self.claims.look()
                self.claims.rest(self.loop.time())

    # -- poison

    async def _isolate(self, conn: Conn, fence: Fence, gathered: Gathered, turn: Turn) -> int:
        """The server refused the batch: finds the rows it refuses, fails their workflows, commits the others.

        Answers how many workflows failed; none means that it was the claim, which is left out here.
        Every part that commits is settled at once, and what was not tried is put back if the connection fails, so
        that a turn in doubt is always one transaction.
        """
        self.doubt = None
        rest = Gathered()
        rest.waits = gathered.waits
        parts = [gathered.pieces()]
        failed: set[Run] = set()
        try:
            while parts:
                part = [piece for piece in parts.pop() if _run_of(piece[0]) not in failed]
                if part and not await self._accepted(conn, fence, part, failed):
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
            last = rest.turn()
            last.dropped, last.kept = turn.dropped, turn.kept
            await self._send(conn, fence, rest, last)
        except BaseException:
            for piece, _ in (piece for part in parts for piece in part):
                if _run_of(piece) not in failed:
                    rest.absorb(piece)
            if not self._doubts(rest):
                self._pending.put_back(rest)
            raise
        return len(failed)

    def _doubts(self, gathered: Gathered) -> bool:
        return self.doubt is not None and self.doubt.gathered is gathered

    async def _accepted(self, conn: Conn, fence: Fence, part: list[tuple[Gathered, str]], failed: set[Run]) -> bool:
        """Commits the part; a single piece that is refused fails its workflow, which settles it too."""
        whole = Gathered()
        for piece, _ in part:
            whole.absorb(piece)
        try:
            await self._send(conn, fence, whole, whole.turn())
        except Refused as error:
            self.doubt = None
            if len(part) > 1:
                return False
            failed.add(_run_of(part[0][0]))
            await self._fail_poison(conn, fence, *part[0], error)
        return True

    async def _send(self, conn: Conn, fence: Fence, gathered: Gathered, turn: Turn) -> None:
        self.doubt = Doubt(gathered, turn)
        await turns.commit(self.shard, conn, fence, turn)
        self.doubt = None
        self.settle(gathered)

    async def _fail_poison(self, conn: Conn, fence: Fence, piece: Gathered, what: str, refused: Refused) -> None:
        run = _run_of(piece)
        if refused.duplicate:
            raise LeaseLost(
                f"shard {self.shard.name!r}: {what} of workflow {run.id!r} is recorded already; starting over from"
                " what the shard has"
            )
        message = f"shard {self.shard.name!r} refused {what}: {refused}"
        log.error("a row was refused; its workflow fails", extra={"workflow": run.id, "error": message})
        run.close()
        piece.cancel()
        failed = Gathered()
        error = ErrorInfo("shardflow.errors.Refused", message.replace("\0", "\\0"))
        failed.add_outcome(run, (run.wf, Status.FAILED.value, None, to_json(error)))
        try:
            await self._send(conn, fence, failed, failed.turn())
        except Refused as again:
            raise LeaseLost(
                f"shard {self.shard.name!r} refuses even the failure of workflow {run.id!r}: {again}"
            ) from again
        self.receipts.resolve(run.wf)


def _run_of(piece: Gathered) -> Run:
    """The run of a single piece."""
    return piece.waiting[0][0] if piece.waiting else piece.ended[0]
