"""Schedules, from the client's side: `client.schedules`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core import schedule
from ..core.codec import CallCodec
from ..core.options import NONE, Options
from ..core.routing import check_name, draw_id, routing_key, slot_of
from ..core.schedule import Definition
from ..definitions import Call, Workflow
from ..delivery.router import Router
from ..delivery.sender import Item, Sender
from ..delivery.submission import make_item
from ..delivery.visit import Errand, T, visit
from ..errors import InvalidInput, ScheduleNotFound, ShardflowError, WorkflowConflict
from ..model import DEFAULT_QUEUE, ScheduleInfo
from ..storage import schedules
from ..storage.shard import Conn, Shard
from .handle import AsyncHandle

if TYPE_CHECKING:
    from .aio import AsyncClient

#: Ticks that one backfill may have.
MOST = 100_000
_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class ScheduleList:
    """Schedules in the order of their names; `unreachable`: shard → why it did not answer."""

    schedules: list[ScheduleInfo]
    unreachable: dict[str, str] = field(default_factory=dict)


class AsyncSchedules:
    """Makes, shows and controls schedules; `AsyncClient.schedules`."""

    def __init__(self, client: AsyncClient, router: Router, sender: Sender) -> None:
        self._client = client
        self._router = router
        self._sender = sender

    async def create(
        self,
        name: str,
        when: str | timedelta | float,
        workflow: Workflow[..., Any] | str,
        args: Sequence[Any] = (),
        *,
        tz: str = "UTC",
        missed: str = "skip",
        overlap: str = "allow",
        options: Options = NONE,
        pass_time: bool = False,
        paused: bool = False,
        replace: bool = False,
    ) -> ScheduleInfo:
        """Makes a schedule; the same again changes nothing.

        Arguments: `when`, a cron expression, or an interval as "every 90s", timedelta or seconds; `workflow`, or its
        stored name; `args` for it, before which it gets the tick's time where it cannot be called without, or, known
        by name only, with `pass_time`; `tz`, `missed`, `overlap`, `options`: see `App.schedule`; `paused` from the
        start; `replace`: change the one that there is. Raises ScheduleConflict where there is another one of that
        name, InvalidInput, UsageError, ShardUnavailable where the name's shard does not answer.
        """
        if isinstance(workflow, Workflow):
            options = options.changed(
                version=options.version or workflow.version, timeout=options.timeout or workflow.timeout
            )
            target = (workflow.name, workflow.queue, workflow.codec)
        elif isinstance(workflow, str):
            target = (check_name("workflow", workflow), DEFAULT_QUEUE, CallCodec(_any, codecs=self._client.codecs))
        else:
            raise InvalidInput(
                "a schedule runs a workflow (a function with @app.workflow) or its name, not"
                f" {type(workflow).__name__}"
            )
        told = pass_time if isinstance(workflow, str) else None
        limits = self._client.config.payload
        made = schedule.define(name, when, tz, *target, args, options, missed, overlap, told, limits)

        async def errand(shard: Shard, conn: Conn, generation: int) -> None:
            slot = slot_of(made.name, self._client.config.slots)
            await schedules.create(shard, conn, generation, slot, made, paused=paused, replacing=replace)

        await self._at(made.name, errand)
        return await self.get(made.name)

    async def get(self, name: str) -> ScheduleInfo:
        """A schedule, and when it ticks next. Raises ScheduleNotFound."""
        return (await self._find(name))[1]

    async def list(self) -> ScheduleList:
        """All schedules. A shard that does not answer is named in the answer."""
        slot_map = await self._router.load()
        found: list[ScheduleInfo] = []
        unreachable: dict[str, str] = {}

        async def ask(name: str) -> None:
            pool = self._router.pool(name)
            try:
                async with pool.connection() as conn:
                    found.extend(await schedules.all_schedules(pool.shard, conn))
            except ShardflowError as error:
                unreachable[name] = str(error)

        await asyncio.gather(*(ask(name) for name in sorted(set(slot_map.owners))))
        return ScheduleList(sorted(found, key=lambda info: info.name), dict(sorted(unreachable.items())))

    async def pause(self, name: str) -> None:
        """From now on it does not tick; what it has started goes on. Raises ScheduleNotFound."""
        await self._change(name, partial(schedules.set_paused, name=name, paused=True))

    async def resume(self, name: str) -> None:
        """It goes on with its next tick; those of the pause do not come. Raises ScheduleNotFound."""
        await self._change(name, partial(schedules.set_paused, name=name, paused=False))

    async def delete(self, name: str) -> None:
        """Deletes a schedule; the workflows that it has started go on.

        Raises ScheduleNotFound, ScheduleConflict for one that is in the code of workers that run.
        """
        await self._change(name, partial(schedules.delete, name=name))

    async def trigger(self, name: str, *, id: str | None = None) -> AsyncHandle[Any]:
        """Runs a schedule's workflow now, beside its ticks, paused or not; the time that it gets is the shard's
        present one.

        Arguments: `id`, the idempotency key (default: a new one). Raises ScheduleNotFound, WorkflowConflict.
        """
        made, _, now = await self._find(name)
        try:
            return (await self._submit(made, [(id or await self._draw(name), now.replace(microsecond=0))]))[0]
        except WorkflowConflict:
            if id is None or not made.pass_time:
                raise
            found = await self._client.get(id)  # of the same call at another time its time is another
            if found.name != made.workflow:
                raise
            return found

    async def backfill(self, name: str, start: datetime, end: datetime) -> Sequence[AsyncHandle[Any]]:
        """Runs the ticks from `start` until before `end`, paused or not; those that have run already do not run
        again.

        Arguments: times with a time zone. After an error call it again: nothing runs twice. Raises ScheduleNotFound,
        InvalidInput.
        """
        made, _, _ = await self._find(name)
        ticks = schedule.between(made.timing, start, end, MOST)
        handles: list[AsyncHandle[Any]] = []
        for first in range(0, len(ticks), _BATCH):
            part = ticks[first : first + _BATCH]
            handles += await self._submit(made, [(schedule.tick_id(name, tick), tick) for tick in part])
        return handles

    async def _submit(self, made: Definition, ticks: Sequence[tuple[str, datetime]]) -> Sequence[AsyncHandle[Any]]:
        items = [self._item(made, id, tick) for id, tick in ticks]
        await self._sender.send(items)
        return [AsyncHandle(self._client, i.id, i.wf, i.shard, i.name, None) for i in items]

    def _item(self, made: Definition, id: str, tick: datetime) -> Item:
        call: Call[Any] = Call(made.workflow, options=schedule.options_of(made, id))
        item = make_item(call, self._client.config.slots, None)
        item.codecs = self._client.codecs
        item.input = schedule.input_of(made, tick, item.codecs, self._client.config.payload)
        return item

    async def _draw(self, name: str) -> str:
        slot_map = await self._router.load()
        choice = self._router.choice(slot_map)
        prefix = f"schedule:{name}:"
        unique = draw_id(
            time.time_ns() // 1_000_000,
            random.SystemRandom().getrandbits,
            lambda drawn: (
                slot_map.shard_of(prefix + drawn) in choice or routing_key(prefix + drawn) != prefix + drawn
            ),
        )
        return prefix + unique

    async def _find(self, name: str) -> tuple[Definition, ScheduleInfo, datetime]:
        async def errand(shard: Shard, conn: Conn, _: int) -> tuple[Definition, ScheduleInfo, datetime] | None:
            return await schedules.find(shard, conn, name)

        found = await self._at(name, errand)
        if found is None:
            raise ScheduleNotFound(f"there is no schedule named {name!r}")
        return found

    async def _change(self, name: str, errand: Errand[bool]) -> None:
        if not await self._at(name, errand):
            raise ScheduleNotFound(f"there is no schedule named {name!r}")

    async def _at(self, name: str, errand: Errand[T]) -> T:
        check_name("schedule", name, schedule.MAX_NAME)
        return await visit(self._router, lambda slot_map: slot_map.shard_of(name), errand)


def _any(*args: Any, **kwargs: Any) -> Any:
    """Stands for the function of a workflow that is known by name only."""
