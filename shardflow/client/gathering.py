"""Waits for several workflows on any shards: one query per shard for those that have ended, the waiter for the rest.

A shard that is away is asked again until the time is over; what is known to have ended stays known.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from ..core.retry import Retry
from ..delivery.router import Router
from ..errors import ShardUnavailable, WorkflowNotFound
from ..model import WorkflowInfo
from ..storage import queries, submissions
from ..storage.ending import end
from ..storage.shard import Conn
from ..storage.submissions import Outcome
from .waiter import Waiter

T = TypeVar("T")

#: Workflows asked for in one query at the most.
BATCH = 5_000
#: Pauses between tries against a shard that does not answer, in seconds.
_BACKOFF = Retry(attempts=2, initial=0.05, factor=2.0, maximum=2.0, jitter=0.3)


class Gathering:
    """One wait for several ids.

    Arguments: `router`; `waiter`, that of a shard; `ids`; `first`, whether one of them is enough. `ended` and `away`
    are the answers: what is known of those that ended, and why which shards do not answer.
    """

    def __init__(self, router: Router, waiter: Callable[[str], Waiter], ids: Sequence[str], *, first: bool) -> None:
        self._router = router
        self._waiter = waiter
        self._ids = ids
        self._first = first
        self._enough = asyncio.Event()
        self.ended: dict[str, WorkflowInfo] = {}
        self.away: dict[str, str] = {}

    async def run(self, timeout: float | None) -> None:
        """Waits for so many seconds at the most. Raises WorkflowNotFound."""
        slot_map = await self._router.load()
        parts: defaultdict[str, list[str]] = defaultdict(list)
        for id in self._ids:
            parts[slot_map.shard_of(id)].append(id)
        if timeout == 0:
            await asyncio.gather(*(self._look(shard, ids) for shard, ids in parts.items()))
            return
        tasks = [asyncio.create_task(self._part(shard, ids)) for shard, ids in parts.items()]
        enough = asyncio.create_task(self._enough.wait())
        try:
            async with asyncio.timeout(timeout):
                waiting = {*tasks, enough}
                while not all(task.done() for task in tasks) and not enough.done():
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
        except TimeoutError:
            pass
        finally:
            await end([*tasks, enough])
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        for shard, ids in parts.items():
            trouble = self._waiter(shard).trouble
            if trouble is not None and not all(id in self.ended for id in ids):
                self.away[shard] = trouble

    async def _part(self, shard: str, ids: Sequence[str]) -> None:
        """One shard's part: ends when all of them have."""
        keys: dict[str, int] = {}
        for at in range(0, len(ids), BATCH):  # each has the whole of an answer's time
            keys |= await self._asked(shard, partial(self._resolve, shard=shard, ids=ids[at : at + BATCH]))
        waiter = self._waiter(shard)
        news: list[str] = []
        told = asyncio.Event()

        def tell(id: str, _: asyncio.Future[Outcome]) -> None:
            news.append(id)
            told.set()

        expected = {id: waiter.expect(id, wf) for id, wf in keys.items()}
        try:
            for id, future in expected.items():
                future.add_done_callback(partial(tell, id))
            while expected:
                await told.wait()
                told.clear()
                batch, news[:] = news[:BATCH], news[BATCH:]
                if news:
                    told.set()
                wfs = [expected.pop(id).result().wf for id in batch]
                await self._asked(shard, partial(self._describe, shard=shard, wfs=wfs))
        finally:
            for id, future in expected.items():
                waiter.forget(id, future)

    async def _asked(self, shard: str, question: Callable[[Conn], Awaitable[T]]) -> T:
        """What the shard answers, when it does."""
        tries = 0
        while True:
            try:
                answer = await self._ask(shard, question)
            except ShardUnavailable as error:
                self.away[shard] = str(error)
                tries += 1
                await asyncio.sleep(_BACKOFF.delay(min(tries, 8), random.random()))
            else:
                self.away.pop(shard, None)
                return answer

    async def _ask(self, shard: str, question: Callable[[Conn], Awaitable[T]]) -> T:
        async with self._router.pool(shard).connection() as conn:
            return await question(conn)

    async def _look(self, shard: str, ids: Sequence[str]) -> None:
        """Which of them have ended by now."""
        try:
            for at in range(0, len(ids), BATCH):
                await self._ask(shard, partial(self._resolve, shard=shard, ids=ids[at : at + BATCH]))
        except ShardUnavailable as error:
            self.away[shard] = str(error)

    async def _resolve(self, conn: Conn, shard: str, ids: Sequence[str]) -> dict[str, int]:
        """The keys of those that have not ended."""
        found = await submissions.keys(self._router.pool(shard).shard, conn, ids)
        for id in ids:
            if id not in found:
                raise WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {shard!r})", workflow_id=id)
        await self._describe(conn, shard, list(found.values()))
        return {id: wf for id, wf in found.items() if id not in self.ended}

    async def _describe(self, conn: Conn, shard: str, wfs: Sequence[int]) -> None:
        """Takes down those of them that have ended."""
        infos = await queries.described(self._router.pool(shard).shard, conn, wfs)
        for info in infos.values():
            if info.status.final:
                self.ended[info.id] = info
        if self._first and self.ended:
            self._enough.set()
