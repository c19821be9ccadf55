"""`shardflow.testing.Inline`: replays that find what is not recorded, ends of all kinds, and what cannot go on."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest

import shardflow
from shardflow import (
    App,
    NonDeterminism,
    Status,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowFailed,
)
from shardflow.testing import Inline, Stuck

START = datetime(2030, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize("replay", [True, False])
async def test_what_is_not_recorded_is_found(replay: bool) -> None:
    app = App()
    coin = iter(range(100))

    @app.step
    async def heads() -> str:
        return "heads"

    @app.step
    async def tails() -> str:
        return "tails"

    @app.workflow
    async def flips() -> str:
        side = await (tails() if next(coin) % 2 else heads())
        await shardflow.sleep(DAY)
        return side

    async with Inline(replay=replay) as env:
        if replay:
            with pytest.raises(NonDeterminism, match=r"step 0 is 'tails' now, but 'heads' is recorded"):
                await env.run(flips)
        else:
            assert await env.run(flips) == "heads"
            with pytest.raises(NonDeterminism, match="heads"):
                await env.replay("flips-1")


async def test_a_result_that_is_not_recorded_is_found() -> None:
    app = App()

    @app.workflow
    async def work() -> float:
        return random.random()

    @app.workflow
    def plainly() -> float:
        return random.random()

    async with Inline() as env:
        for each in (work, plainly):
            with pytest.raises(NonDeterminism, match="ends with"):
                await env.run(each)


@pytest.mark.parametrize("kind", ["step", "now", "sleep", "plain"])
async def test_what_a_replay_does_beyond_the_records_is_found(kind: str) -> None:
    app = App()
    runs: list[int] = []
    called: list[int] = []

    @app.step
    async def more() -> None:
        called.append(1)

    @app.step
    def more_plainly() -> None:
        called.append(1)

    @app.workflow
    async def work() -> int:
        runs.append(1)
        if len(runs) > 1:
            if kind == "step":
                await more()
            elif kind == "now":
                shardflow.now()
            else:
                await shardflow.sleep(DAY)
        return 1

    @app.workflow
    def plain() -> int:
        runs.append(1)
        if len(runs) > 1:
            more_plainly()
        return 1

    async with Inline() as env:
        with pytest.raises(NonDeterminism, match=f"calls '(more|more_plainly|shardflow.{kind})', which it had not"):
            await env.run(plain if kind == "plain" else work)
    assert called == []


async def test_a_lost_task_is_no_nondeterminism() -> None:
    app = App()
    calls: list[int] = []

    @app.step
    async def slow() -> None:
        calls.append(1)
        await asyncio.sleep(60)

    @app.workflow
    async def work() -> str:
        task = asyncio.create_task(slow())
        await shardflow.sleep(0)
        task.cancel()
        return "gone"

    async with Inline() as env:
        assert await env.run(work) == "gone"
    assert len(calls) == 1


async def test_stuck_says_what_is_waited_for() -> None:
    app = App()

    @app.workflow
    async def work() -> None:
        await shardflow.receive("approval")

    async with Inline() as env:
        with pytest.raises(Stuck, match=r"'work-1' cannot go on: it waits for a message on 'approval'"):
            await env.run(work)
        handle = await env.start(work)
        with pytest.raises(shardflow.ResultTimeout, match="approval"):
            await handle.result(within=5 * DAY)


async def test_timeouts_cancels_delays_and_dependencies() -> None:
    app = App()

    @app.workflow(timeout=DAY)
    async def slow() -> None:
        await shardflow.sleep(2 * DAY)

    @app.workflow
    async def child() -> None:
        await shardflow.receive("never")

    @app.workflow
    async def parent() -> None:
        await (await shardflow.start(child.call().set(id="kid"))).result()

    @app.workflow
    async def when() -> float:
        return (shardflow.now() - START) / DAY

    async with Inline(start=START) as env:
        with pytest.raises(WorkflowFailed, match="within its time"):
            await env.run(slow)
        assert env.now() == START + DAY
        one = await env.start(parent)
        assert await env.status("kid") is Status.SUSPENDED
        await env.cancel(one.id, "enough")
        with pytest.raises(WorkflowCancelled, match="enough"):
            await one.result()
        assert await env.status("kid") is Status.CANCELLED
        assert await env.run(when, delay=DAY, id="first") == 2.0
        await env.start(when.call().set(delay=3 * DAY, id="second"))
        third = await env.start(when.call().set(after=["first", "second"], id="third"))
        assert third.status is Status.READY
        assert await third.result() == 5.0
        fourth = await env.start(when.call().set(after=[one.id], id="fourth"))
        with pytest.raises(WorkflowFailed, match="DependencyFailed"):
            await fourth.result()
        assert await env.run(when.call().set(after=[one.id], on_failure="run")) == 5.0


async def test_ids_are_idempotent() -> None:
    app = App()
    ran: list[int] = []

    @app.workflow
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with Inline(replay=False) as env:
        assert await env.run(work.call(1).set(id="a")) == 1
        assert await env.run(work.call(1).set(id="a")) == 1
        with pytest.raises(WorkflowConflict):
            await env.run(work.call(2).set(id="a"))
    assert ran == [1]


async def test_a_workflow_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardflow.testing.inline.MOST_JUMPS", 20)
    app = App()

    @app.workflow
    async def forever() -> None:
        while True:
            await shardflow.sleep(DAY)

    async with Inline() as env:
        with pytest.raises(Stuck, match="20 times"):
            await env.run(forever)


async def test_many_children() -> None:
    app = App()

    @app.workflow
    async def child(n: int) -> int:
        await shardflow.sleep(n % 10 * DAY)
        return n

    @app.workflow
    async def parent() -> int:
        return sum(await shardflow.gather(await shardflow.start_many(child, range(300))))

    async with Inline() as env:
        assert await env.run(parent) == sum(range(300))


async def test_a_workflow_that_begins_anew() -> None:
    app = App()

    @app.step
    async def count(n: int) -> int:
        return n + 1

    @app.workflow
    async def work(n: int) -> int:
        n = await count(n)
        await shardflow.sleep(DAY)
        word = await shardflow.receive("word", timeout=0)
        if n < 4:
            shardflow.continue_as_new(n)
        return n if word is None else -1

    async with Inline(start=START) as env:
        handle = await env.start(work, 0)
        await env.send(handle.id, "word", "once")
        assert await handle.result() == 4
        assert env.now() == START + 4 * DAY
        assert len([step for step in env.steps(handle.id) if step.name == "count"]) == 1
