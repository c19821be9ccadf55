"""Submitting and getting results, as a user sees it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.look import assert_all_done, one, rows, total, until
from support.work import Gate, ids_on, running

import shardflow
import shardflow.client.waiter
from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    InvalidInput,
    InvalidWorkflowId,
    ResultTimeout,
    Retry,
    SerializationError,
    Status,
    StepFailed,
    UsageError,
    WorkflowConflict,
    WorkflowFailed,
    WorkflowNotFound,
)
from shardflow.definitions import Call


@dataclass(frozen=True)
class Order:
    card: str
    cents: int
    placed: datetime


@dataclass(frozen=True)
class Receipt:
    order: Order
    due: datetime
    notes: tuple[str, ...] = ()


def shop() -> App:
    """Workflows of every kind."""
    app = App("shop")

    @app.step
    async def double(x: int) -> int:
        return 2 * x

    @app.step
    def plain(x: int) -> str:
        return f"p{x}"

    @app.workflow
    async def mixed(x: int) -> str:
        return await plain.aio(await double(x))

    @app.workflow
    def blocking(x: int, *, twice: bool = False) -> str:
        return plain(x) + (plain(x + 1) if twice else "")

    @app.workflow
    async def bill(order: Order, days: int = 30) -> Receipt:
        return Receipt(order, order.placed + timedelta(days=days), (order.card,))

    @app.workflow
    async def bad(x: int) -> int:
        raise ValueError(f"no {x}")

    return app


async def test_async_and_plain_workflows_give_their_results(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = shop()
    async with running(cluster_config, app):
        one_ = await client.submit(app.workflows["mixed"], 21)
        two = await client.submit(app.workflows["blocking"], 21, twice=True)
        assert await one_.result(30) == "p42"
        assert await two.result(30) == "p21p22"
        assert await one_.status() is Status.SUCCEEDED
        assert [(s.seq, s.name, s.output, s.attempts) for s in await two.steps()] == [
            (0, "plain", b'"p21"', 1),
            (1, "plain", b'"p22"', 1),
        ]
        info = await one_.info()
        assert info.finished_at is not None
        assert info.submitted_at <= info.finished_at
        assert (info.id, info.name, info.queue, info.shard, info.attempt) == (
            one_.id,
            "mixed",
            "default",
            one_.shard,
            0,
        )


async def test_results_come_back_typed_by_the_annotation(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    app = shop()
    order = Order("4242", 999, datetime(2026, 2, 27, 23, 59, 59, 1, tzinfo=UTC))
    async with running(cluster_config, app):
        handle = await client.submit(app.workflows["bill"], order=order, days=2)
        expected = Receipt(order, datetime(2026, 3, 1, 23, 59, 59, 1, tzinfo=UTC), ("4242",))
        assert await handle.result(30) == expected
        assert await (await client.get(handle.id, app.workflows["bill"])).result(30) == expected
        untyped = await (await client.get(handle.id)).result(30)
        assert untyped["due"] == "2026-03-01T23:59:59.000001+00:00"


async def test_a_workflow_can_be_submitted_by_its_name(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    app = shop()
    async with running(cluster_config, app):
        positional = await client.submit("mixed", 4)
        named = await client.submit("blocking", x=4, twice=True)
        assert await positional.result(30) == "p8"
        assert await named.result(30) == "p4p5"
        assert (positional.name, named.name) == ("mixed", "blocking")


async def test_the_same_call_by_name_and_by_function_is_the_same_submission(client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    first = await client.submit(mixed, 4, id="same")
    again = await client.submit("mixed", 4, id="same")
    assert (first.id, first.shard) == (again.id, again.shard)


async def test_an_id_submitted_by_many_at_once_runs_once(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    app = App()
    ran: Counter[int] = Counter()

    @app.workflow
    async def once(x: int) -> int:
        ran[x] += 1
        return x + 1

    async with running(cluster_config, app), AsyncClient(cluster_config) as other:
        handles = await asyncio.gather(
            *((client, other)[n % 2].submit(once, 1, id="the one") for n in range(50)),
        )
        assert {(h.id, h.shard) for h in handles} == {("the one", handles[0].shard)}
        assert {await h.result(30) for h in handles} == {2}
        again = await client.submit(once, 1, id="the one")
        assert await again.result(30) == 2
    assert ran == {1: 1}
    assert_all_done(cluster_config, workflows=1, steps=0)


async def test_another_name_or_input_under_a_used_id_is_a_conflict(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = shop()
    await client.submit(app.workflows["mixed"], 1, id="taken")
    with pytest.raises(WorkflowConflict, match=r"'taken'.*another input") as other_input:
        await client.submit(app.workflows["mixed"], 2, id="taken")
    assert other_input.value.workflow_id == "taken"
    with pytest.raises(WorkflowConflict, match="name 'mixed' instead of 'bad'"):
        await client.submit(app.workflows["bad"], 1, id="taken")
    assert total(cluster_config, "SELECT count(*) FROM workflow") == 1
    assert total(cluster_config, "SELECT count(*) FROM ready") == 1


async def test_ten_thousand_in_one_call_keep_their_order(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    calls = [mixed.call(n).set(id=f"order-{n}") if n % 2 else mixed.call(n) for n in range(10_000)]
    handles = await client.submit_many(calls)
    assert len(handles) == len({h.id for h in handles}) == 10_000
    assert all(handles[n].id == f"order-{n}" for n in range(1, 10_000, 2))
    per_shard = [one(cluster_config, "SELECT count(*) FROM workflow", shard=k) for k in range(3)]
    assert sum(per_shard) == 10_000
    assert min(per_shard) > 2_000
    for n in (0, 1, 4_999, 9_998):
        shard = [s.name for s in cluster_config.shards].index(handles[n].shard)
        stored = one(cluster_config, "SELECT input FROM workflow WHERE id = %s", handles[n].id, shard=shard)
        assert mixed.codec.decode_call(stored) == ((n,), {})


async def test_duplicates_within_one_call_are_one_workflow(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    mixed = shop().workflows["mixed"]
    handles = await client.submit_many([mixed.call(n % 3).set(id=f"d{n % 3}") for n in range(9)])
    assert [h.id for h in handles] == [f"d{n % 3}" for n in range(9)]
    assert total(cluster_config, "SELECT count(*) FROM workflow") == 3
    assert total(cluster_config, "SELECT count(*) FROM ready") == 3
    async with running(cluster_config, shop()):
        assert [await h.result(30) for h in handles] == [f"p{2 * (n % 3)}" for n in range(9)]


async def test_duplicates_within_one_call_with_other_input_are_a_conflict(client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    with pytest.raises(WorkflowConflict, match="'d'"):
        await client.submit_many([mixed.call(1).set(id="d"), mixed.call(2).set(id="d")])


async def test_submitting_nothing_answers_nothing(client: AsyncClient) -> None:
    assert await client.submit_many([]) == []


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 513, "é" * 257, "\ud800", 7, b"bytes"])
async def test_an_invalid_id_is_refused_before_it_reaches_a_server(
    client: AsyncClient, cluster_config: ClusterConfig, id: Any
) -> None:
    with pytest.raises(InvalidWorkflowId):
        await client.submit(shop().workflows["mixed"], 1, id=id)
    with pytest.raises(InvalidWorkflowId):
        await client.get(id)


async def test_the_longest_and_the_strangest_ids_are_taken(client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    for id in ("x" * 512, "é" * 256, "\u202e🦆\n\t'\"\\%s{}", "{tenant-7}/1"):
        assert (await client.submit(mixed, 1, id=id)).id == id
        assert (await client.get(id)).name == "mixed"


async def test_input_that_has_no_stored_form_is_refused_with_its_path(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = App()

    @app.workflow
    async def take(x: Any) -> None: ...

    with pytest.raises(SerializationError, match=r"x.*\['a'\]\[1\]|x\.a\[1\]"):
        await client.submit(take, {"a": [1, object()]})
    with pytest.raises(UsageError, match="missing a required argument: 'x'"):
        await client.submit(take)
    assert total(cluster_config, "SELECT count(*) FROM workflow") == 0


async def test_only_workflows_can_be_submitted(client: AsyncClient) -> None:
    app = shop()
    for wrong in (app.steps["double"], len, 3, None):
        with pytest.raises(InvalidInput, match="submit takes a workflow"):
            await client.submit(wrong, 1)  # type: ignore[call-overload]
    with pytest.raises(InvalidInput, match="workflow"):
        await client.submit("", 1)


async def test_an_id_that_was_never_submitted_is_not_found(client: AsyncClient) -> None:
    for ask in (client.get, client.info, client.steps):
        with pytest.raises(WorkflowNotFound, match="'nobody'") as error:
            await ask("nobody")
        assert error.value.workflow_id == "nobody"


async def test_an_error_of_the_workflow_arrives_with_type_message_and_traceback(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = shop()

    class Odd(Exception):
        pass

    @app.workflow
    def odd() -> None:
        raise Odd("with a NUL \0 and a lone \ud800 surrogate")

    async with running(cluster_config, app):
        handle = await client.submit(app.workflows["bad"], 3)
        with pytest.raises(WorkflowFailed) as failed:
            await handle.result(30)
        error = failed.value
        assert (error.workflow_id, error.type, error.message) == (handle.id, "ValueError", "no 3")
        assert 'raise ValueError(f"no {x}")' in error.traceback
        assert await handle.status() is Status.FAILED
        with pytest.raises(WorkflowFailed) as failed:
            await (await client.submit(odd)).result(30)
        assert failed.value.type.endswith("Odd")
        assert failed.value.message == "with a NUL \0 and a lone \ud800 surrogate"


async def test_a_result_of_no_stored_form_fails_the_workflow_only(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = shop()

    @app.workflow
    async def unfit() -> Any:
        return object()

    async with running(cluster_config, app):
        with pytest.raises(WorkflowFailed, match="SerializationError"):
            await (await client.submit(unfit)).result(30)
        assert await (await client.submit(app.workflows["mixed"], 1)).result(30) == "p2"


async def test_a_workflow_goes_on_after_a_result_timed_out(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app, gate = App(), Gate()

    @app.workflow
    async def slow() -> str:
        await gate.wait()
        return "late"

    async with running(cluster_config, app):
        handle = await client.submit(slow)
        with pytest.raises(ResultTimeout, match="has not ended within"):
            await handle.result(0.05)
        await until(lambda: gate.arrived)
        assert await handle.status() is Status.RUNNING
        gate.open()
        assert await handle.result(30) == "late"
    with pytest.raises(InvalidInput, match="timeout"):
        await handle.result(-1)


async def test_a_step_is_tried_again_and_the_number_of_tries_is_kept(
    cluster_config: ClusterConfig, client: AsyncClient
) -> None:
    app = App()
    tries: Counter[str] = Counter()

    @app.step(retry=Retry(attempts=4, initial=0.001))
    async def flaky(name: str, failures: int) -> int:
        tries[name] += 1
        if tries[name] <= failures:
            raise ConnectionError(f"try {tries[name]}")
        return tries[name]

    @app.step(retry=Retry(attempts=4, initial=0.001, stop_on=(KeyError,)))
    def stubborn(name: str) -> None:
        tries[name] += 1
        raise KeyError(name)

    @app.workflow
    async def lucky() -> int:
        return await flaky("lucky", 2)

    @app.workflow
    async def unlucky() -> list[Any]:
        try:
            await flaky("unlucky", 9)
        except StepFailed as error:
            return [error.step, error.type, error.message, error.attempts]
        return []

    @app.workflow
    async def stopped() -> None:
        await stubborn.aio("stopped")

    @app.workflow
    def stopped_plain() -> None:
        stubborn("plain")

    async with running(cluster_config, app):
        handle = await client.submit(lucky)
        assert await handle.result(30) == 3
        assert [(s.attempts, s.error) for s in await handle.steps()] == [(3, None)]
        handle = await client.submit(unlucky)
        assert await handle.result(30) == ["flaky", "ConnectionError", "try 4", 4]
        (step,) = await handle.steps()
        assert step.error is not None
        assert (step.attempts, step.error.type, step.output) == (4, "ConnectionError", None)
        for workflow, name in ((stopped, "stopped"), (stopped_plain, "plain")):
            handle = await client.submit(workflow)
            with pytest.raises(WorkflowFailed, match="KeyError: step 'stubborn'"):
                await handle.result(30)
            assert tries[name] == 1


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_replay_raises_the_same_step_failure(cluster_config: ClusterConfig, kind: str) -> None:
    """The workflow is taken from its first worker after the step has failed for good."""
    app = App()
    seen: list[tuple[str, str, str, str, int]] = []
    ran: Counter[str] = Counter()
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def failing() -> None:
        ran["failing"] += 1
        raise LookupError("not there")

    def note(error: StepFailed) -> None:
        seen.append((str(error), error.type, error.message, error.traceback, error.attempts))

    step = app.step(retry=Retry(attempts=2, initial=0.001))(failing)

    async def hold() -> None:
        ran["hold"] += 1
        await gate.wait()

    def hold_plain() -> None:
        ran["hold"] += 1
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

    if kind == "async":
        held = app.step(hold)

        @app.workflow
        async def work() -> str:
            try:
                await step.aio()
            except StepFailed as error:
                note(error)
            await held()
            return "caught"

    else:
        held_plain = app.step(hold_plain)

        @app.workflow(name="work")
        def work_plain() -> str:
            try:
                step()
            except StepFailed as error:
                note(error)
            held_plain()
            return "caught"

    async with AsyncClient(cluster_config) as client:
        handle = await client.submit("work")
        async with running(cluster_config, app) as first:
            await until(lambda: ran["hold"] == 1)
            await first.leave()
            async with running(cluster_config, app):
                await until(lambda: ran["hold"] == 2)
                gate.set()
                assert await handle.result(30) == "caught"
    assert ran["failing"] == 2
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0][1:3] == ("LookupError", "not there")
    assert seen[0][4] == 2


async def test_waiting_for_a_thousand_results_takes_few_queries(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    ask = shardflow.client.waiter.outcomes

    async def counted(shard: Any, conn: Any, wfs: Any) -> Any:
        asked.append(len(wfs))
        return await ask(shard, conn, wfs)

    monkeypatch.setattr(shardflow.client.waiter, "outcomes", counted)
    app = shop()
    async with AsyncClient(shard_config) as client:
        handles = await client.submit_many(app.workflows["mixed"].call(n) for n in range(1000))
        waiting = [asyncio.ensure_future(h.result(30)) for h in handles]
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 1.5)
        assert len(asked) < 100, f"{len(asked)} queries for 1000 results in 1.5 s"
        async with running(shard_config, app):
            assert await asyncio.gather(*waiting) == [f"p{2 * n}" for n in range(1000)]


async def test_asking_right_after_a_delivery_is_answered_too(shard_config: ClusterConfig) -> None:
    """The first one's leaving must not take the second one's place in the list of the awaited."""
    app = shop()
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(app.workflows["mixed"], 1)
        await handle.result(30)
        waiter = client.waiter(handle.shard)
        (wf,) = (row[0] for row in rows(shard_config, "SELECT wf FROM workflow"))
        deliver = waiter._deliver
        second: list[asyncio.Task[Any]] = []

        def deliver_and_ask(found: Any) -> None:
            if found and not second:
                second.append(asyncio.ensure_future(waiter.outcome(handle.id, wf)))
            deliver(found)

        waiter._deliver = deliver_and_ask  # type: ignore[method-assign]
        third = asyncio.ensure_future(waiter.outcome(handle.id, wf))
        await asyncio.wait_for(third, 30)
        assert (await asyncio.wait_for(second[0], 30)).wf == wf


async def test_calls_go_to_the_queue_they_name(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    app = App()

    @app.workflow(queue="slow")
    async def work() -> None: ...

    one_, two = await client.submit_many([work.call(), work.call().set(queue="fast")])
    three = await client.submit("work", queue="other")
    four = await client.submit_many([Call("work").set(id="by-name")])
    assert (await one_.info()).queue == "slow"
    assert (await two.info()).queue == "fast"
    assert (await three.info()).queue == "other"
    assert (await four[0].info()).queue == "default"


async def test_ids_with_a_hash_tag_share_a_shard(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    handles = await client.submit_many(mixed.call(n).set(id=f"{{tenant-7}}/{n}") for n in range(50))
    assert len({h.shard for h in handles}) == 1


async def test_an_id_lies_where_routing_says(cluster_config: ClusterConfig, client: AsyncClient) -> None:
    mixed = shop().workflows["mixed"]
    for k in range(3):
        (id,) = ids_on(cluster_config, k, 1)
        assert (await client.submit(mixed, 1, id=id)).shard == f"s{k}"
        assert rows(cluster_config, "SELECT id FROM workflow", shard=k) == [(id,)]
