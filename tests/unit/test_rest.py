"""How a commit loop with nothing to do has others look."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from shardflow.worker.alarm import COST_FACTOR, Alarm
from shardflow.worker.rest import Rest


class Clock(asyncio.AbstractEventLoop):
    now = 100.0

    def time(self) -> float:
        return self.now


def resting() -> tuple[Clock, Rest, list[float]]:
    clock, rests = Clock(), list[float]()
    claims = SimpleNamespace(rests=True, rest=rests.append)
    commit: Any = SimpleNamespace(
        loop=clock, leaving=False, claims=claims, control=SimpleNamespace(lanes=["suspects"]), wake=lambda: None
    )
    rest = Rest(commit, SimpleNamespace(set=lambda: None), Alarm(clock), ["lane"], 1.0)  # type: ignore[arg-type]
    return clock, rest, rests


def test_looks_into_the_lanes_are_the_rarer_the_longer_they_take() -> None:
    clock, rest, rests = resting()
    for pause in (0.5, 0.1 * COST_FACTOR, 0.5):  # what took long once may have been the server's pause
        assert rest.lanes == ["lane", "suspects"]
        clock.now += 0.1 if len(rests) < 2 else 0.001
        rest.looked(False, None)
        clock.now += pause * 0.9
        assert rest.lanes is None
        clock.now += pause * 0.11
    assert rest.lanes is not None
    assert len(rests) == 3, "the loop looks itself although somebody has"


def test_what_was_not_asked_is_not_taken_for_an_answer() -> None:
    clock, rest, rests = resting()
    rest.looked(None, None)
    assert not rests
    assert rest.lanes is not None
    clock.now += 10
    rest.looked(None, None)
    assert rest.lanes is not None
