"""What a client asks of one shard's workflows and queues: cancel, resume, restart, fork; pause.

Guarantee: each is one transaction, which the shard refuses where its slots have changed, and may be asked again
whatever became of the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import AsyncCursor

from .arrays import Byteas, Float8s, Int2s, Int8s, Texts
from .shard import Conn, Shard
from .turn import BEGIN, roll_back


class Recorded(NamedTuple):
    """A checkpoint to be copied; `at`, seconds since 1970."""

    seq: int
    attempts: int
    name: str
    output: bytes | None
    error: str | None
    at: float


@dataclass(frozen=True, slots=True)
class Source:
    """A workflow to be copied: its submission, and its checkpoints in the order of their numbers."""

    wf: int
    name: str
    queue: str
    priority: int
    input: bytes
    options: dict[str, Any] | None
    attributes: str | None
    steps: Sequence[Recorded]


async def cancel(
    shard: Shard, conn: Conn, generation: int, ids: Sequence[str], reasons: Sequence[str | None]
) -> dict[str, bool]:
    """Cancels workflows; answers for those that are here whether they had not ended yet."""
    rows = await _admitted(
        shard, conn, generation, shard.statements("control")["cancel"], (Texts(ids), Texts(reasons))
    )
    return {row[0]: row[1] for row in rows}


async def resume(
    shard: Shard, conn: Conn, generation: int, ids: Sequence[str], *, afresh: bool = False
) -> dict[str, bool]:
    """Lets workflows that have ended go on from their checkpoints, or from the beginning; answers for those that are
    here whether they do."""
    rows = await _admitted(shard, conn, generation, shard.statements("control")["resume"], (Texts(ids), afresh))
    return {row[0]: row[1] for row in rows}


async def source(shard: Shard, conn: Conn, id: str) -> Source | None:
    """The workflow with that id as it is recorded now; None where there is none."""
    sql = shard.statements("control")
    with shard.translate():
        row = await (await conn.execute(sql["source"], (id,), binary=True)).fetchone()
        if row is None:
            return None
        steps = await (await conn.execute(sql["record"], (row[0],), binary=True)).fetchall()
    wf, name, queue, priority, input, options, attributes = row
    record = [Recorded(*step) for step in steps]
    return Source(wf, name, queue, priority, input, options, attributes, record)


async def fork(
    shard: Shard,
    conn: Conn,
    generation: int,
    id: str,
    slot: int,
    what: Source,
    options: dict[str, Any],
    children: Sequence[str],
) -> int | None:
    """Creates the workflow with these checkpoints, which is to hear the ends of these children; answers its key, None
    where the id is there already."""
    steps = what.steps
    # A fork may lie on another shard than those that share a key, which therefore is not minded.
    text = json.dumps({name: value for name, value in options.items() if name not in ("key", "most", "dedup")})
    parameters = (
        *(id, what.name, what.queue, slot, what.priority, what.input),
        *(text, options.get("timeout"), text, what.attributes),
        Int8s([s.seq for s in steps]),
        Int2s([s.attempts for s in steps]),
        Texts([s.name for s in steps]),
        Byteas([s.output for s in steps]),
        Texts([s.error for s in steps]),
        Float8s([s.at for s in steps]),
        *(id, Texts(children)),
    )
    rows = await _admitted(shard, conn, generation, shard.statements("control")["fork"], parameters)
    return rows[0][0] if rows else None


async def pause(shard: Shard, conn: Conn, queue: str, paused: bool) -> bool:
    """Has nothing more claimed from the queue, or again; answers whether that is new."""
    statement = shard.statements("control")["pause" if paused else "unpause"]
    with shard.translate():
        cursor = await conn.execute(statement, (Texts([queue]),))
        return await cursor.fetchone() is not None


async def queues(shard: Shard, conn: Conn) -> list[tuple[str, int, datetime | None]]:
    """Lanes with the number of workflows that are ready; and queues that are paused, with the time since when."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("control")["queues"])
        return [(lane, count, since) for lane, count, since in await cursor.fetchall()]


async def _admitted(
    shard: Shard, conn: Conn, generation: int, statement: bytes, parameters: tuple[object, ...]
) -> list[tuple[Any, ...]]:
    answer: AsyncCursor[tuple[Any, ...]]
    try:
        with shard.translate():
            async with conn.pipeline():
                await conn.execute(BEGIN)
                await conn.execute(shard.statements("submit")["admit"], (generation,))
                answer = await conn.execute(statement, parameters)
                ended = await conn.execute(b"COMMIT")
            if ended.statusmessage != "COMMIT":
                raise AssertionError(f"COMMIT answered {ended.statusmessage}")
            return await answer.fetchall()
    except BaseException:
        await roll_back(conn)
        raise
