"""Ids of children: the same on every replay, different for each child, where they are wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow import InvalidInput
from shardflow.core.branches import CALL_BITS
from shardflow.core.childids import Children
from shardflow.core.routing import MAX_ID_BYTES, check_id, routing_key

_ids = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=200).filter(
    lambda text: len(text.encode()) <= MAX_ID_BYTES
)


@given(_ids, st.integers(0, 1 << 40), st.integers(1, 5))
def test_ids_are_valid_different_and_derived(parent: str, seq: int, count: int) -> None:
    children = Children.of(parent, seq, [None] * count, False, True)
    assert len({check_id(id) for id in children.ids}) == count
    assert Children.of(parent, seq, [None] * count, False, True) == children
    assert Children.from_json(children.to_json()).ids == children.ids
    other = Children.of(parent, seq + 1, [None] * count, False, True)
    assert not set(other.ids) & set(children.ids)
    (single,) = Children.of(parent, seq, [None], False, False).ids
    assert single not in children.ids


@given(_ids)
def test_colocated_children_share_the_parents_routing_key_or_are_refused(parent: str) -> None:
    try:
        children = Children.of(parent, 3, [None, None], True, True)
    except InvalidInput:
        assert set("{}") & set(parent) or len(parent.encode()) > MAX_ID_BYTES // 2
    else:
        assert {routing_key(id) for id in children.ids} == {routing_key(parent)}


def test_a_hash_tag_stays_however_deep() -> None:
    id = "{tenant-7}/order"
    for _ in range(200):
        (id,) = Children.of(id, 1, [None], False, False).ids
        assert routing_key(id) == "tenant-7"
        assert len(id.encode()) <= MAX_ID_BYTES


def test_given_ids_stand_in_their_places() -> None:
    children = Children.of("p", 1, [None, "mine"], False, True)
    assert list(children.ids) == ["p/1.0", "mine"]
    assert list(Children.from_json(children.to_json()).ids) == ["p/1.0", "mine"]


def test_the_form_is_stored_and_never_changes() -> None:
    assert Children.of("p", 7, [None], False, False).ids == ["p/7"]
    assert Children.of("p", 7, [None, None], False, True).ids == ["p/7.0", "p/7.1"]
    assert Children.of("p", 7, [None], True, False).ids == ["{p}/7"]
    assert Children.of("p", 5 << CALL_BITS | 2, [None], False, False).ids == ["p/5-2"]


@pytest.mark.parametrize("parent", ["a}b", "x" * 300])
def test_what_cannot_be_colocated_is_told(parent: str) -> None:
    with pytest.raises(InvalidInput, match="hash tag"):
        Children.of(parent, 1, [None], True, False)
