"""Waits for outcomes: one batched poll per shard, however many wait.

A workflow is asked for first when others of its name have ended, then at growing intervals, a share of its age: short
ones are seen at once and long ones cost little. Whatever is due within the same moment is asked for in one query.
Nobody waits for what is not there: a failover may have lost a workflow that was acknowledged.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random

from ..errors import ShardflowError, UsageError, WorkflowNotFound
from ..storage.ending import end
from ..storage.pools import Pool
from ..storage.shard import Conn, reads_only
from ..storage.submissions import Outcome, keys, outcomes

log = logging.getLogger("shardflow.client")

#: Seconds between two asks for one workflow: the least, the most, and the share of its age.
LEAST = 0.0004
MOST = 0.5
SHARE = 0.08
#: The event loop's timers go by milliseconds: one of less than half of one would go off at once, again and again.
TICK = 0.001
#: Seconds from the submission to the first ask: as long as nothing is known, and at the most; and how it changes when
#: the first ask found the end, or did not, so that somewhat more than a third of the first asks do.
FIRST, FIRST_MOST = 0.004, 0.05
SOONER, LATER = 0.9, 1.06
#: Names of workflows of which that is remembered.
NAMES = 1_000
#: Seconds between two asks whether a workflow that has not ended is there at all.
CHECK_EVERY = 5.0
#: Workflows asked for in one query at the most; how many at first, twice as many each time and half of them where no
#: answer came; and bytes of results in one answer, as far as they are foreseen from those before.
BATCH, BEGIN = 5_000, 64
BYTES = 16 << 20


class Habits:
    """How soon workflows end, by name, as far as it matters for the first ask."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}

    def first(self, name: str) -> float:
        """Seconds from the submission to the first ask."""
        return self._first.get(name, FIRST)

    def asked(self, name: str, *, ended: bool) -> None:
        """A first ask at that time has found the end, or not."""
        if len(self._first) >= NAMES and name not in self._first:
            self._first.clear()
        self._first[name] = min(FIRST_MOST, max(LEAST, self.first(name) * (SOONER if ended else LATER)))


class Awaited:
    """A workflow somebody waits for: `wf` is its key as far as is known, `check` when to ask whether it is there;
    `name`, whose it is, where the first ask is to teach something; `since`, when it was submitted or awaited first.
    """

    __slots__ = ("check", "due", "name", "since", "waiters", "wf")

    def __init__(self, wf: int, now: float, submitted: float | None, name: str, first: float) -> None:
        self.wf = wf
        self.check = now + CHECK_EVERY
        self.since = now if submitted is None else submitted
        self.due = now if submitted is None else max(now, submitted + first)
        self.name = name if self.due > now else None
        self.waiters: set[asyncio.Future[Outcome]] = set()

    def postpone(self, now: float) -> None:
        """Sets the next time to ask."""
        self.due = now + min(MOST, max(LEAST, (now - self.since) * SHARE))


class Waiter:
    """All that one client awaits of one shard."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._awaited: dict[str, Awaited] = {}
        self._habits = Habits()
        self._batch = BEGIN
        self._size = 1.0  # bytes of a result lately
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        #: Why the shard did not answer the last time; None where it did.
        self.trouble: str | None = None

    async def outcome(self, id: str, wf: int, name: str = "", submitted: float | None = None) -> Outcome:
        """The end of the workflow with that id and key, when it comes. Survives a shard that is away for a while.

        Arguments: `name`, the workflow's; `submitted`, when that was, by the event loop's clock, where it is known.
        Raises WorkflowNotFound when the shard answers that it has no such id.
        """
        waiter = self.expect(id, wf, name, submitted)
        try:
            return await waiter
        finally:
            self.forget(id, waiter)

    def expect(self, id: str, wf: int, name: str = "", submitted: float | None = None) -> asyncio.Future[Outcome]:
        """The same as a future, for many at once; to be given to `forget` in the end."""
        loop = asyncio.get_running_loop()
        awaited = self._awaited.get(id)
        if awaited is None:
            awaited = self._awaited[id] = Awaited(wf, loop.time(), submitted, name, self._habits.first(name))
        waiter: asyncio.Future[Outcome] = loop.create_future()
        awaited.waiters.add(waiter)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        return waiter

    def forget(self, id: str, waiter: asyncio.Future[Outcome]) -> None:
        """Nobody waits for this future any more."""
        awaited = self._awaited.get(id)
        if awaited is not None:
            awaited.waiters.discard(waiter)
            if not awaited.waiters:
                del self._awaited[id]

    async def now(self, id: str, wf: int) -> Outcome:
        """The end of the workflow with that id and key if it has ended; raises TimeoutError if not.

        Raises WorkflowNotFound where the shard has no such id.
        """
        shard = self._pool.shard
        async with self._pool.connection() as conn:
            found = await outcomes(shard, conn, [wf])
            if not found or found[0].id != id:
                there = await keys(shard, conn, [id])
                if id not in there:
                    raise self._lost(id)
                found = await outcomes(shard, conn, [there[id]]) if there[id] != wf else []
        if not found:
            raise TimeoutError
        return found[0]

    async def close(self) -> None:
        """Stops asking; whoever waits is cancelled."""
        if self._task is not None:
            await end([self._task])
        for awaited in list(self._awaited.values()):
            for waiter in awaited.waiters:
                waiter.cancel()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        failures, rested = 0, 0.0
        while self._awaited:
            self._changed.clear()
            next_due = max(rested, min(a.due for a in self._awaited.values()))
            if (pause := next_due - loop.time()) > TICK / 2:
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            # What is due a moment later goes along: one query costs more than a row in it.
            began = loop.time()
            horizon = began + TICK / 2
            due = [id for id, a in self._awaited.items() if a.due <= horizon]
            most = min(self._batch, max(1, int(BYTES / self._size)))
            if len(due) > most:  # those that have waited for longest: what is asked is due again soon
                due = heapq.nsmallest(most, due, key=lambda id: self._awaited[id].due)
            try:
                async with self._pool.connection() as conn:
                    due = [id for id in due if id in self._awaited]  # somebody may have gone meanwhile
                    found = await outcomes(self._pool.shard, conn, [self._awaited[id].wf for id in due])
                    self._deliver(found)
                    await self._check(conn, [id for id in due if id in self._awaited])
                failures, self.trouble = 0, None
                if len(due) >= most:
                    self._batch = min(BATCH, 2 * self._batch)
            except UsageError as error:  # the client is closed
                self._give_up(error)
                return
            except Exception as error:
                failures += 1
                self._batch = max(1, len(due) // 2)
                if len(due) == 1 and due[0] in self._awaited:  # the others must not wait for this one
                    self._awaited[due[0]].due = loop.time() + 2 * (loop.time() - began)
                self.trouble = str(error)
                pause = min(2.0, 0.05 * 2**failures) * (0.5 + random.random())
                log.log(
                    logging.WARNING if isinstance(error, ShardflowError) else logging.ERROR,
                    "results cannot be asked for now; trying again",
                    extra={"shard": self._pool.shard.name, "error": str(error), "seconds": round(pause, 2)},
                )
                await asyncio.sleep(pause)
                continue
            now = loop.time()
            rested = now + (now - began)  # asking takes about half of the time at the most
            for id in due:
                if (awaited := self._awaited.get(id)) is not None:
                    self._learn(awaited, ended=False)
                    awaited.postpone(now)

    async def _check(self, conn: Conn, ids: list[str]) -> None:
        """Asks now and then whether what is awaited is there, and under which key."""
        now = asyncio.get_running_loop().time()
        doubtful = [id for id in ids if self._awaited[id].check <= now]
        if not doubtful or reads_only(conn):  # a standby may be behind
            return
        there = await keys(self._pool.shard, conn, doubtful)
        for id in doubtful:
            if (awaited := self._awaited.get(id)) is None:
                continue
            if id in there:
                awaited.wf, awaited.check = there[id], now + CHECK_EVERY
                continue
            del self._awaited[id]
            for waiter in awaited.waiters:
                if not waiter.done():
                    waiter.set_exception(self._lost(id))

    def _lost(self, id: str) -> WorkflowNotFound:
        return WorkflowNotFound(
            f"workflow {id!r} is not there: shard {self._pool.shard.name!r} answers that it has no such id: it ended"
            " and was deleted (retention, purge), or was lost by a failover or a restore: then submit it again",
            workflow_id=id,
        )

    def _give_up(self, error: UsageError) -> None:
        for awaited in self._awaited.values():
            for waiter in awaited.waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        self._awaited.clear()

    def _learn(self, awaited: Awaited, *, ended: bool) -> None:
        """What the first ask for it has found tells when to ask for the next one of its name."""
        if awaited.name is not None:
            self._habits.asked(awaited.name, ended=ended)
            awaited.name = None

    def _deliver(self, found: list[Outcome]) -> None:
        if found:
            mean = sum(outcome.size for outcome in found) / len(found)
            self._size = max(1.0, mean, self._size + (mean - self._size) / 8)
        for outcome in found:
            awaited = self._awaited.get(outcome.id)
            if awaited is None or awaited.wf != outcome.wf:
                continue  # another workflow has the key of one that was lost
            self._learn(awaited, ended=True)
            del self._awaited[outcome.id]
            for waiter in awaited.waiters:
                if not waiter.done():
                    waiter.set_result(outcome)
