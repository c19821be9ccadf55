"""Which ticks of a schedule are due, by its policies; and what a definition is made of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shardflow import App, InvalidInput, UsageError
from shardflow.core.codec import DEFAULT, CallCodec
from shardflow.core.cron import parse
from shardflow.core.options import NONE, Options
from shardflow.core.schedule import (
    GRACE,
    MAX_NAME,
    Definition,
    Due,
    between,
    define,
    due,
    input_of,
    options_of,
    tick_id,
    without_overlap,
)

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOURLY = parse("0 * * * *", "UTC")
SECONDLY = parse("* * * * * *", "UTC")


def hours(*steps: int) -> tuple[datetime, ...]:
    return tuple(NOON + timedelta(hours=step) for step in steps)


def seconds(*steps: float) -> tuple[datetime, ...]:
    return tuple(NOON + timedelta(seconds=step) for step in steps)


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_tick_that_is_noticed_within_the_minute_is_due_whatever_the_policy(missed: str) -> None:
    late = NOON + GRACE - timedelta(seconds=1)
    assert due(HOURLY, NOON - timedelta(minutes=5), late, missed) == Due((NOON,), late, *hours(1))


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_before_its_time_nothing_is_due(missed: str) -> None:
    now = NOON - timedelta(milliseconds=1)
    assert due(HOURLY, NOON - timedelta(hours=1), now, missed) == Due((), now, NOON)


def test_missed_ticks_are_left_out_or_the_last_or_all_of_them_come() -> None:
    since, now = NOON - timedelta(hours=3), NOON + timedelta(minutes=30)
    assert due(HOURLY, since, now, "skip") == Due((), now, *hours(1))
    assert due(HOURLY, since, now, "latest") == Due((NOON,), now, *hours(1))
    assert due(HOURLY, since, now, "all") == Due(hours(-2, -1, 0), now, *hours(1))


def test_a_tick_of_the_last_minute_stands_for_the_missed_ones() -> None:
    now = NOON + timedelta(seconds=10)
    assert due(HOURLY, NOON - timedelta(hours=3), now, "latest").ticks == (NOON,)
    rule = parse("every 20s", "UTC")
    assert due(rule, NOON - timedelta(hours=3), now, "latest").ticks == seconds(-40, -20, 0)


def test_the_last_missed_tick_is_found_however_long_ago() -> None:
    yearly = parse("@yearly", "UTC")
    found = due(yearly, datetime(1999, 6, 1, tzinfo=UTC), NOON, "latest")
    assert found.ticks == (datetime(2026, 1, 1, tzinfo=UTC),)
    assert due(SECONDLY, datetime(1999, 6, 1, tzinfo=UTC), NOON, "latest").ticks[-1] == NOON
    leap = parse("0 0 29 2 *", "UTC")
    assert due(leap, datetime(2025, 1, 1, tzinfo=UTC), NOON, "latest").ticks == ()


def test_many_ticks_come_in_portions_and_none_is_lost() -> None:
    since, now = NOON - timedelta(seconds=25), NOON
    ticks: list[datetime] = []
    looks = 0
    while True:
        found = due(SECONDLY, since, now, "all", most=10)
        assert len(found.ticks) <= 10
        ticks += found.ticks
        since, looks = found.decided_to, looks + 1
        if found.next_at is not None and found.next_at > now:
            break
        assert found.next_at == since + timedelta(seconds=1)
    assert (ticks, looks) == ([NOON - timedelta(seconds=s) for s in range(24, -1, -1)], 3)


def test_a_clock_that_is_set_back_repeats_nothing() -> None:
    back = NOON - timedelta(hours=2)
    assert due(HOURLY, NOON, back, "all") == Due((), NOON, *hours(1))


def test_without_overlap_only_the_newest_tick_is_left_and_none_while_one_is_under_way() -> None:
    found = Due(hours(0, 1, 2), NOON, None)
    assert without_overlap(found, busy=False).ticks == hours(2)
    assert without_overlap(found, busy=True) == Due((), NOON, None)
    assert without_overlap(Due((), NOON, None), busy=False).ticks == ()


def test_a_range_includes_its_start_and_not_its_end() -> None:
    assert between(HOURLY, NOON, *hours(2), 10) == list(hours(0, 1))
    assert between(HOURLY, *hours(2), NOON, 10) == []
    with pytest.raises(InvalidInput, match="more than 2 ticks"):
        between(HOURLY, NOON, *hours(3), 2)
    with pytest.raises(InvalidInput, match="time zone"):
        between(HOURLY, datetime(2026, 5, 1), *hours(3), 2)


def test_a_ticks_id_is_its_instant_whatever_the_clock_shows() -> None:
    tick = datetime(2026, 10, 25, 2, 30, tzinfo=UTC)
    vienna = parse("30 * * * *", "Europe/Vienna").after(tick - timedelta(minutes=1))
    assert vienna is not None
    assert tick_id("nightly", vienna) == "schedule:nightly:2026-10-25T02:30:00Z"


def no_time() -> None: ...


def only_time(when: datetime) -> None: ...


def both(when: datetime, what: str) -> None: ...


def made(function: Any, *args: Any, when: Any = "0 3 * * *", zone: str = "UTC", **changes: Any) -> Definition:
    options = changes.pop("options", NONE)
    policies = {"missed": "skip", "overlap": "allow", **changes}
    return define(policies.pop("name", "x"), when, zone, "w", "q", CallCodec(function), args, options, **policies)


def test_a_workflow_gets_the_time_where_it_cannot_be_called_without() -> None:
    assert [made(no_time).pass_time, made(only_time).pass_time, made(only_time, NOON).pass_time] == [
        False,
        True,
        False,
    ]
    definition = made(both, "report", zone="Europe/Vienna")
    assert input_of(definition, NOON, DEFAULT) == b'[["2026-05-01T14:00:00+02:00","report"],{}]'
    (when, what), _ = CallCodec(both).decode_call(input_of(definition, NOON, DEFAULT))
    assert (when, what) == (NOON, "report")
    assert input_of(made(only_time, NOON), NOON, DEFAULT) == made(only_time, NOON).input


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"missed": "lates"}, 'did you mean "latest"'),
        ({"overlap": "never"}, "'allow', 'skip'"),
        ({"name": ""}, "must not be empty"),
        ({"name": "x" * (MAX_NAME + 1)}, "more than"),
        ({"when": "* *"}, "not a cron expression"),
        ({"when": True}, "not bool"),
        ({"when": 1.5}, "whole seconds"),
        ({"when": -1}, "0 or more"),
        ({"zone": "Mars/Base"}, "no time zone"),
        ({"options": Options(id="x")}, "leave out id, after"),
        ({"options": Options(after=("x",))}, "leave out id, after"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        made(no_time, **wrong)


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="tick's time"):
        made(both)
    with pytest.raises(UsageError):
        made(no_time, 1, 2)
    with pytest.raises(InvalidInput, match="args must be"):
        define("x", 5, "UTC", "w", "q", CallCodec(both), "text", NONE, "skip", "allow")


def test_the_options_of_submissions_survive_being_stored() -> None:
    options = Options(queue="slow", priority=-3, attributes={"b": 1, "a": "x"}, timeout=timedelta(minutes=5))
    definition = made(no_time, options=options)
    assert definition.queue == "slow"
    assert options_of(definition, "id-1") == options.changed(id="id-1")
    assert options_of(made(no_time), "id-2") == Options(id="id-2", queue="q")
    swapped = options.changed(attributes={"a": "x", "b": 1})
    assert made(no_time, options=swapped) == definition


def test_intervals_may_be_numbers_or_timedeltas() -> None:
    texts = {made(no_time, when=when).spec for when in (90, 90.0, timedelta(seconds=90), " every  90s ")}
    assert texts == {"every 90s"}


def test_the_decorator_keeps_the_workflow_and_its_definition() -> None:
    app = App("ticks")

    @app.schedule("0 3 * * *", tz="Europe/Vienna", missed="latest")
    @app.schedule(90, name="often", args=(NOON,), overlap="skip")
    @app.workflow(queue="reports", version="2", timeout=60)
    async def report(when: datetime) -> None: ...

    assert app.workflows["report"] is report
    nightly, often = app.schedules["report"], app.schedules["often"]
    assert (nightly.spec, nightly.zone, nightly.queue, nightly.pass_time) == (
        "0 3 * * *",
        "Europe/Vienna",
        "reports",
        True,
    )
    assert (often.spec, often.pass_time, often.overlap, often.workflow) == ("every 90s", False, "skip", "report")
    assert options_of(nightly, "i") == Options(id="i", queue="reports", version="2", timeout=60)
    app.schedule(5, name="slow", args=(NOON,), options=Options(queue="slow"))(report)
    assert "slow" in app.queues, "workers serve the queues of their schedules"
    with pytest.raises(UsageError, match="already has a schedule named 'often'"):
        app.schedule(10, name="often", args=(NOON,))(report)
    with pytest.raises(UsageError, match="goes above"):
        App("other").schedule(10)(report)
    with pytest.raises(UsageError, match="goes above"):
        app.schedule(10)(no_time)  # type: ignore[arg-type]
