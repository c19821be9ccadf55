"""How long a caller waits for a result, from the submit call to the result in hand, and what idling costs.

An open loop: submits begin at the times of a Poisson process (or evenly), whatever has become of those before, from
one client in one event loop, with a backlog of another queue beside it if that is asked for. After the traffic has
ended, the workers idle and are measured again.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..client.aio import AsyncClient
from ..errors import ShardflowError
from ..model import DEFAULT_QUEUE, ClusterConfig
from ..storage.ending import end
from ..storage.shard import Conn, Shard, Statements
from .arena import Ground, fresh_cluster, ground, quiet
from .meters import QueryMeter, environment
from .processes import Workers, loop_factory, workers
from .workload import Load, result_of

#: Seconds of traffic that are not counted: connections, prepared statements, caches.
WARM_UP = 1.0
#: Seconds for the workers to come to rest before idling is measured, and for the counters of the traffic: a session
#: that idles reports its last second of them after ten seconds only (PGSTAT_IDLE_INTERVAL in Postgres' pgstat.c).
_REST = 12.0
#: The queue of the backlog; workflows of it have numbers from here on, and so many are submitted at once.
_QUEUE, _BEYOND, _BULK = "backlog", 1_000_000_000, 5_000
#: Seconds between looks whether any of it waits.
_LOOK = 0.1
_TEXTS = {
    "waits": "SELECT EXISTS (SELECT FROM {schema}.ready WHERE queue = %s)",
    "left": "SELECT (SELECT count(*) FROM {schema}.workflow) - (SELECT count(*) FROM {schema}.outcome)",
    "ended": "SELECT count(*) FROM {schema}.outcome o JOIN {schema}.workflow w USING (wf)"
    " WHERE w.queue = %s AND o.status = 'succeeded'",
}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """What to measure: `rate`, submits a second; `seconds` of them; `idle`, seconds of idling measured (0: none);
    `even`, submits at even distances instead of random ones; `backlog`, workflows of another queue that drain
    meanwhile: what is submitted after the last of them was claimed does not count. The others are those of
    `ThroughputOptions`."""

    rate: float = 100.0
    seconds: float = 10.0
    steps: int = 1
    payload: int = 100
    even: bool = False
    idle: float = 10.0
    backlog: int = 0
    workers: int = 1
    shards: int | None = None
    concurrency: int | None = None
    config: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0


@dataclass(slots=True)
class Seen:
    """Seconds from the call to its result, and how late the calls themselves were; errors by kind."""

    waited: list[float] = field(default_factory=list)
    submitted: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1


def run_latency(options: LatencyOptions, progress: Progress = lambda phase, done, of: None) -> dict[str, Any]:
    """Measures and answers the figures of `bench latency --json`. Raises as `run_throughput` does."""
    with (
        ground(options.config, options.shards, options.settings) as place,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(_run(options, place, progress))


async def _run(options: LatencyOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    surroundings = await environment(ClusterConfig("bench", place.shards))
    async with fresh_cluster(place) as config:
        queues = [DEFAULT_QUEUE, _QUEUE] if options.backlog else None
        with workers(config, options.workers, options.concurrency, timed=False, queues=queues) as crew:
            async with _backlog(options, config, progress) as backlog:
                await quiet(place)
                await asyncio.to_thread(crew.go)
                backlog.begin()
                seen = await _traffic(options, config, backlog, progress)
            idle = await _idle(options, config, crew, progress) if options.idle else {}
            served = await asyncio.to_thread(crew.report)
    peaks = [each.rss_peak_kb for each in served if each.rss_peak_kb is not None]
    return {
        **_quantiles(seen.waited),
        "submit_p50_ms": _millis(_quantile(seen.submitted, 0.5)),
        "submit_p99_ms": _millis(_quantile(seen.submitted, 0.99)),
        "count": len(seen.waited),
        "errors": sum(seen.errors.values()),
        "errors_by_kind": seen.errors,
        "late_p99_ms": _millis(_quantile(seen.late, 0.99)),
        **backlog.figures,
        **idle,
        "worker_max_rss_mb": round(max(peaks) / 1024, 1) if peaks else None,
        "options": {
            "rate": options.rate,
            "seconds": options.seconds,
            "warm_up_seconds": WARM_UP,
            "backlog": options.backlog,
            "arrivals": "even" if options.even else "poisson",
            "steps": options.steps,
            "payload": options.payload,
            "workers": options.workers,
            "shards": len(place.shards),
            "concurrency": options.concurrency,
            "servers": "embedded" if place.servers is not None else "configured",
            "settings": dict(options.settings),
        },
        "environment": surroundings,
    }


class Backlog:
    """Workflows that wait in another queue, and when the last of them was claimed."""

    def __init__(self, options: LatencyOptions, config: ClusterConfig, conns: Sequence[tuple[Shard, Conn]]) -> None:
        self._options = options
        self._config = config
        self._conns = conns
        self._looking: asyncio.Task[None] | None = None
        self._began = 0.0
        self.over = False
        self.figures: dict[str, Any] = {}

    async def submit(self, progress: Progress) -> None:
        """Submits all of it."""
        count, load = self._options.backlog, _load(self._options)
        async with AsyncClient(self._config) as client:
            for done in range(0, count, _BULK):
                progress("backlog", done, count)
                numbers = range(_BEYOND + done, _BEYOND + min(count, done + _BULK))
                await client.submit_many(load.call(number).set(queue=_QUEUE) for number in numbers)

    def begin(self) -> None:
        """The workers begin to drain it."""
        if self._options.backlog:
            self._began = time.monotonic()
            self._looking = asyncio.create_task(self._look())

    async def end(self) -> None:
        """Waits until all of it has ended, and counts."""
        if self._looking is None:
            return
        await self._looking
        drained = time.monotonic() - self._began
        until = time.monotonic() + self._options.timeout + self._options.backlog / 500
        while True:
            if not await self._sum("left") or time.monotonic() >= until:
                break
            await asyncio.sleep(_LOOK)
        self.figures = {
            "backlog_ended": await self._sum("ended", _QUEUE),
            "backlog_claimed_per_s": round(self._options.backlog / drained),
        }

    async def stop(self) -> None:
        """Looks no more."""
        if self._looking is not None:
            await end([self._looking])

    async def _look(self) -> None:
        while not self.over:
            await asyncio.sleep(_LOOK)
            self.over = not await self._sum("waits", _QUEUE)

    async def _sum(self, name: str, *parameters: str) -> int:
        """Over all shards."""
        total = 0
        for shard, conn in self._conns:
            with shard.translate():
                cursor = await conn.execute(Statements(_TEXTS, shard.names)[name], parameters or None)
                row = await cursor.fetchone()
            total += int(row[0]) if row else 0
        return total


@asynccontextmanager
async def _backlog(options: LatencyOptions, config: ClusterConfig, progress: Progress) -> AsyncIterator[Backlog]:
    """The backlog, submitted; at the end of the block all of it has ended."""
    async with AsyncExitStack() as stack:
        shards = [Shard(shard) for shard in config.shards] if options.backlog else []
        conns = [(shard, await stack.enter_async_context(await shard.connect("bench"))) for shard in shards]
        backlog = Backlog(options, config, conns)
        await backlog.submit(progress)
        try:
            yield backlog
            await backlog.end()
        finally:
            await backlog.stop()


def _load(options: LatencyOptions) -> Load:
    return Load(0, options.steps, options.payload, options.payload)


async def _traffic(options: LatencyOptions, config: ClusterConfig, backlog: Backlog, progress: Progress) -> Seen:
    load = _load(options)
    seen, unseen = Seen(), Seen()
    dice = random.Random(0)
    begun: set[asyncio.Task[None]] = set()
    total = round(options.rate * options.seconds)
    loop = asyncio.get_running_loop()
    async with AsyncClient(config) as client:
        start = loop.time()
        at, number, counted = 0.0, 0, 0
        while counted < total and not backlog.over:
            at += 1 / options.rate if options.even else dice.expovariate(options.rate)
            await asyncio.sleep(start + at - loop.time())
            warm = at >= WARM_UP
            counted += warm
            into = seen if warm else unseen
            into.late.append(max(0.0, loop.time() - start - at))
            task = asyncio.create_task(_one(client, load, number, options.timeout, into))
            begun.add(task)
            task.add_done_callback(begun.discard)
            number += 1
            if counted % max(1, total // 100) == 0:
                progress("traffic", counted, total)
        await asyncio.gather(*begun)
    return seen


async def _one(client: AsyncClient, load: Load, number: int, timeout: float, seen: Seen) -> None:
    call = load.call(number)
    began = time.perf_counter()
    try:
        handle = await client.submit(call.workflow, *call.args, id=call.id)
        submitted = time.perf_counter()
        result = await handle.result(timeout)
    except ShardflowError as error:
        seen.failed(type(error).__name__)
        return
    ended = time.perf_counter()
    if result != result_of(load.text(number), -1, load.result):
        seen.failed("wrong result")
        return
    seen.waited.append(ended - began)
    seen.submitted.append(submitted - began)


async def _idle(options: LatencyOptions, config: ClusterConfig, crew: Workers, progress: Progress) -> dict[str, Any]:
    """What workers with nothing to do ask of a shard and cost."""
    async with AsyncExitStack() as stack:
        meters = []
        for shard in map(Shard, config.shards):
            conn = await stack.enter_async_context(await shard.connect("bench"))
            meters.append(await QueryMeter.on(shard, conn))
        await asyncio.sleep(_REST)
        began = time.monotonic()
        before = [await meter.read() for meter in meters]
        served = await asyncio.to_thread(crew.report)
        until = began + options.idle
        while (left := until - time.monotonic()) > 0:
            progress("idle", round((options.idle - left) * 10), round(options.idle * 10))
            await asyncio.sleep(min(left, 0.5))
        after = [await meter.read() for meter in meters]
        seconds = time.monotonic() - began
        ended = await asyncio.to_thread(crew.report)
    rates = [(b - a) / seconds for a, b in zip(before, after, strict=True)]
    cpu = [(b.now[1] - a.now[1]) / (b.now[0] - a.now[0]) for a, b in zip(served, ended, strict=True)]
    return {
        "idle_queries_per_s": round(max(rates), 2),
        "idle_queries_per_s_by_shard": {s.name: round(r, 2) for s, r in zip(config.shards, rates, strict=True)},
        "idle_queries_source": meters[0].source,
        "idle_seconds": round(seconds, 1),
        "idle_worker_cpu_percent": round(statistics.mean(cpu) * 100, 2),
    }


def _quantiles(values: list[float]) -> dict[str, float | None]:
    parts = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}
    return {name: _millis(_quantile(values, part)) for name, part in parts.items()}


def _quantile(values: list[float], part: float) -> float | None:
    """The least value that at least this part of the values does not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)]


def _millis(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
