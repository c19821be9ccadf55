"""The pace of deleting: gentle where that suffices, as fast as it must be where it does not, in short batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardflow.core.retention import AIM, LEAST, MOST, MOST_SHARE, REST, SELDOM, SHARE, SLACK, Pace, share_of

ages = st.floats(1.0, 1e8)
seconds = st.floats(1e-4, 100.0)


def simulate(age: float, arriving: float, cost: float, seconds: float) -> tuple[float, float]:
    """Workflows end at a rate, deleting one takes so many seconds; answers by how many seconds the last one deleted
    was overdue in the end, and the part of the time that was spent."""
    pace, now, gone, spent = Pace(age), age, 0.0, 0.0
    overdue = 0.0
    while now < age + seconds:
        due = (now - age * (1 + SLACK)) * arriving - gone
        seen = int(min(pace.size, max(0.0, due)))
        took = 0.001 + seen * cost
        overdue = now - age - gone / arriving
        gone += seen
        spent += took
        pause = pace.pause(took, seen, overdue if seen else None)
        now += took + (pause if seen == pace.size else max(pause, pace.between))
    return overdue - age * SLACK, spent / seconds


def test_at_a_low_load_deleting_takes_a_tenth_of_the_time_at_the_most() -> None:
    late, share = simulate(age=60.0, arriving=100.0, cost=5e-5, seconds=600.0)
    assert share <= SHARE + 0.01
    assert late < 10


def test_at_a_high_load_it_takes_what_it_needs_and_does_not_fall_behind() -> None:
    _, early = simulate(age=60.0, arriving=20_000.0, cost=2e-5, seconds=300.0)
    late, share = simulate(age=60.0, arriving=20_000.0, cost=2e-5, seconds=1_200.0)
    assert 0.3 <= early <= MOST_SHARE
    assert 0.4 <= share <= 0.5
    assert late < 60


def test_a_backlog_of_years_is_not_deleted_at_full_speed() -> None:
    assert share_of(86_400.0, 1e9) == MOST_SHARE < 1


@given(ages, st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_later_the_more_within_bounds(age: float, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert SHARE <= share_of(age, less) <= share_of(age, more) <= MOST_SHARE
    assert share_of(age, None) == share_of(age, age * SLACK) == SHARE


@given(ages, st.lists(st.tuples(seconds, st.integers(0, MOST), st.one_of(st.none(), st.floats(0, 1e6))), max_size=50))
def test_batches_stay_within_bounds_and_grow_only_where_they_were_full_and_quick(
    age: float, batches: list[tuple[float, int, float | None]]
) -> None:
    pace = Pace(age)
    for took, seen, overdue in batches:
        before = pace.size
        pause = pace.pause(took, seen, overdue)
        assert LEAST <= pace.size <= MOST
        assert pause >= took * (1 - MOST_SHARE) / MOST_SHARE * 0.999
        if took > 2 * AIM:
            assert pace.size < before or before == LEAST
        if pace.size > before:
            assert took < AIM
            assert seen >= before
    before = pace.size
    pace.failed()
    assert pace.size < before or before == LEAST


@given(ages, st.floats(0, 1e5))
def test_thorough_passes_are_seldom(age: float, took: float) -> None:
    pause = Pace(age).thorough_again(took)
    assert pause >= max(SELDOM, took * REST, age / 10.1)
    assert 1.0 <= Pace(age).between <= 60.0


def test_a_batch_that_takes_far_too_long_is_followed_by_a_much_smaller_one_but_not_by_nothing() -> None:
    pace = Pace(3600.0, size=1_000)
    pace.pause(5.0, 1_000, 1.0)
    assert pace.size == 250
    for _ in range(20):
        pace.pause(5.0, 1_000, 1.0)
    assert pace.size == LEAST
