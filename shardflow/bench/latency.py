"""How long a caller waits for a result, from the submit call to the result in hand, and what idling costs.

An open loop: submits begin at the times of a Poisson process (or evenly), whatever has become of those before, from
one client in one event loop. After the traffic has ended, the workers idle and are measured again.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..client.aio import AsyncClient
from ..errors import ShardflowError
from ..model import ClusterConfig
from ..storage.shard import Shard
from .arena import Ground, fresh_cluster, ground, quiet
from .meters import QueryMeter, environment
from .processes import Workers, loop_factory, workers
from .workload import Load, result_of

#: Seconds of traffic that are not counted: connections, prepared statements, caches.
WARM_UP = 1.0
#: Seconds for the workers to come to rest before idling is measured.
_REST = 3.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """What to measure: `rate`, submits a second; `seconds` of them; `idle`, seconds of idling measured (0: none);
    `even`, submits at even distances instead of random ones. The others are those of `ThroughputOptions`."""

    rate: float = 100.0
    seconds: float = 10.0
    steps: int = 1
    payload: int = 100
    even: bool = False
    idle: float = 10.0
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
        with workers(config, options.workers, options.concurrency, timed=False) as crew:
            await quiet(place)
            await asyncio.to_thread(crew.go)
            seen = await _traffic(options, config, progress)
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
        **idle,
        "worker_max_rss_mb": round(max(peaks) / 1024, 1) if peaks else None,
        "options": {
            "rate": options.rate,
            "seconds": options.seconds,
            "warm_up_seconds": WARM_UP,
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


async def _traffic(options: LatencyOptions, config: ClusterConfig, progress: Progress) -> Seen:
    load = Load(0, options.steps, options.payload, options.payload)
    seen, unseen = Seen(), Seen()
    dice = random.Random(0)
    begun: set[asyncio.Task[None]] = set()
    total = round(options.rate * options.seconds)
    loop = asyncio.get_running_loop()
    async with AsyncClient(config) as client:
        start = loop.time()
        at, number, counted = 0.0, 0, 0
        while counted < total:
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
