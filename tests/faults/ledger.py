"""The external witness: an append-only file that steps write to, and a checker that knows nothing of shardflow.

Lines: `S id seq pid`, a step starts; `A id seq pid`, the workflow went on behind the step, so its checkpoint has been
acknowledged to it; `R id - pid`, the workflow's code began. One `write` to an `O_APPEND` file a line: the file's
order is the order of what happened, over all processes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

STEPS = 3


class Ledger:
    """Appends lines; one per process."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._pid = os.getpid()

    def line(self, kind: str, id: str, seq: int | str = "-") -> None:
        os.write(self._file, f"{kind} {id} {seq} {self._pid}\n".encode())


def expected(id: str) -> int:
    """What the workflow of that id must return; computed here and in the workflow's steps by other code."""
    value = int.from_bytes(id.encode(), "big") % 1_000_003
    for seq in range(STEPS):
        value = (value * 31 + seq) % 1_000_003
    return value


@dataclass
class Verdict:
    """What the checker found, each list empty where all is well."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    starts: int = 0
    replays: int = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.changed or self.checkpoints or self.repeated)


def check(
    ledger: Iterable[str], acknowledged: set[str], dsns: Mapping[str, str], schema: str = "shardflow"
) -> Verdict:
    """Compares ledger and tables with what was acknowledged to the submitter.

    L every acknowledged workflow ended; D one end per id over all servers; R each result is the recomputed one; the
    checkpoints are there; C no step started after its checkpoint was acknowledged.
    """
    verdict = Verdict()
    read_ledger(ledger, verdict)
    ends: Counter[str] = Counter()
    for name, dsn in dsns.items():
        with psycopg.connect(dsn) as conn:
            rows = conn.execute(
                f"SELECT w.id, o.status, convert_from(o.output, 'utf8'), (SELECT count(*) FROM {schema}.step s"
                f" WHERE s.wf = w.wf) FROM {schema}.workflow w JOIN {schema}.outcome o USING (wf)"
            ).fetchall()
        for id, status, output, steps in rows:
            ends[id] += 1
            if status != "succeeded" or output != str(expected(id)):
                verdict.changed.append(f"{id} on {name}: {status} {output}")
            if steps != STEPS:
                verdict.checkpoints.append(f"{id} on {name}: {steps} checkpoints")
    verdict.lost = sorted(acknowledged - set(ends))
    verdict.duplicated = sorted(id for id, n in ends.items() if n > 1)
    return verdict


def read_ledger(lines: Iterable[str], verdict: Verdict) -> None:
    """Adds to the verdict what the ledger alone tells."""
    acknowledged: set[tuple[str, str]] = set()
    began: set[str] = set()
    for line in lines:
        kind, id, seq, _ = line.split()
        if kind == "S":
            verdict.starts += 1
            if (id, seq) in acknowledged:
                verdict.repeated.append(f"{id} step {seq}")
        elif kind == "A":
            acknowledged.add((id, seq))
        elif kind == "R":
            verdict.replays += id in began
            began.add(id)
        else:
            raise ValueError(f"not a line of the ledger: {line!r}")
