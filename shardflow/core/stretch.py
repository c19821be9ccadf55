"""Puts together, in order, what several shards found of several ranges of keys.

Each part says how far it is complete, and nothing beyond that point is ever shown: so no workflow is missed, and none
is shown twice, by whoever goes on from where the last part ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

#: A shard draws its keys from a range of so many: 2 to the power of this. See `storage/cluster.py`.
RANGE_BITS = 44

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Row(Generic[T]):
    """Something found: the workflow's key, when it was submitted, and what there is to say of it."""

    wf: int
    at: datetime
    item: T


@dataclass(frozen=True, slots=True)
class Stretch(Generic[T]):
    """What was found in a stretch of one range of keys, in order.

    It is complete up to the key of `reached`, that one included; up to the end of the range where this is None.
    """

    rows: Sequence[Row[T]] = ()
    reached: Row[None] | None = None

    def cut(self, limit: int) -> Stretch[T]:
        """Its first `limit` rows."""
        if len(self.rows) <= limit:
            return self
        last = self.rows[limit - 1]
        return Stretch(self.rows[:limit], Row(last.wf, last.at, None))


@dataclass(frozen=True, slots=True)
class Merged(Generic[K, T]):
    """The rows of a page in order; the last key that was `passed`, per stream; whether there is no more behind it."""

    rows: list[Row[T]] = field(default_factory=list)
    passed: dict[K, int] = field(default_factory=dict)
    complete: bool = True


def range_of(wf: int) -> int:
    """The range that a key was drawn from."""
    return wf >> RANGE_BITS


def joined(parts: Iterable[Stretch[T]], newest: bool) -> Stretch[T]:
    """Parts of the same range as one: in the order of their keys, complete as far as all of them are."""
    parts = list(parts)
    marks = [part.reached for part in parts if part.reached is not None]
    rows = {row.wf: row for part in parts for row in part.rows}
    ordered = sorted(rows.values(), key=lambda row: row.wf, reverse=newest)
    if not marks:
        return Stretch(ordered)
    nearest = (max if newest else min)(marks, key=lambda mark: mark.wf)
    kept = [row for row in ordered if (row.wf >= nearest.wf if newest else row.wf <= nearest.wf)]
    return Stretch(kept, nearest)


def merged(streams: Mapping[K, Stretch[T]], newest: bool, limit: int) -> Merged[K, T]:
    """The first `limit` rows of all streams by the time of submission.

    Within a stream the order is that of its keys, also where its server's clock was set back. It ends early where
    a stream is not known to hold nothing that comes next.
    """
    names = list(streams)
    places = [0] * len(names)
    heads: list[tuple[int, int]] = []

    def push(number: int) -> None:
        stream, place = streams[names[number]], places[number]
        head = stream.rows[place] if place < len(stream.rows) else stream.reached
        if head is not None:
            when = (head.at - _EPOCH) // _MICROSECOND
            heapq.heappush(heads, (-when if newest else when, number))

    for number in range(len(names)):
        push(number)
    taken: list[Row[T]] = []
    while heads and len(taken) < limit:
        _, number = heapq.heappop(heads)
        rows = streams[names[number]].rows
        if places[number] == len(rows):  # as far as is known of this stream
            break
        taken.append(rows[places[number]])
        places[number] += 1
        push(number)
    passed, complete = {}, True
    for name, place in zip(names, places, strict=True):
        stream = streams[name]
        if place == len(stream.rows) and stream.reached is not None:
            passed[name] = stream.reached.wf
        elif place:
            passed[name] = stream.rows[place - 1].wf
        complete = complete and place == len(stream.rows) and stream.reached is None
    return Merged(taken, passed, complete)
