"""What a workflow's code may ask for that would differ from run to run: recorded, so that a replay gets it again.

Inside a step, and outside of any workflow, these are the ordinary functions.
"""

from __future__ import annotations

import json
import random as _random
import uuid as _uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from .context import current
from .errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Info:
    """The workflow that asks: its `id`, `name` and `queue`; `attempt`, how often a worker has failed under it."""

    id: str
    name: str
    queue: str
    attempt: int


def now() -> datetime:
    """The time by the worker's clock, with the time zone UTC; the same on every replay."""
    return _recorded("now", lambda: datetime.now(UTC), datetime.isoformat, datetime.fromisoformat)


def uuid4() -> _uuid.UUID:
    """A random UUID; the same on every replay, so it can be the idempotency key of what a step does."""
    return _recorded("uuid4", _uuid.uuid4, str, _uuid.UUID)


def random() -> float:
    """A random number in [0, 1); the same on every replay. Not for secrets."""
    return _recorded("random", _random.random, float, float)


def info() -> Info:
    """About the workflow that asks. Nothing of it is recorded: `attempt` grows. Raises UsageError outside of one."""
    run = current.get()
    if run is None:
        raise UsageError("info() tells about the workflow that calls it: call it in a workflow's code, not in a step")
    return Info(run.id, run.name, run.queue, run.attempt)


def _recorded(name: str, make: Callable[[], T], plain: Callable[[T], object], back: Callable[..., T]) -> T:
    run = current.get()
    if run is None:
        return make()
    output = run.value(f"shardflow.{name}", lambda: json.dumps(plain(make())).encode())
    return back(json.loads(output))
