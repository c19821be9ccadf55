"""The low-water mark: a hint that saves reading, and never hides work for long."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardflow.core.lowwater import COST_FACTOR, INTERVAL, LOOKS, START, LowWater


def test_the_first_look_is_from_the_start() -> None:
    assert LowWater().begin(0.0) == START
    assert LowWater().begin(1e9) == START


def test_a_full_claim_lets_the_next_one_begin_behind_it() -> None:
    low = LowWater()
    low.saw(START, 10, 10, (0, 57), 100.0, 0.001)
    assert low.begin(100.01) == (0, 57)


def test_a_short_and_cheap_claim_looks_from_the_start_again() -> None:
    low = LowWater()
    low.saw(START, 10, 3, (0, 57), 100.0, 0.001)
    assert low.begin(100.001) == START


def test_a_dear_look_from_the_start_is_not_repeated_at_once_even_where_it_came_back_short() -> None:
    low = LowWater()
    for _ in range(LOOKS):
        low.saw(START, 10, 10, (0, 9), 100.0, 0.5)
    low.saw((0, 9), 10, 0, None, 100.1, 0.0)
    assert low.begin(105.0) == (0, 9)
    assert low.begin(100.0 + COST_FACTOR * 0.5) == START


@pytest.mark.parametrize("cheap", range(LOOKS))
def test_looks_that_a_stalling_server_made_dear_put_off_none(cheap: int) -> None:
    low = LowWater()
    low.saw((0, 9), 10, 10, (0, 19), 99.0, 0.001)
    for n in range(10 * LOOKS):
        low.saw(START, 10, 10, (0, 9), 100.0 + n, 0.001 if n % LOOKS == cheap else 3.0)
        if n >= LOOKS:
            assert low.begin(100.0 + n + INTERVAL) == START


def test_the_start_is_looked_at_again_at_intervals_while_a_backlog_is_worked_off() -> None:
    low = LowWater()
    low.saw(START, 10, 10, (0, 9), 100.0, 0.001)
    low.saw((0, 9), 10, 10, (0, 19), 100.1, 0.001)
    assert low.begin(100.0 + INTERVAL - 0.01) == (0, 19)
    assert low.begin(100.0 + INTERVAL) == START


def test_the_mark_only_goes_on_until_the_start_is_seen_anew() -> None:
    low = LowWater()
    low.saw(START, 1, 1, (5, 100), 0.0, 0.001)
    low.saw((5, 100), 1, 1, (5, 90), 0.1, 0.001)
    assert low.mark == (5, 100)
    low.saw(START, 1, 1, (-1, 200), 1.0, 0.001)
    assert low.mark == (-1, 200)


def test_what_a_look_from_the_start_costs_is_what_it_takes_longer_than_others() -> None:
    low = LowWater()
    for _ in range(LOOKS):
        low.saw(START, 10, 10, (0, 9), 100.0, 0.5)
    low.saw((0, 9), 10, 10, (0, 19), 100.1, 0.499)  # the turns are long, whatever they claim
    assert low.begin(100.0 + INTERVAL) == START


def test_a_mark_goes_back_to_where_something_came() -> None:
    low = LowWater()
    low.saw(START, 10, 10, (0, 57), 100.0, 0.001)
    low.back_to((0, 12))
    assert low.begin(100.01) == (0, 12)
    low.back_to((0, 99))
    assert low.begin(100.01) == (0, 12)


@settings(max_examples=200, deadline=None)
@given(
    behind=st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(-3, 3)), max_size=15),
    costs=st.lists(st.floats(0.0, 0.05), min_size=1, max_size=10),
    limit=st.integers(1, 5),
    backlog=st.integers(0, 60),
)
def test_whatever_commits_behind_the_mark_is_claimed_in_time(
    behind: list[tuple[float, int]], costs: list[float], limit: int, backlog: int
) -> None:
    """A model of one queue and one claimer, where rows arrive behind the mark.

    A row in front is taken within an interval (or the rest that a dear look needs) of being the first.
    """
    low, now, turn = LowWater(), 0.0, 0
    waiting = {(0, 1_000 + n): 0.0 for n in range(backlog)}
    arrivals = sorted((at, (priority, 1 + n)) for n, (at, priority) in enumerate(behind))
    bound = max(INTERVAL, COST_FACTOR * max(costs)) + 0.1
    while (waiting or arrivals) and turn < 3_000:
        while arrivals and arrivals[0][0] <= now:
            at, place = arrivals.pop(0)
            waiting[place] = at
        began = low.begin(now)
        rows = sorted(place for place in waiting if place >= began)[:limit]
        took = costs[turn % len(costs)] if began == START else 0.0
        for place in rows:
            ahead = sum(1 for other in waiting if other < place)
            if ahead == 0:
                patience = bound + 0.02 * (backlog + len(behind)) / limit
                assert now - waiting[place] <= patience + bound
            del waiting[place]
        low.saw(began, limit, len(rows), rows[-1] if rows else None, now, took)
        now += 0.01 + took
        turn += 1
    assert not waiting, "rows were never claimed"
