"""The laws of the assignment and of the moves that lead to it, over random clusters."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from shardflow.core.assignment import assign
from shardflow.core.assignment_model import (
    Assignment,
    Limits,
    Move,
    ShardFacts,
    WorkerFacts,
    apply_moves,
    canonical,
    plan_moves,
)

NONE: frozenset[str] = frozenset()
LABELS = ("big", "eu")
QUEUES = ("mail", "orders", "video")

laws = settings(deadline=None, max_examples=60)
more_laws = settings(deadline=None, max_examples=120)
subsets = st.frozensets
limits = st.builds(
    lambda low, more, gain, quiet: Limits(low, low + more, gain, quiet),
    st.integers(1, 3),
    st.sampled_from([0, 1, 3, 20]),
    st.sampled_from([0.05, 0.25, 1.0]),
    st.sampled_from([1.0, 1_000.0]),
)


@st.composite
def worker_lists(draw: st.DrawFn, *, equal: bool = False, shards: int = 8) -> list[WorkerFacts]:
    names = [f"w{i}" for i in range(draw(st.integers(1, 14)))]
    if equal:
        return [WorkerFacts(name) for name in names]
    return [
        WorkerFacts(
            name,
            capacity=draw(st.sampled_from([0, 1, 10, 100, 100, 100])),
            queues=draw(subsets(st.sampled_from(QUEUES), max_size=2)),
            labels=draw(subsets(st.sampled_from(LABELS))),
            max_leases=draw(st.sampled_from([0, 1, 1, 2, 3, 100])),
            cut_off=draw(subsets(st.sampled_from([f"s{i}" for i in range(shards)]), max_size=2)),
        )
        for name in names
    ]


@st.composite
def shard_lists(draw: st.DrawFn, *, plain: bool = False, queues: bool = True, most: int = 8) -> list[ShardFacts]:
    return [
        ShardFacts(
            f"s{i}",
            weight=draw(st.sampled_from([0.0, 1.0, 1.0, 2.0, 5.5])),
            backlog=draw(st.sampled_from([0, 0, 3, 900, 50_000])),
            reachable=draw(st.sampled_from([True, True, True, False])) or plain,
            labels=NONE if plain else draw(subsets(st.sampled_from(LABELS), max_size=1)),
            queues=NONE if plain or not queues else draw(subsets(st.sampled_from(QUEUES), max_size=2)),
        )
        for i in range(draw(st.integers(1, most)))
    ]


@st.composite
def assignments(draw: st.DrawFn, workers: int = 16, shards: int = 9) -> dict[str, frozenset[str]]:
    """Any leases at all, of workers and shards that may not exist any more, too."""
    names = [f"s{i}" for i in range(shards)]
    held = draw(st.lists(subsets(st.sampled_from(names), max_size=4), max_size=workers))
    return {f"w{i}": leases for i, leases in enumerate(held)}


def leases_of(assignment: Mapping[str, frozenset[str]]) -> set[tuple[str, str]]:
    return {(worker, shard) for worker, shards in assignment.items() for shard in shards}


def groups_of(assignment: Mapping[str, frozenset[str]]) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for worker, shard in leases_of(assignment):
        groups.setdefault(shard, set()).add(worker)
    return groups


def fits(worker: WorkerFacts, shard: ShardFacts) -> bool:
    serves = not shard.queues or not worker.queues or bool(shard.queues & worker.queues)
    return shard.labels <= worker.labels and serves and shard.name not in worker.cut_off


def live_part(present: Mapping[str, frozenset[str]], workers: Sequence[WorkerFacts]) -> Assignment:
    return canonical({worker.name: present.get(worker.name, NONE) for worker in workers})


@laws
@given(worker_lists(), shard_lists(), assignments(), limits)
def test_assigning_again_changes_nothing(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    once = assign(workers, shards, present, limits)
    again = assign(workers, shards, once.wanted, limits)
    assert again.wanted == once.wanted
    assert again.moves == ()
    assert apply_moves(live_part(present, workers), once.moves) == once.wanted


@laws
@given(worker_lists(), shard_lists(), assignments(), limits, st.randoms(use_true_random=False))
def test_the_order_of_the_facts_does_not_matter(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: dict[str, frozenset[str]], limits: Limits,
    order: random.Random,
) -> None:  # fmt: skip
    first = assign(workers, shards, present, limits)
    held = list(present.items())
    for facts in (workers, shards, held):
        order.shuffle(facts)  # type: ignore[arg-type]
    second = assign(workers, shards, {worker: list(shards) for worker, shards in held}, limits)
    assert (second.wanted, second.moves, second.reasons) == (first.wanted, first.moves, first.reasons)


@laws
@given(worker_lists(), shard_lists(), assignments(), limits)
def test_capacity_labels_queues_and_limits_are_respected(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    wanted = assign(workers, shards, present, limits).wanted
    by_name = {shard.name: shard for shard in shards}
    groups = groups_of(wanted)
    assert wanted.keys() <= {worker.name for worker in workers}
    assert all(len(groups.get(shard.name, ())) <= limits.max_group for shard in shards if shard.reachable)
    for worker in workers:
        leases = wanted.get(worker.name, NONE)
        pinned = {name for name in leases if not by_name[name].reachable}
        assert len(leases) <= max(worker.most, len(pinned))
        assert all(fits(worker, by_name[name]) for name in leases - pinned)


@laws
@given(worker_lists(), shard_lists(), assignments(), limits)
def test_an_unreachable_shard_keeps_its_leases_and_gets_none(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    wanted = assign(workers, shards, present, limits).wanted
    before, after = groups_of(live_part(present, workers)), groups_of(wanted)
    for shard in shards:
        if not shard.reachable:
            assert after.get(shard.name) == before.get(shard.name)


@laws
@given(worker_lists(), shard_lists(), assignments(), limits, st.data())
def test_a_shard_that_becomes_unreachable_moves_nothing_nor_does_its_return(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits, data: st.DataObject
) -> None:
    rest = assign(workers, shards, present, limits).wanted
    gone = data.draw(subsets(st.sampled_from([shard.name for shard in shards]), min_size=1))
    outage = [replace(shard, reachable=shard.reachable and shard.name not in gone) for shard in shards]
    assert assign(workers, outage, rest, limits).moves == ()


@laws
@given(worker_lists(), shard_lists(), assignments(), limits)
def test_each_move_says_why(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    decision = assign(workers, shards, present, limits)
    assert all(move.reason for move in decision.moves)
    assert decision.reasons.keys() == leases_of(live_part(present, workers)) ^ leases_of(decision.wanted)


def most_seats(workers: Sequence[WorkerFacts], shards: Sequence[ShardFacts], each: int) -> int:
    """The most seats, `each` per shard, that can be filled at once: maximum flow by plain augmentation."""
    taken: dict[str, set[str]] = {shard.name: set() for shard in shards}
    held: dict[str, set[str]] = {worker.name: set() for worker in workers}
    by_name = {shard.name: shard for shard in shards}

    def place(root: ShardFacts) -> bool:
        came: dict[str, tuple[str, str]] = {}
        todo, seen, asked = deque([root.name]), {root.name}, set[str]()
        while todo:
            here = todo.popleft()
            for worker in workers:
                if worker.name in asked or not fits(worker, by_name[here]) or worker.name in taken[here]:
                    continue
                asked.add(worker.name)
                if len(held[worker.name]) < worker.most:
                    taker, at = worker.name, here
                    while True:
                        taken[at].add(taker)
                        held[taker].add(at)
                        if at == root.name:
                            return True
                        taker, onward = came[at]
                        taken[at].discard(taker)
                        held[taker].discard(at)
                        at = onward
                for onward in sorted(held[worker.name] - seen):
                    seen.add(onward)
                    came[onward] = (worker.name, here)
                    todo.append(onward)
        return False

    return sum(place(shard) for shard in shards for _ in range(each) if shard.reachable)


@more_laws
@given(worker_lists(), shard_lists(queues=False), assignments(), limits)
def test_every_reachable_shard_has_its_workers_where_that_is_possible(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    shards = [replace(shard, reachable=True) for shard in shards]
    groups = groups_of(assign(workers, shards, present, limits).wanted)
    sizes = [len(groups.get(shard.name, ())) for shard in shards]
    assert sum(size >= 1 for size in sizes) == most_seats(workers, shards, 1), "a shard without a worker"
    if most_seats(workers, shards, limits.min_group) == limits.min_group * len(shards):
        assert min(sizes) >= limits.min_group


@laws
@given(worker_lists(), shard_lists(), assignments(), limits)
def test_a_queue_is_left_alone_only_if_nobody_free_serves_it(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    wanted = assign(workers, shards, present, limits).wanted
    groups = groups_of(wanted)
    for shard in (shard for shard in shards if shard.reachable):
        members = [worker for worker in workers if worker.name in groups.get(shard.name, ())]
        for queue in shard.queues:
            if any(not worker.queues or queue in worker.queues for worker in members):
                continue
            for worker in workers:
                room = len(wanted.get(worker.name, NONE)) < worker.most and len(members) < limits.max_group
                serves = not worker.queues or queue in worker.queues
                assert not (room and serves and fits(worker, shard)), f"{worker.name} could serve {queue}"


@laws
@given(st.integers(1, 40), st.integers(1, 12), limits, st.lists(st.sampled_from([0, 5, 800, 9_000]), min_size=12))
def test_a_worker_serves_one_shard_where_there_are_many_workers_and_all_where_it_is_alone(
    workers: int, shards: int, limits: Limits, backlogs: list[int]
) -> None:
    crew = [WorkerFacts(f"w{i}") for i in range(workers)]
    facts = [ShardFacts(f"s{i}", backlog=backlogs[i]) for i in range(shards)]
    wanted = assign(crew, facts, {}, limits).wanted
    counts = [len(wanted.get(worker.name, ())) for worker in crew]
    seats = min(limits.min_group, workers) * shards
    assert sum(counts) == max(seats, min(workers, limits.max_group * shards))
    assert max(counts) <= max(1, (min(counts) + 1) * (1 + limits.gain)), "one serves many more than another"
    for leavers in range(1, min(4, workers - seats + 1)):
        wanted = assign(crew[leavers:], facts, wanted, limits).wanted
        assert max(len(leases) for leases in wanted.values()) == 1, "one serves two shards, and there are enough"


@laws
@given(worker_lists(equal=True), shard_lists(plain=True), assignments(), limits)
def test_no_shard_is_loaded_much_more_than_one_that_could_give_a_worker(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits
) -> None:
    groups = groups_of(assign(workers, shards, present, limits).wanted)
    mean = math.fsum(shard.weight for shard in shards) / len(shards) or 1.0
    demand = {shard.name: shard.weight / mean * limits.quiet + shard.backlog for shard in shards}
    size = {shard.name: len(groups.get(shard.name, ())) for shard in shards}
    for giver in demand:
        for taker in demand:
            if size[giver] > limits.min_group and size[taker] < limits.max_group:
                left = demand[giver] / (size[giver] - 1)
                assert demand[taker] / size[taker] <= left * (1 + limits.gain) * (1 + 1e-9)


@laws
@given(worker_lists(equal=True), shard_lists(plain=True), limits, st.data())
def test_more_backlog_never_means_fewer_workers(
    workers: list[WorkerFacts], shards: list[ShardFacts], limits: Limits, data: st.DataObject
) -> None:
    rest = assign(workers, shards, {}, limits).wanted
    busy = data.draw(st.sampled_from(shards))
    loaded = [replace(shard, backlog=shard.backlog + 100_000) if shard is busy else shard for shard in shards]
    before, after = groups_of(rest), groups_of(assign(workers, loaded, rest, limits).wanted)
    size, others = len(before.get(busy.name, ())), len(workers) - limits.min_group * (len(shards) - 1)
    assert len(after.get(busy.name, ())) >= size
    if all(shard.backlog <= 900 for shard in shards if shard is not busy) and others > 0:
        assert len(after[busy.name]) >= min(limits.max_group, others, size + 1), "nobody came to help"


@laws
@given(worker_lists(), shard_lists(), assignments(), limits, st.data())
def test_small_changes_of_the_load_move_nothing(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits, data: st.DataObject
) -> None:
    shards = [replace(shard, weight=0.0) for shard in shards]
    rest = assign(workers, shards, present, limits).wanted
    calmer = replace(limits, gain=(1 + limits.gain) * 1.25 - 1)
    factor = math.sqrt(1.25) * 0.999
    noisy = [
        replace(shard, backlog=shard.backlog * data.draw(st.floats(1 / factor, factor), label=shard.name))
        for shard in shards
    ]
    assert assign(workers, noisy, rest, calmer).moves == ()


@laws
@given(st.integers(1, 60), st.integers(1, 10), limits, st.lists(st.floats(0, 0.99), min_size=10, max_size=10))
def test_backlogs_far_below_quiet_move_nothing_in_an_even_cluster(
    workers: int, shards: int, limits: Limits, noise: list[float]
) -> None:
    crew = [WorkerFacts(f"w{i}") for i in range(workers)]
    even = [ShardFacts(f"s{i}") for i in range(shards)]
    rest = assign(crew, even, {}, limits).wanted
    noisy = [replace(even[i], backlog=noise[i] * limits.gain * limits.quiet) for i in range(shards)]
    assert assign(crew, noisy, rest, limits).moves == ()


@more_laws
@given(worker_lists(equal=True), shard_lists(plain=True), assignments(), limits, st.data())
def test_few_leases_move_when_one_worker_joins_or_leaves(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits, data: st.DataObject
) -> None:
    limits = replace(limits, gain=0.25)
    rest = assign(workers, shards, present, limits).wanted
    if len(workers) > 1 and data.draw(st.booleans(), label="leaves"):
        leaver = data.draw(st.sampled_from(workers))
        after = [worker for worker in workers if worker is not leaver]
        own = len(rest.get(leaver.name, ()))
    else:
        after = [*workers, WorkerFacts("newcomer")]
        own = 0
    held = live_part(rest, after)
    wanted = assign(after, shards, held, limits).wanted
    opened, closed = leases_of(wanted) - leases_of(held), leases_of(held) - leases_of(wanted)
    leases = max(len(leases_of(rest)), len(leases_of(wanted)))
    bound = max(own, math.ceil(leases / min(len(after), len(workers))))
    assert len(opened) <= bound + 1
    assert len(closed) <= bound + 1
    if min(len(after), len(workers)) >= limits.min_group * len(shards):
        assert len(opened) <= 1
        assert len(closed) <= 1


@laws
@given(assignments(), assignments())
def test_a_plan_leads_to_what_is_wanted_and_uncovers_nothing_on_the_way(
    present: dict[str, frozenset[str]], wanted: dict[str, frozenset[str]]
) -> None:
    moves = plan_moves(present, wanted)
    before, after = groups_of(present), groups_of(wanted)
    state = canonical(present)
    for move in moves:
        for part in (Move(move.worker, None, move.target), Move(move.worker, move.source, None)):
            state = apply_moves(state, [part])
            now = groups_of(state)
            for shard in before.keys() | after.keys():
                was, will = len(before.get(shard, ())), len(after.get(shard, ()))
                assert min(was, will) <= len(now.get(shard, ())) <= max(was, will + 1)
    assert state == canonical(wanted)


@laws
@given(assignments(), assignments(), st.integers(0, 6), st.randoms(use_true_random=False))
def test_a_plan_that_is_interrupted_anywhere_and_made_again_ends_as_wanted(
    present: dict[str, frozenset[str]], wanted: dict[str, frozenset[str]], rate: int, luck: random.Random
) -> None:
    state, aim = canonical(present), canonical(wanted)
    kept = groups_of(state).keys() & groups_of(aim).keys()
    left = len(leases_of(state) ^ leases_of(aim))
    while moves := plan_moves(state, aim, rate + 1):
        assert len(moves) <= rate + 1
        done = luck.randint(1, len(moves))
        state = apply_moves(state, moves[:done])
        assert kept <= groups_of(state).keys()
        assert len(leases_of(state) ^ leases_of(aim)) <= left - done, "a move that leads nowhere"
        left = len(leases_of(state) ^ leases_of(aim))
    assert state == aim
    assert plan_moves(present, wanted, 0) == ()


@laws
@given(assignments(), assignments())
def test_shards_without_any_worker_come_first(
    present: dict[str, frozenset[str]], wanted: dict[str, frozenset[str]]
) -> None:
    dark = groups_of(wanted).keys() - groups_of(present).keys()
    assert {move.target for move in plan_moves(present, wanted, len(dark))} == dark


@laws
@given(worker_lists(), shard_lists(), assignments(), limits, st.randoms(use_true_random=False))
def test_deciding_again_after_every_interruption_converges_and_uncovers_nothing(
    workers: list[WorkerFacts], shards: list[ShardFacts], present: Assignment, limits: Limits, luck: random.Random
) -> None:
    state = live_part(present, workers)
    for _ in range(200):
        decision = assign(workers, shards, state, limits)
        moves = plan_moves(state, decision.wanted, 5, reasons=decision.reasons)
        if not moves:
            break
        kept = groups_of(state).keys() & groups_of(decision.wanted).keys()
        for move in moves[: luck.randint(1, len(moves))]:
            state = apply_moves(state, [Move(move.worker, None, move.target)])
            assert kept <= groups_of(state).keys()
            if luck.random() < 0.9:
                state = apply_moves(state, [Move(move.worker, move.source, None)])
            assert kept <= groups_of(state).keys()
    else:
        raise AssertionError("it never comes to rest")
    assert assign(workers, shards, state, limits).moves == ()
