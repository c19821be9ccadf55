"""The ledger's lines, read: what was submitted, started, recorded, answered, planned, and what came too late.

Pure; the kinds of lines are told in `ledger.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Step = tuple[str, int]


@dataclass
class History:
    """What the ledger tells; `late` are the steps that started after their checkpoint was acknowledged."""

    intended: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    recorded: dict[Step, set[str]] = field(default_factory=dict)
    results: dict[str, set[str]] = field(default_factory=dict)
    leases: set[int] = field(default_factory=set)
    late: list[str] = field(default_factory=list)
    planned: dict[str, str] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    starts: int = 0
    replays: int = 0


def read(lines: Iterable[str]) -> History:
    """Reads the ledger. Raises ValueError for what is no line of it."""
    seen = History()
    for line in lines:
        try:
            _take(seen, line.split())
        except (IndexError, ValueError) as error:
            raise ValueError(f"not a line of the ledger: {line!r}") from error
    return seen


def _take(seen: History, words: list[str]) -> None:
    match words:
        case ["start", id, seq, _, lease, worker]:
            seen.starts += 1
            if (id, int(seq)) in seen.recorded:
                seen.late.append(f"step {seq} of {id} started on {worker} after its checkpoint was acknowledged")
            if lease != "-":
                seen.leases.add(int(lease))
        case ["record", id, seq, value, _]:
            seen.recorded.setdefault((id, int(seq)), set()).add(value)
        case ["begin", id, _, _, _]:
            seen.replays += id in seen.begun
            seen.begun.add(id)
        case ["intend", id]:
            seen.intended.add(id)
        case ["accept", id]:
            seen.accepted.add(id)
        case ["result", id, value]:
            seen.results.setdefault(id, set()).add(value)
        case ["plan", number, *fault] if fault:
            seen.planned[number] = " ".join(fault)
        case ["fire", number, left]:
            seen.fired[number] = int(left)
        case _:
            raise ValueError("unknown kind, or another number of words")
