"""A server is down: the others go on (invariant I8), and it is served again when it is back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from support import memory
from support.lab import Lab, database
from support.look import assert_all_done, assert_i1, one, rows, total, until
from support.work import Gate, ids_on, running

from shardflow import App, AsyncClient, ClusterConfig, PoolConfig, ShardUnavailable, Status

pytestmark = pytest.mark.slow

MakeCluster = Callable[..., ClusterConfig]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Servers of their own: these are killed."""
    with memory.servers(3, {"max_connections": "100", "shared_buffers": "64MB"}) as started:
        yield Lab(started)


def doubling(ran: Counter[int]) -> App:
    app = App()

    @app.step
    async def double(x: int) -> int:
        ran[x] += 1
        return 2 * x

    @app.workflow
    async def work(x: int) -> int:
        return await double(x)

    return app


@asynccontextmanager
async def closed(lab: Lab, config: ClusterConfig, shard: int) -> AsyncIterator[None]:
    """The shard's database takes no connection and has lost those it had."""
    name = database(config.shards[shard])

    def allow(answer: bool) -> None:
        with lab.admin(shard) as conn:
            conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {answer}')
            if not answer:
                conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    allow(False)
    try:
        yield
    finally:
        allow(True)


async def test_with_a_server_down_submits_go_to_the_others_and_work_goes_on(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=3, pool=PoolConfig(timeout=2, connect_timeout=2))
    ran: Counter[int] = Counter()
    app = doubling(ran)
    there, later = ids_on(config, 1, 2)
    async with AsyncClient(config) as client, running(config, app):
        assert await (await client.submit("work", 1000, id=there)).result(30) == 2000
        lab.server(1).kill()
        handles = [await client.submit("work", n) for n in range(50)]
        handles += await client.submit_many(app.workflows["work"].call(n) for n in range(50, 200))
        assert {h.shard for h in handles} == {"s0", "s2"}
        assert await asyncio.gather(*(h.result(30) for h in handles)) == [2 * n for n in range(200)]
        began = time.monotonic()
        with pytest.raises(ShardUnavailable) as error:
            await client.submit("work", 2000, id=later)
        assert error.value.shard == "s1"
        assert time.monotonic() - began < 30
        # A client that starts now knows the map from the others' hints.
        async with AsyncClient(config) as young:
            assert (await young.submit("work", 3000)).shard != "s1"
            with pytest.raises(ShardUnavailable):
                await young.submit("work", 2000, id=later)
        lab.server(1).start()
        handle = await client.submit("work", 2000, id=later)
        assert handle.shard == "s1"
        assert await handle.result(30) == 4000, "the worker came back to the shard"
        await until(lambda: total(config, "SELECT count(*) FROM outcome") == 203)
    assert_all_done(config, workflows=203, steps=203)
    assert set(ran.values()) == {1}


async def test_a_shard_that_is_away_at_the_start_is_served_when_it_comes(
    cluster_config: ClusterConfig, lab: Lab
) -> None:
    ran: Counter[int] = Counter()
    (id,) = ids_on(cluster_config, 2, 1)
    async with AsyncClient(cluster_config) as client:
        handle = await client.submit("work", 7, id=id)
        async with closed(lab, cluster_config, 2):
            worker = running(cluster_config, doubling(ran), connected=False)
            started = await worker.__aenter__()
            others = [await client.submit("work", n) for n in range(20)]
            assert await asyncio.gather(*(h.result(30) for h in others)) == [2 * n for n in range(20)]
            assert {h.shard for h in others} == {"s0", "s1"}
        try:
            await asyncio.wait_for(started.connected(), 60)
            assert await handle.result(30) == 14
        finally:
            await worker.__aexit__(None, None, None)


async def test_what_runs_while_its_shard_is_away_is_written_when_it_is_back(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=1)
    app, gate, ran = App(), Gate(), Counter[str]()

    @app.step
    async def through() -> str:
        ran["through"] += 1
        await gate.wait()
        return "through"

    @app.workflow
    async def work() -> str:
        return await through()

    async with AsyncClient(config) as client, running(config, app):
        handle = await client.submit(work)
        await until(lambda: gate.arrived)
        async with closed(lab, config, 0):
            gate.open()
            with pytest.raises(ShardUnavailable):
                async with AsyncClient(config) as other:
                    await other.get(handle.id)
        assert await handle.result(30) == "through"
        assert_i1(config)
    assert ran == {"through": 1}


async def test_stopping_does_not_wait_for_a_shard_that_is_away(cluster_config: ClusterConfig, lab: Lab) -> None:
    app, gate = App(), Gate()

    @app.workflow
    async def work() -> str:
        await gate.wait()
        return "done"

    (id,) = ids_on(cluster_config, 1, 1)
    async with AsyncClient(cluster_config) as client:
        handle = await client.submit(work, id=id)
        async with running(cluster_config, app) as first:
            await until(lambda: gate.arrived == 1)
            async with closed(lab, cluster_config, 1):
                began = time.monotonic()
                await first.stop(grace=0.2)
                assert time.monotonic() - began < 20
            assert await handle.status() is Status.RUNNING, "its lease is still there"
        async with running(cluster_config, app):
            await until(lambda: gate.arrived == 2, what="a peer took the lease that could not be released")
            gate.open()
            assert await handle.result(30) == "done"


async def test_a_server_that_only_reads_is_waited_for(make_cluster: MakeCluster, lab: Lab) -> None:
    """As after a failover to a standby that is not promoted yet: writes are refused, connections are not."""
    config = make_cluster(shards=1, pool=PoolConfig(timeout=2.5, connect_timeout=3))
    ran: Counter[int] = Counter()
    name = database(config.shards[0])

    def read_only(answer: str) -> None:
        with lab.admin(0) as conn:
            conn.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {answer}')
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    async with AsyncClient(config) as client, running(config, doubling(ran)) as worker:
        assert await (await client.submit("work", 1)).result(30) == 2
        read_only("on")
        with pytest.raises(ShardUnavailable):
            await client.submit("work", 2, id="two")
        waiting = asyncio.ensure_future(worker.wait())
        await asyncio.sleep(0)
        assert not waiting.done(), "the worker gave the shard up"
        read_only("off")
        handle = await client.submit("work", 2, id="two")
        assert await handle.result(30) == 4
        waiting.cancel()
    assert rows(config, "SELECT count(*) FROM outcome WHERE status = 'failed'") == [(0,)]


async def test_a_server_killed_while_it_is_loaded_loses_nothing(make_cluster: MakeCluster, lab: Lab) -> None:
    """kill -9 of a server in the middle of the work, twice; two workers; every answer is right in the end."""
    config = make_cluster(shards=2)
    ran: Counter[int] = Counter()
    count = 1000
    async with (
        AsyncClient(config) as client,
        running(config, doubling(ran), concurrency=100),
        running(config, doubling(ran), concurrency=100),
    ):
        work = doubling(ran).workflows["work"]
        handles = await client.submit_many(work.call(n).set(id=f"w{n}") for n in range(count))
        results = asyncio.gather(*(h.result(60) for h in handles))
        for _ in range(2):
            done = one(config, "SELECT count(*) FROM outcome")
            await until(lambda done=done: one(config, "SELECT count(*) FROM outcome") > done or results.done())
            await asyncio.to_thread(lab.server(0).kill)
            await asyncio.to_thread(lab.server(0).start)
        assert await results == [2 * n for n in range(count)]
        assert_i1(config)
    assert_all_done(config, workflows=count, steps=count)
