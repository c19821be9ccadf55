"""Several statements in one round trip: what comes back, what a failure leaves, and when the session forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import errors, pq
from support.look import connect, one, until

from shardflow import ClusterConfig
from shardflow.storage.arrays import Byteas, Int8s, Texts
from shardflow.storage.pipeline import Pipeline
from shardflow.storage.shard import Conn, Shard

BEGIN, COMMIT = b"BEGIN", b"COMMIT"
#: More than the sockets' buffers and libpq's take in either direction.
LARGE = 40_000_000


@asynccontextmanager
async def opened(config: ClusterConfig) -> AsyncIterator[Conn]:
    async with asyncio.timeout(60), await Shard(config.shards[0]).connect("test") as conn:
        yield conn


async def names(conn: Conn) -> list[str]:
    cursor = await conn.execute(
        "SELECT name FROM pg_prepared_statements WHERE name LIKE 'shardflow%' ORDER BY prepare_time, name"
    )
    return [row[0] for row in await cursor.fetchall()]


async def test_replies_belong_to_their_statements(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        for _ in range(2):  # the second time with what was prepared
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            first = pipe.add(b"SELECT %s::int, %s::text", (1, "one"))
            many = pipe.add(
                b"SELECT a, b FROM unnest(%s, %s) AS x (a, b)", (Int8s([1, 2]), Texts(["a", None])), binary=True
            )
            nothing = pipe.add(b"SELECT 1 WHERE false")
            ended = pipe.add(COMMIT)
            await pipe.run()
            assert first.one() == (1, "one")
            assert many.rows(tuple) == [(1, "a"), (2, None)]
            assert nothing.rows(tuple) == []
            assert ended.tag == b"COMMIT"
        assert len(await names(conn)) == 5


async def test_much_both_ways_at_once_does_not_get_stuck(shard_config: ClusterConfig) -> None:
    """The server does not read on before somebody takes its answer, and the answer comes before all is sent."""
    payload = b"x" * (LARGE // 4)
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        replies = [pipe.add(b"SELECT unnest(%s)", (Byteas([payload]),), binary=True) for _ in range(4)]
        pipe.add(COMMIT)
        await pipe.run()
        assert [len(reply.one()[0]) for reply in replies] == [len(payload)] * 4


async def test_a_statement_that_fails_takes_all_of_them_back_and_leaves_the_connection_usable(
    shard_config: ClusterConfig,
) -> None:
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE seen (n int)")
        for n, text in enumerate((b"SELECT 1 / %s", b"SELECT nonsense + %s", b"SELECT 1 / %s")):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            pipe.add(b"INSERT INTO seen VALUES (%s)", (n,))
            pipe.add(text, (0,))
            pipe.add(b"SELECT never, reached")
            pipe.add(COMMIT)
            with pytest.raises(errors.DivisionByZero if b"/" in text else errors.UndefinedColumn):
                await pipe.run()
            assert conn.info.transaction_status == pq.TransactionStatus.INERROR
            await conn.rollback()
        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        pipe.add(b"INSERT INTO seen VALUES (%s)", (10,))
        seen = pipe.add(b"SELECT n FROM seen")
        pipe.add(COMMIT)
        await pipe.run()
        assert seen.rows(tuple) == [(10,)]


async def test_a_session_that_has_forgotten_its_statements_is_asked_again(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE seen (n int)")
        all_of_it = "DEALLOCATE ALL"
        for n in range(3):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            pipe.add(b"INSERT INTO seen VALUES (%s)", (n,))
            pipe.add(COMMIT)
            await pipe.run()
            assert conn.info.transaction_status == pq.TransactionStatus.IDLE
            await conn.execute(all_of_it if n else f"DEALLOCATE {(await names(conn))[1]}")
        rows = await (await conn.execute("SELECT n FROM seen ORDER BY n")).fetchall()
        assert rows == [(0,), (1,), (2,)], "written twice, or not at all"


async def test_behind_a_pooler_nothing_is_prepared(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=False)
        pipe.add(BEGIN)
        reply = pipe.add(b"SELECT %s::text", ("x",))
        pipe.add(COMMIT)
        await pipe.run()
        assert reply.one() == ("x",)
        assert await names(conn) == []


async def test_a_session_that_is_ended_meanwhile_is_an_error_and_no_endless_wait(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        pid = conn.info.backend_pid
        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        pipe.add(b"SELECT pg_sleep(60)")
        pipe.add(COMMIT)
        task = asyncio.create_task(pipe.run())
        asks = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND wait_event = 'PgSleep'"
        await until(lambda: one(shard_config, asks, pid))
        with connect(shard_config) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            await task
        assert conn.closed


async def test_a_cancelled_round_trip_closes_the_connection(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=True)
        pipe.add(b"SELECT pg_sleep(60)")
        task = asyncio.create_task(pipe.run())
        asks = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        await until(lambda: one(shard_config, asks, conn.info.backend_pid))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert conn.closed, "an answer to somebody else's question would be read next"
