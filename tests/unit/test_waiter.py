"""When a client asks for a result for the first time, and then again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import shardflow.client.waiter
from shardflow import Status
from shardflow.client.waiter import FIRST, FIRST_MOST, LEAST, MOST, NAMES, SHARE, TICK, Awaited, Habits, Waiter
from shardflow.storage.submissions import Outcome


@pytest.mark.parametrize("takes", [0.002, 0.006, 0.02])
def test_the_first_ask_comes_about_when_others_of_that_name_have_ended(takes: float) -> None:
    habits = Habits()
    for _ in range(300):
        habits.asked("work", ended=habits.first("work") >= takes)
    assert takes * 0.85 <= habits.first("work") <= takes * 1.1
    assert habits.first("another") == FIRST


def test_it_is_neither_too_soon_nor_late() -> None:
    habits = Habits()
    for _ in range(200):
        habits.asked("long", ended=False)
        habits.asked("short", ended=True)
    assert habits.first("long") == FIRST_MOST
    assert habits.first("short") == LEAST


def test_it_remembers_some_names_only() -> None:
    habits = Habits()
    for n in range(3 * NAMES):
        habits.asked(f"n{n}", ended=True)
    assert len(habits._first) <= NAMES


def test_what_was_submitted_long_ago_is_asked_for_at_once_and_teaches_nothing() -> None:
    assert (Awaited(1, 10.0, 9.999, "work", 0.004).due, Awaited(1, 10.0, 9.999, "work", 0.004).name) == (
        10.003,
        "work",
    )
    for submitted in (None, 1.0):
        old = Awaited(1, 10.0, submitted, "work", 0.004)
        assert (old.due, old.name) == (10.0, None)


def test_the_pauses_grow_with_the_age_of_what_is_awaited() -> None:
    awaited = Awaited(1, 10.0, 10.0, "work", 0.004)
    for age, pause in ((0.0, LEAST), (1.0, SHARE), (1000.0, MOST)):
        awaited.postpone(10.0 + age)
        assert awaited.due == pytest.approx(10.0 + age + pause)


async def test_no_ask_is_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is due sooner than a timer can tell is asked for at once."""
    asked: list[list[int]] = []

    async def outcomes(shard: Any, conn: Any, wfs: list[int]) -> list[Outcome]:
        asked.append(wfs)
        return [Outcome(wf, f"w{wf}", Status.SUCCEEDED, b"1", None) for wf in wfs]

    @asynccontextmanager
    async def connection() -> Any:
        yield None

    monkeypatch.setattr(shardflow.client.waiter, "outcomes", outcomes)
    monkeypatch.setattr(shardflow.client.waiter, "FIRST", TICK * 0.45)
    pool: Any = SimpleNamespace(shard=None, connection=connection)
    waiter = Waiter(pool)
    for wf in range(20):
        await waiter.outcome(f"w{wf}", wf, f"name {wf}", asyncio.get_running_loop().time())
    await waiter.close()
    assert asked == [[wf] for wf in range(20)]
