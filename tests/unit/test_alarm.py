"""When a commit loop looks for workflows whose time has come."""

from __future__ import annotations

import asyncio
from typing import Any

from shardflow.worker.alarm import EVERY, FAR, Alarm


class Clock(asyncio.AbstractEventLoop):
    now = 100.0

    def time(self) -> float:
        return self.now


def rested() -> tuple[Any, Alarm]:
    clock: Any = Clock()
    alarm = Alarm(clock)
    assert alarm.rings(clock.now)
    alarm.next_is(None, more=False)
    assert alarm.patience(clock.now) == FAR
    return clock, alarm


def test_somebody_elses_look_lets_it_ring_at_the_next_turn() -> None:
    clock, alarm = rested()
    alarm.hint(None, more=False)
    assert not alarm.rings(clock.now + EVERY / 2)
    alarm.hint(None, more=True)
    alarm.hint(None, more=False)
    assert alarm.rings(clock.now + EVERY / 2), "what was found is forgotten"


def test_somebody_elses_look_brings_the_time_nearer_and_never_puts_it_off() -> None:
    clock, alarm = rested()
    alarm.hint(7.0, more=False)
    assert alarm.patience(clock.now) == 7.0
    alarm.due_in(2.0)
    for seconds in (5.0, None):
        alarm.hint(seconds, more=False)
        assert alarm.patience(clock.now) == 2.0, "it looked before that was suspended"
