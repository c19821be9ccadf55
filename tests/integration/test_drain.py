"""Stopping a worker: at a checkpoint boundary, nothing lost, nothing done twice, no attempt counted."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import pytest
from support.look import assert_all_done, assert_i1, one, rows, terminate, until
from support.work import Gate, running

from shardflow import App, AsyncClient, ClusterConfig, Status, Worker


class Chain:
    """A workflow of many short steps, of either kind, that counts how often each ran."""

    LENGTH = 60

    def __init__(self, kind: str) -> None:
        self.app = App()
        self.ran: Counter[tuple[str, int]] = Counter()

        async def link(name: str, n: int) -> int:
            self.ran[name, n] += 1
            await asyncio.sleep(0.01)
            return n

        def link_plain(name: str, n: int) -> int:
            self.ran[name, n] += 1
            time.sleep(0.01)
            return n

        if kind == "async":
            step = self.app.step(link)

            @self.app.workflow(name="chain")
            async def chain(name: str) -> int:
                return sum([await step(name, n) for n in range(self.LENGTH)])

        else:
            step_plain = self.app.step(link_plain)

            @self.app.workflow(name="chain")
            def chain_plain(name: str) -> int:
                return sum([step_plain(name, n) for n in range(self.LENGTH)])


def leftovers(config: ClusterConfig) -> list[tuple[Any, ...]]:
    return rows(config, "SELECT id, attempt, replay FROM ready JOIN workflow USING (wf) ORDER BY id")


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_drained_worker_hands_back_at_a_checkpoint_and_no_step_runs_twice(
    shard_config: ClusterConfig, kind: str
) -> None:
    chain = Chain(kind)
    async with AsyncClient(shard_config) as client:
        handles = [await client.submit("chain", f"c{n}", id=f"c{n}") for n in range(5)]
        async with running(shard_config, chain.app) as first:
            await until(lambda: all(chain.ran[f"c{n}", 3] for n in range(5)))
            began = time.monotonic()
            await first.stop(grace=60)
            assert time.monotonic() - began < 30, "it waited for more than the steps under way"
        assert one(shard_config, "SELECT count(*) FROM lease") == 0
        assert leftovers(shard_config) == [(f"c{n}", 0, True) for n in range(5)]
        assert_i1(shard_config)
        # Every step that began has its checkpoint: that is the boundary.
        assert one(shard_config, "SELECT count(*) FROM step") == sum(chain.ran.values()) < 5 * Chain.LENGTH
        async with running(shard_config, chain.app):
            expected = sum(range(Chain.LENGTH))
            assert [await h.result(30) for h in handles] == [expected] * 5
    assert set(chain.ran.values()) == {1}
    assert_all_done(shard_config, workflows=5, steps=5 * Chain.LENGTH)


async def test_a_step_that_outlasts_the_grace_is_cancelled_and_its_workflow_handed_back(
    shard_config: ClusterConfig,
) -> None:
    app, gate, cancelled = App(), Gate(), list[str]()

    @app.step
    async def early() -> str:
        return "early"

    @app.step
    async def stuck() -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            cancelled.append("stuck")
            raise

    @app.workflow
    async def work() -> str:
        answer = await early()
        await stuck()
        return answer

    async with AsyncClient(shard_config) as client:
        handle = await client.submit(work, id="it")
        async with running(shard_config, app) as first:
            await until(lambda: gate.arrived)
            await first.stop(grace=0.1)
            assert cancelled == ["stuck"]
            assert leftovers(shard_config) == [("it", 0, True)]
            assert one(shard_config, "SELECT count(*) FROM lease") == 0
            assert await handle.status() is Status.READY
        async with running(shard_config, app):
            await until(lambda: gate.arrived == 2)
            gate.open()
            assert await handle.result(30) == "early"


async def test_a_thread_that_outlasts_the_grace_writes_nothing_when_it_ends(shard_config: ClusterConfig) -> None:
    app, entered, let_go = App(), Counter[str](), threading.Event()
    ended = threading.Event()

    @app.step
    def stuck() -> str:
        entered["stuck"] += 1
        if entered["stuck"] == 1:
            let_go.wait(100)
            return "from the stopped worker"
        return "from the next worker"

    @app.step
    def after() -> None:
        entered["after"] += 1

    @app.workflow
    def work() -> str:
        try:
            answer = stuck()
            after()
            return answer
        finally:
            ended.set()

    async with AsyncClient(shard_config) as client:
        handle = await client.submit(work)
        async with running(shard_config, app) as first:
            await until(lambda: entered["stuck"] == 1)
            await first.stop(grace=0.1)
            assert one(shard_config, "SELECT count(*) FROM ready") == 1
        async with running(shard_config, app):
            assert await handle.result(30) == "from the next worker"
            ended.clear()
            let_go.set()
            assert await asyncio.to_thread(ended.wait, 60)
    assert entered == {"stuck": 2, "after": 1}
    assert rows(shard_config, "SELECT seq, output FROM step ORDER BY seq") == [
        (0, b'"from the next worker"'),
        (1, b"null"),
    ]


async def test_a_workflow_that_ends_while_draining_is_done(shard_config: ClusterConfig) -> None:
    app, gate = App(), Gate()

    @app.workflow
    async def work() -> str:
        await gate.wait()
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        handle = await client.submit(work)
        await until(lambda: gate.arrived)
        stopping = asyncio.ensure_future(worker.stop(grace=60))
        await asyncio.sleep(0)
        (link,) = worker._links.values()
        await until(lambda: not link._place.claiming)  # no claim is under way any more
        later = await client.submit(work)
        gate.open()
        await stopping
        assert await handle.result(30) == "done"
        assert await later.status() is Status.READY
        assert gate.arrived == 1, "a draining worker claimed"


async def test_a_connection_lost_while_draining_starts_nothing_anew(shard_config: ClusterConfig) -> None:
    app, gate, ran = App(), Gate(), Counter[str]()

    @app.step
    async def tick(name: str) -> None:
        ran[name] += 1
        await asyncio.sleep(0.01)

    @app.step
    async def hold() -> None:
        await gate.wait()

    @app.workflow
    async def ticks(name: str) -> None:
        for _ in range(1000):
            await tick(name)

    @app.workflow
    async def holds() -> None:
        await hold()

    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        await client.submit(ticks, "a")
        held = await client.submit(holds)
        await until(lambda: gate.arrived and ran["a"] > 2)
        stopping = asyncio.ensure_future(worker.stop(grace=60))
        await until(lambda: worker.running == 1, what="the ticking one stopped at its checkpoint")
        before = ran["a"]
        epoch = one(shard_config, "SELECT epoch FROM lease")
        assert terminate(shard_config, "commit") + terminate(shard_config, "keeper") == 2
        await until(lambda: one(shard_config, "SELECT epoch FROM lease") > epoch)
        gate.open()
        await stopping
        assert ran["a"] == before
        # The one that was held stopped at its checkpoint, too.
        assert (await held.info()).status is Status.READY
        assert len(await held.steps()) == 1
    assert_i1(shard_config)


async def test_leaving_at_once_is_like_a_crash(shard_config: ClusterConfig) -> None:
    app, gate = App(), Gate()

    @app.workflow
    async def work() -> str:
        await gate.wait()
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived)
        await first.leave()
        assert one(shard_config, "SELECT count(*) FROM lease") == 1
        assert await handle.status() is Status.RUNNING
        async with running(shard_config, app):
            await until(lambda: gate.arrived == 2)
            assert (await handle.info()).attempt == 1
            gate.open()
            assert await handle.result(30) == "done"


async def test_a_worker_that_never_started_stops(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> None: ...

    await Worker(shard_config, app).stop()
    worker = Worker(shard_config, app)
    await worker.start()
    await worker.stop()
    await worker.wait()
    assert one(shard_config, "SELECT count(*) FROM lease") == 0
