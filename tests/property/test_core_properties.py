from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shardflow.core.codec import CallCodec, decode, encode, same_after_roundtrip
from shardflow.core.redact import redact_dsn
from shardflow.core.retry import Retry
from shardflow.core.routing import check_id, new_id, routing_key, slot_of
from shardflow.core.slotmap import ShardView, merge_views, plan_init, plan_slots
from shardflow.errors import ClusterError, InvalidWorkflowId, SerializationError

text = st.text(st.characters(exclude_categories=["Cs"]))
slot_counts = st.integers(1, 300)
names = st.sampled_from("abcdefgh")
weights = st.dictionaries(names, st.floats(0, 1e6), min_size=1).filter(lambda w: any(w.values()))


# Routing


@given(text, st.integers(1, 65536))
def test_a_slot_is_in_range_and_belongs_to_the_routing_key(workflow_id, slots):
    slot = slot_of(workflow_id, slots)
    assert 0 <= slot < slots
    key = routing_key(workflow_id)
    assume("{" not in key)
    assert slot == slot_of(key, slots)


@given(text.filter(lambda t: t and "}" not in t), text.filter(lambda t: "{" not in t), text, slot_counts)
def test_ids_of_one_hash_tag_share_a_slot(tag, before, after, slots):
    assert routing_key(f"{before}{{{tag}}}{after}") == tag
    assert slot_of(f"{before}{{{tag}}}{after}", slots) == slot_of(f"{{{tag}}}", slots)


@given(st.text(max_size=600))
def test_an_id_is_accepted_exactly_where_it_can_be_stored(workflow_id):
    try:
        storable = 1 <= len(workflow_id.encode()) <= 512 and "\0" not in workflow_id
    except UnicodeEncodeError:
        storable = False
    if storable:
        assert check_id(workflow_id) == workflow_id
    else:
        with pytest.raises(InvalidWorkflowId):
            check_id(workflow_id)


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**74 - 1))
def test_a_generated_id_keeps_every_bit_it_was_made_of(unix_ms, bits):
    made = uuid.UUID(new_id(unix_ms, bits))
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert made.int >> 80 == unix_ms
    assert (made.int >> 64 & 0xFFF) << 62 | made.int & 2**62 - 1 == bits


@given(st.integers(0, 2**48 - 2), st.integers(0, 2**74 - 1), st.integers(0, 2**74 - 1))
def test_generated_ids_sort_by_time(unix_ms, one, other):
    assert new_id(unix_ms, one) < new_id(unix_ms + 1, other)


# Slot map


@given(slot_counts, weights)
def test_every_slot_has_one_owner_in_contiguous_ranges(slots, by_name):
    owners = plan_slots(slots, by_name)
    assert len(owners) == slots
    changes = 1 + sum(one != other for one, other in pairwise(owners))
    assert changes == len(set(owners))
    assert all(by_name[owner] > 0 for owner in owners)


@given(slot_counts, weights)
def test_every_positive_weight_gets_a_slot_while_there_are_enough(slots, by_name):
    positive = {name for name, weight in by_name.items() if weight > 0}
    assert len(set(plan_slots(slots, by_name))) == min(slots, len(positive))


@given(slot_counts, st.dictionaries(names, st.integers(1, 20), min_size=1))
def test_shares_are_proportional_to_within_a_slot(slots, by_name):
    total = sum(by_name.values())
    # Where every quota is at least one slot, nothing is taken away for the light shards.
    assume(all(slots * weight >= total for weight in by_name.values()))
    owners = plan_slots(slots, by_name)
    for name, weight in by_name.items():
        assert abs(owners.count(name) - slots * weight / total) < 1


@given(slot_counts, weights, st.data())
def test_any_order_of_views_gives_the_map_that_the_shards_hold(slots, by_name, data):
    owners = plan_slots(slots, by_name)
    views = [
        ShardView(
            name,
            "c",
            "id",
            slots,
            generation,
            [(slot, "active" if owner == name else "hint", owner) for slot, owner in enumerate(owners)],
        )
        for generation, name in enumerate(by_name)
    ]
    heard = data.draw(st.permutations(views).flatmap(lambda v: st.integers(1, len(v)).map(lambda n: v[:n])))
    merged = merge_views(heard)
    assert merged.owners == owners
    assert merged.generations == {view.name: view.generation for view in heard}
    # `cluster init` may be run again after any crash, with weights edited, and plans the same.
    edited = {name: weight + 1 for name, weight in reversed(list(by_name.items()))}
    assert plan_init({**edited, "joined": 5.0}, heard, slots) == owners


@given(st.lists(st.tuples(names, st.sampled_from(["active", "frozen", "moved", "hint"]), names), max_size=12))
def test_a_merged_map_never_contradicts_a_holder(rows):
    views: dict[str, list[tuple[int, str, str]]] = {}
    for name, state, target in rows:
        if name not in views:
            views[name] = [(0, state, name if state in ("active", "frozen") else target)]
    assume(views)
    holders = {name for name, [(_, state, _)] in views.items() if state in ("active", "frozen")}
    said = [ShardView(name, "c", "id", 1, 0, view) for name, view in views.items()]
    if len(holders) > 1:
        with pytest.raises(ClusterError, match="both hold slot 0"):
            merge_views(said)
        return
    (owner,) = merge_views(said).owners
    assert owner == merge_views(said[::-1]).owners[0]
    assert {owner} == holders or not holders


# Retry


@st.composite
def retries(draw: st.DrawFn) -> Retry:
    initial = draw(st.floats(0, 100))
    return Retry(
        attempts=draw(st.integers(1, 100)),
        initial=initial,
        factor=draw(st.floats(1, 1000)),
        maximum=initial + draw(st.floats(0, 1000)),
        jitter=draw(st.floats(0, 1)),
    )


@given(retries(), st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_wait_lies_between_its_jittered_and_its_full_length(retry, failed, random):
    full = retry.delay(failed, 0.0)
    wait = retry.delay(failed, random)
    assert 0 <= full <= retry.maximum
    assert full * (1 - retry.jitter) <= wait * (1 + 1e-12) + 1e-300
    assert wait <= full


@given(retries(), st.integers(1, 10_000))
def test_the_bound_of_the_waits_never_falls(retry, failed):
    assert retry.delay(failed, 0.0) <= retry.delay(failed + 1, 0.0)
    assert retry.delay(1, 0.0) == retry.initial


@given(retries())
def test_a_failing_call_is_tried_exactly_as_often_as_was_asked(retry):
    tries = 1
    while retry.may_retry(tries, ValueError()):
        tries += 1
    assert tries == retry.attempts


# Codec


class Colour(Enum):
    RED = "red"
    NUMBER = 7
    PAIR = ("a", 1)


@dataclass
class Record:
    when: datetime
    wait: timedelta
    price: Decimal
    id: uuid.UUID
    blob: bytes
    colour: Colour
    tags: set[int]
    names: frozenset[str]
    by_day: dict[date, list[time]]
    pair: tuple[int, str | None]
    child: Record | None = None


zones = st.none() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
records = st.builds(
    Record,
    when=st.datetimes(timezones=zones),
    wait=st.timedeltas(),
    price=st.decimals(allow_nan=False),
    id=st.uuids(),
    blob=st.binary(),
    colour=st.sampled_from(Colour),
    tags=st.sets(st.integers()),
    names=st.frozensets(text),
    by_day=st.dictionaries(st.dates(), st.lists(st.times()), max_size=3),
    pair=st.tuples(st.integers(), st.none() | text),
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
plain = st.recursive(scalars, lambda of: st.lists(of) | st.dictionaries(text, of), max_leaves=20)


@given(plain)
def test_json_values_come_back_equal_and_of_the_same_type(value):
    data = encode(value, what="x")
    assert json.loads(data) == value
    again = decode(data, what="x")
    assert again == value
    assert type(again) is type(value)


@given(records, st.none() | records)
def test_typed_values_come_back_equal(record, child):
    record.child = child
    assert decode(encode(record, what="x"), Record, what="x") == record


@given(st.recursive(st.text() | st.floats() | scalars, st.lists, max_leaves=10))
def test_encoding_gives_bytes_that_can_be_read_or_a_serialization_error(value):
    message, data = "", b""
    try:
        data = encode(value, what="x")
    except SerializationError as error:
        message = str(error)
    assert message.startswith("x, at $") if message else json.loads(data) == value


@given(scalars | st.floats())
def test_what_is_called_the_same_is_the_same(value):
    assert same_after_roundtrip(value) == (not isinstance(value, float) or math.isfinite(value))
    if same_after_roundtrip(value):
        again = decode(encode(value, what="x"), what="x")
        assert again == value
        assert type(again) is type(value)


@given(st.sampled_from([int, str, Record, list[int], dict[int, date], Colour, int | date, tuple[int, ...]]), plain)
def test_decoding_anything_gives_a_value_or_a_serialization_error(annotation: Any, value):
    message, decoded = "", None
    try:
        decoded = decode(encode(value, what="x"), annotation, what="x")
    except SerializationError as error:
        message = str(error)
    if message:
        assert message.startswith("x, at $")
    else:
        assert decode(encode(decoded, what="x"), annotation, what="x") == decoded


@given(st.lists(plain), st.dictionaries(text.filter(bool), plain))
def test_any_arguments_come_back(args, kwargs):
    def anything(*args: Any, **kwargs: Any) -> Any: ...

    codec = CallCodec(anything)
    assert codec.decode_call(codec.encode_call(tuple(args), kwargs)) == (tuple(args), kwargs)


# Redaction


secrets = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1).map(lambda s: f"s3cr3t{s}t3rc3s")


@given(secrets)
def test_no_password_of_either_form_is_shown(secret):
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    for dsn in (f"postgresql://user:{secret}@host/db", f"host=h password='{quoted}' dbname=d"):
        shown = redact_dsn(dsn)
        assert "s3cr3t" not in shown
        assert "t3rc3s" not in shown
        assert "***" in shown
