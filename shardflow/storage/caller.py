"""Writes in a transaction of the caller's own, on the caller's connection to one of the cluster's servers.

Guarantee: what is written there is there if and only if the caller commits, and it is in the shard that owns the id's
slot until then; what belongs to another shard waits in the outbox of this one. Nothing is committed, rolled back or
left set here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor, pq
from psycopg.rows import tuple_row

from ..core.topics import SUBMIT
from ..errors import ClusterError, InvalidInput, MapChanged, ShardBusy, ShardflowError, UsageError
from . import arrays
from .arrays import Byteas, Texts
from .shard import Shard
from .submissions import NewWorkflow, insertion

T = TypeVar("T")

Ask = tuple[bytes, Sequence[Any]]
Rows = list[tuple[Any, ...]]
#: Asks on the caller's connection, one after the other, and makes something of the answers.
Errand = Generator[Ask, Rows, T]

_SERIALIZATION = "40001"

#: Shards in the database of a connection, by name; a connection never changes its database.
_homes: WeakKeyDictionary[Any, tuple[str, dict[str, Shard]]] = WeakKeyDictionary()


class Line:
    """A caller's connection, of either kind; a plain one is used in a thread, while the caller waits.

    Raises InvalidInput or UsageError where nothing can be written in a transaction of it.
    """

    def __init__(self, connection: object) -> None:
        if not isinstance(connection, (AsyncConnection, Connection)):
            raise InvalidInput(
                "connection must be a psycopg.Connection, or an AsyncConnection for AsyncClient, not"
                f" {type(connection).__name__}"
            )
        _check(connection)
        self.connection = connection

    async def do(self, errand: Errand[T]) -> T:
        """Does the errand on the connection."""
        if isinstance(self.connection, AsyncConnection):
            return await _run_async(self.connection, errand)
        return await asyncio.to_thread(_run, self.connection, errand)


def refuse_async(connection: object) -> None:
    """Raises InvalidInput for a connection that belongs to an event loop."""
    if isinstance(connection, AsyncConnection):
        raise InvalidInput(
            "an AsyncConnection belongs to its event loop: use AsyncClient, or a psycopg.Connection here"
        )


def _check(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    status = connection.info.transaction_status
    if connection.closed or status is pq.TransactionStatus.UNKNOWN:
        raise UsageError("the connection is closed")
    if status is pq.TransactionStatus.INERROR:
        raise UsageError("the connection's transaction has failed: roll it back first")
    if status is pq.TransactionStatus.IDLE and connection.autocommit:
        raise UsageError(
            "the connection is in autocommit mode and no transaction is open, so there is nothing that this could be"
            " a part of: put it into `with connection.transaction():`, together with what belongs to it"
        )
    if connection.info.pipeline_status is not pq.PipelineStatus.OFF:
        raise UsageError("the connection is in pipeline mode: leave it first")


async def _run_async(connection: AsyncConnection[Any], errand: Errand[T]) -> T:
    """Does the errand on the connection."""
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    arrays.register(cursor.adapters)
    rows: Rows | None = None
    async with cursor:
        while True:
            try:
                ask = next(errand) if rows is None else errand.send(rows)
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                await cursor.execute(*ask)
                rows = await cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                errand.throw(error)
                raise


def _run(connection: Connection[Any], errand: Errand[T]) -> T:
    """The same on a plain connection."""
    cursor = Cursor(connection, row_factory=tuple_row)
    arrays.register(cursor.adapters)
    rows: Rows | None = None
    with cursor:
        while True:
            try:
                ask = next(errand) if rows is None else errand.send(rows)
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                cursor.execute(*ask)
                rows = cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:
                errand.throw(error)
                raise


def homes(connection: object, shards: Sequence[Shard], cluster_id: str) -> Errand[dict[str, Shard]]:
    """The cluster's shards in the connection's database, by name; at least one. Raises ClusterError for none."""
    known = _homes.get(connection)
    if known is not None and known[0] == cluster_id:
        return known[1]
    found: dict[str, Shard] = {}
    first = shards[0]
    with _explained(first):
        there = yield first.statements("caller")["schemas"], (Texts(sorted({s.config.schema for s in shards})),)
    for schema, allowed in there:
        alike = [shard for shard in shards if shard.config.schema == schema]
        if not allowed:
            raise ShardflowError(
                f"the connection's role may not use the schema {schema!r}, where shardflow's tables are: grant it"
                " what the role of the cluster's configuration may"
            )
        with _explained(alike[0]):
            rows = yield alike[0].statements("cluster")["identity"], ()
        found |= {
            shard.name: shard for shard in alike for row in rows if row[1] == cluster_id and row[2] == shard.name
        }
    if not found:
        raise ClusterError(
            "the connection's database holds no shard of this cluster: connect to a database that one of the"
            " configuration's dsns names, or submit without `connection`"
        )
    _homes[connection] = cluster_id, found
    return found


def stays(shard: Shard, slot: int) -> Errand[bool]:
    """Whether the slot is the shard's until the caller's transaction ends. Raises MapChanged where the transaction
    cannot see that: it has failed then."""
    sql = shard.statements("caller")
    with _explained(shard):
        ((_, sees),) = yield sql["stay"], ()
        if not sees:
            yield sql["unmoved"], ()
        ((owns,),) = yield sql["owns"], (slot,)
    return bool(owns)


def submit(shard: Shard, new: NewWorkflow) -> Errand[tuple[int, str, bytes]]:
    """Writes the workflow into this shard; answers the key, and name and input of what is under the id now."""
    sql = shard.statements("submit")
    with _explained(shard):
        made = yield insertion(shard, [new])
        yield sql["ring"], ()
        if made:
            return made[0][1], new.name, new.input
        there = yield sql["existing"], (Texts([new.id]),)
    if not there:
        raise ShardBusy(f"shard {shard.name!r}: the workflow {new.id!r} has just been deleted", shard=shard.name)
    _, wf, name, input = there[0]
    return wf, name, input


def absent(shard: Shard, ids: Sequence[str]) -> Errand[set[str]]:
    """Those of the ids that no workflow of the shard has, as the transaction sees it."""
    with _explained(shard):
        rows = yield shard.statements("read")["keys"], (Texts(ids),)
    return set(ids) - {row[0] for row in rows}


def deliver(shard: Shard, id: str, topic: str, key: str, value: bytes) -> Errand[bool]:
    """Writes a message to a workflow of this shard; whether the workflow is there."""
    columns = (Texts([id]), Texts([topic]), Texts([key]), Byteas([value]), Texts([None]))
    with _explained(shard):
        ((_, sees),) = yield shard.statements("caller")["stay"], ()
    if not sees:  # nor would it see that the receiver has begun to wait since it began: whoever relays it does
        there = not (yield from absent(shard, [id]))
        if there:
            yield from post(shard, id, topic, key, value)
        return there
    with _explained(shard):
        missing = yield shard.statements("submit")["deliver"], columns
    return not missing


def post(shard: Shard, target: str, topic: str, key: str | None, value: bytes) -> Errand[None]:
    """Leaves it in the outbox of this shard."""
    with _explained(shard):
        yield shard.statements("caller")["post"], (target, topic, key, value)
        yield shard.statements("submit")["ring"], ()


def post_submission(shard: Shard, id: str, packed: bytes) -> Errand[None]:
    """Leaves a submission in the outbox of this shard."""
    return post(shard, id, SUBMIT, None, packed)


@contextmanager
def _explained(shard: Shard) -> Iterator[None]:
    """As `Shard.translate`; the caller's transaction has failed then."""
    try:
        with shard.translate():
            yield
    except ShardflowError as error:
        cause = error.__cause__
        if isinstance(cause, psycopg.Error) and cause.sqlstate == _SERIALIZATION:
            raise MapChanged(
                f"shard {shard.name!r}: the slots, or what is under the id, changed after this transaction began,"
                f" which does not see it ({cause}): roll back and begin anew"
            ) from cause
        raise
