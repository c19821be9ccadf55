"""Leases in the database: open, keep, resume after a lost connection, release, and expire those of dead peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from .arrays import Int8s, Texts
from .schedules import Look
from .shard import Conn, Shard
from .turn import Turn, written


@dataclass(frozen=True, slots=True)
class Peer:
    """Another worker's lease: whether its time is over, and whether its session is closed."""

    lease: int
    worker: str
    expired: bool
    gone: bool


class Glance(NamedTuple):
    """What a look has found: whether the lease is held, the server's clock; whether nobody is elected, how it stands
    with schedules; whether there may be something to do (None: not asked), and in how many seconds there will; peers
    that may be dead."""

    held: bool
    clock: datetime
    vacant: bool
    schedules: Look
    found: bool | None
    due: float | None
    dead: list[Peer]


@dataclass(frozen=True, slots=True)
class Held:
    """A workflow that a lease holds: which receipt names it, and the leases expired under it so far."""

    batch: int
    wf: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Submission:
    """A workflow's record as the worker needs it to run it."""

    wf: int
    id: str
    name: str
    input: bytes
    queue: str
    priority: int
    options: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A step's recorded outcome: `error` is JSON text where it failed for good; `at`, seconds since 1970 by the
    server's clock."""

    seq: int
    name: str
    output: bytes | None
    error: str | None
    attempts: int
    at: float = 0.0


class Tries(NamedTuple):
    """A step that has failed so often, and the server's time, in seconds since 1970, of its next try."""

    attempts: int
    due: float


class Recorded(NamedTuple):
    """What is recorded of a workflow, by sequence numbers: its checkpoints, and steps to be tried again."""

    checkpoints: dict[int, Checkpoint]
    tries: dict[int, Tries]


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """A lease as `lease list` shows it; times are the shard's clock."""

    lease: int
    worker: str
    epoch: int
    opened_at: datetime
    expires_at: datetime
    expired: bool
    claimed: int
    queues: list[str]
    claiming: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a resume found: the new epoch, what the lease holds, the numbers of all its receipts, and whether the turn
    in doubt has committed (None where there was none, or no row of it could tell)."""

    epoch: int
    held: list[Held]
    batches: list[int]
    done: bool | None


async def open_lease(
    shard: Shard, conn: Conn, worker: str, ttl: float, writer: int | None = None, queues: Sequence[str] = ()
) -> tuple[int, int]:
    """Opens a lease for `ttl` seconds; answers (lease, epoch). The session stands for the worker's life.

    `writer` is the server's process id of the connection that will write under the lease, where there is no pooler;
    `queues`, those that the worker serves.
    """
    sql = shard.statements("lease")
    session = not shard.config.pooler
    with shard.translate():
        async with conn.transaction():
            row = await (
                await conn.execute(sql["open"], (worker, session, writer if session else None, list(queues), ttl))
            ).fetchone()
            assert row is not None
            if session:
                await conn.execute(sql["live"], (row[0],))
    return row[0], row[1]


async def stand_in(shard: Shard, conn: Conn, lease: int) -> None:
    """Makes this connection's session stand for the holder's life, after the former one was lost."""
    if not shard.config.pooler:
        with shard.translate():
            await conn.execute(shard.statements("lease")["live"], (lease,))


async def look(
    shard: Shard,
    conn: Conn,
    lease: int,
    epoch: int,
    *,
    ttl: float | None = None,
    watch: bool = False,
    lanes: Sequence[str] | None = None,
) -> Glance:
    """One query for all that a worker with nothing to do asks.

    Arguments: `ttl`, seconds from now until which the lease is renewed; `watch`, whether to look at its peers;
    `lanes` to look into.
    """
    given = (lease, epoch, ttl, watch, None if lanes is None else Texts(lanes))
    with shard.translate():
        rows = await (await conn.execute(shard.statements("lease")["look"], given)).fetchall()
    held, clock, vacant, schedule_at, tick_at, found, due = rows[0][:7]
    dead = [Peer(*row[7:]) for row in rows if row[7] is not None]
    return Glance(held, clock, vacant, Look(clock, schedule_at, tick_at), found, due, dead)


async def resume(shard: Shard, conn: Conn, lease: int, ttl: float, doubt: Turn | None = None) -> Resumed | None:
    """Takes the lease over from the worker's own lost connection; None if it is gone.

    `conn` is the connection that will write from now on, `doubt` a turn whose answer was lost. All is read in the
    transaction that holds the lease's row: no turn of the old connection is under way then or can begin, and no peer
    can end the lease, so what is read stays true until this worker writes (docs/model.md has the counter-example).
    """
    sql = shard.statements("lease")
    writer = None if shard.config.pooler else conn.info.backend_pid
    with shard.translate():
        if writer is not None:
            await conn.execute(sql["cut_former"], (lease,))
        async with conn.transaction():
            await conn.execute(sql["settle"], (lease,))
            row = await (await conn.execute(sql["resume"], (writer, ttl, lease))).fetchone()
            if row is None:
                return None
            holds = await held(shard, conn, lease)
            batches = [r[0] for r in await (await conn.execute(sql["batches"], (lease,))).fetchall()]
            done = None if doubt is None else await written(shard, conn, doubt)
    return Resumed(row[0], holds, batches, done)


async def held(shard: Shard, conn: Conn, lease: int) -> list[Held]:
    """What the lease holds by its receipts and has no outcome yet."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["held"], (lease,))
        return [Held(*row) for row in await cursor.fetchall()]


async def release(shard: Shard, conn: Conn, lease: int) -> int | None:
    """Ends the worker's own lease; answers how many workflows went back to ready, None if it was gone."""
    with shard.translate():
        async with conn.transaction():
            row = await (await conn.execute(shard.statements("lease")["release"], (lease,))).fetchone()
    return None if row is None else row[0]


async def expire(shard: Shard, conn: Conn, peer: Peer) -> int | None:
    """Expires a peer's lease if it is still dead; answers how many workflows went back, None if it was not."""
    sql = shard.statements("lease")
    with shard.translate():
        async with conn.transaction():
            cursor = await conn.execute(sql["expire_due" if peer.expired else "expire_gone"], (peer.lease,))
            row = await cursor.fetchone()
    return None if row is None else row[0]


async def cut_off(shard: Shard, conn: Conn, peer: Peer, late: float) -> bool:
    """Ends the backend that still holds a lease which is `late` seconds past its time; whether there was one."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["cut_off"], (peer.lease, late))
        return await cursor.fetchone() is not None


async def submissions(shard: Shard, conn: Conn, wfs: Sequence[int]) -> list[Submission]:
    """The records of these workflows."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["load"], (Int8s(wfs),), binary=True)
        return [Submission(*row) for row in await cursor.fetchall()]


async def recorded(shard: Shard, conn: Conn, wfs: Sequence[int]) -> tuple[dict[int, Recorded], float]:
    """What is recorded of these workflows, by key; and the server's clock, in seconds since 1970."""
    sql = shard.statements("lease")
    found: dict[int, Recorded] = {wf: Recorded({}, {}) for wf in wfs}
    with shard.translate():
        async with conn.pipeline():
            clock = await conn.execute(sql["clock"])
            steps = await conn.execute(sql["checkpoints"], (Int8s(wfs),), binary=True)
            tries = await conn.execute(sql["retries"], (Int8s(wfs),))
        for wf, seq, name, output, error, attempts, at in await steps.fetchall():
            found[wf].checkpoints[seq] = Checkpoint(seq, name, output, error, attempts, at)
        for wf, seq, attempts, due in await tries.fetchall():
            found[wf].tries[seq] = Tries(attempts, due)
        row = await clock.fetchone()
    assert row is not None
    return found, row[0]


async def clock(shard: Shard, conn: Conn) -> float:
    """The server's clock, in seconds since 1970."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("lease")["clock"])).fetchone()
    assert row is not None
    return float(row[0])


async def all_leases(shard: Shard, conn: Conn) -> list[LeaseRow]:
    """Every lease on the shard with the number of workflows its receipts name."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["list"])
        return [LeaseRow(*row) for row in await cursor.fetchall()]
