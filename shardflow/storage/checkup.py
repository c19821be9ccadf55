"""Asks one shard for the facts of a checkup, each in a short transaction of its own that only reads.

Guarantee: a fact that cannot be read, for want of a right, of time or of a table, spoils no other; a server that
stops answering ends the checkup of its shard within seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg

from ..core.facts import (
    Ages,
    Blocked,
    Clock,
    Connections,
    Facts,
    Keys,
    LeaseFact,
    Migrated,
    Misplaced,
    OldReceipt,
    Orphan,
    Outbox,
    Overdue,
    Places,
    Prepared,
    Queue,
    ReplicationSlot,
    Server,
    Session,
    Setting,
    Table,
)
from ..core.slotmap import ShardView
from ..errors import ShardflowError, ShardUnavailable
from . import migrate
from .arrays import Int8s, Texts
from .cluster import KEYS_PER_SHARD, Identity, identity
from .shard import Conn, Shard
from .turn import BEGIN, roll_back

T = TypeVar("T")

#: The settings that decide how safe and how well a shard works.
SETTINGS = (
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "synchronous_standby_names",
    "autovacuum",
    "autovacuum_freeze_max_age",
    "track_counts",
    "max_connections",
    "superuser_reserved_connections",
    "reserved_connections",
    "statement_timeout",
    "lock_timeout",
    "transaction_timeout",
    "idle_session_timeout",
    "idle_in_transaction_session_timeout",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "session_replication_role",
)
#: Seconds: for one question; for the questions of a deep checkup; beyond that, for the server to answer at all.
QUESTION, DEEP_QUESTION, PATIENCE = 5.0, 1800.0, 5.0
#: Seconds: how old a transaction is worth telling, a wait for a lock, a receipt; how late a suspended workflow.
OLD_TRANSACTION, OLD_WAIT, OLD_RECEIPT, LATE = 60.0, 2.0, 3600.0, 60.0
#: A slot is frozen for milliseconds; one that still is after so many seconds was left so.
FROZEN_SECONDS = 2.0
#: Rows are counted up to this, and this many workflows are looked at unless all are.
BOUND, SAMPLE = 10_001, 1000


async def examine(shard: Shard, conn: Conn, *, deep: bool = False) -> Facts:
    """The facts of one shard; `deep` looks for misplaced workflows among all instead of a sample.

    Raises ShardUnavailable where the server stops answering.
    """
    asker = _Asker(shard, conn)
    known = await asker.guarded("identity", identity(shard, conn))
    return Facts(
        shard=shard.name,
        schema=shard.config.schema,
        pooler=shard.config.pooler,
        clock=await _clock(asker),
        **await _server(asker),
        migrations=await _migrations(asker),
        **({} if known is None else await _records(asker, known, deep)),
        unreadable=asker.unreadable,
    )


class _Asker:
    """Asks, and remembers what could not be read."""

    def __init__(self, shard: Shard, conn: Conn) -> None:
        self.shard = shard
        self.conn = conn
        self.sql = shard.statements("checkup")
        self.unreadable: dict[str, str] = {}
        self.backends: set[int] = set()

    async def guarded(self, fact: str, question: Any, seconds: float = QUESTION) -> Any:
        """What `question` answers, None where the server refuses it. Raises ShardUnavailable where it is gone."""
        try:
            async with self.shard.deadline(self.conn, seconds + PATIENCE, f"checkup, {fact}"):
                return await question
        except (psycopg.Error, ShardflowError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, psycopg.Error) else error
            await roll_back(self.conn)
            if self.conn.closed:
                if isinstance(error, psycopg.Error):
                    error = ShardUnavailable(f"shard {self.shard.name!r} does not answer: {_line(error)}")
                raise error from cause
            self.unreadable[fact] = _line(cause)
            return None

    async def rows(
        self, fact: str, statement: bytes, *parameters: Any, seconds: float = QUESTION, by_index: bool = False
    ) -> list[tuple[Any, ...]] | None:
        """All rows of a statement, None where the server refuses it."""

        async def ask() -> list[tuple[Any, ...]]:
            async with self.conn.pipeline():
                await self.conn.execute(BEGIN)
                await self.conn.execute(self.sql["limits"], (str(round(seconds * 1000)),))
                if by_index:
                    await self.conn.execute(self.sql["by_index"])
                cursor = await self.conn.execute(statement, parameters or None)
                await self.conn.execute(b"COMMIT")
            return await cursor.fetchall()

        found: list[tuple[Any, ...]] | None = await self.guarded(fact, ask(), seconds)
        return found

    async def each(
        self, fact: str, statement: bytes, *parameters: Any, make: Callable[..., T], **options: Any
    ) -> tuple[T, ...] | None:
        """One record for every row."""
        found = await self.rows(fact, statement, *parameters, **options)
        return None if found is None else tuple(make(*row) for row in found)

    async def single(
        self, fact: str, statement: bytes, *parameters: Any, make: Callable[..., T], **options: Any
    ) -> T | None:
        """One record for the only row."""
        found = await self.rows(fact, statement, *parameters, **options)
        return make(*found[0]) if found else None


async def _clock(asker: _Asker) -> Clock | None:
    """The quickest of some round trips says most: the server's clock was read within it."""
    best: Clock | None = None
    for _ in range(5):
        began, counter = time.time(), time.perf_counter()
        row = await asker.guarded("clock", _one(asker.conn, asker.sql["clock"]))
        took = time.perf_counter() - counter
        if row is None:
            return None
        asker.backends.add(row[1])
        if best is None or took < best.round_trip:
            best = Clock(row[0] - (began + took / 2), took / 2, took)
    return best


async def _one(conn: Conn, statement: bytes) -> tuple[Any, ...] | None:
    return await (await conn.execute(statement)).fetchone()


async def _settings(asker: _Asker) -> dict[str, Setting] | None:
    """The settings as they are outside of our own bounds."""

    async def ask() -> list[tuple[Any, ...]]:
        return await (await asker.conn.execute(asker.sql["settings"], (Texts(SETTINGS),))).fetchall()

    rows = await asker.guarded("settings", ask())
    return None if rows is None else {name: Setting(value, source) for name, value, source in rows}


async def _server(asker: _Asker) -> dict[str, Any]:
    sql, announced = asker.sql, asker.conn.info.backend_pid

    def server(version: int, standby: bool, role: str, database: str, started: float, port: int) -> Server:
        return Server(version, standby, role, database, started, port, frozenset(asker.backends), announced)

    return {
        "server": await asker.single("server", sql["server"], make=server),
        "settings": await _settings(asker),
        "connections": await asker.single("connections", sql["connections"], make=Connections),
        "sessions": await asker.each("sessions", sql["sessions"], OLD_TRANSACTION, make=Session),
        "blocked": await asker.each(
            "blocked", sql["blocked"], OLD_WAIT, make=lambda p, a, s, by, who: Blocked(p, a, s, tuple(by), who)
        ),
        "replication": await asker.each("replication", sql["replication"], make=ReplicationSlot),
        "prepared": await asker.each("prepared", sql["prepared"], make=Prepared),
        "ages": await asker.single("ages", sql["ages"], make=Ages),
    }


async def _migrations(asker: _Asker) -> tuple[Migrated, ...] | None:
    """The migrations that are not applied here as this code has them."""
    shard, sql = asker.shard, asker.shard.statements("cluster")
    there = await asker.rows("migrations", sql["table_exists"], shard.config.schema, "migration")
    applied = await asker.rows("migrations", sql["migrations"]) if there and there[0][0] else [] if there else None
    if applied is None:
        return None
    recorded = {row[0]: row for row in applied}
    found = [Migrated(m.version, m.name, "pending") for m in migrate.known() if m.version not in recorded]
    found += [
        Migrated(m.version, m.name, "changed")
        for m in migrate.known()
        if m.version in recorded and recorded[m.version][2] != m.checksum
    ]
    versions = {m.version for m in migrate.known()}
    return (*found, *(Migrated(row[0], row[1], "unknown") for row in applied if row[0] not in versions))


async def _records(asker: _Asker, known: Identity, deep: bool) -> dict[str, Any]:
    """What is in the shard's tables."""
    sql = asker.sql
    slots = await asker.rows("slots", asker.shard.statements("cluster")["slots"])
    tables = await asker.each("tables", sql["tables"], make=_table)
    first, end = known.ordinal * KEYS_PER_SHARD + 1, (known.ordinal + 1) * KEYS_PER_SHARD + 1
    return {
        "view": None
        if slots is None
        else ShardView(
            known.name,
            known.cluster,
            known.cluster_id,
            known.slots,
            known.generation,
            [(int(slot), str(state), str(shard)) for slot, state, shard in slots],
        ),
        "frozen": await _frozen(asker),
        "tables": tables,
        "keys": await asker.single(
            "keys",
            sql["keys"],
            *(first, end, first, end),
            make=lambda next_, used: Keys(next_, used or 0, first, end),
        ),
        "leases": await asker.each("leases", sql["leases"], BOUND, make=_lease),
        "orphans": await asker.each("orphans", sql["orphans"], make=Orphan),
        "receipts": await asker.each(
            "receipts",
            sql["receipts"],
            OLD_RECEIPT,
            make=lambda lease, worker, age, count, ids: OldReceipt(lease, worker, age, count, tuple(ids)),
        ),
        "queues": _by_queue(await asker.rows("queues", sql["queues"], BOUND, by_index=True)),
        "overdue": await asker.single("overdue", sql["overdue"], LATE, BOUND, make=Overdue),
        "places": await _places(asker, tables or (), deep),
        "outbox": await _outbox(asker),
    }


def _table(
    name: str,
    live: int,
    dead: int,
    vacuumed: float | None,
    size: int,
    indexes: int,
    options: list[str],
    missing: list[str],
) -> Table:
    off = any(
        key == "autovacuum_enabled" and value.lower() in ("false", "off", "no", "0")
        for key, _, value in (option.partition("=") for option in options)
    )
    return Table(name, live, dead, vacuumed, size, indexes, not off, tuple(missing))


def _lease(
    lease: int,
    worker: str,
    left: float,
    alive: bool | None,
    claimed: int,
    queues: list[str],
    claiming: bool,
    writer: int | None,
    writer_idle: float | None,
) -> LeaseFact:
    return LeaseFact(lease, worker, left, alive, claimed, tuple(queues), claiming, writer, writer_idle)


async def _frozen(asker: _Asker) -> tuple[int, ...] | None:
    """The slots that stay frozen."""
    found = await asker.each("frozen", asker.sql["frozen"], make=int)
    if found:
        await asyncio.sleep(FROZEN_SECONDS)
        again = await asker.each("frozen", asker.sql["frozen"], make=int)
        return None if again is None else tuple(slot for slot in found if slot in again)
    return found


def _by_queue(rows: Sequence[tuple[Any, ...]] | None) -> tuple[Queue, ...] | None:
    """One record for a queue, out of one row for each of its priorities."""
    if rows is None:
        return None
    found: dict[str, Queue] = {}
    for name, ready, oldest in rows:
        other = found.get(name, Queue(name, 0, None))
        ages = [age for age in (other.oldest, oldest) if age is not None]
        found[name] = Queue(name, other.ready + ready, max(ages, default=None))
    return tuple(found.values())


async def _places(asker: _Asker, tables: Sequence[Table], deep: bool) -> Places | None:
    """A sample costs little: what it finds is looked for again everywhere, in one statement, before it is told."""
    sql = asker.sql
    if deep:
        found = await asker.each("places", sql["misplaced_all"], make=Misplaced, seconds=DEEP_QUESTION)
        return None if found is None else Places(None, found)
    rows = max((table.live for table in tables if table.name == "workflow"), default=0)
    percent = min(100.0, 200.0 * SAMPLE / max(rows, 1))
    sample = await asker.rows("places", sql["sample"], SAMPLE, percent)
    if sample is None:
        return None
    looked_at, lost = sample[0]
    if not lost:
        return Places(looked_at, ())
    found = await asker.each("places", sql["misplaced"], Int8s(lost), make=Misplaced)
    return None if found is None else Places(looked_at, found)


async def _outbox(asker: _Asker) -> Outbox | None:
    there = await asker.rows(
        "outbox", asker.shard.statements("cluster")["table_exists"], asker.shard.config.schema, "outbox"
    )
    if not there or not there[0][0]:
        return None
    return await asker.single("outbox", asker.sql["outbox"], BOUND, make=Outbox)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
