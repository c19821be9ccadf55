"""Brings letters to the shards of the workflows that they are for.

For each shard the letters that gather while a transaction is under way go with the next one. A letter with a key may
be sent again whatever became of it, so nothing has to be known of a lost connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import deque
from collections.abc import Sequence

from ..core.retry import Retry
from ..core.routing import slot_of
from ..core.topics import AFTER, CANCEL, WATCH
from ..errors import MapChanged, ShardBusy, ShardUnavailable, WorkflowNotFound
from ..model import ClusterConfig
from ..storage import control, messages
from ..storage.ending import end
from ..storage.messages import Letter
from .router import Router

log = logging.getLogger("shardflow.delivery")

#: Letters, and bytes of their values, in one transaction at the most.
BATCH = 1_000
BATCH_BYTES = 4 << 20

_BACKOFF = Retry(attempts=2, initial=0.05, factor=2.0, maximum=2.0, jitter=0.3)


class _Posted:
    """A letter under way."""

    __slots__ = ("deadline", "done", "letter")

    def __init__(self, letter: Letter, done: asyncio.Future[None], deadline: float) -> None:
        self.letter = letter
        self.done = done
        self.deadline = deadline


class Courier:
    """Delivers letters by the router's map.

    Arguments: `router`; `config`, the cluster's.
    """

    def __init__(self, router: Router, config: ClusterConfig) -> None:
        self._router = router
        self._slots = config.slots
        self._queues: dict[str, deque[_Posted]] = {}
        self._carriers: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    async def deliver(self, letter: Letter, timeout: float | None = None) -> None:
        """Returns when the letter has arrived.

        Arguments: `timeout` in seconds (None: tried until it arrives). Raises WorkflowNotFound where no workflow has
        the id, ShardUnavailable where its shard did not answer in time: it may have arrived.
        """
        await self.post(letter, timeout)

    def post(self, letter: Letter, timeout: float | None = None) -> asyncio.Future[None]:
        """The same, at once; the future is done when the letter has arrived."""
        loop = asyncio.get_running_loop()
        posted = _Posted(letter, loop.create_future(), _clock() + timeout if timeout is not None else 1e300)
        if self._router.known is None:
            task = asyncio.ensure_future(self._route([posted]))
            self._carriers[f"\0{id(task)}"] = task
            task.add_done_callback(lambda done: self._carriers.pop(f"\0{id(done)}", None) and None)
        else:
            self._put(posted, self._router.known.owners[slot_of(letter.id, self._slots)])
        return posted.done

    async def close(self) -> None:
        """Gives up what is under way."""
        self._closed = True
        await end(list(self._carriers.values()))
        for queue in self._queues.values():
            for posted in queue:
                posted.done.cancel()

    def _put(self, posted: _Posted, shard: str) -> None:
        self._queues.setdefault(shard, deque()).append(posted)
        carrier = self._carriers.get(shard)
        if carrier is None or carrier.done():
            self._carriers[shard] = asyncio.create_task(self._carry(shard))

    async def _route(self, batch: Sequence[_Posted]) -> None:
        """Puts letters where the map says, which may have to be asked for first."""
        tries = 0
        while not self._closed:
            try:
                slot_map = await self._router.load()
            except ShardUnavailable as error:
                tries += 1
                batch = self._late(batch, error)
                if not batch:
                    return
                await asyncio.sleep(_BACKOFF.delay(min(tries, 8), random.random()))
                continue
            except Exception as error:
                for posted in batch:
                    _fail(posted, error)
                return
            for posted in batch:
                self._put(posted, slot_map.owners[slot_of(posted.letter.id, self._slots)])
            return

    async def _carry(self, shard: str) -> None:
        queue = self._queues[shard]
        tries = 0
        while queue and not self._closed:
            batch: list[_Posted] = []
            size = 0
            while queue and len(batch) < BATCH and size < BATCH_BYTES:
                posted = queue.popleft()
                if not posted.done.done():  # whoever waited may have gone
                    batch.append(posted)
                    size += len(posted.letter.value or b"")
            if not batch:
                continue
            slot_map = None
            try:
                slot_map = await self._router.load()
                absent = await self._hand_over(shard, await self._router.generation(slot_map, shard), batch)
            except MapChanged:
                await self._reload(slot_map)
                await self._route(batch)
                continue
            except ShardUnavailable as error:
                if not isinstance(error, ShardBusy):
                    self._router.failed(shard)
                tries += 1
                left = self._late([*batch, *queue], error)  # also of those that are not among the first
                queue.clear()
                queue.extend(left)
                await asyncio.sleep(_BACKOFF.delay(min(tries, 8), random.random()))
                continue
            except asyncio.CancelledError:
                queue.extendleft(reversed(batch))
                raise
            except Exception as error:
                await self._isolate(shard, batch, error)
                continue
            tries = 0
            self._router.answered(shard)
            for posted in batch:
                _arrived(posted, absent, shard)

    async def _reload(self, stale: object) -> None:
        try:
            await self._router.load(stale=stale)  # type: ignore[arg-type]
        except ShardUnavailable as error:
            log.debug("the slot map cannot be asked for now", extra={"error": str(error)})

    async def _isolate(self, shard: str, batch: Sequence[_Posted], error: Exception) -> None:
        """The shard refuses something in the batch: one by one, so that it costs nobody else."""
        if len(batch) == 1:
            _fail(batch[0], messages.refusal(shard, error))
            return
        slot_map = await self._router.load()
        for posted in batch:
            try:
                absent = await self._hand_over(shard, await self._router.generation(slot_map, shard), [posted])
            except (ShardUnavailable, MapChanged):
                self._queues[shard].append(posted)
            except Exception as refused:
                _fail(posted, messages.refusal(shard, refused))
            else:
                _arrived(posted, absent, shard)

    async def _hand_over(self, shard: str, generation: int, batch: Sequence[_Posted]) -> set[str]:
        pool = self._router.pool(shard)
        watches: dict[str, list[tuple[str, str]]] = {}
        for letter in (posted.letter for posted in batch if posted.letter.topic == WATCH):
            watches.setdefault(told_on(letter.value), []).append((letter.id, letter.key or ""))
        cancels = [p.letter for p in batch if p.letter.topic == CANCEL]
        letters = [p.letter for p in batch if p.letter.topic not in (WATCH, CANCEL)]
        absent: set[str] = set()
        async with pool.connection() as conn:
            if letters:
                absent |= await messages.deliver(pool.shard, conn, generation, letters)
            for topic, pairs in watches.items():
                absent |= await messages.watch(pool.shard, conn, generation, pairs, topic)
            if cancels:
                ids = [letter.id for letter in cancels]
                reasons = [(letter.value or b"").decode() or None for letter in cancels]
                absent |= set(ids) - (await control.cancel(pool.shard, conn, generation, ids, reasons)).keys()
        return absent

    @staticmethod
    def _late(batch: Sequence[_Posted], error: ShardUnavailable) -> list[_Posted]:
        now = _clock()
        for posted in batch:
            if now >= posted.deadline:
                _fail(posted, error)
        return [posted for posted in batch if now < posted.deadline]


def _clock() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one: nothing is sent again long after
    its deadline, when its key may be forgotten."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def told_on(value: bytes | None) -> str:
    """The topic on which a watcher is to be told."""
    return value.decode() if value else AFTER


def _fail(posted: _Posted, error: Exception) -> None:
    if not posted.done.done():
        posted.done.set_exception(error)


def _arrived(posted: _Posted, absent: set[str], shard: str) -> None:
    if posted.done.done():
        return
    id = posted.letter.id
    if id in absent:
        message = f"no workflow has the id {id!r} (looked on shard {shard!r})"
        posted.done.set_exception(WorkflowNotFound(message, workflow_id=id))
    else:
        posted.done.set_result(None)
