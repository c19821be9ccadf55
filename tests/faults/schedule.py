"""Faults as data: which process is to be hit, how, and at which share of the work. A seed makes the whole schedule.

The printed form is read again by `parse`, so a run can be repeated from its seed or from what it printed.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: Faults lie between these shares of the work: some must be left behind the last.
FIRST, LAST = 0.02, 0.75


class Kind(StrEnum):
    """What is done to the target: a worker's place, or a server."""

    KILL_WORKER = "kill-worker"  # SIGKILL; another worker takes the place at once
    FREEZE_WORKER = "freeze-worker"  # SIGSTOP, until its leases have ended and the time is over, then SIGCONT
    STOP_SERVER = "stop-server"  # stop -m immediate, and a start when the time is over
    KILL_SERVER = "kill-server"  # SIGKILL of the postmaster and its children, and a start

    @property
    def hits_server(self) -> bool:
        return self in (Kind.STOP_SERVER, Kind.KILL_SERVER)


@dataclass(frozen=True, order=True)
class Fault:
    """One fault: due when `at`, a share from 0 to 1, of the workflows have ended; `seconds` is the least it lasts."""

    at: float
    kind: Kind
    target: int
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:.4f} {self.kind} {self.target} {self.seconds:g}s"


def parse(text: str) -> list[Fault]:
    """Reads faults, one a line, as they print. Raises ValueError."""
    faults = []
    for line in filter(None, map(str.strip, text.splitlines())):
        at, kind, target, seconds = line.split()
        faults.append(Fault(float(at), Kind(kind), int(target), float(seconds.removesuffix("s"))))
    return sorted(faults)


def plan(
    seed: int, numbers: dict[Kind, int], *, workers: int, servers: int, freeze: float = 0.0, down: float = 0.0
) -> list[Fault]:
    """A schedule drawn from the seed, spread evenly with some play, in order.

    Arguments: `numbers` of faults of each kind; how many `workers` and `servers` there are to be hit; `freeze` and
    `down`, seconds that a freeze and a server's absence last at least, drawn up to one and a half times as long.
    """
    draw = random.Random(seed)
    kinds = [kind for kind in Kind for _ in range(numbers.get(kind, 0))]
    draw.shuffle(kinds)
    faults = []
    for number, kind in enumerate(kinds):
        share = FIRST + (LAST - FIRST) * (number + draw.random()) / len(kinds)
        longest = {Kind.KILL_WORKER: 0.0, Kind.FREEZE_WORKER: freeze}.get(kind, down)
        seconds = longest * draw.uniform(1.0, 1.5)
        target = draw.randrange(servers if kind.hits_server else workers)
        faults.append(Fault(round(share, 4), kind, target, round(seconds, 2)))
    return sorted(faults)


def seed() -> int:
    """SHARDFLOW_FAULT_SEED, or a new one."""
    given = os.environ.get("SHARDFLOW_FAULT_SEED")
    return int(given) if given else random.SystemRandom().getrandbits(32)


def given() -> list[Fault] | None:
    """The schedule in the file SHARDFLOW_FAULT_PLAN, such as a part of one that failed; None where there is none."""
    path = os.environ.get("SHARDFLOW_FAULT_PLAN")
    return parse(Path(path).read_text()) if path else None
