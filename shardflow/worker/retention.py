"""Deletes workflows that ended longer ago than the configuration keeps them, on the shards that this worker serves.

One worker at a time is at each kind of end on a shard, in small batches with pauses between them; nobody waits for
it. Whoever dies in between has deleted whole workflows or nothing, and another one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from ..core.retention import LEAST, SLACK, Pace
from ..delivery.router import Router
from ..delivery.visit import Errand
from ..errors import MapChanged, ShardflowError, ShardUnavailable
from ..model import ClusterConfig, Status
from ..storage import retention
from ..storage.ending import end
from ..storage.retention import HELD, Batch
from ..storage.shard import Conn, Shard

T = TypeVar("T")

log = logging.getLogger("shardflow.worker")

#: Seconds between looks which shards are served now.
LOOK = 1.0
#: Seconds that the server gives to a batch; and to one of a single workflow, however much is recorded of it.
PATIENCE, LONG = 10.0, 600.0
#: Keys are below it.
BEYOND = 1 << 62


class Retention:
    """One worker's part in it.

    Arguments: `config`, the cluster's; `worker`, its name; `router`, the worker's; `serves`, which shards it has
    leases on now.
    """

    def __init__(
        self, config: ClusterConfig, worker: str, router: Router, serves: Callable[[], Iterable[str]]
    ) -> None:
        kept = config.retention
        ages = {
            Status.SUCCEEDED: kept.succeeded,
            Status.FAILED: kept.failed,
            Status.CANCELLED: kept.cancelled,
            Status.DEAD: kept.dead,
        }
        self._timeout = config.pool.timeout
        self._ages = {status: age for status, age in ages.items() if age is not None}
        self._worker = worker
        self._router = router
        self._serves = serves
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        if not self._ages:  # all is kept for ever
            await asyncio.get_running_loop().create_future()
        try:
            while True:
                for name in self._serves():
                    if name not in self._tasks or self._tasks[name].done():
                        self._tasks[name] = asyncio.create_task(self._tend(name), name=f"shardflow retention {name}")
                await asyncio.sleep(LOOK)
        finally:
            await end(self._tasks.values())

    async def _tend(self, name: str) -> None:
        """Pass after pass, for as long as the shard is served."""
        paces = {status: Pace(age) for status, age in self._ages.items()}
        while name in self._serves():
            pause = min(pace.between for pace in paces.values())
            for status, pace in paces.items():
                try:
                    if not await self._pass(name, status, pace):
                        pause = max(pause, HELD * random.uniform(0.5, 1.0))
                except ShardflowError as error:
                    log.debug("retention: a shard does not answer", extra={"shard": name, "error": str(error)})
                    pause = max(pause, HELD / 2)
                except Exception:
                    log.exception("the deletion of old workflows failed; it is tried again", extra={"shard": name})
                    pause = max(pause, HELD)
            await asyncio.sleep(pause)

    async def _pass(self, name: str, status: Status, pace: Pace) -> bool:
        """Looks at all that has become old enough; False where another worker does."""

        async def begin(shard: Shard, conn: Conn, _: int) -> tuple[retention.Task, int] | None:
            task = await retention.take(shard, conn, self._worker, status)
            if task is None:
                return None
            return task, await retention.edge(shard, conn, task.front + 1, pace.age * (1 + SLACK))

        begun = await self._on(name, begin)
        if begun is None:
            return False
        task, edge = begun
        if not task.thorough:
            return await self._span(name, status, pace, (task.front, edge), front=True) is not None
        log.debug("retention: a thorough pass", extra={"shard": name, "status": status.value})
        took = 0.0
        for span in ((0, edge), (task.end - 1, BEYOND)):  # slots that have moved here brought keys of other shards
            spent = await self._span(name, status, pace, span, front=span[0] == 0)
            if spent is None:
                return False
            took += spent

        async def finish(shard: Shard, conn: Conn, _: int) -> None:
            await retention.looked_at_all(shard, conn, self._worker, status, pace.thorough_again(took))

        await self._on(name, finish)
        return True

    async def _span(
        self, name: str, status: Status, pace: Pace, span: tuple[int, int], *, front: bool
    ) -> float | None:
        """Looks at all of some keys; answers the seconds that it took, None where another worker has taken over."""
        low, high = span
        spent, patience = 0.0, PATIENCE
        clock = asyncio.get_running_loop().time

        async def batch(shard: Shard, conn: Conn, generation: int) -> Batch | None:
            return await retention.delete(
                shard,
                conn,
                generation,
                self._worker,
                status,
                pace.age,
                (low, high),
                pace.size,
                patience,
                front=front,
            )

        while low < high:
            began = clock()
            try:
                done = await self._on(name, batch, patience)
            except ShardUnavailable:
                if clock() - began < patience or (pace.size == LEAST and patience == LONG):
                    raise
                patience = LONG if pace.size == LEAST else PATIENCE
                pace.failed()
                continue
            if done is None:
                return None
            took = clock() - began
            spent, patience = spent + took, PATIENCE
            low = high if done.last is None or done.seen < pace.size else done.last
            await asyncio.sleep(pace.pause(took, done.seen, done.overdue))
        return spent

    async def _on(self, name: str, errand: Errand[T], seconds: float = 0.0) -> T:
        """Does it at the shard, which may take so many seconds more than for a client's request."""
        slot_map = await self._router.load()
        pool = self._router.pool(name)
        generation = await self._router.generation(slot_map, name)
        try:
            async with pool.connection(answer=self._timeout + seconds) as conn:
                return await errand(pool.shard, conn, generation)
        except MapChanged:
            await self._router.load(stale=slot_map)
            raise
