"""Delivers what this worker's turns have left in the outbox of a shard, and what dead holders and clients have left
there.

An entry is deleted, with a later turn, when it has arrived; until then whoever holds the lease delivers it again,
which is harmless because it has a key. The relay may die between any two statements.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..core.failure import to_json
from ..core.topics import CANCEL, SUBMIT, WATCH
from ..delivery import Delivery
from ..delivery.courier import told_on
from ..errors import ShardflowError, WorkflowConflict, WorkflowNotFound
from ..model import ErrorInfo
from ..storage import post
from ..storage.messages import Letter
from ..storage.post import Told
from ..storage.shard import Shard

log = logging.getLogger("shardflow.worker")

#: Entries under way to one shard at the most; what is beyond stays in the outbox until there is room. Each has room
#: of its own, so that a shard which is away for hours holds up none of the others. A large entry counts for several.
MOST = 10_000
LARGE = 8 << 10
#: Seconds for which a workflow that is to be watched may be missing: it may just be submitted.
PATIENCE = 60.0
#: Seconds after which what could not be delivered is tried again: the first time, and at the most.
AGAIN, SELDOM = 1.0, 60.0


class Relay:
    """The outbox of one lease.

    Arguments: `shard`; `delivery`, the worker's; `relayed`, called with entries that have arrived; `nudge`, called
    when the outbox is to be read.
    """

    def __init__(
        self,
        shard: Shard,
        delivery: Delivery,
        relayed: Callable[[list[int]], None],
        nudge: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._delivery = delivery
        self._relayed = relayed
        self._nudge = nudge
        self._learning: asyncio.Task[None] | None = None
        self._under_way: dict[int, asyncio.Future[None]] = {}
        self._missing: dict[int, float] = {}
        self._arrived: list[int] = []
        self._behind: int | None = None
        self._thorough = False
        self._stuck: set[int] = set()
        self._put_off: dict[int, tuple[float, float]] = {}
        self._load: Counter[str] = Counter()
        self._full: set[str] = set()
        self._filling: set[str] = set()

    def tell(self, told: Iterable[Told]) -> None:
        """Entries that have been written or taken over and are to be delivered now."""
        known = self._delivery.router.known
        for entry in told:
            if known is None:
                self._learn()
                return
            if not (entry.entry in self._under_way or entry.entry in self._stuck or self._is_put_off(entry.entry)):
                shard = known.shard_of(entry.target)
                if self._load[shard] >= MOST:
                    self._full.add(shard)
                else:
                    self._post(entry, shard)

    @property
    def has_room(self) -> bool:
        """Whether there is no shard with as much under way as may be."""
        return not self._full

    @property
    def wanted(self) -> int | None:
        """The entry behind which the outbox is to be read; None where all is known that there is room for."""
        return self._behind

    def page(self, after: int, rows: Sequence[Told]) -> None:
        """What was read there."""
        self.tell(rows)
        if self._behind == after:
            full = not self._thorough and self._filling <= self._full
            more = len(rows) >= post.PAGE or sum(row.size for row in rows) >= post.PAGE_BYTES
            self._behind = rows[-1].entry if more and not full else None
            if self._behind is None:
                self._thorough = False
                self._filling.clear()

    def forget(self) -> None:
        """The lease is not held any more: somebody else delivers what is left."""
        for future in self._under_way.values():
            future.cancel()
        self._under_way.clear()
        self._arrived.clear()
        self._missing.clear()
        self._put_off.clear()
        self._load.clear()
        self._full.clear()

    def stuck(self, entries: Iterable[int]) -> None:
        """These have arrived and cannot be deleted."""
        self._stuck.update(entries)

    def behind(self) -> None:
        """There may be entries that this process does not know."""
        self._behind, self._thorough = 0, True
        self._nudge()

    def _learn(self) -> None:
        """Asks for the slot map, and reads the outbox again."""

        async def ask() -> None:
            try:
                await self._delivery.router.load()
            except ShardflowError:
                self._again()
            else:
                self.behind()

        if self._learning is None or self._learning.done():
            self._learning = asyncio.ensure_future(ask())

    def _post(self, entry: Told, shard: str) -> None:
        letter = Letter(entry.target, entry.topic, entry.key, entry.value, entry.error)
        if entry.topic == SUBMIT:
            future = self._delivery.relay(entry.value or b"")
        else:
            future = self._delivery.courier.post(letter)
        self._under_way[entry.entry] = future
        self._load[shard] += _size(entry)
        future.add_done_callback(lambda done: self._done(entry, shard, done))

    def _done(self, entry: Told, shard: str, done: asyncio.Future[None]) -> None:
        if self._under_way.get(entry.entry) is not done:
            return
        del self._under_way[entry.entry]
        self._load[shard] -= _size(entry)
        if shard in self._full and self._load[shard] < MOST / 2:
            self._full.discard(shard)
            self._filling.add(shard)
            self._behind = 0
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, WorkflowNotFound):
            if entry.topic in (WATCH, CANCEL) and not self._given_up(entry):
                self._again()
                return
            log.warning(
                "nobody is there to be told",
                extra={"shard": self._shard.name, "workflow": entry.target, "topic": entry.topic},
            )
        elif isinstance(error, WorkflowConflict):
            log.error(
                "what was submitted in a transaction has the id of another workflow, and is dropped",
                extra={"shard": self._shard.name, "workflow": entry.target, "error": str(error)},
            )
        elif error is not None:
            log.error(
                "an entry of the outbox cannot be delivered; trying again",
                extra={"shard": self._shard.name, "workflow": entry.target, "error": str(error)},
            )
            self._put_off[entry.entry] = self._later(entry.entry)
            return
        self._missing.pop(entry.entry, None)
        self._put_off.pop(entry.entry, None)
        if not self._arrived:
            asyncio.get_running_loop().call_soon(self._report)
        self._arrived.append(entry.entry)

    def _again(self, seconds: float = AGAIN) -> None:
        """What is in the outbox is read again soon."""
        asyncio.get_running_loop().call_later(seconds, self.behind)

    def _later(self, entry: int) -> tuple[float, float]:
        """When an entry that was refused is tried again, and the pause until then, twice the last one."""
        pause = min(self._put_off.get(entry, (0.0, AGAIN / 2))[1] * 2, SELDOM)
        self._again(pause)
        return time.monotonic() + pause, pause

    def _is_put_off(self, entry: int) -> bool:
        return bool(self._put_off) and time.monotonic() < self._put_off.get(entry, (0.0, 0.0))[0] - AGAIN / 4

    def _given_up(self, entry: Told) -> bool:
        """Whether the workflow to be watched or cancelled has been missing for so long that its watcher is told."""
        since = self._missing.setdefault(entry.entry, time.monotonic())
        if time.monotonic() - since < PATIENCE:
            return False
        lost = ErrorInfo("shardflow.errors.WorkflowNotFound", f"no workflow has the id {entry.target!r}")
        if entry.topic == WATCH:
            topic = told_on(entry.value)
            self._delivery.courier.post(Letter(entry.key or "", topic, entry.target, None, to_json(lost)))
        return True

    def _report(self) -> None:
        arrived, self._arrived = self._arrived, []
        if arrived:
            self._relayed(arrived)


def _size(entry: Told) -> int:
    return 1 + len(entry.value or b"") // LARGE
