"""One turn of a worker's commit loop: everything that has gathered, as one pipelined transaction.

Guarantee: fence first, then the writes, then the claim; the transaction commits as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from ..errors import ShardflowError, ShardUnavailable
from .arrays import Byteas, Float8s, Int2s, Int8s, Texts
from .shard import Conn, Shard


class Refused(ShardflowError):
    """The server did not accept a row of the turn: nothing was written, and the connection is usable.

    Attributes: `duplicate`, whether the row was there already.
    """

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error).strip())
        self.duplicate = isinstance(error, psycopg.errors.UniqueViolation)


class Claimed(NamedTuple):
    """A claimed workflow as the shard answers it."""

    wf: int
    id: str
    name: str
    input: bytes
    attempt: int
    replay: bool
    queue: str
    priority: int
    seq: int


#: The guards look again after they have waited for a lock, so they need this level, whatever the role's default is.
BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"

#: A checkpoint to write: key, sequence number, attempts, step's name, output, error as JSON text.
StepRow = tuple[int, int, int, str, bytes | None, str | None]
#: An end to write: key, status, output, error as JSON text.
OutcomeRow = tuple[int, str, bytes | None, str | None]
#: A workflow to suspend: key, seconds from now, attempt, reason.
WaitRow = tuple[int, float, int, str]


@dataclass(slots=True)
class Receipt:
    """A claim's receipt: number within the lease, and what it still holds."""

    batch: int
    wfs: list[int]
    attempts: list[int]


@dataclass(slots=True)
class ClaimWanted:
    """How many workflows to claim, from which queues, the first of them first, and from which (priority, seq) on."""

    batch: int
    queues: list[str]
    most: int
    marks: list[tuple[int, int]]


@dataclass(slots=True)
class Turn:
    """All that one turn does; `wake` is how many due workflows may be woken, `bell` whether to hang or take it."""

    steps: Sequence[StepRow] = ()
    outcomes: Sequence[OutcomeRow] = ()
    waits: Sequence[WaitRow] = ()
    dropped: Sequence[int] = ()
    kept: Receipt | None = None
    claim: ClaimWanted | None = None
    wake: int = 0
    bell: bool | None = None


@dataclass(frozen=True, slots=True)
class Fence:
    """What a worker believes when it writes: its lease, the lease's epoch, the shard's generation."""

    lease: int
    epoch: int
    generation: int


async def commit(shard: Shard, conn: Conn, fence: Fence, turn: Turn) -> list[Claimed]:
    """Commits the turn in one round trip; answers what was claimed.

    Raises LeaseLost or MapChanged where the fence refuses (nothing was written), ShardUnavailable where the
    connection failed (the outcome is unknown), Refused where a row is not acceptable (nothing was written).
    """
    try:
        with shard.translate():
            return await _pipelined(shard, conn, fence, turn)
    except psycopg.Error as error:
        await roll_back(conn)
        raise Refused(error) from error
    except Exception:
        await roll_back(conn)
        raise


async def _pipelined(shard: Shard, conn: Conn, fence: Fence, turn: Turn) -> list[Claimed]:
    sql = shard.statements("turn")
    execute = conn.execute
    claimed: Any = None
    async with conn.pipeline():
        await execute(BEGIN)
        await execute(sql["fence"], (fence.lease, fence.epoch, fence.generation))
        if turn.bell is not None:
            await execute(sql["hang_bell" if turn.bell else "take_bell"])
        if turn.steps:
            wfs, seqs, attempts, names, outputs, errors = zip(*turn.steps, strict=True)
            keys = (Int8s(wfs), Int8s(seqs), Int2s(attempts))
            await execute(sql["steps"], (*keys, Texts(names), Byteas(outputs), Texts(errors)))
        if turn.outcomes:
            wfs, statuses, outputs, errors = zip(*turn.outcomes, strict=True)
            await execute(sql["outcomes"], (Int8s(wfs), Texts(statuses), Byteas(outputs), Texts(errors)))
        if turn.waits:
            wfs, delays, attempts, reasons = zip(*turn.waits, strict=True)
            await execute(sql["waits"], (Int8s(wfs), Float8s(delays), Int2s(attempts), Texts(reasons)))
        if turn.dropped:
            await execute(sql["drop_claims"], (fence.lease, Int8s(turn.dropped)))
        if (k := turn.kept) and k.wfs:
            await execute(sql["keep_claim"], (fence.lease, k.batch, Int8s(k.wfs), Int2s(k.attempts)))
        if turn.wake:
            await execute(sql["wake"], (turn.wake,))
        if c := turn.claim:
            marks = (Int2s([m[0] for m in c.marks]), Int8s([m[1] for m in c.marks]))
            parameters = (Texts(c.queues), *marks, c.most, c.most, fence.lease, c.batch)
            claimed = await execute(sql["claim"], parameters, binary=True)
        ended = await execute(b"COMMIT")
    if ended.statusmessage != "COMMIT":
        # A failed transaction answers COMMIT with ROLLBACK and no error.
        raise ShardUnavailable(
            f"shard {shard.name!r}: the server rolled back instead of committing", shard=shard.name
        )
    return [] if claimed is None else list(map(Claimed._make, await claimed.fetchall()))


async def roll_back(conn: Conn) -> None:
    """Makes the connection usable again where it still lives."""
    try:
        if conn.info.transaction_status != pq.TransactionStatus.IDLE:
            await conn.rollback()  # which also forgets prepared statements that the failed pipeline never made
    except psycopg.Error:
        await conn.close()


async def written(shard: Shard, conn: Conn, turn: Turn) -> bool | None:
    """Whether a turn whose answer was lost has been committed; None where it had no row that could tell.

    To be asked only in the transaction that resumes the lease, see `leases.resume`.
    """
    if not turn.steps and not turn.outcomes:
        return None
    wf, seq = turn.steps[0][:2] if turn.steps else (0, 0)
    ended = turn.outcomes[0][0] if turn.outcomes else 0
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["written"], (wf, seq, ended))
        row = await cursor.fetchone()
    return bool(row and row[0])


async def probe(shard: Shard, conn: Conn, queues: Sequence[str]) -> bool:
    """Whether a queue has ready work, or a suspended workflow is due."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("turn")["probe"], (Texts(queues),))
        row = await cursor.fetchone()
    return bool(row and row[0])
