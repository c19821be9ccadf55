"""Limits of queues on one shard: what is declared, what is in use, and how shares move between shards.

Guarantee: the shares of all shards never add up to more than the limit. A grant leaves the donor's share and is
written down there in one transaction; it is added at its target once, by its number, and only then forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..core.quota import Need
from .shard import Conn, Shard


class Declared(NamedTuple):
    """A queue's limit of one kind: units in the cluster (None: no limit), their seconds, and one shard's part."""

    queue: str
    kind: str
    most: int | None
    seconds: float | None
    part: int


class Grant(NamedTuple):
    """Units of a share that were given to the shard `target`."""

    queue: str
    kind: str
    target: str
    number: int
    units: int


class LimitRow(NamedTuple):
    """A limit as one shard has it."""

    queue: str
    kind: str
    most: int
    seconds: float | None
    share: int
    used: int


async def declare(shard: Shard, conn: Conn, started: int, declared: Iterable[Declared]) -> frozenset[str]:
    """Sets limits unless later ones are there (`started`: when the declaring worker was started, in µs since 1970);
    answers which queues have limits."""
    sql = shard.statements("limits")
    with shard.translate():
        async with conn.transaction():
            for one in sorted(declared):
                await conn.execute(sql["declare"], (one.queue, one.kind, started, one.most, one.seconds, one.part))
        return frozenset(row[0] for row in await (await conn.execute(sql["limited"])).fetchall())


async def ask(
    shard: Shard, conn: Conn, asker: str, started: int, declared: Iterable[Declared], needs: Sequence[Need]
) -> tuple[list[Grant], bool]:
    """Has this shard give to the shard `asker` what it can spare; answers the grants that are to be brought to their
    targets, and whether more is kept for the asker."""
    sql = shard.statements("limits")
    kept = False
    if needs:
        await declare(shard, conn, started, declared)
    with shard.translate():
        for need in needs:
            given = (need.queue, need.kind, asker, need.share, need.base)
            row = await (await conn.execute(sql["give"], given)).fetchone()
            kept = kept or bool(row and row[0])
        rows = await (await conn.execute(sql["grants"], (asker,))).fetchall()
    return [Grant._make(row) for row in rows], kept


async def accept(shard: Shard, conn: Conn, donor: str, grant: Grant) -> bool:
    """Adds a grant to this shard's share; answers whether it was new."""
    with shard.translate():
        cursor = await conn.execute(
            shard.statements("limits")["accept"], (grant.queue, grant.kind, donor, grant.number, grant.units)
        )
        row = await cursor.fetchone()
    return bool(row and row[0])


async def arrived(shard: Shard, conn: Conn, grant: Grant) -> None:
    """Forgets a grant of this shard's that has arrived."""
    with shard.translate():
        await conn.execute(
            shard.statements("limits")["arrived"], (grant.queue, grant.kind, grant.target, grant.number)
        )


async def all_limits(shard: Shard, conn: Conn) -> list[LimitRow]:
    """The shard's limits, for whoever looks."""
    with shard.translate():
        rows = await (await conn.execute(shard.statements("limits")["list"])).fetchall()
    return [LimitRow._make(row) for row in rows]
