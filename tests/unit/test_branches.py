"""Numbers of steps: stored in databases, so they can never change."""

from __future__ import annotations

import pytest

from shardflow.core.branches import CALL_BITS, Branch
from shardflow.errors import UsageError

GOLDEN = [2234034291691, 1857819456132, 3378757639425]


def test_the_workflows_own_calls_are_numbered_from_zero() -> None:
    main = Branch()
    assert [main.next() for _ in range(4)] == [0, 1, 2, 3]


def test_the_numbers_of_branches_are_what_they_have_always_been() -> None:
    """Golden: a change here strands every workflow with branches that is under way."""
    main = Branch()
    first, second = main.child(), main.child()
    nested = second.child()
    assert [first.id, second.id, nested.id] == GOLDEN
    assert first.next() == GOLDEN[0] << CALL_BITS
    assert first.next() == (GOLDEN[0] << CALL_BITS) + 1


def test_a_branch_is_numbered_by_its_own_parent_whatever_the_others_do() -> None:
    quiet, busy = Branch(), Branch()
    a, b = quiet.child(), quiet.child()
    c, d = busy.child(), busy.child()
    for _ in range(5):
        c.next()
        c.child()
    assert (a.id, b.id) == (c.id, d.id)
    assert b.child().id == d.child().id


def test_many_branches_have_ids_of_their_own_that_fit_a_positive_bigint() -> None:
    main = Branch()
    children = [main.child() for _ in range(20_000)]
    ids = {child.id for child in children} | {child.child().id for child in children}
    assert len(ids) == 40_000
    assert all(0 < id << CALL_BITS < 1 << 62 for id in ids)


def test_more_calls_than_the_number_holds_are_refused() -> None:
    main = Branch()
    main.calls = (1 << CALL_BITS) - 1
    main.next()
    with pytest.raises(UsageError, match="1,048,576 steps"):
        main.next()
