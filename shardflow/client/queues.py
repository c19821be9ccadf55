"""Queues, from the client's side: `client.queues`."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime
from typing import TYPE_CHECKING

from ..core.lanes import check_part, queue_of
from ..model import Bulk, QueueInfo, QueueList
from ..storage import control

if TYPE_CHECKING:
    from .aio import AsyncClient


class AsyncQueues:
    """Shows queues, pauses and resumes them; `AsyncClient.queues`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def pause(self, queue: str) -> Bulk:
        """From now on no worker of the cluster begins a workflow of this queue; those that run go on until they end
        or are suspended.

        Answers on how many shards that is new, and which ones did not answer: there it is not paused. Raises
        InvalidInput.
        """
        return await self._set(queue, True)

    async def resume(self, queue: str) -> Bulk:
        """The opposite of `pause`."""
        return await self._set(queue, False)

    async def _set(self, queue: str, paused: bool) -> Bulk:
        check_part("queue", queue)
        answers, away = await self._client._ask_each(lambda shard, conn: control.pause(shard, conn, queue, paused))
        return Bulk(sum(answers.values()), away)

    async def list(self) -> QueueList:
        """The queues in which something is ready, or which are paused; and the shards that did not answer. Every
        shard counts what is ready there."""
        answers, away = await self._client._ask_each(control.queues)
        ready = Counter[str]()
        paused: defaultdict[str, dict[str, datetime]] = defaultdict(dict)
        for shard, rows in answers.items():
            for lane, count, since in rows:
                ready[queue_of(lane)] += count
                if since is not None:
                    paused[lane][shard] = since
        return QueueList([QueueInfo(name, ready[name], paused.get(name, {})) for name in sorted(ready)], away)
