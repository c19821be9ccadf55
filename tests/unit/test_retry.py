from __future__ import annotations

import asyncio

import pytest

from shardflow.core.retry import Retry
from shardflow.errors import InvalidInput


def test_waits_double_up_to_the_maximum():
    retry = Retry(attempts=10, initial=1.0, factor=2.0, maximum=10.0, jitter=0.0)
    assert [retry.delay(n, 0.5) for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_jitter_only_shortens_a_wait():
    retry = Retry(initial=10.0, jitter=0.2)
    assert retry.delay(1, 0.0) == 10.0
    assert retry.delay(1, 0.5) == pytest.approx(9.0)
    assert retry.delay(1, 0.999999) == pytest.approx(8.0, abs=1e-4)


def test_a_great_number_of_failures_waits_the_maximum():
    assert Retry(jitter=0.0).delay(100_000, 0.0) == 60.0
    assert Retry(initial=0.0, jitter=0.0).delay(100_000, 0.0) == 0.0


def test_the_first_try_counts_as_an_attempt():
    error = RuntimeError()
    assert Retry().attempts == 3
    assert [Retry().may_retry(n, error) for n in (1, 2, 3, 4)] == [True, True, False, False]
    assert not Retry(attempts=1).may_retry(1, error)


def test_stop_on_ends_the_tries_for_subclasses_too():
    retry = Retry(attempts=5, stop_on=(LookupError, TypeError))
    assert not retry.may_retry(1, KeyError("x"))
    assert not retry.may_retry(1, TypeError())
    assert retry.may_retry(1, ValueError())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit()])
def test_what_is_no_exception_is_never_tried_again(error):
    assert not Retry(attempts=5).may_retry(1, error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, r"Retry\.attempts"),
        ({"attempts": 2.0}, r"Retry\.attempts"),
        ({"attempts": True}, r"Retry\.attempts"),
        ({"initial": -0.1}, r"Retry\.initial"),
        ({"initial": "1"}, r"Retry\.initial"),
        ({"factor": 0.5}, r"Retry\.factor"),
        ({"factor": float("nan")}, r"Retry\.factor"),
        ({"maximum": float("inf")}, r"Retry\.maximum"),
        ({"initial": 61.0}, r"Retry\.maximum \(60 s\) is less than Retry\.initial \(61 s\)"),
        ({"jitter": 1.1}, r"Retry\.jitter"),
        ({"jitter": True}, r"Retry\.jitter"),
        ({"stop_on": ValueError}, r"Retry\.stop_on"),
        ({"stop_on": (ValueError(),)}, r"Retry\.stop_on"),
        ({"stop_on": (int,)}, r"Retry\.stop_on"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        Retry(**options)
