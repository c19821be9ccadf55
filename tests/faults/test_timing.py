"""How soon work goes on behind a fault, and that workers who come and go neither disturb it nor repeat a step.

`SHARDFLOW_TIMING=full` runs the scenarios in full and holds them to the promised times, on a machine that does
nothing else; by default they are short, and their bounds leave room for a machine that is slow or busy.
`python -m faults.timing` runs one by hand.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from faults.timing_join import join
from faults.timing_outage import outage
from faults.timing_rolling import rolling
from faults.timing_takeover import takeover

FULL = os.environ.get("SHARDFLOW_TIMING") == "full"
#: What a promised time is multiplied by.
SLACK = 1.0 if FULL else 5.0
#: Windows of a quarter of a second in a row in which nothing may end.
STILL = 0 if FULL else 8

pytestmark = pytest.mark.slow


def show(figures: dict[str, Any]) -> dict[str, Any]:
    for name, value in figures.items():
        print(f"{name}: {value}")
    assert figures["wrong"] == 0
    return figures


def longest_stop(found: dict[str, Any]) -> int:
    """The most windows of a quarter of a second in a row in which nothing ended."""
    longest = stopped = 0
    for window in found["ends_in_windows"]:
        stopped = 0 if any(window) else stopped + 1
        longest = max(longest, stopped)
    return longest


def assert_goes_on(found: dict[str, Any]) -> None:
    """The other worker did not stand still."""
    if FULL:
        assert found["fair_windows"] >= found["windows"] / 4
    assert longest_stop(found) <= STILL, "the other worker stood still"


def test_what_a_killed_worker_held_runs_elsewhere_within_two_seconds() -> None:
    found = show(takeover(signal.SIGKILL) if FULL else takeover(signal.SIGKILL, ttl=60.0, warm=1.0, depth=1500))
    assert found["held"] > 0
    assert found["elsewhere"] == found["held"]
    assert found["seconds_until_elsewhere"]["p99"] <= 2.0 * SLACK
    assert_goes_on(found)


def test_what_a_frozen_worker_held_runs_elsewhere_when_its_lease_is_over() -> None:
    ttl = 10.0 if FULL else 4.0
    found = show(takeover(signal.SIGSTOP, ttl=ttl, warm=3.0 if FULL else 1.0))
    assert found["held"] > 0
    assert found["elsewhere"] == found["held"]
    assert found["seconds_until_elsewhere"]["p99"] <= ttl + 2.0 * SLACK
    assert_goes_on(found)


def test_a_server_that_is_down_takes_nothing_from_the_others() -> None:
    found = show(outage() if FULL else outage(seconds=4.0, rate=40.0))
    assert found["share"] >= (0.9 if FULL else 0.6)
    assert found["least_share_of_a_shard"] >= (0.9 if FULL else 0.5)
    assert found["generated_submits"] > 0
    assert found["generated_submits_failed"] == 0
    assert found["accepted_and_unanswered"] == 0


def test_a_rolling_restart_repeats_no_step_and_keeps_answers_quick() -> None:
    found = show(rolling() if FULL else rolling(workers=2, rate=100.0, settle=1.0))
    assert found["steps_run_twice"] == 0
    assert found["unanswered"] == 0
    assert found["seconds_to_result"]["p99"] <= 1.0 * SLACK
    assert found["worst_p99_of_two_seconds"] <= 1.0 * SLACK


def test_a_worker_that_joins_works_soon_and_disturbs_nothing() -> None:
    found = show(join() if FULL else join(rate=100.0, settle=1.0))
    assert found["leases"]
    assert found["seconds_until_begun"] <= 3.0 * SLACK
    assert found["seconds_until_last_lease"] <= 3.0 * SLACK
    assert found["steps_run_twice"] == 0
    assert found["workflows_replayed"] == 0
    assert found["unanswered"] == 0
