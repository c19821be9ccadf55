"""How the steps of a workflow are numbered, so that every replay gives a step the number it had.

A workflow's own task is branch 0. A task that its code makes is the n-th child of the branch that made it; children
are counted per parent, so the pace of one branch changes no number of another. A step's number is its branch and its
place among the calls of that branch. Numbers are stored: this can never change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import UsageError

#: Bits for the calls of one branch; the other 42 of a positive bigint are the branch.
CALL_BITS = 20
BRANCH_BITS = 62 - CALL_BITS

#: How many of the tasks that a branch may make next are looked for among the records, see `passed`.
REACH = 32

_MASK = (1 << 64) - 1


class Branch:
    """One task of a workflow: `id` (0 for the workflow's own), calls so far, children so far, and these."""

    __slots__ = ("calls", "children", "id", "made")

    def __init__(self, id: int = 0) -> None:
        self.id = id
        self.calls = 0
        self.children = 0
        self.made: list[Branch] | None = None

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
        if self.made is None:
            self.made = []
        self.made.append(branch)
        return branch

    def all(self) -> Iterator[Branch]:
        """This one and all below it."""
        waiting = [self]
        while waiting:
            branch = waiting.pop()
            waiting += branch.made or ()
            yield branch


def passed(root: Branch, here: Branch, left: Iterable[int]) -> bool:
    """Whether the workflow was once beyond the place where the branch `here` is now: whether one of the records that
    are left, by number, is of a call that comes behind it, in this branch or in a task that is yet to be made in it.

    Records of the workflow's other tasks, below `root`, say nothing of it. A record whose task cannot be told counts.
    """
    unknown: set[int] = set()
    for seq in left:
        if seq >> CALL_BITS == here.id:
            if seq >= here.peek():
                return True
        else:
            unknown.add(seq >> CALL_BITS)
    if not unknown:
        return False
    known = list(root.all())
    unknown.difference_update(branch.id for branch in known)
    for branch in [here, *known]:
        if not unknown:
            break
        coming = {_mixed(branch.id, branch.children + n) for n in range(1, REACH + len(unknown) + 1)}
        if branch is here and not unknown.isdisjoint(coming):
            return True
        unknown -= coming
    return bool(unknown)


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
