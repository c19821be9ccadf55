"""The client: submits workflows to the shards their ids belong to, and waits for results."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from .. import config as configuration
from ..core.codec import DEFAULT
from ..core.codecs import Codecs
from ..core.graph import levels
from ..core.options import NONE, Options
from ..core.routing import check_id
from ..definitions import Call, Workflow
from ..delivery.delivery import Delivery, drawing
from ..delivery.sender import Item
from ..delivery.submission import make_item, untyped
from ..errors import WorkflowNotFound
from ..model import ClusterConfig, StepInfo, WorkflowInfo
from ..storage import submissions
from .control import Controls
from .handle import AsyncHandle
from .messaging import Messaging
from .queries import Queries
from .schedules import AsyncSchedules
from .transactional import Transactional
from .waiter import Waiter

T = TypeVar("T")

OPTION_NAMES = frozenset(field.name for field in fields(Options))


class AsyncClient(Queries, Messaging, Controls):
    """Submits workflows and asks for their results; for use in one event loop.

    Arguments: `config`, the cluster's (see `from_config` for a file); `codecs`, an app's, for what is not typed by
    one of its workflows: messages, events, workflows known by name only. Use as `async with`, or call `close`.
    """

    def __init__(self, config: ClusterConfig, *, codecs: Codecs | None = None) -> None:
        self.config = config
        self.codecs = DEFAULT if codecs is None else codecs
        self._untyped = untyped(self.codecs)
        self.delivery = Delivery(config)
        self._router = self.delivery.router
        self._sender = self.delivery.sender
        self._waiters: dict[str, Waiter] = {}
        self.cluster_id: str | None = None

    @classmethod
    def from_config(cls, path: str | Path, *, codecs: Codecs | None = None) -> Self:
        """A client for the cluster that the YAML file describes. Raises ConfigError."""
        return cls(configuration.load(path), codecs=codecs)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; whoever waits for a result is cancelled."""
        await asyncio.gather(*(waiter.close() for waiter in self._waiters.values()))
        await self.delivery.close()

    @overload
    async def submit(
        self, workflow: Workflow[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> AsyncHandle[T]: ...
    @overload
    async def submit(self, workflow: Workflow[..., T], /, *args: Any, **kwargs: Any) -> AsyncHandle[T]: ...
    @overload
    async def submit(self, workflow: str, /, *args: Any, **kwargs: Any) -> AsyncHandle[Any]: ...
    async def submit(self, workflow: Workflow[..., Any] | str, /, *args: Any, **kwargs: Any) -> AsyncHandle[Any]:
        """Makes a workflow durable; returns when its shard has committed it.

        Arguments: `workflow`, the function or its stored name; its own arguments; and options (see `Options`): `id`,
        the idempotency key (default: a new one, on a shard that answers); `queue` (default: the workflow's);
        `priority`, the least first; `delay`; `after`, handles or ids of workflows to run after, and `on_failure`;
        `dedup_key` and `on_duplicate`;
        `key_concurrency`; `attributes`; `timeout`; `version`. A workflow's own argument of such a name goes by its
        place, or as
        `submit_many([f.call(delay=1).set(id="x")])`.
        With `connection`, psycopg's, to one of the cluster's databases it is part of that connection's transaction:
        it is there when the caller commits. An id that belongs to a shard elsewhere is relayed from there by a
        worker; where such an id is another workflow's already, nobody is told.
        The same id again gives the first one's handle. Raises WorkflowConflict where that had another name or input,
        InvalidInput for what cannot be submitted, ShardUnavailable where the id's shard does not answer,
        SubmitUncertain where the connection was lost on the way (submit again with the same id), WorkflowNotFound
        where there is no workflow to run after.
        """
        connection = kwargs.pop("connection", None)
        options = {name: kwargs.pop(name) for name in OPTION_NAMES & kwargs.keys()}
        call: Call[Any] = Call(workflow, args, kwargs, Options(**options) if options else NONE)
        if connection is not None:
            return await Transactional(self, connection).submit(call)
        return (await self._submit([call]))[0]

    async def submit_many(self, calls: Iterable[Call[T]]) -> list[AsyncHandle[T]]:
        """Submits many calls, one bulk statement per shard; returns their handles in order.

        Arguments: `calls`, such as `(checkout.call(o).set(id=f"order-{o.id}") for o in orders)`. Each shard's part is
        one transaction; after an error, which names the shard and the ids, submit the whole again with the same ids.
        """
        return await self._submit(list(calls))

    async def get(self, id: str, workflow: Workflow[..., Any] | None = None) -> AsyncHandle[Any]:
        """The handle of a workflow that was submitted before.

        Arguments: `id`; `workflow`, by whose annotation the result is typed. Raises WorkflowNotFound.
        """
        key, info = await self._find(id)
        return AsyncHandle(self, id, key, info.shard, info.name, workflow)

    async def info(self, id: str) -> WorkflowInfo:
        """Where a workflow is, and since when. Raises WorkflowNotFound."""
        return (await self._find(id))[1]

    async def steps(self, id: str) -> list[StepInfo]:
        """A workflow's checkpoints so far, in order. Raises WorkflowNotFound."""
        _, info = await self._find(id)
        pool = self._router.pool(info.shard)
        async with pool.connection() as conn:
            found = await submissions.steps(pool.shard, conn, id)
        return [s if s.output is None else replace(s, output=self.codecs.readable(s.output)) for s in found]

    async def _find(self, id: str) -> tuple[int, WorkflowInfo]:
        check_id(id)
        shard = (await self._router.load()).shard_of(id)
        pool = self._router.pool(shard)
        async with pool.connection() as conn:
            found = await submissions.find(pool.shard, conn, id)
        if found is None:
            raise WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {shard!r})", workflow_id=id)
        return found

    @property
    def schedules(self) -> AsyncSchedules:
        """Workflows that run by the clock."""
        return AsyncSchedules(self, self._router, self._sender)

    def waiter(self, shard: str) -> Waiter:
        """What awaits the results of one shard."""
        if shard not in self._waiters:
            self._waiters[shard] = Waiter(self._router.pool(shard))
        return self._waiters[shard]

    async def _submit(self, calls: list[Call[Any]]) -> list[AsyncHandle[Any]]:
        if not calls:
            return []
        slot_map = await self._router.load()
        draw = drawing(self._router, slot_map)
        items = [
            make_item(call, slot_map.slots, draw, by_name=self._untyped, limits=self.config.payload) for call in calls
        ]
        if any(call.options.after for call in calls):
            await self._in_order(calls, items)
        else:
            await self._sender.send(items)
        now = asyncio.get_running_loop().time()
        return [
            AsyncHandle(
                self, i.id, i.wf, i.shard, i.name, call.workflow if isinstance(call.workflow, Workflow) else None, now
            )
            for i, call in zip(items, calls, strict=True)
        ]

    async def _in_order(self, calls: list[Call[Any]], items: list[Item]) -> None:
        """What others run after is written before them, and has to be there: so nothing can wait for itself."""
        order = levels([item.id for item in items], [call.options.after for call in calls])
        elsewhere = {id for call in calls for id in call.options.after} - {item.id for item in items}
        slot_map = await self._router.load()
        by_shard: dict[str, list[str]] = {}
        for id in elsewhere:
            by_shard.setdefault(slot_map.shard_of(id), []).append(id)
        for shard, ids in by_shard.items():
            pool = self._router.pool(shard)
            async with pool.connection() as conn:
                found = await submissions.keys(pool.shard, conn, ids)
            if absent := [id for id in ids if id not in found]:
                raise WorkflowNotFound(
                    f"no workflow has the id {absent[0]!r}, after which another one is to run: submit it first, or"
                    " both with submit_many",
                    workflow_id=absent[0],
                )
        for level in order:
            await self._sender.send([items[place] for place in level])
