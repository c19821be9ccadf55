"""The size of the world: what an operation takes among a million workflows, against the same among ten thousand.

Two shards on one server are filled: one with `--few`, one with `--rows` workflows of each kind, finished, suspended
and ready, made by the engine and copied. Then each operation is timed on both in turns, and the medians are compared:
on tables that were never analysed, by clients that were there when these were empty, and after VACUUM and ANALYZE. A
worker process serves each shard all the time; its memory is compared too.

    python benchmarks/million.py --rows 1000000 --out benchmarks/results/million.json

Ends with 1 where an operation takes more than `--limit` times as long, or the worker more memory. Exact counts, which
read what they count, are reported and not judged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml
from _million_ask import LINEAR, OPERATIONS, SERVED, Operation, Stand
from _million_fill import EMPTY, multiply, samples

from shardflow import AsyncClient, ClusterConfig, PoolConfig, ShardConfig, Status
from shardflow.bench import results
from shardflow.bench.meters import environment
from shardflow.embedded import Servers
from shardflow.storage import checkup, cluster
from shardflow.storage.shard import Shard

HERE = Path(__file__).resolve().parent
SETTINGS = {"shared_buffers": "2GB", "max_wal_size": "16GB", "checkpoint_timeout": "1h"}
#: Operations that are over the limit are timed again, so many times as often: the machine may have been busy.
AGAIN = 3
#: Rounds of a quick run.
QUICK = 2


@dataclass
class Side:
    """One of the two shards: as it is asked, and its worker."""

    stand: Stand
    worker: subprocess.Popen[bytes]

    def rss(self) -> float:
        """The worker's resident size in MB."""
        pages = int(Path(f"/proc/{self.worker.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def serving(config: ClusterConfig) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process for the queue beside the backlog."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        shards = [{"name": s.name, "dsn": s.dsn, "schema": s.schema} for s in config.shards]
        path.write_text(yaml.safe_dump({"name": config.name, "shards": shards}))
        command = [sys.executable, "-m", "shardflow.cli", "worker", "run", "_million_app:app", "--queue", "side"]
        environ = {**os.environ, "SHARDFLOW_CONFIG": str(path), "SHARDFLOW_LOG_LEVEL": "warning"}
        worker = subprocess.Popen(command, cwd=HERE, env=environ)
        try:
            yield worker
        finally:
            worker.terminate()
            worker.wait(60)


@asynccontextmanager
async def side(dsn: str, schema: str, rows: int) -> AsyncIterator[Side]:
    """A shard of that size, whose client and connections have asked everything before it was filled."""
    config = ClusterConfig("million", (ShardConfig("s0", dsn, schema),), pool=PoolConfig(timeout=60.0))
    await cluster.init(config)
    shard = Shard(config.shards[0])
    with psycopg.connect(dsn, autocommit=True) as conn:
        for table in _tables(conn, schema):
            conn.execute(f"ALTER TABLE {schema}.{table} SET (autovacuum_enabled = off)".encode())
    await samples(config)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(config))
        keeping, writing, checking = [
            await stack.enter_async_context(await shard.connect(f"{role} bench"))
            for role in ("keeper", "commit", "cli")
        ]
        stand = Stand(EMPTY, client, shard, keeping, writing, checking)
        for operation in (*OPERATIONS.values(), *LINEAR.values()):
            for _ in range(6):  # so that plans are made, and kept
                with contextlib.suppress(Exception):  # nothing is there yet
                    await operation(stand)
        began = time.monotonic()
        stand.filled = await asyncio.to_thread(multiply, dsn, schema, rows)
        stand.numbers.clear()
        say(f"{rows:,} of each kind in {time.monotonic() - began:.0f} s")
        yield Side(stand, stack.enter_context(serving(config)))


def _tables(conn: psycopg.Connection[Any], schema: str) -> list[str]:
    query = "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'"
    return [row[0] for row in conn.execute(query, (schema,)).fetchall()]


async def timed(operation: Operation, stand: Stand) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    took = await operation(stand)
    return 1e3 * (time.perf_counter() - began if took is None else took)


async def compare(
    operations: Mapping[str, Operation], state: str, sides: list[Side], rounds: int, limit: float
) -> Any:
    """The medians of each operation on both sides, which take turns."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in sides] for name in operations}

    async def ask(names: list[str], times: int) -> None:
        for turn in range(times):
            for name in names:
                for place in (0, 1) if turn % 2 else (1, 0):
                    taken[name][place].append(await timed(operations[name], sides[place].stand))

    def ratio(name: str) -> float:
        few, many = map(statistics.median, taken[name])
        return many / few

    await ask(list(operations), 1)
    for times in taken.values():
        for each in times:
            each.clear()
    await ask(list(operations), rounds)
    # A quick run is not judged.
    if rounds > QUICK and (
        doubtful := [name for name in operations if ratio(name) > limit and operations[name] not in LINEAR.values()]
    ):
        await ask(doubtful, AGAIN * rounds)
    found = []
    for name, (few, many) in taken.items():
        found.append(
            {
                "operation": name,
                "state": state,
                "few_ms": round(statistics.median(few), 3),
                "many_ms": round(statistics.median(many), 3),
                "ratio": round(ratio(name), 2),
                "times": len(few),
            }
        )
        say(f"{state}: {name}: {found[-1]['few_ms']} -> {found[-1]['many_ms']} ms, {found[-1]['ratio']}")
    return found


async def audit(of: Side) -> dict[str, int]:
    """What a shard holds at the end, and how much of it is not in exactly one place."""
    at = of.stand
    counts = (await at.client.count()).by_status
    row = await (
        await at.checking.execute(f"SELECT count(*) FROM {at.shard.config.schema}.workflow".encode())
    ).fetchone()
    places = (await checkup.examine(at.shard, at.checking, deep=True)).places
    assert row is not None
    assert places is not None
    return {
        "workflows": row[0],
        "ready": counts[Status.READY],
        "suspended": counts[Status.SUSPENDED],
        "ended": sum(number for status, number in counts.items() if status.final),
        "misplaced": len(places.misplaced),
    }


async def measure(dsn: str, few: int, rows: int, rounds: int, limit: float) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    linear: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    async with side(dsn, "many", rows) as many, side(dsn, "few", few) as other:
        sides = [other, many]
        for state in ("never analysed", "analysed"):
            if state == "analysed":
                with psycopg.connect(dsn, autocommit=True) as conn:
                    conn.execute("VACUUM (ANALYZE)")
            with psycopg.connect(dsn, autocommit=True) as conn:
                conn.execute("CHECKPOINT")
            found += await compare(OPERATIONS, state, sides, rounds, limit)
            found += await compare(SERVED, state, sides, max(min(rounds, 3), rounds // 4), limit)
            linear += await compare(LINEAR, state, sides, 3, limit)
            sizes = [each.rss() for each in sides]
            memory.append(
                {
                    "operation": "memory of the worker",
                    "state": state,
                    "few_mb": round(sizes[0], 1),
                    "many_mb": round(sizes[1], 1),
                    "ratio": round(sizes[1] / sizes[0], 2),
                }
            )
        config = many.stand.client.config
        shards = [await audit(each) for each in sides]
        return {
            "environment": await environment(config),
            "figures": {"operations": found, "memory": memory, "counts": linear, "shards": shards},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="workflows of each kind on the large side")
    parser.add_argument("--few", type=int, default=10_000, help="on the small side")
    parser.add_argument("--rounds", type=int, default=15, help="how often each operation is timed on each side")
    parser.add_argument("--limit", type=float, default=1.5, help="how many times as long it may take")
    parser.add_argument("--quick", action="store_true", help="2,000 against 20,000, to see that it works: not judged")
    parser.add_argument("--out", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.few, arguments.rows, arguments.rounds = 2_000, 20_000, QUICK
    if not 2_000 <= arguments.few < arguments.rows or arguments.rounds < 1:
        parser.error("--few must be at least 2,000, --rows more than that, --rounds at least 1")
    with Servers(1, settings=SETTINGS) as servers:
        answer = asyncio.run(
            measure(servers[0].dsn, arguments.few, arguments.rows, arguments.rounds, arguments.limit)
        )
    lost = [
        each
        for each in answer["figures"]["shards"]
        if each["misplaced"] or each["workflows"] != each["ready"] + each["suspended"] + each["ended"]
    ]
    judged = answer["figures"]["operations"] + answer["figures"]["memory"]
    over = [f"{each['operation']} ({each['state']})" for each in judged if each["ratio"] > arguments.limit]
    answer["options"] = {name: getattr(arguments, name) for name in ("few", "rows", "rounds", "limit", "quick")}
    answer["figures"]["over"] = over
    if arguments.out is not None:
        results.write(arguments.out, "million", answer)
    print(json.dumps(answer, indent=1))
    if over:
        print(f"more than {arguments.limit} times as long: {', '.join(over)}", file=sys.stderr)
    if lost:
        print(f"not in exactly one place: {lost}", file=sys.stderr)
    if lost or (over and not arguments.quick):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
