"""Clusters for tests on Postgres servers of our own, and workers in threads: what the pytest plugin hands out.

Each cluster has databases of its own, which are copied from a template, so one is there in a fraction of a second.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..app import App
from ..embedded import Servers
from ..errors import InvalidInput
from ..model import ClusterConfig, LeaseConfig, PayloadConfig, ShardConfig
from ..storage import cluster
from ..storage.shard import Shard
from ..worker.worker import Worker

T = TypeVar("T")

#: Quick, and as safe as a test needs: what is committed survives the end of a worker, not of the machine.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "64MB"}
#: Short, so that the work of a worker that was killed goes on soon.
LEASE = LeaseConfig(ttl=5.0, renew=0.5, watch=0.15)
#: Seconds for a worker to hold its leases.
CONNECT = 60.0


class Clusters:
    """Makes and drops clusters on servers that start with `start`.

    Arguments: `count`, the number of servers.
    """

    def __init__(self, count: int = 1) -> None:
        self.servers = Servers(count, settings=SETTINGS)
        self._templates: dict[tuple[int, int], ClusterConfig] = {}
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Starts the servers. Raises EmbeddedError where there are no Postgres programs, or they do not start."""
        self.servers.start()

    def stop(self) -> None:
        """Ends the servers with all that they hold."""
        self.servers.stop()

    def make(
        self, shards: int = 1, slots: int = 64, *, lease: LeaseConfig = LEASE, payload: PayloadConfig | None = None
    ) -> ClusterConfig:
        """A new initialised cluster with shards "s0", "s1" and so on. Raises InvalidInput."""
        for what, value in (("shards", shards), ("slots", slots)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{what} must be a whole number from 1, not {value!r}")
        return _apart(self._make(shards, slots, lease, payload or PayloadConfig()))

    def drop(self, config: ClusterConfig) -> None:
        """Drops its databases, whoever is connected."""
        _apart(self._drop(config))

    async def _make(self, shards: int, slots: int, lease: LeaseConfig, payload: PayloadConfig) -> ClusterConfig:
        if (shards, slots) not in self._templates:
            empty = await self._copied(["template0"] * shards, slots, lease, payload)
            await cluster.init(empty)
            self._templates[shards, slots] = empty
        names = [_database(shard) for shard in self._templates[shards, slots].shards]
        return await self._copied(names, slots, lease, payload)

    async def _copied(
        self, templates: list[str], slots: int, lease: LeaseConfig, payload: PayloadConfig
    ) -> ClusterConfig:
        made: list[ShardConfig] = []
        for number, template in enumerate(templates):
            name = f"test_{os.getpid()}_{next(self._numbers)}"
            server = self.servers[number % len(self.servers)]
            await self._run(number, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
            made.append(ShardConfig(f"s{number}", f"{server.dsn.rpartition('/')[0]}/{name}"))
        return ClusterConfig("test", tuple(made), slots, lease, payload=payload)

    async def _drop(self, config: ClusterConfig) -> None:
        for number, shard in enumerate(config.shards):
            await self._run(number, f'DROP DATABASE IF EXISTS "{_database(shard)}" WITH (FORCE)')

    async def _run(self, number: int, statement: str) -> None:
        shard = Shard(ShardConfig("admin", self.servers[number % len(self.servers)].dsn))
        async with await shard.connect("testing") as conn:
            with shard.translate():
                await conn.execute(statement.encode())


class WorkerThread:
    """A worker in a thread of its own.

    Arguments: those of `shardflow.Worker`. Attribute: `worker`, to look at.
    """

    def __init__(self, config: ClusterConfig, app: App, **options: Any) -> None:
        self.worker: Worker
        self._make: Callable[[], Worker] = lambda: Worker(config, app, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="shardflow worker", daemon=True)
        self._ready: Future[None] = Future()
        self._over: asyncio.Future[float | None]

    def start(self) -> None:
        """Returns when the worker holds its leases. Raises what `Worker` and its `start` raise."""
        self._thread.start()
        self._ready.result()

    def stop(self, grace: float = 5.0) -> None:
        """Drains the worker: steps get so many seconds to end. Does nothing where it has ended."""
        self._end(grace)

    def leave(self) -> None:
        """Ends the worker as a crash would: peers find what it left."""
        self._end(None)

    def _end(self, grace: float | None) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._told, grace)
            self._thread.join()

    def _told(self, grace: float | None) -> None:
        if not self._over.done():
            self._over.set_result(grace)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._over = self._loop.create_future()
        self.worker = self._make()
        grace: float | None = 0.0
        try:
            await self.worker.start()
            async with asyncio.timeout(CONNECT):
                await self.worker.connected()
            self._ready.set_result(None)
            grace = await self._over
        finally:
            if grace is None:
                await self.worker.leave()
            else:
                await self.worker.stop(grace)


def _database(shard: ShardConfig) -> str:
    return shard.dsn.rpartition("/")[2]


def _apart(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs it in a thread: where a fixture is set up an event loop may be running."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(asyncio.run(coroutine))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="shardflow testing")
    thread.start()
    thread.join()
    return done.result()
