"""The commit loop of one shard: group commit without a timer.

Each turn takes everything that has gathered and sends it as one transaction with the fence in front and a claim
behind; while it is under way the next batch gathers. A workflow goes on when its checkpoint has committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import shardflow.storage.turn as turns

from ..delivery import Delivery
from ..storage.shard import Conn, Shard
from ..storage.turn import Answer, Claimed, ClaimWanted, Fence, OutcomeRow, Refused, Turn, WaitRow
from .alarm import Alarm
from .claims import BUSY, Claims
from .control import Control
from .gather import Doubt, Extra, Gathered, Pending
from .idle import Idle
from .light import Light, may_be_light
from .limits import Limits
from .places import Place
from .poison import Isolation
from .receipts import Receipts
from .relay import Relay
from .rest import Rest
from .run import Run
from .tasks import own_tasks
from .transactions import Kinds

log = logging.getLogger("shardflow.worker")

#: Seconds that a turn may remain unanswered before its connection is given up; never more than the lease's TTL.
PATIENCE = 30.0

#: Due workflows woken in one turn at the most.
WAKE = 1_000


class CommitLoop:
    """Gathers the writes of a shard's runs and commits them; see `sink.Sink` for what runs call.

    Arguments: `shard`; `lanes` that the worker serves; `place`, the shard's part of the worker's places;
    `threads`, for plain `def` functions; `delivery`, for what belongs to other shards; `transactions`, the shard's;
    `begin`, called with the workflows claimed in a turn; `limits`, the shard's.
    """

    def __init__(
        self,
        shard: Shard,
        lanes: Sequence[str],
        place: Place,
        threads: ThreadPoolExecutor,
        delivery: Delivery,
        transactions: Kinds,
        begin: Callable[[Conn, Sequence[Claimed]], Awaitable[None]],
        limits: Limits,
        patience: float = PATIENCE,
    ) -> None:
        self._patience = patience
        self.shard = shard
        self.loop = asyncio.get_running_loop()
        self.time = self.loop.time
        self.own_task = own_tasks(self.loop)
        self._future = self.loop.create_future
        self.jumps = False
        self.threads = threads
        self.receipts = Receipts()
        self.runs: dict[int, Run] = {}
        self.claims = Claims(lanes, place, deaf=shard.config.pooler)
        self.limits = limits
        self.delivery = delivery
        self.relay = Relay(shard, delivery, self._relayed, self.nudge)
        self.idle = Idle(self.loop, self._suspend, self.nudge)
        self.doubt: Doubt | None = None
        self.repeats: Counter[int] = Counter()  # rows that were there already, by workflow
        self.hopeless: set[int] = set()  # workflows whose ends the shard refuses
        self.light = Light()
        self.draining = False
        self.closing = False
        self.valid_until = 0.0
        self.fence: Fence | None = None
        self.transactions = transactions
        self._lanes = list(lanes)
        self._place = place
        self._pending = Pending()
        self.control = Control(self, self._pending.open, lanes)
        self._awake = asyncio.Event()
        self._begin = begin
        self.alarm = Alarm(self.loop)
        self.rest = Rest(self, self._awake, self.alarm, lanes, patience)
        self._clock = (0.0, 0.0)

    # -- what runs call

    def checkpoint(
        self,
        run: Run,
        seq: int,
        name: str,
        attempts: int,
        output: bytes | None,
        error: str | None,
        extra: Extra | None = None,
    ) -> asyncio.Future[None]:
        """See `sink.Sink`."""
        future = self._future()
        if run.closed:
            future.cancel()
        else:
            row = (run.wf, seq, attempts if attempts < 32767 else 32767, name, output, error)
            self._pending.open().add_step(run, future, row, extra)
            self._awake.set()
        return future

    def tried(self, run: Run, seq: int, name: str, attempts: int, error: str, delay: float) -> None:
        """See `sink.Sink`."""
        if not run.closed:
            self._pending.open().add_retry((run.wf, seq, min(attempts, 32767), name, error, delay))
            self._awake.set()

    def finish(self, run: Run, status: str, output: bytes | None, error: str | None) -> None:
        """See `sink.Sink`."""
        self._pending.open().add_outcome(run, (run.wf, status, output, error))
        self._awake.set()

    def waiting(self, run: Run) -> None:
        """See `sink.Sink`."""
        self.idle.waiting(run)

    def ask_mail(self, run: Run) -> None:
        """See `sink.Sink`."""
        self.idle.ask_mail(run)

    def server_time(self) -> float:
        """See `sink.Sink`."""
        server, own = self._clock
        return server + self.loop.time() - own

    def passed(self, run: Run) -> None:
        """See `transactions.Fenced`."""
        if self.draining:
            self._forget(run)
            self._awake.set()

    def nudge(self) -> None:
        """There is something for a turn to do."""
        self._awake.set()

    def _suspend(self, run: Run, row: WaitRow) -> None:
        """Takes a quiet run out of memory; the next turn gives its claim up."""
        self._forget(run)
        self._place.freed()
        row = self.control.limited(run, row)
        self.alarm.due_in(row[1])
        self._pending.open().add_wait(row)
        self._awake.set()

    def _relayed(self, entries: list[int]) -> None:
        self._pending.open().add_relayed(entries)
        self._awake.set()

    # -- what the link calls

    def clock_is(self, server: float) -> None:
        """The shard's clock just said so, in seconds since 1970."""
        self._clock = (server, self.loop.time())

    def refuse(self, wf: int, attempt: int, delay: float, reason: str) -> None:
        """Suspends a claimed workflow that did not begin, for `delay` seconds."""
        self._pending.open().add_wait((wf, delay, attempt, reason, 0, None, None))
        self._awake.set()

    def begin_anew(self, run: Run, input: bytes) -> None:
        """See `sink.Sink`."""
        self._forget(run)
        if self.leaving:
            self.refuse(run.wf, run.attempt, 0.0, "another worker")
        else:
            self.start(run.anew(input))

    def wake(self) -> None:
        """There may be something to claim: the bell rang, or places became free."""
        self.claims.look()
        self._awake.set()

    def start(self, run: Run) -> None:
        """Takes a run in and begins it."""
        self.runs[run.wf] = run
        self._place.running += 1
        run.start()
        self.control.began(run)

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
        self.idle.clear()
        self.relay.forget()
        self.limits.forget()
        self._pending.clear()
        if self.doubt is not None:
            self.doubt.gathered.cancel()
        self.receipts = Receipts()
        self.claims.answered()
        self.light.forget()
        self.doubt = None

    def strip(self, wf: int) -> None:
        """Nothing more is written of the workflow."""
        self._pending.strip(wf)

    def drop(self, wf: int) -> None:
        """The lease does not hold the workflow."""
        self._pending.strip(wf)
        if (run := self.runs.get(wf)) is not None:
            self._forget(run)

    def end_unbegun(self, row: OutcomeRow) -> None:
        """Writes the end of a claimed workflow that has no run."""
        self._pending.open().add_unbegun(row, False)
        self._awake.set()

    def suspending(self) -> set[int]:
        """Claimed workflows without a run, which a coming turn suspends."""
        return self._pending.suspending()

    def put_back(self, gathered: Gathered) -> None:
        """Writes of a turn that did not commit, to be sent again first."""
        self._pending.put_back(gathered)

    async def serve(self, conn: Conn, fence: Fence) -> None:
        """Turns until drained or closed. Raises what `turn.commit` raises; a turn in doubt is then in `doubt`."""
        self.fence = fence
        while True:
            gathered = self._pending.take()
            turn = self._compose(gathered)
            if turn is None:
                if self.leaving and not self.runs:
                    return
                await self.rest.sleep(conn)
                continue
            async with self.shard.deadline(conn, self._patience, "a turn"):
                await self._commit(conn, fence, gathered or Gathered(), turn)

    # -- a turn

    def _compose(self, gathered: Gathered | None) -> Turn | None:
        turn = gathered.turn() if gathered else Turn()
        ending = 0
        if gathered is not None:
            for row in gathered.outcomes + gathered.unbegun:
                self.receipts.resolve(row[0])
            ending = len(gathered.ended)
            turn.dropped, turn.kept = self.receipts.settle(row[0] for row in gathered.waits)
        turn.begun = self.limits.begun
        turn.frees = self.claims.limited and gathered is not None and bool(gathered.outcomes or gathered.waits)
        if turn.frees:
            self.claims.look()  # what ends gives its place under a limit to the next one
        if not self.leaving:
            now = self.loop.time()
            turn.claim = self.claims.wish(ending, self.receipts.number(), now, anyway=gathered is not None)
            if turn.claim is not None:
                turn.bell = self.claims.bell()
            # With all places taken as well: what lies in the outbox must not wait until one of them is free.
            looks = turn.claim is not None or self._place.taken_up
            if looks and self.alarm.rings(now):
                turn.wake, turn.since = WAKE, self.alarm.since(now)
                turn.adopt = self.alarm.chores(now)
            turn.outbox = self.relay.wanted
        self.control.ask(turn, self.loop.time())
        turn.mail = self.idle.asked()
        turn.light = gathered is None and may_be_light(turn)
        asks = turn.claim is not None or turn.mail or turn.begun or turn.adopt or turn.outbox is not None
        return turn if gathered is not None or asks else None

    async def _commit(self, conn: Conn, fence: Fence, gathered: Gathered, turn: Turn) -> None:
        self.doubt = Doubt(gathered, turn)
        began = self.loop.time()
        try:
            answer = await turns.commit(self.shard, conn, fence, turn)
        except Refused as error:
            self.claims.answered()
            if turn.bell is not None:
                self.claims.bell_is(turn.bell)  # a session's lock stays when the transaction is rolled back
            if not await Isolation(self, conn, fence).isolate(gathered, turn) and turn.claim is not None:
                log.error("a claim was refused", extra={"shard": self.shard.name, "error": str(error)})
                self.claims.put_off(self.loop.time())
            return
        self.doubt = None
        self.light.committed(turn, answer.claimed)
        self.settle(gathered)
        if (rows := answer.claimed or answer.suspects) and answer.cancelled is None:
            answer.cancelled = await turns.cancelled(self.shard, conn) if rows[0].heed else ()  # mostly none
        if turn.bell is not None:
            self.claims.bell_is(turn.bell)
        if turn.claim is not None:  # before what came behind its marks is heard of
            now = self.loop.time()
            self.claims.got(turn.claim, answer.claimed, now, now - began)
        self.heed(turn, answer)
        if turn.claim is not None:
            claimed = answer.claimed
            if turn.claim.limited:
                self.limits.saw(answer.limits)
            if claimed:
                await self._take(conn, turn.claim, claimed)
            if turn.suspects is not None and answer.suspects:
                await self._take(conn, turn.suspects, answer.suspects)
            if 0 < len(claimed) < BUSY:
                # Few run quickly to where they write: that goes into the next turn, instead of waiting for it.
                await asyncio.sleep(0)
            self.claims.answered()

    async def _take(self, conn: Conn, wish: ClaimWanted, claimed: Sequence[Claimed]) -> None:
        """Begins what was claimed."""
        self.receipts.add(wish.batch, {row.wf: row.attempt for row in claimed})
        await self._begin(conn, claimed)
        if wish.limited:
            self.limits.claimed(wish.batch, [self.runs[r.wf] for r in claimed if r.wf in self.runs])

    def heed(self, turn: Turn, answer: Answer) -> None:
        """What the turn's answer says beside what was claimed."""
        self.limits.told(turn.begun)
        self.control.told(answer)
        if answer.limited is not None:
            self.claims.limits(answer.limited)
        if answer.told:
            self.relay.tell(answer.told)
        if turn.mail:
            self.idle.arrived(turn.mail, answer.mail)
        if turn.outbox is not None:
            self.relay.page(turn.outbox, answer.page)
        more = answer.more_left and self.relay.has_room
        if turn.adopt and self.alarm.chores_done(answer.chores_took, more=more):
            self.wake()
        if turn.wake:
            assert answer.woken_to is not None
            more = answer.woken >= turn.wake
            self.alarm.looked(turn.since, answer.woken_to, answer.next_due, more=more, took=answer.wake_took)
            if answer.woken:
                self.claims.came_back(answer.woken_at)

    def settle(self, gathered: Gathered) -> None:
        """Lets the runs whose writes have committed go on, or end."""
        if self.draining:
            for run, future in gathered.waiting:
                self._forget(run)  # it stays in its receipt, which goes back with the lease
                future.cancel()
        else:
            for _, future in gathered.waiting:
                if not future.done():
                    future.set_result(None)
        for run in gathered.ended:
            self._left(run)
            if run.tasks:
                run.end_tasks()
        if gathered.ended:
            self._place.freed()

    def _forget(self, run: Run) -> None:
        run.close()
        self._left(run)

    def _left(self, run: Run) -> None:
        if run.waits is not None or run.box is not None:
            self.idle.forget(run)
        self.control.forget(run)
        if self.runs.pop(run.wf, None) is not None:
            self._place.left(run.thread if run.blocking else None, self.loop)
        run.closed = True
        run.task = None  # its context has the run: only the garbage collector would free them, and it comes seldom
