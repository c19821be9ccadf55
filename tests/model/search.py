"""Breadth-first search through all states, the shortest way to a broken invariant, and states without an end."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from .change import Label
from .protocol import moves
from .state import Rules, State, canonical, finished, initial, misplaced


@dataclass(frozen=True)
class Found:
    """What a search saw: states, moves, and the shortest trace to what is broken, if anything is."""

    states: int
    moves: int
    broken: str
    trace: tuple[str, ...]


def search(rules: Rules, *, symmetry: bool = True, most: int = 3_000_000) -> Found:
    """Explores everything that can be reached. Stops at the first broken invariant.

    Then looks for states from which the end cannot be reached without another disturbance. `symmetry`: states that
    differ in names only are one; traces read better without it.
    """
    collects = gc.isenabled()
    gc.disable()  # there are no cycles, and looking for them among so many tuples takes a third of the time
    try:
        return _search(rules, symmetry, most)
    finally:
        if collects:
            gc.enable()


def _search(rules: Rules, symmetry: bool, most: int) -> Found:
    first = initial(rules)
    number: dict[State, int] = {first: 0}  # also of states that differ in names from the one that was explored
    reached: list[State] = [first]
    came_from = array("i", [-1])
    sources, targets = array("i"), array("i")
    total = 0
    here = 0
    while here < len(reached):
        left = reached[here].left
        for label, after, broken in moves(reached[here], rules):
            total += 1
            there = number.get(after)
            if there is None:
                named = canonical(after) if symmetry else after
                there = number.get(named)
                if there is None:
                    broken = broken or misplaced(named)
                    there = number[named] = len(reached)
                    reached.append(named)
                    came_from.append(here)
                    if there >= most:
                        raise MemoryError(f"more than {most} states")
                number[after] = there
            if broken:
                trace = (*_trace(reached, came_from, here, rules, symmetry), text(label))
                return Found(len(reached), total, broken, trace)
            if after.left == left and label[0][0] != "!":
                sources.append(here)
                targets.append(there)
        here += 1
    stuck = _first_stuck(reached, sources, targets)
    if stuck is not None:
        trace = tuple(_trace(reached, came_from, stuck, rules, symmetry))
        return Found(len(reached), total, "liveness: from here some workflow can never end", trace)
    return Found(len(reached), total, "", ())


def _first_stuck(reached: list[State], sources: array[int], targets: array[int]) -> int | None:
    """The first state from which no calm way leads to the end of all workflows: backward reachability."""
    begins = array("i", bytes(4 * (len(reached) + 1)))
    for target in targets:
        begins[target + 1] += 1
    for i in range(len(reached)):
        begins[i + 1] += begins[i]
    fill = array("i", begins)
    before = array("i", bytes(4 * len(targets)))
    for source, target in zip(sources, targets, strict=True):
        before[fill[target]] = source
        fill[target] += 1
    good = bytearray(len(reached))
    todo = [i for i, state in enumerate(reached) if finished(state)]
    for i in todo:
        good[i] = 1
    while todo:
        target = todo.pop()
        for source in before[begins[target] : begins[target + 1]]:
            if not good[source]:
                good[source] = 1
                todo.append(source)
    stuck = good.find(0)
    return None if stuck < 0 else stuck


def _trace(reached: list[State], came_from: array[int], here: int, rules: Rules, symmetry: bool) -> Iterator[str]:
    way = [here]
    while came_from[way[-1]] >= 0:
        way.append(came_from[way[-1]])
    way.reverse()
    for a, b in pairwise(way):
        for label, after, _ in moves(reached[a], rules):
            if (canonical(after) if symmetry else after) == reached[b]:
                yield text(label)
                break


def text(label: Label) -> str:
    """A label in words."""
    return " ".join(str(part) for part in label).lstrip("!")
