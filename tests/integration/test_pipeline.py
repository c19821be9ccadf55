"""Several statements in one round trip: what comes back, what a failure leaves, and when the session forgets."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import psycopg
import pytest
from psycopg import errors, pq
from support.look import connect, one, until

from shardflow import ClusterConfig
from shardflow.storage.arrays import Byteas, Int8s, Texts
from shardflow.storage.pipeline import Pipeline
from shardflow.storage.shard import Conn, Shard
from shardflow.storage.turn import roll_back

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


async def test_one_statement_alone_is_asked_again_too(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE seen (n int)")
        for n in range(3):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(b"INSERT INTO seen VALUES (%s)", (n,))
            await pipe.run()
            assert conn.info.transaction_status == pq.TransactionStatus.IDLE
            await conn.execute("DEALLOCATE ALL")
        rows = await (await conn.execute("SELECT n FROM seen ORDER BY n")).fetchall()
        assert rows == [(0,), (1,), (2,)], "written twice, or not at all"


async def test_a_statement_whose_answer_a_change_of_the_schema_alters_is_prepared_anew(
    shard_config: ClusterConfig,
) -> None:
    """Otherwise a worker that was there before a migration would have all of its turns refused."""
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE seen (n int)")
        for type in ("int", "bigint", "text"):
            await conn.execute(f"ALTER TABLE seen ALTER n TYPE {type}")
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            pipe.add(b"INSERT INTO seen VALUES (1)")
            many = pipe.add(b"SELECT n FROM seen", binary=True)
            pipe.add(COMMIT)
            await pipe.run()
            assert conn.info.transaction_status == pq.TransactionStatus.IDLE
        assert many.rows(tuple) == [("1",)] * 3, "written twice, or not at all"


async def test_what_is_not_supported_is_asked_once_and_leaves_what_was_prepared(shard_config: ClusterConfig) -> None:
    """The same code as for a change of the schema, raised by whatever else, such as a user's trigger."""
    raises = b"DO $$ BEGIN RAISE 'no' USING ERRCODE = '0A000'; END $$"
    async with opened(shard_config) as conn:
        for _ in range(20):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            pipe.add(raises)
            pipe.add(COMMIT)
            with pytest.raises(errors.FeatureNotSupported):
                await pipe.run()
            await conn.rollback()
        assert len(await names(conn)) == 2


async def test_turns_that_are_refused_leave_nothing_behind(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        for n in range(300):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            pipe.add(b"SELECT %s::text", ("x",))
            pipe.add(b"SELECT 1 / %s::int", (0,))
            pipe.add(b"SELECT %s::bigint", (n,))
            pipe.add(COMMIT)
            with pytest.raises(errors.DivisionByZero):
                await pipe.run()
            await roll_back(conn)
        assert len(await names(conn)) == 3


async def test_what_cannot_be_sent_leaves_the_connection_as_it_is(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        with pytest.raises(psycopg.DataError):
            pipe.add(b"SELECT %s", ("a\0b",))
        with pytest.raises(UnicodeEncodeError):
            pipe.add(b"SELECT %s", (Texts(["\ud800"]),))
        assert conn.info.transaction_status == pq.TransactionStatus.IDLE
        assert await (await conn.execute("SELECT 1")).fetchone() == (1,)


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


async def test_what_was_answered_is_freed_without_the_garbage_collector(shard_config: ClusterConfig) -> None:
    """It comes seldom in a worker, and answers are large."""
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=True)
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                pipe = Pipeline(conn, prepare=True)
                pipe.add(BEGIN)
                reply = pipe.add(b"SELECT %s::text", ("x" * 1_000,))
                pipe.add(COMMIT)
                await pipe.run()
                reply.one()
            assert gc.collect() < 50
        finally:
            gc.enable()


async def test_the_server_stops_what_was_cancelled(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE mine (n int)")
        pid = conn.info.backend_pid
        with connect(shard_config) as other, other.transaction():
            other.execute("LOCK TABLE workflow IN SHARE MODE")
            pipe = Pipeline(conn, prepare=True)
            pipe.add(b"INSERT INTO shardflow.workflow SELECT * FROM shardflow.workflow")
            task = asyncio.create_task(pipe.run())
            waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            await until(lambda: one(shard_config, waits, pid))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not one(shard_config, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid))


async def test_what_is_made_later_is_made_while_the_server_is_at_the_rest(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        await conn.execute("CREATE TEMP TABLE seen (n int)")
        active = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        pid = conn.info.backend_pid

        def later() -> tuple[int]:
            deadline = time.monotonic() + 60
            with connect(shard_config) as other:
                while not other.execute(active, (pid,)).fetchone()[0]:
                    assert time.monotonic() < deadline, "the server has nothing to do yet"
                    time.sleep(0.01)
                other.execute("SELECT pg_cancel_backend(%s)", (pid,))
            return (1,)

        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        pipe.add(b"SELECT pg_sleep(60)")
        pipe.add_later(b"INSERT INTO seen VALUES (%s)", later)
        pipe.add(COMMIT)
        with pytest.raises(errors.QueryCanceled):
            await pipe.run()
        await conn.rollback()
        assert (await (await conn.execute("SELECT count(*) FROM seen")).fetchone()) == (0,)


async def test_what_is_made_later_is_answered_in_its_place_and_made_again_where_the_session_had_forgotten(
    shard_config: ClusterConfig,
) -> None:
    def twice(n: int) -> tuple[Int8s]:
        return (Int8s([n, n]),)

    async with opened(shard_config) as conn:
        conn.prepare_threshold = None
        for _ in range(3):
            pipe = Pipeline(conn, prepare=True)
            pipe.add(BEGIN)
            replies = [
                pipe.add_later(b"SELECT n FROM unnest(%s) AS g (n)", partial(twice, n), binary=True) for n in range(3)
            ]
            pipe.add(COMMIT)
            await pipe.run()
            assert [reply.rows(tuple) for reply in replies] == [[(n,), (n,)] for n in range(3)]
            texts = await (await conn.execute("SELECT statement FROM pg_prepared_statements")).fetchall()
            assert len(set(texts)) == len(texts), "a statement that comes several times is prepared once"
            await conn.execute("DEALLOCATE ALL")


async def test_where_it_cannot_be_made_nothing_is_done(shard_config: ClusterConfig) -> None:
    async with opened(shard_config) as conn:
        pipe = Pipeline(conn, prepare=True)
        pipe.add(BEGIN)
        pipe.add(b"INSERT INTO shardflow.paused (queue) VALUES ('q')")
        pipe.add_later(b"SELECT %s", lambda: (Texts(["\ud800"]),))
        pipe.add(COMMIT)
        with pytest.raises(UnicodeEncodeError):
            await pipe.run()
        await roll_back(conn)
        assert conn.closed, "the server waits for the rest"
    assert one(shard_config, "SELECT count(*) FROM paused") == 0
