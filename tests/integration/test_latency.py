"""What makes a short workflow quick and an idle worker cheap, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from support.look import assert_i1, one, rows, until
from support.work import Gate, running

import shardflow.storage.turn as turns
import shardflow.worker.claims
from shardflow import App, AsyncClient, ClusterConfig, LeaseConfig, Worker
from shardflow.embedded import Servers
from shardflow.model import RebalanceConfig, ShardConfig
from shardflow.storage import bell, cluster
from shardflow.worker.link import Link

#: Whatever is told by time takes too long for the tests in which something is to be told otherwise.
RARE = LeaseConfig(ttl=600, renew=200, watch=100)


def quick() -> App:
    app = App("quick")

    @app.workflow
    async def work(n: int) -> int:
        return n

    return app


async def test_an_idle_worker_asks_all_it_needs_in_two_queries_a_second(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where they are sent, for thirty of the users' seconds; all periods are a fifth of theirs here."""
    config = ClusterConfig(
        "test",
        shard_config.shards,
        shard_config.slots,
        lease=LeaseConfig(ttl=2.0, renew=0.5, watch=0.2),
        rebalance=RebalanceConfig(interval=0.2),
    )
    sent: list[str] = []
    real = psycopg.AsyncCursor.execute

    async def execute(self: Any, query: Any, *arguments: Any, **more: Any) -> Any:
        sent.append(bytes(query).decode() if isinstance(query, bytes) else str(query))
        return await real(self, query, *arguments, **more)

    monkeypatch.setattr(psycopg.AsyncCursor, "execute", execute)
    loop = asyncio.get_running_loop()
    async with running(config, quick()) as worker:
        rebalancer = worker._rebalancer
        await until(
            lambda: rebalancer._quiet_looks > 3 and all(k._commit.claims.rests for k in worker._links.values())
        )
        sent.clear()
        began = loop.time()
        await until(lambda: loop.time() - began > 6.0)
        assert len(sent) <= 60, sorted(sent)
        kinds = ("ready", "expires_at", "worker AS w", "AS backlog")
        assert all(any(kind in text for text in sent) for kind in kinds), "something is not asked any more"


async def test_who_submits_beside_a_worker_does_not_wait_for_the_bell(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardflow.worker.claims, "OWN_LOOK", 1000.0)
    monkeypatch.setattr(Link, "_rang", lambda *_: None)
    config = ClusterConfig("test", shard_config.shards, shard_config.slots, lease=RARE)
    async with AsyncClient(config) as client, running(config, quick()) as worker:
        for n in range(3):
            await until(lambda: all(link._commit.claims.rests for link in worker._links.values()))
            assert await (await client.submit("work", n)).result(30) == n
    assert not any(bell._near.values()), "it is still called after its end"


async def test_the_elected_one_hears_of_a_worker_that_comes(shard_config: ClusterConfig) -> None:
    """Its own looks are too rare here to notice."""
    rebalance = RebalanceConfig(min_group=1, interval=1000.0)
    config = ClusterConfig("test", shard_config.shards, shard_config.slots, rebalance=rebalance)
    async with running(config, quick(), name="first") as first:
        await until(lambda: first._rebalancer.deciding)
        second = Worker(config, quick(), name="second")
        await second.start()
        await until(lambda: second.serves == ["s0"], 30, what="the second one is told to serve the shard")
        await second.stop(0)


async def test_a_keeper_notices_that_its_lease_is_gone_though_the_loop_rests(shard_config: ClusterConfig) -> None:
    """At a look that renews nothing, too."""
    config = ClusterConfig(
        "test", shard_config.shards, shard_config.slots, lease=LeaseConfig(ttl=600, renew=200, watch=0.1)
    )
    async with running(config, quick()) as worker:
        await until(lambda: all(link._commit.claims.rests for link in worker._links.values()))
        (lost,) = rows(config, "DELETE FROM lease RETURNING lease")
        await until(
            lambda: (now := rows(config, "SELECT lease FROM lease")) and now != [lost], 30, what="a new lease"
        )


async def test_claims_that_a_crash_of_the_server_takes_back_are_made_again() -> None:
    """A claim alone commits before it is on the disk: here it never gets there, and what ran by it begins anew."""
    app, gate = App("light"), Gate()

    @app.step
    async def hold(n: int) -> int:
        await gate.wait()
        return n

    @app.workflow
    async def work(n: int) -> int:
        return await hold(n)

    with Servers(1, settings={"wal_writer_delay": "10s", "autovacuum": "off", "bgwriter_delay": "10s"}) as servers:
        (server,) = servers
        config = ClusterConfig("light", (ShardConfig("s0", server.dsn),), 16, lease=RARE)
        await cluster.init(config)
        async with AsyncClient(config) as client, running(config, app) as worker:
            (link,) = worker._links.values()
            early = await client.submit("work", 1)
            await until(lambda: gate.arrived == 1)
            rows(config, "CREATE TABLE public.flushed ()")  # the first claim is on the disk with this
            late = await client.submit("work", 2)
            await until(lambda: gate.arrived == 2)
            assert one(config, "SELECT pg_current_wal_insert_lsn() > pg_current_wal_flush_lsn()"), "it is on the disk"
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await until(lambda: gate.arrived == 3, 60, what="the second one has begun again")
            assert link.running == 2
            assert_i1(config)
            gate.open()
            assert [await early.result(60), await late.result(60)] == [1, 2]
            assert gate.arrived == 3, "what was held all the time was disturbed"
            assert rows(config, "SELECT count(*) FROM step") == [(2,)]


async def test_only_a_turn_that_claims_and_nothing_else_is_light(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[turns.Turn] = []
    real = turns.commit

    async def commit(shard: Any, conn: Any, fence: Any, turn: turns.Turn) -> turns.Answer:
        seen.append(turn)
        return await real(shard, conn, fence, turn)

    monkeypatch.setattr(turns, "commit", commit)
    app = App("light")

    @app.step
    async def twice(n: int) -> int:
        return 2 * n

    @app.workflow
    async def work(n: int) -> int:
        return await twice(n)

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        for n in range(5):
            assert await (await client.submit("work", n)).result(30) == 2 * n
    light = [turn for turn in seen if turn.light]
    assert light, "none was"
    assert all(t.claim is not None and not t.claim.limited for t in light)
    assert not any(t.steps or t.outcomes or t.waits or t.relayed or t.begun or t.suspects or t.adopt for t in light)
    assert all(t.light or not t.claim or t.steps or t.outcomes or t.adopt or t.suspects for t in seen)
