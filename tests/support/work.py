"""Workers and clients for tests, as context managers that always end what they began."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shardflow import App, ClusterConfig, Worker


@asynccontextmanager
async def running(
    config: ClusterConfig, app: App, *, connected: bool = True, **options: Any
) -> AsyncIterator[Worker]:
    """A worker that serves, with a lease on each of its shards unless `connected` is False; stopped at the end."""
    worker = Worker(config, app, **options)
    try:
        await worker.start()
        if connected:
            await asyncio.wait_for(worker.connected(), 60)
        yield worker
    finally:
        await worker.stop(grace=0.5)


class Gate:
    """Steps wait here until the test lets them through; counts who has come.

    For `async def` steps in the loop of the test.
    """

    def __init__(self) -> None:
        self.arrived = 0
        self._open = asyncio.Event()

    async def wait(self) -> None:
        self.arrived += 1
        await self._open.wait()

    def open(self) -> None:
        self._open.set()


def ids_on(config: ClusterConfig, shard: int, count: int, prefix: str = "w") -> list[str]:
    """Workflow ids that belong to shard number `shard` of a cluster as `cluster init` divides it."""
    from shardflow.core.routing import slot_of
    from shardflow.core.slotmap import plan_slots

    owners = plan_slots(config.slots, {s.name: s.weight for s in config.shards})
    wanted = config.shards[shard].name
    found: list[str] = []
    number = 0
    while len(found) < count:
        if owners[slot_of(f"{prefix}{number}", config.slots)] == wanted:
            found.append(f"{prefix}{number}")
        number += 1
    return found
