"""Workers: what they run, in what order, and what they refuse."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.look import assert_all_done, assert_i1, one, rows, total, until
from support.work import Gate, ids_on, running

import shardflow.storage.bell
import shardflow.worker.claims
import shardflow.worker.starter
from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    ClusterError,
    InvalidInput,
    LeaseConfig,
    ShardUnavailable,
    Status,
    UsageError,
    Worker,
    WorkflowFailed,
)
from shardflow.config import ShardConfig
from shardflow.model import ClusterConfig as Config

MakeCluster = Callable[..., ClusterConfig]


class Versions:
    """Two versions of one workflow's code: the first runs a step and then stops in a second one."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.old = App("old")
        self.new = App("new")

        async def reserve() -> str:
            return "reserved"

        async def hold() -> None:
            await self.gate.wait()

        first, second = self.old.step(reserve), self.old.step(hold)

        @self.old.workflow(name="work")
        async def work() -> str:
            answer = await first()
            await second()
            return answer


async def replayed_by(config: ClusterConfig, versions: Versions) -> WorkflowFailed:
    """Runs the old version up to its second step, then the new one; answers how the workflow failed."""
    async with AsyncClient(config) as client, running(config, versions.old) as old:
        handle = await client.submit("work", id="it")
        await until(lambda: versions.gate.arrived)
        await old.leave()
        async with running(config, versions.new):
            with pytest.raises(WorkflowFailed) as failed:
                await handle.result(30)
    return failed.value


async def test_a_replay_that_calls_another_step_fails_and_names_both(shard_config: ClusterConfig) -> None:
    versions = Versions()

    @versions.new.step
    async def charge() -> str:
        return "charged"

    @versions.new.workflow(name="work")
    async def work() -> str:
        return await charge()

    error = await replayed_by(shard_config, versions)
    assert error.type == "shardflow.errors.NonDeterminism"
    assert error.message.startswith("workflow 'it': step 0 is 'charge' now, but 'reserve' is recorded")
    assert one(shard_config, "SELECT count(*) FROM step") == 1


async def test_a_replay_that_ends_before_a_recorded_step_fails_and_names_it(shard_config: ClusterConfig) -> None:
    versions = Versions()

    @versions.new.workflow(name="work")
    async def work() -> str:
        return "short cut"

    error = await replayed_by(shard_config, versions)
    assert error.type == "shardflow.errors.NonDeterminism"
    assert "ended before step 0 ('reserve'), which is recorded" in error.message


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_code_that_swallows_the_error_fails_all_the_same(shard_config: ClusterConfig, kind: str) -> None:
    versions = Versions()

    async def charge() -> str:
        return "charged"

    def charge_plain() -> str:
        return "charged"

    if kind == "async":
        step = versions.new.step(name="charge")(charge)

        @versions.new.workflow(name="work")
        async def work() -> str:
            try:
                return await step()
            except Exception:
                return "swallowed"

    else:
        plain = versions.new.step(name="charge")(charge_plain)

        @versions.new.workflow(name="work")
        def work_plain() -> str:
            try:
                return plain()
            except Exception:
                return "swallowed"

    error = await replayed_by(shard_config, versions)
    assert error.type == "shardflow.errors.NonDeterminism"
    assert "step 0 is 'charge' now" in error.message


async def test_more_steps_than_were_recorded_go_on_behind_the_recorded_ones(shard_config: ClusterConfig) -> None:
    versions, ran = Versions(), Counter[str]()

    @versions.new.step
    async def reserve() -> str:
        ran["reserve"] += 1
        return "again"

    @versions.new.step
    async def charge(what: str) -> str:
        ran["charge"] += 1
        return f"charged for {what}"

    @versions.new.workflow(name="work")
    async def work() -> str:
        return await charge(await reserve())

    async with AsyncClient(shard_config) as client, running(shard_config, versions.old) as old:
        handle = await client.submit("work")
        await until(lambda: versions.gate.arrived)
        await old.leave()
        async with running(shard_config, versions.new):
            assert await handle.result(30) == "charged for reserved"
    assert ran == {"charge": 1}


async def test_gathered_steps_keep_their_places_in_a_replay(shard_config: ClusterConfig) -> None:
    app, ran, gate = App(), Counter[int](), Gate()

    @app.step
    async def square(x: int) -> int:
        ran[x] += 1
        await asyncio.sleep(0.002 * (10 - x))
        return x * x

    @app.step
    async def hold() -> None:
        await gate.wait()

    @app.workflow
    async def work() -> list[int]:
        answers = await asyncio.gather(*(square(x) for x in range(10)))
        await hold()
        return list(answers)

    async with AsyncClient(shard_config) as client, running(shard_config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        await first.leave()
        async with running(shard_config, app):
            await until(lambda: gate.arrived == 2)
            gate.open()
            assert await handle.result(30) == [x * x for x in range(10)]
    assert ran == Counter(range(10))
    assert [s[0] for s in rows(shard_config, "SELECT seq FROM step ORDER BY seq")] == list(range(11))


async def test_a_workflow_without_code_is_suspended_and_offered_again(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shardflow.worker.starter, "UNKNOWN_DELAY", 60.0)
    without, with_code = App("without"), App("with")

    @without.workflow
    async def other() -> None: ...

    @with_code.workflow
    async def work(x: int) -> int:
        return x + 1

    async with AsyncClient(cluster_config) as client:
        async with running(cluster_config, without):
            handle = await client.submit("work", 1)
            await until(lambda: total(cluster_config, "SELECT count(*) FROM wait"))
            assert await handle.status() is Status.SUSPENDED
            k = [s.name for s in cluster_config.shards].index(handle.shard)
            assert one(cluster_config, "SELECT reason FROM wait", shard=k) == "no worker had code for workflow 'work'"
            assert total(cluster_config, "SELECT count(*) FROM claim") == 0
            assert_i1(cluster_config)
            # It is offered again and again.
            for delay in (60.0, 0.1):
                monkeypatch.setattr(shardflow.worker.starter, "UNKNOWN_DELAY", delay)
                rows(cluster_config, "UPDATE wait SET wake_at = clock_timestamp()", shard=k)
                first = one(cluster_config, "SELECT clock_timestamp()", shard=k)
                await until(
                    lambda at=first: rows(cluster_config, "SELECT 1 FROM wait WHERE wake_at > %s", at, shard=k)
                )
        async with running(cluster_config, with_code):
            assert await handle.result(30) == 2
    assert_i1(cluster_config)


async def test_a_worker_serves_only_its_queues(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow(queue="fast")
    async def quick() -> str:
        return "quick"

    @app.workflow(queue="slow")
    async def slow() -> str:
        return "slow"

    async with AsyncClient(shard_config) as client:
        first, second, third = (
            await client.submit(quick),
            await client.submit(slow),
            await client.submit(quick, queue="vip"),
        )
        async with running(shard_config, app, queues=["fast"]):
            assert await first.result(30) == "quick"
            assert await second.status() is Status.READY
        async with running(shard_config, app):
            assert await second.result(30) == "slow"
            assert await third.status() is Status.READY
        async with running(shard_config, app, queues=["vip", "default"]):
            assert await third.result(30) == "quick"


async def test_a_queue_is_worked_off_in_the_order_of_submission(shard_config: ClusterConfig) -> None:
    app, order = App(), list[int]()

    @app.workflow
    async def work(x: int) -> None:
        order.append(x)

    async with AsyncClient(shard_config) as client:
        handles = await client.submit_many(work.call(n) for n in range(200))
        async with running(shard_config, app, concurrency=1):
            await handles[-1].result(30)
    assert order == list(range(200))


class Crowd:
    """Counts who is inside at once, over all loops and threads; the first ones wait for `go`."""

    def __init__(self) -> None:
        self.now = self.most = self.entered = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def enter(self) -> None:
        with self._lock:
            self.entered += 1
            self.now += 1
            self.most = max(self.most, self.now)

    def leave(self) -> None:
        with self._lock:
            self.now -= 1


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("concurrency", [1, 7])
async def test_as_many_run_at_once_as_the_worker_has_places_and_never_more(
    make_cluster: MakeCluster, concurrency: int, kind: str
) -> None:
    config, app, crowd, gate = make_cluster(shards=2), App(), Crowd(), Gate()

    if kind == "async":

        @app.workflow(name="work")
        async def work() -> None:
            crowd.enter()
            await gate.wait()
            await asyncio.sleep(0)
            crowd.leave()

    else:

        @app.workflow(name="work")
        def work_plain() -> None:
            crowd.enter()
            crowd.go.wait(100)
            crowd.leave()

    async with AsyncClient(config) as client:
        handles = await client.submit_many(app.workflows["work"].call() for _ in range(20 * concurrency))
        async with running(config, app, concurrency=concurrency) as worker:
            await until(lambda: crowd.now == concurrency, what="every place is taken")
            await until(
                lambda: total(config, "SELECT coalesce(sum(cardinality(wfs)), 0)::int FROM claim") == concurrency
            )
            crowd.go.set()
            gate.open()
            await asyncio.gather(*(h.result(30) for h in handles))
            await until(lambda: worker.running == 0)
    assert crowd.entered == 20 * concurrency
    assert crowd.most == concurrency


async def test_a_worker_without_a_free_place_rests(make_cluster: MakeCluster) -> None:
    """All places taken and more in the queue: nothing to do until one ends."""
    config, app, gate = make_cluster(shards=2), App(), Gate()

    @app.workflow
    async def work() -> None:
        await gate.wait()

    async with AsyncClient(config) as client, running(config, app, concurrency=4):
        await client.submit_many(work.call() for _ in range(40))
        await until(lambda: gate.arrived == 4)
        began, since = time.process_time(), time.monotonic()
        await until(lambda: time.monotonic() - since > 1.0)
        assert time.process_time() - began < 0.3, "the worker spins"
        gate.open()


async def test_with_one_place_and_two_shards_both_make_progress(make_cluster: MakeCluster) -> None:
    config, app, ran = make_cluster(shards=2), App(), list[str]()

    @app.workflow
    async def work(shard: str) -> None:
        ran.append(shard)

    async with AsyncClient(config) as client:
        calls = [work.call(f"s{k}").set(id=id) for k in range(2) for id in ids_on(config, k, 100)]
        async with running(config, app, concurrency=1):
            handles = await client.submit_many(calls)
            await asyncio.gather(*(h.result(30) for h in handles))
    first_half = Counter(ran[:100])
    assert min(first_half["s0"], first_half["s1"]) >= 25, first_half


async def test_a_worker_serves_only_the_shards_it_is_told_to(cluster_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> str:
        return "done"

    async with AsyncClient(cluster_config) as client, running(cluster_config, app, shards=["s1"]):
        here = await client.submit(work, id=ids_on(cluster_config, 1, 1)[0])
        there = await client.submit(work, id=ids_on(cluster_config, 2, 1)[0])
        assert await here.result(30) == "done"
        assert await there.status() is Status.READY
        assert [one(cluster_config, "SELECT count(*) FROM lease", shard=k) for k in range(3)] == [0, 1, 0]


async def test_two_workers_share_a_queue_and_nothing_runs_twice(cluster_config: ClusterConfig) -> None:
    app, ran = App(), Counter[int]()

    @app.step
    async def mark(x: int) -> int:
        ran[x] += 1
        return x

    @app.workflow
    async def work(x: int) -> int:
        return await mark(x) + await mark(x)

    async with (
        AsyncClient(cluster_config) as client,
        running(cluster_config, app, concurrency=50),
        running(cluster_config, app, concurrency=50),
    ):
        handles = await client.submit_many(work.call(n) for n in range(1500))
        assert await asyncio.gather(*(h.result(30) for h in handles)) == [2 * n for n in range(1500)]
    assert ran == Counter([*range(1500), *range(1500)])
    assert_all_done(cluster_config, workflows=1500, steps=3000)
    assert (
        total(cluster_config, "SELECT count(*) FROM lease")
        == total(cluster_config, "SELECT count(*) FROM claim")
        == 0
    )


async def test_steps_and_workflows_of_the_wrong_kind_are_told_so(shard_config: ClusterConfig) -> None:
    app = App()

    @app.step
    async def coroutine() -> None: ...

    @app.step
    def plain() -> None: ...

    @app.workflow
    async def calls_plain() -> None:
        plain()

    @app.workflow
    def calls_coroutine() -> Any:
        return coroutine()

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        with pytest.raises(WorkflowFailed, match=r"call `await plain\.aio"):
            await (await client.submit(calls_plain)).result(30)
        with pytest.raises(WorkflowFailed, match="make both the same"):
            await (await client.submit(calls_coroutine)).result(30)


async def test_a_workflow_that_cancels_itself_fails(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work() -> None:
        raise asyncio.CancelledError("enough")

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        with pytest.raises(WorkflowFailed, match="CancelledError"):
            await (await client.submit(work)).result(30)


async def test_arguments_that_no_longer_fit_the_code_fail_the_workflow(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work(x: int) -> int:
        return x

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        with pytest.raises(WorkflowFailed, match="SerializationError"):
            await (await client.submit("work", "not a number")).result(30)
        assert await (await client.submit("work", 1)).result(30) == 1


async def test_a_worker_that_cannot_work_says_why(cluster_config: ClusterConfig, make_cluster: MakeCluster) -> None:
    app = App()
    with pytest.raises(UsageError, match="has no workflow"):
        Worker(cluster_config, app)

    @app.workflow
    async def work() -> None: ...

    for wrong in (0, -1, 1.5, "many"):
        with pytest.raises(InvalidInput, match="concurrency"):
            Worker(cluster_config, app, concurrency=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no shard is named 's7'"):
        Worker(cluster_config, app, shards=["s7"])
    with pytest.raises(InvalidInput, match="queue"):
        Worker(cluster_config, app, queues=[""])
    with pytest.raises(ClusterError, match="cluster init"):
        await Worker(make_cluster(shards=1, init=False), app).start()
    nowhere = Config("test", (ShardConfig("s0", "postgresql://postgres@127.0.0.1:9/none"),))
    with pytest.raises(ShardUnavailable, match="no shard answers"):
        await Worker(nowhere, app).start()


async def test_an_idle_worker_asks_a_shard_seldom(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests until the bell rings: the next look of its own accord is far away. How much it asks is counted in
    test_latency."""
    app = App()

    @app.workflow
    async def work() -> str:
        return "awake"

    monkeypatch.setattr(shardflow.storage.bell, "ring_near", lambda _: None)  # as for a client elsewhere
    monkeypatch.setattr(shardflow.worker.claims, "OWN_LOOK", 1000.0)
    config = ClusterConfig(
        "test", shard_config.shards, shard_config.slots, lease=LeaseConfig(ttl=600, renew=200, watch=100)
    )
    async with AsyncClient(config) as client, running(config, app) as worker:
        for _ in range(3):
            claims = next(iter(worker._links.values()))._commit.claims
            await until(lambda: claims.patience(asyncio.get_running_loop().time()) > 500)  # noqa: B023
            assert await (await client.submit(work)).result(30) == "awake"
