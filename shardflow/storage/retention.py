"""Deleting workflows that ended long ago from one shard, batch by batch.

Guarantee: each batch is one transaction, which deletes a workflow with all that is recorded of it or leaves it as it
is, and which the shard refuses where its slots have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..model import Status
from .arrays import Texts
from .shard import Conn, Shard
from .turn import BEGIN, roll_back

#: Seconds for which a worker is the only one at it, unless it says so again.
HELD = 30.0


class Task(NamedTuple):
    """Where to go on: all up to the key `front` has been looked at, `end` is the first one that is not drawn here;
    `thorough`, whether all is to be looked at once more."""

    front: int
    end: int
    thorough: bool


class Batch(NamedTuple):
    """What a batch did: ends that it looked at, the last one's key (None for none), how many workflows are gone, and
    by how many seconds the oldest of them was overdue."""

    seen: int
    last: int | None
    gone: int
    overdue: float | None


async def take(shard: Shard, conn: Conn, worker: str, status: Status) -> Task | None:
    """Makes the worker the one that deletes what ended so; None where another one is."""
    with shard.translate():
        asked = (worker, HELD, status.value, worker)
        row = await (await conn.execute(shard.statements("retention")["take"], asked)).fetchone()
    return None if row is None else Task(*row)


async def edge(shard: Shard, conn: Conn, first: int, seconds: float) -> int:
    """The last key from `first` on whose workflow was submitted at least so many seconds ago; the one before `first`
    where there is none."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("retention")["edge"], (first, seconds))).fetchone()
    assert row is not None
    return int(row[0])


async def delete(
    shard: Shard,
    conn: Conn,
    generation: int,
    worker: str,
    status: Status,
    seconds: float,
    span: tuple[int, int],
    most: int,
    patience: float,
    *,
    front: bool,
) -> Batch | None:
    """Looks at `most` ends with keys behind the first of `span` and up to the last, and deletes what ended so at
    least so many seconds ago; None where another worker has taken over meanwhile, which does no harm.

    Arguments: `patience`, seconds that the server may take; `front`, whether all before has been looked at.
    """
    sql = shard.statements("retention")
    low, high = span
    old = (status.value, seconds)
    name = "succeeded" if status is Status.SUCCEEDED else "unlucky"
    given = (low, high, most, *old, *old) if name == "succeeded" else (status.value, low, high, most, seconds, *old)
    try:
        with shard.translate():
            async with conn.pipeline():
                await conn.execute(BEGIN)
                await conn.execute(shard.statements("submit")["allow"], (str(round(patience * 1000)),))
                await conn.execute(shard.statements("submit")["admit"], (generation,))
                row = await (await conn.execute(sql[name], given)).fetchone()
                assert row is not None
                batch = Batch(*row)
                reached = high if batch.last is None or batch.seen < most else batch.last
                moved = (reached if front else 0, batch.gone, HELD, status.value, worker)
                mine = await (await conn.execute(sql["advance"], moved)).fetchone()
                ended = await conn.execute(b"COMMIT")
            if ended.statusmessage != "COMMIT":
                raise AssertionError(f"COMMIT answered {ended.statusmessage}")
    except BaseException:
        await roll_back(conn)
        raise
    return batch if mine else None


async def looked_at_all(shard: Shard, conn: Conn, worker: str, status: Status, seconds: float) -> None:
    """All has been looked at; in so many seconds it is to be once more."""
    with shard.translate():
        await conn.execute(shard.statements("retention")["thorough"], (seconds, status.value, worker))


async def purge(shard: Shard, conn: Conn, generation: int, ids: Sequence[str], seconds: float) -> dict[str, bool]:
    """Deletes workflows that ended at least so many seconds ago; answers for those that are here whether they are
    gone."""
    try:
        with shard.translate():
            async with conn.pipeline():
                await conn.execute(BEGIN)
                await conn.execute(shard.statements("submit")["admit"], (generation,))
                answer = await conn.execute(shard.statements("retention")["purge"], (Texts(ids), seconds))
                ended = await conn.execute(b"COMMIT")
            if ended.statusmessage != "COMMIT":
                raise AssertionError(f"COMMIT answered {ended.statusmessage}")
            return {row[0]: row[1] for row in await answer.fetchall()}
    except BaseException:
        await roll_back(conn)
        raise
