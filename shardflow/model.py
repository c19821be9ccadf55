"""Enums and frozen records that all layers share. No behaviour beyond construction."""

from __future__ import annotations

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

    @property
    def final(self) -> bool:
        return self in (Status.SUCCEEDED, Status.FAILED)


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


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A named set of shards and a fixed number of slots."""

    name: str
    shards: tuple[ShardConfig, ...]
    slots: int = 1024
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    rebalance: RebalanceConfig = field(default_factory=RebalanceConfig)

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
