"""Durable semantics under code and timing that nobody thought of: nothing is missed, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from conftest import MakeCluster
from support.lab import Lab
from support.look import assert_i1, one, rows, total, until
from support.work import Gate, ids_on, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, InvalidInput, Retry, SerializationError
from shardflow.core.options import Options
from shardflow.delivery.sender import Item, Sender


async def test_the_same_child_gathered_twice(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def child() -> int:
        await shardflow.receive("go")
        return 7

    @app.workflow
    async def parent() -> list[int]:
        handle = await shardflow.start(child.call().set(id="c"))
        return await shardflow.gather([handle, handle])

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(parent)
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 2)
        await client.send("c", "go")
        assert await handle.result(10) == [7, 7]


async def test_a_message_ends_a_short_wait_at_once(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def listens() -> list[object]:
        return [await shardflow.receive("n", timeout=0.9) for _ in range(3)]

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(listens, id="w")
        await until(lambda: one(shard_config, "SELECT count(*) FROM step") == 1)
        await client.send("w", "n", 1)
        assert (await handle.result(20))[0] == 1


@pytest.mark.parametrize("seconds", [0.01, 0.3])
async def test_a_branch_that_sleeps_in_short_turns_keeps_no_message_from_another(
    shard_config: ClusterConfig, seconds: float
) -> None:
    app, heard = App(), asyncio.Event()

    @app.workflow
    async def both() -> str:
        async def ticks() -> None:
            while True:
                await shardflow.sleep(seconds)

        ticking = asyncio.create_task(ticks())
        value: str = await shardflow.receive("go")
        heard.set()
        ticking.cancel()
        return value

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        await client.submit(both, id="w")
        await until(lambda: one(shard_config, "SELECT count(*) FROM step") >= 2)
        await client.send("w", "go", "now")
        await asyncio.wait_for(heard.wait(), 10)


async def test_a_look_without_waiting_sees_what_has_arrived_since_the_last_one(shard_config: ClusterConfig) -> None:
    app, gate = App(), Gate()

    @app.step
    async def pause() -> None:
        await gate.wait()

    @app.workflow
    async def looks() -> list[object]:
        first = await shardflow.receive("n", timeout=0)
        await pause()
        return [first, await shardflow.receive("n", timeout=0)]

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(looks, id="w")
        await until(lambda: gate.arrived == 1)
        await client.send("w", "n", 1)
        gate.open()
        assert await handle.result(20) == [None, 1]


@pytest.mark.parametrize("how", ["timeout", "wait_for", "wait", "as_completed", "call_later"])
async def test_a_time_limit_of_asyncios_around_something_durable_is_kept(
    shard_config: ClusterConfig, how: str
) -> None:
    app = App()

    @app.workflow
    async def limited() -> str:
        try:
            if how == "timeout":
                async with asyncio.timeout(1.5):
                    await shardflow.receive("never")
            elif how == "wait_for":
                await asyncio.wait_for(shardflow.receive("never"), 1.5)
            elif how == "wait":
                task = asyncio.ensure_future(shardflow.receive("never"))
                await asyncio.wait([task], timeout=1.5)
                task.cancel()
            elif how == "as_completed":
                task = asyncio.ensure_future(shardflow.receive("never"))
                try:
                    for each in asyncio.as_completed([task], timeout=1.5):
                        await each
                finally:
                    task.cancel()
            else:
                task = asyncio.ensure_future(shardflow.receive("never"))
                asyncio.get_running_loop().call_later(1.5, task.cancel)
                await asyncio.wait([task])
        except TimeoutError:
            pass
        return "over"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        assert await (await client.submit(limited)).result(8) == "over"


async def test_a_task_left_behind_does_not_make_the_replay_fail(shard_config: ClusterConfig) -> None:
    app = App()

    @app.step
    async def note() -> None: ...

    @app.workflow
    async def work() -> str:
        async def beside() -> None:
            await note()
            await shardflow.receive("never")

        task = asyncio.create_task(beside())
        await shardflow.sleep(1.3)
        return f"done {task.done()}"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work)
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
        assert await handle.result(10) == "done False"


async def test_a_pause_before_a_retry_longer_than_the_shard_can_add_harms_nobody(shard_config: ClusterConfig) -> None:
    app = App()

    @app.step(retry=Retry(attempts=3, initial=1e15, maximum=1e15, jitter=0.0))
    async def fails() -> None:
        raise ValueError("no")

    @app.workflow
    async def bad() -> None:
        await fails()

    @app.workflow
    async def good() -> str:
        return "good"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        await client.submit(bad)
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1, 10)
        assert await (await client.submit(good)).result(10) == "good"


def test_attributes_that_no_shard_could_store_are_refused() -> None:
    with pytest.raises(InvalidInput, match="surrogate"):
        Options(attributes={"a": "\ud800"})


async def test_an_error_of_an_operation_is_the_same_on_replay(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def child(n: Any) -> None: ...

    @app.workflow
    async def work() -> str:
        try:
            await shardflow.start(child, object())
        except SerializationError:
            await shardflow.sleep(1.2)
            return "caught"
        return "started"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        assert await (await client.submit(work)).result(10) == "caught"


async def test_a_message_in_a_transaction_that_sees_an_older_state_wakes_its_receiver(
    shard_config: ClusterConfig,
) -> None:
    app = App()

    @app.workflow
    async def listens() -> object:
        return await shardflow.receive("n")

    async with AsyncClient(shard_config) as client:
        handle = await client.submit(listens, id="w")
        async with await psycopg.AsyncConnection.connect(shard_config.shards[0].dsn) as conn:
            await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            await conn.execute("SELECT 1")
            async with running(shard_config, app):
                await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
                await client.send("w", "n", 5, connection=conn)
                await conn.commit()
                assert await handle.result(10) == 5


def listener() -> App:
    app = App()

    @app.workflow
    async def listens() -> object:
        return await shardflow.receive("n")

    return app


POST = "INSERT INTO outbox (lease, target, topic, key, value) VALUES (0, %s, 'n', %s, '1')"


async def test_a_shard_that_is_away_holds_up_nothing_for_the_others(
    make_cluster: MakeCluster, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.worker.relay.MOST", 5)
    config = make_cluster(3)
    away, there = ids_on(config, 1, 12), ids_on(config, 2, 1)[0]
    async with AsyncClient(config) as client, running(config, listener()):
        handles = {id: await client.submit("listens", id=id) for id in (*away, there)}
        await until(lambda: total(config, "SELECT count(*) FROM wait") == 13)
        lab.server(1).stop("immediate")
        for id in (*away, there):
            rows(config, POST, id, id)
        assert await handles[there].result(20) == 1
        lab.server(1).start()
        assert await asyncio.gather(*(handles[id].result(60) for id in away)) == [1] * 12
        await until(lambda: one(config, "SELECT count(*) FROM outbox") == 0)


async def test_what_lies_in_the_outbox_does_not_wait_for_a_free_place(make_cluster: MakeCluster) -> None:
    config, app, gate = make_cluster(2), listener(), Gate()

    @app.step
    async def long() -> None:
        await gate.wait()

    @app.workflow
    async def busy() -> None:
        await long()

    here, there = ids_on(config, 0, 1)[0], ids_on(config, 1, 1)[0]
    async with AsyncClient(config) as client:
        pinned = running(config, app, shards=["s0"], concurrency=1)
        async with pinned, running(config, app, shards=["s1"]):
            await client.submit(busy, id=here)
            await until(lambda: gate.arrived == 1)
            handle = await client.submit("listens", id=there)
            rows(config, POST, there, "k")
            assert await handle.result(10) == 1
            gate.open()


async def test_an_end_that_was_missed_is_told_however_long_nobody_was_there(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> None: ...

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            await (await client.submit(work, id="first")).result(20)
        await client.submit(work, id="second")
        rows(shard_config, "DELETE FROM ready")
        rows(
            shard_config,
            "INSERT INTO wait (wf, reason, missing) SELECT wf, 'after', 1 FROM workflow WHERE id = 'second'",
        )
        rows(
            shard_config,
            "INSERT INTO watcher (wf, topic, id, late, registered_at)"
            " SELECT wf, 'shardflow.after', 'second', true, now() - interval '1 hour' FROM workflow"
            " WHERE id = 'first'",
        )
        async with running(shard_config, app):
            assert await (await client.get("second")).result(10) is None
    assert_i1(shard_config)


async def test_watchers_are_looked_at_no_longer_than_an_end_can_be_under_way(shard_config: ClusterConfig) -> None:
    app = listener()
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        await client.submit("listens", id="w")
        rows(
            shard_config,
            "INSERT INTO watcher (wf, topic, id, late, registered_at)"
            " SELECT wf, 'x', 'nobody', true, now() - interval '1 hour' FROM workflow",
        )
        await until(lambda: one(shard_config, "SELECT NOT late FROM watcher"), 10)


async def test_who_watches_somebody_unknown_is_told_so_on_an_idle_shard_too(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.worker.relay.PATIENCE", 2.5)
    async with AsyncClient(shard_config) as client, running(shard_config, listener()):
        await client.submit("listens", id="w")
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
        rows(
            shard_config,
            "INSERT INTO outbox (lease, target, topic, key) VALUES (0, 'unknown', 'shardflow.watch', 'w')",
        )
        told = "SELECT count(*) FROM message WHERE topic = 'shardflow.after' AND error LIKE '%unknown%'"
        await until(lambda: one(shard_config, told.replace("%", "%%")) == 1, 15)


async def test_children_with_large_inputs_are_not_one_statement(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, sizes = App(), list[int]()
    send = Sender.send

    async def measured(self: Sender, items: Sequence[Item]) -> None:
        sizes.append(sum(len(item.input) for item in items))
        await send(self, items)

    @app.workflow
    async def child(text: str) -> int:
        return len(text)

    @app.workflow
    async def parent() -> int:
        return sum(await shardflow.gather(await shardflow.start_many(child, ["x" * 1_000] * 50)))

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        monkeypatch.setattr("shardflow.delivery.delivery.BATCH_BYTES", 10_000)
        handle = await client.submit(parent)
        monkeypatch.setattr(Sender, "send", measured)
        assert await handle.result(20) == 50_000
    assert max(sizes) <= 10_000
