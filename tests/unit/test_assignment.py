"""The assignment, the safe order of moves, and the simulation, from literals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from shardflow.core.assignment import assign
from shardflow.core.assignment_model import Limits, Move, ShardFacts, WorkerFacts, apply_moves, plan_moves
from shardflow.errors import InvalidInput
from shardflow.resources import folder

PAIRS = Limits(min_group=2, max_group=4)
ALONE = Limits(min_group=1, max_group=4)


def crew(count: int) -> list[WorkerFacts]:
    return [WorkerFacts(f"w{i}") for i in range(count)]


def shards(count: int) -> list[ShardFacts]:
    return [ShardFacts(f"s{i}") for i in range(count)]


def held(*pairs: str) -> dict[str, frozenset[str]]:
    """`held("a:x,y", "b:x")`: a has leases on x and y, b on x."""
    return {pair.split(":")[0]: frozenset(pair.split(":")[1].split(",")) for pair in pairs}


def sizes(wanted: object) -> dict[str, int]:
    counts: dict[str, int] = {}
    assert hasattr(wanted, "values")
    for leases in wanted.values():
        for shard in leases:
            counts[shard] = counts.get(shard, 0) + 1
    return counts


def test_one_worker_serves_every_shard() -> None:
    assert assign(crew(1), shards(3), {}, PAIRS).wanted == {"w0": frozenset({"s0", "s1", "s2"})}


def test_two_workers_both_serve_every_shard_where_groups_are_pairs() -> None:
    wanted = assign(crew(2), shards(3), {}, PAIRS).wanted
    assert wanted == {name: frozenset({"s0", "s1", "s2"}) for name in ("w0", "w1")}


def test_many_workers_serve_one_shard_each() -> None:
    wanted = assign(crew(9), shards(3), {}, PAIRS).wanted
    assert {len(leases) for leases in wanted.values()} == {1}
    assert sizes(wanted) == {"s0": 3, "s1": 3, "s2": 3}


def test_workers_beyond_max_group_stay_idle() -> None:
    assert sizes(assign(crew(20), shards(3), {}, PAIRS).wanted) == {"s0": 4, "s1": 4, "s2": 4}


def test_nothing_is_assigned_where_there_is_nothing() -> None:
    assert assign([], shards(2), {"gone": {"s0"}}).moves == ()
    assert assign(crew(2), [], {}).wanted == {}


def test_a_newcomer_is_one_move_and_goes_where_the_load_is_highest() -> None:
    facts = [ShardFacts("calm"), ShardFacts("busy", backlog=600)]
    present = held("w0:calm", "w1:calm", "w2:busy", "w3:busy")
    moves = assign(crew(5), facts, present, PAIRS).moves
    assert [(move.worker, move.source, move.target) for move in moves] == [("w4", None, "busy")]
    assert moves[0].reason == "the worker was idle; the shard had the highest load, 8 per place"


def test_a_leaver_is_replaced_by_one_from_the_largest_group() -> None:
    present = held("a1:a", "a2:a", "a3:a", "b1:b", "b2:b")
    workers = [WorkerFacts(name) for name in ("a1", "a2", "a3", "b1")]
    moves = assign(workers, [ShardFacts("a"), ShardFacts("b")], present, PAIRS).moves
    assert [(move.source, move.target) for move in moves] == [("a", "b")]
    assert moves[0].reason == "the shard has 1 of 2 workers"


def test_backlog_draws_workers_only_beyond_the_gain() -> None:
    present = held("w0:s0", "w1:s0", "w2:s0", "w3:s1", "w4:s1", "w5:s1")
    slight = [ShardFacts("s0"), ShardFacts("s1", backlog=800)]
    large = [ShardFacts("s0"), ShardFacts("s1", backlog=900)]
    assert assign(crew(6), slight, present, PAIRS).moves == ()
    assert [(m.source, m.target) for m in assign(crew(6), large, present, PAIRS).moves] == [("s0", "s1")]


def test_what_was_adopted_in_excess_is_closed_and_nothing_else() -> None:
    present = held("w0:s0,s1", "w1:s0", "w2:s0", "w3:s1", "w4:s1")
    decision = assign(crew(5), shards(2), present, PAIRS)
    (move,) = decision.moves
    assert (move.worker, move.target) == ("w0", None)
    assert move.reason == "the shard has workers enough, and this one serves several"


def test_a_lease_is_handed_on_only_for_the_gain() -> None:
    five_and_three = held("w0:s0,s1,s2,s3,s4", "w1:s5,s6,s7")
    five_and_two = held("w0:s0,s1,s2,s3,s4", "w1:s5,s6")
    assert assign(crew(2), shards(8), five_and_three, ALONE).moves == ()
    assert len(assign(crew(2), shards(7), five_and_two, ALONE).moves) == 2


def test_a_group_that_is_too_large_shrinks_to_its_limit() -> None:
    present = held(*(f"w{i}:s0" for i in range(7)))
    assert sizes(assign(crew(7), shards(1), present, PAIRS).wanted) == {"s0": 4}


def test_help_comes_from_the_shard_that_misses_it_least() -> None:
    facts = [ShardFacts("middle", backlog=1_000), ShardFacts("calm"), ShardFacts("busy", backlog=3_000)]
    present = held(*(f"w{i}:{shard}" for i, shard in enumerate(["middle", "calm"] * 4 + ["busy"] * 3)))
    moves = assign(crew(11), facts, present, PAIRS).moves
    assert [(move.source, move.target) for move in moves] == [("calm", "busy")]


def test_weight_draws_workers_and_weight_nought_gets_the_least() -> None:
    facts = [ShardFacts("none", weight=0), ShardFacts("one"), ShardFacts("three", weight=3)]
    limits = Limits(min_group=1, max_group=20, gain=0.05)
    assert sizes(assign(crew(13), facts, {}, limits).wanted) == {"none": 1, "one": 3, "three": 9}


def test_larger_workers_count_for_more() -> None:
    workers = [WorkerFacts("big", capacity=300), *(WorkerFacts(f"w{i}") for i in range(4))]
    wanted = assign(workers, shards(2), {}, ALONE).wanted
    assert sorted(sizes(wanted).values()) == [2, 3]
    (with_big,) = wanted["big"]
    assert sizes(wanted)[with_big] == 2


def test_only_workers_with_the_labels_serve_a_shard_and_others_make_way() -> None:
    workers = [WorkerFacts("eu", labels=frozenset({"eu"}), max_leases=1), WorkerFacts("us", max_leases=1)]
    facts = [ShardFacts("any"), ShardFacts("private", labels=frozenset({"eu"}))]
    wanted = assign(workers, facts, held("eu:any"), ALONE).wanted
    assert wanted == held("eu:private", "us:any")


def test_each_queue_of_a_shard_has_a_worker_even_where_the_group_is_full() -> None:
    mail = [WorkerFacts(f"m{i}", queues=frozenset({"mail"})) for i in range(3)]
    orders = WorkerFacts("o", queues=frozenset({"orders"}))
    facts = [ShardFacts("s", queues=frozenset({"mail", "orders"}))]
    present = held("m0:s", "m1:s", "m2:s")
    wanted = assign([*mail, orders], facts, present, Limits(min_group=1, max_group=3)).wanted
    assert "o" in wanted
    assert sizes(wanted) == {"s": 3}


def test_a_draining_worker_gives_up_its_leases_after_its_relief_has_opened() -> None:
    workers = [WorkerFacts("old", capacity=0), WorkerFacts("new")]
    moves = assign(workers, shards(2), held("old:s0,s1"), ALONE).moves
    assert [(move.worker, move.source, move.target) for move in moves] == [
        ("new", None, "s0"),
        ("old", "s0", None),
        ("new", None, "s1"),
        ("old", "s1", None),
    ]
    assert moves[1].reason == "the worker drains"


def test_a_worker_that_is_cut_off_is_relieved_there() -> None:
    workers = [WorkerFacts("w0", cut_off=frozenset({"s0"})), WorkerFacts("w1")]
    wanted = assign(workers, shards(2), held("w0:s0", "w1:s1"), ALONE).wanted
    assert "w1" in wanted
    assert "s0" in wanted["w1"]
    assert "s0" not in wanted.get("w0", frozenset())


def test_a_swap_opens_before_it_closes() -> None:
    moves = plan_moves(held("a:x", "b:y"), held("a:y", "b:x"))
    assert moves == (Move("a", None, "y"), Move("b", "y", "x"), Move("a", "x", None))


def test_a_plan_is_cut_to_the_rate_and_goes_on_from_there() -> None:
    present, wanted = held("a:x,y,z"), held("b:x,y,z")
    first = plan_moves(present, wanted, 2)
    assert len(first) == 2
    rest = plan_moves(apply_moves(present, first), wanted)
    assert len(rest) == 4
    assert apply_moves(apply_moves(present, first), rest) == wanted


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: assign([WorkerFacts("w"), WorkerFacts("w")], [], {}), "two workers are named 'w'"),
        (lambda: assign([], [ShardFacts("s"), ShardFacts("s")], {}), "two shards are named 's'"),
        (lambda: WorkerFacts("w", capacity=-1), "capacity"),
        (lambda: ShardFacts("s", weight=float("nan")), "weight of shard 's'"),
        (lambda: ShardFacts("s", backlog=-1), "backlog of shard 's'"),
        (lambda: Limits(min_group=0), "min_group"),
        (lambda: Limits(min_group=3, max_group=2), "max_group"),
        (lambda: Limits(gain=0), "gain"),
        (lambda: Limits(quiet=0), "quiet"),
        (lambda: plan_moves({}, {}, -1), "max_moves"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: object, message: str) -> None:
    assert callable(wrong)
    with pytest.raises(InvalidInput, match=message):
        wrong()


def test_a_thousand_workers_and_two_hundred_shards_take_well_under_a_second() -> None:
    workers, facts = crew(1_000), [ShardFacts(f"s{i}", backlog=(i % 7) * 900) for i in range(200)]
    began = time.process_time()
    decision = assign(workers, facts, {})
    first = time.process_time() - began
    began = time.process_time()
    moves = assign(workers[1:], facts, decision.wanted).moves
    after_a_crash = time.process_time() - began
    assert len(moves) <= 1
    assert first < 1.0
    assert after_a_crash < 0.5


def simulated(*arguments: str, hash_seed: str) -> list[dict[str, object]]:
    script = folder("benchmarks") / "simulate.py"
    small = ("--workers", "40", "--shards", "8", "--hours", "0.3", "--seed", "7", "--json")
    done = subprocess.run(
        [sys.executable, str(script), *small, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_without_any_rebalancer_workers_adopt_what_nobody_serves() -> None:
    (run,) = simulated("--no-rebalancer", hash_seed="1")
    assert run["first_cover_s"] < 10  # type: ignore[operator]
    assert run["adopted"] == run["leases_opened"]
    assert run["covered_share"] >= 0.99  # type: ignore[operator]


def test_the_simulation_is_the_same_for_the_same_seed_and_leaves_little_alone() -> None:
    figures = simulated(hash_seed="1")
    assert figures == simulated(hash_seed="2")
    (run,) = figures
    assert run["events"] != {}
    assert run["covered_share"] >= 0.999  # type: ignore[operator]
    assert run["leases_opened_per_change"] <= 3  # type: ignore[operator]
    assert run["most_leases_per_server"] <= 16 + 4  # type: ignore[operator]
