"""A worker: one process that runs an app's workflows from the shards it serves.

Which shards these are is the rebalancer's wish; without one, those that are short of workers. A worker closes a lease
that it is not wanted on any more only when it holds all those that it is wanted on.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import random
import socket
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..app import App
from ..core.lanes import check_part
from ..core.routing import check_name
from ..core.suggest import did_you_mean
from ..delivery import Delivery
from ..errors import InvalidInput, UsageError
from ..model import RELEASE, ClusterConfig, ShardConfig
from ..rebalancer import Rebalancer
from ..storage import cluster
from ..storage.ending import end
from ..storage.registry import Card, Pulse, Wish
from ..storage.shard import Shard
from .link import Link
from .places import Places
from .registrar import Registrar
from .retention import Retention
from .scout import Scout
from .tasks import number_tasks
from .ticker import Ticker

log = logging.getLogger("shardflow.worker")

#: Workflows at once where all of the app's are `async def`; where some are not, each of them needs a thread.
ASYNC_CONCURRENCY = 1_000
THREAD_CONCURRENCY = 50
#: Threads for the plain `def` steps of `async def` workflows; more of them mostly wait for each other.
STEP_THREADS = 64
#: Leases of one worker, which cost two connections each.
MAX_LEASES = 64
#: Shards that a starting worker looks at; in a large cluster, some of them.
FIRST_LOOK = 16
#: Seconds after which a shard that a link does not reach counts as one that the worker cannot reach.
CUT_OFF = 3.0

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
    every workflow is `async def`, else 50); `queues` to serve (default: all of the app's); `shards`, to serve these,
    by name, and no others (default: those that it is wanted on); `name`, shown in the leases, unique in the cluster
    (default: host, pid and a number); `labels`, for shards that ask for them; `max_leases`, shards at once at the
    most; `code_version`, of the app, shown in the registry.
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
        labels: Sequence[str] = (),
        max_leases: int = MAX_LEASES,
        code_version: str = "",
    ) -> None:
        if not app.workflows:
            raise UsageError(f"app {app.name!r} has no workflow: define one with @app.workflow")
        for what, value in (("concurrency", concurrency), ("max_leases", max_leases)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidInput(f"{what} must be a whole number from 1, not {value!r}")
        plain = any(not w.is_async for w in app.definitions)
        if concurrency is None:
            concurrency = THREAD_CONCURRENCY if plain else ASYNC_CONCURRENCY
        self.labels = frozenset(check_name("label", label) for label in labels)
        _check_shards(config, shards or (), self.labels)
        self.name = check_name("worker", name or f"{socket.gethostname()}:{os.getpid()}:{next(_numbers)}")
        self.concurrency = concurrency
        self.queues = [check_part("queue", q) for q in dict.fromkeys(queues or app.queues)]
        self._lanes = app.lanes(self.queues)
        self._config = config
        self._app = app
        app.codecs.limits = config.payload
        self._pinned = shards is not None and len(shards) > 0
        self._shards = {s.name: Shard(s) for s in config.shards if self._may_serve(s, shards)}
        self._max_leases = max_leases
        self._code_version = code_version
        self._started = time.time_ns() // 1000
        self._aims: set[str] | None = None
        self._obeyed = 0
        self._strange: frozenset[str] = frozenset()
        self._draining = False
        self._links: dict[str, Link] = {}
        self._serving: dict[str, asyncio.Task[None]] = {}
        self._chores: list[asyncio.Task[None]] = []
        self._placed = asyncio.Event()
        self._ended = asyncio.Event()
        self._failed: BaseException | None = None
        # A plain `def` workflow keeps its thread to its end, so each of them needs one.
        threads = concurrency if plain else min(concurrency, STEP_THREADS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="shardflow")
        self._places = Places(concurrency)

    def _may_serve(self, shard: ShardConfig, shards: Sequence[str] | None) -> bool:
        return (not shards or shard.name in shards) and self.labels.issuperset(shard.labels)

    async def start(self) -> None:
        """Begins to serve. Raises ClusterError where a shard that answers is not part of the configured cluster,
        ShardUnavailable where none answers; a shard that is away is waited for in the background."""
        first = list(self._shards.values())
        if not self._pinned and len(first) > FIRST_LOOK:
            first = random.sample(first, FIRST_LOOK)
        self._scout = Scout(self._config, self._lanes, self._unserved, self._adopt)
        if self._pinned:
            cluster.heard(await cluster.survey(self._config, first))
            short = list(self._shards)
        else:
            short = (await self._scout.first(first, self._config.rebalance.min_group))[: self._max_leases]
        number_tasks(asyncio.get_running_loop())
        self._delivery = Delivery(self._config, self._app.codecs)
        self._ticker = Ticker(self._config, self._app, self._delivery.router, self._delivery.sender)
        self._rebalancer = Rebalancer(self._config, self.name)
        everywhere = [Shard(s) for s in self._config.shards]
        self._registrar = Registrar(everywhere, self._config.lease, self._card(), self._pulse, self._wished)
        if self._pinned or short:
            self._aim(short)
        retention = Retention(self._config, self.name, self._delivery.router, lambda: self.serves)
        runs = [self._registrar.run(), self._rebalancer.run(), self._tend(), retention.run()]
        runs += [] if self._pinned else [self._scout.run()]
        self._chores = [asyncio.create_task(run) for run in runs]
        for chore in self._chores:
            chore.add_done_callback(self._noticed)
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
        """Waits until the worker knows which shards it is to serve, and holds a lease on each of them."""
        await self._placed.wait()
        while waiting := [
            n for n in self._aims or () if n in self._serving and not self._links[n].connected.is_set()
        ]:
            opened = asyncio.ensure_future(self._links[waiting[0]].connected.wait())
            # It may be wanted elsewhere meanwhile.
            await asyncio.wait([opened, self._serving[waiting[0]]], timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
            await end([opened])

    @property
    def running(self) -> int:
        """Workflows that run here now."""
        return sum(link.running for link in self._links.values())

    @property
    def serves(self) -> list[str]:
        """The shards that it holds a lease on now."""
        return sorted(name for name, link in self._links.items() if link.connected.is_set())

    async def wait(self) -> None:
        """Waits until the worker has stopped. Raises what failed in it, which is a defect of shardflow."""
        await self._ended.wait()
        if self._failed is not None:
            raise self._failed

    async def stop(self, grace: float = 30.0) -> None:
        """Drains: claims nothing more, lets each step end for up to `grace` seconds, then hands the rest back.

        A workflow stops at its next checkpoint and goes on from there elsewhere. Leases are deleted.
        """
        log.info("worker stops", extra={"worker": self.name, "running": self.running, "grace": grace})
        self._draining = True
        if self._chores:
            self._registrar.nudge()
        links = list(self._links.values())
        for link in links:
            link.drain()
        if self._serving:
            _, late = await asyncio.wait(self._serving.values(), timeout=grace)
            await end(late)
        await asyncio.gather(*(link.release() for link in links))
        await self._end_chores()
        if self._chores:
            await self._registrar.leave()
            await self._ticker.close()
            await self._delivery.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ended.set()
        log.info("worker stopped", extra={"worker": self.name})

    async def leave(self) -> None:
        """Leaves at once, as a crash would: peers find the leases and go on from the checkpoints."""
        self._draining = True
        await self._end_chores()
        links = list(self._links.values())
        await end(self._serving.values())
        for link in links:
            link.forsake()
        if self._chores:
            await self._ticker.close(0.0)
            await self._delivery.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._ended.set()

    async def _end_chores(self) -> None:
        await end(self._chores)

    # -- which shards to serve

    def _aim(self, shards: Iterable[str]) -> None:
        """From now on the worker is to serve these shards."""
        self._aims = {name for name in shards if name in self._shards}
        for name in sorted(self._aims):
            if name in self._links:
                self._links[name].revive()
            else:
                self._open(name)
        self._placed.set()

    def _open(self, name: str) -> None:
        shard = self._shards[name]
        link = Link(
            shard,
            self._config,
            self._app,
            self.name,
            self._lanes,
            self._places,
            self._threads,
            self._delivery,
            self._ticker,
            self._rebalancer,
            self._started,
        )
        task = asyncio.create_task(link.serve(), name=f"shardflow {name}")
        self._links[name], self._serving[name] = link, task
        task.add_done_callback(lambda task: self._closed(name, task))

    def _closed(self, name: str, task: asyncio.Task[None]) -> None:
        """A link has ended: drained, retired, or failed."""
        link = self._links[name]
        if not self._draining:
            del self._links[name]
            link.forsake()
        del self._serving[name]
        self._noticed(task)
        if not self._draining and self._failed is None and self._aims and name in self._aims:
            self._open(name)

    def _noticed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the worker failed", extra={"worker": self.name}, exc_info=error)
            self._failed = self._failed or error
            self._ended.set()

    def _wished(self, wish: Wish) -> None:
        self._scout.neighbours = wish.neighbours
        if wish.shards is None or wish.decision <= self._obeyed or self._pinned or self._draining:
            return
        self._obeyed = wish.decision
        self._strange |= wish.shards - self._shards.keys()
        self._aim(wish.shards)
        self._registrar.nudge()

    def _adopt(self, name: str) -> None:
        """Nobody serves the shard."""
        aims = self._aims or set()
        if not self._draining and name not in aims and len(aims) < self._max_leases:
            log.info("serving a shard that was left alone", extra={"worker": self.name, "shard": name})
            self._aim({*aims, name})

    def _unserved(self) -> list[Shard]:
        """The shards where others are to be; a link that steps back does not count, or it may step back for ever."""
        staying = self._links.keys() & (self._aims or ())
        return [] if self._draining else [s for s in self._shards.values() if s.name not in staying]

    async def _tend(self) -> None:
        """Retires links that are not wanted any more, once those that are wanted serve, or cannot."""
        while True:
            await asyncio.sleep(self._config.lease.watch / 2)
            if self._aims is None or self._draining:
                continue
            cut_off = self._cut_off()
            if all(self._links[n].connected.is_set() or n in cut_off for n in self._aims if n in self._links):
                for name, link in self._links.items():
                    if name not in self._aims:
                        link.retire()

    def _cut_off(self) -> set[str]:
        """The shards that it cannot serve: it does not reach them, or its configuration does not give them to it."""
        now = asyncio.get_running_loop().time()
        away = {n for n, link in self._links.items() if link.away_since and now - link.away_since > CUT_OFF}
        return away | self._strange | {name for name in self._scout.away if name not in self._links}

    # -- what the registry is told

    def _card(self) -> Card:
        return Card(
            self.name,
            socket.gethostname(),
            os.getpid(),
            self._app.name,
            RELEASE,
            self._code_version,
            self.concurrency,
            self._max_leases,
            self._lanes,
            sorted(self.labels),
            self._pinned,
        )

    def _pulse(self, beat: int) -> Pulse:
        aims = None if self._aims is None else sorted(self._aims)
        return Pulse(self._draining, beat, self.running, self.serves, aims, sorted(self._cut_off()), self._obeyed)


def _check_shards(config: ClusterConfig, shards: Sequence[str], labels: frozenset[str]) -> None:
    known = {s.name: s for s in config.shards}
    for name in shards:
        if name not in known:
            raise InvalidInput(f"no shard is named {name!r}{did_you_mean(name, known)}")
        if missing := sorted(set(known[name].labels) - labels):
            raise InvalidInput(f"shard {name!r} asks for workers with the label {missing[0]!r}: give it to this one")
    if not shards and not any(labels.issuperset(s.labels) for s in config.shards):
        raise InvalidInput("every shard asks for a label that this worker does not have: see `labels` of the shards")
