"""now(), uuid4(), random() and info() in workflows: recorded before any step acts, given again on every replay."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.look import connect, one, rows, until
from support.work import Gate, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, UsageError, WorkflowFailed


def asking(gate: Gate, seen: list[list[str]]) -> App:
    app = App()

    @app.step
    async def act(key: str) -> str:
        await gate.wait()
        return key

    @app.workflow
    async def work() -> list[str]:
        values = [shardflow.now().isoformat(), str(shardflow.uuid4()), repr(shardflow.random())]
        seen.append(values)
        return [await act(values[1]), *values]

    return app


async def test_a_replay_gets_the_same_values(shard_config: ClusterConfig) -> None:
    gate, seen = Gate(), list[list[str]]()
    app = asking(gate, seen)
    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit("work")
        await until(lambda: gate.arrived == 1)
        await first.leave()
        async with running(shard_config, app):
            await until(lambda: gate.arrived == 2)
            gate.open()
            key, *values = await handle.result(30)
    assert len(seen) == 2
    assert seen[0] == seen[1] == values
    assert key == values[1]
    assert abs(datetime.fromisoformat(values[0]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert uuid.UUID(values[1]).version == 4
    assert 0 <= float(values[2]) < 1
    names = [row[0] for row in rows(shard_config, "SELECT name FROM step ORDER BY seq")]
    assert names == ["shardflow.now", "shardflow.uuid4", "shardflow.random", "act"]


async def test_no_step_acts_on_a_value_that_is_not_recorded_yet(shard_config: ClusterConfig) -> None:
    """Else a crash would let the replay act again, under another key."""
    gate, seen = Gate(), list[list[str]]()
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with AsyncClient(shard_config) as client, running(shard_config, asking(gate, seen)):
        with connect(shard_config) as conn, conn.transaction():
            conn.execute("LOCK TABLE step IN SHARE MODE")
            handle = await client.submit("work")
            await until(lambda: one(shard_config, blocked) == 1, what="the record waits")
            for _ in range(20):
                await asyncio.sleep(0)
            assert len(seen) == 1
            assert gate.arrived == 0
        await until(lambda: gate.arrived == 1)
        gate.open()
        assert (await handle.result(30))[0] == seen[0][1]


async def test_a_value_that_the_code_does_not_ask_for_any_more_is_noticed(shard_config: ClusterConfig) -> None:
    gate = Gate()
    ask = [shardflow.uuid4, shardflow.random]
    app = App()

    @app.step
    async def act() -> None:
        await gate.wait()

    @app.workflow
    async def work() -> str:
        found = str(ask[0]())
        await act()
        return found

    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        await first.leave()
        gate.open()
        ask.reverse()
        async with running(shard_config, app):
            with pytest.raises(WorkflowFailed, match=r"'shardflow.random' now, but 'shardflow.uuid4' is recorded"):
                await handle.result(30)


async def test_gathered_tasks_and_plain_workflows_have_their_own_values(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    def plain() -> list[float]:
        return [shardflow.random(), shardflow.random()]

    async def two() -> list[float]:
        return [shardflow.random(), shardflow.random()]

    @app.workflow
    async def gathered() -> list[list[float]]:
        return list(await asyncio.gather(two(), two()))

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        assert len(set(await (await client.submit(plain)).result(30))) == 2
        assert len({x for pair in await (await client.submit(gathered)).result(30) for x in pair}) == 4
    assert one(shard_config, "SELECT count(*) FROM step") == 6


async def test_info_tells_of_the_workflow_and_only_there(shard_config: ClusterConfig) -> None:
    app = App()

    @app.step
    async def inside() -> str:
        try:
            shardflow.info()
        except UsageError:
            return "refused"
        return "told"

    @app.workflow(queue="orders")
    async def work() -> list[Any]:
        info = shardflow.info()
        return [info.id, info.name, info.queue, info.attempt, await inside()]

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work, id="w-1")
        assert await handle.result(30) == ["w-1", "work", "orders", 0, "refused"]
        handle = await client.submit(work, id="w-2", queue="default")
        assert (await handle.result(30))[2] == "default"
    with pytest.raises(UsageError, match="call it in a workflow's code"):
        shardflow.info()


async def test_outside_of_a_workflow_they_are_the_ordinary_functions() -> None:
    assert shardflow.uuid4() != shardflow.uuid4()
    assert shardflow.now().tzinfo is UTC
    assert 0 <= shardflow.random() < 1


async def test_in_a_thread_of_an_async_workflow_they_are_refused(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> float:
        return await asyncio.to_thread(shardflow.random)

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        with pytest.raises(WorkflowFailed, match="in a thread"):
            await (await client.submit(work)).result(30)
