"""The checker: compares the ledger with the tables, and knows nothing of shardflow but its tables' names.

L every acknowledged workflow ended, and every acknowledged checkpoint is there; D one end per id over all servers;
C no step started after its checkpoint was acknowledged; F nothing was written under a dead lease; R every result and
checkpoint is the one computed again here; N every planned fault fired while work was left.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from faults import audit
from faults.history import History, read
from psycopg import sql

STEPS = 3

#: An entry of the audit: (seq, pid, what, lease, writer, number of rows).
Entry = tuple[int, int, str, int | None, int | None, int]


def recompute(id: str) -> tuple[list[Any], Any]:
    """What the steps of the workflow `chain` of that id return, and what it returns itself."""
    value = int.from_bytes(id.encode(), "big") % 1_000_003
    values = [value := (value * 31 + seq) % 1_000_003 for seq in range(STEPS)]
    return values, value


@dataclass
class Shard:
    """A shard's tables: ended workflows as (id, status, output), checkpoints as id → seq → output, and the audit."""

    ends: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    steps: dict[str, dict[int, bytes | None]] = field(default_factory=lambda: defaultdict(dict))
    entries: list[Entry] | None = None


@dataclass
class Verdict:
    """What the checker found: complaints by letter, none where all is well, and what the run consisted of."""

    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unfired: list[str] = field(default_factory=list)
    accepted: int = 0
    starts: int = 0
    replays: int = 0
    fired: int = 0
    leases: int = 0
    writes: int = 0

    @property
    def found(self) -> dict[str, list[str]]:
        """The complaints that there are, by letter."""
        letters = {
            "L": self.lost,
            "D": self.duplicated,
            "C": self.repeated,
            "F": self.dead,
            "R": self.wrong,
            "N": self.unfired,
        }
        return {letter: complaints for letter, complaints in letters.items() if complaints}

    @property
    def clean(self) -> bool:
        return not self.found

    def __str__(self) -> str:
        head = (
            f"{self.accepted} accepted, {self.starts} starts, {self.replays} replays, {self.fired} faults,"
            f" {self.leases} leases, {self.writes} audited writes"
        )
        found = [f"{letter} {len(all)}: {'; '.join(all[:5])}" for letter, all in self.found.items()]
        return "\n".join([head, *(found or ["L D C F R N: 0"])])


def check(
    ledger: Iterable[str],
    dsns: Mapping[str, str],
    *,
    schema: str = "shardflow",
    audited: bool = False,
    recompute: Callable[[str], tuple[list[Any], Any]] = recompute,
) -> Verdict:
    """Decides over a run that is over, or L excepted, over one that goes on.

    Arguments: `ledger`, its lines; `dsns` of the shards by name; `audited`, whether `audit.install` was called on
    them, without which F is not decided; `recompute`, id → (the steps' values in order, the result).
    """
    # The tables after the ledger: what a line tells must be in them.
    lines = list(ledger)
    shards = {name: look(dsn, schema, audited) for name, dsn in dsns.items()}
    return judge(read(lines), shards, recompute)


def look(dsn: str, schema: str, audited: bool) -> Shard:
    """Reads a shard's tables, all at one moment."""
    found = Shard()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        at = sql.Identifier(schema)
        ends = "SELECT w.id, o.status, o.output FROM {0}.outcome o LEFT JOIN {0}.workflow w USING (wf)"
        found.ends = conn.execute(sql.SQL(ends).format(at)).fetchall()
        steps = "SELECT w.id, s.seq, s.output FROM {0}.step s LEFT JOIN {0}.workflow w USING (wf)"
        for id, seq, output in conn.execute(sql.SQL(steps).format(at)):
            found.steps[id][seq] = output
        if audited:
            found.entries = audit.entries(conn, schema)
    return found


def judge(
    history: History,
    shards: Mapping[str, Shard],
    recompute: Callable[[str], tuple[list[Any], Any]] = recompute,
) -> Verdict:
    """Decides by what was read; see `check`."""
    verdict = Verdict(
        accepted=len(history.accepted), starts=history.starts, replays=history.replays, fired=len(history.fired)
    )
    places: dict[str, list[str]] = defaultdict(list)
    for name, shard in shards.items():
        for id, status, output in shard.ends:
            places[id].append(name)
            values, result = recompute(id)
            if status != "succeeded" or _decoded(output) != result:
                verdict.wrong.append(f"{id} on {name} ended {status} with {output!r}, not {result!r}")
            kept = {seq: _decoded(value) for seq, value in shard.steps.get(id, {}).items()}
            if kept != dict(enumerate(values)):
                verdict.wrong.append(f"{id} on {name} has the checkpoints {kept}, not {values}")
        _judge_audit(name, shard, verdict)
    verdict.lost = [f"{id} was acknowledged and has not ended" for id in sorted(history.accepted - set(places))]
    verdict.duplicated = [f"{id} ended on {' and '.join(on)}" for id, on in places.items() if len(on) > 1]
    verdict.repeated = history.late
    there = {(id, seq) for shard in shards.values() for id, kept in shard.steps.items() for seq in kept}
    verdict.lost += [
        f"the checkpoint of step {seq} of {id} was acknowledged and is not there"
        for id, seq in history.recorded
        if (id, seq) not in there
    ]
    _judge_answers(history, recompute, verdict)
    if all(shard.entries is not None for shard in shards.values()):
        known = {entry[3] for shard in shards.values() for entry in shard.entries or () if entry[2] == "open"}
        verdict.dead += [f"a step started under lease {lease}, never opened" for lease in history.leases - known]
    for number, fault in history.planned.items():
        if history.fired.get(number, 0) <= 0:
            verdict.unfired.append(f"fault {number} ({fault}) did not fire while work was left")
    return verdict


def _judge_answers(history: History, recompute: Callable[[str], tuple[list[Any], Any]], verdict: Verdict) -> None:
    """What workers and the submitter were answered."""
    for (id, seq), values in history.recorded.items():
        wanted = recompute(id)[0]
        if seq >= len(wanted) or values != {str(wanted[seq])}:
            verdict.wrong.append(f"step {seq} of {id} answered {sorted(values)}, not {wanted[seq : seq + 1]}")
    for id, values in history.results.items():
        if values != {str(recompute(id)[1])}:
            verdict.wrong.append(f"{id} was answered {sorted(values)}, not {recompute(id)[1]}")


def _judge_audit(name: str, shard: Shard, verdict: Verdict) -> None:
    """Each write's backend must be the writer of a lease that is open at that place of the audit's order.

    A pid names one living backend only, so a dead one's lease that still names it hides nobody.
    """
    if shard.entries is None:
        return
    writer: dict[int, int] = {}
    open: Counter[int] = Counter()
    rows: Counter[str] = Counter()
    for seq, pid, what, lease, backend, number in shard.entries:
        if lease is None:
            rows[what] += number
            verdict.writes += 1
            if open[pid] <= 0:
                verdict.dead.append(
                    f"{number} rows of {what} on {name} by backend {pid} without a lease, audit {seq}"
                )
            continue
        if lease in writer:
            open[writer.pop(lease)] -= 1
        if what != "end":
            if backend is None:
                raise ValueError(f"lease {lease} on {name} names no writer: F cannot be decided")
            writer[lease] = backend
            open[backend] += 1
        verdict.leases += what == "open"
    there = {"step": sum(map(len, shard.steps.values())), "outcome": len(shard.ends)}
    for table, number in there.items():
        if rows[table] != number:
            verdict.dead.append(f"{table} on {name} has {number} rows, but {rows[table]} were audited")


def _decoded(value: bytes | None) -> Any:
    return None if value is None else json.loads(bytes(value))
