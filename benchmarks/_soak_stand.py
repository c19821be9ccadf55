"""A server, workers and a load that goes on for long, looked at every few seconds.

Each sample says how many workflows have ended a second since the last one, what they cost, how long probes took, how
large tables, indexes and worker processes are, and how fast the machine was. In the end every workflow that was
submitted is accounted for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import yaml
from _soak_app import batch, probe

from shardflow import AsyncClient, ClusterConfig, RetentionConfig, ShardConfig, ShardflowError
from shardflow.bench.meters import server_cpu
from shardflow.embedded import Servers
from shardflow.storage import cluster

HERE = Path(__file__).resolve().parent
#: Submissions in one call, and those that may be under way for each worker where as many are submitted as it takes:
#: more than end in the second by which the server's counters lag.
BATCH, BACKLOG = 250, 20_000
#: Seconds between two probes.
PROBE = 0.2

_SIZES = """
SELECT c.relname, pg_table_size(c.oid), pg_indexes_size(c.oid), coalesce(s.n_dead_tup, 0),
       coalesce(s.autovacuum_count, 0)
FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE c.relnamespace = 'shardflow'::regnamespace AND c.relkind = 'r'"""
_ENDED = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE schemaname = 'shardflow' AND relname = 'outcome'"
_ACCOUNT = """
SELECT (SELECT count(*) FROM outcome) + (SELECT sum(deleted) FROM retention),
       (SELECT count(*) FROM outcome WHERE status <> 'succeeded')
           + (SELECT sum(deleted) FROM retention WHERE status <> 'succeeded'),
       (SELECT count(*) FROM ready) + (SELECT count(*) FROM wait) + (SELECT count(*) FROM outbox)
           + (SELECT count(*) FROM watcher),
       (SELECT count(*) FROM step s WHERE NOT EXISTS (SELECT FROM workflow w WHERE w.wf = s.wf))"""


@dataclass(frozen=True)
class Wanted:
    """What is to be run: `minutes`; `age`, seconds for which ended workflows are kept; `every`, seconds between
    samples; `workers`, processes; `payload`, bytes; `rate`, submissions a second, None for as many as are taken."""

    minutes: float
    age: float
    every: float
    workers: int = 1
    payload: int = 100
    rate: float | None = None


@dataclass
class Load:
    """What was submitted, and what of it has come back."""

    submitted: int = 0
    coming: int = 0
    ended: int = 0
    sent: int = 0
    waits: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Stand:
    """A shard on a server of its own, worker processes, and a connection to look with."""

    def __init__(
        self, config: ClusterConfig, server: int, workers: Sequence[subprocess.Popen[bytes]], wanted: Wanted
    ) -> None:
        self.config = config
        self.wanted = wanted
        self.load = Load()
        self.samples: list[dict[str, Any]] = []
        self.largest: dict[str, int] = {}
        self.pinned = False
        self._server = server
        self._workers = workers
        self._cpu = self.cpu()
        self._conn: psycopg.AsyncConnection[Any]

    async def ask(self, query: str) -> list[tuple[Any, ...]]:
        return await (await self._conn.execute(query)).fetchall()

    def rss_mb(self) -> float:
        """The largest resident size of a worker."""
        return max(_rss(worker.pid) for worker in self._workers) / 1e6

    def cpu(self) -> tuple[float, float]:
        """Seconds that the workers and the server have taken so far; zeros where there is no /proc."""
        return server_cpu([worker.pid for worker in self._workers]) or 0.0, server_cpu([self._server]) or 0.0

    # -- the load

    async def feed(self) -> None:
        """Submits until cancelled."""
        load, wanted = self.load, self.wanted
        began = time.monotonic()
        backlog = BACKLOG * wanted.workers
        async with AsyncClient(self.config) as client:
            while True:
                if wanted.rate is None:
                    short = backlog - (load.coming + load.sent - load.ended)
                else:
                    short = int((time.monotonic() - began) * wanted.rate) - load.submitted
                if short <= 0:
                    await asyncio.sleep(0.01)
                    continue
                calls, talks, come = batch(load.submitted, min(short, BATCH), wanted.payload)
                load.submitted += len(calls)
                load.coming += come
                try:
                    await _whole(self._give(client, calls, talks))
                except ShardflowError as error:
                    load.errors.append(str(error))
                    return

    @staticmethod
    async def _give(client: AsyncClient, calls: list[Any], talks: list[str]) -> None:
        await client.submit_many(calls)
        await asyncio.gather(*(client.send(id, "word", "go") for id in talks))

    async def count(self) -> None:
        """Reads until cancelled how many have ended, as the server's counters have it."""
        async with await psycopg.AsyncConnection.connect(self.config.shards[0].dsn, autocommit=True) as conn:
            while True:
                row = await (await conn.execute(_ENDED)).fetchone()
                self.load.ended = int(row[0]) if row else 0
                await asyncio.sleep(0.05)

    async def probe(self) -> None:
        """Submits probes until cancelled, whatever has become of those before."""
        tasks: set[asyncio.Task[None]] = set()
        async with AsyncClient(self.config) as client:
            try:
                while True:
                    self.load.sent += 1
                    tasks.add(task := asyncio.create_task(self._probe(client, self.load.sent)))
                    task.add_done_callback(tasks.discard)
                    await asyncio.sleep(PROBE)
            finally:
                if tasks:
                    await asyncio.wait(tasks, timeout=60)

    async def _probe(self, client: AsyncClient, number: int) -> None:
        began = time.monotonic()
        try:
            await (await client.submit(probe, "?", id=f"probe-{number}")).result(60)
        except ShardflowError as error:
            self.load.errors.append(f"probe {number}: {error}")
        self.load.waits.append((time.monotonic() - began) * 1000)

    # -- looks

    async def sample(self, began: float, before: tuple[float, int]) -> tuple[float, int]:
        """Adds a sample; answers the time and the number of ends that it counts to."""
        for worker in self._workers:
            if worker.poll() is not None:
                raise SystemExit(f"a worker ended with {worker.returncode}")
        now, ended = time.monotonic(), int((await self.ask(_ENDED))[0][0])
        waits, self.load.waits = sorted(self.load.waits), []
        cpu, self._cpu = self._cpu, self.cpu()
        costs = [(a - b) * 1e6 / max(1, ended - before[1]) for a, b in zip(self._cpu, cpu, strict=True)]
        rows = await self.ask(_SIZES)
        for name, table, indexes, _, _ in rows:
            self.largest[name] = max(self.largest.get(name, 0), table + indexes)
        self.samples.append(
            {
                "seconds": round(now - began, 1),
                "workflows_per_s": round((ended - before[1]) / (now - before[0])),
                "worker_cpu_us": round(costs[0], 1),
                "postgres_cpu_us": round(costs[1], 1),
                "machine_us": round(machine_us(), 1),
                "probe_p50_ms": round(statistics.median(waits), 1) if waits else None,
                "probe_p99_ms": round(waits[min(len(waits) - 1, int(len(waits) * 0.99))], 1) if waits else None,
                "table_bytes": int(sum(row[1] for row in rows)),
                "index_bytes": int(sum(row[2] for row in rows)),
                "dead": int(sum(row[3] for row in rows)),
                "autovacuums": int(sum(row[4] for row in rows)),
                "rss_mb": round(self.rss_mb(), 1),
                "pinned": self.pinned,
            }
        )
        return now, ended

    async def run(self, changes: Callable[[float], None] = lambda seconds: None) -> None:
        """Runs the load for the time that is wanted; `changes` is called behind each sample with the seconds since
        the beginning."""
        async with self._connected():
            chores = [asyncio.create_task(each) for each in (self.feed(), self.count(), self.probe())]
            began = time.monotonic()
            before = (began, 0)
            try:
                while (left := began + self.wanted.minutes * 60 - time.monotonic()) > 0.1:
                    _, pending = await asyncio.wait(
                        chores, timeout=min(left, self.wanted.every), return_when=asyncio.FIRST_EXCEPTION
                    )
                    if len(pending) < len(chores):
                        break
                    before = await self.sample(began, before)
                    self._tell()
                    changes(time.monotonic() - began)
            finally:
                for chore in (chores[0], chores[2]):  # the counting goes on meanwhile
                    chore.cancel()
                await asyncio.wait([chores[0], chores[2]])
                chores[1].cancel()
                await asyncio.wait([chores[1]])

    async def account(self) -> dict[str, int]:
        """Waits until all has ended; answers what is there too much or too little."""
        load, until = self.load, time.monotonic() + 120
        expected = load.coming + load.sent
        async with self._connected():
            while True:
                ended, unlucky, left, strays = (await self.ask(_ACCOUNT))[0]
                if (ended >= expected and not left) or time.monotonic() > until:
                    break
                await asyncio.sleep(0.2)
        return {
            "submitted": expected,
            "lost": max(0, expected - int(ended)),
            "duplicated": max(0, int(ended) - expected),
            "failed": int(unlucky),
            "left_over": int(left) + int(strays),
            "errors": len(load.errors),
        }

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        dsn, options = self.config.shards[0].dsn, "-c search_path=shardflow"
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, options=options) as conn:
            self._conn = conn
            yield

    def _tell(self) -> None:
        last = self.samples[-1]
        size = (last["table_bytes"] + last["index_bytes"]) / 1e6
        print(
            f"  {last['seconds']:7.0f} s  {last['workflows_per_s']:7,}/s  probe {last['probe_p50_ms']} / "
            f"{last['probe_p99_ms']} ms  {size:7.1f} MB  {last['dead']:9,} dead  worker {last['rss_mb']:.0f} MB"
            f"{'  pinned' if self.pinned else ''}",
            file=sys.stderr,
        )


async def _whole(coroutine: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end also where the caller is cancelled: half of a submission would be in no account."""
    task = asyncio.create_task(coroutine)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def machine_us() -> float:
    """CPU time of a loop that is always the same, at the least of some: what a neighbour on the machine changes."""
    least = float("inf")
    for _ in range(5):
        began = time.process_time()
        sum(range(20_000))
        least = min(least, time.process_time() - began)
    return least * 1e6


def _rss(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def stand(wanted: Wanted) -> Iterator[Stand]:
    """A shard on a server of its own with worker processes, for the block."""
    with Servers(1, settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as servers:
        kept = RetentionConfig(succeeded=wanted.age)
        config = ClusterConfig("soak", (ShardConfig("s0", servers[0].dsn),), retention=kept)
        asyncio.run(cluster.init(config))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cluster.yaml"
            file = {"name": "soak", "shards": [{"name": "s0", "dsn": servers[0].dsn}]}
            path.write_text(yaml.safe_dump({**file, "retention": {"succeeded": wanted.age}}))
            command = [sys.executable, "-m", "shardflow.cli", "worker", "run", "_soak_app:app"]
            env = {**os.environ, "SHARDFLOW_CONFIG": str(path), "SHARDFLOW_LOG_LEVEL": "warning"}
            workers = [subprocess.Popen(command, cwd=HERE, env=env) for _ in range(wanted.workers)]
            try:
                yield Stand(config, servers[0].pid, workers, wanted)
            finally:
                for worker in workers:
                    worker.terminate()
                for worker in workers:
                    worker.wait(60)


def mean(samples: Sequence[dict[str, Any]], key: str = "workflows_per_s") -> float:
    """Of one column."""
    return statistics.mean(sample[key] for sample in samples) if samples else 0.0


def size(sample: dict[str, Any]) -> int:
    """Bytes of all tables and indexes."""
    return int(sample["table_bytes"] + sample["index_bytes"])
