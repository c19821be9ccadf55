"""Databases and roles have settings of their own, which change how the server reads and writes values: none of them
changes what shardflow says and does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from conftest import MakeCluster
from support.lab import database
from support.look import connect, until
from support.work import running

import shardflow
from shardflow import App, AsyncClient, Queue, Retry

SETTINGS = {
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "extra_float_digits": "-15",
    "search_path": "elsewhere",
    "standard_conforming_strings": "off",
}
TEXT = "caf\u00e9 \\ ' \u4e2d \U0001f600"


def touring() -> App:
    app = App()
    app.queue(Queue("narrow", concurrency=1))
    tries: list[int] = []

    @app.step(retry=Retry(attempts=2, initial=0.01))
    async def second_time(text: str) -> float:
        tries.append(1)
        if len(tries) % 2:
            raise ValueError(text)
        return 0.1 + 0.2

    @app.workflow(queue="narrow")
    async def child(text: str) -> bytes:
        await shardflow.sleep(0.1)
        return text.encode()

    @app.workflow
    async def tour(text: str) -> list[object]:
        number = await second_time(text)
        await shardflow.set_event("told", text)
        handles = await shardflow.start_many(child, [text, text])
        children = await shardflow.gather(handles)
        return [number, [each.decode() for each in children], await shardflow.receive("mail", timeout=60)]

    @app.workflow
    async def tick() -> None:
        pass

    return app


@pytest.mark.parametrize("setting", SETTINGS)
async def test_a_database_with_settings_of_its_own(make_cluster: MakeCluster, setting: str) -> None:
    config = make_cluster(shards=1)
    value = SETTINGS[setting]
    with connect(config) as conn:
        conn.execute(f"ALTER DATABASE \"{database(config.shards[0])}\" SET {setting} = '{value}'")  # type: ignore[arg-type]
    began = datetime.now(UTC) - timedelta(minutes=1)
    async with AsyncClient(config) as client, running(config, touring()):
        handle = await client.submit("tour", TEXT, id=f"tour-{TEXT}")
        later = await client.submit("tick", delay=0.3)
        assert await client.event(handle.id, "told", 30) == TEXT
        await client.send(handle.id, "mail", TEXT)
        assert await handle.result(60) == [0.1 + 0.2, [TEXT, TEXT], TEXT]
        assert await later.result(30) is None
        info = await client.info(handle.id)
        assert info.finished_at is not None
        assert began < info.submitted_at <= info.finished_at < began + timedelta(minutes=5)
        steps = await client.steps(handle.id)
        assert all(began < step.finished_at <= info.finished_at for step in steps)
        found = await client.list(name="tour", since=began, until=began + timedelta(minutes=5))
        assert [each.id for each in found.workflows] == [handle.id]
        schedule = await client.schedules.create("often", "every 1s", "tick")
        assert schedule.next_at is not None
        assert began < schedule.next_at < began + timedelta(minutes=5)

        async def ticked() -> bool:
            return (await client.count(name="tick", status="succeeded")).total > 1

        await until(ticked, what="a tick came")
