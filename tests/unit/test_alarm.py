"""When a commit loop looks for workflows whose time has come."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from shardflow.worker.alarm import CHEAP, COST_FACTOR, EVERY, FAR, OVERLAP, SELDOM, Alarm

#: What the server's clock shows at a look.
THEN = datetime(2026, 1, 1, tzinfo=UTC)
#: Where the next look begins then.
MARK = THEN - timedelta(seconds=OVERLAP)


class Clock(asyncio.AbstractEventLoop):
    now = 100.0

    def time(self) -> float:
        return self.now


def rested(took: float = 0.0) -> tuple[Any, Alarm]:
    """After two looks from the start that took so many seconds each."""
    clock = Clock()
    alarm = Alarm(clock)
    for _ in range(2):
        clock.now += SELDOM
        assert alarm.rings(clock.now)
        assert alarm.since(clock.now) is None
        alarm.looked(None, THEN, None, more=False, took=took)
        alarm.chores_done(took)
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


def test_a_look_begins_where_the_last_one_ended_and_from_the_start_now_and_then() -> None:
    clock, alarm = rested()
    assert alarm.since(clock.now + EVERY * 0.9) == MARK
    assert alarm.since(clock.now + EVERY) is None, "what others suspended is never looked for"


def test_a_look_from_the_start_is_the_rarer_the_longer_it_takes_and_chores_are_likewise() -> None:
    clock, alarm = rested(took=0.1)
    assert alarm.since(clock.now + 0.09 * COST_FACTOR) == MARK
    assert not alarm.chores(clock.now + 0.09 * COST_FACTOR)
    assert alarm.since(clock.now + 0.1 * COST_FACTOR) is None
    assert alarm.chores(clock.now + 0.1 * COST_FACTOR)


def test_chores_go_on_at_once_where_there_is_more_and_they_are_cheap() -> None:
    clock, alarm = rested()
    assert alarm.chores_done(CHEAP / 2, more=True)
    assert alarm.rings(clock.now)
    assert alarm.chores(clock.now)
    for took, more in ((CHEAP, True), (CHEAP / 2, False)):
        assert not alarm.chores_done(took, more=more)
        assert not alarm.chores(clock.now)


def test_what_a_full_look_left_is_looked_at_again_from_the_same_time() -> None:
    clock, alarm = rested(took=0.1)
    later = THEN.replace(year=2027)
    alarm.looked(THEN, later, None, more=True, took=0.0)
    assert alarm.since(clock.now) == MARK, "it steps over what it was not allowed to wake"
    assert alarm.rings(clock.now)
    alarm.looked(THEN, later, None, more=False, took=0.0)
    assert alarm.since(clock.now) == later - timedelta(seconds=OVERLAP)
    clock.now += 0.1 * COST_FACTOR
    alarm.looked(None, later, None, more=True, took=0.0)
    assert alarm.since(clock.now) is None, "half a look from the start counts as one"


def test_on_a_new_connection_it_looks_from_the_start_at_once() -> None:
    clock, alarm = rested(took=0.1)
    alarm.look_from_the_start()
    assert alarm.rings(clock.now)
    assert alarm.since(clock.now) is None


def test_what_somebody_else_found_is_attended_to_at_once() -> None:
    clock, alarm = rested(took=0.1)
    assert not alarm.chores(clock.now)
    alarm.hint(None, more=True)
    assert alarm.chores(clock.now)
    alarm.chores_done(0.1)
    assert not alarm.chores(clock.now)


def test_a_server_that_stood_still_once_does_not_slow_down_what_comes() -> None:
    clock, alarm = rested()
    alarm.looked(None, THEN, None, more=False, took=30.0)
    alarm.chores_done(30.0)
    assert alarm.since(clock.now + EVERY) is None
    assert alarm.chores(clock.now + EVERY)


def test_however_long_looks_take_they_are_repeated() -> None:
    clock, alarm = rested(took=1_000.0)
    assert alarm.since(clock.now + SELDOM * 0.9) == MARK
    assert alarm.since(clock.now + SELDOM) is None
    assert alarm.chores(clock.now + SELDOM)


def test_what_somebody_else_saw_behind_the_mark_is_looked_for_from_the_start() -> None:
    clock, alarm = rested(took=1.0)
    alarm.hint(-OVERLAP / 2, more=False)
    assert alarm.since(clock.now) == MARK, "a look that overlaps the last one finds it"
    alarm.hint(-OVERLAP, more=False)
    assert alarm.goes_off(clock.now)
    assert alarm.rings(clock.now)
    assert alarm.since(clock.now) is None
    alarm.looked(None, THEN, None, more=False, took=1.0)
    assert alarm.since(clock.now) == MARK


def test_what_becomes_known_while_a_look_is_under_way_is_not_forgotten() -> None:
    clock, alarm = rested()
    clock.now += EVERY
    assert alarm.rings(clock.now)
    alarm.due_in(2.0)
    alarm.hint(None, more=True)
    alarm.looked(THEN, THEN, 7.0, more=False, took=0.0)
    assert alarm.patience(clock.now) == 2.0, "it looked before that was suspended"
    assert alarm.rings(clock.now)
    alarm.looked(THEN, THEN, 7.0, more=False, took=0.0)
    assert alarm.patience(clock.now) == 7.0
