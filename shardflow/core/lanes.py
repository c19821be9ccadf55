"""Lanes: what a worker dequeues from. A queue is one, and each version of versioned workflows in it another.

So a worker claims only what it can run, and what it cannot run costs it no look.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ..errors import InvalidInput
from .routing import check_name

SEPARATOR = "\x1f"
#: Ends the lane of workflows under which several workers have died; a worker takes one at a time from there.
SUSPECT = "\x1e"
#: What no queue and no version has, for it separates them in what is stored.
_RESERVED = frozenset("\x1e\x1f")


def check_part(kind: str, value: object) -> str:
    """`value` where it is the name of a queue or a version. Raises InvalidInput."""
    name = check_name(kind, value)
    if not _RESERVED.isdisjoint(name):
        raise InvalidInput(f"the {kind} {name!r} contains U+001E or U+001F, which are not allowed there")
    return name


def lane_of(queue: str, version: str | None) -> str:
    """The lane of a workflow; `migrations/0005_semantics.sql` has the same as SQL."""
    return queue if version is None else f"{queue}{SEPARATOR}{version}"


@lru_cache(4096)
def queue_of(lane: str) -> str:
    """The queue that a lane belongs to."""
    return lane.removesuffix(SUSPECT).partition(SEPARATOR)[0]


def version_of(lane: str) -> str | None:
    """The version that a lane is for."""
    _, separator, version = lane.removesuffix(SUSPECT).partition(SEPARATOR)
    return version if separator else None


def of_version(version: str | None) -> str:
    """In words, behind what has that version."""
    return "" if version is None else f" (version {version})"


def said(lane: str) -> str:
    """A lane in words: "orders", "orders (version 2)"."""
    return queue_of(lane) + of_version(version_of(lane))


def versions_of(version: str | None, runs: Iterable[str | None]) -> tuple[str | None, ...]:
    """The versions whose submissions the code of a version runs: its own and these. Raises InvalidInput."""
    if isinstance(runs, str):
        raise InvalidInput(f"runs must be versions, such as ({runs!r},), not one text")
    found = [version, *(None if each is None else check_part("version", each) for each in runs)]
    return tuple(dict.fromkeys(found))
