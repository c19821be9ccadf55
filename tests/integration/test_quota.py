"""Shares of a limit on the shards: they add up whatever happens between two statements, and cost no scans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
import pytest
from conftest import MakeCluster
from support.look import assert_i1, connect, one, rows, terminate, total, until
from support.work import ids_on, running

from shardflow import App, AsyncClient, ClusterConfig, Queue
from shardflow.core.quota import Need, split
from shardflow.storage import limits
from shardflow.storage.limits import Declared
from shardflow.storage.shard import Conn, Shard

FILL = """
WITH made AS (
    INSERT INTO workflow (slot, id, name, queue, input)
    SELECT 0, '{queue}' || n, '{name}', '{queue}', '[[],{{}}]' FROM generate_series(1, {count}) n RETURNING wf
)
INSERT INTO ready (seq, wf, priority, queue) SELECT wf, wf, 0, '{queue}' FROM made
"""


def fill(config: ClusterConfig, queue: str, name: str, count: int) -> None:
    """So many ready workflows on the first shard."""
    rows(config, FILL.format(queue=queue, name=name, count=count))


@asynccontextmanager
async def opened(config: ClusterConfig) -> AsyncIterator[list[tuple[Shard, Conn]]]:
    async with AsyncExitStack() as stack:
        found = []
        for each in config.shards:
            shard = Shard(each)
            found.append((shard, await stack.enter_async_context(await shard.connect("test"))))
        yield found


def share(config: ClusterConfig, shard: int, queue: str = "q") -> int:
    found: int = one(config, "SELECT share FROM quota WHERE queue = %s", queue, shard=shard)
    return found


def parts(config: ClusterConfig, most: int | None, shard: str, queue: str = "q") -> list[Declared]:
    part = split(most or 0, [s.name for s in config.shards], queue)[shard]
    return [Declared(queue, "running", most, None, part)]


async def test_a_grant_arrives_once_whoever_brings_it_and_whenever_they_die(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    async with opened(config) as places:
        for shard, conn in places:
            assert await limits.declare(shard, conn, 1, parts(config, 12, shard.name)) == {"q"}
        donor, target, _ = places
        need = [Need("q", "running", 4, 4)]

        async def ask(asker: str) -> list[limits.Grant]:
            return (await limits.ask(*donor, asker, 1, parts(config, 12, "s0"), need))[0]

        (grant,) = await ask("s1")
        assert (grant.target, grant.units, share(config, 0)) == ("s1", 2, 2)
        # Whoever asked died here. The next one is given the same, and nothing more.
        assert await ask("s1") == [grant]
        assert share(config, 0) == 2
        assert await limits.accept(*target, "s0", grant)
        # It died before the donor was told; and somebody who had read of the grant brings it once more.
        assert await ask("s1") == [grant]
        assert not await limits.accept(*target, "s0", grant)
        assert share(config, 1) == 6
        await limits.arrived(*donor, grant)
        (second,) = await ask("s1")
        assert second.number > grant.number
        assert not await limits.accept(*target, "s0", grant)
        assert await limits.accept(*target, "s0", second)
        assert not await limits.accept(*target, "s0", grant)
        await limits.arrived(*donor, grant)  # late, and for another one: nothing
        assert await ask("s1") == [second]
        # What lies at a donor for long is brought by whoever asks there for itself.
        rows(config, "UPDATE granted SET granted_at = now() - interval '2 s'")
        assert second in await ask("s2")
        assert [share(config, k) for k in range(3)] == [0, 7, 4]
        assert one(config, "SELECT sum(units) FROM granted WHERE target = 's2'") == 1


async def test_the_last_declaration_holds_and_what_has_moved_stays_moved(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2)
    async with opened(config) as places:

        async def declare(most: int | None, started: int) -> list[int]:
            for shard, conn in places:
                await limits.declare(shard, conn, started, parts(config, most, shard.name))
            return [share(config, k) for k in range(2)]

        assert await declare(10, 5) == [5, 5]
        (grant,), _ = await limits.ask(*places[0], "s1", 5, parts(config, 10, "s0"), [Need("q", "running", 5, 5)])
        await limits.accept(*places[1], "s0", grant)
        await limits.arrived(*places[0], grant)
        assert [share(config, k) for k in range(2)] == [2, 8]
        assert await declare(20, 4) == [2, 8]  # a worker that was started before
        assert await declare(20, 6) == [7, 13]
        assert await declare(20, 6) == [7, 13]
        assert await declare(4, 7) == [-1, 5]
        (debt,), _ = await limits.ask(*places[1], "s0", 7, parts(config, 4, "s1"), [Need("q", "running", -1, 2)])
        await limits.accept(*places[0], "s1", debt)
        assert sum(share(config, k) for k in range(2)) == 4
        assert min(share(config, k) for k in range(2)) >= 0
        await declare(None, 8)
        assert [len(rows(config, "SELECT FROM quota WHERE most IS NOT NULL", shard=k)) for k in range(2)] == [0, 0]
        assert sum(await declare(6, 9)) == 6


@pytest.mark.parametrize("free", [0, 3])
def test_rows_behind_a_limit_are_not_read(make_cluster: MakeCluster, free: int) -> None:
    config = make_cluster(shards=1)
    fill(config, "slow", "work", 50_000)
    with connect(config) as conn:
        conn.execute("ANALYZE")
        conn.execute("SELECT declare_limit('slow', 'running', 1, 10, NULL, 10)")
        conn.execute("INSERT INTO permit SELECT n, 'slow' FROM generate_series(1, %s) n", (10 - free,))
        conn.execute("INSERT INTO lease (lease, worker, expires_at, session) VALUES (1, 'w', now(), false)")
        lanes = (["slow", "slow\x1f2"], [-32768] * 2, [0] * 2)
        with conn.transaction():
            conn.execute("SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true)")
            got = conn.execute("SELECT * FROM claim_limited(%s, %s::smallint[], %s, 500, 1, 1)", lanes).fetchall()
            (read,) = conn.execute(READ).fetchall()
            assert (len(got), read) == (free, (free, 0))
            states = conn.execute("SELECT * FROM limit_states(%s, %s::smallint[], %s)", lanes).fetchall()
            assert [(row[0], row[4], row[7]) for row in states] == [("slow", 10, True)]
            (read,) = conn.execute(READ).fetchall()
            assert read[0] <= 2 * free + 2


def test_a_lease_that_ends_gives_back_what_it_used_but_not_its_starts(shard_config: ClusterConfig) -> None:
    fill(shard_config, "slow", "work", 20)
    with connect(shard_config) as conn:
        conn.execute(
            "SELECT declare_limit('slow', 'running', 1, 8, NULL, 8), declare_limit('slow', 'starts', 1, 10, 60, 10)"
        )
        conn.execute("INSERT INTO lease (lease, worker, expires_at, session) VALUES (1, 'w', now(), false)")
        claim = "SELECT wf FROM claim_limited(ARRAY['slow'], ARRAY['-32768'::smallint], ARRAY[0::bigint], 100, 1, %s)"
        held = [row[0] for row in conn.execute(claim, (1,)).fetchall()]
        assert len(held) == 8
        conn.execute("SELECT returned(%s)", (held[:1],))
        # A start is not given back, whatever becomes of it.
        assert len(conn.execute(claim, (2,)).fetchall()) == 1
        conn.execute("SELECT have_begun(1, ARRAY[1::bigint], ARRAY[0.5::float8])")
        assert conn.execute("SELECT starts FROM fresh").fetchall() == [(1,)]
        conn.execute("SELECT end_lease(1, 1)")
        assert conn.execute("SELECT count(*) FROM permit").fetchall() == [(0,)]
        assert conn.execute("SELECT count(*) FROM fresh").fetchall() == [(0,)]
        assert conn.execute("SELECT sum(starts), max(over_at) > now() + interval '59 s' FROM begun").fetchall() == [
            (9, True)
        ]
        conn.execute("INSERT INTO lease (lease, worker, expires_at, session) VALUES (2, 'w', now(), false)")
        again = claim.replace("100, 1", "100, 2")
        assert len(conn.execute(again, (1,)).fetchall()) == 1
        conn.execute("UPDATE begun SET over_at = over_at - interval '2 min'")
        assert len(conn.execute(again, (2,)).fetchall()) == 7


#: Rows of `ready` that this transaction has read, by an index and otherwise.
READ = "SELECT idx_tup_fetch, seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'ready'"


async def test_an_idle_queue_does_not_starve_beside_backlogs(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=1)
    app = App()

    @app.step
    async def brief() -> None:
        await asyncio.sleep(0.05)

    @app.workflow(queue="big")
    async def many() -> None:
        await brief()

    @app.workflow(queue=Queue("slow", concurrency=2))
    async def few() -> None:
        await asyncio.sleep(0.05)

    @app.workflow
    async def idle() -> int:
        return 1

    fill(config, "big", "many", 50_000)
    fill(config, "slow", "few", 50_000)
    async with AsyncClient(config) as client, running(config, app, concurrency=20):
        await until(
            lambda: one(config, "SELECT count(*) FROM outcome JOIN workflow USING (wf) WHERE name = 'many'") > 100
        )
        for _ in range(10):
            assert await (await client.submit(idle)).result(10) == 1
        assert one(config, "SELECT count(*) FROM ready WHERE queue = 'big'") > 40_000
        await until(
            lambda: one(config, "SELECT count(*) FROM outcome JOIN workflow USING (wf) WHERE name = 'few'") > 5
        )


async def test_a_shard_without_a_share_gets_its_turn_beside_an_endless_backlog(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    app = App()

    @app.workflow(queue=Queue("one", concurrency=1))
    async def work() -> int:
        await asyncio.sleep(0.01)
        return 1

    async with AsyncClient(config) as client, running(config, app):
        fill(config, "one", "work", 50_000)
        ended = "SELECT count(*) FROM outcome"
        await until(lambda: one(config, ended) > 0 or total(config, "SELECT count(*) FROM permit") == 1)
        ids = [id for k in (1, 2) for id in ids_on(config, k, 2, f"k{k}-")]
        for handle in await client.submit_many([work.call().set(id=id) for id in ids]):
            assert await handle.result(60) == 1
        assert one(config, "SELECT count(*) FROM ready") > 1_000
        await until(lambda: one(config, ended) > 10)


async def test_lost_connections_and_crashed_workers_keep_the_count(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2)
    app = App()
    now = most = 0

    @app.workflow(queue=Queue("few", concurrency=3, rate=(1000, 0.5)))
    async def work() -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await asyncio.sleep(0.01)
        finally:
            now -= 1
        return 1

    async with AsyncClient(config) as client, running(config, app), running(config, app):
        handles = await client.submit_many([work.call() for _ in range(200)])
        for turn in range(6):
            await until(lambda wanted=20 * turn + 20: total(config, "SELECT count(*) FROM outcome") > wanted)
            terminate(config, "commit", shard=turn % 2)
        for handle in handles:
            assert await handle.result(60) == 1
        assert most <= 3
        await until(lambda: total(config, "SELECT count(*) FROM permit") == 0)
        await until(lambda: total(config, "SELECT count(*) FROM fresh") == 0)
        assert_i1(config)


async def test_a_worker_that_does_not_declare_the_limit_keeps_it_too(shard_config: ClusterConfig) -> None:
    now = most = 0

    async def use() -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return 1

    knows, does_not = App(), App()
    knows.workflow(name="work", queue=Queue("few", concurrency=2))(use)
    does_not.workflow(name="work", queue="few")(use)
    async with AsyncClient(shard_config) as client, running(shard_config, does_not):
        async with running(shard_config, knows):
            await until(lambda: one(shard_config, "SELECT count(*) FROM quota") == 1)
        handles = await client.submit_many([does_not.find("work").call() for _ in range(40)])
        for handle in handles:
            assert await handle.result(30) == 1
        assert most == 2


async def test_a_key_that_somebody_is_stuck_at_is_given_on_soon(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work(number: int) -> int:
        return number

    async with AsyncClient(shard_config) as client:
        handles = [await client.submit(work, n, key_concurrency=("k", 1)) for n in range(2)]
        with psycopg.connect(shard_config.shards[0].dsn, options="-c search_path=shardflow") as stuck:
            stuck.execute("SELECT lock_keys(ARRAY['k'])")
            async with running(shard_config, app):
                # The turn that ends the first one does not wait for the stuck session.
                assert await handles[0].result(10) == 0
                assert one(shard_config, "SELECT count(*) FROM loose") == 1
                assert one(shard_config, "SELECT count(*) FROM wait WHERE reason = 'key'") == 1
                stuck.rollback()
                assert await handles[1].result(10) == 1
                assert one(shard_config, "SELECT count(*) FROM loose") == 0
