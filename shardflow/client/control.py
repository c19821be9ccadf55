"""The client's hold on single workflows: cancel, resume, restart, fork, purge; and the same for many at once.

All of it may be asked again when an answer was lost, and the client does so itself for a while.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..core.forking import borrowed, kept
from ..core.retry import Retry
from ..core.routing import check_id, slot_of
from ..delivery.delivery import drawing
from ..delivery.router import Router
from ..delivery.visit import Errand, visit
from ..errors import InvalidInput, ShardflowError, ShardUnavailable, WorkflowConflict, WorkflowNotFound
from ..model import Bulk, ClusterConfig, Page, Status, WorkflowInfo
from ..storage import control, retention
from ..storage.shard import Conn, Shard
from .handle import AsyncHandle
from .queries import Statuses
from .queues import AsyncQueues

if TYPE_CHECKING:
    from .aio import AsyncClient

T = TypeVar("T")

#: Workflows in one page of a bulk operation, and in one transaction.
PAGE, BATCH = 1_000, 200
#: Bytes of the reason of a cancellation at the most.
MAX_REASON = 1_000

_BACKOFF = Retry(attempts=2, initial=0.05, factor=2.0, maximum=1.0, jitter=0.3)
UNFINISHED = tuple(s for s in Status if not s.final)
FINAL = tuple(s for s in Status if s.final)
RESUMABLE = (Status.FAILED, Status.CANCELLED, Status.DEAD)

#: What is done to several workflows of a shard: whether each was there to be changed.
Change = Callable[[Shard, Conn, int, Sequence[str]], Awaitable[dict[str, bool]]]


class Controls:
    """The part of the client that ends workflows and begins them again."""

    config: ClusterConfig
    _router: Router
    list: Callable[..., Awaitable[Page]]
    info: Callable[[str], Awaitable[WorkflowInfo]]

    async def cancel(self, id: str, reason: str | None = None) -> bool:
        """Cancels a workflow and, wherever they are, the children it has started.

        One that waits ends at once; one that runs within about a second: its code, and an `async def` step that goes
        on in it, get asyncio.CancelledError, a step in a thread goes on and what it gives is thrown away. Nothing of
        it is written after its end. Arguments: `id`; `reason`, the message of the error that whoever awaits it gets.
        Answers False where it had ended already. Raises WorkflowNotFound, ShardUnavailable.
        """
        reason = _checked(reason)
        took, again = await self._change(id, lambda s, c, g, ids: control.cancel(s, c, g, ids, [reason]))
        return took or (again and (await self.info(id)).status is Status.CANCELLED)

    async def resume(self, id: str) -> bool:
        """Lets a workflow that failed, was cancelled, or was given up as dead go on from its checkpoints.

        The step that it failed by is tried again, and a time limit begins anew. Who had awaited it has its former
        end: a parent keeps it, workflows that were to run after it have ended. Children that were cancelled with it
        stay cancelled unless they are resumed. Answers False where it has succeeded or is under way. Raises
        WorkflowNotFound, ShardUnavailable.
        """
        took, again = await self._change(id, control.resume)
        return took or (again and not (await self.info(id)).status.final)

    async def restart(self, id: str) -> bool:
        """Runs a workflow that has ended, however, from the beginning: under its id, with its first input.

        What was recorded is forgotten. It starts children of its own again, under new ids; messages that it received
        are gone. Answers False where it is under way. Raises WorkflowNotFound, ShardUnavailable.
        """
        took, again = await self._change(id, lambda s, c, g, ids: control.resume(s, c, g, ids, afresh=True))
        return took or (again and not (await self.info(id)).status.final)

    async def fork(self, id: str, from_step: int = 0, *, new_id: str | None = None) -> AsyncHandle[Any]:
        """A new workflow that has done what another one did before a step, and goes on from there by itself.

        Arguments: `id`; `from_step`, the number of the step that it begins with, as `steps` tells it; `new_id`, the
        idempotency key (default: a new one, on a shard that answers). Version, time limit and attributes are
        the other one's. Of children started before that step it hears the ends, too. Raises WorkflowNotFound,
        InvalidInput, WorkflowConflict where `new_id` belongs to another workflow, ShardUnavailable.
        """
        check_id(id)
        if new_id is not None:
            check_id(new_id)
        found = await self._at(id, lambda shard, conn, _: control.source(shard, conn, id))
        if found is None:
            raise WorkflowNotFound(f"no workflow has the id {id!r}", workflow_id=id)
        target = new_id or drawing(self._router, await self._router.load())()
        steps = []
        children: Sequence[str] = ()
        for step in kept(found.steps, from_step):
            if step.name == "shardflow.start" and step.output is not None:
                output, ids = borrowed(step.output)
                step, children = step._replace(output=output), [*children, *ids]
            steps.append(step)
        former = found.options or {}
        options = {key: former[key] for key in ("version", "timeout") if key in former} | {"forked": [id, from_step]}
        copy = replace(found, steps=steps)
        slot = slot_of(target, self.config.slots)

        async def write(shard: Shard, conn: Conn, generation: int) -> tuple[int, str]:
            wf = await control.fork(shard, conn, generation, target, slot, copy, options, children)
            if wf is None:
                there = await control.source(shard, conn, target)
                if there is None or (there.options or {}).get("forked") != options["forked"]:
                    raise WorkflowConflict(f"the id {target!r} belongs to another workflow", workflow_id=target)
                wf = there.wf
            return wf, shard.name

        wf, name = await self._at(target, write)
        return AsyncHandle(cast("AsyncClient", self), target, wf, name, found.name, None)

    async def purge(self, id: str) -> bool:
        """Deletes a workflow that has ended, with all that is recorded of it. Its id is free then.

        Children that it started stay. Answers False where it has not ended, or somebody is still to be told of its
        end: ask again. Raises WorkflowNotFound, ShardUnavailable.
        """
        check_id(id)
        lost = False

        async def errand(shard: Shard, conn: Conn, generation: int) -> bool:
            nonlocal lost
            try:
                found = await retention.purge(shard, conn, generation, [id], 0.0)
            except ShardUnavailable:
                lost = True
                raise
            if id not in found and not lost:
                raise _unknown(id, shard)
            return found.get(id, True)  # deleted by a try whose answer was lost

        return await self._at(id, errand)

    async def cancel_many(
        self,
        *,
        status: Statuses = UNFINISHED,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """Cancels all workflows that the filters mean, those of `list`; by default whatever has not ended.

        Answers how many had not ended, and which shards did not answer: ask again for these. Raises InvalidInput.
        """
        reason = _checked(reason)
        asked = {"status": status, "name": name, "queue": queue, "since": since, "until": until}
        return await self._change_many(
            asked | {"attributes": attributes}, lambda s, c, g, ids: control.cancel(s, c, g, ids, [reason] * len(ids))
        )

    async def resume_many(
        self,
        *,
        status: Statuses = RESUMABLE,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Bulk:
        """Resumes all workflows that the filters mean, those of `list`; by default whatever failed, was cancelled or
        is dead.

        Answers how many were resumed, and which shards did not answer. Raises InvalidInput.
        """
        asked = {"status": status, "name": name, "queue": queue, "since": since, "until": until}
        return await self._change_many(asked | {"attributes": attributes}, control.resume)

    async def purge_many(
        self,
        *,
        older_than: timedelta | float = 0.0,
        status: Statuses = FINAL,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Bulk:
        """Deletes all workflows that the filters mean, those of `list`, and that ended at least `older_than` ago,
        which is seconds or a timedelta; by default all that have ended.

        Answers how many were deleted, and which shards did not answer. Raises InvalidInput.
        """
        age = older_than.total_seconds() if isinstance(older_than, timedelta) else older_than
        if isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 <= age < math.inf:
            raise InvalidInput(f"older_than must be a timedelta, or seconds from 0, not {older_than!r}")
        if age and until is None:
            until = datetime.now(UTC) - timedelta(seconds=age)  # what was submitted later did not end before
        asked = {"status": status, "name": name, "queue": queue, "since": since, "until": until}
        return await self._change_many(
            asked | {"attributes": attributes}, lambda s, c, g, ids: retention.purge(s, c, g, ids, age)
        )

    @property
    def queues(self) -> AsyncQueues:
        """The queues of the cluster."""
        return AsyncQueues(cast("AsyncClient", self))

    async def _change(self, id: str, change: Change) -> tuple[bool, bool]:
        """Whether the workflow was there to be changed; and whether an answer was lost on the way."""
        check_id(id)
        tries = 0

        async def errand(shard: Shard, conn: Conn, generation: int) -> bool:
            nonlocal tries
            tries += 1
            found = await change(shard, conn, generation, [id])
            if id not in found:
                raise _unknown(id, shard)
            return found[id]

        return await self._at(id, errand), tries > 1

    async def _at(self, id: str, errand: Errand[T]) -> T:
        """Does it at the workflow's shard; again and again for as long as the pool's timeout, where it is away."""
        deadline = time.monotonic() + self.config.pool.timeout
        tries = 0
        while True:
            try:
                return await visit(self._router, lambda slot_map: slot_map.shard_of(id), errand)
            except ShardUnavailable:
                tries += 1
                pause = _BACKOFF.delay(min(tries, 8), random.random())
                if time.monotonic() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)

    async def _change_many(self, asked: dict[str, Any], change: Change) -> Bulk:
        changed = 0
        away: dict[str, str] = {}
        cursor = None
        while True:
            if cursor is None:
                page = await self.list(**asked, order="oldest", limit=PAGE)
            else:  # which brings filters and order along
                page = await self.list(limit=PAGE, cursor=cursor)
            parts: defaultdict[str, list[str]] = defaultdict(list)
            for info in page.workflows:
                if info.shard not in away:
                    parts[info.shard].append(info.id)
            away |= page.unreachable
            for shard, ids in parts.items():
                for at in range(0, len(ids), BATCH):
                    batch = ids[at : at + BATCH]
                    try:
                        found = await self._at(batch[0], partial(_several, change, batch))
                    except ShardflowError as error:
                        away[shard] = str(error)
                        break
                    changed += sum(found.values())
            if page.cursor is None or (page.cursor == cursor and not page.workflows):
                return Bulk(changed, away)
            cursor = page.cursor


async def _several(change: Change, ids: Sequence[str], shard: Shard, conn: Conn, generation: int) -> dict[str, bool]:
    return await change(shard, conn, generation, ids)


def _unknown(id: str, shard: Shard) -> WorkflowNotFound:
    return WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {shard.name!r})", workflow_id=id)


def _checked(reason: str | None) -> str | None:
    if reason is None:
        return None
    try:
        fits = isinstance(reason, str) and "\0" not in reason and len(reason.encode()) <= MAX_REASON
    except UnicodeEncodeError:  # half of a surrogate pair
        fits = False
    if not fits:
        raise InvalidInput(f"reason must be text of up to {MAX_REASON} bytes without NUL, not {reason!r}")
    return reason
