"""Which worker is to serve which shard: a descent from the present leases by improvements only.

Every rule makes one of these better and none before it worse, in this order: shards with a worker, with two, up to
`min_group`; leases beyond a worker's first; idle workers; leases per place; the heaviest loads. So it ends, and
where it ended no rule applies: assigning again changes nothing, and what is good enough stays where it is.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import mmh3

from shardflow.core.assignment_model import (
    NONE,
    Assignment,
    Decision,
    Limits,
    ShardFacts,
    WorkerFacts,
    canonical,
    plan_moves,
)
from shardflow.errors import InvalidInput

_DEFAULTS = Limits()

_ROUNDS = 50  #: Every rule improves, so a few rounds do; what these find is good enough.


def assign(
    workers: Iterable[WorkerFacts],
    shards: Iterable[ShardFacts],
    present: Mapping[str, Iterable[str]],
    limits: Limits = _DEFAULTS,
) -> Decision:
    """The leases that the workers should hold, and the moves that lead there from those they hold.

    Arguments: all live workers and all shards of the cluster, in any order; `present`, worker → shards on which it
    holds a lease (workers and shards that are not listed are gone, and their leases with them); `limits`. Returns the
    wanted leases, moves in the order of `plan_moves`, reasons. The same facts always give the same answer.

    Guarantees, for what the facts allow: as many reachable shards as possible have a worker, then two, up to
    `min_group` (exact where no shard names queues, else by a heuristic); no group is larger than `max_group`; no
    worker has more leases than it may. With more workers than `min_group` seats each worker serves one shard, with
    fewer several. Workers beyond `min_group` go where the load, (weight / mean weight × `quiet` + backlog) / places,
    is highest. An unreachable shard keeps its leases and gets none; that it goes or comes back moves nothing.

    Moves: let all workers be equal and fit everywhere, L be the leases and W the workers of the smaller cluster, at
    rest. One who joins opens at most ⌈L / W⌉ leases and as many close. One who leaves makes others open at most what
    it held, or ⌈L / W⌉, and one more. Where W ≥ `min_group` × shards, both are 1, and that is proven: Adams' method
    moves nobody else. The rest is held by a property and by 130,000 random changes at gain 0.25, min_group up to 5.
    Loads that all change by less than the factor √((1 + new gain) / (1 + old gain)) move nothing, and a lease that
    moved for load comes back only after the ratio of the two loads has changed by (1 + gain)².

    Raises `InvalidInput` for a name that occurs twice.

    Sources: coverage is bipartite b-matching by shortest augmenting paths (Kuhn 1955); groups grow by Adams' divisor
    method, which keeps the heaviest load lowest and is house-monotone (Balinski & Young, Fair Representation, 1982).
    benchmarks/simulate.py compares it with rendezvous hashing under bounded loads and with starting from nothing.
    """
    board = _Board(workers, shards, limits)
    board.adopt(present)
    board.enforce_limits()
    for _ in range(_ROUNDS):
        changes = board.changes
        board.cover()
        board.trim()
        board.spread()
        board.employ()
        board.level()
        if board.changes == changes:
            break
    wanted = board.assignment()
    live = canonical({worker.name: present.get(worker.name, ()) for worker in board.workers})
    changed = {(w, s) for w in live.keys() | wanted.keys() for s in live.get(w, NONE) ^ wanted.get(w, NONE)}
    reasons = {lease: board.reasons[lease] for lease in sorted(changed)}
    return Decision(wanted, plan_moves(live, wanted, reasons=reasons), reasons)


class _Board:
    """The leases while they are being decided; workers and shards are indices, in the order of a hash of their names.

    The hash keeps neighbours in name, who often share a host, out of one group. An *item* is what has to be covered:
    one per shard, or one for each queue that the shard names.
    """

    def __init__(self, workers: Iterable[WorkerFacts], shards: Iterable[ShardFacts], limits: Limits) -> None:
        self.workers = sorted(workers, key=lambda worker: _rank(worker.name))
        self.shards = sorted(shards, key=lambda shard: _rank(shard.name))
        for what, facts in (("workers", self.workers), ("shards", self.shards)):
            for name, times in Counter(fact.name for fact in facts).items():
                if times > 1:
                    raise InvalidInput(f"two {what} are named {name!r}: names must be unique in a cluster")
        self.limits = limits
        self.changes = 0
        self.reasons: dict[tuple[str, str], str] = {}
        self.leases: list[set[int]] = [set() for _ in self.workers]
        self.groups: list[set[int]] = [set() for _ in self.shards]
        self.capacity = [worker.capacity for worker in self.workers]
        self.most = [worker.most for worker in self.workers]
        mean = math.fsum(shard.weight for shard in self.shards) / max(1, len(self.shards)) or 1.0
        self.demand = [shard.weight / mean * limits.quiet + shard.backlog for shard in self.shards]
        self.powers: list[float | None] = [None] * len(self.shards)
        self.item_shard: list[int] = []
        self.item_name: list[str] = []
        self.items = self._items()
        self.counts = [0] * len(self.item_shard)
        # Most free places per lease first; those that can hold no lease are not in it.
        self.order = sorted(self._turn(w) for w in range(len(self.workers)) if self.most[w] > 0)

    def _items(self) -> list[list[tuple[int, ...]]]:
        """For each worker and each shard, the items it covers there; none: it may not serve that shard."""
        queue_items: list[dict[str, int]] = []
        for s, shard in enumerate(self.shards):
            queue_items.append({})
            for queue in sorted(shard.queues) or [""]:
                queue_items[s][queue] = len(self.item_shard)
                self.item_shard.append(s)
                self.item_name.append(f" for queue {queue!r}" if queue else "")
        rows: dict[tuple[frozenset[str], frozenset[str], frozenset[str]], list[tuple[int, ...]]] = {}
        for worker in self.workers:
            kind = (worker.queues, worker.labels, worker.cut_off)
            if kind not in rows:
                rows[kind] = [
                    tuple(i for queue, i in items.items() if not queue or not worker.queues or queue in worker.queues)
                    if shard.labels <= worker.labels and shard.name not in worker.cut_off
                    else ()
                    for shard, items in zip(self.shards, queue_items, strict=True)
                ]
        return [rows[worker.queues, worker.labels, worker.cut_off] for worker in self.workers]

    def _turn(self, w: int) -> tuple[bool, float, int]:
        held = len(self.leases[w])
        return (held > 0, (held + 1) / self.capacity[w], w)

    def open(self, w: int, s: int, why: str) -> None:
        self._change(w, s, 1, why)

    def close(self, w: int, s: int, why: str) -> None:
        self._change(w, s, -1, why)

    def _change(self, w: int, s: int, by: int, why: str) -> None:
        self.reasons[self.workers[w].name, self.shards[s].name] = why
        if self.most[w] > 0:
            del self.order[bisect_left(self.order, self._turn(w))]
        for held in self.leases[w]:
            self.powers[held] = None
        if by > 0:
            self.leases[w].add(s)
            self.groups[s].add(w)
        else:
            self.leases[w].discard(s)
            self.groups[s].discard(w)
        self.powers[s] = None
        for item in self.items[w][s]:
            self.counts[item] += by
        if self.most[w] > 0:
            insort(self.order, self._turn(w))
        self.changes += 1

    def load(self, s: int, without: int | None = None) -> float:
        """Workflows per place of the shard, where a worker's places divide among its leases."""
        power = self.powers[s]
        if power is None:
            power = self.powers[s] = math.fsum(self.capacity[w] / len(self.leases[w]) for w in self.groups[s])
        if without is not None:
            power -= self.capacity[without] / len(self.leases[without])
        return self.demand[s] / power if power > 0 else math.inf

    def spare(self, w: int, s: int, level: int | None = None) -> bool:
        """Whether each of the shard's items keeps `level` workers (None: `min_group`) without this one."""
        keep = self.limits.min_group if level is None else level
        fixed = self.workers[w].pinned or not self.shards[s].reachable
        return not fixed and all(self.counts[i] > keep for i in self.items[w][s])

    def may_join(self, w: int, s: int) -> bool:
        return bool(self.items[w][s]) and w not in self.groups[s]

    def has_room(self, s: int) -> bool:
        return self.shards[s].reachable and len(self.groups[s]) < self.limits.max_group

    def movable(self, w: int) -> list[int]:
        return [] if self.workers[w].pinned else [s for s in sorted(self.leases[w]) if self.shards[s].reachable]

    def by_leases(self) -> list[int]:
        """Workers with two leases or more that can move, those with most per place first."""
        several = [w for _, _, w in self.order if len(self.leases[w]) > 1]
        return sorted(several, key=lambda w: (-len(self.leases[w]) / self.capacity[w], w))

    def adopt(self, present: Mapping[str, Iterable[str]]) -> None:
        """The present leases, without those that are gone or on which the worker can be of no use."""
        index = {shard.name: s for s, shard in enumerate(self.shards)}
        for w, worker in enumerate(self.workers):
            for name in sorted(set(present.get(worker.name, ()))):
                s = index.get(name)
                if s is None:
                    self.reasons[worker.name, name] = "the shard is not in the cluster any more"
                elif self.items[w][s] or worker.pinned or not self.shards[s].reachable:
                    self.open(w, s, "held already")
                elif name in worker.cut_off:
                    self.reasons[worker.name, name] = "the worker cannot reach the shard"
                else:
                    self.reasons[worker.name, name] = "the worker lacks a label or queue that the shard asks for"

    def enforce_limits(self) -> None:
        """Closes leases beyond a worker's and a group's limit, the least needed first; pinned ones stay."""
        for w, worker in enumerate(self.workers):
            held = self.movable(w)
            held.sort(key=lambda s: (not self.spare(w, s), self.load(s), s))
            why = f"the worker holds more than {worker.most} leases" if worker.most else "the worker drains"
            for s in held[: max(0, len(self.leases[w]) - self.most[w])]:
                self.close(w, s, why)
        for s, shard in enumerate(self.shards):
            while shard.reachable and len(self.groups[s]) > self.limits.max_group:
                free = [w for w in self.groups[s] if not self.workers[w].pinned]
                if not free:
                    break
                w = min(free, key=lambda w: (not self.spare(w, s, 1), -len(self.leases[w]), w))
                self.close(w, s, f"the group is larger than {self.limits.max_group}")

    def cover(self) -> None:
        """Gives every item one worker, then every item two, up to `min_group`."""
        for level in range(1, self.limits.min_group + 1):
            dead: set[int] = set()
            short = [i for i, s in enumerate(self.item_shard) if self.counts[i] < level and self.shards[s].reachable]
            for item in sorted(short, key=lambda i: (self.counts[i], -self.demand[self.item_shard[i]], i)):
                if self.counts[item] == level - 1:
                    self._raise(item, level, dead)

    def _raise(self, item: int, level: int, dead: set[int]) -> None:
        s = self.item_shard[item]
        full = len(self.groups[s]) >= self.limits.max_group
        evicted = next((w for w in sorted(self.groups[s]) if full and self.spare(w, s, level)), None)
        path = [] if full and evicted is None else self._helper(item) or self._path(item, level, dead)
        if not path:
            return
        why = f"the shard has {self.counts[item]} of {self.limits.min_group} workers{self.item_name[item]}"
        for w, source, target in path:
            if source is not None:
                self.close(w, source, why)
            self.open(w, target, why)
        if evicted is not None:
            self.close(evicted, s, f"gives its seat to a worker{self.item_name[item]}")

    def _helper(self, item: int) -> list[tuple[int, int | None, int]]:
        """An idle worker, else one whose only shard can best spare it, else the one with most free places."""
        s = self.item_shard[item]
        free = (w for _, _, w in self.order if len(self.leases[w]) < self.most[w])
        fits = (w for w in free if item in self.items[w][s] and w not in self.groups[s])
        first = next(fits, None)
        if first is not None and not self.leases[first]:
            return [(first, None, s)]
        gifts = [
            (self.load(t, without=w), w, t)
            for t in range(len(self.shards))
            if len(self.groups[t]) > self.limits.min_group
            for w in self.groups[t]
            if len(self.leases[w]) == 1 and item in self.items[w][s] and w not in self.groups[s] and self.spare(w, t)
        ]
        if gifts:
            _, w, t = min(gifts)
            return [(w, t, s)]
        return [(first, None, s)] if first is not None else []

    def _path(self, item: int, level: int, dead: set[int]) -> list[tuple[int, int | None, int]]:
        """The shortest chain of workers who change their shard, that ends with one who can be spared; [] if none."""
        root = self.item_shard[item]
        came: dict[int, tuple[int, int] | None] = {root: None}
        asked: set[int] = set()
        todo = deque([item])
        while todo:
            wanted = todo.popleft()
            s = self.item_shard[wanted]
            for _, _, w in self.order:
                if w in asked or wanted not in self.items[w][s] or w in self.groups[s]:
                    continue
                asked.add(w)
                if len(self.leases[w]) < self.most[w]:
                    return self._chain(w, None, s, came)
                for t in self.movable(w):
                    if t in came or t in dead:
                        continue
                    short = [i for i in self.items[w][t] if self.counts[i] <= level]
                    if not short:
                        return self._chain(w, t, s, came)
                    if len(short) == 1:
                        came[t] = (w, s)
                        todo.append(short[0])
        dead.update(came)
        return []

    def _chain(
        self, w: int, source: int | None, target: int, came: Mapping[int, tuple[int, int] | None]
    ) -> list[tuple[int, int | None, int]]:
        path = [(w, source, target)]
        while (step := came[target]) is not None:
            giver, wanted_by = step
            path.append((giver, target, wanted_by))
            target = wanted_by
        return path

    def trim(self) -> None:
        """Closes leases beyond a worker's first where the shard has workers enough."""
        for w in self.by_leases():
            while len(self.leases[w]) > 1:
                spare = [s for s in self.leases[w] if self.spare(w, s)]
                if not spare:
                    break
                s = min(spare, key=lambda s: (self.load(s, without=w), s))
                self.close(w, s, "the shard has workers enough, and this one serves several")

    def spread(self) -> None:
        """Hands leases of workers that hold several to those with fewer, for the stated gain in places per lease."""
        while (handover := self._handover()) is not None:
            giver, taker, s = handover
            why = f"handed from {self.workers[giver].name} with {len(self.leases[giver])} leases to one with fewer"
            self.close(giver, s, why)
            self.open(taker, s, why)

    def _handover(self) -> tuple[int, int, int] | None:
        givers = self.by_leases()
        idle_kinds: set[tuple[int, int]] = set()
        for _, _, taker in self.order if givers else ():
            held = len(self.leases[taker])
            kind = (id(self.items[taker]), self.capacity[taker])
            if held >= self.most[taker] or (not held and kind in idle_kinds):
                continue
            for giver in givers:
                if (held + 1) * self.capacity[giver] * (1 + self.limits.gain) >= len(
                    self.leases[giver]
                ) * self.capacity[taker]:
                    break
                for s in self.movable(giver):
                    if self.may_join(taker, s) and self._covers_as_well(giver, taker, s):
                        return giver, taker, s
            if not held:
                idle_kinds.add(kind)
        return None

    def _covers_as_well(self, giver: int, taker: int, s: int) -> bool:
        theirs = self.items[taker][s]
        return all(i in theirs or self.counts[i] > self.limits.min_group for i in self.items[giver][s])

    def employ(self) -> None:
        """Puts idle workers where the load is highest and the group has room."""
        full: set[int] = set()
        for w in [w for busy, _, w in self.order if not busy]:
            if id(self.items[w]) in full:
                continue
            open_shards = (s for s in range(len(self.shards)) if self.items[w][s] and self.has_room(s))
            s = max(open_shards, key=lambda s: (self.load(s), -s), default=None)
            if s is None:
                full.add(id(self.items[w]))
            else:
                self.open(w, s, f"the worker was idle; the shard had the highest load, {self.load(s):.3g} per place")

    def level(self) -> None:
        """Moves workers from shards with a low load to shards with a high one, for the stated gain only."""
        gifts = [self._gifts(s) for s in range(len(self.shards))]
        while (transfer := self._transfer(gifts)) is not None:
            w, source, target = transfer
            why = f"load {self.load(target):.3g} per place, and {self.load(source, without=w):.3g} left behind"
            touched = self.leases[w] | {target}
            self.close(w, source, why)
            self.open(w, target, why)
            for s in touched:
                gifts[s] = self._gifts(s)

    def _transfer(self, gifts: Sequence[Sequence[tuple[float, int]]]) -> tuple[int, int, int] | None:
        givers = sorted((of_shard[0][0], s) for s, of_shard in enumerate(gifts) if of_shard)
        takers = [s for s in range(len(self.shards)) if self.has_room(s)]
        for target in sorted(takers, key=lambda s: (-self.load(s), s)):
            enough = self.load(target) / (1 + self.limits.gain)
            if not givers or givers[0][0] >= enough:
                return None
            for least, source in givers:
                if least >= enough:
                    break
                for left, w in gifts[source]:
                    if left < enough and self.may_join(w, target):
                        return w, source, target
        return None

    def _gifts(self, s: int) -> list[tuple[float, int]]:
        """(Load left behind, worker) for every lease that the shard can spare, the least load first."""
        if len(self.groups[s]) <= self.limits.min_group:
            return []
        return sorted((self.load(s, without=w), w) for w in self.groups[s] if self.spare(w, s))

    def assignment(self) -> Assignment:
        names = [shard.name for shard in self.shards]
        return canonical({worker.name: {names[s] for s in self.leases[w]} for w, worker in enumerate(self.workers)})


def _rank(name: str) -> tuple[int, str]:
    return mmh3.hash(name, signed=False), name
