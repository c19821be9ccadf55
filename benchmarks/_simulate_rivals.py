"""The algorithms that the simulation compares: the one in use, and two that were not chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import mmh3

from shardflow.core.assignment import assign
from shardflow.core.assignment_model import (
    Assignment,
    Decision,
    Limits,
    ShardFacts,
    WorkerFacts,
    canonical,
    plan_moves,
)

Algorithm = Callable[[Sequence[WorkerFacts], Sequence[ShardFacts], Assignment, Limits], Decision]


def descent(
    workers: Sequence[WorkerFacts], shards: Sequence[ShardFacts], present: Assignment, limits: Limits
) -> Decision:
    """What shardflow does: improve the present leases until no rule applies."""
    return assign(workers, shards, present, limits)


def fresh(
    workers: Sequence[WorkerFacts], shards: Sequence[ShardFacts], present: Assignment, limits: Limits
) -> Decision:
    """The same greedy rules, but from nothing each time: no stickiness."""
    wanted = assign(workers, shards, _pinned(shards, present), limits).wanted
    return Decision(wanted, plan_moves(_live(workers, present), wanted))


def rendezvous(
    workers: Sequence[WorkerFacts], shards: Sequence[ShardFacts], present: Assignment, limits: Limits
) -> Decision:
    """Rendezvous hashing (Thaler & Ravishankar 1998) with bounded loads (Mirrokni, Thorup & Zadimoghaddam 2018).

    Group sizes by largest remainders; then the pairs of shard and worker in the order of their hash, as long as
    the group has a seat and the worker fewer leases than the bound. Needs no memory of the present leases.
    """
    pinned = _pinned(shards, present)
    leases = {worker.name: set(pinned.get(worker.name, ())) for worker in workers if worker.most}
    open_shards = {shard.name: shard for shard in shards if shard.reachable}
    seats = _seats(list(open_shards.values()), len(leases), limits)
    facts = {worker.name: worker for worker in workers}
    bound = max(1, math.ceil(sum(seats.values()) / max(1, len(leases))))
    while any(seats.values()) and bound <= len(shards):
        for worker, shard in _pairs(tuple(sorted(leases)), tuple(sorted(open_shards))):
            mine = leases[worker]
            if seats[shard] and len(mine) < min(bound, facts[worker].most) and shard not in mine:
                fact = facts[worker]
                if shard not in fact.cut_off and open_shards[shard].labels <= fact.labels:
                    mine.add(shard)
                    seats[shard] -= 1
        bound += 1
    wanted = canonical(leases)
    return Decision(wanted, plan_moves(_live(workers, present), wanted))


ALGORITHMS: Mapping[str, Algorithm] = {"descent": descent, "rendezvous": rendezvous, "fresh": fresh}


def demands(shards: Sequence[ShardFacts], limits: Limits) -> dict[str, float]:
    """Each shard's demand as the assignment defines it."""
    mean = math.fsum(shard.weight for shard in shards) / max(1, len(shards)) or 1.0
    return {shard.name: shard.weight / mean * limits.quiet + shard.backlog for shard in shards}


def _seats(shards: Sequence[ShardFacts], workers: int, limits: Limits) -> dict[str, int]:
    """Group sizes: `min_group` each, the rest by largest remainders of the demand up to `max_group`."""
    seats = {shard.name: min(limits.min_group, workers) for shard in shards}
    most = min(limits.max_group, workers)
    demand = demands(shards, limits)
    left = min(workers, most * len(shards)) - sum(seats.values())
    while left > 0 and (hungry := sorted(name for name in seats if seats[name] < most)):
        total = math.fsum(demand[name] for name in hungry) or 1.0
        share = {name: demand[name] / total * left for name in hungry}
        whole = {name: min(most - seats[name], math.floor(share[name])) for name in hungry}
        if not any(whole.values()):
            whole = {name: 1 for name in sorted(hungry, key=lambda name: (-share[name], name))[:left]}
        for name, more in whole.items():
            seats[name] += more
        left -= sum(whole.values())
    return seats


def _pinned(shards: Sequence[ShardFacts], present: Assignment) -> Assignment:
    away = {shard.name for shard in shards if not shard.reachable}
    return canonical({worker: leases & away for worker, leases in present.items()})


def _live(workers: Sequence[WorkerFacts], present: Assignment) -> Assignment:
    return canonical({worker.name: present.get(worker.name, frozenset()) for worker in workers})


@lru_cache(maxsize=1 << 21)
def _score(worker: str, shard: str) -> int:
    return mmh3.hash64(f"{worker}/{shard}", signed=False)[0]


@lru_cache(maxsize=2)
def _pairs(workers: tuple[str, ...], shards: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [(worker, shard) for worker in workers for shard in shards]
    return sorted(pairs, key=lambda pair: _score(*pair), reverse=True)
