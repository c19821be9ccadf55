"""Lanes: what a worker dequeues from. A queue is one, and each version of versioned workflows in it another.

So a worker claims only what it can run, and what it cannot run costs it no look.
"""

from __future__ import annotations

SEPARATOR = "\x1f"


def lane_of(queue: str, version: str | None) -> str:
    """The lane of a workflow; `migrations/0005_semantics.sql` has the same as SQL."""
    return queue if version is None else f"{queue}{SEPARATOR}{version}"


def queue_of(lane: str) -> str:
    """The queue that a lane belongs to."""
    return lane.partition(SEPARATOR)[0]
