"""Submitting and sending in a transaction of the caller's own: it takes place if that commits, and only then.

What belongs to a shard in the connection's database is written into it directly; the rest into that shard's outbox,
whose workers relay it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.routing import slot_of
from ..core.slotmap import SlotMap
from ..definitions import Call, Workflow
from ..delivery.delivery import drawing_from
from ..delivery.sender import conflict, difference
from ..delivery.submission import make_item, pack
from ..delivery.visit import visit
from ..errors import InvalidInput, ResultTimeout, ShardUnavailable, WorkflowNotFound
from ..storage import caller, cluster, submissions
from ..storage.shard import Conn, Shard
from .handle import AsyncHandle

if TYPE_CHECKING:
    from .aio import AsyncClient

T = TypeVar("T")

#: Seconds between looks whether what was submitted in a transaction is there: the first time, and at the most.
FIRST_LOOK, LAST_LOOK = 0.01, 0.5


class PendingHandle(AsyncHandle[T]):
    """The handle of a workflow whose submission may not have been committed or relayed yet."""

    _there = False

    async def result(self, timeout: float | None = None) -> T:
        """See `AsyncHandle.result`; waits for the transaction too, and for ever where that was rolled back."""
        began = time.monotonic()
        pause = FIRST_LOOK
        while not (self._there or await self._look()):
            left = None if timeout is None else timeout - (time.monotonic() - began)
            if left is not None and left <= 0:
                raise ResultTimeout(
                    f"workflow {self.id!r} was not there within {timeout} s: the transaction that it was submitted in"
                    " has not committed, or what it left in the outbox has not been relayed"
                )
            await asyncio.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 1.3, LAST_LOOK)
        return await super().result(None if timeout is None else max(0.0, timeout - (time.monotonic() - began)))

    async def _look(self) -> bool:
        pool = self._client.delivery.router.pool(self.shard)
        try:
            async with pool.connection() as conn:
                found = await submissions.keys(pool.shard, conn, [self.id])
        except ShardUnavailable:
            return False
        if self.id in found:
            self._wf, self._there = found[self.id], True
        return self._there


class Transactional:
    """One transaction of a caller's, on a connection that fits the client.

    Arguments: `client`; `connection`, psycopg's. Raises InvalidInput or UsageError for one that nothing can be
    written with.
    """

    def __init__(self, client: AsyncClient, connection: object) -> None:
        self._client = client
        self._line = caller.Line(connection)

    async def submit(self, call: Call[Any]) -> AsyncHandle[Any]:
        """See `AsyncClient.submit`."""
        client = self._client
        slot_map, homes = await self._homes()
        near = homes.keys() & set(slot_map.owners) or set(slot_map.owners)
        draw = drawing_from(slot_map, lambda: near)
        item = make_item(call, slot_map.slots, draw, by_name=client._untyped, limits=client.config.payload)
        if item.more is not None and item.more.dedup is not None:
            raise InvalidInput("dedup_key does not go with connection: give the workflow an id instead")
        if item.more is not None and item.more.after:
            await self._check_there(slot_map, homes, item.more.after)
        item.shard = slot_map.owners[item.slot]
        home = await self._staying(slot_map, homes, item.slot)
        if home is None:
            await self._line.do(caller.post_submission(next(iter(homes.values())), item.id, pack(item)))
        else:
            item.wf, name, input = await self._line.do(caller.submit(home, item))
            if (differs := difference(item, name, input)) is not None:
                raise conflict(item, differs)
        workflow = call.workflow if isinstance(call.workflow, Workflow) else None
        return PendingHandle(client, item.id, item.wf, item.shard, item.name, workflow)

    async def send(self, id: str, topic: str, key: str, value: bytes) -> None:
        """See `AsyncClient.send`."""
        slot_map, homes = await self._homes()
        home = await self._staying(slot_map, homes, slot_of(id, slot_map.slots))
        if home is None:
            await self._line.do(caller.post(next(iter(homes.values())), id, topic, key, value))
        elif not await self._line.do(caller.deliver(home, id, topic, key, value)):
            raise WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {home.name!r})", workflow_id=id)

    async def _homes(self) -> tuple[SlotMap, Mapping[str, Shard]]:
        """The slot map, and the shards in the connection's database; those that own slots first."""
        client = self._client
        router = client.delivery.router

        async def ask(shard: Shard, conn: Conn, _: int) -> str:
            return (await cluster.expect(shard, conn, client.config)).cluster_id

        if client.cluster_id is None:
            client.cluster_id = await visit(router, lambda known: min(router.choice(known)), ask)
        slot_map = await router.load()
        found = await self._line.do(
            caller.homes(self._line.connection, [pool.shard for pool in router.pools.values()], client.cluster_id)
        )
        owners = set(slot_map.owners)
        return slot_map, dict(sorted(found.items(), key=lambda home: home[0] not in owners))

    async def _staying(self, slot_map: SlotMap, homes: Mapping[str, Shard], slot: int) -> Shard | None:
        """The shard in the connection's database that owns the slot until the transaction ends; None: another one."""
        home = homes.get(slot_map.owners[slot])
        return home if home is not None and await self._line.do(caller.stays(home, slot)) else None

    async def _check_there(self, slot_map: SlotMap, homes: Mapping[str, Shard], ids: tuple[str, ...]) -> None:
        """What is to be run after has to be there, as far as the transaction sees: so nothing can wait for itself."""
        by_shard: dict[str, list[str]] = {}
        for id in ids:
            by_shard.setdefault(slot_map.shard_of(id), []).append(id)
        for name, some in by_shard.items():
            if name in homes:
                absent = await self._line.do(caller.absent(homes[name], some))
            else:
                pool = self._client.delivery.router.pool(name)
                async with pool.connection() as conn:
                    absent = set(some) - (await submissions.keys(pool.shard, conn, some)).keys()
            if absent:
                raise WorkflowNotFound(
                    f"no workflow has the id {min(absent)!r}, after which another one is to run: submit it first, and"
                    " commit that where it belongs to another shard",
                    workflow_id=min(absent),
                )
