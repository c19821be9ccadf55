"""Cancelling workflows wherever they are, and with them their children; time limits; a new beginning."""

from __future__ import annotations

import asyncio
import threading

import pytest
from conftest import MakeCluster
from support.look import assert_i1, one, rows, total, until
from support.work import Gate, ids_on, running

import shardflow
from shardflow import App, AsyncClient, Client, ClusterConfig, Retry, Status, blocking


async def ended(config: ClusterConfig, id: str, shard: int = 0) -> str | None:
    """How a workflow has ended, None where it has not."""
    found = rows(config, "SELECT o.status FROM outcome o JOIN workflow USING (wf) WHERE id = %s", id, shard=shard)
    return found[0][0] if found else None


def nothing_left(config: ClusterConfig) -> None:
    """Nothing is to be cancelled or delivered any more."""
    for table in ("cancel", "outbox", "ready", "wait"):
        assert total(config, f"SELECT count(*) FROM {table}") == 0, table


async def test_a_ready_workflow_is_cancelled_at_once_and_never_runs(shard_config: ClusterConfig) -> None:
    app = App()
    ran: list[int] = []

    @app.workflow
    async def work(n: int) -> None:
        ran.append(n)

    async with AsyncClient(shard_config) as client:
        handles = [await client.submit(work, n, id=f"w{n}") for n in range(3)]
        assert await handles[1].cancel("not needed")
        assert not await handles[1].cancel("again")
        assert await handles[1].status() is Status.CANCELLED
        assert_i1(shard_config)
        with pytest.raises(shardflow.WorkflowCancelled, match="not needed"):
            await handles[1].result(30)
        with pytest.raises(shardflow.WorkflowNotFound):
            await client.cancel("nobody")
        async with running(shard_config, app):
            await handles[0].result(30)
            await handles[2].result(30)
            assert not await client.cancel("w0")
        assert ran == [0, 2]
    nothing_left(shard_config)


@pytest.mark.parametrize("how", ["sleep", "receive", "children", "delay", "after", "retry"])
async def test_a_suspended_workflow_is_cancelled_at_once(shard_config: ClusterConfig, how: str) -> None:
    app = App()

    @app.step(retry=Retry(attempts=9, initial=60))
    async def fails() -> None:
        raise ValueError

    @app.workflow
    async def waits(what: str) -> None:
        if what == "sleep":
            await shardflow.sleep(3600)
        elif what == "children":
            await (await shardflow.start(waits, "receive")).result()
        elif what == "retry":
            await fails()
        await shardflow.receive("never")

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        if how == "after":
            await client.submit(waits, "sleep", id="first")
            await client.submit(waits, how, id="w", after="first")
        elif how == "delay":
            await client.submit(waits, how, id="w", delay=3600)
        else:
            await client.submit(waits, how, id="w")
        query = "SELECT count(*) FROM wait JOIN workflow USING (wf) WHERE id = 'w'"
        await until(lambda: one(shard_config, query) == 1)
        await until(lambda: worker.running == 0)
        assert await client.cancel("w")
        assert await ended(shard_config, "w") == "cancelled"
        assert_i1(shard_config)
        if how == "children":
            await until(lambda: ended(shard_config, "w/0"))
            assert await ended(shard_config, "w/0") == "cancelled"
        elif how == "after":
            assert await client.cancel("first")
        await until(lambda: one(shard_config, "SELECT count(*) FROM outbox") == 0)
    nothing_left(shard_config)


@pytest.mark.parametrize("full", [False, True], ids=["idle", "all places taken"])
async def test_a_running_step_gets_cancelled_error_within_about_a_second(
    shard_config: ClusterConfig, full: bool
) -> None:
    app = App()
    gate = Gate()
    seen: list[str] = []

    @app.step
    async def hangs() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @app.step
    async def compensates() -> None:
        seen.append("compensated")

    @app.workflow
    async def work(stubborn: bool) -> str:
        try:
            await hangs()
        except asyncio.CancelledError:
            if not stubborn:
                raise
        for _ in range(3):
            try:
                await compensates()
            except asyncio.CancelledError:
                seen.append("refused")
        return "done nevertheless"

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app, concurrency=2 if full else 10) as worker:
            meek = await client.submit(work, False, id="meek")
            stubborn = await client.submit(work, True, id="stubborn")
            await until(lambda: gate.arrived == 2)
            began = asyncio.get_running_loop().time()
            assert await meek.cancel()
            assert await stubborn.cancel("you too")
            with pytest.raises(shardflow.WorkflowCancelled):
                await meek.result(30)
            with pytest.raises(shardflow.WorkflowCancelled, match="you too"):
                await stubborn.result(30)
            assert asyncio.get_running_loop().time() - began < 10
            await until(lambda: worker.running == 0)
            await until(lambda: seen.count("refused") == 3)
        assert seen.count("cancelled") == 2
        assert "compensated" not in seen
        assert one(shard_config, "SELECT count(*) FROM step") == 0
    nothing_left(shard_config)


async def test_a_thread_stops_at_its_next_step(shard_config: ClusterConfig) -> None:
    app = App()
    arrived, go_on = threading.Event(), threading.Event()
    seen: list[str] = []

    @app.step
    def first() -> str:
        arrived.set()
        go_on.wait(60)
        return "first"

    @app.step
    def second() -> None:
        seen.append("second")

    @app.workflow
    def work() -> None:
        first()
        second()

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        handle = await client.submit(work)
        await until(arrived.is_set)
        try:
            assert await handle.cancel()
            with pytest.raises(shardflow.WorkflowCancelled):
                await handle.result(30)
            assert worker.running == 0
        finally:
            go_on.set()
        assert await (await client.submit(work)).result(30) is None
        assert seen == ["second"]
        assert one(shard_config, "SELECT count(*) FROM step") == 2
    nothing_left(shard_config)


async def test_tasks_and_a_plain_workflow_that_waits_are_cancelled(shard_config: ClusterConfig) -> None:
    app = App()
    gate = Gate()
    seen: list[str] = []

    @app.step
    async def hangs() -> None:
        try:
            await gate.wait()
        finally:
            seen.append("ended")

    @app.workflow
    async def loose() -> None:
        tasks = [asyncio.create_task(hangs()) for _ in range(3)]
        await shardflow.receive("never")
        await asyncio.gather(*tasks)

    @app.workflow
    def plain() -> None:
        blocking.sleep(0.5)
        blocking.receive("never", timeout=0.6)
        blocking.receive("never")

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        one_, two = await client.submit(loose), await client.submit(plain)
        await until(lambda: gate.arrived == 3)
        assert await one_.cancel()
        assert await two.cancel()
        for handle in (one_, two):
            with pytest.raises(shardflow.WorkflowCancelled):
                await handle.result(30)
        await until(lambda: seen == ["ended"] * 3)
        await until(lambda: worker.running == 0)
    nothing_left(shard_config)


async def test_children_on_all_shards_are_cancelled_with_their_parent(cluster_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def leaf(n: int) -> int:
        if n >= 0:
            await shardflow.receive("never")
        return n

    @app.workflow
    async def branch(n: int) -> list[object]:
        kids = await shardflow.start_many(leaf, [*range(n), -1])
        return await shardflow.gather(kids)

    @app.workflow
    async def root() -> object:
        kid = await shardflow.start(branch, 10)
        named = await shardflow.start(leaf.call(1).set(id="given"))
        return [await kid.result(), await named.result()]

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        handle = await client.submit(root, id="r")
        done = "SELECT count(*) FROM outcome WHERE status = %s"
        await until(lambda: total(cluster_config, "SELECT count(*) FROM wait WHERE reason LIKE 'message%%'") == 11)
        await until(lambda: total(cluster_config, done, "succeeded") == 1)
        await until(lambda: total(cluster_config, "SELECT count(*) FROM wait WHERE reason = 'children'") == 2)
        assert await handle.cancel("enough")
        await until(lambda: total(cluster_config, done, "cancelled") == 13)
        await until(lambda: total(cluster_config, "SELECT count(*) FROM outbox") == 0)
        with pytest.raises(shardflow.WorkflowCancelled, match="that had started it"):
            await (await client.get("given")).result(30)
        assert_i1(cluster_config)


async def test_children_whose_start_is_under_way_are_cancelled_too(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=2)
    (parent,), (child,) = ids_on(config, 0, 1, "p"), ids_on(config, 1, 1, "c")
    app = App()

    @app.workflow
    async def leaf() -> None:
        await shardflow.receive("never")

    @app.workflow
    async def root() -> None:
        await shardflow.start(leaf.call().set(id=child))

    started = asyncio.Event()
    from shardflow.delivery import Delivery

    original = Delivery.start

    async def slow(self: Delivery, *args: object) -> None:
        await original(self, *args)  # type: ignore[arg-type]
        started.set()
        await asyncio.Event().wait()  # between the effect and its checkpoint

    monkeypatch.setattr(Delivery, "start", slow)
    async with AsyncClient(config) as client, running(config, app):
        handle = await client.submit(root, id=parent)
        await asyncio.wait_for(started.wait(), 30)
        assert await handle.cancel()
        await until(lambda: ended(config, child, shard=1))
        assert await ended(config, child, shard=1) == "cancelled"
        assert one(config, "SELECT count(*) FROM step WHERE name = 'shardflow.start'") == 0


async def test_a_woken_workflow_that_nobody_serves_is_ended_by_the_sweep(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def idle() -> None: ...

    async with AsyncClient(shard_config) as client:
        handle = await client.submit("unknown", queue="unserved", delay=0.001)
        rows(shard_config, "UPDATE wait SET wake_at = now()")
        async with running(shard_config, app):
            await until(lambda: one(shard_config, "SELECT count(*) FROM ready") == 1)
            assert await handle.cancel("nobody will")
            rows(shard_config, "UPDATE cancel SET looked_at = now() - interval '1 minute'")
            with pytest.raises(shardflow.WorkflowCancelled, match="nobody will"):
                await handle.result(30)
            await until(lambda: one(shard_config, "SELECT count(*) FROM cancel") == 0)
    assert_i1(shard_config)


async def test_what_is_to_be_cancelled_does_not_begin_when_it_is_claimed(shard_config: ClusterConfig) -> None:
    app = App()
    ran: list[int] = []

    @app.workflow
    async def work(n: int) -> None:
        ran.append(n)

    async with AsyncClient(shard_config) as client:
        handles = await client.submit_many(work.call(n).set(id=f"w{n}") for n in range(4))
        await handles[3].cancel()
        assert await client.resume("w3")
        # As when the workflows were about to be claimed, or had been woken.
        rows(
            shard_config,
            "INSERT INTO cancel (wf, reason) SELECT wf, 'too late' FROM workflow WHERE id IN ('w1', 'w3')",
        )
        async with running(shard_config, app):
            for n in (1, 3):
                with pytest.raises(shardflow.WorkflowCancelled, match="too late"):
                    await handles[n].result(30)
            for n in (0, 2):
                await handles[n].result(30)
            await until(lambda: one(shard_config, "SELECT count(*) FROM cancel") == 0)
        assert sorted(ran) == [0, 2]
        assert_i1(shard_config)


async def test_what_was_asked_of_a_workflow_that_ended_otherwise_is_forgotten(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> str:
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work)
        assert await handle.result(30) == "done"
        rows(shard_config, "INSERT INTO cancel (wf) SELECT wf FROM workflow")
        await until(lambda: one(shard_config, "SELECT count(*) FROM cancel") == 0)
        assert await handle.result(5) == "done"


async def test_a_workflow_ends_at_its_time_limit_wherever_it_is(shard_config: ClusterConfig) -> None:
    app = App()
    gate = Gate()

    @app.step
    async def hangs() -> None:
        await gate.wait()

    @app.workflow(timeout=1.5)
    async def limited(what: str) -> None:
        if what == "children":
            await (await shardflow.start(child)).result()
        elif what == "sleep":
            await shardflow.sleep(3600)
        else:
            await hangs()

    @app.workflow
    async def child() -> None:
        await shardflow.receive("never")

    async with AsyncClient(shard_config) as client:
        late = await client.submit(limited, "late", timeout=0.01)
        delayed = await client.submit(limited, "delayed", delay=3600, timeout=1)
        first = await client.submit(child, id="first")
        after = await client.submit(limited, "after", after=first)
        await until(lambda: one(shard_config, "SELECT count(*) FROM workflow WHERE wf = 0") == 0)
        async with running(shard_config, app):
            step, children = await client.submit(limited, "step"), await client.submit(limited, "children", id="c")
            sleeps = await client.submit(limited, "sleep")
            for handle in (late, delayed, after, step, children, sleeps):
                with pytest.raises(shardflow.WorkflowFailed, match="was not done within") as error:
                    await handle.result(30)
                assert error.value.type == "shardflow.errors.WorkflowTimeout"
                assert await handle.status() is Status.FAILED
            assert gate.arrived == 1
            await until(lambda: ended(shard_config, "c/0"))
            assert await ended(shard_config, "c/0") == "cancelled"
            early = "SELECT count(*) FROM outcome JOIN workflow USING (wf) WHERE date_part('epoch', finished_at)"
            assert one(shard_config, f"{early} < (options ->> 'deadline')::float8 - 0.001") == 0
            assert_i1(shard_config)
            assert await client.cancel("first")


async def test_a_workflow_begins_anew_under_its_id(cluster_config: ClusterConfig) -> None:
    app = App()
    noted: list[int] = []

    @app.step
    async def note(n: int) -> None:
        noted.append(n)

    @app.workflow
    async def child(n: int) -> int:
        return n

    @app.workflow
    async def loop(n: int, children: tuple[int, ...] = ()) -> list[object]:
        await note(n)
        await shardflow.send("listener", "n", n)
        kid = await shardflow.start(child, n)
        children = (*children, await kid.result())
        if n < 4:
            shardflow.continue_as_new(n + 1, children)
        return [n, children, await shardflow.receive("late")]

    @app.workflow
    async def listener() -> list[int]:
        return [await shardflow.receive("n", type=int) for _ in range(5)]

    async with AsyncClient(cluster_config) as client:
        hears = await client.submit(listener, id="listener")
        handle = await client.submit(loop, 0, id="loop")
        await client.send("loop", "late", "message")
        async with running(cluster_config, app):
            assert await handle.result(60) == [4, [0, 1, 2, 3, 4], "message"]
            assert sorted(await hears.result(60)) == [0, 1, 2, 3, 4]
        assert noted == [0, 1, 2, 3, 4]
        found = [step.seq for step in await handle.steps()]
        assert found[0] == -4
        assert len(found) == 5
        assert (await client.submit(loop, 0, id="loop")).id == "loop"  # the same submission as before


async def test_a_plain_workflow_begins_anew_and_survives_its_worker(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    def loop(n: int) -> int:
        shardflow.now()
        if n < 3:
            shardflow.continue_as_new(n + 1)
        blocking.receive("go")
        return n

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            handle = await client.submit(loop, 0, id="w")
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
        assert rows(shard_config, "SELECT seq FROM step ORDER BY seq") == [(-3,), (0,)]
        await client.send("w", "go")
        async with running(shard_config, app):
            assert await handle.result(30) == 3
        assert_i1(shard_config)


def test_the_sync_client_has_it_too(shard_config: ClusterConfig) -> None:
    with Client(shard_config) as client:
        handle = client.submit("work", id="w")
        assert handle.cancel("why not")
        assert not client.cancel("w")
        assert client.resume("w")
        assert client.cancel_many().count == 1
        assert client.resume_many(name="work").count == 1
        assert client.cancel("w")
        assert client.restart("w")
        assert client.fork("w", new_id="w2").id == "w2"
        assert client.queues.pause("default").count == 1
        assert [queue.name for queue in client.queues.list().queues] == ["default"]
        assert client.queues.resume("default").count == 1
