"""What a fork takes over of a record."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest

from shardflow.core.branches import CALL_BITS
from shardflow.core.childids import Children
from shardflow.core.forking import borrowed, kept
from shardflow.errors import InvalidInput


class Entry(NamedTuple):
    seq: int
    at: float
    name: str = "step"


def of(branch: int, call: int) -> int:
    return branch << CALL_BITS | call


RECORD = [
    Entry(-2, 0.0, "shardflow.continue"),
    Entry(0, 1.0),
    Entry(of(7, 0), 2.0),
    Entry(of(9, 0), 2.0),
    Entry(of(7, 1), 3.0),
    Entry(1, 3.0),
    Entry(of(8, 0), 4.0),
    Entry(2, 5.0),
]


def seqs(from_step: int) -> list[int]:
    return sorted(entry.seq for entry in kept(RECORD, from_step))


def test_the_own_tasks_steps_before_it_are_kept_and_what_the_last_of_them_may_have_seen() -> None:
    assert seqs(0) == [-2]
    assert seqs(1) == [-2, 0]
    assert seqs(2) == sorted([-2, 0, 1, of(7, 0), of(9, 0), of(7, 1)])
    assert seqs(3) == seqs(99) == sorted(entry.seq for entry in RECORD)


def test_of_another_task_what_was_there_before_the_step_is_kept() -> None:
    assert seqs(of(7, 1)) == sorted([-2, 0, of(7, 0), of(9, 0)])
    assert seqs(of(7, 0)) == [-2, 0]


@pytest.mark.parametrize("wrong", [-1, True, "3", 1.0, None, of(7, 5)])
def test_what_is_no_step_is_refused(wrong: object) -> None:
    with pytest.raises(InvalidInput, match="from_step"):
        kept(RECORD, wrong)  # type: ignore[arg-type]


def test_children_are_borrowed() -> None:
    children = Children("p/0.", 3, (None, "given", None))
    output, ids = borrowed(children.to_json())
    assert list(ids) == ["p/0.0", "given", "p/0.2"]
    assert json.loads(output)["borrowed"] is True
    assert Children.from_json(output) == children


def test_a_new_beginning_gives_children_other_ids() -> None:
    first, second = (Children.of("{a}/p", 3, [None], True, False, generation).ids for generation in (0, 2))
    assert (list(first), list(second)) == (["{a}/p/3"], ["{a}/p/2~3"])
