from __future__ import annotations

from dataclasses import replace

import pytest

from shardflow.core.routing import slot_of
from shardflow.core.slotmap import ShardView, SlotMap, merge_views, plan_init, plan_slots, slot_ranges
from shardflow.errors import ClusterError


def view(name: str, rows: dict[int, str], *, slots: int = 4, generation: int = 1) -> ShardView:
    """A shard's view; a row is 'active', 'frozen', 'moved:target' or 'hint:owner'."""
    parsed = []
    for slot, text in rows.items():
        state, _, shard = text.partition(":")
        parsed.append((slot, state, shard or name))
    return ShardView(name, "orders", "id-1", slots, generation, parsed)


def test_a_slot_map_finds_the_shard_of_an_id():
    owners = tuple(f"s{slot % 3}" for slot in range(1024))
    slot_map = SlotMap(1024, owners, {"s0": 4})
    assert slot_map.shard_of("order-1") == f"s{slot_of('order-1', 1024) % 3}"
    assert slot_map.shard_of("{t}/1") == slot_map.shard_of("{t}/2")
    assert slot_map.slots_of("s1") == list(range(1, 1024, 3))
    assert slot_map.slots_of("nobody") == []


def test_a_slot_map_must_have_an_owner_for_every_slot():
    with pytest.raises(ClusterError, match="3 slots cannot have 2 owners"):
        SlotMap(3, ("a", "b"))


def test_equal_weights_get_equal_contiguous_ranges():
    assert plan_slots(8, {"b": 1, "a": 1}) == ("b",) * 4 + ("a",) * 4


def test_slots_follow_the_weights_by_largest_remainder():
    # Quotas 5.833, 2.333, 1.833 of 10: floors 5, 2, 1, and the two left go to the largest remainders.
    assert plan_slots(10, {"a": 3.5, "b": 1.4, "c": 1.1}) == ("a",) * 6 + ("b",) * 2 + ("c",) * 2


def test_a_light_shard_still_gets_a_slot_and_weight_zero_gets_none():
    assert plan_slots(4, {"heavy": 1000, "light": 0.001, "none": 0}) == ("heavy", "heavy", "heavy", "light")


def test_with_fewer_slots_than_shards_the_heaviest_get_them():
    assert plan_slots(2, {"a": 1, "b": 3, "c": 2}) == ("b", "c")


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -1}, {"a": float("nan")}, {"a": float("inf")}])
def test_weights_that_divide_nothing_are_refused(weights):
    with pytest.raises(ClusterError, match="weight"):
        plan_slots(4, weights)


def test_a_shards_word_on_its_own_slots_is_final():
    a = view("a", {0: "active", 1: "frozen", 2: "hint:a", 3: "hint:a"}, generation=5)
    b = view("b", {0: "hint:b", 1: "moved:c", 2: "active", 3: "active"}, generation=2)
    merged = merge_views([a, b])
    assert merged.owners == ("a", "a", "b", "b")
    assert merged.generations == {"a": 5, "b": 2}


def test_a_tombstone_beats_hints_while_its_target_is_not_heard():
    a = view("a", {0: "active", 1: "moved:c", 2: "active", 3: "active"})
    b = view("b", {1: "hint:a"})
    d = view("d", {1: "hint:b"})
    assert merge_views([a, b, d]).owners == ("a", "c", "a", "a")


def test_a_chain_of_tombstones_is_followed_to_its_end():
    a = view("a", {0: "moved:b", 1: "active", 2: "active", 3: "active"})
    b = view("b", {0: "moved:c"})
    for order in ([a, b], [b, a]):
        assert merge_views(order).owners[0] == "c"


def test_a_slot_on_its_way_back_has_one_of_its_two_ends_in_every_order():
    a = view("a", {0: "moved:b", 1: "active", 2: "active", 3: "active"})
    b = view("b", {0: "moved:a"})
    assert merge_views([a, b]).owners[0] == merge_views([b, a]).owners[0] == "a"


def test_a_shard_that_is_down_is_known_by_the_hints_of_the_others():
    a = view("a", {0: "active", 1: "active", 2: "hint:c", 3: "hint:c"})
    b = view("b", {0: "hint:a", 1: "hint:a", 2: "hint:c", 3: "hint:c"})
    merged = merge_views([a, b])
    assert merged.owners == ("a", "a", "c", "c")
    assert set(merged.generations) == {"a", "b"}


def test_a_hint_that_names_a_heard_shard_without_the_slot_is_stale():
    a = view("a", {0: "active", 1: "active", 2: "active", 3: "hint:b"})
    b = view("b", {3: "hint:c"})
    d = view("d", {3: "hint:b"})
    assert merge_views([a, b, d]).owners[3] == "c"


def test_two_shards_that_hold_one_slot_are_an_error_that_names_them():
    a = view("a", {0: "active", 1: "active", 2: "active", 3: "active"})
    b = view("b", {1: "active", 2: "frozen"})
    with pytest.raises(ClusterError, match=r"shards 'a' and 'b' both hold slots 1-2"):
        merge_views([a, b])


def test_a_slot_that_nobody_knows_is_an_error_that_names_it():
    with pytest.raises(ClusterError, match=r"who owns slots 1, 3 \(heard: a\)"):
        merge_views([view("a", {0: "active", 2: "active"})])
    with pytest.raises(ClusterError, match="no shard"):
        merge_views([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cluster": "other"}, "cluster 'orders' and shard 'b' to 'other'"),
        ({"cluster_id": "id-2"}, "two clusters that are both named 'orders'"),
        ({"slots": 8}, "'a' has 4 slots and shard 'b' has 8"),
        ({"name": "a"}, "two shards say that they are 'a'"),
        ({"rows": [(4, "hint", "a")]}, "'b' knows a slot 4"),
        ({"rows": [(1, "melted", "b")]}, "unknown state 'melted'"),
        ({"rows": [(1, "active", "old-b")]}, "in the name of 'old-b'"),
    ],
)
def test_views_that_do_not_belong_together_are_refused(change, message):
    a = view("a", {0: "active", 1: "active", 2: "active", 3: "active"})
    b = replace(view("b", {}), **change)
    with pytest.raises(ClusterError, match=message):
        merge_views([a, b])


def test_a_fresh_cluster_is_divided_by_weight():
    assert plan_init({"a": 3, "b": 1}, [], 4, cluster="orders") == ("a", "a", "a", "b")


def test_init_after_a_crash_goes_on_with_the_first_plan():
    # Only `a` was initialised, with hints for the rest, and then the weights and their order were edited.
    a = view("a", {0: "active", 1: "active", 2: "hint:b", 3: "hint:b"})
    assert plan_init({"b": 100, "a": 1}, [a], 4) == ("a", "a", "b", "b")


def test_a_shard_that_joins_gets_no_slots():
    a = view("a", {0: "active", 1: "active", 2: "hint:b", 3: "hint:b"})
    b = view("b", {0: "hint:a", 1: "hint:a", 2: "active", 3: "active"})
    assert plan_init({"a": 1, "b": 1, "c": 10}, [a, b], 4) == ("a", "a", "b", "b")


def test_init_refuses_to_forget_a_shard_that_owns_slots():
    a = view("a", {0: "active", 1: "active", 2: "hint:shard-b", 3: "hint:shard-b"})
    with pytest.raises(ClusterError, match=r"'shard-b' is part of this cluster.*did you mean \"shard_b\""):
        plan_init({"a": 1, "shard_b": 1}, [a], 4)


@pytest.mark.parametrize(
    ("slots", "cluster", "message"),
    [(4, "payments", "cluster 'orders', not to 'payments'"), (8, "orders", "initialised with 4 slots")],
)
def test_init_refuses_a_shard_of_another_cluster(slots, cluster, message):
    a = view("a", {0: "active", 1: "active", 2: "active", 3: "active"})
    with pytest.raises(ClusterError, match=message):
        plan_init({"a": 1}, [a], slots, cluster=cluster)


def test_slots_are_shown_as_ranges():
    assert slot_ranges([3]) == "slot 3"
    assert slot_ranges([9, 0, 1, 2, 5]) == "slots 0-2, 5, 9"
    assert slot_ranges(range(0, 40, 2)) == "slots 0, 2, 4, 6, 8, 10, 12, 14, ..."
