"""Questions about many workflows, asked of all shards at once: lists, counts, waiting for several.

A shard that does not answer is named in the answer, and never left out in silence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar

from ..core.cursor import Cursor, Part, advance, encode, resumed
from ..core.query import Order, check_limit, filters, order_of
from ..core.routing import check_id
from ..delivery.router import Router
from ..errors import InvalidInput, ShardBusy, ShardflowError, ShardUnavailable, UsageError
from ..model import ClusterConfig, Counts, Page, Status, Waited, WorkflowInfo
from ..storage import queries
from ..storage.shard import Conn, Shard
from .gathering import Gathering
from .waiter import Waiter

T = TypeVar("T")

#: Workflows in one page at the most.
MOST = 10_000
#: Seconds to wait for a connection to a shard that did not answer the last time.
BRIEFLY = 0.25
#: The share of the pool's timeout for which a list goes on looking for what is rare.
SHARE = 0.5
#: Seconds that a count may take on each shard at least: it reads what it counts.
COUNTING = 30.0

Statuses = Status | str | Iterable[Status | str] | None
Mode = Literal["all", "first"]


class Queries:
    """The part of the client that asks about many workflows."""

    config: ClusterConfig
    _router: Router

    def waiter(self, shard: str) -> Waiter:
        raise NotImplementedError

    async def list(
        self,
        *,
        status: Statuses = None,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        order: Literal["newest", "oldest"] = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """Workflows of all shards in the order in which they were submitted, a page at a time.

        Arguments: `status`, one or several; `name` and `queue`, the workflow's; `since` and `until`, when it was
        submitted, with a time zone, the latter not included; `attributes` that it has, among others; `limit`, from 1
        to 10,000; `cursor`, a former page's, for the next one: with the same filters and order, or without any.

        The page's `cursor` is None where there is no more. A page may have fewer than `limit` where few of very many
        workflows fit. Whatever was there at the first page and fits is on exactly one page. `unreachable` names the
        shards that did not answer: theirs follow on a later page if they are back by then, and the same call asks
        them again. Raises InvalidInput, also for a cursor that belongs to another list.
        """
        place = Cursor(filters(status, name, queue, since, until, attributes), order_of(order))
        if cursor is not None:
            place = resumed(cursor, place.filters, place.order)
        limit = check_limit(limit, MOST)
        deadline = time.monotonic() + self.config.pool.timeout * SHARE
        workflows: tuple[WorkflowInfo, ...] = ()
        while True:
            parts, unreachable = await self._ask_each(partial(_part, place, limit - len(workflows)))
            rows, place, complete = advance(place, parts, unreachable, limit - len(workflows))
            workflows = (*workflows, *(row.item for row in rows))
            if complete or len(workflows) == limit or time.monotonic() >= deadline:
                return Page(workflows, None if complete else encode(place), unreachable)

    async def count(
        self,
        *,
        status: Statuses = None,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        exact: bool = True,
    ) -> Counts:
        """How many workflows there are on all shards: in all, and in each status that was asked for.

        Arguments: as for `list`; `exact`. Every shard counts at one moment of its own, and reads what it counts: a
        million takes a good part of a second. With `exact=False` it takes milliseconds, however many there are: what
        a shard has more than 10,000 of is told by its server's statistics, about right, and named in `rough`. That
        goes by status only. `unreachable` names the shards that are not in the numbers. Raises InvalidInput.
        """
        asked = filters(status, name, queue, since, until, attributes)
        if not exact and asked.of_submission:
            raise InvalidInput("a rough count goes by status only: leave out the other filters or exact=False")
        seconds = max(self.config.pool.timeout, COUNTING)
        answers, away = await self._ask_each(
            lambda shard, conn: (
                queries.count(shard, conn, asked) if exact else queries.count_roughly(shard, conn, asked.statuses)
            ),
            seconds,
        )
        numbers = {s: sum(part[s] for part, _ in answers.values()) for s in asked.statuses or tuple(Status)}
        rough = frozenset[Status]().union(*(about for _, about in answers.values()))
        return Counts(sum(numbers.values()), numbers, away, rough)

    async def wait(self, ids: Iterable[str], *, timeout: float | None = None, mode: Mode = "all") -> Waited:
        """Waits until all of these workflows have ended, or the `first` of them; whatever shards they are on.

        Arguments: `ids`; `timeout` in seconds (None: for ever; 0: only look); `mode`. The answer has what is known of
        those that have `ended`, failed ones among them, and the ids of those still `pending`: nothing is raised for
        time that is over. A shard that is away is waited for, and named where it still is. For a result or an error
        ask the handle (`get`). Raises WorkflowNotFound for an id that is nowhere, InvalidInput.
        """
        if timeout is not None and timeout < 0:
            raise InvalidInput(f"timeout must be 0 or more seconds, or None, not {timeout!r}")
        if mode not in ("all", "first"):
            raise InvalidInput(f"mode must be all or first, not {mode!r}")
        if isinstance(ids, str):
            raise InvalidInput("ids must be several: for one, pass it in brackets")
        wanted = [check_id(id) for id in dict.fromkeys(ids)]
        gathering = Gathering(self._router, self.waiter, wanted, first=mode == "first")
        await gathering.run(timeout)
        ended = {id: gathering.ended[id] for id in wanted if id in gathering.ended}
        return Waited(ended, tuple(id for id in wanted if id not in ended), gathering.away)

    async def _ask_each(
        self, question: Callable[[Shard, Conn], Awaitable[T]], seconds: float | None = None
    ) -> tuple[dict[str, T], dict[str, str]]:
        """The answers of the shards that gave one, and why the others did not."""
        await self._router.load()
        patience = min(self.config.pool.connect_timeout, self.config.pool.timeout)

        async def ask(name: str) -> T | ShardflowError:
            pool = self._router.pool(name)
            try:
                async with pool.connection(
                    patience if self._router.healthy(name) else BRIEFLY, answer=seconds
                ) as conn:
                    answer = await question(pool.shard, conn)
            except UsageError:  # the client is closed
                raise
            except ShardflowError as error:
                if isinstance(error, ShardUnavailable) and not isinstance(error, ShardBusy):
                    self._router.failed(name)
                return error
            self._router.answered(name)
            return answer

        names = [shard.name for shard in self.config.shards]
        found: dict[str, T] = {}
        away: dict[str, str] = {}
        for name, answer in zip(names, await asyncio.gather(*map(ask, names)), strict=True):
            if isinstance(answer, ShardflowError):
                away[name] = str(answer)
            else:
                found[name] = answer
        return found, away


async def _part(place: Cursor, limit: int, shard: Shard, conn: Conn) -> Part[WorkflowInfo]:
    newest = place.order is Order.NEWEST
    return await queries.page(shard, conn, place.filters, newest, place.of(shard.name), limit)
