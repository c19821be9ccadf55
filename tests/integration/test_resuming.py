"""Resume, restart, fork; paused queues; many workflows at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from conftest import MakeCluster
from support.look import assert_i1, one, rows, total, until
from support.raw import by_hand, done
from support.work import ids_on, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, Retry, Status


class Flaky:
    """An app whose second step fails until it is mended; counts the calls of each step."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.broken = True
        self.app = App()

        @self.app.step
        async def first(n: int) -> int:
            self.calls["first"] += 1
            return n + 1

        @self.app.step(retry=Retry(attempts=2, initial=0.01))
        async def second(n: int) -> int:
            self.calls["second"] += 1
            if self.broken:
                raise ValueError("broken")
            return n * 10

        @self.app.step
        async def handled(n: int) -> int:
            self.calls["handled"] += 1
            raise KeyError(n)

        @self.app.workflow
        async def work(n: int) -> int:
            async def tries() -> int:
                try:
                    return await handled(n)
                except shardflow.StepFailed:
                    return 50

            n = await first(n)
            n += await tries()
            n += sum(await asyncio.gather(tries()))  # in a task of its own
            n = await first(n)
            return await second(n)


async def test_a_failed_workflow_goes_on_where_it_failed(shard_config: ClusterConfig) -> None:
    flaky = Flaky()
    async with AsyncClient(shard_config) as client, running(shard_config, flaky.app):
        handle = await client.submit("work", 1, id="w")
        for _ in range(2):
            with pytest.raises(shardflow.WorkflowFailed, match="broken"):
                await handle.result(30)
            assert await client.resume("w")
            assert_i1(shard_config)
        with pytest.raises(shardflow.WorkflowFailed, match="broken"):
            await handle.result(30)
        flaky.broken = False
        assert await client.resume("w")
        assert await handle.result(30) == 1030
        assert not await client.resume("w")
        with pytest.raises(shardflow.WorkflowNotFound):
            await client.resume("nobody")
    assert flaky.calls == Counter(first=2, handled=2, second=7)


async def test_a_cancelled_workflow_goes_on_with_what_was_recorded(shard_config: ClusterConfig) -> None:
    app = App()
    calls = Counter[str]()

    @app.step
    async def first() -> None:
        calls["first"] += 1

    @app.workflow
    async def work() -> str:
        await first()
        return await shardflow.receive("go", type=str)

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work, id="w")
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
        assert await handle.cancel()
        await client.send("w", "go", "message")
        assert await client.resume("w")
        assert await handle.result(30) == "message"
    assert calls["first"] == 1


async def test_a_time_limit_begins_anew_with_the_resume(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow(timeout=1)
    async def work() -> str:
        return await shardflow.receive("go", type=str)

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work, id="w")
        with pytest.raises(shardflow.WorkflowFailed, match="was not done within 1 s"):
            await handle.result(30)
        before = one(shard_config, "SELECT (options ->> 'deadline')::float8 FROM workflow")
        await client.send("w", "go", "in time")
        assert await client.resume("w")
        assert await handle.result(30) == "in time"
        assert one(shard_config, "SELECT (options ->> 'deadline')::float8 FROM workflow") > before


async def test_a_resumed_workflow_is_in_one_place_though_its_holder_has_not_dropped_the_receipt(
    shard_config: ClusterConfig,
) -> None:
    async with by_hand(shard_config) as hand, AsyncClient(shard_config) as client:
        conn = await hand.conn()
        wfs = await hand.submit(conn, "a", "b", "c")
        holder = await hand.holder("h")
        await holder.claim()
        await holder.turn(outcomes=[(wfs["b"], "failed", None, '{"type":"E","message":"m","traceback":""}')])
        assert await client.resume("b")
        assert_i1(shard_config)
        peer = await hand.holder("peer")
        assert [row.id for row in await peer.claim()] == ["b"]
        await peer.turn(outcomes=[done(wfs["b"])])
        # The former holder ends: it must not put back what it had done with.
        rows(shard_config, "SELECT end_lease(%s, 1)", holder.fence.lease)
        assert rows(shard_config, "SELECT w.id FROM ready JOIN workflow w USING (wf) ORDER BY 1") == [("a",), ("c",)]
        assert_i1(shard_config)


async def test_restart_runs_everything_again_with_children_of_its_own(cluster_config: ClusterConfig) -> None:
    app = App()
    calls = Counter[object]()

    @app.step
    async def note(what: object) -> None:
        calls[what] += 1

    @app.workflow
    async def child(n: int) -> int:
        await note(n)
        return n

    @app.workflow
    async def parent() -> int:
        await note("parent")
        return sum(await shardflow.gather(await shardflow.start_many(child, range(4))))

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        handle = await client.submit(parent, id="p")
        assert await handle.result(30) == 6
        for times in (2, 3):
            assert await client.restart("p")
            assert await handle.result(30) == 6
            assert calls == Counter(dict.fromkeys(["parent", 0, 1, 2, 3], times))
        assert [info.id for info in (await client.list(name="child")).workflows if info.id.startswith("p/2~")]
        assert total(cluster_config, "SELECT count(*) FROM workflow") == 13
        assert_i1(cluster_config)


async def test_a_fork_goes_on_from_a_step_on_another_shard(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2)
    (source,), (target,) = ids_on(config, 0, 1, "s"), ids_on(config, 1, 1, "t")
    app = App()
    calls = Counter[str]()
    factor = 10

    @app.step
    async def add(n: int) -> int:
        calls["add"] += 1
        return n + 1

    @app.step
    async def times(n: int) -> int:
        calls["times"] += 1
        return n * factor

    @app.workflow
    async def child(n: int) -> int:
        await shardflow.receive("go")
        return n

    @app.workflow
    async def work(n: int) -> int:
        n = await add(n)
        kids = await shardflow.start_many(child, [1, 2])
        n = await times(n)
        return n + sum(await shardflow.gather(kids))

    async with AsyncClient(config) as client, running(config, app):
        first = await client.submit(work, 1, id=source, attributes={"tenant": "a"})
        await until(lambda: one(config, "SELECT count(*) FROM step WHERE name = 'times'") == 1)
        steps = await first.steps()
        assert [s.name for s in steps] == ["add", "shardflow.start", "times"]
        factor = 1000
        fork = await client.fork(source, steps[2].seq, new_id=target)
        again = await client.fork(source, steps[2].seq, new_id=target)
        assert fork.id == again.id == target
        with pytest.raises(shardflow.WorkflowConflict):
            await client.fork(source, 0, new_id=target)
        with pytest.raises(shardflow.WorkflowNotFound):
            await client.fork("nobody")
        with pytest.raises(shardflow.InvalidInput, match="from_step"):
            await client.fork(source, -1)
        thrown_away = await client.fork(source, steps[2].seq)
        await until(lambda: total(config, "SELECT count(*) FROM step WHERE name = 'times'") == 3)
        assert await client.cancel(thrown_away.id)  # which leaves alone what the first one has started
        assert calls == Counter(add=1, times=3)
        for n in range(2):
            await client.send(f"{source}/1.{n}", "go")
        assert await first.result(30) == 23
        assert await fork.result(30) == 2003
        assert [w.id for w in (await client.list(attributes={"tenant": "a"}, status="succeeded")).workflows] == [
            target,
            source,
        ]
        whole = await client.fork(source)
        await until(lambda: calls["add"] == 2)
        assert (await whole.info()).name == "work"
        assert_i1(config)


async def test_a_paused_queue_begins_nothing_on_any_shard(cluster_config: ClusterConfig) -> None:
    app = App()
    ran: list[int] = []

    @app.workflow(queue="orders")
    async def order(n: int) -> None:
        ran.append(n)

    @app.workflow(queue="orders", version="2", name="order")
    async def newer(n: int) -> None:
        ran.append(n)

    @app.workflow
    async def other() -> str:
        return "other"

    async with AsyncClient(cluster_config) as client:
        assert (await client.queues.pause("orders")).count == 3
        assert (await client.queues.pause("orders")).count == 0
        handles = await client.submit_many(order.call(n) for n in range(20))
        handles += await client.submit_many(newer.call(n) for n in range(20))
        async with running(cluster_config, app):
            for _ in range(5):
                assert await (await client.submit(other)).result(30) == "other"
            assert ran == []
            (queue,) = [q for q in (await client.queues.list()).queues if q.name == "orders"]
            assert (queue.ready, sorted(queue.paused)) == (40, ["s0", "s1", "s2"])
            assert (await client.queues.resume("orders")).count == 3
            for handle in handles:
                await handle.result(30)
    assert sorted(ran) == sorted([*range(20)] * 2)


async def test_many_are_cancelled_and_resumed_by_filter_and_a_shard_that_is_away_is_named(
    cluster_config: ClusterConfig,
) -> None:
    app = App()

    @app.workflow
    async def waits(n: int) -> int:
        await shardflow.receive("go")
        return n

    @app.workflow
    async def other() -> None:
        await shardflow.receive("go")

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        await client.submit_many(waits.call(n).set(id=f"w{n}", attributes={"even": n % 2 == 0}) for n in range(40))
        await client.submit(other, id="other")
        await until(lambda: total(cluster_config, "SELECT count(*) FROM wait") == 41)
        assert (await client.cancel_many(name="waits", attributes={"even": True}, reason="even")).count == 20
        assert (await client.cancel_many(name="waits", attributes={"even": True})).count == 0
        assert (await client.count(status=Status.CANCELLED)).total == 20
        away = ClusterConfig(
            "test",
            (replace(cluster_config.shards[0], dsn="postgresql://127.0.0.1:1/x"), *cluster_config.shards[1:]),
            cluster_config.slots,
            pool=replace(cluster_config.pool, timeout=2.0),
        )
        async with AsyncClient(away) as partly:
            bulk = await partly.resume_many(name="waits")
            assert list(bulk.unreachable) == ["s0"]
            paused = await partly.queues.pause("default")
            assert (paused.count, list(paused.unreachable)) == (2, ["s0"])
            assert (await partly.queues.resume("default")).count == 2
        rest = await client.resume_many()
        assert (bulk.count + rest.count, rest.unreachable) == (20, {})
        for n in range(40):
            await client.send(f"w{n}", "go")
        assert [await (await client.get(f"w{n}", waits)).result(30) for n in range(40)] == [*range(40)]
        assert await (await client.get("other")).status() is Status.SUSPENDED
    assert_i1(cluster_config)
