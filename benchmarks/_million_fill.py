"""Fills a shard with workflows: the engine runs some, then all of their rows are copied, as often as wanted.

Guarantee: a copy differs from what the engine wrote in its key, its id, its time and its attributes only.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from _million_app import app, listens, order
from psycopg import sql

from shardflow import AsyncClient, ClusterConfig, Worker

#: What many have.
USUAL = {"tenant": "usual"}
#: So many workflows have attributes that nobody else has.
RARE = 5
#: In how many days all of it was submitted.
DAYS = 10
TABLES = """
SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
GROUP BY c.relname HAVING 'wf' = ANY(array_agg(a.attname)) ORDER BY c.relname
"""


@dataclass(frozen=True)
class Filled:
    """What a shard holds: so many that are done, that wait, that are ready, and a hundredth that failed.

    What has ended and what waits alternate among the keys, what is ready is the newest. They were submitted one after
    the other in the last `DAYS`, from `began` on.
    """

    rows: int
    base: int
    began: datetime

    @property
    def kinds(self) -> dict[str, int]:
        return {"done": self.rows, "waiting": self.rows, "failed": max(10, self.rows // 100), "ready": self.rows}

    def place(self, kind: str) -> tuple[int, int]:
        """Behind `base`, where the keys of a kind begin, and the distance from each to the next."""
        return {
            "done": (0, 3),
            "waiting": (1, 3),
            "failed": (2, 300),
            "ready": (3 * self.rows + 3_000, 1),
        }[kind]

    def key(self, kind: str, number: int) -> int:
        first, step = self.place(kind)
        return self.base + first + step * number

    @property
    def pace(self) -> timedelta:
        """From one key to the next."""
        return timedelta(days=DAYS) / (4 * self.rows + 3_000)

    @property
    def middle(self) -> datetime:
        """When half of what has ended was submitted."""
        return self.began + 3 * self.rows / 2 * self.pace

    @property
    def last(self) -> int:
        return self.key("ready", self.rows)


#: Nothing yet.
EMPTY = Filled(0, 0, datetime.now(UTC))


def id_of(kind: str, number: int) -> str:
    """The id of a copy; numbers begin with 1."""
    return f"{kind}-{number:012d}"


async def samples(config: ClusterConfig) -> None:
    """Has a worker run one workflow of each kind, but for the one that is to be ready: nobody serves its queue."""
    async with AsyncClient(config) as client:
        done = await client.submit(order, 5, id="done", queue="samples", attributes=USUAL)
        await client.submit(order, -5, id="failed", queue="samples")
        await client.submit(listens, id="waiting")
        await client.submit(order, 5, id="ready", attributes=USUAL)
        worker = Worker(config, app, queues=["samples", "asleep"])
        await worker.start()
        try:
            await done.result(60)
            await client.wait(["failed"], timeout=60)
            for _ in range(600):
                if (await client.info("waiting")).status == "suspended":
                    break
                await asyncio.sleep(0.05)
        finally:
            await worker.stop()


def multiply(dsn: str, schema: str, rows: int) -> Filled:
    """Copies the samples."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        conn.execute("SET synchronous_commit = off")
        began = _one(conn, "SELECT now() - make_interval(days => %s)", DAYS + 1)
        filled = Filled(rows, _one(conn, "SELECT nextval('key')"), began)
        conn.execute("UPDATE workflow SET submitted_at = %s", (began,))  # times go up with the keys
        tables = conn.execute(TABLES).fetchall()
        for kind, count in filled.kinds.items():
            wf = _one(conn, "SELECT wf FROM workflow WHERE id = %s", kind)
            for table, columns in tables:
                _copy(conn, table, columns, kind, wf, count, filled)
        _one(conn, "SELECT setval('key', %s)", filled.last + 1)
    return filled


def _copy(
    conn: psycopg.Connection[Any], table: str, columns: list[str], kind: str, wf: int, count: int, filled: Filled
) -> None:
    first, step = filled.place(kind)
    place = f"({first} + n * {step}::bigint)"
    changed = {
        "wf": f"{filled.base} + {place}",
        "id": f"'{kind}-' || lpad(n::text, 12, '0')",
        "submitted_at": f"'{filled.began.isoformat()}'::timestamptz"
        f" + {place} * interval '{filled.pace / timedelta(microseconds=1)} us'",
        "attributes": f'CASE WHEN n <= {RARE} THEN \'{{"tenant": "rare"}}\' WHEN n % 4 = 0 THEN attributes END',
    }
    if table == "ready":
        changed["seq"] = changed["wf"]
    values = [sql.SQL(changed[c]) if c in changed else sql.Identifier(c) for c in columns]  # type: ignore[arg-type]
    query = "INSERT INTO {} ({}) SELECT {} FROM {}, generate_series(1, {}) n WHERE wf = {}"
    name = sql.Identifier(table)
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    conn.execute(sql.SQL(query).format(name, names, sql.SQL(", ").join(values), name, count, wf))


def _one(conn: psycopg.Connection[Any], query: str, *parameters: Any) -> Any:
    row = conn.execute(query, parameters).fetchone()
    assert row is not None
    return row[0]
