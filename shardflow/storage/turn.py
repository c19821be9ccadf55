"""One turn of a worker's commit loop: everything that has gathered, as one pipelined transaction.

Guarantee: fence first, then the writes, then the claim; the transaction commits as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import pq

from ..core.quota import State
from ..errors import ShardflowError, ShardUnavailable
from . import post
from .arrays import Byteas, Float8s, Int2s, Int4s, Int8s, Names, Texts
from .pipeline import Pipeline
from .post import MailWanted, Message, Told
from .shard import Conn, Shard, Statements


class Refused(ShardflowError):
    """The server did not accept a row of the turn: nothing was written, and the connection is usable.

    Attributes: `duplicate`, whether the row was there already.
    """

    def __init__(self, error: psycopg.Error) -> None:
        super().__init__(str(error).strip())
        self.duplicate = isinstance(error, psycopg.errors.UniqueViolation)


#: Bytes of inputs that a claim answers: an input behind so many is left out.
CLAIM_BYTES = 64 << 20


class Claimed(NamedTuple):
    """A claimed workflow as the shard answers it; `input` None where it was too much at once."""

    wf: int
    id: str
    name: str
    input: bytes | None
    attempt: int
    replay: bool
    queue: str
    priority: int
    seq: int
    options: dict[str, Any] | None = None
    heed: bool = True  # whether something may have to be cancelled


#: The guards look again after they have waited for a lock, so they need this level, whatever the role's default is.
BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"

#: A checkpoint to write: key, sequence number, attempts, step's name, output, error as JSON text.
StepRow = tuple[int, int, int, str, bytes | None, str | None]
#: An end to write: key, status, output, error as JSON text.
OutcomeRow = tuple[int, str, bytes | None, str | None]
#: A workflow to suspend: key, seconds from now, attempt, reason, last message seen, topics joined, ends missing.
WaitRow = tuple[int, float | None, int, str, int, str | None, int | None]
#: A step to be tried again: key, sequence number, attempts, step's name, error as JSON text, seconds until then.
RetryRow = tuple[int, int, int, str, str, float]
#: An event to set: key of the workflow, key, value.
EventRow = tuple[int, str, bytes]


@dataclass(slots=True)
class Receipt:
    """A claim's receipt: number within the lease, and what it still holds."""

    batch: int
    wfs: list[int]
    attempts: list[int]


@dataclass(slots=True)
class ClaimWanted:
    """How many workflows to claim, from which queues, the first of them first, and from which (priority, seq) on;
    `limited`, whether some of them have limits."""

    batch: int
    queues: list[str]
    most: int
    marks: list[tuple[int, int]]
    limited: bool = False


@dataclass(slots=True)
class Turn:
    """All that one turn does.

    `tried` are steps whose failed tries are to be forgotten, `received` messages to take, both as (workflow, number);
    `relayed`, entries of the outbox that were delivered; `wake`, how many workflows may be woken, those that
    became due `since`; `mail`, messages to ask for; `begun`, receipts of which all has begun, and how many seconds
    ago; `frees`, whether others may claim under a limit what this turn gives up; `adopt`, whether to take over what
    nobody delivers; `outbox`, the entry behind which the lease's own outbox is to be read; `bell`, whether to hang or
    take it.
    `heard` are workflows that succeed and have read messages; `severed`, workflows whose ends cancel their children,
    `orphans`, children whose start is not recorded; `anew`, workflows that begin anew with a checkpoint of this turn;
    `suspects`, a claim from the lanes of those; `heed`, whether to ask for what is to be cancelled.
    `rehearsal`: all of it is taken back in the end.
    """

    steps: Sequence[StepRow] = ()
    retries: Sequence[RetryRow] = ()
    tried: Sequence[tuple[int, int]] = ()
    received: Sequence[tuple[int, int]] = ()
    events: Sequence[EventRow] = ()
    outcomes: Sequence[OutcomeRow] = ()
    waits: Sequence[WaitRow] = ()
    relayed: Sequence[int] = ()
    heard: Sequence[int] = ()
    severed: Sequence[int] = ()
    orphans: Sequence[str] = ()
    anew: Sequence[int] = ()
    dropped: Sequence[int] = ()
    kept: Receipt | None = None
    claim: ClaimWanted | None = None
    wake: int = 0
    since: datetime | None = None
    mail: MailWanted | None = None
    begun: Sequence[tuple[int, float]] = ()
    frees: bool = False
    adopt: bool = False
    outbox: int | None = None
    suspects: ClaimWanted | None = None
    heed: bool = False
    bell: bool | None = None
    rehearsal: bool = False
    light: bool = False


@dataclass(slots=True)
class Answer:
    """What a turn answers: what was claimed; what is to be delivered from now on; a page of the outbox; messages;
    workflows that are to be cancelled, with the reason, None where it was not asked; how many were woken, of
    those that became due up to when, the lanes with the first places (priority, seq) that they came to, the seconds
    until the next one is due, and those that waking took, and looking for what nobody attends to; how it stands with
    the limits of what was claimed from; which queues have limits, where that was asked; whether `more_left` of what
    nobody attends to may be taken over."""

    claimed: Sequence[Claimed] = ()
    told: Sequence[Told] = ()
    page: Sequence[Told] = ()
    mail: Sequence[Message] = ()
    cancelled: Sequence[tuple[int, str | None]] | None = None
    suspects: Sequence[Claimed] = ()
    woken: int = 0
    woken_to: datetime | None = None
    wake_took: float = 0.0
    chores_took: float = 0.0
    woken_at: Sequence[tuple[str, int, int]] = ()
    next_due: float | None = None
    limits: Sequence[State] = ()
    limited: frozenset[str] | None = None
    more_left: bool = False


@dataclass(frozen=True, slots=True)
class Fence:
    """What a worker believes when it writes: its lease, the lease's epoch, the shard's generation."""

    lease: int
    epoch: int
    generation: int


async def commit(shard: Shard, conn: Conn, fence: Fence, turn: Turn) -> Answer:
    """Commits the turn in one round trip.

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


async def _pipelined(shard: Shard, conn: Conn, fence: Fence, turn: Turn) -> Answer:
    sql = shard.statements("turn")
    pipe = Pipeline(conn, prepare=not shard.config.pooler)
    execute = pipe.add
    claimed: Any = None
    told: Any = None
    woken: Any = None
    mail: Any = None
    cancelled: Any = None
    adopted: Any = None
    page: Any = None
    states: Any = None
    limited: Any = None
    suspects: Any = None
    severed: Any = None
    before: Any = None
    after: Any = None
    execute(BEGIN)
    execute(sql["fence"], (fence.lease, fence.epoch, fence.generation))
    if turn.light:
        execute(sql["lightly"])
    if turn.bell is not None:
        execute(sql["hang_bell" if turn.bell else "take_bell"])
    if turn.steps:
        wfs, seqs, attempts, names, outputs, errors = zip(*turn.steps, strict=True)
        keys = (Int8s(wfs), Int8s(seqs), Int2s(attempts))
        execute(sql["steps"], (*keys, Names(names), Byteas(outputs), Texts(errors)))
    if turn.retries or turn.tried or turn.received or turn.events:
        _side_effects(pipe, sql, turn)
    if turn.outcomes:
        wfs, statuses, outputs, errors = zip(*turn.outcomes, strict=True)
        ends = (Int8s(wfs), Names(statuses), Byteas(outputs), Texts(errors), fence.lease)
        told = execute(sql["outcomes"], ends, binary=True)
    if turn.heard:
        execute(sql["over"], (Int8s(turn.heard),))
    if turn.severed:
        parameters: Any = (Int8s(turn.severed), Texts(turn.orphans), fence.lease)
        severed = execute(sql["cancel_children"], parameters, binary=True)
    if turn.anew:
        execute(sql["begin_anew"], (Int8s(turn.anew),))
    if turn.waits:
        wfs, delays, attempts, reasons, seens, topics, missings = zip(*turn.waits, strict=True)
        given = (Float8s(delays), Int2s(attempts), Texts(reasons), Int8s(seens), Texts(topics))
        execute(sql["suspend"], (*given, Int4s(missings), Int8s(wfs)))
    if turn.dropped:
        execute(sql["drop_claims"], (fence.lease, Int8s(turn.dropped)))
    if (k := turn.kept) and k.wfs:
        execute(sql["keep_claim"], (fence.lease, k.batch, Int8s(k.wfs), Int2s(k.attempts)))
    if turn.relayed:
        execute(sql["relayed"], (Int8s(turn.relayed), fence.lease))
    if turn.begun:
        batches, agos = zip(*turn.begun, strict=True)
        execute(shard.statements("limits")["have_begun"], (fence.lease, Int8s(batches), Float8s(agos)))
    if turn.wake:
        woken = execute(sql["wake"], (turn.since, turn.wake))
        execute(shard.statements("limits")["settle"])
    if c := turn.claim:
        marks = (Int2s([m[0] for m in c.marks]), Int8s([m[1] for m in c.marks]))
        if c.limited:
            limits, lanes = shard.statements("limits"), (Texts(c.queues), *marks)
            parameters = (CLAIM_BYTES, *lanes, c.most, fence.lease, c.batch)
            claimed = execute(limits["claim"], parameters, binary=True)
            states = execute(limits["states"], lanes, binary=True)
        else:
            parameters = (Texts(c.queues), *marks, c.most, c.most, fence.lease, c.batch, CLAIM_BYTES)
            claimed = execute(sql["claim"], parameters, binary=True)
        if s := turn.suspects:
            marks = (Int2s([m[0] for m in s.marks]), Int8s([m[1] for m in s.marks]))
            if s.limited:
                parameters = (CLAIM_BYTES, Texts(s.queues), *marks, s.most, fence.lease, s.batch)
                suspects = execute(shard.statements("limits")["claim"], parameters, binary=True)
            else:
                parameters = (Texts(s.queues), *marks, s.most, s.most, fence.lease, s.batch, CLAIM_BYTES)
                suspects = execute(sql["claim"], parameters, binary=True)
    if turn.frees and not turn.claim:
        execute(shard.statements("submit")["ring"])
    if turn.heed:
        cancelled = execute(sql["cancelled"])
    if turn.adopt:
        before = execute(sql["clock"])
        execute(sql["overdue"])
        execute(sql["in_time"])
        execute(sql["sweep"])
        limited = execute(shard.statements("limits")["limited"])
        adopted = execute(sql["adopt"], (fence.lease, post.PAGE, post.PAGE_BYTES), binary=True)
        after = execute(sql["clock"])
    if turn.outbox is not None:
        page = execute(sql["outbox"], (fence.lease, turn.outbox, post.PAGE, post.PAGE_BYTES), binary=True)
    if turn.mail:
        mail = execute(sql["mail"], post.mail_parameters(turn.mail), binary=True)
    if turn.rehearsal:
        execute(b"SET CONSTRAINTS ALL IMMEDIATE")
    ended = execute(b"ROLLBACK" if turn.rehearsal else b"COMMIT")
    await pipe.run()
    if ended.tag != b"COMMIT" and not turn.rehearsal:
        # A failed transaction answers COMMIT with ROLLBACK and no error.
        raise ShardUnavailable(
            f"shard {shard.name!r}: the server rolled back instead of committing", shard=shard.name
        )
    answer = Answer()
    if claimed is not None:
        answer.claimed = claimed.rows(Claimed._make)
    if states is not None:
        answer.limits = states.rows(State._make)
    if limited is not None:
        answer.limited = frozenset(row[0] for row in limited.rows(tuple))
    if told is not None:
        answer.told = told.rows(Told._make)
    if adopted is not None:
        taken = adopted.rows(Told._make)
        answer.told = [*answer.told, *taken]
        answer.more_left = len(taken) >= post.PAGE or sum(row.size for row in taken) >= post.PAGE_BYTES
    if page is not None:
        answer.page = page.rows(Told._make)
    if cancelled is not None:
        answer.cancelled = cancelled.rows(tuple)
    if suspects is not None:
        answer.suspects = suspects.rows(Claimed._make)
    if severed is not None:
        answer.told = [*answer.told, *severed.rows(Told._make)]
    if mail is not None:
        answer.mail = mail.rows(Message._make)
    if woken is not None:
        answer.woken, answer.woken_to, answer.next_due, *first, answer.wake_took = woken.one()
        if answer.woken:
            answer.woken_at = list(zip(*first, strict=True))
    if before is not None:
        answer.chores_took = after.one()[0] - before.one()[0]
    return answer


def _side_effects(pipe: Pipeline, sql: Statements, turn: Turn) -> None:
    """What goes along with checkpoints."""
    if turn.retries:
        wfs, seqs, attempts, names, errors, delays = zip(*turn.retries, strict=True)
        failed = (Int8s(wfs), Int8s(seqs), Int2s(attempts), Texts(names), Texts(errors), Float8s(delays))
        pipe.add(sql["retries"], failed)
    if turn.tried:
        wfs, seqs = zip(*turn.tried, strict=True)
        pipe.add(sql["tried"], (Int8s(wfs), Int8s(seqs)))
    if turn.received:
        wfs, seqs = zip(*turn.received, strict=True)
        pipe.add(sql["receive"], (Int8s(wfs), Int8s(seqs)))
    if turn.events:
        wfs, names, values = zip(*turn.events, strict=True)
        pipe.add(sql["events"], (Int8s(wfs), Texts(names), Byteas(values)))


async def roll_back(conn: Conn) -> None:
    """Makes the connection usable again where it still lives."""
    try:
        if conn.info.transaction_status != pq.TransactionStatus.IDLE:
            await conn.rollback()  # which also forgets prepared statements that a failed pipeline never made
    except psycopg.Error:
        await conn.close()


async def written(shard: Shard, conn: Conn, turn: Turn) -> bool | None:
    """Whether a turn whose answer was lost has been committed; None where it had no row that could tell.

    To be asked only in the transaction that resumes the lease, see `leases.resume`.
    """
    if not turn.steps and not turn.outcomes:
        return None
    anew = set(turn.anew)  # of whose checkpoints only the last one is there
    wf, seq = next((row[:2] for row in turn.steps if row[0] not in anew or row[1] < 0), (0, 0))
    ended = turn.outcomes[0][0] if turn.outcomes else 0
    with shard.translate():
        cursor = await conn.execute(shard.statements("lease")["written"], (wf, seq, ended))
        row = await cursor.fetchone()
    return bool(row and row[0])


async def cancelled(shard: Shard, conn: Conn) -> list[tuple[int, str | None]]:
    """The workflows that are to be cancelled, whoever holds them, with the reason."""
    with shard.translate():
        return [
            (wf, reason)
            for wf, reason in await (await conn.execute(shard.statements("turn")["cancelled"])).fetchall()
        ]
