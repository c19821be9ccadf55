"""Tickers without workers: they look often, and what they submit stays where it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from shardflow import App, ClusterConfig
from shardflow.core.routing import slot_of
from shardflow.core.slotmap import plan_slots
from shardflow.delivery.router import Router
from shardflow.delivery.sender import Sender
from shardflow.storage import schedules
from shardflow.storage.ending import end
from shardflow.storage.shard import Shard
from shardflow.worker import ticker
from shardflow.worker.ticker import Ticker
from support.look import one, rows


@asynccontextmanager
async def ticking(
    config: ClusterConfig, app: App | None = None, shards: tuple[int, ...] | None = None
) -> AsyncIterator[Ticker]:
    """A ticker that looks at these shards (default: all), as the worker that holds leases on them would."""
    router = Router(config)
    made = Ticker(config, app or App("ticking"), router, Sender(router, config))

    async def look(number: int) -> None:
        shard = Shard(config.shards[number])
        async with await shard.connect("keeper test") as conn:
            while True:
                made.saw(shard, await schedules.look(shard, conn))
                await asyncio.sleep(0.01)

    looks = [asyncio.create_task(look(k)) for k in (range(len(config.shards)) if shards is None else shards)]
    try:
        yield made
    finally:
        failed = [task.exception() for task in looks if task.done() and not task.cancelled()]
        await end(looks)
        await made.close()
        await router.close()
        assert not failed, failed


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickers look twenty times a second and try again soon."""
    for name, seconds in (
        ("POLL", 0.05),
        ("SOON", 0.05),
        ("SPREAD", 0.01),
        ("HOLD", 0.0),
        ("AGAIN", 0.1),
        ("RARELY", 0.2),
    ):
        monkeypatch.setattr(ticker, name, seconds)


def home(config: ClusterConfig, name: str) -> int:
    """The number of the shard that an id or a schedule's name belongs to."""
    owners = plan_slots(config.slots, {s.name: s.weight for s in config.shards})
    return [s.name for s in config.shards].index(owners[slot_of(name, config.slots)])


def ran(config: ClusterConfig, name: str) -> list[str]:
    """The ids of the workflows that a schedule has submitted, on all shards that answer."""
    found: list[str] = []
    for k in range(len(config.shards)):
        query = 'SELECT id FROM workflow WHERE id COLLATE "C" LIKE %s'
        found += [row[0] for row in rows(config, query, f"schedule:{name}:%", shard=k)]
    return sorted(found)


def of_schedule(config: ClusterConfig, name: str, column: str) -> Any:
    """One column of a schedule's row."""
    return one(config, f"SELECT {column} FROM schedule WHERE name = %s", name, shard=home(config, name))


def set_back(config: ClusterConfig, name: str, seconds: float) -> datetime:
    """Makes a schedule as it is when nobody has looked at it for so long; answers since when."""
    change = (
        "UPDATE schedule SET decided_to = now() - make_interval(secs => %s), next_at = now() WHERE name = %s"
        " RETURNING decided_to"
    )
    found: datetime = rows(config, change, seconds, name, shard=home(config, name))[0][0]
    return found
