"""The fleet as the shards report it, and what is told to whom, from literals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from shardflow.core.assignment import assign
from shardflow.core.assignment_model import Move, canonical
from shardflow.core.fleet import (
    UNKNOWN_CAPACITY,
    Claimer,
    Fleet,
    Report,
    Step,
    WorkerRow,
    gather,
    next_step,
    seen_gone,
)
from shardflow.model import ShardConfig

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ROW = WorkerRow(
    worker="w",
    host="host",
    pid=1,
    app="app",
    release="0.1.0",
    code_version="",
    capacity=1000,
    max_leases=64,
    queues=["default"],
    labels=[],
    pinned=False,
    started_at=NOON,
    seen_at=NOON,
    expires_at=NOON,
    draining=False,
    beat=1,
    running=0,
    held=[],
    aims=[],
    cut_off=[],
    obeyed=0,
    wanted=None,
    decision=0,
    expired=False,
    gone=False,
    late=False,
)


def at(name: str, shards: str = "", **changes: Any) -> WorkerRow:
    """A worker that holds and aims at these shards, with a letter each."""
    return replace(ROW, **{"worker": name, "held": list(shards), "aims": list(shards)} | changes)


def shards(names: str = "abc") -> list[ShardConfig]:
    return [ShardConfig(name, f"host={name}") for name in names]


def seen(
    *workers: WorkerRow,
    names: str = "abc",
    strangers: Mapping[str, str] | None = None,
    leaving: Mapping[str, str] | None = None,
    dead: Collection[str] = (),
    away: str = "",
) -> Fleet:
    """What is gathered where all workers are at home on the first shard and have the leases that they say.

    `strangers`: leases of workers without a row; `leaving`: leases that claim no more; `away`: shards that do not
    answer, and the registry with them where the first one is.
    """
    leases: dict[str, list[Claimer]] = {name: [] for name in names}
    for row in workers:
        for shard in row.held:
            claiming = shard not in (leaving or {}).get(row.worker, "")
            leases[shard].append(Claimer(row.worker, row.queues, claiming))
    for name, held in (strangers or {}).items():
        for shard in held:
            leases[shard].append(Claimer(name, [], True))
    reports = {
        name: Report(list(workers) if name == names[0] else [], leases[name], 0) for name in names if name not in away
    }
    return gather(shards(names), reports, dead)


def goal(**wanted: str) -> Mapping[str, frozenset[str]]:
    return canonical({worker: set(held) for worker, held in wanted.items()})


def told(step: Step) -> dict[str, str]:
    return {worker: "".join(sorted(wanted)) for worker, wanted in step.wishes.items()}


def after(fleet: Fleet, wanted: Mapping[str, frozenset[str]], min_group: int = 1, moves: int = 100) -> Step:
    return next_step(fleet, wanted, {}, min_group=min_group, moves=moves)


# -- what is gathered


def test_of_two_rows_the_one_with_more_beats_counts() -> None:
    old, new = at("w", "a", beat=7, aims=["a"]), at("w", "b", beat=8, aims=["b"])
    for first, second in ((old, new), (new, old)):
        fleet = gather(shards("ab"), {"a": Report([first], [], 0), "b": Report([second], [], 0)})
        assert fleet.intended == {"w": {"b"}}
        assert fleet.rows["w"] == ("a" if first is new else "b", new)


def test_a_row_with_a_closed_session_does_not_hide_a_new_process_of_that_name() -> None:
    former, present = at("w", "a", beat=900, gone=True), at("w", beat=3)
    reports = {"a": Report([former], [], 0), "b": Report([present], [], 0)}
    assert seen_gone(reports) == set()
    assert gather(shards("ab"), reports).rows["w"] == ("b", present)


def test_who_is_expired_or_known_to_be_dead_is_not_there() -> None:
    workers = [at("alive", "a"), at("expired", "a", expired=True), at("dead", "a", gone=True)]
    fleet = seen(*workers, dead={"dead"})
    assert [worker.name for worker in fleet.workers] == ["alive", "expired"]
    assert next(w for w in fleet.workers if w.name == "expired").pinned  # its lease lives: it may come back
    assert "dead" not in fleet.intended


def test_a_worker_counts_as_gone_only_where_it_beat_at_last() -> None:
    gone, moved = at("w", beat=5, gone=True), at("w", beat=6)
    assert seen_gone({"a": Report([gone], [], 0)}) == {"w"}
    assert seen_gone({"a": Report([gone], [], 0), "b": Report([moved], [], 0)}) == set()
    assert seen_gone({"a": Report([gone], [], 0), "b": Report([replace(moved, gone=True)], [], 0)}) == {"w"}
    assert seen_gone({"a": Report([replace(gone, expired=True)], [], 0)}) == set()


def test_a_closed_session_seen_once_is_still_a_worker() -> None:
    assert seen(at("w", "a", gone=True)).intended == {"w": {"a"}}


def test_strangers_keep_what_they_hold_and_cannot_be_told_anything() -> None:
    fleet = seen(at("w", "a", capacity=7), at("v", "a", capacity=9), strangers={"old": "ab"})
    (old,) = [worker for worker in fleet.workers if worker.name == "old"]
    assert old.pinned
    assert old.capacity == 9
    assert fleet.intended["old"] == {"a", "b"}
    assert fleet.holders == {"a": {"old", "v", "w"}, "b": {"old"}, "c": frozenset()}
    assert "old" not in fleet.rows
    assert told(after(fleet, goal(w="c", v="c"))) == {"v": "c", "w": "c"}


def test_where_all_are_strangers_they_have_the_usual_places() -> None:
    (old,) = seen(strangers={"old": "a"}).workers
    assert old.capacity == UNKNOWN_CAPACITY


def test_the_pinned_count_and_are_not_told() -> None:
    fleet = seen(at("p", "a", pinned=True, wanted=["b"], decision=1), at("w", "b"))
    assert fleet.intended["p"] == {"a"}
    assert told(after(fleet, goal(p="b", w="a"))) == {"w": "ab"}  # b would be left alone


def test_the_draining_have_no_places_and_do_not_count_as_claimers() -> None:
    fleet = seen(at("d", "a", draining=True), at("w", "a"))
    assert {worker.name: worker.capacity for worker in fleet.workers} == {"d": 0, "w": 1000}
    assert fleet.holders["a"] == {"w"}
    assert set(fleet.rows) == {"w"}
    assert told(after(fleet, goal(w="b"))) == {"w": "b"}  # nobody is wanted on a any more
    assert told(after(seen(at("d", "a", draining=True), at("w", "a"), at("v", "b")), goal(w="b", v="a"))) == {
        "v": "ab",
        "w": "ab",
    }


def test_a_wish_that_waits_counts_as_if_it_were_obeyed() -> None:
    pending = at("w", "a", wanted=["b"], decision=4, obeyed=3)
    obeyed = replace(pending, obeyed=4)
    assert seen(pending).intended == {"w": {"b"}}
    assert seen(obeyed).intended == {"w": {"a"}}  # it has adopted what it aims at since
    assert after(seen(pending), goal(w="b")).wishes == {}


def test_what_a_worker_aims_at_counts_before_what_it_holds() -> None:
    assert seen(at("w", "a", aims=["b"])).intended == {"w": {"b"}}
    assert seen(at("w", "a", aims=None)).intended == {"w": {"a"}}


def test_a_shard_that_does_not_answer_is_unreachable_and_what_aims_at_it_stays() -> None:
    fleet = seen(at("w", "ab"), away="b")
    assert {shard.name: shard.reachable for shard in fleet.shards} == {"a": True, "b": False, "c": True}
    assert fleet.intended == {"w": {"a", "b"}}
    assert "b" not in fleet.holders


def test_a_shard_from_which_all_are_cut_off_is_unreachable() -> None:
    def reachable(*workers: WorkerRow, labels: tuple[str, ...] = ()) -> bool:
        fleet = gather([ShardConfig("a", "host=a", labels=labels)], {"a": Report(list(workers), [], 0)})
        return fleet.shards[0].reachable

    cut, near, drains = at("w", cut_off=["a"]), at("v"), at("d", draining=True)
    assert not reachable(cut)
    assert not reachable(cut, drains)
    assert reachable(cut, near)
    assert reachable()
    assert not reachable(replace(cut, labels=["x"]), near, labels=("x",))


def test_a_shard_that_came_back_just_now_counts_as_unreachable() -> None:
    reports = {name: Report([], [], 0) for name in "ab"}
    fleet = gather(shards("ab"), reports, unsettled={"b": 1.0})
    assert {shard.name: shard.reachable for shard in fleet.shards} == {"a": True, "b": False}


def test_a_shard_that_only_others_know_keeps_its_leases() -> None:
    fleet = gather(shards("a"), {"a": Report([at("w", aims=["a", "new"], held=["a", "new"])], [], 0)})
    assert {shard.name: shard.reachable for shard in fleet.shards} == {"a": True, "new": False}
    decision = assign(fleet.workers, fleet.shards, fleet.intended)
    assert decision.wanted == {"w": {"a", "new"}}
    assert after(fleet, decision.wanted).wishes == {}


def test_queues_are_covered_each_where_workers_differ_in_them() -> None:
    same = seen(at("w", queues=["x"]), at("v", queues=["x"]))
    assert {shard.queues for shard in same.shards} == {frozenset()}
    differ = seen(at("w", queues=["x"]), at("v", queues=["x", "y"]))
    assert {shard.queues for shard in differ.shards} == {frozenset({"x", "y"})}
    drains = seen(at("w", queues=["x"]), at("v", queues=["x", "y"], draining=True))
    assert {shard.queues for shard in drains.shards} == {frozenset()}


def test_membership_is_the_same_where_only_load_has_changed() -> None:
    def look(backlog: int, *workers: WorkerRow, also: Collection[str] = ()) -> object:
        reports = {"a": Report(list(workers), [], backlog)} | {name: Report([], [], 0) for name in also}
        return gather(shards("ab"), reports).membership

    first = look(0, at("w", "a", running=1))
    assert look(99, at("w", "ab", running=2, beat=9)) == first
    assert look(0, at("w", "a"), at("v")) != first
    assert look(0, at("w", "a", draining=True)) != first
    assert look(0, at("w", "a", cut_off=["b"])) != first
    assert look(0, at("w", "a"), also="b") != first


# -- what is told


def test_nothing_is_told_where_all_is_as_wanted() -> None:
    step = after(seen(at("v", "a"), at("w", "bc")), goal(v="a", w="bc"))
    assert step == Step({}, (), 0)


def test_a_fresh_worker_is_told_even_that_it_is_not_needed() -> None:
    fresh = at("w", aims=None)
    assert told(after(seen(fresh), goal())) == {"w": ""}
    assert after(seen(fresh), goal()).moves == ()
    assert told(after(seen(fresh), goal(w="a"))) == {"w": "a"}
    waiting = replace(fresh, wanted=[], decision=1)
    assert after(seen(waiting), goal()).wishes == {}


def test_a_close_waits_until_the_group_can_spare_it() -> None:
    leaver, joiner = at("v", "a"), at("w", "b")
    first = after(seen(leaver, joiner), goal(v="b", w="a"))
    assert told(first) == {"v": "ab", "w": "ab"}
    assert first.later == 2
    both = seen(replace(leaver, aims=["a", "b"]), replace(joiner, aims=["a", "b"], held=["a", "b"]))
    assert told(after(both, goal(v="b", w="a"))) == {"v": "b"}  # w alone claims on b still


def test_who_only_aims_at_a_shard_does_not_count_as_a_claimer() -> None:
    fleet = seen(at("v", "ab"), at("w", aims=["a"], held=[]))
    assert after(fleet, goal(v="b", w="a")) == Step({}, (), 1)
    assert told(after(seen(at("v", "ab"), at("w", "a")), goal(v="b", w="a"))) == {"v": "b"}


def test_who_was_told_to_leave_does_not_count_as_one_who_stays() -> None:
    leaving = at("u", "ab", wanted=["b"], decision=1)
    fleet = seen(leaving, at("v", "ab"), at("w", aims=["a"], held=[]))
    assert after(fleet, goal(u="b", v="b", w="a")) == Step({}, (), 1)


def test_of_several_that_may_leave_as_many_stay_as_are_wanted() -> None:
    joiner = at("w", aims=["a"], held=[])
    step = after(seen(at("t", "a"), at("u", "a"), at("v", "a"), joiner), goal(w="a"))
    assert len(step.moves) == 2
    assert step.later == 1


def test_who_was_told_to_stay_after_all_counts_when_it_has_read_it() -> None:
    leaving = at("u", held=["a"], aims=["b"], wanted=["a"], decision=1)
    fleet = seen(leaving, at("v", "ab"))
    assert after(fleet, goal(u="a", v="b")) == Step({}, (), 1)
    stays = seen(replace(leaving, aims=["a"], obeyed=1), at("v", "ab"))
    assert told(after(stays, goal(u="a", v="b"))) == {"v": "b"}


def test_who_claims_no_more_does_not_count_either() -> None:
    fleet = seen(at("u", "ab"), at("v", "ab"), leaving={"u": "a"})
    assert after(fleet, goal(u="ab", v="b")) == Step({}, (), 1)


def test_a_lease_that_is_not_held_is_closed_whatever_the_group() -> None:
    fleet = seen(at("w", aims=["a", "b"], held=["b"]))
    assert told(after(fleet, goal(w="b"))) == {"w": "b"}


def test_the_budget_bounds_moves_and_what_is_short_of_workers_goes_beside_it() -> None:
    workers = [at(f"w{n}", "a") for n in range(5)]
    wanted = goal(w0="a", w1="b", w2="b", w3="b", w4="b")
    step = after(seen(*workers), wanted, min_group=2, moves=1)
    assert [move.target for move in step.moves] == ["b", "b", "b"]  # two that b needs, one of the budget
    assert step.later == 1
    assert len(after(seen(*workers), wanted, min_group=4, moves=0).moves) == 4
    assert len(after(seen(*workers), wanted, min_group=1, moves=0).moves) == 1


def test_closes_are_of_the_budget() -> None:
    fleet = seen(*(at(f"w{n}", "a") for n in range(5)))
    step = after(fleet, goal(w0="a"), moves=2)
    assert len(step.moves) == 2
    assert step.later == 2
    assert set(told(step).values()) == {""}


def test_a_worker_with_several_moves_is_told_once_and_all() -> None:
    step = after(seen(at("w", "a")), goal(w="abc"))
    assert told(step) == {"w": "abc"}
    assert len(step.moves) == 2


def test_moves_carry_the_reasons() -> None:
    fleet = seen(at("v", "a"), at("w", "ab"))
    step = next_step(fleet, goal(v="a", w="b"), {("w", "a"): "enough"}, min_group=1, moves=1)
    assert step.moves == (Move("w", "a", None, "enough"),)


@pytest.mark.parametrize("gone", ["v", "nobody"])
def test_a_goal_for_somebody_who_is_not_there_is_left_out(gone: str) -> None:
    step = after(seen(at("w", "a"), *([at("v", pinned=True)] if gone == "v" else [])), goal(w="a", **{gone: "b"}))
    assert step.wishes == {}
