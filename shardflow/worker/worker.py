"""A worker: one process that runs an app's workflows from the shards it serves."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ..app import App
from ..core.routing import check_name
from ..core.suggest import did_you_mean
from ..errors import InvalidInput, UsageError
from ..model import ClusterConfig
from ..storage import cluster
from ..storage.shard import Shard
from .link import Link
from .places import Places

log = logging.getLogger("shardflow.worker")

#: Workflows at once where all of the app's are `async def`; where some are not, each of them needs a thread.
ASYNC_CONCURRENCY = 1_000
THREAD_CONCURRENCY = 50
#: Threads for the plain `def` steps of `async def` workflows; more of them mostly wait for each other.
STEP_THREADS = 64

_numbers = itertools.count(1)


def tune_process() -> None:
    """Settings of the Python process for a worker that has it for itself; to be called once, when all is loaded.

    Workflows leave little cyclic garbage, and looking for it among everything that was imported took a fifth of the
    worker's time (benchmarks/LOG.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class Worker:
    """Serves an app's workflows until stopped; to be used in one event loop.

    Arguments: `config`, the cluster's; `app`; `concurrency`, workflows at once over all shards (default: 1000 where
    every workflow is `async def`, else 50); `queues` to serve (default: all of the app's); `shards` to serve, by
    name (default: all); `name`, shown in the leases (default: host, pid and a number).
    Raises InvalidInput or UsageError for arguments that cannot work.
    """

    def __init__(
        self,
        config: ClusterConfig,
        app: App,
        *,
        concurrency: int | None = None,
        queues: Sequence[str] | None = None,
        shards: Sequence[str] | None = None,
        name: str | None = None,
    ) -> None:
        if not app.workflows:
            raise UsageError(f"app {app.name!r} has no workflow: define one with @app.workflow")
        if concurrency is not None and (not isinstance(concurrency, int) or concurrency < 1):
            raise InvalidInput(f"concurrency must be a whole number from 1, not {concurrency!r}")
        plain = any(not w.is_async for w in app.workflows.values())
        if concurrency is None:
            concurrency = THREAD_CONCURRENCY if plain else ASYNC_CONCURRENCY
        names = [s.name for s in config.shards]
        for shard in shards or ():
            if shard not in names:
                raise InvalidInput(f"no shard is named {shard!r}{did_you_mean(shard, names)}")
        self.name = check_name("worker", name or f"{socket.gethostname()}:{os.getpid()}:{next(_numbers)}")
        self.concurrency = concurrency
        self.queues = [check_name("queue", q) for q in dict.fromkeys(queues or app.queues)]
        self._config = config
        self._app = app
        self._shards = [Shard(s) for s in config.shards if shards is None or s.name in shards]
        self._links: list[Link] = []
        self._serving: list[asyncio.Task[None]] = []
        # A plain `def` workflow keeps its thread to its end, so each of them needs one.
        threads = concurrency if plain else min(concurrency, STEP_THREADS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shardflow")

    async def start(self) -> None:
        """Begins to serve. Raises ClusterError where a shard that answers is not part of the configured cluster,
        ShardUnavailable where none answers; a shard that is away is waited for in the background."""
        cluster.heard(await cluster.survey(self._config, self._shards))
        places = Places(self.concurrency)
        for shard in self._shards:
            link = Link(shard, self._config, self._app, self.name, self.queues, places, self._threads)
            self._links.append(link)
            self._serving.append(asyncio.create_task(link.serve(), name=f"shardflow {shard.name}"))
        log.info(
            "worker started",
            extra={
                "worker": self.name,
                "app": self._app.name,
                "queues": self.queues,
                "concurrency": self.concurrency,
            },
        )

    async def connected(self) -> None:
        """Waits until the worker holds a lease on each of its shards."""
        for link in self._links:
            await link.connected.wait()

    @property
    def running(self) -> int:
        """Workflows that run here now."""
        return sum(link.running for link in self._links)

    async def wait(self) -> None:
        """Waits until the worker has stopped. Raises what a link failed with, which is a defect of shardflow."""
        if self._serving:
            done, _ = await asyncio.wait(self._serving)  # not gather: to give up waiting must not end the service
            for task in done:
                task.result()

    async def stop(self, grace: float = 30.0) -> None:
        """Drains: claims nothing more, lets each step end for up to `grace` seconds, then hands the rest back.

        A workflow stops at its next checkpoint and goes on from there elsewhere. Leases are deleted.
        """
        log.info("worker stops", extra={"worker": self.name, "running": self.running, "grace": grace})
        for link in self._links:
            link.drain()
        if self._serving:
            _, late = await asyncio.wait(self._serving, timeout=grace)
            await self._cancel(late)
        await asyncio.gather(*(link.release() for link in self._links))
        self._threads.shutdown(wait=False, cancel_futures=True)
        log.info("worker stopped", extra={"worker": self.name})

    async def leave(self) -> None:
        """Leaves at once, as a crash would: peers find the leases and go on from the checkpoints."""
        await self._cancel(self._serving)
        for link in self._links:
            link.forsake()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    async def _cancel(tasks: Sequence[asyncio.Task[None]] | set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
