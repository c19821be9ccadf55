"""Runs the schedules of the shards that this worker has leases on.

A tick is decided in one transaction on the schedule's shard, submitted under an id derived from it wherever that
belongs, and forgotten only then: whoever dies in between, another ticker submits the same again, which changes
nothing. A tick whose shard is away waits for it alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from ..app import App
from ..core import cron, schedule
from ..core.codec import DEFAULT
from ..core.routing import slot_of
from ..core.schedule import Definition, Due
from ..definitions import Call
from ..delivery.router import Router
from ..delivery.sender import Item, Sender
from ..delivery.submission import make_item
from ..delivery.visit import Errand, visit
from ..errors import ScheduleConflict, ShardBusy, ShardflowError, ShardUnavailable, WorkflowConflict
from ..model import ClusterConfig
from ..storage import schedules
from ..storage.ending import end
from ..storage.schedules import Candidate, Look, Taken
from ..storage.shard import Conn, Shard

T = TypeVar("T")

log = logging.getLogger("shardflow.worker")

#: Seconds between two times at which what was seen of a shard counts.
POLL = 1.0
#: Seconds between two times that a worker says which schedules it has in its code.
CONFIRM = schedules.STALE / 3
#: The same after it failed.
SOON = 5.0
#: Seconds beyond the time that a submit tries, after which another ticker may take the tick.
HOLD = 5.0
#: Seconds between two turns at the least: what is due may be locked by another ticker.
BREATH = 0.1
#: Seconds over which the tickers of a shard come, so that most of them find that another one has done it.
SPREAD = 0.1
#: Seconds until a tick that could not be submitted is tried again: the first time, and at the most.
AGAIN, RARELY = 1.0, 60.0


class _Desk:
    """What is known of one shard: when (event loop's clock) to look again and to confirm, and what is under way."""

    def __init__(self) -> None:
        self.look_at = 0.0
        self.confirm_at = 0.0
        self.alarm: asyncio.TimerHandle | None = None
        self.turn: asyncio.Task[None] | None = None
        self.again = False


class Ticker:
    """One worker's part in the schedules of its shards.

    Arguments: `config`, the cluster's; `app`, whose schedules are registered; `router` and `sender`, of the worker.
    """

    def __init__(self, config: ClusterConfig, app: App, router: Router, sender: Sender) -> None:
        self._config = config
        self._app = app
        self._router = router
        self._sender = sender
        self._started_at = datetime.now(UTC)
        self._desks: dict[str, _Desk] = defaultdict(_Desk)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def saw(self, shard: Shard, seen: Look) -> None:
        """To be told about every second, while the worker has a lease on the shard, how it stands there."""
        desk, now = self._desks[shard.name], asyncio.get_running_loop().time()
        if self._closed or now < desk.look_at:
            return
        if now >= desk.confirm_at and self._app.schedules:
            desk.confirm_at = now + CONFIRM
            self._spawn(self._confirm(shard))  # what is decided next is to know of it
        else:
            self._arm(shard, seen)

    async def close(self, grace: float = 2.0) -> None:
        """Ends what is under way, after `grace` seconds at the latest; the ticks are left to others."""
        self._closed = True
        for desk in self._desks.values():
            if desk.alarm is not None:
                desk.alarm.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            await end(late)

    def _arm(self, shard: Shard, seen: Look, soonest: float = 0.0) -> None:
        """Sets the alarm for what comes before the next look, in `soonest` seconds at the earliest."""
        desk, loop = self._desks[shard.name], asyncio.get_running_loop()
        times = [at for at in (seen.schedule_at, seen.tick_at) if at is not None]
        desk.look_at = loop.time() + POLL * 0.9
        if times and (delay := (min(times) - seen.now).total_seconds()) < 2 * POLL:
            if desk.alarm is not None:
                desk.alarm.cancel()
            delay = max(soonest, delay) + random.uniform(0.0, SPREAD)
            desk.alarm = loop.call_later(delay, self._ring, shard)

    def _ring(self, shard: Shard) -> None:
        desk = self._desks[shard.name]
        if desk.turn is not None and not desk.turn.done():
            desk.again = True
        elif not self._closed:
            desk.turn = self._spawn(self._turns(shard))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._watched(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watched(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """What fails here is done again after the next look."""
        try:
            await coroutine
        except ShardflowError as error:
            log.debug("schedules: a shard does not answer", extra={"error": str(error)})
        except Exception:
            log.exception("the schedules failed; they are tried again")

    # -- which schedules the code has

    async def _confirm(self, shard: Shard) -> None:
        """Registers those schedules of the app that belong to the shard."""
        slot_map = await self._router.load()
        here = [made for made in self._app.schedules.values() if slot_map.shard_of(made.name) == shard.name]
        if not here:
            return

        async def errand(shard: Shard, conn: Conn, _: int) -> set[str]:
            return await schedules.confirmed(shard, conn, here, self._started_at, CONFIRM / 2)

        try:
            known = await self._on(shard, errand)
            for made in here:
                if made.name not in known:
                    await self._register(shard, made)
        except BaseException:
            self._desks[shard.name].confirm_at = asyncio.get_running_loop().time() + SOON
            raise

    async def _register(self, shard: Shard, made: Definition) -> None:
        async def errand(shard: Shard, conn: Conn, generation: int) -> str | None:
            slot = slot_of(made.name, self._config.slots)
            return await schedules.register(shard, conn, generation, slot, made, self._started_at)

        try:
            change = await visit(self._router, lambda slot_map: slot_map.shard_of(made.name), errand)
        except ScheduleConflict as error:
            log.error("a schedule of the app cannot be registered", extra={"error": str(error)})
            return
        if change is not None:
            log.info("schedule registered", extra={"schedule": made.name, "spec": made.spec, "change": change})
            self._ring(shard)

    # -- deciding

    async def _turns(self, shard: Shard) -> None:
        desk = self._desks[shard.name]
        desk.again = True
        while desk.again and not self._closed:
            desk.again = False
            await self._turn(shard)

    async def _turn(self, shard: Shard) -> None:
        """Decides what is due, and submits what is decided; that goes on beside the next turn."""

        async def errand(shard: Shard, conn: Conn, generation: int) -> list[Taken]:
            if not (seen := await schedules.look(shard, conn)).due:
                self._arm(shard, seen)
                return []
            await schedules.decide(shard, conn, generation, _choose)
            taken = await schedules.take(shard, conn, generation, self._config.pool.timeout + HOLD)
            self._arm(shard, await schedules.look(shard, conn), BREATH)
            return taken

        taken = await self._on(shard, errand)
        slot_map = await self._router.load()
        parts: dict[str, list[Taken]] = defaultdict(list)
        for tick in taken:
            parts[slot_map.shard_of(_id(tick))].append(tick)
        for target, ticks in parts.items():
            self._spawn(self._submit(shard, target, ticks))

    async def _on(self, shard: Shard, errand: Errand[T]) -> T:
        return await visit(self._router, lambda _: shard.name, errand)

    # -- submitting

    async def _submit(self, shard: Shard, target: str, ticks: Sequence[Taken]) -> None:
        """Submits ticks that belong to one shard, and says so on the schedules' shard."""
        items: list[tuple[Taken, Item]] = []
        failed: list[Taken] = []
        for tick in ticks:
            try:
                if await self._overlaps(tick):
                    await self._skip(shard, tick)
                else:
                    items.append((tick, self._item(tick)))
            except (ShardflowError, ValueError) as error:
                self._tell(tick, error)
                failed.append(tick)
        if items and not self._router.healthy(target):
            failed += [tick for tick, _ in items]
            items = []
        if items:
            try:
                await self._sender.send([item for _, item in items])
            except WorkflowConflict as error:
                log.warning("a tick's workflow was submitted before as another one", extra={"error": str(error)})
            except ShardflowError as error:
                self._tell(items[0][0], error)
        done = [(tick, item.id) for tick, item in items if item.wf]
        failed += [tick for tick, item in items if not item.wf]
        await self._write(shard, done, failed)

    async def _write(self, shard: Shard, done: Sequence[tuple[Taken, str]], failed: Sequence[Taken]) -> None:
        later = [(tick, min(AGAIN * 2.0 ** min(tick.tries, 10), RARELY)) for tick in failed]

        async def errand(shard: Shard, conn: Conn, generation: int) -> None:
            if done:
                await schedules.submitted(shard, conn, generation, done)
            if later:
                await schedules.put_off(shard, conn, generation, later)

        await self._on(shard, errand)

    async def _overlaps(self, tick: Taken) -> bool:
        """Whether the schedule wants no overlap and the workflow of its newest tick has not ended."""
        if tick.definition.overlap == "allow" or tick.last_id is None or tick.last_id == _id(tick):
            return False
        name = (await self._router.load()).shard_of(tick.last_id)
        if not self._router.healthy(name):  # to be told once is enough, as all the others wait meanwhile
            raise ShardUnavailable(f"shard {name!r}, which has the workflow of the tick before, is away", shard=name)
        pool = self._router.pool(name)
        try:
            async with pool.connection() as conn:
                ended = await schedules.ended(pool.shard, conn, tick.last_id)
        except ShardUnavailable as error:
            if not isinstance(error, ShardBusy):
                self._router.failed(name)
            raise
        self._router.answered(name)
        return not ended

    async def _skip(self, shard: Shard, tick: Taken) -> None:
        log.info(
            "a tick is left out: the workflow of the one before has not ended",
            extra={"schedule": tick.definition.name, "tick": tick.at.isoformat(), "workflow": tick.last_id},
        )
        await self._on(shard, lambda shard, conn, generation: schedules.skipped(shard, conn, generation, tick))

    def _item(self, tick: Taken) -> Item:
        made = tick.definition
        call: Call[Any] = Call(made.workflow, options=schedule.options_of(made, _id(tick)))
        item = make_item(call, self._config.slots, None)
        known = self._app.workflows.get(made.workflow)
        item.codecs = DEFAULT if known is None else known.codec.codecs
        item.input = schedule.input_of(made, tick.at, item.codecs)
        return item

    def _tell(self, tick: Taken, error: Exception) -> None:
        log.warning(
            "a tick could not be submitted; it is tried again",
            extra={"schedule": tick.definition.name, "tick": tick.at.isoformat(), "error": str(error)},
        )


def _id(tick: Taken) -> str:
    return schedule.tick_id(tick.definition.name, tick.at)


def _choose(found: Candidate) -> Due:
    """Decides one schedule; one that cannot be decided here must not keep the others."""
    extra = {"schedule": found.name, "spec": found.spec, "since": found.decided_to.isoformat()}
    if found.stale:
        log.warning("a schedule rests: no worker has it in its code any more", extra=extra)
        return Due((), found.decided_to, None)
    try:
        timing = cron.parse(found.spec, found.zone)
    except ValueError as error:
        log.error("a schedule cannot be understood here", extra={**extra, "error": str(error)})
        return Due((), found.decided_to, found.now + timedelta(seconds=RARELY))
    due = schedule.due(timing, found.decided_to, found.now, found.missed)
    if found.missed != "all" and due.decided_to - found.decided_to > schedule.GRACE:
        first = timing.after(found.decided_to)
        if first is not None and first < found.now - schedule.GRACE:
            log.warning("ticks were missed: no worker was there", extra={**extra, "missed": found.missed})
    return schedule.without_overlap(due, found.busy) if found.overlap == "skip" else due
