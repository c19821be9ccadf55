"""Which shard owns which slot: the first plan of a new cluster, and one map out of what the shards say.

A shard's word on its own slots is final. A tombstone or a hint is only a belief: whoever acts on a wrong one
is refused by the shard and learns better, so a belief may be stale but two owners of one slot are an error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from shardflow.core.routing import slot_of
from shardflow.core.suggest import did_you_mean
from shardflow.errors import ClusterError
from shardflow.model import SlotState


@dataclass(frozen=True, slots=True)
class SlotMap:
    """What a client believes: the owner of every slot, and each shard's generation.

    `owners[slot]` is a shard's name; `len(owners) == slots`. `generations` has the shards that were heard.
    """

    slots: int
    owners: tuple[str, ...]
    generations: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.slots < 1 or len(self.owners) != self.slots:
            raise ClusterError(f"a slot map of {self.slots} slots cannot have {len(self.owners)} owners")

    def shard_of(self, workflow_id: str) -> str:
        """The name of the shard that owns the slot of `workflow_id`."""
        return self.owners[slot_of(workflow_id, self.slots)]

    def slots_of(self, shard: str) -> list[int]:
        """The slots of one shard, ascending; empty for a shard that owns none."""
        return [slot for slot, owner in enumerate(self.owners) if owner == shard]


@dataclass(frozen=True, slots=True)
class ShardView:
    """What one shard says: who it is, and its rows of (slot, state, shard).

    The states are `SlotState`'s. In a row that is active or frozen the shard is the speaker itself, in a
    moved one it is the slot's next owner, in a hint it is the owner as last heard.
    """

    name: str
    cluster: str
    cluster_id: str
    slots: int
    generation: int
    rows: Sequence[tuple[int, str, str]]


def plan_slots(slots: int, weights: Mapping[str, float]) -> tuple[str, ...]:
    """The owners of a new cluster's slots: contiguous ranges, in the order of `weights`.

    Each shard's share is proportional to its weight. A shard of positive weight gets at least one slot while
    there are enough, the heaviest first; weight 0 gets none. Raises `ClusterError` where no weight is
    positive, or one is negative or not finite.

    Source: the largest remainder method (Hamilton's apportionment); ties go to the shard that comes first.
    """
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ClusterError(f"the weight of shard {name!r} must be 0 or more, not {weight!r}")
    exact = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    if not exact:
        raise ClusterError("no shard has a positive weight: give at least one a weight above 0")
    total = sum(exact.values())
    quota = {name: weight * slots / total for name, weight in exact.items()}
    counts = {name: math.floor(share) for name, share in quota.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - quota[name])
    for name in by_remainder[: slots - sum(counts.values())]:
        counts[name] += 1
    for name in sorted(exact, key=lambda name: -exact[name]):
        richest = max(counts, key=lambda other: counts[other])
        if counts[name] == 0 and counts[richest] > 1:
            counts[richest] -= 1
            counts[name] = 1
    return tuple(name for name in exact for _ in range(counts[name]))


def merge_views(views: Sequence[ShardView]) -> SlotMap:
    """One map out of what the reachable shards say.

    For every slot the first of these that exists: the shard that holds it (active or frozen); the end of the
    chain of tombstones; the shard that most hints name. A hint that names a shard which was heard and does
    not hold the slot counts only where there is no other. Raises `ClusterError`, naming slots
    and shards, where two shards hold one slot, where the views are not of one cluster, or where nobody
    knows a slot.
    """
    if not views:
        raise ClusterError("no shard has told its slots: see `shardflow cluster status`")
    _check_one_cluster(views)
    owners = _believed_owners(views)
    unknown = [slot for slot, owner in enumerate(owners) if owner is None]
    if unknown:
        raise ClusterError(
            f"no shard knows who owns {slot_ranges(unknown)} (heard: {_names(view.name for view in views)}): "
            "run `shardflow cluster init` again with all shards reachable"
        )
    return SlotMap(
        slots=len(owners),
        owners=tuple(owner for owner in owners if owner is not None),
        generations={view.name: view.generation for view in views},
    )


def plan_init(
    weights: Mapping[str, float],
    views: Sequence[ShardView],
    slots: int,
    *,
    cluster: str | None = None,
) -> tuple[str, ...]:
    """The owners that `cluster init` makes true; running it again, after a crash too, plans the same.

    `weights` is the configuration's (shard name to weight), `views` those of the shards that are initialised
    already, `cluster` the configured name (None: not compared). Without views the slots are divided anew.
    Otherwise every slot stays where the views say, by the rules of `merge_views`: a shard that joins an
    existing cluster gets none, and is given slots by moving them. Raises `ClusterError` for a shard of
    another cluster or number of slots, for a slot whose owner is not configured, and as `merge_views` does.
    """
    if not views:
        return plan_slots(slots, weights)
    _check_one_cluster(views)
    first = views[0]
    if cluster is not None and first.cluster != cluster:
        raise ClusterError(
            f"shard {first.name!r} belongs to the cluster {first.cluster!r}, not to {cluster!r}: "
            "give it another schema, or correct the name in the configuration"
        )
    if first.slots != slots:
        raise ClusterError(
            f"shard {first.name!r} was initialised with {first.slots} slots, the configuration says {slots}: "
            f"the number can never change, so set slots to {first.slots}"
        )
    owners = merge_views(views).owners
    for name in (*(view.name for view in views), *owners):
        if name not in weights:
            raise ClusterError(
                f"shard {name!r} is part of this cluster and not of the configuration"
                f"{did_you_mean(name, weights)}: put it back, and move its slots away before you remove it"
            )
    return owners


def slot_ranges(slots: Iterable[int]) -> str:
    """Slots for a message: 'slot 3', or 'slots 0-6, 9'; at most eight ranges are spelled out."""
    ordered = sorted(set(slots))
    ranges: list[list[int]] = []
    for slot in ordered:
        if ranges and slot == ranges[-1][1] + 1:
            ranges[-1][1] = slot
        else:
            ranges.append([slot, slot])
    shown = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges[:8])
    more = ", ..." if len(ranges) > 8 else ""
    return f"{'slot' if len(ordered) == 1 else 'slots'} {shown}{more}"


def _check_one_cluster(views: Sequence[ShardView]) -> None:
    first = views[0]
    if first.slots < 1:
        raise ClusterError(f"shard {first.name!r} says that it has {first.slots} slots: initialise it again")
    seen: set[str] = set()
    for view in views:
        if view.name in seen:
            raise ClusterError(
                f"two shards say that they are {view.name!r}: two entries of the configuration lead to one "
                "schema, or a schema was copied"
            )
        seen.add(view.name)
        if view.cluster != first.cluster:
            raise ClusterError(
                f"shard {first.name!r} belongs to the cluster {first.cluster!r} and shard {view.name!r} to "
                f"{view.cluster!r}: take one of them out of the configuration"
            )
        if view.cluster_id != first.cluster_id:
            raise ClusterError(
                f"shards {first.name!r} and {view.name!r} belong to two clusters that are both named "
                f"{view.cluster!r} (ids {first.cluster_id} and {view.cluster_id}): take one of them out of "
                "the configuration"
            )
        if view.slots != first.slots:
            raise ClusterError(
                f"shard {first.name!r} has {first.slots} slots and shard {view.name!r} has {view.slots}: "
                "they cannot be of one cluster"
            )


def _believed_owners(views: Sequence[ShardView]) -> list[str | None]:
    slots = views[0].slots
    holders: list[str | None] = [None] * slots
    tombstones: list[dict[str, str]] = [{} for _ in range(slots)]
    hints: list[Counter[str]] = [Counter() for _ in range(slots)]
    contested: dict[tuple[str, str], list[int]] = {}
    for view in views:
        for slot, state, shard in view.rows:
            if not 0 <= slot < slots:
                raise ClusterError(f"shard {view.name!r} knows a slot {slot}, and the cluster has {slots}")
            if state == SlotState.MOVED:
                tombstones[slot][view.name] = shard
            elif state == SlotState.HINT:
                hints[slot][shard] += 1
            elif state not in (SlotState.ACTIVE, SlotState.FROZEN):
                raise ClusterError(f"shard {view.name!r} has slot {slot} in an unknown state {state!r}")
            elif shard != view.name:
                raise ClusterError(
                    f"shard {view.name!r} holds slot {slot} in the name of {shard!r}: was it renamed? "
                    "Use its old name in the configuration"
                )
            else:
                other = holders[slot]
                if other is not None:
                    contested.setdefault((other, view.name), []).append(slot)
                holders[slot] = view.name
    for (one, other), disputed in contested.items():
        raise ClusterError(f"shards {one!r} and {other!r} both hold {slot_ranges(disputed)}: stop all workers")
    heard = {view.name for view in views}
    return [
        holder if holder is not None else _follow(tombstones[slot]) or _most_named(hints[slot], heard)
        for slot, holder in enumerate(holders)
    ]


def _follow(tombstones: Mapping[str, str]) -> str | None:
    """Where the chain of tombstones ends.

    With more than one end (an old tombstone whose target is not heard), the one most tombstones lead to. A
    circle is a slot on its way back, between the two commits of the move: either end redirects, so the
    choice only has to be the same everywhere.
    """
    if not tombstones:
        return None
    ends: Counter[str] = Counter()
    for start in sorted(tombstones):
        end = start
        passed = set()
        while end in tombstones and end not in passed:
            passed.add(end)
            end = tombstones[end]
        ends[end] += 1
    return min(ends, key=lambda name: (-ends[name], name))


def _most_named(hints: Counter[str], heard: set[str]) -> str | None:
    if not hints:
        return None
    return min(hints, key=lambda name: (name in heard, -hints[name], name))


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
