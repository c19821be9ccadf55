"""How a queue's limit is divided among the shards, and what a worker does when its shard has used its part up.

Guarantee: the parts add up to the limit, and every worker that knows the same shards finds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mmh3

#: Seconds until a worker looks again at a limit that another one is just using.
LOCKED_LOOK = 0.004
#: Seconds added to the time at which a start is over, so that it is over when the shard is asked.
LATE = 0.0005


class State(NamedTuple):
    """A limit as a shard sees it: what it may use (`share`), its part by the declaration (`base`), what is in use,
    what is kept for another shard (`ceding`); whether another claimer is at it (`locked`), whether something that is
    ready could not be claimed (`waiting`), and in how many seconds a start is over (`again`)."""

    queue: str
    kind: str
    share: int
    base: int
    used: int
    ceding: int
    locked: bool
    waiting: bool
    again: float | None


@dataclass(frozen=True, slots=True)
class Need:
    """A share that other shards are to be asked for."""

    queue: str
    kind: str
    share: int
    base: int


def split(total: int, shards: Iterable[str], queue: str) -> dict[str, int]:
    """The part of each shard. What cannot be divided goes to other shards for other queues."""
    order = sorted(set(shards), key=lambda shard: (mmh3.hash(f"{queue}\0{shard}", 0, False), shard))
    each, rest = divmod(total, len(order))
    return {shard: each + (place < rest) for place, shard in enumerate(order)}


def decide(states: Sequence[State]) -> tuple[float | None, list[Need]]:
    """Seconds until the queues are to be looked at again (None: when something happens), and what to ask others
    for."""
    looks: list[float] = []
    needs: list[Need] = []
    for state in states:
        if state.locked and state.waiting:
            looks.append(LOCKED_LOOK)
            continue
        used_up = state.used + state.ceding >= state.share
        if state.share < 0 or (state.waiting and used_up):
            needs.append(Need(state.queue, state.kind, state.share, state.base))
        if state.waiting and used_up and state.again is not None:
            looks.append(state.again + LATE)
    return min(looks, default=None), needs
