"""A server that hangs keeps its connections open and says nothing: every wait for it ends within a bound."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import quote

import psycopg
import pytest
from faults.postgres import frozen
from faults.servers_load import under_load
from support import memory
from support.lab import Lab
from support.look import assert_i1, connect, one, until
from support.raw import by_hand
from support.work import ids_on, running

from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    LeaseConfig,
    PoolConfig,
    ResultTimeout,
    ShardConfig,
    ShardUnavailable,
    SubmitUncertain,
)
from shardflow.storage import deadline as deadlines
from shardflow.storage.shard import Conn, Shard

MakeCluster = Callable[..., ClusterConfig]

#: Quick enough that a test need not wait long for a shard that hangs.
QUICK = PoolConfig(timeout=1.0, connect_timeout=2.0)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Servers of their own: these are frozen."""
    with memory.servers(2, {"max_connections": "100", "shared_buffers": "64MB"}) as started:
        yield Lab(started)


@pytest.fixture
def ending() -> App:
    app = App("ending")

    @app.workflow
    async def work(x: int) -> int:
        return 2 * x

    return app


def with_options(shard: ShardConfig, options: str) -> ShardConfig:
    """The same shard, with options of the user's own in its dsn."""
    return replace(shard, dsn=f"{shard.dsn}?options={quote(options)}")


async def sleep_on_server(conn: Conn, seconds: float) -> None:
    await conn.execute("SELECT pg_sleep(%s)", (seconds,))


async def test_a_query_to_a_frozen_server_ends_at_its_deadline(shard_config: ClusterConfig, lab: Lab) -> None:
    async with by_hand(shard_config) as hand:
        conn, free = await hand.conn(), await hand.conn()
        with frozen(lab.server(0)):
            began = time.monotonic()
            with pytest.raises(ShardUnavailable) as error:
                async with hand.shard.deadline(conn, 0.3, "a question"):
                    await conn.execute("SELECT 1")
            assert 0.25 < time.monotonic() - began < 30
            assert "'s0' does not answer: nothing came back within 0.3 s (a question)" in str(error.value)
            assert conn.closed
        async with hand.shard.deadline(free, 30, "a question"):  # one that nobody waited on is still good
            assert await (await free.execute("SELECT 1")).fetchone() == (1,)


async def test_a_pipelined_transaction_to_a_frozen_server_ends_at_its_deadline(
    shard_config: ClusterConfig, lab: Lab
) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("one")
        with frozen(lab.server(0)), pytest.raises(ShardUnavailable, match="nothing came back within"):
            async with hand.shard.deadline(holder.writing, 0.3, "a commit"):
                await holder.claim()
        assert holder.writing.closed


async def test_a_wait_that_is_cancelled_still_ends_at_the_deadline(shard_config: ClusterConfig, lab: Lab) -> None:
    """psycopg asks the server to cancel the query and waits for that: a frozen one does not answer either."""
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()

        async def question() -> None:
            async with hand.shard.deadline(conn, 0.5, "a question"):
                await conn.execute("SELECT 1")

        with frozen(lab.server(0)):
            asked = asyncio.create_task(question())
            await until(lambda: conn.info.transaction_status.name == "ACTIVE")
            asked.cancel()
            await asyncio.wait([asked], timeout=60)
            assert asked.done()


async def test_what_is_answered_in_time_leaves_nothing_behind(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        async with hand.shard.deadline(conn, 0.7, "a question"):
            await conn.execute("SELECT 1")
        async with hand.shard.deadline(conn, 30, "a sleep"):
            await sleep_on_server(conn, 0.9)  # past the first one's time
        assert not conn.closed


async def test_an_answer_that_has_come_is_read_although_the_loop_was_late(shard_config: ClusterConfig) -> None:
    """This process was stopped or busy: that is not the server's fault."""
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        async with hand.shard.deadline(conn, 0.7, "a question"):
            asked = asyncio.create_task(conn.execute("SELECT 1 FROM pg_sleep(0.05)"))
            await until(lambda: conn.info.transaction_status.name == "ACTIVE")
            time.sleep(1.5)  # noqa: ASYNC251 (the loop is to be late)
            assert await (await asked).fetchone() == (1,)
        assert await (await conn.execute("SELECT 2")).fetchone() == (2,)


async def test_the_timer_leaves_a_descriptor_alone_that_is_not_its_connections_any_more(
    shard_config: ClusterConfig,
) -> None:
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        number = conn.fileno()
        async with hand.shard.deadline(conn, 0.1, "a question"):
            await conn.close()
            mine, other = socket.socketpair()  # which takes the lowest free number
            with mine, other:
                assert number in (mine.fileno(), other.fileno())
                timer = deadlines.Timer(conn, 0.0)
                await until(lambda: timer.fired)
                await asyncio.sleep(0.15)  # past the block's own time, too
                other.send(b"still open")
                assert mine.recv(20) == b"still open"


async def test_an_error_that_the_server_answered_is_told_as_it_is(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with hand.shard.deadline(conn, 30, "a question"):
                await conn.execute("SELECT 1/0")


async def test_statements_of_workers_and_clients_have_a_limit_and_others_have_none(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def limit(role: str, shard: ShardConfig = shard_config.shards[0]) -> str:
        async with await Shard(shard).connect(role) as conn:
            row = await (await conn.execute("SHOW statement_timeout")).fetchone()
            assert row is not None
            return str(row[0])

    assert {await limit(role) for role in ("commit w1", "keeper w1", "release w1", "client", "survey")} == {"30s"}
    assert {await limit(role) for role in ("init", "migrate", "cli", "bench")} == {"0"}
    assert await limit("client", with_options(shard_config.shards[0], "-c statement_timeout=7s")) == "7s"
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=8s")
    assert await limit("client") == "8s"


async def test_the_isolation_that_the_guards_need_is_not_the_users_to_choose(shard_config: ClusterConfig) -> None:
    shard = with_options(shard_config.shards[0], "-c default_transaction_isolation=serializable")
    async with await Shard(shard).connect("client") as conn:
        row = await (await conn.execute("SHOW default_transaction_isolation")).fetchone()
        assert row == ("read committed",)


async def test_a_client_of_a_frozen_shard_hears_of_it_and_the_other_shard_serves_it(
    make_cluster: MakeCluster, lab: Lab, ending: App
) -> None:
    config = make_cluster(shards=2, pool=QUICK)
    here, there, later = *ids_on(config, 0, 1), *ids_on(config, 1, 2)
    async with AsyncClient(config) as client:
        waiting = await client.submit("work", 0, id=there)
        with frozen(lab.server(1)):
            began = time.monotonic()
            with pytest.raises(SubmitUncertain) as uncertain:  # it was sent on a connection that was there
                await client.submit("work", 1, id=later)
            assert uncertain.value.ids == (later,)
            with pytest.raises(ShardUnavailable):
                await client.info(there)
            with pytest.raises(ShardUnavailable):
                await waiting.result(timeout=0)
            assert time.monotonic() - began < 30
            await client.submit("work", 2, id=here)
            began = time.monotonic()
            drawn = [await client.submit("work", n) for n in range(10)]
            assert {handle.shard for handle in drawn} == {"s0"}
            assert time.monotonic() - began < 30
            with pytest.raises(ResultTimeout):
                await waiting.result(timeout=0.5)
        again = await client.submit("work", 1, id=later)
        async with running(config, ending):
            assert await waiting.result(30) == 0
            assert await again.result(30) == 2


async def test_a_client_that_starts_while_a_shard_is_frozen_uses_the_other(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=2, pool=QUICK)
    with frozen(lab.server(1)):
        began = time.monotonic()
        async with AsyncClient(config) as client:
            assert (await client.submit("work", 1)).shard == "s0"
        assert time.monotonic() - began < 30


async def test_a_client_that_starts_does_not_wait_for_a_shard_that_connects_and_then_says_nothing(
    make_cluster: MakeCluster,
) -> None:
    config = make_cluster(shards=2, pool=QUICK)
    config = replace(config, shards=tuple(with_options(s, "-c lock_timeout=0") for s in config.shards))
    with connect(config, 1) as held, held.transaction():
        held.execute("LOCK TABLE slot")
        began = time.monotonic()
        async with AsyncClient(config) as client:
            assert (await client.submit("work", 1)).shard == "s0"
        assert time.monotonic() - began < 25, "that was the server's limit for statements"


async def test_a_frozen_shard_is_not_taken_for_a_busy_one(make_cluster: MakeCluster, lab: Lab) -> None:
    """A connection that is in use says nothing of why another cannot be made."""
    config = make_cluster(shards=1, pool=QUICK)
    async with AsyncClient(config) as client:
        pool = client._router.pool("s0")
        async with pool.connection(answer=30):
            with frozen(lab.server(0)), pytest.raises(ShardUnavailable) as error:
                async with pool.connection(0.3):
                    pass
            assert type(error.value) is ShardUnavailable


async def test_closing_a_client_does_not_wait_for_a_frozen_shard(make_cluster: MakeCluster, lab: Lab) -> None:
    config = make_cluster(shards=1, pool=QUICK)
    async with AsyncClient(config) as client:
        handle = await client.submit("work", 1)
        waiting = asyncio.create_task(handle.result())
        await until(lambda: client.waiter("s0")._awaited)
        with frozen(lab.server(0)):
            asked = asyncio.create_task(client.info(handle.id))
            await until(lambda: client._router.pool("s0")._in_use)
            began = time.monotonic()
            await client.close()
            assert time.monotonic() - began < 30
            answers = await asyncio.wait_for(asyncio.gather(asked, waiting, return_exceptions=True), 60)
            assert [type(answer) for answer in answers] == [ShardUnavailable, asyncio.CancelledError]


async def test_a_large_submit_has_the_time_it_needs(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds of a small call, on both sides, must not make a large one impossible."""
    config = make_cluster(shards=1, pool=PoolConfig(timeout=1.0, connect_timeout=3))
    config = replace(config, shards=(with_options(config.shards[0], "-c statement_timeout=1s"),))
    monkeypatch.setattr("shardflow.storage.submissions.STATEMENT_SECONDS", 1)
    with connect(config) as conn:
        conn.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END'"
        )
        conn.execute("CREATE TRIGGER slow AFTER INSERT ON workflow EXECUTE FUNCTION slow()")
    app = App()

    @app.workflow
    async def work(x: int) -> int:
        return x

    async with AsyncClient(config) as client:
        assert len(await client.submit_many(work.call(n) for n in range(5000))) == 5000
        async with client._router.pool("s0").connection() as again:
            row = await (await again.execute("SHOW statement_timeout")).fetchone()
            assert row == ("1s",), "the longer limit ended with its transaction"


async def test_a_server_frozen_beyond_the_lease_loses_and_repeats_nothing_and_keeps_no_other_waiting(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    """The server's processes and the lease's time stand still; its work, which had all places, gives them up."""
    lease = LeaseConfig(ttl=2.0, renew=0.5, watch=0.2)
    config = make_cluster(shards=2, lease=lease, pool=QUICK)
    async with under_load(config, concurrency=20, pause=0.02) as load:
        await load.pause()
        await load.submit(ids_on(config, 1, 500, "before-"))
        await until(lambda: one(config, "SELECT count(*) FROM outcome", shard=1) > 20)
        await load.fault("hang", shard=1)
        with frozen(lab.server(1)):
            began = time.monotonic()
            during = ids_on(config, 0, 200, "during-")
            await load.submit(during)
            await load.all_end(during, seconds=60)
            await until(lambda: time.monotonic() - began > 2 * lease.ttl)
        load.go()
        await load.acknowledged(50, "submits go on")
        await load.pause()
        await load.all_end()
        assert_i1(config)
        verdict = load.verdict()
        print(verdict)
        assert verdict.clean, verdict
