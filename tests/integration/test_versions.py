"""Versions of workflows: workers claim what they can run, and a rolling deploy strands nothing in silence."""

from __future__ import annotations

import pytest
from conftest import MakeCluster
from support.look import assert_i1, one, total, until
from support.work import Gate, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, InvalidInput, UsageError, Worker, WorkflowFailed, patched
from shardflow.core import checkup_work
from shardflow.core.finding import Notes
from shardflow.storage import checkup
from shardflow.storage.shard import Shard


def code(version: str | None, answer: str, runs: tuple[str | None, ...] = ()) -> App:
    """A workflow that waits for a message in its middle."""
    app = App()

    @app.step(name="note")
    async def note(what: str) -> str:
        return what

    @app.workflow(name="checkout", version=version, runs=runs)
    async def checkout() -> str:
        first = await note(answer)
        await shardflow.receive("go")
        return first + await note(answer)

    return app


async def suspended(config: ClusterConfig, count: int) -> None:
    await until(lambda: total(config, "SELECT count(*) FROM wait WHERE topics IS NOT NULL") == count)


async def test_a_rolling_deploy(make_cluster: MakeCluster) -> None:
    """Old runs wait for old code, new ones run on new code, and what declares that it runs the old ones ends them."""
    config = make_cluster(shards=2)
    one_, two = code("1", "1"), code("2", "2")
    async with AsyncClient(config) as client:
        async with running(config, one_):
            old = await client.submit_many(one_.workflows["checkout"].call() for _ in range(10))
            await suspended(config, 10)
            async with running(config, two):
                new = await client.submit_many(two.workflows["checkout"].call() for _ in range(10))
                await suspended(config, 20)
        async with running(config, two) as worker:
            for handle in old + new:
                await client.send(handle.id, "go")
            assert [await handle.result(30) for handle in new] == ["22"] * 10
            assert total(config, "SELECT count(*) FROM ready WHERE queue = 'default' || chr(31) || '1'") == 10
            assert worker.running == 0
            assert_i1(config)
        async with running(config, code("3", "3", runs=("1", "2"))):
            assert [await handle.result(30) for handle in old] == ["13"] * 10
        assert_i1(config)


async def test_old_code_beside_the_new_ends_its_runs(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, code("1", "1")):
            old = await client.submit(code("1", "1").workflows["checkout"])
            await suspended(shard_config, 1)
        async with running(shard_config, code("2", "2")), running(shard_config, code("1", "1")):
            await client.send(old.id, "go")
            assert await old.result(30) == "11"


async def test_versions_side_by_side_in_one_app(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow(name="checkout", version="1")
    async def checkout_1(n: int) -> str:
        return f"one {n}"

    @app.workflow(name="checkout", version="2")
    async def checkout(n: int) -> str:
        return f"two {n}"

    @app.workflow(name="plain")
    async def plain() -> str:
        return "plain"

    assert app.find("checkout") is checkout is app.workflows["checkout"]
    assert app.definitions == [checkout_1, checkout, plain]
    async with AsyncClient(shard_config) as client, running(shard_config, app) as worker:
        assert await (await client.submit(checkout_1, 1)).result(30) == "one 1"
        assert await (await client.submit(checkout, 1)).result(30) == "two 1"
        assert await (await client.submit(plain)).result(30) == "plain"
        call: shardflow.Call[str] = shardflow.Call("checkout", (3,))
        by_name = await client.submit_many([call.set(version="1"), call.set(version="2")])
        assert [await handle.result(30) for handle in by_name] == ["one 3", "two 3"]
        assert worker.queues == ["default"]


async def test_what_has_no_version_is_not_run_by_code_that_has_one(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        handle = await client.submit("checkout")
        await client.send(handle.id, "go")
        async with running(shard_config, code("2", "2")):
            [other] = await client.submit_many([shardflow.Call("checkout").set(version="2")])
            await client.send(other.id, "go")
            assert await other.result(30) == "22"
            assert (await handle.status()).value == "ready"
            assert one(shard_config, "SELECT count(*) FROM ready") == 1
        async with running(shard_config, code("3", "3", runs=(None,))):
            assert await handle.result(30) == "33"


async def test_a_version_without_a_worker_is_named(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        await client.submit(code("1", "1").workflows["checkout"])
        await client.submit("checkout")
        async with running(shard_config, code("2", "2")):
            assert await said_by_the_doctor(shard_config) == [
                told("default", "without a version"),
                told("default (version 1)", "of version '1'"),
            ]
        async with running(shard_config, code("2", "2", runs=("1", None))):
            await suspended(shard_config, 2)
            assert await said_by_the_doctor(shard_config) == []


def told(lane: str, kind: str) -> str:
    return (
        f"1 workflow ready in the queue {lane!r}, which no worker serves: start a worker whose app has workflows"
        f" {kind}, or `runs` it in a newer one"
    )


async def said_by_the_doctor(config: ClusterConfig) -> list[str]:
    """What it finds of workflows that no worker serves."""
    shard = Shard(config.shards[0])
    async with await shard.connect("doctor") as conn:
        facts = await checkup.examine(shard, conn)
    notes = Notes("workers", shard.name)
    checkup_work.workers(notes, facts, config)
    return [f"{each.found}: {each.remedy}" for each in notes.findings if "no worker serves" in each.found]


async def test_a_run_goes_on_under_patched_code(shard_config: ClusterConfig) -> None:
    def app_of(new: bool) -> App:
        app = App()

        @app.step(name="add")
        async def add(what: str) -> str:
            return what

        @app.step(name="add_fees")
        async def add_fees(what: str) -> str:
            return what + " with fees"

        @app.workflow(name="order")
        async def order() -> str:
            sum_ = await (add_fees("sum") if new and patched("fees") else add("sum"))
            await shardflow.receive("go")
            return sum_

        return app

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app_of(False)):
            old = await client.submit("order")
            await suspended(shard_config, 1)
        async with running(shard_config, app_of(True)):
            new = await client.submit("order")
            await suspended(shard_config, 2)
            for handle in (old, new):
                await client.send(handle.id, "go")
            assert await old.result(30) == "sum"
            assert await new.result(30) == "sum with fees"
            names = [step.name for step in await new.steps()]
            assert names == ["shardflow.patch.fees", "add_fees", "shardflow.receive.go"]


async def test_a_worker_that_dies_behind_a_patch(shard_config: ClusterConfig) -> None:
    """What `patched` answered holds for whoever goes on, whether the answer had committed when the worker died or
    not."""
    ran: list[str] = []
    gates = {"in the step": Gate(), "behind it": Gate()}

    def app_of(place: str | None) -> App:
        app = App()

        @app.step(name="old")
        async def old() -> str:
            ran.append("old")
            return "old"

        @app.step(name="new")
        async def new() -> str:
            if place == "in the step":
                await gates[place].wait()
            ran.append("new")
            return "new"

        @app.step(name="last")
        async def last() -> None:
            if place == "behind it":
                await gates[place].wait()

        @app.workflow(name="work")
        async def work() -> str:
            found = await (new() if patched("p") else old())
            await last()
            return found

        return app

    async with AsyncClient(shard_config) as client:
        for place, gate in gates.items():
            ran.clear()
            dying = Worker(shard_config, app_of(place))
            await dying.start()
            handle = await client.submit("work")
            await until(lambda gate=gate: gate.arrived == 1)
            await dying.leave()
            async with running(shard_config, app_of(None)):
                assert await handle.result(30) == "new"
            assert ran == ["new"]
            assert [step.name for step in await handle.steps()] == ["shardflow.patch.p", "new", "last"]


async def test_a_mismatch_names_the_step(shard_config: ClusterConfig) -> None:
    app = App()

    @app.step
    async def other() -> str:
        return "other"

    @app.workflow(name="checkout")
    async def checkout() -> str:
        return await other()

    async with AsyncClient(shard_config) as client:
        async with running(shard_config, code(None, "x")):
            handle = await client.submit("checkout")
            await suspended(shard_config, 1)
        async with running(shard_config, app):
            await client.send(handle.id, "go")
            with pytest.raises(WorkflowFailed, match="step 0 is 'other' now, but 'note' is recorded") as caught:
                await handle.result(30)
            assert caught.value.type == "shardflow.errors.NonDeterminism"


def test_definitions_that_cannot_stand_together() -> None:
    app = code("1", "1", runs=(None,))
    for version, runs in (("1", ()), (None, ()), ("2", ("1",)), ("2", (None,))):
        with pytest.raises(UsageError, match="already has a workflow named 'checkout' that runs"):
            app.workflow(name="checkout", version=version, runs=runs)(lambda: None)
    app.workflow(name="checkout", version="2")(lambda: None)
    assert app.workflows["checkout"].version == "2"
    assert app.runner("checkout", None) is app.runner("checkout", "1") is not app.runner("checkout", "2")
    assert app.lanes(["a", "b"]) == ["a", "a\x1f1", "a\x1f2", "b", "b\x1f1", "b\x1f2"]
    for bad in ("", "a\x1fb", "a\x1eb", 1):
        with pytest.raises(InvalidInput):
            App().workflow(name="w", version=bad)(lambda: None)  # type: ignore[arg-type]
        with pytest.raises(InvalidInput):
            App().workflow(name="w", runs=[bad])(lambda: None)  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="not one text"):
        App().workflow(name="w", runs="12")(lambda: None)
