"""How many workflows a second a cluster does: all submitted and then drained, and submitted while workers drain.

Drained: the workers are loaded and wait while everything is submitted; the clock runs, on the machine's steady clock,
from the moment the first of them holds its leases (its first claim goes out with it) until the last of them has the
answer to its last commit. Overlapped: from the first submit to the same end. Starting processes never counts.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..client.aio import AsyncClient
from ..model import ClusterConfig, RetentionConfig
from ..storage.shard import Shard
from .arena import Ground, fresh_cluster, ground, quiet
from .audit import Found, Watch, audit, kept
from .meters import Written, environment, server_cpu, wal_bytes, written
from .processes import BenchFailed, Served, Workers, floor, loop_factory, workers
from .workload import Load

#: Workflows in one `submit_many`.
SUBMIT = 1_000
#: Seconds between looks at a run from outside, and without any progress before it is given up.
_LOOK = 0.1
_STUCK = 120.0
#: Seconds that the servers' statistics of rows may take to come: a session that idles reports its last ones late.
_STATISTICS = 20.0

#: Told what is going on: a phase's name, how much of it is done, of how much.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class ThroughputOptions:
    """What to measure.

    `config`: the cluster's file; None for embedded servers. `shards`: None for 1 embedded one, all configured ones.
    `workers`: processes, each of which serves all shards. `payload`: bytes of each input; `result`: bytes of each
    checkpoint and outcome, None for those of the payload, which is what the floor writes. `concurrency`: workflows at
    once in each worker; None for a worker's own default. `runs`: whose medians are reported. `retention`: also drain
    while what ended so many seconds ago is deleted; None for not. `settings`: Postgres settings of embedded servers.
    """

    workflows: int = 20_000
    steps: int = 1
    payload: int = 100
    result: int | None = None
    workers: int = 1
    shards: int | None = None
    concurrency: int | None = None
    config: Path | None = None
    runs: int = 1
    floor: bool = True
    overlapped: bool = True
    retention: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def load(self) -> Load:
        result = self.payload if self.result is None else self.result
        return Load(self.workflows, self.steps, self.payload, result)


def run_throughput(options: ThroughputOptions, progress: Progress = lambda phase, done, of: None) -> dict[str, Any]:
    """Measures and answers the figures of `bench throughput --json`.

    Raises BenchFailed where a process ends or nothing goes on any more, and what the servers raise.
    """
    with ground(options.config, options.shards, options.settings) as place:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            surroundings = runner.run(_surroundings(place))
        runs = []
        for number in range(options.runs):
            name = f"run {number + 1} of {options.runs}" if options.runs > 1 else "run"
            # The floor takes turns with the runs, before and after, so that a neighbour's load falls on both.
            parts = [_floor, drained, _retained, _overlapped]
            if number % 2:
                parts = [_retained, drained, _floor, _overlapped]
            figures: dict[str, Any] = {}
            for part in parts:
                figures |= part(options, place, lambda phase, *at, name=name: progress(f"{name}: {phase}", *at))
                gc.collect()
            for floor_name in _FLOORS:
                if per_s := figures.get(f"{floor_name}_workflows_per_s"):
                    figures[f"ratio_to_{floor_name}"] = round(figures["workflows_per_s"] / per_s, 3)
            if per_s := figures.get("retention_workflows_per_s"):
                figures["ratio_with_retention"] = round(per_s / figures["workflows_per_s"], 3)
            runs.append(figures)
    return _summary(options, place, surroundings, runs)


async def _surroundings(place: Ground) -> dict[str, Any]:
    return await environment(ClusterConfig("bench", place.shards))


# -- the parts of a run

#: The floor, whose loop drives psycopg as the worker does, and the tight one, which is libpq alone.
_FLOORS = {"floor": "psycopg", "tight_floor": "libpq"}
_FLOOR_FIGURES = (
    "submit_per_s",
    "postgres_cpu_us_per_workflow",
    "python_cpu_us_per_workflow",
    "wal_bytes_per_workflow",
)


def _floor(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    if not options.floor:
        return {}
    progress("floor", 0, 0)
    with asyncio.Runner() as runner:
        runner.run(quiet(place))
    load = options.load
    figures: dict[str, Any] = {}
    for name, driver in _FLOORS.items():
        answer = floor(
            place.shards[0].dsn, workflows=load.workflows, steps=load.steps, payload=load.payload, driver=driver
        )
        if "error" in answer:
            return {"floor_error": answer["error"]}
        figures[f"{name}_workflows_per_s"] = answer["floor_workflows_per_s"]
        figures[name] = {key: answer[key] for key in _FLOOR_FIGURES if key in answer}
    return figures


def drained(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_drain(options, place, progress))


def _overlapped(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    if not options.overlapped:
        return {}
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_overlap(options, place, progress))


def _retained(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    if options.retention is None:
        return {}
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_retain(options, place, progress))


async def _drain(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    load = options.load
    async with fresh_cluster(place) as config:
        with workers(config, options.workers, options.concurrency, timed=True) as crew:
            await quiet(place)
            wal_start, cpu_start = await wal_bytes(config), server_cpu(place.postmasters)
            submit_seconds, submit_cpu = await submit(config, load, progress)
            wal_submitted, cpu_submitted = await wal_bytes(config), server_cpu(place.postmasters)
            await asyncio.to_thread(crew.go)
            await _until_drained(config, crew, load, progress)
            cpu_end, wal_end = server_cpu(place.postmasters), await wal_bytes(config)
            served = await asyncio.to_thread(crew.report)
        rows = await _rows(config, load)
        found = await audit(config, load)
    n = load.workflows
    seconds = _seconds(served)
    peaks = [each.rss_peak_kb for each in served if each.rss_peak_kb is not None]
    return {
        "workflows_per_s": round(n / seconds),
        "steps_per_s": round(n * load.steps / seconds),
        "seconds": round(seconds, 3),
        "submit_per_s": round(n / submit_seconds),
        "worker_cpu_us_per_workflow": _micros(cpu_of(served), n),
        "worker_cpu_percent": round(cpu_of(served) / seconds * 100),
        "postgres_cpu_us_per_workflow": _between(cpu_submitted, cpu_end, n),
        "submit_client_cpu_us_per_workflow": _micros(submit_cpu, n),
        "submit_postgres_cpu_us_per_workflow": _between(cpu_start, cpu_submitted, n),
        "wal_bytes_per_workflow": round((wal_end - wal_start) / n),
        "submit_wal_bytes_per_workflow": round((wal_submitted - wal_start) / n),
        "rows_per_workflow": round(rows.rows / n, 2) if rows else None,
        "index_entries_per_workflow": round(rows.index_entries / n, 2) if rows else None,
        "dead_rows_per_workflow": round(rows.dead / n, 2) if rows else None,
        "worker_max_rss_mb": round(max(peaks) / 1024, 1) if peaks else None,
        **verdict_on(found, served, load),
    }


async def _rows(config: ClusterConfig, load: Load) -> Written | None:
    """What was written, when all of it has come to be known; None where it does not."""
    deadline = time.monotonic() + _STATISTICS
    while (found := await written(config)).ends < load.workflows or found.dead < load.workflows:
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(_LOOK)
    return found


async def _retain(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    """As `_drain`, with retention; what it has deleted was there, so only what ended and how is counted."""
    load = options.load
    async with fresh_cluster(place) as fresh:
        config = replace(fresh, retention=RetentionConfig(succeeded=options.retention))
        with workers(config, options.workers, options.concurrency, timed=True) as crew:
            await quiet(place)
            await submit(config, load, progress)
            cpu_submitted = server_cpu(place.postmasters)
            await asyncio.to_thread(crew.go)
            await _until_drained(config, crew, load, progress)
            cpu_end, (there, bad, deleted) = server_cpu(place.postmasters), await kept(config)
            served = await asyncio.to_thread(crew.report)
        there_now, bad_now, deleted_now = await kept(config)
    n, ended = load.workflows, there_now + deleted_now
    return {
        "retention_workflows_per_s": round(n / _seconds(served)),
        "retention_deleted_per_workflow": round(deleted / n, 3),
        "retention_worker_cpu_us_per_workflow": _micros(cpu_of(served), n),
        "retention_postgres_cpu_us_per_workflow": _between(cpu_submitted, cpu_end, n),
        "retention_lost": max(0, n - ended),
        "retention_duplicated": max(0, ended - n) + max(0, sum(each.workflows for each in served) - n),
        "retention_wrong": max(bad, bad_now),
        "retention_left": max(0, n - there - deleted),
    }


async def _overlap(options: ThroughputOptions, place: Ground, progress: Progress) -> dict[str, Any]:
    load = options.load
    async with fresh_cluster(place) as config:
        with workers(config, options.workers, options.concurrency, timed=True) as crew:
            await quiet(place)
            await asyncio.to_thread(crew.go)
            started = time.monotonic()
            await submit(config, load, progress)
            await _until_drained(config, crew, load, progress)
            served = await asyncio.to_thread(crew.report)
        found = await audit(config, load)
    seconds = end_of(served) - started
    verdict = verdict_on(found, served, load)
    return {
        "overlapped_workflows_per_s": round(load.workflows / seconds),
        "overlapped_seconds": round(seconds, 3),
        **{f"overlapped_{key}": verdict[key] for key in verdict},
    }


async def submit(config: ClusterConfig, load: Load, progress: Progress) -> tuple[float, float]:
    """Submits all, `SUBMIT` in a call and one call after the other; seconds that the calls took, and of CPU here."""
    took = cpu = 0.0
    async with AsyncClient(config) as client:
        await client.submit_many([])
        for first in range(0, load.workflows, SUBMIT):
            calls = load.calls(range(first, min(first + SUBMIT, load.workflows)))
            began, cpu_began = time.perf_counter(), time.process_time()
            await client.submit_many(calls)
            took += time.perf_counter() - began
            cpu += time.process_time() - cpu_began
            progress("submit", first + len(calls), load.workflows)
    return took, cpu


async def _until_drained(config: ClusterConfig, crew: Workers, load: Load, progress: Progress) -> None:
    """Returns when nothing is ready, claimed or suspended any more."""
    async with watches_on(config) as watches:
        ended, since = -1, time.monotonic()
        while True:
            busy = [await watch.busy() for watch in watches]
            if not any(busy):
                return
            crew.check()
            now = sum([await watch.ended() for watch in watches])
            if now != ended:
                ended, since = now, time.monotonic()
                progress("drain", ended, load.workflows)
            elif time.monotonic() - since > _STUCK:
                raise BenchFailed(f"nothing has ended for {_STUCK:.0f} s; {ended} of {load.workflows} had before")
            await asyncio.sleep(_LOOK)


@asynccontextmanager
async def watches_on(config: ClusterConfig) -> AsyncIterator[list[Watch]]:
    """One for each shard, in their order."""
    async with AsyncExitStack() as stack:
        watches = []
        for shard in map(Shard, config.shards):
            conn = await stack.enter_async_context(await shard.connect("bench"))
            watches.append(Watch(shard, conn))
        yield watches


# -- figures


def end_of(served: Sequence[Served]) -> float:
    """When the last worker became idle."""
    ends = [each.idle[0] for each in served if each.idle is not None]
    if not ends:
        raise BenchFailed("no worker has run anything")
    return max(ends)


def _seconds(served: Sequence[Served]) -> float:
    """From the first worker's leases to the last one's last commit."""
    return end_of(served) - min(each.connected[0] for each in served)


def cpu_of(served: Sequence[Served]) -> float:
    """CPU seconds of all workers while they had something to do."""
    return sum((each.idle or each.connected)[1] - each.connected[1] for each in served)


def _micros(seconds: float, workflows: int) -> float:
    return round(seconds / workflows * 1e6, 1)


def _between(start: float | None, end: float | None, workflows: int) -> float | None:
    return None if start is None or end is None else _micros(end - start, workflows)


def verdict_on(found: Found, served: Sequence[Served], load: Load) -> dict[str, Any]:
    """What was found in the database, with what the workers ran more often than once."""
    again = max(0, sum(each.workflows for each in served) - load.workflows)
    steps_again = max(0, sum(each.steps for each in served) - load.workflows * load.steps)
    return {
        "lost": found.lost,
        "duplicated": found.duplicated + again + steps_again,
        "wrong": found.wrong,
        "left": found.left,
        "workflows_found": found.workflows,
        "steps_found": found.steps,
    }


_FAULTS = ("lost", "duplicated", "wrong", "left")


def _summary(
    options: ThroughputOptions, place: Ground, surroundings: dict[str, Any], runs: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Medians over the runs of all that is measured, sums of what must be zero."""
    figures: dict[str, Any] = {}
    for key in (
        "workflows_per_s",
        "steps_per_s",
        "submit_per_s",
        "overlapped_workflows_per_s",
        "floor_workflows_per_s",
        "ratio_to_floor",
        "tight_floor_workflows_per_s",
        "ratio_to_tight_floor",
        "worker_cpu_us_per_workflow",
        "worker_cpu_percent",
        "postgres_cpu_us_per_workflow",
        "submit_client_cpu_us_per_workflow",
        "submit_postgres_cpu_us_per_workflow",
        "wal_bytes_per_workflow",
        "submit_wal_bytes_per_workflow",
        "rows_per_workflow",
        "index_entries_per_workflow",
        "dead_rows_per_workflow",
        "retention_workflows_per_s",
        "ratio_with_retention",
        "retention_deleted_per_workflow",
        "retention_worker_cpu_us_per_workflow",
        "retention_postgres_cpu_us_per_workflow",
    ):
        values = [run[key] for run in runs if run.get(key) is not None]
        figures[key] = statistics.median(values) if values else None
    peaks = [run["worker_max_rss_mb"] for run in runs if run["worker_max_rss_mb"] is not None]
    figures["worker_max_rss_mb"] = max(peaks) if peaks else None
    for key in _FAULTS:
        figures[key] = sum(run.get(part + key, 0) for run in runs for part in ("", "overlapped_", "retention_"))
    load = options.load
    asked = asdict(load) | {
        "workers": options.workers,
        "shards": len(place.shards),
        "concurrency": options.concurrency,
        "servers": "embedded" if place.servers is not None else "configured",
        "settings": dict(options.settings),
        "runs": options.runs,
        "retention": options.retention,
    }
    return {
        **figures,
        "verified": not any(figures[key] for key in _FAULTS),
        "options": asked,
        "environment": surroundings,
        "runs": list(runs),
    }
