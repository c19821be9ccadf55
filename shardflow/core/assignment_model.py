"""What an assignment is made from and what it says, and the safe order in which it becomes true.

`plan_moves` never takes the last worker from a shard that is to keep one: a lease is closed only when its
group has more members than wanted, or has all of them. It looks at nothing but the present and the wanted
leases, so a plan that was interrupted anywhere is simply made again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shardflow.errors import InvalidInput

Assignment = Mapping[str, frozenset[str]]
"""Worker → the shards on which it holds, or is to hold, a lease. A worker without any is left out."""

NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the rebalancer knows of one live worker.

    `capacity` is its places (workflows at once), shared among its leases by what they ask for; a worker that drains
    has 0 and is given no lease. `queues` are those it dequeues from, none meaning all. `max_leases` bounds its
    leases. `cut_off` names the shards that it cannot reach while others can. One that is `pinned` keeps the leases it
    has: they count, and are not for the rebalancer to move.
    """

    name: str
    capacity: int = 100
    queues: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    max_leases: int = 1_000
    cut_off: frozenset[str] = frozenset()
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.capacity < 0 or self.max_leases < 0:
            raise InvalidInput(
                f"worker {self.name!r}: capacity and max_leases must be 0 or more, not {self.capacity} and "
                f"{self.max_leases}"
            )

    @property
    def most(self) -> int:
        """How many leases it may be given."""
        return self.max_leases if self.capacity > 0 and not self.pinned else 0


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the rebalancer knows of one shard.

    `weight` is relative to the other shards' (0: no more than `min_group`), `backlog` counts ready workflows. A
    worker fits if it has all of `labels` and, where `queues` are named, serves one of them; each named queue is
    covered on its own. `reachable=False`: nobody reaches it now, so its leases stay as they are.
    """

    name: str
    weight: float = 1.0
    backlog: float = 0.0
    reachable: bool = True
    labels: frozenset[str] = frozenset()
    queues: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for what, value in (("weight", self.weight), ("backlog", self.backlog)):
            if not math.isfinite(value) or value < 0:
                raise InvalidInput(f"the {what} of shard {self.name!r} must be 0 or more, not {value!r}")


@dataclass(frozen=True, slots=True)
class Limits:
    """How large groups are and how readily leases move.

    `min_group` and `max_group`: workers per shard. `gain`: a lease moves for load only if the shard that gives it
    then still has a load per place that is lower by more than this fraction (0.25: by a quarter) than that of the
    shard that gets it. `quiet`: a shard of average weight counts like one with this many workflows ready, on top of
    its backlog; differences well below it are noise.
    """

    min_group: int = 2
    max_group: int = 16
    gain: float = 0.25
    quiet: float = 1_000.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_group <= self.max_group:
            raise InvalidInput(f"1 <= min_group <= max_group must hold, not {self.min_group} and {self.max_group}")
        if not math.isfinite(self.gain) or self.gain < 0.01:
            raise InvalidInput(f"gain must be 0.01 or more, or leases never rest, not {self.gain!r}")
        if not math.isfinite(self.quiet) or self.quiet <= 0:
            raise InvalidInput(f"quiet must be more than 0 workflows, not {self.quiet!r}")


@dataclass(frozen=True, slots=True)
class Move:
    """One worker opens a lease on `target`, if any, and then closes the one on `source`, if any."""

    worker: str
    source: str | None
    target: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The wanted leases; all moves from the present ones in a safe order; why each lease is opened or closed.

    `reasons` is keyed by (worker, shard), for `plan_moves`.
    """

    wanted: Assignment
    moves: tuple[Move, ...] = ()
    reasons: Mapping[tuple[str, str], str] = field(default_factory=dict)


def canonical(assignment: Mapping[str, Iterable[str]]) -> Assignment:
    """The same leases, read-only, workers in order, those without a lease left out."""
    leases = {worker: frozenset(assignment[worker]) for worker in sorted(assignment)}
    return MappingProxyType({worker: shards for worker, shards in leases.items() if shards})


def apply_moves(present: Mapping[str, Iterable[str]], moves: Iterable[Move]) -> Assignment:
    """The leases after these moves; opening one that is open, or closing one that is closed, changes nothing."""
    leases = {worker: set(shards) for worker, shards in present.items()}
    for move in moves:
        held = leases.setdefault(move.worker, set())
        if move.target is not None:
            held.add(move.target)
        if move.source is not None:
            held.discard(move.source)
    return canonical(leases)


def plan_moves(
    present: Mapping[str, Iterable[str]],
    wanted: Mapping[str, Iterable[str]],
    max_moves: int | None = None,
    *,
    reasons: Mapping[tuple[str, str], str] | None = None,
) -> tuple[Move, ...]:
    """The next moves from the present leases to the wanted ones, at most `max_moves` (None: all).

    Arguments: both worker → shards, `present` the leases of live workers; `reasons` by (worker, shard), as in
    `Decision`. Shards without any worker come first. After every prefix a shard's group has at least
    the smaller of its present and its wanted size, and at most the larger of its present size and one more than
    its wanted size. A worker closes before, or as, it opens where groups allow it; where they do not (two workers
    that swap) it holds one lease more for a while. Empty only if nothing is left to do or `max_moves` is 0. Raises
    `InvalidInput` for a negative `max_moves`.

    The habit of safe single transitions, re-planned after each, is that of Patroni's quorum.py.
    """
    if max_moves is not None and max_moves < 0:
        raise InvalidInput(f"max_moves must be 0 or more, not {max_moves}")
    plan = _Plan(canonical(present), canonical(wanted), reasons or {}, max_moves)
    plan.run()
    return tuple(plan.moves)


class _Plan:
    """Leases that are missing and leases that are extra, by worker and by shard, until there are none."""

    def __init__(
        self, present: Assignment, wanted: Assignment, reasons: Mapping[tuple[str, str], str], limit: int | None
    ) -> None:
        self.moves: list[Move] = []
        self.reasons = reasons
        self.limit = limit
        self.held = {worker: len(present.get(worker, ())) for worker in (*present, *wanted)}
        self.aim = {worker: len(wanted.get(worker, ())) for worker in self.held}
        self.size: dict[str, int] = {}
        self.wanted_size: dict[str, int] = {}
        for sizes, assignment in ((self.size, present), (self.wanted_size, wanted)):
            for shards in assignment.values():
                for shard in shards:
                    sizes[shard] = sizes.get(shard, 0) + 1
        self.missing = {w: set(wanted.get(w, NONE) - present.get(w, NONE)) for w in sorted(self.held)}
        self.extra = {w: set(present.get(w, NONE) - wanted.get(w, NONE)) for w in sorted(self.held)}
        self.joining = _by_shard(self.missing)
        self.leaving = _by_shard(self.extra)

    def run(self) -> None:
        for shard in sorted(self.joining):
            if self.size.get(shard, 0) == 0:
                self._open(min(self.joining[shard], key=lambda w: (self.held[w] >= self.aim[w], w)), shard)
        self._close_all(sorted(self.leaving))
        todo = deque(self._openings())
        passed = 0
        while todo and not self._full:
            worker, shard = todo.popleft()
            if shard not in self.missing[worker]:
                continue
            if self.held[worker] >= self.aim[worker] and passed < len(todo):
                todo.append((worker, shard))
                passed += 1
                continue
            passed = 0
            self._open(worker, shard)
            self._close_all([shard])

    def _openings(self) -> list[tuple[str, str]]:
        """Missing leases, so that groups grow evenly."""
        turns = [
            (self.size.get(shard, 0) + turn, shard, worker)
            for shard, joining in self.joining.items()
            for turn, worker in enumerate(sorted(joining))
        ]
        return [(worker, shard) for _, shard, worker in sorted(turns)]

    def _close_all(self, shards: list[str]) -> None:
        """Closes what may be closed, each together with an opening of the same worker that has a use for it."""
        todo = deque(shards)
        while todo and not self._full:
            source = todo.popleft()
            while self._closable(source) and not self._full:
                worker = min(self.leaving[source])
                target = self._wish(worker)
                self._emit(worker, source, target)
                if target is not None:
                    todo.append(target)

    def _wish(self, worker: str) -> str | None:
        rooms = [
            (self.size.get(shard, 0) - self.wanted_size[shard], shard)
            for shard in self.missing[worker]
            if self.size.get(shard, 0) <= self.wanted_size[shard]
        ]
        return min(rooms)[1] if rooms else None

    def _open(self, worker: str, target: str) -> None:
        if not self._full:
            source = min((shard for shard in self.extra[worker] if self._closable(shard)), default=None)
            self._emit(worker, source, target)

    def _closable(self, shard: str) -> bool:
        if not self.leaving.get(shard):
            return False
        return not self.joining.get(shard) or self.size[shard] > self.wanted_size.get(shard, 0)

    def _emit(self, worker: str, source: str | None, target: str | None) -> None:
        reason = ""
        if source is not None:
            self.extra[worker].discard(source)
            self.leaving[source].discard(worker)
            self.size[source] -= 1
            self.held[worker] -= 1
            reason = self.reasons.get((worker, source), "")
        if target is not None:
            self.missing[worker].discard(target)
            self.joining[target].discard(worker)
            self.size[target] = self.size.get(target, 0) + 1
            self.held[worker] += 1
            reason = self.reasons.get((worker, target), reason)
        self.moves.append(Move(worker, source, target, reason))

    @property
    def _full(self) -> bool:
        return self.limit is not None and len(self.moves) >= self.limit


def _by_shard(leases: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    shards: dict[str, set[str]] = {}
    for worker, held in leases.items():
        for shard in held:
            shards.setdefault(shard, set()).add(worker)
    return shards
