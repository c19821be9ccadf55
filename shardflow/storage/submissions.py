"""What a client does to one shard: submit workflows, read outcomes and where a workflow is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..core.failure import from_json
from ..model import ErrorInfo, Status, StepInfo, WorkflowInfo
from .arrays import Byteas, Float8s, Int2s, Int4s, Int8s, Names, Texts
from .pipeline import Pipeline, Reply
from .shard import STATEMENT_SECONDS, Conn, Shard
from .turn import BEGIN, roll_back


@dataclass(frozen=True, slots=True)
class More:
    """What a submission may ask for beyond the usual: `options` and `attributes` as JSON text, seconds of `delay`,
    ids of workflows to run `after`, the id of the `parent` that is told of its end; `dedup`, a key of which one is
    active at once, and whether to `reject` another one; `key`, one of which `most` are."""

    options: str | None = None
    attributes: str | None = None
    delay: float | None = None
    after: tuple[str, ...] = ()
    parent: str | None = None
    dedup: str | None = None
    reject: bool = False
    key: str | None = None
    most: int | None = None


_USUAL = More()

#: Workflows at the most that are submitted in one statement, which takes less than a transaction around it. Behind a
#: pooler it could be at any isolation level.
FEW = 50
#: Workflows in the first statement of many: the server has as long to do with them as the client with the others.
FIRST = 150
#: Workflows in one statement at the most: a set of them fits into the server's memory for hashing.
PART = 5_000


class NewWorkflow(Protocol):
    """A submission to write: `input` encoded, `priority` lower first; `more`, where it asks for more."""

    id: str
    name: str
    queue: str
    slot: int
    input: bytes
    priority: int
    more: More | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a workflow ended."""

    wf: int
    id: str
    status: Status
    output: bytes | None
    error: ErrorInfo | None

    @property
    def size(self) -> int:
        """Bytes of what was answered, about."""
        error = self.error
        return len(self.output or b"") + (len(error.message) + len(error.traceback) if error is not None else 0)


async def submit(
    shard: Shard, conn: Conn, generation: int, new: Sequence[NewWorkflow], seconds: float = 0.0
) -> dict[str, int]:
    """Writes the workflows in one transaction and one round trip; answers id → key of those that are new.

    The server may take `seconds` for it where they are more than its statements have anyway.
    Raises MapChanged where the shard is at another generation, ShardUnavailable where the connection failed: the
    outcome is then unknown.
    """
    sql = shard.statements("submit")
    try:
        with shard.translate():
            if len(new) <= FEW and seconds <= STATEMENT_SECONDS and not shard.config.pooler and _usual(new):
                pipe = Pipeline(conn, prepare=True)
                alone = pipe.add(sql["submit"], (generation, *_columns(new)), binary=True)
                await pipe.run()
                return {id: wf for id, wf in alone.rows(tuple) if id is not None}
            pipe = Pipeline(conn, prepare=not shard.config.pooler)
            pipe.add(BEGIN)
            if seconds > STATEMENT_SECONDS:
                pipe.add(sql["allow"], (str(round(seconds * 1000)),))
            pipe.add(sql["admit"], (generation,))
            made = _add_insertions(pipe, shard, new)
            pipe.add(sql["ring"])
            ended = pipe.add(b"COMMIT")
            await pipe.run()
            if ended.tag != b"COMMIT":
                raise AssertionError(f"COMMIT answered {ended.tag!r}")
            return {id: wf for reply in made for id, wf in reply.rows(tuple)}
    except BaseException:
        await roll_back(conn)
        raise


def _add_insertions(pipe: Pipeline, shard: Shard, new: Sequence[NewWorkflow]) -> list[Reply]:
    """The statements that write the workflows. Of many, the server begins with the first few while the parameters of
    the others are made."""
    usual = _usual(new)
    if len(new) <= FEW or (not usual and any(n.more and (n.more.key or n.more.dedup) for n in new)):
        return [pipe.add(*insertion(shard, new), binary=True)]  # in which locks of keys are taken in one order
    statement = shard.statements("submit")["insert_new" if usual else "insert_more"]
    parts = [new[:FIRST], *(new[at : at + PART] for at in range(FIRST, len(new), PART))]
    return [pipe.add_later(statement, partial(_columns if usual else _all_columns, p), binary=True) for p in parts]


def _usual(new: Sequence[NewWorkflow]) -> bool:
    return all(n.more is None for n in new)


def _columns(new: Sequence[NewWorkflow]) -> tuple[Any, ...]:
    return (
        Texts([n.id for n in new]),
        Names([n.name for n in new]),
        Names([n.queue for n in new]),
        Int4s([n.slot for n in new]),
        Int2s([n.priority for n in new]),
        Byteas([n.input for n in new]),
    )


def _all_columns(new: Sequence[NewWorkflow]) -> tuple[Any, ...]:
    mores = [n.more or _USUAL for n in new]
    pairs = [(n.id, after) for n in new if n.more for after in n.more.after]
    return (
        *_columns(new),
        Texts([m.options for m in mores]),
        Texts([m.attributes for m in mores]),
        Float8s([m.delay for m in mores]),
        Int4s([len(m.after) or None for m in mores]),
        Texts([m.parent for m in mores]),
        Texts([m.dedup for m in mores]),
        Texts([m.key for m in mores]),
        Int4s([m.most for m in mores]),
        Texts([id for id, _ in pairs]),
        Texts([after for _, after in pairs]),
    )


def insertion(shard: Shard, new: Sequence[NewWorkflow]) -> tuple[bytes, Sequence[Any]]:
    """The statement that writes a few workflows, with its parameters."""
    sql = shard.statements("submit")
    return (sql["insert"], _columns(new)) if _usual(new) else (sql["insert_more"], _all_columns(new))


async def existing(shard: Shard, conn: Conn, ids: Sequence[str]) -> dict[str, tuple[int, str, bytes]]:
    """What was submitted under these ids: id → (key, name, input)."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("submit")["existing"], (Texts(ids),), binary=True)
        return {row[0]: (row[1], row[2], row[3]) for row in await cursor.fetchall()}


async def active(shard: Shard, conn: Conn, dedups: Sequence[str]) -> dict[str, tuple[str, int, str]]:
    """The active workflows of keys of which one is at once: key → (id, key of the workflow, name)."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("submit")["active"], (Texts(dedups),))
        return {row[0]: (row[1], row[2], row[3]) for row in await cursor.fetchall()}


async def keys(shard: Shard, conn: Conn, ids: Sequence[str]) -> dict[str, int]:
    """The keys of those of these ids that exist."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("read")["keys"], (Texts(ids),))
        return {row[0]: row[1] for row in await cursor.fetchall()}


async def outcomes(shard: Shard, conn: Conn, wfs: Sequence[int]) -> list[Outcome]:
    """The ends of those of these workflows that have ended."""
    with shard.translate():
        pipe = Pipeline(conn, prepare=not shard.config.pooler)
        found = pipe.add(shard.statements("read")["outcomes"], (Int8s(wfs),), binary=True)
        await pipe.run()
        return [
            Outcome(wf, id, Status(status), output, from_json(error) if error is not None else None)
            for wf, id, status, output, error in found.rows(tuple)
        ]


async def find(shard: Shard, conn: Conn, id: str) -> tuple[int, WorkflowInfo] | None:
    """A workflow's key and where it is; None where the shard has no such id."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("read")["find"], (id,))).fetchone()
    return None if row is None else (row[0], _info(shard, row))


def _info(shard: Shard, row: tuple[Any, ...]) -> WorkflowInfo:
    _, id, name, queue, submitted_at, status, finished_at, suspended, attempt, running = row
    if status is not None:
        place = Status(status)
    elif suspended:
        place = Status.SUSPENDED
    else:
        place = Status.RUNNING if running else Status.READY
    return WorkflowInfo(id, name, queue, place, shard.name, submitted_at, finished_at, attempt)


async def steps(shard: Shard, conn: Conn, id: str) -> list[StepInfo]:
    """The checkpoints of a workflow in order of their sequence numbers."""
    with shard.translate():
        rows = await (await conn.execute(shard.statements("read")["steps"], (id,), binary=True)).fetchall()
    return [StepInfo(r[0], r[1], r[2], r[3], r[4], from_json(r[5]) if r[5] is not None else None) for r in rows]


async def counts(shard: Shard, conn: Conn) -> Mapping[str, int]:
    """How many workflows are where: submitted, ready, running, suspended, succeeded, failed; and steps."""
    with shard.translate():
        cursor = await conn.execute(shard.statements("read")["counts"])
        row = await cursor.fetchone()
        assert row is not None
        assert cursor.description is not None
        return {column.name: value for column, value in zip(cursor.description, row, strict=True)}


async def progress(shard: Shard, conn: Conn) -> tuple[int, int]:
    """How many workflows have ended and how many are ready, for a progress bar."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("read")["progress"])).fetchone()
    assert row is not None
    return row[0], row[1]
