"""What a simulation is told, what it counts, and what it knows of a worker."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from shardflow.core.assignment_model import Limits

CONNECTIONS_PER_LEASE = 2


@dataclass(frozen=True, slots=True)
class Setup:
    """Sizes, times in seconds, and faults per worker (or per server) and hour."""

    workers: int = 1_000
    shards: int = 200
    shards_per_server: int = 1
    hours: float = 1.0
    seed: int = 1
    ttl: float = 10.0
    renew: float = 2.5
    closed: tuple[float, float] = (1.0, 2.0)
    decide_every: float = 1.0
    moves_per_decision: int = 8
    cooldown: float = 10.0
    adopt_after: tuple[float, float] = (0.5, 3.0)
    notice: tuple[float, float] = (0.05, 1.3)
    drain: tuple[float, float] = (0.05, 2.0)
    warm_up: float = 60.0
    rebalancer: bool = True
    crashes: float = 0.10
    hosts_lost: float = 2.0
    host: int = 10
    leaves: float = 0.10
    freezes: float = 0.10
    partitions: float = 0.05
    outages: float = 0.02
    bursts: float = 0.10
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class Figures:
    """What is counted, after the warm-up if not said otherwise."""

    events: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    closed: int = 0
    adopted: int = 0
    uncovered: float = 0.0
    longest_uncovered: float = 0.0
    unreachable: float = 0.0
    most_leases: int = 0
    first_rest: float = math.inf
    first_cover: float = math.inf
    unrest: list[float] = field(default_factory=list)
    imbalance: list[float] = field(default_factory=list)
    decisions: int = 0


@dataclass(slots=True)
class Worker:
    name: str
    up: bool = True
    listed: bool = True
    draining: bool = False
    frozen_until: float = 0.0
    cut_off: Counter[str] = field(default_factory=Counter)
    leases: dict[str, int] = field(default_factory=dict)
    wish: frozenset[str] | None = None
    #: A wish is written into a row; the simulation tells every worker at its next heartbeat.
    fresh = False
    aims = None

    @property
    def intended(self) -> frozenset[str]:
        """The shards that it holds or is about to."""
        return frozenset(self.leases) if self.wish is None else self.wish
