"""Brings submissions to their shards, through stale maps and shards that are away.

What is certain not to have been sent may get another id, if its id is ours to choose; what may have been sent is
only ever sent again to the same shard under the same id, where a repetition is harmless.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.codec import DEFAULT
from ..core.codecs import Codecs
from ..core.retry import Retry
from ..core.routing import slot_of
from ..core.slotmap import SlotMap
from ..core.topics import CHILD
from ..errors import (
    MapChanged,
    SerializationError,
    ShardBusy,
    ShardflowError,
    ShardReadOnly,
    ShardUnavailable,
    SubmitUncertain,
    WorkflowConflict,
)
from ..model import ClusterConfig
from ..storage import bell, submissions
from ..storage.messages import watch
from ..storage.shard import Conn, Shard
from ..storage.submissions import More
from .router import Router

#: Pauses between tries against a shard that does not answer, in seconds.
_BACKOFF = Retry(attempts=2, initial=0.05, factor=2.0, maximum=1.0, jitter=0.3)
#: Seconds to wait for a connection before an id of our own choice is drawn anew for another shard.
REDRAW_AFTER = 0.5
#: What a slow server takes in a second, for the time that it is given: workflows, and bytes of their inputs.
SLOW_ROWS = 2_000
SLOW_BYTES = 1_000_000


@dataclass(slots=True)
class Item:
    """A submission under way. `draw` gives another id where it is ours to choose; `wf` and `shard` are answers;
    `codecs` made the input."""

    id: str
    name: str
    queue: str
    slot: int
    input: bytes
    draw: Callable[[], str] | None = None
    priority: int = 0
    more: More | None = None
    sent: bool = False
    wf: int = field(default=0)
    shard: str = ""
    codecs: Codecs = DEFAULT


class Sender:
    """Sends items by the router's map.

    Arguments: `router`; `config`, the cluster's, whose `pool.timeout` limits how long one send tries, in seconds.
    """

    def __init__(self, router: Router, config: ClusterConfig) -> None:
        self._router = router
        self._timeout = config.pool.timeout
        self._slots = config.slots

    async def send(self, items: Sequence[Item]) -> None:
        """Submits all and fills in `wf` and `shard`; returns when all are committed.

        Raises ShardUnavailable (nothing of that shard's part was written), SubmitUncertain, or WorkflowConflict; the
        other shards' parts are submitted nevertheless.
        """
        await self._route(items, time.monotonic() + self._timeout)

    async def _route(self, items: Sequence[Item], deadline: float) -> None:
        slot_map = await self._router.load()
        parts: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            item.shard = slot_map.owners[item.slot]
            parts[item.shard].append(item)
        if len(parts) == 1:
            await self._deliver(items[0].shard, items, deadline)
            return
        results = await asyncio.gather(
            *(self._deliver(shard, part, deadline) for shard, part in parts.items()), return_exceptions=True
        )
        failures = [r for r in results if isinstance(r, BaseException)]
        if failures:
            raise failures[0]

    async def _deliver(self, shard: str, items: Sequence[Item], deadline: float) -> None:
        """One shard's part, tried again until the deadline."""
        tries = 0
        while True:
            try:
                slot_map = await self._router.load()
                try:
                    await self._try(slot_map, shard, items)
                    self._router.answered(shard)
                    return
                except MapChanged:
                    # Nothing was written: the new map may send the items elsewhere.
                    await self._router.load(stale=slot_map)
                    if time.monotonic() >= deadline:
                        raise
                    await self._route(items, deadline)
                    return
            except (ShardUnavailable, MapChanged) as error:
                if isinstance(error, ShardUnavailable) and not isinstance(error, ShardBusy):
                    self._router.failed(shard)
                    if _free(items) and self._router.choice(slot_map) - {shard}:
                        self._redraw(items)
                        await self._route(items, deadline)
                        return
                tries += 1
                pause = _BACKOFF.delay(min(tries, 8), random.random())
                if time.monotonic() + pause >= deadline:
                    raise self._gave_up(shard, items, error) from error
                await asyncio.sleep(pause)

    async def _try(self, slot_map: SlotMap, shard: str, items: Sequence[Item]) -> None:
        pool = self._router.pool(shard)
        generation = await self._router.generation(slot_map, shard)
        size = sum(len(item.input) for item in items)
        seconds = self._timeout + len(items) / SLOW_ROWS + size / SLOW_BYTES
        wait = min(REDRAW_AFTER, self._timeout) if _free(items) else None
        async with pool.connection(wait, answer=seconds) as conn:
            made: dict[str, int] | None = None
            try:
                made = await submissions.submit(pool.shard, conn, generation, items, seconds)
                bell.ring_near(pool.shard)
                if len(made) == len(items):  # as mostly: all of them are new, and none is there twice
                    for item in items:
                        item.wf = made[item.id]
                    return
                there = [item.id for item in items if item.id not in made]
                known = await submissions.existing(pool.shard, conn, there) if there else {}
                if len(made) + len(known) < len(items):
                    short = [i for i in items if i.id not in made and i.id not in known]
                    items = [i for i in items if i.id in made or i.id in known]
                    await _take_active(pool.shard, conn, short)
                if there:
                    await self._tell_parents(pool.shard, conn, generation, items, made)
            except ShardUnavailable as error:
                # A server that is busy or takes no writes has rolled back; of a lost connection nobody knows.
                if made is not None or not isinstance(error, ShardBusy | ShardReadOnly):
                    for item in items:
                        item.sent = True
                raise
        conflicts = []
        for item in items:
            if item.id in made:  # the first of this id is the one that was written
                known.setdefault(item.id, (made[item.id], item.name, item.input))
            item.wf, name, input = known[item.id]
            differs = difference(item, name, input)
            if differs is not None:
                conflicts.append((item, differs))
        if conflicts:
            item, differs = conflicts[0]
            more = f" (and {len(conflicts) - 1} more like it)" if len(conflicts) > 1 else ""
            raise conflict(item, f"{differs}{more}")

    @staticmethod
    async def _tell_parents(
        shard: Shard, conn: Conn, generation: int, items: Sequence[Item], made: Mapping[str, int]
    ) -> None:
        """A child that was there already has to know its parent nevertheless."""
        found = [(i.id, i.more.parent) for i in items if i.id not in made and i.more and i.more.parent is not None]
        if found:
            await watch(shard, conn, generation, found, CHILD)

    def _redraw(self, items: Sequence[Item]) -> None:
        for item in items:
            assert item.draw is not None
            item.id = item.draw()
            item.slot = slot_of(item.id, self._slots)

    @staticmethod
    def _gave_up(shard: str, items: Sequence[Item], error: ShardflowError) -> ShardflowError:
        doubtful = tuple(item.id for item in items if item.sent)
        if not doubtful:
            return ShardUnavailable(f"{error}; {len(items)} workflow(s) were not submitted to it", shard=shard)
        return SubmitUncertain(
            f"shard {shard!r}: the connection was lost on the way and did not come back; {len(doubtful)} workflow(s),"
            f" the first {doubtful[0]!r}, may have been accepted: submit them again with the same ids",
            shard=shard,
            ids=doubtful,
        )


def conflict(item: Item, differs: str) -> WorkflowConflict:
    """The exception for an id that another submission has."""
    return WorkflowConflict(
        f"workflow id {item.id!r} was submitted before with {differs}: use another id, or get() the first",
        workflow_id=item.id,
    )


def difference(item: Item, name: str, input: bytes) -> str | None:
    """What was submitted under the id before, where it was not the same. Equal inputs need not have equal bytes."""
    if name != item.name:
        return f"name {name!r} instead of {item.name!r}"
    try:
        return None if item.codecs.same(input, item.input, what="the input") else "another input"
    except SerializationError as error:
        return f"an input that cannot be compared ({error})"


async def _take_active(shard: Shard, conn: Conn, items: Sequence[Item]) -> None:
    """Makes of items whose dedup_key another workflow has that one. Raises WorkflowConflict where that is not wanted,
    ShardBusy where it has just ended: they are to be tried again."""
    keys = {item.more.dedup for item in items if item.more and item.more.dedup is not None}
    found = await submissions.active(shard, conn, list(keys)) if keys else {}
    for item in items:
        key = item.more.dedup if item.more else None
        if key is None or key not in found:
            raise ShardBusy(
                f"shard {shard.name!r}: the workflow with dedup_key {key!r} has just ended", shard=shard.name
            )
        id, wf, name = found[key]
        if name != item.name or (item.more and item.more.reject):
            raise WorkflowConflict(
                f"workflow {id!r} ({name}) is active with dedup_key {key!r}: wait until it has ended",
                workflow_id=id,
            )
        item.id, item.wf = id, wf


def _free(items: Sequence[Item]) -> bool:
    """Whether other ids may be drawn: they are ours to choose, and none of them may have been accepted."""
    return all(item.draw is not None and not item.sent for item in items)
