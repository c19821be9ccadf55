"""Asks all shards of a cluster again and again, without waiting for those that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from ..errors import ShardflowError
from ..storage.ending import end
from ..storage.shard import Conn, Shard

T = TypeVar("T")

#: Seconds that a shard has to answer before it counts as unreachable, and between tries of one that does not.
PATIENCE = 2.0
AGAIN = 5.0


class Survey:
    """Keeps a connection to each shard that answers; `close` ends them.

    Arguments: `shards`, all of the cluster.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = {shard.name: shard for shard in shards}
        self._conns: dict[str, Conn] = {}
        self._asking: dict[str, asyncio.Task[Any]] = {}
        self._quiet_until: dict[str, float] = {}

    async def ask(self, question: Callable[[Shard, Conn], Awaitable[T]]) -> dict[str, T]:
        """What the shards answer, by name; those that fail, or are not ready within `PATIENCE`, are left out.

        A connect that is under way goes on behind the call, so that one dead host does not slow every look down.
        """
        asked: dict[str, asyncio.Task[T]] = {}
        for name in self.shards:
            if name not in self._asking and not self.quiet(name):
                task = asyncio.create_task(self._one(name, question))
                asked[name] = self._asking[name] = task
                task.add_done_callback(lambda task, name=name: self._answered(name, task))  # type: ignore[misc]
        if asked:
            await asyncio.wait(asked.values(), timeout=PATIENCE)
        return {
            name: task.result()
            for name, task in asked.items()
            if task.done() and not task.cancelled() and task.exception() is None
        }

    async def one(self, name: str, question: Callable[[Shard, Conn], Awaitable[T]], *, again: bool = False) -> T:
        """What one shard answers. Raises ShardflowError; then the shard is `quiet` for a while.

        `again`: the question changes nothing, so that it is asked once more where the connection that was kept may
        have been lost long before.
        """
        try:
            if again and name in self._conns:
                with contextlib.suppress(ShardflowError):
                    return await self._one(name, question)
            return await self._one(name, question)
        except ShardflowError:
            self._quiet_until[name] = asyncio.get_running_loop().time() + AGAIN
            raise

    def quiet(self, name: str) -> bool:
        """Whether the shard has failed just now and is not asked again yet."""
        return self._quiet_until.get(name, 0.0) > asyncio.get_running_loop().time()

    def _answered(self, name: str, task: asyncio.Task[Any]) -> None:
        self._asking.pop(name, None)
        if not task.cancelled() and task.exception() is not None:
            self._quiet_until[name] = asyncio.get_running_loop().time() + AGAIN

    async def _one(self, name: str, question: Callable[[Shard, Conn], Awaitable[T]]) -> T:
        shard = self.shards[name]
        conn = self._conns.pop(name, None)
        if conn is None or conn.closed:
            conn = await shard.connect("rebalancer", connect_timeout=PATIENCE)
        try:
            async with shard.deadline(conn, PATIENCE, "the rebalancer's question"):
                answer = await question(shard, conn)
        except BaseException:
            await conn.close()
            raise
        if name in self._conns:
            await conn.close()
        else:
            self._conns[name] = conn
        return answer

    async def keep(self, name: str) -> None:
        """Closes the connections to all other shards."""
        others = {each: self._conns.pop(each) for each in list(self._conns) if each != name}
        await _closed(others.values())

    async def close(self) -> None:
        """Gives up what is under way and closes all connections."""
        await end(list(self._asking.values()))
        self._asking.clear()
        conns, self._conns = self._conns, {}
        await _closed(conns.values())


async def _closed(conns: Iterable[Conn]) -> None:
    for conn in conns:
        with contextlib.suppress(ShardflowError):
            await conn.close()
