"""From what the shards report to the facts that an assignment is made from, and from an assignment to what is to be
told to whom now.

Guarantee of `next_step`: as far as it was obeyed in any order and to any part, no shard loses a claimer that it needs
to have as many as it had or is to have, whichever is fewer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from ..model import ShardConfig
from .assignment_model import NONE, Assignment, Move, ShardFacts, WorkerFacts, canonical, plan_moves

#: Places of a worker of which nothing is known but its leases, where nothing is known of any other either.
UNKNOWN_CAPACITY = 100


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A row of the registry; times are the home shard's clock."""

    worker: str
    host: str
    pid: int
    app: str
    release: str
    code_version: str
    capacity: int
    max_leases: int
    queues: list[str]
    labels: list[str]
    pinned: bool
    started_at: datetime
    seen_at: datetime
    expires_at: datetime
    draining: bool
    beat: int
    running: int
    held: list[str]
    aims: list[str] | None
    cut_off: list[str]
    obeyed: int
    wanted: list[str] | None
    decision: int
    expired: bool
    gone: bool
    late: bool

    @property
    def told(self) -> frozenset[str]:
        """The shards that it aims at, or will as soon as it has read what it was told."""
        if self.wanted is not None and self.decision > self.obeyed and not self.pinned:
            return frozenset(self.wanted)
        return frozenset(self.held if self.aims is None else self.aims)

    @property
    def fresh(self) -> bool:
        """Nobody has told it anything yet."""
        return self.aims is None and self.decision <= self.obeyed


@dataclass(frozen=True, slots=True)
class Claimer:
    """A live lease: whose, on which queues (none: unknown), and whether it claims."""

    worker: str
    queues: list[str]
    claiming: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What a shard says: its part of the registry, its live leases, about how many workflows are ready."""

    workers: list[WorkerRow]
    leases: list[Claimer]
    backlog: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """The cluster as one look found it.

    `intended`: worker → shards that it holds or is about to; `holders`: shard → workers that claim there now;
    `rows`: worker → (home, row) of those that can be told something.
    """

    workers: tuple[WorkerFacts, ...]
    shards: tuple[ShardFacts, ...]
    intended: Assignment
    holders: Mapping[str, frozenset[str]]
    rows: Mapping[str, tuple[str, WorkerRow]]

    @property
    def membership(self) -> object:
        """Equal for two looks between which nothing but load has changed."""
        return self.workers, tuple((s.name, s.weight, s.reachable, s.labels, s.queues) for s in self.shards)


def alive(reports: Mapping[str, Report], dead: Collection[str] = ()) -> dict[str, tuple[str, WorkerRow]]:
    """Worker → (home, row) of those whose time is not over and that are not known to be dead.

    A worker that has moved its home has two rows for a while: one whose session is open counts rather than one whose
    session is closed, which may be of a former process of that name; else the one with more beats.
    """
    found: dict[str, tuple[str, WorkerRow]] = {}
    for home in sorted(reports):
        for row in reports[home].workers:
            known = found.get(row.worker)
            if not row.expired and row.worker not in dead and (known is None or _newer(row, known[1])):
                found[row.worker] = (home, row)
    return found


def _newer(row: WorkerRow, known: WorkerRow) -> bool:
    return (not row.gone, row.beat) > (not known.gone, known.beat)


def seen_gone(reports: Mapping[str, Report]) -> set[str]:
    """Workers whose session was closed just now at the home that they beat at last."""
    return {name for name, (_, row) in alive(reports).items() if row.gone}


def gather(
    shards: Iterable[ShardConfig],
    reports: Mapping[str, Report],
    dead: Collection[str] = (),
    unsettled: Collection[str] = (),
) -> Fleet:
    """The fleet. `reports` has the reachable shards; `dead`, workers that are gone although their time is not over;
    `unsettled`, shards that count as unreachable for a while longer, until all have found out that they are back.

    Workers that hold leases and are in no registry that was read (they run an earlier version, or their home is away)
    count as pinned, with as many places as most others. A shard that no worker for it reaches counts as unreachable,
    whoever else reaches it, and so does one that workers aim at and this configuration does not know (theirs is
    newer): its leases stay as they are.
    """
    rows = alive(reports, dead)
    holders: dict[str, set[str]] = {name: set() for name in reports}
    strangers: dict[str, set[str]] = {}
    their_queues: dict[str, set[str]] = {}
    for name, report in reports.items():
        for lease in report.leases:
            if lease.claiming and not (lease.worker in rows and rows[lease.worker][1].draining):
                holders[name].add(lease.worker)
            if lease.worker not in rows and lease.worker not in dead:
                strangers.setdefault(lease.worker, set()).add(name)
                their_queues.setdefault(lease.worker, set()).update(lease.queues)
    workers = [_facts(row) for _, row in rows.values()]
    sizes = sorted(worker.capacity for worker in workers if worker.capacity > 0)
    usual = sizes[len(sizes) // 2] if sizes else UNKNOWN_CAPACITY
    workers += [WorkerFacts(name, usual, frozenset(their_queues[name]), pinned=True) for name in strangers]
    intended = {name: row.told for name, (_, row) in rows.items()} | strangers
    kinds = {worker.queues for worker in workers if worker.capacity > 0}
    queues = frozenset().union(*kinds) if len(kinds) > 1 else NONE
    configured = list(shards)
    unknown = frozenset[str]().union(*intended.values()) - {shard.name for shard in configured}
    facts = tuple(
        ShardFacts(
            shard.name,
            shard.weight,
            reports[shard.name].backlog if shard.name in reports else 0.0,
            shard.name in reports and shard.name not in unsettled and not _out_of_reach(shard, workers),
            frozenset(shard.labels),
            queues,
        )
        for shard in configured
    ) + tuple(ShardFacts(name, reachable=False) for name in sorted(unknown))
    return Fleet(
        tuple(sorted(workers, key=lambda worker: worker.name)),
        facts,
        canonical(intended),
        {name: frozenset(found) for name, found in holders.items()},
        {name: found for name, found in rows.items() if not found[1].pinned and not found[1].draining},
    )


def _out_of_reach(shard: ShardConfig, workers: Iterable[WorkerFacts]) -> bool:
    """Whether there are workers that could serve the shard and all of them are cut off from it."""
    fit = [worker for worker in workers if worker.capacity > 0 and worker.labels.issuperset(shard.labels)]
    return bool(fit) and all(shard.name in worker.cut_off for worker in fit)


def _facts(row: WorkerRow) -> WorkerFacts:
    return WorkerFacts(
        row.worker,
        0 if row.draining else row.capacity,
        frozenset(row.queues),
        frozenset(row.labels),
        row.max_leases,
        frozenset(row.cut_off),
        row.pinned,
    )


@dataclass(frozen=True, slots=True)
class Step:
    """What to tell now: worker → all shards that it is wanted on; the moves in it; how many are left for later."""

    wishes: Mapping[str, frozenset[str]]
    moves: tuple[Move, ...]
    later: int


def next_step(
    fleet: Fleet, goal: Assignment, reasons: Mapping[tuple[str, str], str], *, min_group: int, moves: int
) -> Step:
    """The next moves towards the goal: all those that a shard with fewer than `min_group` workers needs, and at most
    `moves` others. A lease is closed only when those that claim on the shard and are to stay are enough without it.
    """
    sizes: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for counts, assignment in ((sizes, fleet.intended), (wanted, goal)):
        for shards in assignment.values():
            for shard in shards:
                counts[shard] = counts.get(shard, 0) + 1
    spare = {
        shard: sum(_stays(fleet, worker, shard) for worker in holders) - wanted.get(shard, 0)
        for shard, holders in fleet.holders.items()
    }
    wishes: dict[str, set[str]] = {}
    done: list[Move] = []
    left, later = moves, 0
    for move in plan_moves(fleet.intended, goal, reasons=reasons):
        if move.worker not in fleet.rows:
            continue
        source, target = move.source, move.target
        if source is not None:
            holds = move.worker in fleet.holders.get(source, NONE)
            if holds and spare.get(source, 0) <= 0:
                source = None
                later += 1
            elif holds:
                spare[source] -= 1
        if source is None and target is None:
            continue
        if target is None or sizes.get(target, 0) >= min_group:
            if left <= 0:
                later += 1
                continue
            left -= 1
        wish = wishes.setdefault(move.worker, set(fleet.intended.get(move.worker, NONE)))
        if target is not None:
            wish.add(target)
            sizes[target] = sizes.get(target, 0) + 1
        if source is not None:
            wish.discard(source)
        done.append(Move(move.worker, source, target, move.reason))
    for name, (_, row) in fleet.rows.items():
        if row.fresh:
            wishes.setdefault(name, set(fleet.intended.get(name, NONE)))
    return Step({name: frozenset(told) for name, told in sorted(wishes.items())}, tuple(done), later)


def _stays(fleet: Fleet, worker: str, shard: str) -> bool:
    """Whether a claimer is to go on there, and knows it: one that was told so and has not read it may yet leave."""
    if shard not in fleet.intended.get(worker, NONE):
        return False
    _, row = fleet.rows.get(worker, (None, None))
    return row is None or row.aims is None or shard in row.aims
