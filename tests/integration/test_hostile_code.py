"""Workflows and steps that do what they should not, or what nobody thought of: they harm themselves at the most."""

from __future__ import annotations

import asyncio
import base64
import random
import threading
from collections import Counter
from contextlib import AsyncExitStack
from functools import cache
from typing import Any

import pytest
from support.look import assert_all_done, assert_i1, connect, one, rows, until
from support.work import Gate, running

import shardflow.storage.submissions
from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    SerializationError,
    Status,
    StepFailed,
    Worker,
    WorkflowFailed,
)
from shardflow.model import PayloadConfig

MAX_PAYLOAD = PayloadConfig().max_size


@cache
def bulk_of(size: int) -> str:
    """Text of so many characters that no compression makes smaller to speak of."""
    return base64.b64encode(random.Random(size).randbytes(size)).decode()[:size]


# -- branches whose pace no replay repeats


@pytest.mark.parametrize("event", [None, "crash", "lease"])
async def test_gathered_branches_get_their_own_values_back_whatever_their_pace(
    shard_config: ClusterConfig, event: str | None
) -> None:
    """Branch b is through with both of its steps before branch a's first one ends; a replay knows no pace."""
    app, ran, gate, b_is_through = App(), Counter[str](), Gate(), asyncio.Event()

    @app.step
    async def echo(what: str) -> str:
        ran[what] += 1
        if what == "a1":
            await b_is_through.wait()
        elif what == "a2":
            await gate.wait()
        return what

    async def branch(name: str) -> list[str]:
        both = [await echo(f"{name}1"), await echo(f"{name}2")]
        if name == "b":
            b_is_through.set()
        return both

    @app.workflow
    async def work() -> list[list[str]]:
        return list(await asyncio.gather(branch("a"), branch("b")))

    async with AsyncClient(shard_config) as client, AsyncExitStack() as workers:
        first = await workers.enter_async_context(running(shard_config, app))
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        if event == "crash":
            await first.leave()
            await workers.enter_async_context(running(shard_config, app))
        elif event == "lease":
            rows(shard_config, "SELECT end_lease(lease, 1) FROM lease")
        if event:
            await until(lambda: gate.arrived == 2)
        gate.open()
        assert await handle.result(30) == [["a1", "a2"], ["b1", "b2"]]
    assert ran == {"a1": 1, "a2": 2 if event else 1, "b1": 1, "b2": 1}
    assert_all_done(shard_config, workflows=1, steps=4)


async def test_branches_of_branches_get_their_own_values_back(shard_config: ClusterConfig) -> None:
    """The same one floor below: which branch divides first depends on the pace of the steps before."""
    app, ran, gate, b_is_through = App(), Counter[str](), Gate(), asyncio.Event()

    @app.step
    async def echo(what: str) -> str:
        ran[what] += 1
        if what == "a":
            await b_is_through.wait()
        elif what == "a-hold":
            await gate.wait()
        return what

    async def leaf(name: str) -> list[str]:
        return [await echo(f"{name}1"), await echo(f"{name}2")]

    async def branch(name: str) -> list[Any]:
        found: list[Any] = [await echo(name)]
        found += await asyncio.gather(leaf(f"{name}x"), leaf(f"{name}y"))
        if name == "b":
            b_is_through.set()
        found.append(await echo(f"{name}-hold"))
        return found

    @app.workflow
    async def work() -> list[Any]:
        return list(await asyncio.gather(branch("a"), branch("b")))

    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        await first.leave()
        async with running(shard_config, app):
            await until(lambda: gate.arrived == 2)
            gate.open()
            assert await handle.result(30) == [
                [n, [f"{n}x1", f"{n}x2"], [f"{n}y1", f"{n}y2"], f"{n}-hold"] for n in ("a", "b")
            ]
    assert ran["a-hold"] == 2
    assert sum(ran.values()) == 13


async def test_tasks_of_a_branch_without_steps_of_its_own_get_their_own_values_back(
    shard_config: ClusterConfig,
) -> None:
    """As `asyncio.wait_for` makes them of coroutines before Python 3.12: a task inside of a gathered one."""
    app, ran, gate, b_is_through = App(), Counter[str](), Gate(), asyncio.Event()

    @app.step
    async def echo(what: str) -> str:
        ran[what] += 1
        if what == "a1":
            await b_is_through.wait()
        elif what == "a3":
            await gate.wait()
        return what

    async def leaf(what: str) -> str:
        return await echo(what)

    async def branch(name: str) -> list[str]:
        found = [await asyncio.create_task(leaf(f"{name}{n}")) for n in range(1, 4)]
        if name == "b":
            b_is_through.set()
        return found

    @app.workflow
    async def work() -> list[list[str]]:
        return list(await asyncio.gather(branch("a"), branch("b")))

    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        await first.leave()
        gate.open()
        async with running(shard_config, app):
            assert await handle.result(30) == [["a1", "a2", "a3"], ["b1", "b2", "b3"]]
    assert ran == {"a1": 1, "a2": 1, "a3": 2, "b1": 1, "b2": 1, "b3": 1}


# -- exceptions that mean something to the machinery around the code


def raising(error: type[BaseException]) -> App:
    """Workflows that raise it themselves, and such whose steps do, alone and gathered."""
    app = App()

    @app.step
    async def step(x: int) -> int:
        raise error(x)

    @app.step
    def plain_step(x: int) -> int:
        raise error(x)

    @app.step
    async def other(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @app.workflow
    async def itself() -> None:
        raise error(1)

    @app.workflow
    def itself_plain() -> None:
        raise error(1)

    @app.workflow
    def in_plain_step() -> int:
        return plain_step(1)

    @app.workflow
    async def in_step() -> int:
        return await step(1)

    @app.workflow
    async def in_thread() -> int:
        return await plain_step.aio(1)

    @app.workflow
    async def gathered() -> list[int]:
        return list(await asyncio.gather(step(1), other(2)))

    @app.workflow
    async def gathered_threads() -> list[int]:
        return list(await asyncio.gather(plain_step.aio(1), other(2)))

    @app.workflow
    async def in_branch() -> list[int]:
        async def branch() -> int:
            return await other(1) + await step(2)

        return list(await asyncio.gather(branch(), other(3)))

    @app.workflow
    async def caught() -> str:
        try:
            return str(await step(1))
        except StepFailed as failed:
            return failed.type

    @app.workflow
    async def well() -> str:
        return "well"

    return app


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_whatever_a_workflow_or_step_raises_fails_that_workflow_and_the_worker_goes_on(
    shard_config: ClusterConfig, error: type[BaseException]
) -> None:
    app = raising(error)
    async with AsyncClient(shard_config) as client, running(shard_config, app, concurrency=20):
        failing = [await client.submit(name, id=name) for name in app.workflows if name not in ("well", "caught")]
        for handle in failing:
            with pytest.raises(WorkflowFailed) as failed:
                await handle.result(30)
            # A coroutine or a thread's future turns StopIteration into a RuntimeError, which names it.
            assert error.__name__ in failed.value.type + failed.value.message, handle.id
            assert await handle.status() is Status.FAILED
        caught = await client.submit("caught")
        if error is GeneratorExit:  # no failure of a step: it is how Python ends a coroutine
            with pytest.raises(WorkflowFailed, match="GeneratorExit"):
                await caught.result(30)
        else:
            assert await caught.result(30) in (error.__name__, "RuntimeError")
        assert await (await client.submit("well")).result(30) == "well"
    assert_i1(shard_config)


# -- code that cleans up after it was closed


class Ordered:
    """A workflow that compensates and releases whatever happens; says in `ran` which step functions ran."""

    def __init__(self, kind: str, gate: Gate) -> None:
        self.app = App()
        self.ran: Counter[str] = Counter()
        self.let_go = threading.Event()
        self.arrived = threading.Event()
        app, ran = self.app, self.ran

        async def mark(what: str) -> str:
            ran[what] += 1
            if what == "charge":
                await gate.wait()
            return what

        def mark_plain(what: str) -> str:
            ran[what] += 1
            if what == "charge":
                gate.arrived += 1
                self.let_go.wait(100)
            return what

        if kind == "async":
            step = app.step(mark)

            @app.workflow(name="order")
            async def order() -> str:
                await step("begin")
                try:
                    await step("charge")
                    return await step("ship")
                except BaseException:
                    await step("compensate")
                    raise
                finally:
                    await step("release")

            @app.workflow(name="stubborn")
            async def stubborn() -> str:
                try:
                    await step("charge")
                except BaseException:  # swallows that it was closed, and goes on as if nothing were
                    await asyncio.gather(step("compensate"), step("release"), return_exceptions=True)
                    return "compensated"
                await step("ship")
                await step("release")
                return "shipped"

        else:
            step_plain = app.step(mark_plain)

            @app.workflow(name="order")
            def order_plain() -> str:
                step_plain("begin")
                try:
                    step_plain("charge")
                    return step_plain("ship")
                except BaseException:
                    step_plain("compensate")
                    raise
                finally:
                    step_plain("release")


@pytest.mark.parametrize(
    ("kind", "name", "how"),
    [
        ("async", "order", "drain"),
        ("async", "order", "grace"),
        ("async", "order", "lease"),
        ("async", "stubborn", "drain"),
        ("async", "stubborn", "grace"),
        ("async", "stubborn", "lease"),
        ("plain", "order", "drain"),
        ("plain", "order", "lease"),
    ],
)
async def test_a_closed_run_runs_no_step_function_whatever_its_code_does(
    shard_config: ClusterConfig, kind: str, name: str, how: str
) -> None:
    gate = Gate()
    ordered = Ordered(kind, gate)
    before = {"begin": 1, "charge": 1} if name == "order" else {"charge": 1}

    async def open_up() -> None:
        gate.open()
        ordered.let_go.set()

    async with AsyncClient(shard_config) as client:
        handle = await client.submit(name)
        async with running(shard_config, ordered.app) as first:
            await until(lambda: gate.arrived == 1)
            if how == "drain":  # it ends its step, and is closed at the checkpoint
                stopping = asyncio.ensure_future(first.stop(grace=60))
                await asyncio.sleep(0)
                await open_up()
                await stopping
            elif how == "grace":  # it is closed in the middle of its step
                await first.stop(grace=0.05)
            else:
                with connect(shard_config) as conn, conn.transaction():
                    conn.execute("SELECT end_lease(lease, 1) FROM lease")
                    conn.execute("UPDATE ready SET queue = 'elsewhere'")
                await until(lambda: first.running == 0)
                await open_up()
                await first.stop(grace=60)
            assert ordered.ran == before
            assert await handle.status() is Status.READY
        rows(shard_config, "UPDATE ready SET queue = 'default'")
        gate.open()
        async with running(shard_config, ordered.app):
            assert await handle.result(30) == ("ship" if name == "order" else "shipped")
    again = 1 if how == "drain" else 2  # a step that was cut short has no checkpoint
    assert ordered.ran == {**before, "charge": again, "ship": 1, "release": 1}
    assert_i1(shard_config)


@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_tasks_that_an_ended_workflow_left_behind_write_nothing_after_its_outcome(
    shard_config: ClusterConfig, how: str
) -> None:
    app, ran, left = App(), Counter[str](), list[asyncio.Task[None]]()
    go = asyncio.Event()

    @app.step
    async def main() -> None:
        ran["main"] += 1

    @app.step
    async def tail(n: int) -> None:
        ran[f"tail {n}"] += 1
        await go.wait()

    async def tails() -> None:
        for n in range(3):
            await tail(n)

    @app.workflow
    async def work() -> str:
        left.append(asyncio.create_task(tails()))
        await main()
        go.set()  # the first tail ends in the tick after this workflow
        if how == "raises":
            raise ValueError("enough")
        return "done"

    @app.workflow
    async def well() -> str:
        return "well"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work)
        if how == "raises":
            with pytest.raises(WorkflowFailed, match="enough"):
                await handle.result(30)
        else:
            assert await handle.result(30) == "done"
        await asyncio.wait(left, timeout=30)
        assert left[0].cancelled()
        assert await (await client.submit(well)).result(30) == "well"
        assert [s.name for s in await handle.steps()] == ["main"]
    assert ran == {"main": 1, "tail 0": 1}
    assert_i1(shard_config)


# -- payloads larger than a connection takes


async def test_a_call_that_is_too_large_is_refused_before_it_reaches_a_server(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, sent = App(), Counter[str]()
    real = shardflow.storage.submissions.submit

    async def counting(*arguments: Any) -> dict[str, int]:
        sent["submit"] += 1
        return await real(*arguments)

    monkeypatch.setattr(shardflow.storage.submissions, "submit", counting)

    @app.workflow
    async def work(text: str) -> int:
        return len(text)

    async with AsyncClient(shard_config) as client:
        for attempt in (
            lambda: client.submit(work, bulk_of(MAX_PAYLOAD)),
            lambda: client.submit("work", text=bulk_of(MAX_PAYLOAD)),
            lambda: client.submit_many([work.call("fits"), work.call(bulk_of(MAX_PAYLOAD))]),
        ):
            with pytest.raises(SerializationError, match=r"a payload may have 8,388,608"):
                await attempt()
        assert not sent
        assert one(shard_config, "SELECT count(*) FROM workflow") == 0
        async with running(shard_config, app):
            assert await (await client.submit(work, bulk_of(MAX_PAYLOAD - 100))).result(30) == MAX_PAYLOAD - 100


def bulky(step_result: int, result: int) -> App:
    """A workflow whose step and whose own result have so many characters, and another beside it."""
    app = App()

    @app.step
    async def big(size: int) -> str:
        return bulk_of(size)

    @app.step
    def big_plain(size: int) -> str:
        return bulk_of(size)

    @app.workflow(name="async")
    async def bulk() -> str:
        await big(step_result)
        return bulk_of(result)

    @app.workflow(name="plain")
    def bulk_plain() -> str:
        big_plain(step_result)
        return bulk_of(result)

    @app.workflow
    async def small() -> str:
        return "small"

    return app


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize(
    ("sizes", "what"), [((MAX_PAYLOAD, 1), ".big"), ((1, MAX_PAYLOAD), ".bulk")], ids=["step", "workflow"]
)
async def test_a_result_that_is_too_large_fails_its_workflow_only(
    shard_config: ClusterConfig, sizes: tuple[int, int], what: str, kind: str
) -> None:
    app = bulky(*sizes)
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        lease = rows(shard_config, "SELECT lease, epoch FROM lease")
        handle = await client.submit(kind)
        small = [await client.submit("small") for _ in range(5)]
        with pytest.raises(WorkflowFailed, match=r"a payload may have 8,388,608 .*: store it elsewhere") as failed:
            await handle.result(30)
        assert failed.value.type == "shardflow.errors.SerializationError"
        assert what in failed.value.message
        assert [await h.result(30) for h in small] == ["small"] * 5
        assert rows(shard_config, "SELECT lease, epoch FROM lease") == lease, "the connection was lost over it"


# -- threads that nobody can stop


async def test_a_thread_whose_lease_was_lost_keeps_its_place_until_it_has_ended(shard_config: ClusterConfig) -> None:
    app, entered, let_go = App(), threading.Event(), threading.Event()

    @app.workflow
    def stuck() -> None:
        entered.set()
        let_go.wait(100)

    @app.workflow
    def short(x: int) -> int:
        return x

    async def on(worker: Worker, count: int) -> list[int]:
        handles = await client.submit_many(short.call(n) for n in range(count))
        return [await h.result(30) for h in handles]

    async with AsyncClient(shard_config) as client, running(shard_config, app, concurrency=1, name="first") as first:
        try:
            await client.submit(stuck)
            await until(entered.is_set)
            (old,) = rows(shard_config, "SELECT lease FROM lease")
            with connect(shard_config) as conn, conn.transaction():
                conn.execute("SELECT end_lease(%s, 1)", old)
                conn.execute("DELETE FROM ready")
            await until(lambda: rows(shard_config, "SELECT 1 FROM lease WHERE lease <> %s", *old))
            async with running(shard_config, app, concurrency=1, name="second") as second:
                # Whatever the first one claimed would wait behind the thread.
                assert await on(second, 20) == list(range(20))
                assert not let_go.is_set()
        finally:
            let_go.set()
        assert await on(first, 3) == list(range(3)), "the place is free again"
