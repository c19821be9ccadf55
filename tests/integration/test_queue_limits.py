"""Limits of queues: never exceeded, used up, moved between shards."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from conftest import MakeCluster
from support.look import assert_i1, one, total, until
from support.shares import units
from support.work import Gate, ids_on, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, InvalidInput, Options, Queue, WorkflowConflict


class Meter:
    """How many run now and did at once at the most; when each began."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.begins: list[float] = []

    def begin(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.begins.append(time.monotonic())

    def end(self) -> None:
        self.now -= 1

    def most_within(self, seconds: float) -> int:
        """The most begins in any span of so many seconds."""
        first = most = 0
        for last, at in enumerate(self.begins):
            while self.begins[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


def metered(queue: Queue, seconds: float = 0.02) -> tuple[App, Meter]:
    app, meter = App(), Meter()

    @app.step
    async def use() -> None:
        meter.begin()
        try:
            await asyncio.sleep(seconds)
        finally:
            meter.end()

    @app.workflow(queue=queue)
    async def work() -> None:
        await use()

    @app.workflow
    async def free() -> int:
        return 1

    return app, meter


async def drained(config: ClusterConfig) -> None:
    await until(lambda: total(config, "SELECT count(*) FROM permit") == 0)
    assert_i1(config)


async def test_no_more_than_the_limit_run_at_once_over_shards_and_workers(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    app, meter = metered(Queue("few", concurrency=4))
    async with AsyncClient(config) as client, running(config, app), running(config, app):
        handles = await client.submit_many([app.find("work").call() for _ in range(120)])
        for handle in handles:
            await handle.result(60)
        assert meter.most == 4
        assert units(config, "few", "running") == 4
        await drained(config)


async def test_a_limit_below_the_number_of_shards_serves_all_of_them(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    app, meter = metered(Queue("one", concurrency=1), 0.005)
    async with AsyncClient(config) as client, running(config, app):
        calls = [app.find("work").call().set(id=id) for k in range(3) for id in ids_on(config, k, 5, f"k{k}-")]
        for handle in await client.submit_many(calls):
            await handle.result(60)
        assert meter.most == 1
        await drained(config)


async def test_no_more_than_the_rate_begin_in_any_span(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=3)
    app, meter = metered(Queue("paced", rate=(30, 0.5)))
    async with AsyncClient(config) as client, running(config, app), running(config, app):
        handles = await client.submit_many([app.find("work").call() for _ in range(150)])
        for handle in handles:
            await handle.result(60)
        assert meter.most_within(0.5) <= 30
        assert len(meter.begins) == 150
        await drained(config)


async def test_an_unlimited_queue_goes_on_beside_a_limited_backlog(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=1)
    app, meter = metered(Queue("slow", concurrency=1), 60)
    async with AsyncClient(config) as client, running(config, app):
        await client.submit_many([app.find("work").call() for _ in range(1000)])
        await until(lambda: meter.now == 1)
        for _ in range(20):
            assert await (await client.submit("free")).result(10) == 1
        assert meter.most == 1
        assert one(config, "SELECT count(*) FROM ready") == 999


async def test_a_suspended_workflow_gives_its_place_to_the_next(shard_config: ClusterConfig) -> None:
    app = App()
    order: list[str] = []

    @app.workflow(queue=Queue("one", concurrency=1))
    async def naps(name: str, seconds: float) -> str:
        order.append(name)
        if seconds:
            await shardflow.receive("go")
        return name

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        first = await client.submit(naps, "first", 9.0, id="first")
        await until(lambda: order == ["first"])
        second = await client.submit(naps, "second", 0.0)
        assert await second.result(10) == "second"
        await client.send("first", "go", 1)
        assert await first.result(10) == "first"
        await drained(shard_config)


async def test_of_a_key_only_so_many_are_active_and_the_next_ones_come_in_order(
    cluster_config: ClusterConfig,
) -> None:
    app, meters, order = App(), {"a": Meter(), "b": Meter()}, list[int]()

    @app.step
    async def use(key: str, number: int) -> None:
        meters[key].begin()
        if key == "a":
            order.append(number)
        await asyncio.sleep(0.01)
        meters[key].end()

    @app.workflow
    async def work(key: str, number: int) -> None:
        await use(key, number)

    async with AsyncClient(cluster_config) as client, running(cluster_config, app), running(cluster_config, app):
        calls = [work.call("a", n).set(key_concurrency=("a", 1)) for n in range(40)]
        calls += [work.call("b", n).set(key_concurrency=("b", 3)) for n in range(40)]
        handles = await client.submit_many(calls)
        assert {handle.id.partition("/")[0] for handle in handles} == {"{a}", "{b}"}
        for handle in handles:
            await handle.result(60)
        assert meters["a"].most == 1
        assert meters["b"].most == 3
        assert order == list(range(40))
        assert total(cluster_config, "SELECT count(*) FROM keyed") == 0
        assert_i1(cluster_config)


async def test_a_suspended_workflow_keeps_its_key_and_a_failed_one_gives_it_on(shard_config: ClusterConfig) -> None:
    app = App()
    order: list[str] = []

    @app.workflow
    async def work(name: str) -> str:
        order.append(name)
        if name == "first":
            await shardflow.receive("go")
            raise ValueError(name)
        return name

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        key = ("tenant", 1)
        await client.submit(work, "first", id="{tenant}/first", key_concurrency=key)
        second = await client.submit(work, "second", key_concurrency=key)
        urgent = await client.submit(work, "urgent", priority=-1, key_concurrency=key)
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait WHERE reason LIKE 'message%%'") == 1)
        assert one(shard_config, "SELECT count(*) FROM wait WHERE reason = 'key'") == 2
        assert_i1(shard_config)
        await client.send("{tenant}/first", "go", 1)
        assert [await second.result(10), await urgent.result(10)] == ["second", "urgent"]
        assert order[-2:] == ["urgent", "second"]


async def test_a_dedup_key_gives_the_active_workflow_until_it_has_ended(cluster_config: ClusterConfig) -> None:
    gate, app = Gate(), App()

    @app.step
    async def hold() -> None:
        await gate.wait()

    @app.workflow
    async def work(number: int) -> int:
        await hold()
        return number

    @app.workflow
    async def other(number: int) -> int:
        return number

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        first = await client.submit(work, 1, dedup_key="report")
        many = await asyncio.gather(*(client.submit(work, n, dedup_key="report") for n in range(20)))
        assert {handle.id for handle in many} == {first.id}
        with pytest.raises(WorkflowConflict, match="report"):
            await client.submit(work, 2, dedup_key="report", on_duplicate="reject")
        with pytest.raises(WorkflowConflict, match="work"):
            await client.submit(other, 2, dedup_key="report")
        same = await client.submit_many([work.call(n).set(dedup_key="twice") for n in range(3)])
        assert len({handle.id for handle in same}) == 1
        gate.open()
        assert await first.result(10) == 1
        again = await client.submit(work, 5, dedup_key="report", on_duplicate="reject")
        assert again.id != first.id
        assert await again.result(10) == 5
        assert (await client.submit(work, 1, dedup_key="report", id=first.id)).id == first.id
        await same[0].result(10)
        assert total(cluster_config, "SELECT count(*) FROM dedup") == 0
        assert total(cluster_config, "SELECT count(*) FROM workflow") == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"key_concurrency": ("k", 1), "id": "x"}, "routing key 'x'"),
        ({"dedup_key": "k", "id": "{x}/1"}, "routing key 'x'"),
        ({"dedup_key": "a", "key_concurrency": ("b", 1)}, "must be the same"),
        ({"dedup_key": "a}"}, "closing brace"),
        ({"dedup_key": "a", "on_duplicate": "maybe"}, "on_duplicate"),
        ({"key_concurrency": ("k", 1), "delay": 3}, "delay"),
    ],
)
def test_keys_that_cannot_be_minded_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Options(**options)


@pytest.mark.parametrize(
    "limits",
    [{"concurrency": 0}, {"concurrency": True}, {"rate": 5}, {"rate": (1, 0)}, {"rate": (0, 1)}, {"priority": 1.0}],
)
def test_limits_that_cannot_be_kept_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Queue("q", **limits)


async def test_keys_survive_cancelling_resuming_and_forking(shard_config: ClusterConfig) -> None:
    app, fails = App(), True

    @app.workflow
    async def work(name: str) -> str:
        if name == "fails" and fails:
            raise ValueError(name)
        if name == "waits":
            await shardflow.receive("go")
        return name

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        limits: dict[str, Any] = {"dedup_key": "k", "key_concurrency": ("k", 1)}
        failed = await client.submit(work, "fails", **limits)
        with pytest.raises(shardflow.WorkflowFailed):
            await failed.result(10)
        key = ("k", 1)
        waits = await client.submit(work, "waits", key_concurrency=key)
        behind = await client.submit(work, "behind", key_concurrency=key)
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait WHERE reason LIKE 'message%%'") == 1)
        fails = False
        assert await client.resume(failed.id)
        assert await client.cancel(behind.id)  # it waits for its key
        assert one(shard_config, "SELECT count(*) FROM wait WHERE reason = 'key'") == 1
        assert (await client.submit(work, "other", dedup_key="k")).id == failed.id
        fork = await client.fork(failed.id)
        assert await fork.result(10) == "fails"
        assert_i1(shard_config)
        assert await client.cancel(waits.id)
        assert await failed.result(10) == "fails"
        assert [one(shard_config, f"SELECT count(*) FROM {table}") for table in ("keyed", "dedup")] == [0, 0]
        assert_i1(shard_config)


def test_a_schedules_submissions_share_no_key() -> None:
    app = App()

    @app.workflow
    async def work() -> None: ...

    with pytest.raises(InvalidInput, match="share no key"):
        app.schedule("every 1h", options=Options(key_concurrency=("k", 1)))(work)
