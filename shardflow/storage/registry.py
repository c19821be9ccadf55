"""The registry of workers, a row each on the worker's home shard; and who claims on a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.fleet import WorkerRow
from .shard import Conn, Shard


@dataclass(frozen=True, slots=True)
class Card:
    """What a worker says of itself once: see `Worker`. `capacity` is workflows at once; `pinned`, that it serves the
    shards it was told and no others."""

    worker: str
    host: str
    pid: int
    app: str
    release: str
    code_version: str
    capacity: int
    max_leases: int
    queues: Sequence[str]
    labels: Sequence[str]
    pinned: bool


@dataclass(frozen=True, slots=True)
class Pulse:
    """What it says at each heartbeat: whether it drains, how many beats there were, workflows that run, the shards it
    holds leases on, aims at (None: nobody has told it yet) and cannot reach, and the decision it has obeyed."""

    draining: bool
    beat: int
    running: int
    held: Sequence[str]
    aims: Sequence[str] | None
    cut_off: Sequence[str]
    obeyed: int


@dataclass(frozen=True, slots=True)
class Wish:
    """The rebalancer's: the shards that the worker is wanted on, None before the first; `decision` is its number.
    `neighbours` counts the live workers that have their home on this shard."""

    shards: frozenset[str] | None
    decision: int
    neighbours: int


async def beat(shard: Shard, conn: Conn, card: Card, pulse: Pulse, ttl: float, *, session: bool) -> Wish:
    """Registers or renews the worker for `ttl` seconds. `session`: the connection's session stands for its life."""
    session = session and not shard.config.pooler
    said = (card.worker, card.host, card.pid, card.app, card.release, card.code_version, card.capacity)
    said += (card.max_leases, list(card.queues), list(card.labels), card.pinned, ttl, session)  # type: ignore[assignment]
    now = (pulse.draining, pulse.beat, pulse.running, list(pulse.held))
    aims = None if pulse.aims is None else list(pulse.aims)
    with shard.translate():
        cursor = await conn.execute(
            shard.statements("registry")["beat"], (*said, *now, aims, list(pulse.cut_off), pulse.obeyed, pulse.obeyed)
        )
        row = await cursor.fetchone()
    assert row is not None
    return Wish(None if row[0] is None else frozenset(row[0]), row[1], row[2])


async def stand_in(shard: Shard, conn: Conn, worker: str) -> None:
    """Makes this connection's session stand for the worker's life."""
    if not shard.config.pooler:
        with shard.translate():
            await conn.execute(shard.statements("registry")["live"], (worker,))


async def leave(shard: Shard, conn: Conn, worker: str) -> None:
    """Takes the worker off the registry."""
    with shard.translate():
        await conn.execute(shard.statements("registry")["leave"], (worker,))


async def sweep(shard: Shard, conn: Conn, seconds: float) -> None:
    """Forgets workers whose time was over so long ago."""
    with shard.translate():
        await conn.execute(shard.statements("registry")["sweep"], (seconds,))


async def workers(shard: Shard, conn: Conn) -> list[WorkerRow]:
    """The shard's part of the registry."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("registry")["workers"])
        return [WorkerRow(*row) for row in await cursor.fetchall()]


async def claimers(shard: Shard, conn: Conn, own: int = 0) -> dict[str, int]:
    """Queue → live leases other than `own` that claim from it; "" stands for leases that did not say."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("registry")["claimers"], (own,))
        return {row[0]: row[1] for row in await cursor.fetchall()}


async def step_back(shard: Shard, conn: Conn, lease: int, queues: Sequence[str]) -> bool:
    """Marks the lease as one that claims no more, if each of its queues has another claimer here; whether it did.

    One at a time, so that of two who leave at once the last one sees that it is the last. While somebody else does it
    the answer is False: ask again. After a False the lease is marked as one that claims, whatever it was before.
    """
    sql = shard.statements("registry")
    with shard.translate():
        async with conn.transaction():
            row = await (await conn.execute(sql["lock_group"])).fetchone()
            others = await claimers(shard, conn, lease) if row is not None and row[0] else {}
            back = bool(others.get("") or all(others.get(queue) for queue in queues))
            await conn.execute(sql["set_claiming"], (not back, lease, not back))
            return back


async def step_up(shard: Shard, conn: Conn, lease: int) -> None:
    """Marks the lease as one that claims."""
    with shard.translate():
        await conn.execute(shard.statements("registry")["set_claiming"], (True, lease, True))
