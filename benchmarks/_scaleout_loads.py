"""The loads of `scaleout.py` on a number of shards, and what is looked at meanwhile.

Drained: workers come up on held servers; the queue, paused, is filled by servers at full speed, and let go when these
are held again and all has settled. Apart: the same with each shard as a cluster of its own, which is what the machine
itself makes of so many servers and workers at once. Open: held servers get submits at fixed times, whatever has
become of those before, and some of the callers wait for results.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import psycopg
from _scaleout_throttle import Periods, Throttle

from shardflow import AsyncClient, ClusterConfig, ShardConfig
from shardflow.bench.arena import Ground, fresh_cluster, quiet
from shardflow.bench.audit import Watch, audit
from shardflow.bench.meters import server_cpu
from shardflow.bench.processes import BenchFailed, Workers, workers
from shardflow.bench.throughput import cpu_of, end_of, submit, verdict_on, watches_on
from shardflow.bench.workload import Load, result_of
from shardflow.model import DEFAULT_QUEUE

#: Seconds between looks at a run from outside: seldom, as a held server pays for them too.
LOOK = 0.5
#: The part of a backlog in whose course all shards are surely busy; what a look at one costs its server more than the
#: statistics do, is asked only afterwards, or when these have shown nothing new for so many seconds.
SURELY_BUSY = 0.7
REPORTED = 1.5
#: Seconds without any end of a workflow before a run is given up.
STUCK = 60.0
#: Seconds between the submits of the open load, each of which goes to all shards.
BEAT = 0.2
#: Seconds of the open load that are not counted.
WARM_UP = 2.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Crew:
    """Worker processes: `count` for each shard, which serve that one only, or, `shared`, in all, which serve all."""

    count: int = 1
    shared: bool = False
    concurrency: int | None = None

    def shards(self, config: ClusterConfig) -> list[list[str]]:
        """The shards of each process."""
        names = [shard.name for shard in config.shards]
        return [names] * self.count if self.shared else [[name] for name in names for _ in range(self.count)]


@dataclass(frozen=True, slots=True)
class Stand:
    """The first shards of the ground, what slows their servers, their workers; `settled`, seconds for which these are
    idle on held servers before the load comes; `apart`: as clusters of one each."""

    place: Ground
    throttle: Throttle
    crew: Crew
    settled: float
    apart: bool = False

    @property
    def postmasters(self) -> list[int]:
        return self.place.postmasters[: len(self.place.shards)]


@dataclass(slots=True)
class Sample:
    """What had been spent at a moment: CPU seconds of the servers, of this machine's cores idle and in all."""

    at: float
    servers: float | None
    idle: float
    cores: float
    periods: Periods | None


@dataclass(slots=True)
class Observed:
    """Samples from while all shards were busy."""

    stand: Stand
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> None:
        fields = []
        try:
            with open("/proc/stat") as file:
                fields = [int(n) for n in file.readline().split()[1:9]]
        except OSError:
            pass
        idle, cores = (fields[3] + fields[4], sum(fields)) if fields else (0, 0)
        servers = server_cpu(self.stand.postmasters)
        self.samples.append(
            Sample(time.monotonic(), servers, idle, cores, self.stand.throttle.periods(len(self.stand.place.shards)))
        )

    def figures(self, ends: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Per cent: of a core for each server, of the periods in which quotas were used up, of the machine idle; and
        what a workflow cost the servers, where `ends` are the times, in seconds since 1970, at which they ended."""
        if len(self.samples) < 2:
            return {}
        a, b = self.samples[0], self.samples[-1]
        wall = time.time() - time.monotonic()
        ended = sum(a.at < at - wall <= b.at for times in ends for at in times)
        found: dict[str, Any] = {"observed_seconds": round(b.at - a.at, 2)}
        if a.servers is not None and b.servers is not None:
            shards = len(self.stand.place.shards)
            found["server_cpu_percent"] = round((b.servers - a.servers) / (b.at - a.at) / shards * 100, 2)
            if ended:
                found["server_cpu_us_per_workflow"] = round((b.servers - a.servers) / ended * 1e6, 2)
        if a.periods is not None and b.periods is not None and b.periods.all > a.periods.all:
            used_up = (b.periods.used_up - a.periods.used_up) / (b.periods.all - a.periods.all)
            found["quota_used_up_percent"] = round(used_up * 100, 1)
        if b.cores > a.cores:
            found["machine_idle_percent"] = round((b.idle - a.idle) / (b.cores - a.cores) * 100, 1)
        return found


# -- drained


async def drained(stand: Stand, load: Load, progress: Progress) -> dict[str, Any]:
    """Figures of a backlog that is drained."""
    observed = Observed(stand)
    async with _clusters(stand, load) as clusters, AsyncExitStack() as opened:
        with ExitStack() as stack:
            crews = [stack.enter_context(_workers(stand, config)) for config, _ in clusters]
            gates = [await opened.enter_async_context(_gate(config)) for config, _ in clusters]
            with stand.throttle.held():
                began = time.monotonic()
                await asyncio.gather(*(asyncio.to_thread(crew.go) for crew in crews))
                start_up = time.monotonic() - began
            for config, part in clusters:
                await submit(config, part, lambda phase, done, of: None)
            watches = [w for config, _ in clusters for w in await opened.enter_async_context(watches_on(config))]
            await quiet(stand.place)
            with stand.throttle.held():
                await asyncio.sleep(stand.settled)
                idle = await asyncio.gather(*(asyncio.to_thread(crew.report) for crew in crews))
                let_go = time.monotonic()
                await asyncio.gather(*(gate.queues.resume(DEFAULT_QUEUE) for gate in gates))
                await _until_drained(watches, crews, load, observed, progress)
                reports = await asyncio.gather(*(asyncio.to_thread(crew.report) for crew in crews))
        verdicts = [
            verdict_on(await audit(config, part), served, part)
            for (config, part), served in zip(clusters, reports, strict=True)
        ]
        ends = [await _ends(shard) for config, _ in clusters for shard in config.shards]
    before, served = chain(*idle), list(chain(*reports))
    seconds = end_of(served) - let_go
    cpu = sum(cpu_of([each]) - (then.now[1] - then.connected[1]) for then, each in zip(before, served, strict=True))
    return {
        "workflows_per_s": round(load.workflows / seconds, 1),
        "busy_workflows_per_s": round(_while_all_busy(ends), 1),
        "seconds": round(seconds, 2),
        "start_up_seconds": round(start_up, 2),
        "workflows_by_shard": [len(times) for times in ends],
        "seconds_by_shard": [round(times[-1] - times[0], 2) if times else 0.0 for times in ends],
        "tail_seconds": round(_tail(ends), 2),
        **observed.figures(ends),
        **_of_workers(cpu, load, seconds),
        **{key: sum(verdict[key] for verdict in verdicts) for key in verdicts[0]},
    }


@asynccontextmanager
async def _gate(config: ClusterConfig) -> AsyncIterator[AsyncClient]:
    """A client that has paused the queue, with a connection to each shard."""
    async with AsyncClient(config) as client:
        await client.queues.pause(DEFAULT_QUEUE)
        yield client


@asynccontextmanager
async def _clusters(stand: Stand, load: Load) -> AsyncIterator[list[tuple[ClusterConfig, Load]]]:
    """The stand's cluster or clusters, and the load of each."""
    async with AsyncExitStack() as stack:
        shards = stand.place.shards
        groups = [(shard,) for shard in shards] if stand.apart else [shards]
        part = replace(load, workflows=load.workflows // len(groups))
        places = [replace(stand.place, shards=group) for group in groups]
        yield [(await stack.enter_async_context(fresh_cluster(place)), part) for place in places]


def _tail(ends: Sequence[Sequence[float]]) -> float:
    """Seconds from the first shard that had nothing left to the last one."""
    last = [times[-1] for times in ends if times]
    return max(last) - min(last) if last else 0.0


def _while_all_busy(ends: Sequence[Sequence[float]]) -> float:
    """Workflows that ended a second from when all shards had begun until the first had nothing left."""
    if not all(ends):
        return 0.0
    first, last = max(times[0] for times in ends), min(times[-1] for times in ends)
    within = sum(first < at <= last for times in ends for at in times)
    return within / (last - first) if last > first else 0.0


async def _until_drained(
    watches: Sequence[Watch], crews: Sequence[Workers], load: Load, observed: Observed, progress: Progress
) -> None:
    """Returns when no shard has anything to do. Looks at all at the same times, so that each pays the same, and at
    what costs a held server anything only towards the end."""
    ended, since = -1, time.monotonic()
    while True:
        for crew in crews:
            crew.check()
        now = sum(await asyncio.gather(*(watch.ended() for watch in watches)))
        if now != ended:
            ended, since = now, time.monotonic()
            progress(f"about {ended:,} of {load.workflows:,} workflows ended")
        still = time.monotonic() - since
        if ended < load.workflows * SURELY_BUSY and still < REPORTED:
            observed.look()
        elif not any(await asyncio.gather(*(watch.busy() for watch in watches))):
            return
        if still > STUCK:
            raise BenchFailed(f"nothing has ended for {STUCK:.0f} s; {ended:,} workflows had before")
        await asyncio.sleep(LOOK)


# -- open


@dataclass(slots=True)
class Seen:
    """What the callers of the open load saw, in seconds: how late submits began, took, and results were there."""

    late: list[float] = field(default_factory=list)
    submitted: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    wrong: int = 0


async def opened(stand: Stand, load: Load, rate: float, seconds: float, progress: Progress) -> dict[str, Any]:
    """Figures of submits at `rate` a second over all shards; `load` says what, not how many."""
    each = max(1, round(rate * BEAT))
    beats = round((WARM_UP + seconds) / BEAT)
    load = replace(load, workflows=each * beats)
    observed = Observed(stand)
    async with fresh_cluster(stand.place) as config:
        async with watches_on(config) as watches:
            with _workers(stand, config) as crew:
                await quiet(stand.place)
                with stand.throttle.held():
                    await asyncio.to_thread(crew.go)
                    await asyncio.sleep(stand.settled)
                    seen, began, ended = await _traffic(config, load, each, observed, progress)
                    await _until_drained(watches, [crew], load, Observed(stand), progress)
                    drained = time.monotonic()
                    served = await asyncio.to_thread(crew.report)
        found = await audit(config, load)
        ends = [await _ends(shard) for shard in config.shards]
    counted = sum(began + WARM_UP < at <= ended for times in ends for at in times)
    verdict = verdict_on(found, served, load)
    verdict["wrong"] += seen.wrong
    return {
        "offered_per_s": round(each / BEAT, 1),
        "workflows_per_s": round(counted / (ended - began - WARM_UP), 1),
        "late_p99_ms": _millis(seen.late, 0.99),
        "submit_p50_ms": _millis(seen.submitted, 0.5),
        "submit_p99_ms": _millis(seen.submitted, 0.99),
        "result_p50_ms": _millis(seen.waited, 0.5),
        "result_p99_ms": _millis(seen.waited, 0.99),
        "results": len(seen.waited),
        **observed.figures(ends),
        **_of_workers(cpu_of(served), load, drained - min(one.connected[0] for one in served)),
        **verdict,
    }


async def _traffic(
    config: ClusterConfig, load: Load, each: int, observed: Observed, progress: Progress
) -> tuple[Seen, float, float]:
    """Submits at every beat; answers what was seen, and when it began and ended, in seconds since 1970."""
    loop = asyncio.get_running_loop()
    seen, unseen = Seen(), Seen()
    begun: list[asyncio.Task[None]] = []
    sampled = len(config.shards)
    async with AsyncClient(config) as client:
        await client.submit_many([])
        start, wall = loop.time(), time.time()
        for beat, first in enumerate(range(0, load.workflows, each)):
            at = start + beat * BEAT
            await asyncio.sleep(at - loop.time())
            warm = beat * BEAT >= WARM_UP
            into = seen if warm else unseen
            into.late.append(max(0.0, loop.time() - at))
            begun.append(asyncio.create_task(_one(client, load, range(first, first + each), sampled, into)))
            if beat % round(1 / BEAT) == 0:
                progress(f"{first:,} of {load.workflows:,} submitted")
                if warm:
                    observed.look()
        await asyncio.sleep(start + load.workflows / each * BEAT - loop.time())
        observed.look()
        ended = wall + loop.time() - start
        await asyncio.gather(*begun)
    seen.wrong += unseen.wrong
    return seen, wall, ended


async def _one(client: AsyncClient, load: Load, numbers: range, sampled: int, seen: Seen) -> None:
    """Submits these, and waits for the results of some of them."""
    began = time.perf_counter()
    handles = await client.submit_many(load.calls(numbers))
    seen.submitted.append(time.perf_counter() - began)

    async def wait(place: int) -> None:
        result = await handles[place].result(STUCK)
        seen.waited.append(time.perf_counter() - began)
        seen.wrong += result != result_of(load.text(numbers[place]), -1, load.result)

    await asyncio.gather(*(wait(place) for place in range(min(sampled, len(handles)))))


# -- both


def _workers(stand: Stand, config: ClusterConfig) -> AbstractContextManager[Workers]:
    shards = stand.crew.shards(config)
    return workers(config, len(shards), stand.crew.concurrency, timed=True, shards=shards)


def _of_workers(cpu: float, load: Load, seconds: float) -> dict[str, Any]:
    return {
        "workers_cpu_percent": round(cpu / seconds * 100, 1),
        "worker_cpu_us_per_workflow": round(cpu / load.workflows * 1e6, 1),
    }


async def _ends(shard: ShardConfig) -> list[float]:
    """When each workflow of a shard ended, in order, in seconds since 1970."""
    query = psycopg.sql.SQL("SELECT date_part('epoch', finished_at) FROM {}.outcome ORDER BY 1")
    async with await psycopg.AsyncConnection.connect(shard.dsn) as conn:
        rows = await (await conn.execute(query.format(psycopg.sql.Identifier(shard.schema)), binary=True)).fetchall()
    return [float(row[0]) for row in rows]


def _millis(values: Sequence[float], part: float) -> float | None:
    """The least value, in milliseconds, that at least this part of the values does not exceed."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[max(0, -int(-part * len(ordered) // 1) - 1)] * 1000, 1)
