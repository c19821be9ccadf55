"""Suspended workflows by the hundred thousand: what they cost a worker's memory, and how late they wake.

Three parts, each on a fresh shard with one worker process: all due at the same moment (how many wake a second); due
one after the other at a given rate (how late each is); waiting for messages that come all at once. Lateness is by the
server's clock: the end of the workflow against the time that it was to wake at.

    python benchmarks/sleepers.py --count 100000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml
from _sleepers_app import listens, naps

from shardflow import AsyncClient, ClusterConfig, ShardConfig
from shardflow.bench import results
from shardflow.bench.meters import environment
from shardflow.embedded import Servers
from shardflow.storage import cluster

HERE = Path(__file__).resolve().parent
BATCH = 5_000
LATE = """
SELECT count(*), coalesce(max(late), 0), coalesce(percentile_cont(0.99) WITHIN GROUP (ORDER BY late), 0),
       coalesce(date_part('epoch', max(finished_at) - min(finished_at)), 0)
FROM (
    SELECT o.finished_at,
           date_part('epoch', o.finished_at) - (convert_from(w.input, 'UTF8')::jsonb -> 0 ->> 0)::float8 AS late
    FROM {schema}.outcome o JOIN {schema}.workflow w USING (wf) WHERE o.status = 'succeeded'
) ended"""


@dataclass
class Stand:
    """A fresh shard, a client, and a worker process."""

    config: ClusterConfig
    worker: subprocess.Popen[bytes]
    conn: psycopg.Connection[Any]

    def ask(self, query: str) -> tuple[Any, ...]:
        row = self.conn.execute(query.replace("{schema}", self.config.shards[0].schema)).fetchone()
        assert row is not None
        return row

    def rss(self) -> float:
        """The worker's resident size in MB."""
        pages = int(Path(f"/proc/{self.worker.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def until(self, query: str, wanted: int, what: str, seconds: float = 600.0) -> None:
        """Waits until the query counts so many; says on the way how far it is."""
        began = told = time.monotonic()
        while (found := self.ask(query)[0]) < wanted:
            if self.worker.poll() is not None:
                raise SystemExit(f"the worker ended with {self.worker.returncode}")
            if time.monotonic() - began > seconds:
                raise SystemExit(f"only {found:,} of {wanted:,} {what} after {seconds:.0f} s")
            if time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"  {found:,} of {wanted:,} {what}", file=sys.stderr)
            await asyncio.sleep(0.1)


@contextmanager
def stand(servers: Servers, schema: str) -> Iterator[Stand]:
    """A shard in a schema of its own, and one worker process for it."""
    config = ClusterConfig("sleepers", (ShardConfig("s0", servers[0].dsn, schema),))
    asyncio.run(cluster.init(config))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        shard = {"name": "s0", "dsn": servers[0].dsn, "schema": schema}
        path.write_text(yaml.safe_dump({"name": "sleepers", "shards": [shard]}))
        command = [sys.executable, "-m", "shardflow.cli", "worker", "run", "_sleepers_app:app"]
        worker = subprocess.Popen(
            command, cwd=HERE, env={**os.environ, "SHARDFLOW_CONFIG": str(path), "SHARDFLOW_LOG_LEVEL": "warning"}
        )
        try:
            with psycopg.connect(servers[0].dsn, autocommit=True) as conn:
                yield Stand(config, worker, conn)
        finally:
            worker.terminate()
            worker.wait(60)


async def submit(config: ClusterConfig, calls: list[Any]) -> None:
    async with AsyncClient(config) as client:
        for first in range(0, len(calls), BATCH):
            await client.submit_many(calls[first : first + BATCH])


async def asleep(at: Stand, count: int) -> dict[str, float]:
    """Waits until all are suspended; answers the worker's memory, at a hundredth of them and at all."""
    waits = "SELECT count(*) FROM {schema}.wait"
    await at.until(waits, max(1, count // 100), "suspended")
    first = at.rss()
    await at.until(waits, count, "suspended")
    return {"rss_mb_at_a_hundredth": round(first, 1), "rss_mb_at_all": round(at.rss(), 1)}


async def at_once(at: Stand, count: int) -> dict[str, float]:
    """All are due at the same moment."""
    due = time.time() + 10 + count / 2_500
    began = time.monotonic()
    await submit(at.config, [naps.call(due) for _ in range(count)])
    found = await asleep(at, count)
    found["suspended_per_second"] = round(count / (time.monotonic() - began))
    if time.time() > due:
        raise SystemExit("the machine is too slow: the time came before all were asleep")
    await at.until("SELECT count(*) FROM {schema}.outcome", count, "awake", due - time.time() + 600)
    _, last, _, _ = at.ask(LATE)
    return found | {"last_awake_after_seconds": round(last, 2), "awake_per_second": round(count / last)}


async def one_by_one(at: Stand, count: int, rate: float) -> dict[str, float]:
    """They are due one after the other, at a rate."""
    first = time.time() + 10 + count / 2_500
    await submit(at.config, [naps.call(first + n / rate) for n in range(count)])
    found = await asleep(at, count)
    await at.until("SELECT count(*) FROM {schema}.outcome", count, "awake", first - time.time() + count / rate + 600)
    _, most, p99, _ = at.ask(LATE)
    return found | {"rate": rate, "late_p99_seconds": round(p99, 3), "late_max_seconds": round(most, 3)}


async def by_message(at: Stand, count: int) -> dict[str, float]:
    """All get a message at once."""
    await submit(at.config, [listens.call().set(id=f"listener-{n}") for n in range(count)])
    found = await asleep(at, count)
    began = time.monotonic()
    async with AsyncClient(at.config) as client:
        for first in range(0, count, BATCH):
            ids = range(first, min(first + BATCH, count))
            await asyncio.gather(*(client.send(f"listener-{n}", "go", "now") for n in ids))
    sent = time.monotonic() - began
    await at.until("SELECT count(*) FROM {schema}.outcome", count, "awake")
    took = time.monotonic() - began
    return found | {"sent_per_second": round(count / sent), "awake_per_second": round(count / took)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="suspended workflows in each part")
    parser.add_argument("--rate", type=float, default=2_000.0, help="due a second in the second part")
    parser.add_argument("--messages", type=int, default=20_000, help="suspended workflows in the third part")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures here, for `bench report`")
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.messages < 1 or arguments.rate <= 0:
        parser.error("numbers must be above 0")
    answer: dict[str, Any] = {"count": arguments.count}
    with Servers(1, settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as servers:
        surroundings = asyncio.run(environment(ClusterConfig("sleepers", (ShardConfig("s0", servers[0].dsn),))))
        with stand(servers, "sleepers_at_once") as at:
            answer["at_once"] = asyncio.run(at_once(at, arguments.count))
        with stand(servers, "sleepers_one_by_one") as at:
            answer["one_by_one"] = asyncio.run(one_by_one(at, arguments.count, arguments.rate))
        with stand(servers, "sleepers_by_message") as at:
            answer["by_message"] = asyncio.run(by_message(at, arguments.messages))
    if arguments.out is not None:
        options = {"count": arguments.count, "rate": arguments.rate, "messages": arguments.messages}
        results.write(arguments.out, "sleepers", {"environment": surroundings, "options": options, "figures": answer})
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
