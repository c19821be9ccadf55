"""`shardflow.testing.Inline`: workflows without a database, on a clock that jumps."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from unittest.mock import AsyncMock, Mock

import pytest

import shardflow
from shardflow import (
    App,
    Retry,
    Status,
    WorkflowFailed,
    blocking,
)
from shardflow.testing import Inline, run_inline

START = datetime(2030, 1, 31, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass
class Order:
    id: str
    total: Decimal


def shop() -> App:
    app = App()

    @app.step
    async def charge(order: Order) -> str:
        raise AssertionError("the real thing")

    @app.workflow
    async def checkout(order: Order) -> tuple[str, datetime]:
        payment = await charge(order)
        await shardflow.sleep(timedelta(days=30))
        return payment, shardflow.now()

    return app


async def test_thirty_days_take_no_time() -> None:
    app = shop()
    began = time.monotonic()
    async with Inline(app, start=START) as env:
        env.fake(app.steps["charge"], lambda order: f"paid {order.total + 1}")
        result = await env.run("checkout", Order("1", Decimal("2.50")))
        assert result == ("paid 3.50", START + 30 * DAY)
        assert env.now() == START + 30 * DAY
        assert [step.name for step in env.steps("checkout-1")] == ["charge", "shardflow.sleep", "shardflow.now"]
    assert time.monotonic() - began < 5


def test_from_a_plain_test() -> None:
    app = App()

    @app.step
    def half(n: int) -> int:
        return n // 2

    @app.workflow
    def work(n: int) -> int:
        blocking.sleep(DAY)
        return half(n) + half(n)

    assert run_inline(work, 5) == 4
    assert run_inline(work.call(7)) == 6


async def test_run_inline_says_what_to_do_in_a_loop() -> None:
    with pytest.raises(shardflow.UsageError, match="Inline"):
        run_inline(shop().workflows["checkout"], None)


async def test_retries_and_their_pauses() -> None:
    app = App()
    tries: list[datetime] = []

    @app.step(retry=Retry(attempts=4, initial=1, factor=60, maximum=7200, jitter=0))
    async def flaky() -> int:
        tries.append(shardflow.now())
        if len(tries) < 4:
            raise ValueError("not yet")
        return len(tries)

    @app.workflow
    async def work() -> int:
        return await flaky()

    async with Inline(start=START) as env:
        assert await env.run(work) == 4
        assert env.steps("work-1")[0].attempts == 4
    seconds = [(at - START).total_seconds() for at in tries]
    assert seconds == pytest.approx([0, 1, 61, 3661])


async def test_retries_of_a_plain_workflow() -> None:
    app = App()
    tries: list[datetime] = []

    @app.step(retry=Retry(attempts=3, initial=2, jitter=0))
    def flaky() -> int:
        tries.append(shardflow.now())
        if len(tries) < 3:
            raise ValueError("not yet")
        return len(tries)

    @app.workflow
    def work() -> int:
        return flaky()

    async with Inline(start=START) as env:
        assert await env.run(work) == 3
    assert [(at - START).total_seconds() for at in tries] == pytest.approx([0, 2, 6])


async def test_a_failure_has_the_exception_as_its_cause() -> None:
    app = App()

    @app.step
    async def broken() -> None:
        raise KeyError("gone")

    @app.workflow
    async def work() -> None:
        await broken()

    async with Inline() as env:
        with pytest.raises(WorkflowFailed, match="gone") as caught:
            await env.run(work)
        assert caught.value.type == "KeyError"
        assert isinstance(caught.value.__cause__, shardflow.StepFailed)
        assert isinstance(caught.value.__cause__.__cause__, KeyError)


async def test_values_go_through_the_codecs() -> None:
    app = App()

    @app.step
    async def odd() -> object:
        return object()

    @app.workflow
    async def work() -> None:
        await odd()

    @app.workflow
    async def given(value: tuple[int, ...]) -> tuple[int, ...]:
        return value

    async with Inline() as env:
        with pytest.raises(WorkflowFailed, match="odd"):
            await env.run(work)
        with pytest.raises(shardflow.SerializationError):
            await env.start(given, object())
        assert await env.run(given, [1, 2]) == (1, 2)


def approvals() -> App:
    app = App()

    @app.workflow
    async def approval() -> str:
        await shardflow.set_event("state", "asked")
        answer = await shardflow.receive("answer", timeout=3 * DAY, type=bool)
        await shardflow.set_event("state", "answered")
        return {None: "late", True: "yes", False: "no"}[answer]

    return app


async def test_messages_and_events() -> None:
    app = approvals()
    async with Inline(app, start=START) as env:
        one = await env.start(app.workflows["approval"].call().set(id="one"))
        assert await env.event("one", "state") == "asked"
        assert await env.event("one", "nothing") is None
        assert await env.status("one") is Status.SUSPENDED
        await env.advance(2 * DAY)
        assert one.status is Status.SUSPENDED
        await env.send("one", "answer", True)
        assert await one.result() == "yes"
        assert await env.event("one", "state") == "answered"
        two = await env.start("approval")
        assert await two.result() == "late"
        assert env.now() == START + 5 * DAY
        with pytest.raises(shardflow.WorkflowNotFound):
            await env.send("three", "answer", True)


async def test_time_does_not_pass_before_a_result_is_waited_for() -> None:
    app = approvals()
    async with Inline(app, start=START) as env:
        one = await env.start("approval")
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert env.now() == START
        await env.send(one.id, "answer", False)
        assert await one.result() == "no"


async def test_a_key_is_received_once() -> None:
    app = App()

    @app.workflow
    async def listens() -> list[object]:
        return [await shardflow.receive("n"), await shardflow.receive("n", timeout=60)]

    async with Inline() as env:
        handle = await env.start(listens)
        await env.send(handle.id, "n", 1, key="a")
        await env.send(handle.id, "n", 2, key="a")
        assert await handle.result() == [1, None]


async def test_children_and_messages_between_workflows() -> None:
    app = App()

    @app.workflow
    async def child(n: int, boss: str) -> int:
        await shardflow.sleep(n * DAY)
        await shardflow.send(boss, "done", n)
        if n == 3:
            raise ValueError("three")
        return n * n

    @app.workflow
    async def parent(count: int) -> tuple[list[int], list[int], str]:
        boss = shardflow.info().id
        handles = await shardflow.start_many(child.call(n, boss) for n in range(count))
        squares = await shardflow.gather(handles)
        order = [await shardflow.receive("done", type=int) for _ in range(count)]
        failing = await shardflow.start(child, 3, boss)
        try:
            await failing.result()
        except WorkflowFailed as error:
            return squares, order, error.type
        raise AssertionError

    async with Inline(start=START) as env:
        assert await env.run(parent, 3) == ([0, 1, 4], [0, 1, 2], "ValueError")
        assert env.now() == START + 5 * DAY


async def test_a_faked_child() -> None:
    app = App()

    @app.workflow
    async def ship(item: str) -> str:
        raise AssertionError

    @app.workflow
    async def order() -> str:
        return await (await shardflow.start(ship, "book")).result()

    async with Inline() as env:
        env.fake(ship, lambda item: f"shipped {item}")
        assert await env.run(order) == "shipped book"


async def test_mocks_stand_in_for_steps() -> None:
    app = App()

    @app.step(retry=Retry(attempts=2))
    async def charge(card: str, cents: int) -> int:
        raise AssertionError

    @app.step
    def mail(to: str) -> None:
        raise AssertionError

    @app.workflow
    async def work() -> int:
        paid = await charge("card", cents=5)
        await mail.aio("me")
        return paid

    async with Inline() as env:
        charging, mailing = AsyncMock(side_effect=[OSError("away"), 7]), Mock(return_value=None)
        env.fake(charge, charging)
        env.fake(mail, mailing)
        assert await env.run(work) == 7
    assert charging.await_count == 2
    charging.assert_awaited_with("card", cents=5)
    mailing.assert_called_once_with("me")
    with pytest.raises(shardflow.InvalidInput):
        env.fake("charge", mailing)  # type: ignore[call-overload]


async def test_a_plain_workflow_with_children_and_messages() -> None:
    app = App()

    @app.workflow
    def child(n: int) -> int:
        blocking.sleep(DAY)
        return n + 1

    @app.workflow
    def parent() -> list[int]:
        handles = blocking.start_many(child, range(3))
        return [*blocking.gather(handles), blocking.receive("n", type=int)]

    async with Inline() as env:
        handle = await env.start(parent)
        await env.advance(2 * DAY)
        await env.send(handle.id, "n", 9)
        assert await handle.result() == [1, 2, 3, 9]


async def test_branches_wait_at_the_same_time() -> None:
    app = App()

    @app.workflow
    async def work() -> list[float]:
        async def nap(days: int) -> float:
            await shardflow.sleep(days * DAY)
            return (shardflow.now() - START) / DAY

        return list(await asyncio.gather(nap(3), nap(1), nap(2)))

    async with Inline(start=START) as env:
        assert await env.run(work) == [3.0, 1.0, 2.0]
        assert env.now() == START + 3 * DAY


async def test_real_waits_are_real() -> None:
    app = App()

    @app.step
    async def ask() -> str:
        await asyncio.sleep(0.03)
        return "answer"

    @app.workflow
    async def work() -> tuple[str, float]:
        asked = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        return await asked, (shardflow.now() - START).total_seconds()

    async with Inline(start=START) as env:
        assert await env.run(work) == ("answer", 0.0)


async def test_a_transaction_is_faked() -> None:
    app = App()

    @app.transaction
    async def debit(conn: object, cents: int) -> int:
        raise AssertionError

    @app.workflow
    async def work() -> int:
        return await debit(5)

    async with Inline() as env:
        with pytest.raises(WorkflowFailed, match="needs a database"):
            await env.run(work)
        env.fake(debit, lambda cents: cents + 1)
        assert await env.run(work) == 6
