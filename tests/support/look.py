"""Looking into shards with connections of our own, and waiting for what is to be seen there."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg

from shardflow import ClusterConfig

#: Every place of every unfinished workflow, at one moment; answers those that are not in exactly one, and ended
#: workflows that could still be claimed.
MISPLACED = """
WITH place AS (
    SELECT wf, 'ready' AS place FROM ready
    UNION ALL
    SELECT u.wf, 'claim of lease ' || lease FROM claim JOIN lease USING (lease), unnest(wfs) AS u (wf)
    UNION ALL
    SELECT wf, 'wait' FROM wait
)
SELECT w.id, o.status, array_remove(array_agg(p.place), NULL) AS places
FROM workflow w LEFT JOIN place p USING (wf) LEFT JOIN outcome o USING (wf)
GROUP BY w.id, o.status
HAVING (o.status IS NULL AND count(p.place) <> 1)
    OR (o.status IS NOT NULL AND count(*) FILTER (WHERE p.place IN ('ready', 'wait')) > 0)
"""

#: Permits under limits that nothing accounts for, at one moment: of which `held` says another number, or in more rows
#: than one, or of a lease that is gone; of workflows that their lease does not hold, or that have ended.
MISCOUNTED = """
WITH told AS (
    SELECT queue, lease, sum(permits) AS permits, count(*) AS versions FROM held GROUP BY 1, 2
), there AS (
    SELECT queue, lease, count(*) AS permits FROM permit WHERE lease IS NOT NULL GROUP BY 1, 2
)
SELECT queue, lease, told.permits, there.permits FROM told FULL JOIN there USING (queue, lease)
WHERE coalesce(told.permits, 0) <> coalesce(there.permits, 0) OR told.versions > 1
    OR NOT EXISTS (SELECT FROM lease l WHERE l.lease = coalesce(told.lease, there.lease))
UNION ALL
SELECT p.queue, p.lease, p.wf, NULL FROM permit p
WHERE EXISTS (SELECT FROM outcome o WHERE o.wf = p.wf)
    OR NOT EXISTS (SELECT FROM claim c WHERE p.wf = ANY(c.wfs) AND c.lease = coalesce(p.lease, c.lease))
"""


def connect(config: ClusterConfig, shard: int = 0) -> psycopg.Connection[Any]:
    """An autocommit connection into the shard's schema."""
    return psycopg.connect(
        config.shards[shard].dsn, autocommit=True, connect_timeout=20, options="-c search_path=shardflow"
    )


def rows(config: ClusterConfig, query: str, *parameters: Any, shard: int = 0) -> list[tuple[Any, ...]]:
    """The answer of one query to one shard; nothing where it answers nothing."""
    with connect(config, shard) as conn:
        cursor = conn.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def one(config: ClusterConfig, query: str, *parameters: Any, shard: int = 0) -> Any:
    """The first value of the first row."""
    return rows(config, query, *parameters, shard=shard)[0][0]


def total(config: ClusterConfig, query: str, *parameters: Any) -> int:
    """The sum of a query's first value over all shards."""
    return sum(one(config, query, *parameters, shard=k) for k in range(len(config.shards)))


def assert_i1(config: ClusterConfig) -> None:
    """Invariant I1: a workflow without an outcome is in exactly one place of its shard; and what is in use of the
    shard's limits is what its leases hold."""
    for k in range(len(config.shards)):
        wrong = rows(config, MISPLACED, shard=k)
        assert not wrong, f"shard {k}: not in exactly one place: {wrong[:5]}"
        wrong = rows(config, MISCOUNTED, shard=k)
        assert not wrong, f"shard {k}: permits that are not accounted for: {wrong[:5]}"


def assert_all_done(config: ClusterConfig, workflows: int, steps: int) -> None:
    """So many workflows are there, all have ended well, with so many checkpoints, and nothing is left over."""
    found = Counter[str]()
    for k in range(len(config.shards)):
        for table in ("workflow", "ready", "wait", "step", "outcome"):
            found[table] += one(config, f"SELECT count(*) FROM {table}", shard=k)
        found["failed"] += one(config, "SELECT count(*) FROM outcome WHERE status = 'failed'", shard=k)
    assert found == Counter(workflow=workflows, outcome=workflows, step=steps, ready=0, wait=0, failed=0), dict(found)


def terminate(config: ClusterConfig, role: str, shard: int = 0) -> int:
    """Ends the shard's sessions whose application name begins with "shardflow " and `role`; answers how many."""
    return len(
        rows(
            config,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid() AND application_name LIKE %s",
            f"shardflow {role}%",
            shard=shard,
        )
    )


async def until(condition: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """Polls until `condition` (plain or a coroutine function) answers something true, which is returned."""
    deadline = time.monotonic() + seconds
    pause = 0.002
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or inspect.getsource(condition).strip()}")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def blocked_or_done(config: ClusterConfig, task: asyncio.Task[Any], shard: int = 0) -> bool:
    """Waits until a session of the shard waits for a lock (True), or the task is over without (False)."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND wait_event <> 'extend'"
    )
    with connect(config, shard) as conn:

        def seen() -> str:
            if task.done():
                return "done"
            row = conn.execute(query).fetchone()
            return "blocked" if row and row[0] else ""

        return bool(await until(seen) == "blocked")
