"""Liveness: nobody waits for what does not come, spins, or loses a lease by somebody else's fault."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from support.look import assert_all_done, assert_i1, connect, one, rows, terminate, until
from support.raw import by_hand
from support.work import Gate, running

import shardflow.delivery.sender
import shardflow.storage.leases
import shardflow.storage.submissions
import shardflow.worker.claims
import shardflow.worker.keeper
from shardflow import (
    App,
    AsyncClient,
    Client,
    ClusterConfig,
    LeaseConfig,
    PoolConfig,
    RebalanceConfig,
    ResultTimeout,
    ShardConfig,
    ShardUnavailable,
    Status,
    SubmitUncertain,
    UsageError,
    Worker,
    WorkflowFailed,
)
from shardflow.embedded import Servers
from shardflow.storage import cluster

MakeCluster = Callable[..., ClusterConfig]


def simple() -> App:
    app = App()

    @app.workflow
    async def work(x: int) -> int:
        return x

    @app.workflow
    async def bad() -> None:
        raise ValueError("no")

    return app


def held(gate: Gate) -> App:
    """A workflow that waits in its only step."""
    app = App()

    @app.step
    async def hold() -> None:
        await gate.wait()

    @app.workflow
    async def holds() -> str:
        await hold()
        return "held"

    @app.workflow
    async def work(x: int) -> int:
        return x

    return app


def unlimited(config: ClusterConfig) -> ClusterConfig:
    """The same cluster of one shard, where the server ends no wait by itself: who waits for a lock is seen to."""
    (shard,) = config.shards
    limits = "-c idle_in_transaction_session_timeout=0 -c lock_timeout=0 -c statement_timeout=0"
    return replace(config, shards=(replace(shard, dsn=f"{shard.dsn}?options={quote(limits)}"),))


@contextmanager
def trigger(config: ClusterConfig, table: str, body: str, each: str = "STATEMENT") -> Iterator[None]:
    """Runs `body` before every insert into the table."""
    with connect(config) as conn:
        conn.execute(
            f"CREATE FUNCTION public.trick() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$"
        )
        conn.execute(f"CREATE TRIGGER trick BEFORE INSERT ON {table} FOR EACH {each} EXECUTE FUNCTION public.trick()")
        try:
            yield
        finally:
            conn.execute(f"DROP TRIGGER trick ON {table}")


# -- places, turns, ends


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_few_places_and_many_queues_with_work_in_one_of_them(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    monkeypatch.setattr(shardflow.worker.claims, "IDLE_LOOK", 120.0)  # nothing is found by looking now and then
    app = App()

    async def work(x: int) -> int:
        return x

    for n in range(8):  # and the default one
        app.workflow(name=f"work{n}", queue=f"q{n}")(work)
    async with AsyncClient(shard_config) as client, running(shard_config, app, concurrency=concurrency):
        for busy in ("work3", "work7", "work0"):
            handles = await client.submit_many(app.workflows[busy].call(n) for n in range(10))
            assert [await h.result(30) for h in handles] == list(range(10))


@pytest.mark.parametrize("ticks", [0, 1, 2, 3])
@pytest.mark.parametrize("end", ["leave", "stop"])
async def test_a_worker_that_is_woken_in_the_tick_of_its_end_ends(
    shard_config: ClusterConfig, end: str, ticks: int
) -> None:
    """Before Python 3.12 `asyncio.wait_for` swallows a cancellation that comes together with what it waits for."""
    gate = Gate()
    app = held(gate)
    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        (link,) = worker._links.values()
        loop = link._commit
        await until(lambda: loop._awake._waiters and not loop._awake.is_set(), what="the commit loop sleeps")
        loop.wake()
        for _ in range(ticks):
            await asyncio.sleep(0)
        ending = asyncio.ensure_future(worker.leave() if end == "leave" else worker.stop(grace=0))
        await asyncio.wait([ending], timeout=30)
        assert ending.done(), "the worker hangs"
        await ending
        if end == "stop":
            assert await handle.status() is Status.READY
            assert_i1(shard_config)


async def test_draining_with_a_long_step_under_way_costs_little(shard_config: ClusterConfig) -> None:
    gate = Gate()
    async with AsyncClient(shard_config) as client, running(shard_config, held(gate)) as worker:
        await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        cpu, wall = time.process_time(), time.monotonic()
        await worker.stop(grace=1.2)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        assert wall >= 1.1
        assert cpu < 0.3 * wall, f"{cpu:.2f} s of CPU in {wall:.2f} s"


async def test_to_give_up_waiting_for_a_worker_leaves_it_serving(shard_config: ClusterConfig) -> None:
    app = simple()
    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.wait(), 0.05)
        waiting = asyncio.ensure_future(worker.wait())
        await asyncio.sleep(0)
        waiting.cancel()
        assert await (await client.submit("work", 1)).result(30) == 1
        waiting = asyncio.ensure_future(worker.wait())
        await worker.stop(grace=1)
        await asyncio.wait_for(waiting, 30)


# -- leases


async def test_a_peers_stuck_transaction_costs_nobody_else_a_lease_and_is_cut_off(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A frozen worker has sent half of a batch: its transaction is open and holds its lease's row."""
    monkeypatch.setattr(shardflow.worker.keeper, "LATE", 1000.0)  # until all that goes on beside it has been seen
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=200, renew=0.1, watch=0.05))
    config = replace(unlimited(config), rebalance=RebalanceConfig(min_group=3))
    app = simple()
    theirs = "SELECT lease, worker, epoch FROM lease WHERE worker <> 'stuck' ORDER BY lease"
    renewals = "SELECT lease, expires_at FROM lease WHERE worker <> 'stuck' ORDER BY lease"
    stuck = "SELECT expires_at < clock_timestamp() FROM lease WHERE worker = 'stuck'"
    async with AsyncClient(config) as client, by_hand(config) as hand:
        holder = await hand.holder("stuck", ttl=0.3)
        caught = await client.submit("work", 1)
        assert len(await holder.claim()) == 1
        fence = holder.fence
        await holder.writing.execute(b"BEGIN")
        await holder.writing.execute(
            hand.shard.statements("turn")["fence"], (fence.lease, fence.epoch, fence.generation)
        )
        async with running(config, app, name="w1"), running(config, app, name="w2"), running(config, app, name="w3"):
            before = rows(config, theirs)
            await until(lambda: rows(config, stuck) == [(True,)])
            for n in range(3):
                # Nobody's renewal waits for the stuck row, and work is served.
                last = dict(rows(config, renewals))
                await until(lambda last=last: all(at > last[lease] for lease, at in rows(config, renewals)), 30)
                assert await (await client.submit("work", n)).result(30) == n
            assert rows(config, stuck) == [(True,)], "cut off before its time"
            monkeypatch.setattr(shardflow.worker.keeper, "LATE", 0.5)
            await until(lambda: not rows(config, stuck), what="it is cut off")
            assert await caught.result(30) == 1
            assert rows(config, theirs) == before
    assert "cut off a connection that kept a dead worker's lease from being ended" in caplog.text


async def test_a_lease_is_resumed_at_once_while_its_old_session_seems_to_live(
    make_cluster: MakeCluster,
) -> None:
    """The server has not noticed that the keeper's connection is gone: its lock is there still."""
    config = unlimited(make_cluster(shards=1, lease=LeaseConfig(ttl=600, renew=1, watch=0.2)))
    gate = Gate()
    async with (
        by_hand(config) as hand,
        AsyncClient(config) as client,
        running(config, held(gate), name="first"),
        running(config, held(gate), name="peer", queues=["other"]),
    ):
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        lease = one(config, "SELECT lease FROM lease WHERE worker = 'first'")
        ghost = await hand.conn("ghost")
        lock = "SELECT pg_advisory_lock_shared(hashtextextended('shardflow:lease:' || %s::bigint, 0))"
        locking = asyncio.ensure_future(ghost.execute(lock, (lease,)))
        await asyncio.sleep(0)
        assert terminate(config, "keeper first") == 1
        await locking
        await until(lambda: one(config, "SELECT epoch FROM lease WHERE lease = %s", lease) == 2, 30)
        assert await (await client.submit("work", 1)).result(30) == 1
        gate.open()
        assert await handle.result(30) == "held"
        assert gate.arrived == 1


async def test_a_worker_behind_a_pooler_keeps_its_lease_beside_a_direct_one(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no session lock that could tell of its life: only its lease's time counts."""
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=4.0, renew=0.2, watch=0.05))
    pooled = replace(config, shards=(replace(config.shards[0], pooler=True),))
    gate = Gate()
    looks = 0
    real = shardflow.storage.leases.look

    async def counting(*arguments: Any, watch: bool = False, **more: Any) -> Any:
        nonlocal looks
        looks += watch
        return await real(*arguments, watch=watch, **more)

    async with AsyncClient(config) as client, running(pooled, held(gate), name="pooled", concurrency=3) as behind:
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        before = rows(config, "SELECT lease, epoch FROM lease")
        async with running(config, held(gate), name="direct", queues=["other"]) as direct:
            monkeypatch.setattr(shardflow.storage.leases, "look", counting)
            await until(lambda: looks >= 20)
            leases = "SELECT lease, epoch FROM lease WHERE worker = 'pooled'"
            assert rows(config, leases) == before
            gate.open()
            assert await handle.result(30) == "held"
            # Once it does not renew any more, its time runs out.
            await behind.leave()
            await until(lambda: not rows(config, leases))
            assert direct.running == 0


async def test_an_error_that_nobody_foresaw_does_not_end_the_service_of_a_shard(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=5, renew=0.05, watch=0.2))
    real = shardflow.storage.leases.look
    raised = 0

    async def look(*arguments: Any, **more: Any) -> Any:
        nonlocal raised
        if not raised:
            raised += 1
            raise RuntimeError("a defect")
        return await real(*arguments, **more)

    gate = Gate()
    async with AsyncClient(config) as client, running(config, held(gate)):
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        lease = one(config, "SELECT lease FROM lease")
        monkeypatch.setattr(shardflow.storage.leases, "look", look)
        await until(lambda: raised)
        await until(lambda: rows(config, "SELECT lease, epoch FROM lease") == [(lease, 2)], what="resumed")
        assert await (await client.submit("work", 1)).result(30) == 1
        gate.open()
        assert await handle.result(30) == "held"
    assert "unexpected error; trying again" in caplog.text
    assert "RuntimeError: a defect" in caplog.text
    assert gate.arrived == 1


# -- a server that refuses


async def test_a_claim_that_is_always_refused_is_logged_and_tried_seldom(
    shard_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    rows(shard_config, "CREATE SEQUENCE public.tries")
    async with AsyncClient(shard_config) as client, running(shard_config, held(gate)):
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        with trigger(shard_config, "claim", "PERFORM nextval('public.tries'); RAISE 'no claims today';"):
            waiting = [await client.submit("work", n) for n in range(3)]
            tries = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.tries"
            await until(lambda: one(shard_config, tries))
            began, cpu = time.monotonic(), time.process_time()
            await until(lambda: time.monotonic() - began > 1.1)
            assert time.process_time() - cpu < 0.5
            assert 1 <= one(shard_config, tries) <= 8
            # What runs is written nevertheless.
            gate.open()
            assert await handle.result(30) == "held"
            assert "a claim was refused" in [r.message for r in caplog.records if r.levelno == logging.ERROR]
        assert [await h.result(30) for h in waiting] == [0, 1, 2]
    assert_all_done(shard_config, workflows=4, steps=1)


# -- the client and its connections


@pytest.mark.parametrize("connections", [1, 2])
async def test_submits_that_wait_for_a_connection_are_not_failures_of_the_only_shard(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    monkeypatch.setattr(shardflow.delivery.sender, "REDRAW_AFTER", 0.1)
    config = make_cluster(shards=1, pool=PoolConfig(max_size=connections, timeout=30))
    async with AsyncClient(config) as client:
        await client.submit("work", -1)
        with trigger(config, "workflow", "PERFORM pg_sleep(0.03);"):
            began = time.monotonic()
            handles = await asyncio.gather(*(client.submit("work", n) for n in range(30)))
            assert time.monotonic() - began > 2 * 0.1, "nobody had to wait"
        assert len({h.id for h in handles}) == 30
    assert one(config, "SELECT count(*) FROM workflow") == 31


async def test_submits_wait_for_the_only_shard_while_it_is_restarted() -> None:
    with Servers(1, settings={"shared_buffers": "16MB"}) as (server,):
        pool = PoolConfig(timeout=60, connect_timeout=2)
        config = ClusterConfig("test", (ShardConfig("s0", server.dsn),), 16, pool=pool)
        await cluster.init(config)
        async with AsyncClient(config) as client:
            await client.submit("work", 0)
            server.kill()
            submits = [asyncio.ensure_future(client.submit("work", n)) for n in range(20)]
            await asyncio.wait(submits, timeout=0.3)
            assert not any(s.done() for s in submits)
            await asyncio.to_thread(server.start)
            handles = await asyncio.gather(*submits)
            assert len({h.id for h in handles}) == 20
            await client.submit("work", 21)
        assert one(config, "SELECT count(*) FROM workflow") == 22


async def test_a_pool_works_with_more_open_files_than_select_can_watch(shard_config: ClusterConfig) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2_000
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"only {hard} open files are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    taken: list[int] = []
    try:
        while not taken or taken[-1] <= 1_100:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        app = simple()
        async with AsyncClient(shard_config) as client, running(shard_config, app):
            for n in range(3):  # from the second on the connection was used before
                assert await (await client.submit("work", n)).result(30) == n
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("given", [True, False])
async def test_a_submit_whose_repetitions_cannot_be_read_is_in_doubt(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    """The new ones are committed; what lies under the other ids could not be asked for."""
    config = make_cluster(shards=1, pool=PoolConfig(timeout=2, connect_timeout=5))
    work = simple().workflows["work"]

    async def lost(*_: Any) -> Any:
        raise ShardUnavailable("lost while reading", shard="s0")

    async with AsyncClient(config) as client:
        await client.submit(work, 1, id="old")
        calls = [work.call(1).set(id="old"), work.call(2).set(id="new") if given else work.call(2)]
        with monkeypatch.context() as patch:
            patch.setattr(shardflow.storage.submissions, "existing", lost)
            with pytest.raises(SubmitUncertain, match="may have been accepted") as doubt:
                await client.submit_many(calls)
        assert len(doubt.value.ids) == 2
        assert doubt.value.ids[0] == "old"
        assert rows(config, "SELECT id FROM workflow WHERE id <> 'old'") == [(doubt.value.ids[1],)]
        if given:
            assert [h.id for h in await client.submit_many(calls)] == ["old", "new"]
            assert one(config, "SELECT count(*) FROM workflow") == 2


async def test_asking_for_a_result_without_any_patience(shard_config: ClusterConfig) -> None:
    gate = Gate()
    app = held(gate)

    @app.workflow
    async def bad() -> None:
        raise ValueError("no")

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        runs, ends, fails = [
            await client.submit(name, *a) for name, a in (("holds", ()), ("work", (7,)), ("bad", ()))
        ]
        await until(lambda: gate.arrived == 1)
        assert await ends.result(30) == 7
        for _ in range(3):
            assert await ends.result(timeout=0) == 7
            with pytest.raises(ResultTimeout, match="it goes on"):
                await runs.result(timeout=0)
        with pytest.raises(WorkflowFailed):
            await fails.result(30)
        with pytest.raises(WorkflowFailed, match="no"):
            await fails.result(timeout=0)
        gate.open()
        assert await runs.result(30) == "held"
        assert await runs.result(timeout=0) == "held"


# -- closed clients


@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_client_says_so(shard_config: ClusterConfig, used: bool) -> None:
    work = simple().workflows["work"]
    client = AsyncClient(shard_config)
    handle = await client.submit(work, 1, id="it")
    if used:  # somebody has waited for a result, too
        with pytest.raises(ResultTimeout):
            await handle.result(0.01)
    await client.close()
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.submit(work, 2),
        lambda: client.submit(work, 2, id="given"),
        lambda: client.submit_many([work.call(2)]),
        lambda: client.get("it"),
        lambda: client.info("it"),
        lambda: client.steps("it"),
        lambda: handle.result(),
        lambda: handle.result(timeout=0),
        lambda: handle.status(),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="the client is closed"):
            async with asyncio.timeout(30):
                await call()
    await client.close()
    assert one(shard_config, "SELECT count(*) FROM workflow") == 1
    assert len(asyncio.all_tasks()) == 1


def in_threads(calls: list[Callable[[], Any]]) -> tuple[list[threading.Thread], list[Any]]:
    """Each call in a thread of its own, and where their answers or errors come."""
    answers: list[Any] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            answers.append(call())
        except BaseException as error:
            answers.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads, answers


async def test_closing_the_synchronous_client_ends_the_calls_of_other_threads(shard_config: ClusterConfig) -> None:
    client = Client(shard_config)
    handle = await asyncio.to_thread(client.submit, "work", 1)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(shard_config) as conn, conn.transaction():
        conn.execute("LOCK TABLE workflow IN SHARE MODE")  # readers pass, submits do not
        threads, answers = in_threads(
            [
                lambda: client.submit("work", 2),
                lambda: client.submit("work", 3, id="given"),
                lambda: handle.result(),
                lambda: handle.result(timeout=60),
            ]
        )
        await until(lambda: one(shard_config, waiting) == 2)
        await asyncio.wait_for(asyncio.to_thread(client.close), 30)
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    assert [type(a) for a in answers] == [UsageError] * 4, answers
    await until(lambda: one(shard_config, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LOCK%%'") <= 1)
    assert one(shard_config, "SELECT count(*) FROM workflow") == 1


async def test_no_call_is_lost_between_the_closing_and_the_end_of_the_synchronous_client(
    shard_config: ClusterConfig,
) -> None:
    """Threads that call all the time: each call is answered or refused, in whatever moment it comes."""

    def hammer(client: Client) -> str:
        closed = 0
        while True:
            try:
                client.info("it")
            except UsageError:
                closed += 1
                if closed > 20:
                    return "told"

    for n in range(10):
        client = Client(shard_config)
        await asyncio.to_thread(client.submit, "work", 1, id="it")
        threads, answers = in_threads([lambda client=client: hammer(client)] * 4)  # type: ignore[misc]
        await asyncio.sleep(0.001 * n)
        await asyncio.wait_for(asyncio.to_thread(client.close), 30)
        for thread in threads:
            await asyncio.to_thread(thread.join, 30)
        assert not any(thread.is_alive() for thread in threads), f"round {n}: a thread waits for ever"
        assert answers == ["told"] * 4


async def test_a_worker_object_that_left_can_be_stopped(shard_config: ClusterConfig) -> None:
    worker = Worker(shard_config, simple())
    await worker.start()
    await asyncio.wait_for(worker.connected(), 60)
    await worker.leave()
    await asyncio.wait_for(worker.stop(grace=1), 30)
    assert one(shard_config, "SELECT count(*) FROM lease") == 0
