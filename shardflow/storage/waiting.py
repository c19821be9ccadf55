"""What one workflow waits for, for whoever looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..core.failure import from_json
from ..model import ErrorInfo
from .shard import Conn, Shard


@dataclass(frozen=True, slots=True)
class FailedTry:
    """A step that has failed so often and is to be tried again at `due_at`; `error` is the last one."""

    seq: int
    name: str
    attempts: int
    failed_at: datetime
    due_at: datetime
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Waiting:
    """`reason` is None where the workflow is not suspended; `missing` are ends of children or dependencies; `unread`,
    messages that it has not received."""

    reason: str | None
    wakes_at: datetime | None
    missing: int | None
    unread: int
    tries: list[FailedTry]


async def waiting(shard: Shard, conn: Conn, wf: int) -> Waiting:
    """What the workflow with this key waits for."""
    sql = shard.statements("read")
    with shard.translate():
        row = await (await conn.execute(sql["waiting"], (wf,))).fetchone()
        tries = await (await conn.execute(sql["failed_tries"], (wf,))).fetchall()
    assert row is not None
    reason, wakes_at, missing, unread = row
    failed = [
        FailedTry(seq, name, attempts, failed_at, due_at, from_json(error))
        for seq, name, attempts, failed_at, due_at, error in tries
    ]
    return Waiting(reason, wakes_at, missing, unread, failed)
