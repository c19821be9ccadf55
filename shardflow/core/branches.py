"""How the steps of a workflow are numbered, so that every replay gives a step the number it had.

A workflow's own task is branch 0. A task that its code makes is the n-th child of the branch that made it; children
are counted per parent, so the pace of one branch changes no number of another. A step's number is its branch and its
place among the calls of that branch. Numbers are stored: this can never change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import UsageError

#: Bits for the calls of one branch; the other 42 of a positive bigint are the branch.
CALL_BITS = 20
BRANCH_BITS = 62 - CALL_BITS

_MASK = (1 << 64) - 1


class Branch:
    """One task of a workflow: `id` (0 for the workflow's own), calls so far, children so far; `at`, the time of the
    latest of the records that the replay has answered it with."""

    __slots__ = ("at", "calls", "children", "id")

    def __init__(self, id: int = 0) -> None:
        self.id = id
        self.calls = 0
        self.children = 0
        self.at = -math.inf

    def next(self) -> int:
        """The number of the branch's next call. Raises UsageError beyond 2^20 calls."""
        call = self.calls
        if call >> CALL_BITS:
            raise UsageError(f"a workflow's task may call {1 << CALL_BITS:,} steps: split the workflow")
        self.calls = call + 1
        return self.id << CALL_BITS | call

    def peek(self) -> int:
        """The number that `next` would give."""
        return self.id << CALL_BITS | self.calls

    def child(self) -> Branch:
        """The branch of the next task that was made in this one."""
        self.children += 1
        branch = Branch(_mixed(self.id, self.children))
        branch.at = self.at
        return branch


def passed(here: Branch, left: Iterable[tuple[int, float]]) -> bool:
    """Whether the workflow may once have been beyond the place where a replay's branch `here` is now.

    `left` are the records that the replay has not come to, by number and time. In `here` they are of calls behind the
    place. Those of other branches may follow from it, by an await or in another way, unless they are no younger than
    what this branch has behind it.
    """
    return any(seq >= here.peek() if seq >> CALL_BITS == here.id else at > here.at for seq, at in left)


def _mixed(parent: int, number: int) -> int:
    """A branch id out of the parent's and the child's number: never 0, and different for all practical purposes.

    Source: the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014).
    Ten thousand branches share an id with a probability of one in a hundred thousand; the primary key refuses the
    second of them then.
    """
    z = (parent * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) & _MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & _MASK
    return (z ^ z >> 31) >> 64 - BRANCH_BITS or 1
