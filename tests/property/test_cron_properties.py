"""Ticks on the clocks of all zones, compared with a clock that is read minute by minute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardflow import InvalidInput
from shardflow.core.cron import parse

MINUTE = timedelta(minutes=1)
KINDS = ("hours", "minutes", "neither")
FIRST, LAST = datetime(2020, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
#: Around a change of the clock so much is read; longer than any zone puts its clock forward or back in these years.
AROUND = timedelta(hours=5)


def shown(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.astimezone(zone).replace(tzinfo=None)


@cache
def changes() -> list[tuple[str, datetime]]:
    """Every change of a clock in these years, to the minute, with one zone that has it."""
    found: dict[tuple[datetime, timedelta, timedelta], str] = {}
    for name in sorted(available_timezones()):
        zone, low = ZoneInfo(name), FIRST
        before = low.astimezone(zone).utcoffset()
        while low < LAST:
            high = low + timedelta(days=3)
            after = high.astimezone(zone).utcoffset()
            if before != after:
                left, right = low, high
                while right - left > MINUTE:
                    middle = left + (right - left) // 2 // MINUTE * MINUTE
                    same = middle.astimezone(zone).utcoffset() == before
                    left, right = (middle, right) if same else (left, middle)
                found.setdefault((right, before or timedelta(), after or timedelta()), name)
            low, before = high, after
    return [(name, moment) for (moment, _, _), name in found.items()]


def minutes(start: datetime, end: datetime) -> Iterator[datetime]:
    while start <= end:
        yield start
        start += MINUTE


def ticks(text: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    timing, found = parse(text, zone), list[datetime]()
    tick = timing.after(start)
    while tick is not None and tick <= end:
        found.append(tick)
        tick = timing.after(tick)
    return found


def followed(zone: ZoneInfo, minute: set[int], hour: set[int], start: datetime, end: datetime) -> list[datetime]:
    """A rule that follows the clock: whenever it shows one of the times."""
    return [
        moment
        for moment in minutes(start + MINUTE, end)
        if shown(moment, zone).minute in minute and shown(moment, zone).hour in hour
    ]


def named(zone: ZoneInfo, minute: set[int], hour: set[int], start: datetime, end: datetime) -> list[datetime]:
    """A rule that names its times: each time, when the clock first shows it or a later one."""
    reached: datetime | None = None
    found = []
    for moment in minutes(start - AROUND, end):
        clock = shown(moment, zone)
        if reached is not None and clock > reached:
            passed = minutes(reached.replace(tzinfo=UTC) + MINUTE, clock.replace(tzinfo=UTC))
            if moment > start and any(each.minute in minute and each.hour in hour for each in passed):
                found.append(moment)
        reached = clock if reached is None else max(reached, clock)
    return found


def check(zone: str, change: datetime, minute: Sequence[int], hour: Sequence[int], kind: str) -> None:
    """Compares the ticks around a change. `kind`: whether the hours are starred, the minutes, or neither."""
    start, end = change - AROUND, change + AROUND
    minutes_text, hours_text = ",".join(map(str, minute)), ",".join(map(str, hour))
    if kind == "hours":
        text = f"{minutes_text} */1 * * *"
        expected = followed(ZoneInfo(zone), set(minute), set(range(24)), start, end)
    elif kind == "minutes":
        text = f"*/7 {hours_text} * * *"
        expected = followed(ZoneInfo(zone), set(range(0, 60, 7)), set(hour), start, end)
    else:
        text = f"{minutes_text} {hours_text} * * *"
        expected = named(ZoneInfo(zone), set(minute), set(hour), start, end)
    assert ticks(text, zone, start, end) == expected, f"{text} in {zone} around {change}"


def test_there_are_changes_to_look_at() -> None:
    found = changes()
    assert len(found) > 400
    steps = set()
    for name, change in found:
        zone = ZoneInfo(name)
        steps.add(shown(change, zone) - shown(change - MINUTE, zone) - MINUTE)
    hour = timedelta(hours=1)
    assert {hour, -hour, hour / 2, -hour / 2, 2 * hour, -2 * hour} <= steps


@pytest.mark.parametrize("kind", KINDS)
def test_around_every_change_of_every_clock_ticks_are_those_of_a_clock_that_is_watched(kind: str) -> None:
    for zone, change in changes():
        clock = shown(change, ZoneInfo(zone))
        hours = sorted({(clock + timedelta(hours=step)).hour for step in (-2, -1, 0, 1)})
        check(zone, change, [0, 10, 25], hours, kind)


@settings(max_examples=150, deadline=None)
@given(
    change=st.integers(0, 100_000),
    minute=st.sets(st.integers(0, 59), min_size=1, max_size=4),
    hour=st.sets(st.integers(0, 23), min_size=1, max_size=24),
    kind=st.sampled_from(KINDS),
)
def test_any_rule_ticks_as_a_clock_that_is_watched(change: int, minute: set[int], hour: set[int], kind: str) -> None:
    zone, moment = changes()[change % len(changes())]
    check(zone, moment, sorted(minute), sorted(hour), kind)


@settings(max_examples=150, deadline=None)
@given(
    zone=st.sampled_from(sorted(available_timezones())),
    text=st.sampled_from(["*/7 * * * *", "15 3 * * *", "0 0 1 * *", "5,35 1-3 * * SUN", "@daily", "every 17m"]),
    start=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    further=st.timedeltas(timedelta(0), timedelta(days=3)),
)
def test_the_next_tick_is_later_and_the_first_one(zone: str, text: str, start: datetime, further: timedelta) -> None:
    timing = parse(text, zone)
    tick = timing.after(start)
    assert tick is not None
    assert tick > start
    between = min(start + further, tick - timedelta(microseconds=1))
    assert timing.after(between) == tick


FIELD = st.text(alphabet="0123456789*/-,#LWMONFRI? ", max_size=8)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=30), st.lists(FIELD, min_size=5, max_size=6).map(" ".join)))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    try:
        timing = parse(text, "America/St_Johns")
    except InvalidInput:
        return
    start = datetime(2026, 1, 1, tzinfo=UTC)
    tick = timing.after(start)
    assert tick is None or tick > start
