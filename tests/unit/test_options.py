"""Options of a submission: what is refused, and what becomes of what is not."""

from __future__ import annotations

import math
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from shardflow import InvalidInput, Options
from shardflow.core.graph import levels


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"priority": 1.5}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 40_000}, "priority"),
        ({"delay": -1}, "delay"),
        ({"delay": math.nan}, "delay"),
        ({"delay": 1e12}, "thousand years"),
        ({"timeout": "soon"}, "timeout"),
        ({"after": 7}, "after"),
        ({"after": [""]}, "workflow id"),
        ({"after": ["a"], "delay": 1}, "exclude each other"),
        ({"on_failure": "retry"}, "on_failure"),
        ({"key_concurrency": "tenant"}, "key_concurrency"),
        ({"key_concurrency": ("tenant", 0)}, "at least 1"),
        ({"attributes": [1]}, "attributes"),
        ({"attributes": {1: 2}}, "attributes"),
        ({"attributes": {"a": object()}}, "JSON"),
        ({"attributes": {"a": math.inf}}, "JSON"),
        ({"attributes": {"a": "\ud800"}}, "JSON"),
        ({"attributes": {"a": "\0"}}, "NUL"),
        ({"attributes": {"a": "x" * 20_000}}, "bytes"),
        ({"id": ""}, "workflow id"),
        ({"queue": ""}, "queue"),
        ({"version": ""}, "version"),
        ({"dedup_key": ""}, "dedup_key"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        Options(**options)


def test_handles_and_times_become_ids_and_seconds() -> None:
    options = Options(after=[SimpleNamespace(id="a"), "b", "a"], timeout=timedelta(minutes=1))
    assert options.after == ("a", "b")
    assert options.timeout == 60.0
    assert Options(after=SimpleNamespace(id="a")).after == ("a",)
    assert Options(delay=timedelta(hours=1)).delay == 3600.0


def test_an_option_that_there_is_none_of_is_named() -> None:
    with pytest.raises(InvalidInput, match="prioritet"):
        Options().changed(prioritet=1)


def test_what_others_run_after_comes_first() -> None:
    assert levels(["a", "b", "c"], [["b"], ["c"], []]) == [[2], [1], [0]]
    assert levels(["a", "b"], [["elsewhere"], []]) == [[0, 1]]
    assert levels([], []) == []


@pytest.mark.parametrize(
    ("ids", "after"),
    [(["a"], [["a"]]), (["a", "b"], [["b"], ["a"]]), (["a", "b", "c", "d"], [["b"], ["c"], ["a"], []])],
)
def test_those_that_wait_for_themselves_are_refused(ids: list[str], after: list[list[str]]) -> None:
    with pytest.raises(InvalidInput, match="'a'"):
        levels(ids, after)
