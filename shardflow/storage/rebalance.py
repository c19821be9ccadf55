"""Election, wishes and journal of the rebalancer; and what it asks a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from ..core.fleet import Claimer, Report, WorkerRow
from .shard import Conn, Shard

#: Entries that the journal of a shard keeps.
JOURNAL_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class Term:
    """An election that was won: its number on that shard, and since when by the shard's clock."""

    number: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Elected:
    """Who is elected on a shard; `vacant` says that it is over."""

    holder: str
    lease: int | None
    term: int
    since: datetime
    vacant: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A journal's line. `kind`: "elected", "aside", "open", "close", "move" or "rest"; `at`: the shard's clock."""

    at: datetime
    term: int
    rebalancer: str
    kind: str
    worker: str | None
    source: str | None
    target: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What is to be written into the journal."""

    kind: str
    reason: str
    worker: str | None = None
    source: str | None = None
    target: str | None = None


async def stand(shard: Shard, conn: Conn, holder: str, lease: int | None, ttl: float) -> Term | None:
    """Takes or renews the election for `ttl` seconds; None where another one holds it.

    It also ends when `lease`, on this shard, is ended.
    """
    with shard.translate():
        cursor = await conn.execute(shard.statements("rebalance")["stand"], (holder, lease, ttl))
        row = await cursor.fetchone()
    return Term(row[0], row[1]) if row else None


async def resign(shard: Shard, conn: Conn, holder: str) -> None:
    """Leaves the election to others."""
    with shard.translate():
        await conn.execute(shard.statements("rebalance")["resign"], (holder,))


async def elected(shard: Shard, conn: Conn) -> Elected | None:
    """Who was last elected on the shard."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("rebalance")["elected"])).fetchone()
    return Elected(*row) if row else None


async def report(shard: Shard, conn: Conn) -> Report:
    """All that a decision needs to know of the shard, in one query."""
    sql = shard.statements("rebalance")
    with shard.translate():
        row = await (await conn.execute(sql["report"], (shard.config.schema,))).fetchone()
    assert row is not None
    workers, leases, backlog = row
    return Report([_worker(found) for found in workers], [Claimer(**found) for found in leases], backlog)


def _worker(found: dict[str, Any]) -> WorkerRow:
    values = {field.name: found[field.name] for field in fields(WorkerRow)}
    for name in ("started_at", "seen_at", "expires_at"):
        values[name] = datetime.fromisoformat(values[name])
    return WorkerRow(**values)


async def wish(shard: Shard, conn: Conn, wishes: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Tells workers whose home this shard is (name, shards wanted on) what is wanted of them."""
    sql = shard.statements("rebalance")["wish"]
    with shard.translate():
        async with conn.transaction():
            for worker, shards in wishes:
                await conn.execute(sql, (list(shards), worker))


async def note(shard: Shard, conn: Conn, rebalancer: str, term: int, notes: Sequence[Note]) -> None:
    """Writes into the journal, which keeps its newest entries."""
    sql = shard.statements("rebalance")
    columns = (
        [n.kind for n in notes],
        [n.worker for n in notes],
        [n.source for n in notes],
        [n.target for n in notes],
        [n.reason for n in notes],
    )
    with shard.translate():
        async with conn.transaction():
            await conn.execute(sql["note"], (term, rebalancer, *columns))
            await conn.execute(sql["prune"], (JOURNAL_KEPT,))


async def journal(shard: Shard, conn: Conn, count: int) -> list[Entry]:
    """The newest entries, the newest first."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("rebalance")["journal"], (count,))
        return [Entry(*row) for row in await cursor.fetchall()]
