"""A file outside of every database, in which the demo's steps write down that they start.

It shows from outside what the tables cannot: a step that starts although its checkpoint was acknowledged before. A
workflow goes on behind a step only when the checkpoint is acknowledged, so the start of what follows proves it; a
later start of the same step is then one too many. Only the order of the lines counts, no clock.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SHARDFLOW_DEMO_LEDGER"

#: The order in which a workflow passes them; "end" is its code behind the last step.
PLACES = ("read", "parse", "summarise", "end")
STEPS = PLACES[:-1]

_file: int | None = None


def note(place: str, file: str) -> None:
    """Writes one line: time, process, place, file. Does nothing where no ledger is kept."""
    global _file
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    if _file is None:
        _file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # One write to a file opened for appending: lines of several processes do not mix.
    os.write(_file, f"{time.time():.6f}\t{os.getpid()}\t{place}\t{file}\n".encode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True)
class Line:
    """A step started (or the end was passed), in this process, for this file."""

    time: float
    pid: int
    place: str
    file: str


def read(path: Path) -> list[Line]:
    """The ledger's lines in the order in which they were written."""
    lines = []
    for text in path.read_bytes().decode("utf-8", "surrogateescape").splitlines():
        at, pid, place, file = text.split("\t")
        lines.append(Line(float(at), int(pid), place, file))
    return lines


@dataclass(frozen=True, slots=True)
class Audit:
    """What a ledger shows.

    `starts` counts the steps' starts; `again` those that were not the step's first, which is allowed until its
    checkpoint is acknowledged; `past` are the starts behind that, as (file, step): there must be none. `missing` are
    steps that never started.
    """

    starts: int
    again: int
    past: list[tuple[str, str]]
    missing: list[tuple[str, str]]


def audit(lines: Iterable[Line], files: Iterable[str]) -> Audit:
    """Replays the ledger for these files."""
    reached: dict[str, int] = {}
    starts: Counter[tuple[str, str]] = Counter()
    past = []
    for line in lines:
        place = PLACES.index(line.place)
        if place < reached.get(line.file, 0):
            past.append((line.file, line.place))
        reached[line.file] = max(place, reached.get(line.file, 0))
        if line.place in STEPS:
            starts[line.file, line.place] += 1
    missing = [(file, step) for file in files for step in STEPS if not starts[file, step]]
    return Audit(starts.total(), starts.total() - len(starts), past, missing)
