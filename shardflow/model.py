"""Enums and frozen records that all layers share. No behaviour beyond construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

#: Of this code; `pyproject.toml` has the same.
RELEASE = "0.1.0"

DEFAULT_QUEUE = "default"


class Status(StrEnum):
    """Where a workflow is. The first three are places of an unfinished one, the others its outcome."""

    READY = "ready"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"

    @property
    def final(self) -> bool:
        return self not in (Status.READY, Status.RUNNING, Status.SUSPENDED)


class SlotState(StrEnum):
    """What a shard says of a slot: its own (active, frozen), given away (moved), or only heard of (hint)."""

    ACTIVE = "active"
    FROZEN = "frozen"
    MOVED = "moved"
    HINT = "hint"


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """One schema on one Postgres server.

    `weight` is the shard's share of the slots relative to the others'. `pooler=True` says that a transaction
    pooler stands in between: no LISTEN, no session locks, no prepared statements. Only workers that have all of its
    `labels` serve it.
    """

    name: str
    dsn: str
    schema: str = "shardflow"
    weight: float = 1.0
    pooler: bool = False
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """Seconds: how long a lease lasts unrenewed, how often it is renewed, how often peers are looked at."""

    ttl: float = 10.0
    renew: float = 2.5
    watch: float = 1.0


@dataclass(frozen=True, slots=True)
class RebalanceConfig:
    """How workers are divided among the shards.

    Each reachable shard keeps `min_group` workers where there are enough, and never gets more than `max_group`.
    `interval`: seconds between looks at the cluster. `cooldown`: seconds between moves for load. `moves`: leases that
    may move at one look, beyond those that a shard with fewer than `min_group` workers needs.
    """

    min_group: int = 2
    max_group: int = 16
    interval: float = 1.0
    cooldown: float = 10.0
    moves: int = 8


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A client's connections per shard, and seconds to wait: for one of them, and for a connect to be answered."""

    min_size: int = 0
    max_size: int = 8
    timeout: float = 10.0
    connect_timeout: float = 5.0


#: A `compress_above` that nothing reaches.
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class PayloadConfig:
    """Bytes of a stored value: arguments, a result, a message.

    `max_size`: as it is stored, at the most. `max_decoded`: of its JSON, before compression, at the most.
    `compress_above`: larger JSON is compressed where that pays.
    """

    max_size: int = 8 << 20
    max_decoded: int = 32 << 20
    compress_above: int = 16 << 10


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """Seconds for which workflows are kept after they have ended so; None: for ever.

    Then a workflow is deleted with all that is recorded of it, and its id is free: submitted again, it runs again.
    """

    succeeded: float | None = None
    failed: float | None = None
    cancelled: float | None = None
    dead: float | None = None


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A named set of shards and a fixed number of slots."""

    name: str
    shards: tuple[ShardConfig, ...]
    slots: int = 1024
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    rebalance: RebalanceConfig = field(default_factory=RebalanceConfig)
    payload: PayloadConfig = field(default_factory=PayloadConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)

    def shard(self, name: str) -> ShardConfig:
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An exception as it is stored: qualified class name, message, traceback as text."""

    type: str
    message: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class WorkflowInfo:
    """What a client learns of one workflow; times are the shard's clock."""

    id: str
    name: str
    queue: str
    status: Status
    shard: str
    submitted_at: datetime
    finished_at: datetime | None
    attempt: int


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One checkpoint of a workflow."""

    seq: int
    name: str
    finished_at: datetime
    attempts: int
    output: bytes | None
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """What a client learns of one schedule; times are the shard's clock.

    `spec` is a cron expression or an interval, `zone` the time zone whose clock it means; `input`, the workflow's
    encoded arguments. `state`: "active", "paused", "ended" (no tick comes any more), or "no code" (it is `from_code`,
    and no worker has it in its code now). `next_at`: when its next tick comes; `last_at` and `last_id`: the newest
    tick whose workflow was submitted; `waiting`: ticks that are to be submitted and are not yet.
    """

    name: str
    spec: str
    zone: str
    workflow: str
    queue: str
    input: bytes
    missed: str
    overlap: str
    state: str
    from_code: bool
    shard: str
    created_at: datetime
    next_at: datetime | None
    last_at: datetime | None
    last_id: str | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list of workflows over all shards.

    `cursor`: for the next page; None where there is no more. `unreachable`: shards whose part is missing, and why.
    """

    workflows: Sequence[WorkflowInfo]
    cursor: str | None
    unreachable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many workflows there are; `unreachable` are the shards that are not in the numbers, and why; `rough`, the
    statuses whose numbers are only about right."""

    total: int
    by_status: Mapping[Status, int]
    unreachable: Mapping[str, str]
    rough: frozenset[Status] = frozenset()


@dataclass(frozen=True, slots=True)
class Bulk:
    """How many workflows an operation has changed (of a queue: how many shards); `unreachable`: shards that did not
    answer or could not do it, and why."""

    count: int
    unreachable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue: how many workflows are `ready` in it; `paused`: shard → since when nothing is begun there."""

    name: str
    ready: int
    paused: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class QueueList:
    """Queues in the order of their names; `unreachable`: shards that are not in the numbers, and why."""

    queues: Sequence[QueueInfo]
    unreachable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Waited:
    """Which of the workflows that were waited for have `ended`, by id, and which are still `pending`.

    `unreachable`: shards of pending ones that do not answer, and why.
    """

    ended: Mapping[str, WorkflowInfo]
    pending: Sequence[str]
    unreachable: Mapping[str, str]
