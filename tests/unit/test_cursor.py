"""Cursors as text: what comes back is what was given, and anything else is refused with a reason."""

from __future__ import annotations

import base64
import json
import re
import zlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shardflow import InvalidInput, Status
from shardflow.core.cursor import Cursor, Part, advance, decode, encode, resumed
from shardflow.core.query import Filters, Order, check_limit, filters, order_of
from shardflow.core.stretch import RANGE_BITS, Row, Stretch, joined, merged
from shardflow.storage.cluster import KEYS_PER_SHARD

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FULL = Cursor(
    filters(["failed", "dead"], "näme", "q/&=", NOON, NOON + timedelta(days=1), {"tenant": "ü", "n": [1, None]}),
    Order.OLDEST,
    {1: (1 << RANGE_BITS) + 77, 200: (200 << RANGE_BITS) - 1},
    {"s1": {}, "ü": {2: 2 << RANGE_BITS}},
)


def row(wf: int, minutes: int) -> Row[int]:
    return Row(wf, NOON + timedelta(minutes=minutes), wf)


def text_of(plain: Any) -> str:
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(plain).encode())).decode().rstrip("=")


def test_a_cursor_comes_back_as_it_was_and_needs_no_escaping_in_a_url() -> None:
    for cursor in (FULL, Cursor(Filters(), Order.NEWEST)):
        text = encode(cursor)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
        assert decode(text) == cursor


def test_a_cursor_over_two_hundred_shards_fits_into_a_url() -> None:
    positions = {k: (k << RANGE_BITS) + 123_456_789 * k for k in range(1, 201)}
    assert len(encode(Cursor(FULL.filters, Order.NEWEST, positions))) < 4_000


def test_any_change_of_the_text_is_refused() -> None:
    text = encode(FULL)
    for at in range(len(text) - 1):  # the last character may hold bits that say nothing
        changed = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        with pytest.raises(InvalidInput, match="begin again without one"):
            decode(changed)
    for broken in ("", text[:-2], text + "AAAA", text + "\n", " " + text, text + "=", "%00", "A" * 70_000):
        with pytest.raises(InvalidInput, match="begin again without one"):
            decode(broken)
    for other in (None, 7, b"x"):
        with pytest.raises(InvalidInput, match="must be a str"):
            decode(other)


@pytest.mark.parametrize(
    "plain",
    [
        [2, "newest", {}, [], {}],
        [1, "newest", {}, []],
        [1, "sideways", {}, [], {}],
        [1, "newest", {"colour": "red"}, [], {}],
        [1, "newest", {"status": "lost"}, [], {}],
        [1, "newest", {"status": 7}, [], {}],
        [1, "newest", {"since": "2026-01-01T00:00:00"}, [], {}],
        [1, "newest", {"since": 5}, [], {}],
        [1, "newest", {"attributes": []}, [], {}],
        [1, "newest", {"name": "x\0"}, [], {}],
        [1, "newest", {}, [[1, 1.5]], {}],
        [1, "newest", {}, [[True, 1]], {}],
        [1, "newest", {}, [[-1, 1]], {}],
        [1, "newest", {}, [[1 << 19, 1]], {}],
        [1, "newest", {}, [[1, -2]], {}],
        [1, "newest", {}, [[1, 1 << 60]], {}],
        [1, "newest", {}, [1], {}],
        [1, "newest", {}, None, {}],
        [1, "newest", {}, [], []],
        [1, "newest", {}, [], {"s0": [["a", "b"]]}],
        {"version": 1},
        "text",
        None,
    ],
    ids=str,
)
def test_text_that_was_made_by_somebody_else_is_refused(plain: Any) -> None:
    assert decode(text_of([1, "newest", {}, [], {}])) == Cursor(Filters(), Order.NEWEST)
    with pytest.raises(InvalidInput, match="this is not a cursor"):
        decode(text_of(plain))


def test_a_small_text_that_unpacks_to_much_is_refused() -> None:
    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * 20_000_000, 9)).decode().rstrip("=")
    assert len(bomb) < 65_536
    with pytest.raises(InvalidInput, match="a part of it is missing"):
        decode(bomb)


def test_a_cursor_goes_with_its_own_filters_or_none() -> None:
    text = encode(FULL)
    assert resumed(text, FULL.filters, FULL.order) == FULL
    assert resumed(text, Filters(), Order.NEWEST) == FULL
    for asked, order in (
        (Filters(), Order.OLDEST),
        (Filters(name="other"), Order.OLDEST),
        (FULL.filters, Order.NEWEST),
    ):
        with pytest.raises(InvalidInput, match="the cursor belongs to a list with other filters"):
            resumed(text, asked, order)


def test_equal_filters_have_one_form() -> None:
    east = timezone(timedelta(hours=5))
    one = filters("failed", None, None, NOON, None, {"a": 1, "b": {"d": 2, "c": 3}})
    assert one == filters(
        [Status.FAILED, "failed"], None, None, NOON.astimezone(east), None, {"b": {"c": 3, "d": 2}, "a": 1}
    )
    assert filters(None, None, None, None, None, {}) == Filters()
    assert filters("running", None, None, None, None, None).of_submission is False
    assert one.of_submission


def test_a_time_before_or_after_everything_stays_so() -> None:
    least, most = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=timezone(timedelta(hours=-9)))
    asked = filters(None, None, None, least, most, None)
    assert asked.since is not None
    assert asked.until is not None
    assert asked.since - timedelta(minutes=1) < NOON < asked.until + timedelta(minutes=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"status": "sucseeded"}, 'did you mean "succeeded"'),
        ({"status": []}, "status must name one status at least"),
        ({"status": [3]}, "status must be one of ready, running"),
        ({"name": ""}, "workflow name must not be empty"),
        ({"queue": "q\0"}, "NUL"),
        ({"since": NOON.replace(tzinfo=None)}, "since must be a datetime with a time zone"),
        ({"until": "2026-01-01"}, "until must be a datetime"),
        ({"attributes": {"a": float("nan")}}, "attributes are not JSON"),
        ({"attributes": {"a": object()}}, "attributes are not JSON"),
        ({"attributes": {"a": "\ud800"}}, "attributes are not JSON"),
        ({"attributes": {"a": "\0"}}, "NUL"),
        ({"attributes": {1: 2}}, "text as its keys"),
        ({"attributes": "a=1"}, "must be a mapping"),
        ({"attributes": {"a": "x" * 2_100}}, "more than 2048"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    names = ("status", "name", "queue", "since", "until", "attributes")
    with pytest.raises(InvalidInput, match=message):
        filters(*(given.get(name) for name in names))


def test_orders_and_limits_are_checked() -> None:
    with pytest.raises(InvalidInput, match='did you mean "newest"'):
        order_of("newst")
    for limit in (0, -1, 10_001, True, 2.0, "5", None):
        with pytest.raises(InvalidInput, match="from 1 to 10000"):
            check_limit(limit, 10_000)
    assert check_limit(10_000, 10_000) == 10_000


def test_the_keys_of_a_range_are_those_of_a_shard() -> None:
    assert KEYS_PER_SHARD == 1 << RANGE_BITS


def test_parts_of_a_range_are_shown_only_as_far_as_all_of_them_were_looked_at() -> None:
    far = Stretch([row(9, 9), row(5, 5)])
    near = Stretch([row(8, 8)], Row(7, NOON, None))
    both = joined([far, near], newest=True)
    assert [r.wf for r in both.rows] == [9, 8]
    assert both.reached is not None
    assert both.reached.wf == 7
    assert [r.wf for r in joined([far, far], newest=False).rows] == [5, 9]
    nearer = Stretch([row(9, 9)], Row(8, NOON, None))
    assert [r.wf for r in joined([far, near, nearer], newest=True).rows] == [9, 8]
    assert [r.wf for r in joined([near, nearer], newest=False).rows] == []
    assert joined([near, nearer], newest=True).reached == nearer.reached
    assert joined([near, nearer], newest=False).reached == near.reached


def test_a_page_ends_where_a_stream_may_hold_what_comes_next() -> None:
    streams = {
        "a": Stretch([row(9, 9), row(1, 1)]),
        "b": Stretch([row(108, 8)], Row(105, NOON + timedelta(minutes=5), None)),
    }
    page = merged(streams, newest=True, limit=10)
    assert [r.wf for r in page.rows] == [9, 108]
    assert page.passed == {"a": 9, "b": 105}
    assert not page.complete


def test_a_shard_that_was_away_is_caught_up_when_it_is_back() -> None:
    here, there = (1 << RANGE_BITS, 2 << RANGE_BITS)
    start = Cursor(Filters(), Order.NEWEST)
    own = Part({1: Stretch([row(here + 5, 5), row(here + 3, 3)])}, {1: here + 5})
    rows, place, complete = advance(start, {"a": own}, {"b": "down"}, 1)
    assert ([r.wf for r in rows], complete) == ([here + 5], False)
    assert place.of("b") == {}
    assert place.of("a") == {1: here + 5}
    rest = Part({1: Stretch([row(here + 3, 3)])}, {1: here + 5})
    other = Part({2: Stretch([row(there + 9, 9), row(there + 1, 1)])}, {2: there + 9})
    rows, place, complete = advance(place, {"a": rest, "b": other}, {}, 2)
    assert [r.wf for r in rows] == [there + 9, here + 3]
    assert place.of("b") == {2: there + 9}
    assert not complete
    rows, place, complete = advance(
        place, {"a": Part({}, {1: here + 5}), "b": Part({2: Stretch([row(there + 1, 1)])}, {2: there + 9})}, {}, 2
    )
    assert ([r.wf for r in rows], complete) == ([there + 1], True)
