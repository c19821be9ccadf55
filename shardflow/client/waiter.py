"""Waits for outcomes: one batched poll per shard, however many wait.

Each awaited workflow is asked for at growing intervals, a share of the time it has been waited for, so that short
ones are seen at once and long ones cost little; whatever is due within the same moment is asked for in one query.
"""

from __future__ import annotations

import asyncio
import logging
import random

from ..errors import ShardflowError, UsageError
from ..storage.pools import Pool
from ..storage.submissions import Outcome, outcomes

log = logging.getLogger("shardflow.client")

#: Seconds between two asks for one workflow: the least, the most, and the share of its age.
LEAST = 0.002
MOST = 0.5
SHARE = 0.15
#: Workflows asked for in one query at the most.
BATCH = 5_000


class Awaited:
    """A workflow somebody waits for."""

    __slots__ = ("due", "since", "waiters")

    def __init__(self, now: float) -> None:
        self.since = now
        self.due = now
        self.waiters: set[asyncio.Future[Outcome]] = set()

    def postpone(self, now: float) -> None:
        """Sets the next time to ask."""
        self.due = now + min(MOST, max(LEAST, (now - self.since) * SHARE))


class Waiter:
    """All that one client awaits of one shard."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._awaited: dict[int, Awaited] = {}
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def outcome(self, wf: int) -> Outcome:
        """The end of the workflow with that key, when it comes. Survives a shard that is away for a while."""
        loop = asyncio.get_running_loop()
        awaited = self._awaited.get(wf)
        if awaited is None:
            awaited = self._awaited[wf] = Awaited(loop.time())
        waiter: asyncio.Future[Outcome] = loop.create_future()
        awaited.waiters.add(waiter)
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            return await waiter
        finally:
            awaited.waiters.discard(waiter)
            if not awaited.waiters and self._awaited.get(wf) is awaited:
                del self._awaited[wf]

    async def now(self, wf: int) -> Outcome:
        """The end of the workflow with that key if it has ended; raises TimeoutError if not."""
        async with self._pool.connection() as conn:
            found = await outcomes(self._pool.shard, conn, [wf])
        if not found:
            raise TimeoutError
        return found[0]

    async def close(self) -> None:
        """Stops asking; whoever waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for awaited in list(self._awaited.values()):
            for waiter in awaited.waiters:
                waiter.cancel()

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        failures, rested = 0, 0.0
        while self._awaited:
            self._changed.clear()
            next_due = max(rested, min(a.due for a in self._awaited.values()))
            if (pause := next_due - loop.time()) > 0:
                try:
                    async with asyncio.timeout(max(pause, LEAST)):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                continue
            # What is due a moment later goes along: one query costs more than a row in it.
            began = loop.time()
            horizon = began + LEAST
            due = [wf for wf, a in self._awaited.items() if a.due <= horizon][:BATCH]
            try:
                async with self._pool.connection() as conn:
                    found = await outcomes(self._pool.shard, conn, due)
                failures = 0
            except UsageError as error:  # the client is closed
                self._give_up(error)
                return
            except Exception as error:
                failures += 1
                pause = min(2.0, 0.05 * 2**failures) * (0.5 + random.random())
                log.log(
                    logging.WARNING if isinstance(error, ShardflowError) else logging.ERROR,
                    "results cannot be asked for now; trying again",
                    extra={"shard": self._pool.shard.name, "error": str(error), "seconds": round(pause, 2)},
                )
                await asyncio.sleep(pause)
                continue
            self._deliver(found)
            now = loop.time()
            rested = now + (now - began)  # asking takes at most half of the time
            for wf in due:
                if wf in self._awaited:
                    self._awaited[wf].postpone(now)

    def _give_up(self, error: UsageError) -> None:
        for awaited in self._awaited.values():
            for waiter in awaited.waiters:
                if not waiter.done():
                    waiter.set_exception(error)
        self._awaited.clear()

    def _deliver(self, found: list[Outcome]) -> None:
        for outcome in found:
            awaited = self._awaited.pop(outcome.wf, None)
            for waiter in awaited.waiters if awaited is not None else ():
                if not waiter.done():
                    waiter.set_result(outcome)
