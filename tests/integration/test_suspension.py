"""Durable sleep, messages, events, children: what waits long leaves the worker's memory, and comes back."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeCluster
from support.look import assert_i1, one, rows, until
from support.work import Gate, running

import shardflow
from shardflow import App, AsyncClient, Call, ClusterConfig, Retry, blocking
from shardflow.worker.run import Run


def sleeper(seconds: float, starts: list[str]) -> App:
    app = App()

    @app.step
    async def note(what: str) -> str:
        starts.append(what)
        return what

    @app.workflow
    async def naps() -> list[str]:
        before = await note("before")
        await shardflow.sleep(seconds)
        return [before, await note("after")]

    return app


async def test_a_sleeping_workflow_leaves_the_workers_memory_and_wakes(shard_config: ClusterConfig) -> None:
    starts: list[str] = []
    app = sleeper(1.5, starts)
    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        handle = await client.submit("naps")
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait WHERE reason = 'time'") == 1)
        await until(lambda: worker.running == 0)
        assert_i1(shard_config)
        assert (await handle.status()).value == "suspended"
        assert await handle.result(30) == ["before", "after"]
        took = one(
            shard_config,
            "SELECT date_part('epoch', o.finished_at - s.finished_at) FROM outcome o, step s"
            " WHERE s.name = 'shardflow.sleep'",
        )
        assert took >= 1.5
    assert starts == ["before", "after"]


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
async def test_what_has_left_a_worker_waits_for_no_garbage_collector(
    shard_config: ClusterConfig, seconds: float
) -> None:
    """A worker's collector comes seldom; what it would have to find grows with the number of workflows until then."""
    gc.collect()
    gc.disable()
    try:
        async with AsyncClient(shard_config) as client, running(shard_config, sleeper(seconds, [])) as worker:
            await client.submit_many([Call("naps") for _ in range(50)])
            gone = "SELECT (SELECT count(*) FROM wait) + (SELECT count(*) FROM outcome)"
            await until(lambda: one(shard_config, gone) == 50 and worker.running == 0)
            await until(lambda: not [each for each in gc.get_objects() if isinstance(each, Run)])
    finally:
        gc.enable()


async def test_a_short_sleep_stays_in_memory(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client, running(shard_config, sleeper(0.05, [])):
        assert await (await client.submit("naps")).result(30) == ["before", "after"]
        assert one(shard_config, "SELECT count(*) FROM ready") == 0


async def test_the_time_of_a_sleep_goes_on_while_no_worker_is_there(shard_config: ClusterConfig) -> None:
    starts: list[str] = []
    app = sleeper(2.0, starts)
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            handle = await client.submit("naps")
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait WHERE reason = 'time'") == 1)
        due = one(shard_config, "SELECT wake_at FROM wait")
        await until(lambda: one(shard_config, "SELECT now() > %s", due))
        async with running(shard_config, app):
            assert await handle.result(30) == ["before", "after"]
    assert starts == ["before", "after"]


async def test_sleep_until_a_time(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def naps(until: datetime) -> float:
        await shardflow.sleep_until(until)
        return (shardflow.now() - until).total_seconds()

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        late = await (await client.submit(naps, datetime.now(UTC) + timedelta(seconds=1.4))).result(30)
        assert late >= -0.01
        assert await (await client.submit(naps, datetime.now(UTC) - timedelta(days=1))).result(30) > 80_000


async def test_messages_come_in_order_and_may_be_there_first(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def listens(count: int) -> list[int]:
        return [await shardflow.receive("n", type=int) for _ in range(count)]

    async with AsyncClient(shard_config) as client:
        handle = await client.submit(listens, 6, id="listener")
        for n in range(3):
            await client.send("listener", "n", n)
        await client.send("listener", "other", 99)
        async with running(shard_config, app) as worker:
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
            await until(lambda: worker.running == 0)
            assert_i1(shard_config)
            for n in range(3, 6):
                await client.send("listener", "n", n)
            assert await handle.result(30) == [0, 1, 2, 3, 4, 5]
        assert one(shard_config, "SELECT count(*) FROM message WHERE NOT taken") == 1


async def test_a_message_with_a_key_arrives_once(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def listens() -> list[object]:
        return [await shardflow.receive("n"), await shardflow.receive("n", timeout=1.2)]

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(listens, id="listener")
        await client.send("listener", "n", 1, key="a")
        await until(lambda: one(shard_config, "SELECT count(*) FROM step WHERE name = 'shardflow.receive.n'") == 1)
        await client.send("listener", "n", 1, key="a")
        assert await handle.result(30) == [1, None]


async def test_nobody_has_the_id(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def tells(id: str) -> str:
        try:
            await shardflow.send(id, "x", 1)
        except shardflow.WorkflowNotFound as error:
            await shardflow.sleep(1.1)
            return f"{type(error).__name__} {id in str(error)}"
        return "sent"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        with pytest.raises(shardflow.WorkflowNotFound, match="nobody"):
            await client.send("nobody", "x")
        assert await (await client.submit(tells, "nobody")).result(30) == "WorkflowNotFound True"


async def test_a_receive_times_out_by_the_time_of_its_first_call(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def waits(seconds: float) -> object:
        return await shardflow.receive("never", timeout=seconds)

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            assert await (await client.submit(waits, 0)).result(30) is None
            assert await (await client.submit(waits, 0.1)).result(30) is None
            handle = await client.submit(waits, 2)
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
        await until(lambda: one(shard_config, "SELECT now() > wake_at FROM wait"))
        async with running(shard_config, app):
            assert await handle.result(30) is None
        record = "SELECT count(*) FROM step WHERE name = 'shardflow.timer'"
        assert one(shard_config, record) == 2


async def test_a_branch_that_waits_gets_its_message_while_a_step_of_another_goes_on(
    shard_config: ClusterConfig,
) -> None:
    app = App()
    gate = Gate()

    @app.step
    async def long() -> str:
        await gate.wait()
        return "long"

    @app.step
    async def opens(what: str) -> str:
        gate.open()
        return what

    @app.workflow
    async def both() -> list[str]:
        async def listen() -> str:
            return await opens(await shardflow.receive("go"))

        return list(await asyncio.gather(long(), listen()))

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(both, id="b")
        await until(lambda: gate.arrived == 1)
        await client.send("b", "go", "went")
        assert await handle.result(30) == ["long", "went"]


async def test_events_have_the_latest_value(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def works() -> None:
        await shardflow.set_event("progress", 1)
        await shardflow.receive("go")
        await shardflow.set_event("progress", 2)

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(works, id="w")
        assert await client.event("w", "progress", 30, type=int) == 1
        with pytest.raises(shardflow.ResultTimeout, match="other"):
            await client.event("w", "other", 0)
        await client.send("w", "go")
        await handle.result(30)
        assert await client.event("w", "progress", 0) == 2
        with pytest.raises(shardflow.WorkflowNotFound):
            await client.event("nobody", "progress", 0)


def family() -> App:
    app = App()

    @app.workflow
    async def child(n: int) -> int:
        if n < 0:
            raise ValueError(f"negative: {n}")
        return n * n

    @app.workflow
    async def parent(count: int, colocate: bool = False) -> int:
        kids = await shardflow.start_many(child, range(count), colocate=colocate)
        return sum(await shardflow.gather(kids))

    @app.workflow
    async def fails() -> str:
        kid = await shardflow.start(child, -1)
        try:
            await kid.result()
        except shardflow.WorkflowFailed as error:
            return f"{error.type}: {error.message}"
        return "?"

    @app.workflow
    def plain(count: int) -> list[int]:
        kid = blocking.start(child, 7)
        blocking.sleep(1.2)
        kids = blocking.start_many(child, range(count))
        blocking.set_event("done", True)
        return [kid.result(), *blocking.gather(kids)]

    return app


@pytest.mark.parametrize("colocate", [False, True])
async def test_children_on_all_shards_or_beside_the_parent(make_cluster: MakeCluster, colocate: bool) -> None:
    config = make_cluster(shards=3)
    app = family()
    async with AsyncClient(config) as client, running(config, app), running(config, app):
        handle = await client.submit("parent", 60, colocate, id="p")
        assert await handle.result(30) == sum(n * n for n in range(60))
        spread = [one(config, "SELECT count(*) FROM workflow WHERE name = 'child'", shard=k) for k in range(3)]
        assert sum(spread) == 60
        assert sorted(spread)[0] == 0 if colocate else min(spread) > 0
        await until(lambda: all(one(config, "SELECT count(*) FROM outbox", shard=k) == 0 for k in range(3)))
        assert_i1(config)


async def test_a_failed_child_raises_in_the_parent_and_a_plain_parent_blocks(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    async with AsyncClient(config) as client, running(config, family()):
        assert await (await client.submit("fails")).result(30) == "ValueError: negative: -1"
        handle = await client.submit("plain", 4, id="plain")
        assert await handle.result(30) == [49, 0, 1, 4, 9]
        assert await client.event("plain", "done", 0) is True


async def test_a_long_pause_before_a_retry_suspends_and_the_count_survives(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.worker.steps.LONG_PAUSE", 1.05)
    app = App()
    tries: list[int] = []

    @app.step(retry=Retry(attempts=3, initial=1.1, factor=1.0, jitter=0.0))
    async def flaky() -> None:
        tries.append(1)
        raise ValueError(f"try {len(tries)}")

    @app.workflow
    async def work() -> str:
        try:
            await flaky()
        except shardflow.StepFailed as error:
            return f"{error.attempts} {error.message}"
        return "?"

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            handle = await client.submit(work)
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
            ((attempts, error),) = rows(shard_config, "SELECT attempts, error FROM retry")
            assert attempts == len(tries)
            assert f"try {attempts}" in error
            assert "Traceback" in error
        async with running(shard_config, app):
            assert await handle.result(30) == "3 try 3"
        assert len(tries) == 3
        assert one(shard_config, "SELECT count(*) FROM retry") == 0
        assert one(shard_config, "SELECT attempts FROM step WHERE name = 'flaky'") == 3


async def test_a_delayed_workflow_begins_later_and_one_with_dependencies_after_them(
    make_cluster: MakeCluster,
) -> None:
    config = make_cluster(shards=3)
    app = App()
    order: list[str] = []

    @app.step
    async def note(name: str) -> None:
        order.append(name)

    @app.workflow
    async def node(name: str) -> str:
        await note(name)
        if name == "bad":
            raise ValueError("bad")
        return name

    async with AsyncClient(config) as client, running(config, app):
        names = "abcd"
        calls = [node.call(n).set(id=n) for n in names]
        calls[0] = node.call("a").set(id="a", after=["b", "c"])
        calls[1] = node.call("b").set(id="b", after=["d"])
        calls[2] = node.call("c").set(id="c", after="d")
        handles = await client.submit_many(calls)
        assert [await handle.result(30) for handle in handles] == list(names)
        assert order[0] == "d"
        assert order[-1] == "a"
        bad = await client.submit(node, "bad", id="bad")
        fails = await client.submit(node, "never", after=[bad])
        runs = await client.submit(node, "runs", after=[bad, handles[0]], on_failure="run")
        assert await runs.result(30) == "runs"
        with pytest.raises(shardflow.WorkflowFailed, match="bad") as failed:
            await fails.result(30)
        assert "DependencyFailed" in failed.value.type
        assert "never" not in order
        with pytest.raises(shardflow.InvalidInput, match="after each other"):
            await client.submit_many([node.call("x").set(id="x", after="y"), node.call("y").set(id="y", after="x")])
        with pytest.raises(shardflow.WorkflowNotFound, match="nobody"):
            await client.submit(node, "x", after="nobody")
        late = await client.submit(node, "late", delay=1.2)
        assert (await late.status()).value == "suspended"
        assert await late.result(30) == "late"
        await until(lambda: all(one(config, "SELECT count(*) FROM outbox", shard=k) == 0 for k in range(3)))
        assert all(one(config, "SELECT count(*) FROM watcher", shard=k) == 0 for k in range(3))
        assert_i1(config)


async def test_tasks_that_a_workflow_leaves_behind_end_with_it(shard_config: ClusterConfig) -> None:
    app = App()
    left: list[asyncio.Task[object]] = []

    @app.workflow
    async def leaves(long: bool) -> str:
        left.append(asyncio.ensure_future(shardflow.receive("never")))
        await shardflow.sleep(1.2 if long else 0.05)
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        assert await (await client.submit(leaves, False)).result(30) == "done"
        assert await (await client.submit(leaves, True)).result(30) == "done"
        await until(lambda: all(task.done() for task in left))
        assert len(left) == 3


async def test_a_timer_of_asyncio_keeps_a_workflow_in_memory_and_a_lock_does_not(shard_config: ClusterConfig) -> None:
    app = App()
    ticks: list[str] = []

    @app.step
    async def tick(what: str) -> None:
        ticks.append(what)

    @app.workflow
    async def timed() -> None:
        async def later() -> None:
            await asyncio.sleep(0.6)
            await tick("later")

        await asyncio.gather(later(), shardflow.receive("go"))

    @app.workflow
    async def locked() -> int:
        room = asyncio.Semaphore(2)

        async def turn() -> None:
            async with room:
                await shardflow.receive("go")

        done, _ = await asyncio.wait([asyncio.ensure_future(turn()) for _ in range(3)])
        return len(done)

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        first = await client.submit(timed, id="timed")
        await until(lambda: ticks)
        await until(lambda: worker.running == 0)
        await client.send("timed", "go")
        await first.result(30)
        assert ticks == ["later"]
        second = await client.submit(locked, id="locked")
        for n in range(3):
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
            assert worker.running == 0
            await client.send("locked", "go", n)
        assert await second.result(30) == 3
