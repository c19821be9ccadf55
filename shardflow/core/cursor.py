"""How far a list has been read, and what comes next: as text for a URL that says it all, checked when it comes back.

A cursor brings its filters along, and the last key passed in each range of keys: so slots may move between pages. A
shard that did not answer has positions of its own from then on, so that its part comes when it is back.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from ..errors import InvalidInput
from .query import Filters, Order, filters, order_of
from .stretch import RANGE_BITS, Row, Stretch, joined, merged

T = TypeVar("T")

_VERSION = 1
_TEXT = re.compile(r"[A-Za-z0-9_-]+\Z")
_MAX_TEXT = 65_536
_MAX_PLAIN = 1_048_576
_FILTERS = ("status", "name", "queue", "since", "until", "attributes")

#: Range of keys → the last key of it that was passed.
Positions = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a list goes on: `positions` for all shards but those that are `apart`, which have their own."""

    filters: Filters
    order: Order
    positions: Positions = field(default_factory=dict)
    apart: Mapping[str, Positions] = field(default_factory=dict)

    def of(self, shard: str) -> Positions:
        """What this shard has been read to."""
        return self.apart.get(shard, self.positions)


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """What one shard says for a page: what follows in each range of keys that it has, and the last key of each."""

    stretches: Mapping[int, Stretch[T]]
    tops: Mapping[int, int]


def advance(
    place: Cursor, parts: Mapping[str, Part[T]], away: Collection[str], limit: int
) -> tuple[Sequence[Row[T]], Cursor, bool]:
    """The next rows of what the shards answered, the place behind them, and whether there is no more.

    Shards that are together have one position in each range, whichever of them has the range's workflows now. Those
    of a shard that is `away` stay where they are.
    """
    newest = place.order is Order.NEWEST
    shared: defaultdict[int, list[Stretch[T]]] = defaultdict(list)
    streams: dict[tuple[str, int], Stretch[T]] = {}
    for shard, part in parts.items():
        for number, stretch in part.stretches.items():
            if shard in place.apart:
                streams[shard, number] = stretch
            else:
                shared[number].append(stretch)
    streams |= {("", number): joined(stretches, newest).cut(limit) for number, stretches in shared.items()}
    page = merged(streams, newest, limit)
    positions = {"": dict(place.positions)} | {shard: dict(place.of(shard)) for shard in {*place.apart, *away}}
    for (shard, number), wf in page.passed.items():
        positions[shard][number] = wf
    if newest:  # what is submitted from now on is in front of the first page, and not on a later one
        for shard, part in parts.items():
            own = positions.get(shard, positions[""])
            for number, top in part.tops.items():
                own.setdefault(number, top + 1)
    return page.rows, replace(place, positions=positions.pop(""), apart=positions), page.complete


def encode(cursor: Cursor) -> str:
    """The cursor as text, without characters that a URL would have to escape."""
    asked = cursor.filters
    wanted: dict[str, Any] = {
        "status": list(asked.statuses),
        "name": asked.name,
        "queue": asked.queue,
        "since": asked.since and asked.since.isoformat(),
        "until": asked.until and asked.until.isoformat(),
        "attributes": asked.attributes and json.loads(asked.attributes),
    }
    plain = [
        _VERSION,
        cursor.order,
        {key: value for key, value in wanted.items() if value},
        _pairs(cursor.positions),
        {shard: _pairs(positions) for shard, positions in cursor.apart.items()},
    ]
    packed = zlib.compress(json.dumps(plain, separators=(",", ":")).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode(text: object) -> Cursor:
    """The cursor that `encode` made the text of. Raises InvalidInput for any other text."""
    if not isinstance(text, str):
        raise InvalidInput(f"a cursor must be a str, not {type(text).__name__}: pass a page's cursor as it is")
    try:
        return _checked(_unpacked(text))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, zlib.error, binascii.Error) as error:
        raise InvalidInput(f"this is not a cursor that a list gave: {error}; begin again without one") from None


def resumed(text: str, asked: Filters, order: Order) -> Cursor:
    """The cursor of the text, for a call that gives the same filters and order again, or none of them.

    Raises InvalidInput where they differ: the pages would not fit together.
    """
    cursor = decode(text)
    given = (asked, order)
    if given not in ((cursor.filters, cursor.order), (Filters(), Order.NEWEST)):
        raise InvalidInput(
            "the cursor belongs to a list with other filters or another order: pass the same ones as for the first"
            " page, or only the cursor, which brings them along"
        )
    return cursor


def _pairs(positions: Positions) -> list[list[int]]:
    """Small numbers: each range, and the place within it. One before its first key is -1."""
    return [[part, wf - (part << RANGE_BITS)] for part, wf in sorted(positions.items())]


def _unpacked(text: str) -> Any:
    if len(text) > _MAX_TEXT or not _TEXT.match(text):
        raise ValueError("it has other characters, or too many")
    opened = zlib.decompressobj()
    plain = opened.decompress(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), _MAX_PLAIN)
    if not opened.eof or opened.unused_data:
        raise ValueError("a part of it is missing, or something was added")
    return json.loads(plain)


def _checked(plain: Any) -> Cursor:
    if not isinstance(plain, list) or plain[:1] != [_VERSION] or len(plain) != 5:
        raise ValueError("it is of another version")
    _, order, asked, positions, apart = plain
    if not isinstance(asked, dict) or not asked.keys() <= set(_FILTERS) or not isinstance(apart, dict):
        raise ValueError("its filters are unknown")
    moments = {key: datetime.fromisoformat(asked[key]) for key in ("since", "until") if key in asked}
    return Cursor(
        filters(*((asked | moments).get(key) for key in _FILTERS)),
        order_of(order),
        _positions(positions),
        {shard: _positions(own) for shard, own in apart.items()},
    )


def _positions(pairs: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for part, place in pairs:
        if type(part) is not int or type(place) is not int or not 0 <= part < 1 << 63 - RANGE_BITS:
            raise ValueError("a position is no number")
        if not -1 <= place <= 1 << RANGE_BITS:
            raise ValueError("a position is out of its range")
        found[part] = (part << RANGE_BITS) + place
    return found
