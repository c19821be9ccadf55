"""While a transaction elsewhere keeps deleted rows from being removed, turns do not step over them each time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg
import pytest
from conftest import MakeCluster
from support.look import connect, one, rows, until
from support.raw import by_hand, done
from support.work import running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, Queue
from shardflow.sql import load
from shardflow.storage import leases, turn
from shardflow.storage.turn import ClaimWanted
from shardflow.worker import alarm

#: Rows that are deleted while the transaction is open, and how many blocks a look may touch.
DEAD, FEW = 5_000, 60

WORKFLOWS = f"""
INSERT INTO workflow (wf, slot, id, name, queue, input)
SELECT n, 0, 'w' || n, 'work', 'q', '[]' FROM generate_series(1, {DEAD}) n
"""
#: Each of them is claimed under the limit and given back.
CHURN = f"""
DO $$ BEGIN
    FOR n IN 1 .. {DEAD} LOOP
        INSERT INTO ready (seq, wf, priority, queue) VALUES (n, n, 0, 'q');
        PERFORM claim_limited('{{q}}', ARRAY[0::smallint], ARRAY[n::bigint], 1, %(lease)s, n);
        PERFORM returned(ARRAY[n::bigint]);
    END LOOP;
END $$
"""


@contextmanager
def pinned(config: ClusterConfig) -> Iterator[psycopg.Connection[Any]]:
    """A long transaction, and a connection to look with; nothing is vacuumed."""
    with connect(config) as old, connect(config) as conn:
        for table in ("permit", "held", "wait", "outbox", "ready", "claim"):
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        conn.execute("SET enable_seqscan = off")
        conn.execute("SET enable_bitmapscan = off")
        conn.execute("SET search_path = shardflow")
        old.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM workflow")
        yield conn


def blocks(conn: psycopg.Connection[Any], query: str, *parameters: Any) -> int:
    """How many blocks the query touches, called functions included; its writes are taken back."""
    with conn.transaction(force_rollback=True):
        row = (
            psycopg.ClientCursor(conn)
            .execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query, parameters)
            .fetchone()
        )
    assert row is not None
    plan = row[0][0]["Plan"]
    touched: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return touched


def statement(name: str) -> str:
    text: str = load("turn")[name]
    return re.sub(r"\{(schema)\}", "shardflow", text)


async def test_what_is_in_use_of_a_limit_is_counted_without_a_walk(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        lease = (await hand.holder("w")).fence.lease
        with pinned(shard_config) as conn:
            conn.execute("SELECT declare_limit('q', 'running', 1, 10, NULL, 10)")
            conn.execute(WORKFLOWS)
            conn.execute(CHURN % {"lease": lease})
            assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (0,)
            conn.execute(
                "INSERT INTO ready (seq, wf, priority, queue) SELECT n, n, 0, 'q' FROM generate_series(1, 3) n"
            )
            conn.execute("SELECT claim_limited('{q}', '{0}', '{0}', 3, %s, 0)", (lease,))
            assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (3,)
            assert blocks(conn, "SELECT count(*) FROM permit WHERE queue = 'q'") > DEAD / 200, "nothing to walk over"
            assert blocks(conn, "SELECT in_use('q', 'running')") < FEW
            assert blocks(conn, "SELECT returned('{1,2,3,4,5}')") < FEW
            conn.execute("SELECT returned('{1,2,3,4,5}')")
            assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (0,)


async def test_what_was_claimed_before_permits_were_counted_counts(shard_config: ClusterConfig) -> None:
    """As while the previous version's functions still run."""
    async with by_hand(shard_config) as hand:
        lease = (await hand.holder("w")).fence.lease
        with connect(shard_config) as conn:
            conn.execute("SELECT declare_limit('q', 'running', 1, 10, NULL, 10)")
            conn.execute("INSERT INTO permit (wf, queue) VALUES (1, 'q'), (2, 'q')")
            conn.execute("INSERT INTO permit (wf, queue, lease) VALUES (3, 'q', %s)", (lease,))
            conn.execute("SELECT hold('q', %s, 1)", (lease,))
            assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (3,)
            for gone, left in ((1, 2), (3, 1), (2, 0)):
                conn.execute("SELECT returned(%s)", ([gone],))
                assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (left,)


async def test_a_lease_that_ends_gives_all_of_its_limits_back(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder, other = await hand.holder("w"), await hand.holder("v")
        with connect(shard_config) as conn:
            conn.execute("SELECT declare_limit('q', 'running', 1, 10, NULL, 10)")
            conn.execute(WORKFLOWS)
            for n, each in enumerate((holder, other)):
                conn.execute(
                    """INSERT INTO ready (seq, wf, priority, queue)
                    SELECT n, n, 0, 'q' FROM generate_series(%s + 1, %s + 2) n""",
                    (10 * n, 10 * n),
                )
                conn.execute("SELECT claim_limited('{q}', '{0}', '{0}', 2, %s, 0)", (each.fence.lease,))
                assert conn.execute("SELECT in_use('q', 'running')").fetchone() == (2 * n + 2,)
        conn = await hand.conn()
        assert await leases.release(hand.shard, conn, holder.fence.lease) == 2
        assert rows(shard_config, "SELECT in_use('q', 'running')") == [(2,)]
        assert rows(shard_config, "SELECT lease, permits FROM held") == [(other.fence.lease, 2)]


async def test_waking_begins_where_the_last_look_ended(shard_config: ClusterConfig) -> None:
    wake = statement("wake")
    with pinned(shard_config) as conn:
        conn.execute(WORKFLOWS)
        due = """INSERT INTO wait (wf, wake_at, reason)
            SELECT n, now() - n * interval '1 ms', '' FROM generate_series(1, %s) n"""
        conn.execute(due, (DEAD,))
        row = conn.execute(wake, (None, DEAD)).fetchone()
        assert row is not None
        assert row[0] == DEAD
        upto = row[1]
        assert blocks(conn, wake, None, 10) > DEAD / 200, "nothing to walk over"
        assert blocks(conn, wake, upto, 10) < FEW
        conn.execute("DELETE FROM ready")
        conn.execute(due, (1,))
        conn.execute("UPDATE wait SET wake_at = now()")
        row = conn.execute(wake, (upto, 10)).fetchone()
        assert row is not None
        assert row[0] == 1
        assert row[-1] > 0


async def test_what_leases_had_to_deliver_is_not_stepped_over_to_find_what_nobody_delivers(
    shard_config: ClusterConfig,
) -> None:
    adopt = statement("adopt")
    async with by_hand(shard_config) as hand:
        mine = (await hand.holder("w")).fence.lease
        yours = (await hand.holder("v")).fence.lease
        with pinned(shard_config) as conn:
            for lease in (mine, yours):
                conn.execute(
                    """INSERT INTO outbox (lease, target, topic, key)
                    SELECT %s, 'w', 't', n FROM generate_series(1, %s) n""",
                    (lease, DEAD),
                )
            conn.execute("DELETE FROM outbox")
            first = "SELECT lease FROM outbox ORDER BY lease LIMIT 1"
            assert blocks(conn, first) > DEAD / 200, "nothing to walk over"
            assert blocks(conn, adopt, mine, 100, 1_000_000) < FEW
            # What lies before, between and behind those that are there is found all the same.
            gone = [0, mine - 1, mine + 1, yours + 1] if mine + 1 < yours else [0, mine - 1, yours + 1]
            for lease in gone:
                conn.execute(
                    "INSERT INTO outbox (lease, target, topic, key) VALUES (%s, 'w', 't', %s)", (lease, lease)
                )
            conn.execute("INSERT INTO outbox (lease, target, topic, key) VALUES (%s, 'w', 't', 'theirs')", (yours,))
            found = conn.execute(adopt, (mine, 100, 1_000_000)).fetchall()
            assert sorted(row[3] for row in found) == sorted(str(lease) for lease in gone)


async def test_a_workers_turns_wake_from_a_mark_and_miss_nothing_of_what_others_suspended(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that another one commits behind the mark is found by the next look from the start."""
    config, app, seen = make_cluster(shards=1), App(), list[turn.Turn]()
    real = turn.commit

    async def watched(shard: Any, conn: Any, fence: Any, each: turn.Turn) -> Any:
        seen.append(each)
        return await real(shard, conn, fence, each)

    monkeypatch.setattr(turn, "commit", watched)

    @app.workflow
    async def work(number: int) -> int:
        return number

    @app.workflow(queue=Queue("naps"))
    async def nap() -> str:
        await shardflow.sleep(1.5)
        return "awake"

    async with running(config, app), AsyncClient(config) as client:
        assert await (await client.submit(nap)).result(60) == "awake"
        (handle,) = await client.submit_many([work.call(7).set(id="late", delay=3600.0)])
        rows(config, "UPDATE wait SET wake_at = now() - interval '1 hour'")
        assert await handle.result(60) == 7
    assert any(each.wake and each.since is None for each in seen)
    assert one(config, "SELECT count(*) FROM wait") == 0


async def test_the_marks_of_waking_lie_at_the_time_of_their_looks(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("w")
        conn = await hand.conn()
        await hand.submit(conn, "a")
        answer = await turn.commit(
            hand.shard,
            holder.writing,
            holder.fence,
            turn.Turn(claim=ClaimWanted(1, ["default"], 5, [(0, 0)]), wake=10, adopt=True),
        )
        assert answer.woken_to is not None
        again = await turn.commit(
            hand.shard,
            holder.writing,
            holder.fence,
            turn.Turn(outcomes=[done(row.wf) for row in answer.claimed], wake=10, since=answer.woken_to),
        )
        assert again.woken_to is not None
        assert answer.woken_to < again.woken_to
        assert answer.chores_took > 0
        assert again.chores_took == 0
        await until(lambda: one(shard_config, "SELECT count(*) FROM outcome") == 1)


class Once(alarm.Pace):
    def due(self, now: float) -> bool:
        return self._at < 0


@pytest.mark.parametrize("busy", [True, False])
async def test_what_was_committed_behind_the_mark_is_woken_though_no_look_from_the_start_is_due(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """On a busy shard since looks overlap, on an idle one since the keeper sees that it is overdue."""
    config, app, marks = make_cluster(shards=1), App(), list[datetime]()
    real = turn.commit

    async def watched(*given: Any) -> Any:
        answer = await real(*given)
        if answer.woken_to is not None:
            marks.append(answer.woken_to)
        return answer

    monkeypatch.setattr(turn, "commit", watched)
    monkeypatch.setattr(alarm, "Pace", Once)
    monkeypatch.setattr(alarm, "OVERLAP", 60.0 if busy else 0.0)

    @app.workflow
    async def work(number: int) -> int:
        return number

    async with running(config, app), AsyncClient(config) as client:
        (late,) = await client.submit_many([work.call(7).set(id="late", delay=3600.0)])
        with connect(config) as other:
            other.execute("BEGIN")
            row = other.execute("UPDATE wait SET wake_at = now() RETURNING wake_at").fetchone()
            assert row is not None
            while not marks or marks[-1] <= row[0]:
                await (await client.submit(work, 1)).result(30)
            other.execute("COMMIT")
        task = asyncio.create_task(late.result(20))
        while busy and not task.done():
            await (await client.submit(work, 1)).result(30)
        assert await task == 7
