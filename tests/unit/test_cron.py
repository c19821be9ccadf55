"""Cron expressions and intervals: what they mean, on clocks that change, and how wrong ones are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from shardflow import InvalidInput
from shardflow.core.cron import Every, parse, text_of


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def ticks(text: str, zone: str, after: datetime, count: int) -> list[str]:
    """The next ticks as the zone's clock shows them."""
    timing, found = parse(text, zone), list[str]()
    for _ in range(count):
        following = timing.after(after)
        assert following is not None
        after = following
        found.append(after.astimezone(ZoneInfo(zone)).isoformat(" "))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("*/20 * * * *", ["2026-01-31 23:20:00+00:00", "2026-01-31 23:40:00+00:00", "2026-02-01 00:00:00+00:00"]),
        (
            "30 9-17 * * MON-FRI",
            ["2026-02-02 09:30:00+00:00", "2026-02-02 10:30:00+00:00", "2026-02-02 11:30:00+00:00"],
        ),
        ("0 0 29 2 *", ["2028-02-29 00:00:00+00:00", "2032-02-29 00:00:00+00:00", "2036-02-29 00:00:00+00:00"]),
        ("0 12 L * *", ["2026-02-28 12:00:00+00:00", "2026-03-31 12:00:00+00:00", "2026-04-30 12:00:00+00:00"]),
        ("0 0 13 * FRI", ["2026-02-06 00:00:00+00:00", "2026-02-13 00:00:00+00:00", "2026-02-20 00:00:00+00:00"]),
        ("0 0 * * MON#1", ["2026-02-02 00:00:00+00:00", "2026-03-02 00:00:00+00:00", "2026-04-06 00:00:00+00:00"]),
        ("*/30 59 23 * * *", ["2026-01-31 23:59:00+00:00", "2026-01-31 23:59:30+00:00", "2026-02-01 23:59:00+00:00"]),
        ("@weekly", ["2026-02-01 00:00:00+00:00", "2026-02-08 00:00:00+00:00", "2026-02-15 00:00:00+00:00"]),
        ("@Hourly", ["2026-02-01 00:00:00+00:00", "2026-02-01 01:00:00+00:00", "2026-02-01 02:00:00+00:00"]),
        ("every 1h 30m", ["2026-02-01 00:00:00+00:00", "2026-02-01 01:30:00+00:00", "2026-02-01 03:00:00+00:00"]),
        ("@every 90s", ["2026-01-31 23:01:30+00:00", "2026-01-31 23:03:00+00:00", "2026-01-31 23:04:30+00:00"]),
    ],
)
def test_ticks_come_when_the_text_says(text: str, expected: list[str]) -> None:
    assert ticks(text, "UTC", at(2026, 1, 31, 23), 3) == expected


def test_a_named_time_that_the_clock_leaves_out_comes_when_it_goes_on() -> None:
    assert ticks("30 2 * * *", "Europe/Vienna", at(2026, 3, 28, 12), 2) == [
        "2026-03-29 03:00:00+02:00",
        "2026-03-30 02:30:00+02:00",
    ]


def test_named_times_that_are_left_out_together_are_one_tick() -> None:
    assert ticks("0,30 2,3 * * *", "Europe/Vienna", at(2026, 3, 28, 12), 3) == [
        "2026-03-29 03:00:00+02:00",
        "2026-03-29 03:30:00+02:00",
        "2026-03-30 02:00:00+02:00",
    ]


def test_a_named_time_that_the_clock_shows_twice_comes_the_first_time_only() -> None:
    assert ticks("30 2 * * *", "Europe/Vienna", at(2026, 10, 24, 12), 2) == [
        "2026-10-25 02:30:00+02:00",
        "2026-10-26 02:30:00+01:00",
    ]
    # Asked between the first and the second time, it does not come any more.
    assert ticks("30 2 * * *", "Europe/Vienna", at(2026, 10, 25, 1, 10), 1) == ["2026-10-26 02:30:00+01:00"]


def test_a_rule_for_every_hour_follows_the_clock_as_it_goes() -> None:
    assert ticks("30 * * * *", "Europe/Vienna", at(2026, 10, 25, 0), 3) == [
        "2026-10-25 02:30:00+02:00",
        "2026-10-25 02:30:00+01:00",
        "2026-10-25 03:30:00+01:00",
    ]
    assert ticks("30 * * * *", "Europe/Vienna", at(2026, 3, 29, 0), 2) == [
        "2026-03-29 01:30:00+01:00",
        "2026-03-29 03:30:00+02:00",
    ]


def test_a_day_that_a_zone_left_out_has_its_tick_when_the_next_begins() -> None:
    assert ticks("0 12 * * *", "Pacific/Apia", at(2011, 12, 30, 0), 3) == [
        "2011-12-31 00:00:00+14:00",
        "2011-12-31 12:00:00+14:00",
        "2012-01-01 12:00:00+14:00",
    ]


def test_fractions_of_a_second_do_not_hide_or_repeat_a_tick() -> None:
    timing = parse("* * * * * *", "Europe/Vienna")
    assert timing.after(at(2026, 1, 1, 0, 0, 0, 999_999)) == at(2026, 1, 1, 0, 0, 1)
    assert timing.after(at(2026, 1, 1, 0, 0, 1)) == at(2026, 1, 1, 0, 0, 2)
    every = Every(timedelta(seconds=1))
    assert every.after(at(2026, 1, 1, 0, 0, 0, 1)) == at(2026, 1, 1, 0, 0, 1)
    assert every.after(at(2026, 1, 1)) == at(2026, 1, 1, 0, 0, 1)


def test_no_tick_is_looked_for_beyond_the_calendar() -> None:
    assert parse("0 0 1 1 *", "UTC").after(at(9999, 6, 1)) is None


@pytest.mark.parametrize(
    ("text", "zone", "said"),
    [
        ("61 * * * *", "UTC", "bad minute"),
        ("* * * *", "UTC", "wrong number of fields"),
        ("", "UTC", "wrong number of fields"),
        ("0 0 31 2 *", "UTC", "bad day-of-month"),
        ("* * */20 * 1L", "UTC", "never come"),
        ("@sometimes", "UTC", "@daily"),
        ("every now and then", "UTC", "every 90s"),
        ("every 1.5s", "UTC", "every 90s"),
        ("every 0s", "UTC", "from 1 s"),
        ("every 11000d", "UTC", "ten years"),
        ("every 99999999999999999999w", "UTC", "too long"),
        ("* * * * *", "Europe/Wien", "'Europe/Vienna'"),
        ("* * * * *", "../etc/passwd", "no time zone"),
        ("* * * * *", "", "no time zone"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_reason(text: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse(text, zone)


def test_an_interval_has_a_text_that_means_the_same() -> None:
    timing = parse(text_of(timedelta(hours=1, seconds=30)), "UTC")
    assert isinstance(timing, Every)
    assert timing.interval == timedelta(seconds=3630)
    with pytest.raises(InvalidInput, match="whole seconds"):
        text_of(timedelta(milliseconds=1500))
