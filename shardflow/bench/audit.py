"""Checks in the database that a run's every workflow and checkpoint is there once, each with its own right result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ..core.codec import DEFAULT
from ..model import ClusterConfig, Status
from ..storage.shard import Conn, Shard, Statements
from .workload import Load, number_of

_PAGE = 10_000
_TEXTS = {
    "workflows": "SELECT w.wf, w.id, o.status, o.output FROM {schema}.workflow w"
    " LEFT JOIN {schema}.outcome o ON o.wf = w.wf WHERE w.wf > %s ORDER BY w.wf LIMIT %s",
    "steps": "SELECT wf, seq, output FROM {schema}.step WHERE (wf, seq) > (%s, %s) ORDER BY wf, seq LIMIT %s",
    "busy": "SELECT EXISTS (SELECT FROM {schema}.claim) OR EXISTS (SELECT FROM {schema}.ready)"
    " OR EXISTS (SELECT FROM {schema}.wait)",
    "left": "SELECT (SELECT count(*) FROM {schema}.ready) + (SELECT count(*) FROM {schema}.claim)"
    " + (SELECT count(*) FROM {schema}.wait)",
    "kept": "SELECT (SELECT count(*) FROM {schema}.outcome),"
    " (SELECT count(*) FROM {schema}.outcome WHERE status <> 'succeeded')"
    " + (SELECT coalesce(sum(deleted), 0) FROM {schema}.retention WHERE status <> 'succeeded'),"
    " (SELECT coalesce(sum(deleted), 0) FROM {schema}.retention)",
    "written": "SELECT pg_stat_get_tuples_inserted(to_regclass(%s || '.outcome'))",
}


@dataclass(slots=True)
class Found:
    """`workflows` with an outcome and `steps` as counted in the database.

    `lost`: workflows without submission or outcome, and checkpoints that are missing. `duplicated`: what is there
    once too often, on two shards or beyond the load. `wrong`: another result than the right one. `left`: queue
    entries, receipts and waits that should be gone.
    """

    workflows: int = 0
    steps: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    left: int = 0


async def audit(config: ClusterConfig, load: Load) -> Found:
    """Reads everything that the run has written."""
    found = Found()
    seen: set[int] = set()
    for shard in map(Shard, config.shards):
        async with await shard.connect("bench") as conn:
            numbers = await _workflows(shard, conn, load, found, seen)
            await _steps(shard, conn, load, found, numbers)
            with shard.translate():
                row = await (await conn.execute(Statements(_TEXTS, shard.names)["left"])).fetchone()
            found.left += int(row[0]) if row else 0
    found.lost += load.workflows - len(seen)
    return found


async def kept(config: ClusterConfig) -> tuple[int, int, int]:
    """Workflows that have ended and are there; that have not ended well; that have been deleted after their end."""
    there = bad = deleted = 0
    for shard in map(Shard, config.shards):
        async with await shard.connect("bench") as conn:
            with shard.translate():
                row = await (await conn.execute(Statements(_TEXTS, shard.names)["kept"])).fetchone() or (0, 0, 0)
        there, bad, deleted = there + int(row[0]), bad + int(row[1]), deleted + int(row[2])
    return there, bad, deleted


async def _workflows(shard: Shard, conn: Conn, load: Load, found: Found, seen: set[int]) -> dict[int, int]:
    numbers: dict[int, int] = {}
    async for wf, id, status, output in _pages(shard, conn, "workflows", 1):
        number = number_of(id)
        if number is None or number >= load.workflows or number in seen:
            found.duplicated += 1
            continue
        seen.add(number)
        numbers[wf] = number
        if status is None:
            found.lost += 1
        else:
            found.workflows += 1
            found.wrong += Status(status) is not Status.SUCCEEDED or _json(output) != load.stored(number, -1)
    return numbers


async def _steps(shard: Shard, conn: Conn, load: Load, found: Found, numbers: dict[int, int]) -> None:
    right = 0
    async for wf, seq, output in _pages(shard, conn, "steps", 2):
        found.steps += 1
        if wf not in numbers or not 0 <= seq < load.steps:
            found.duplicated += 1
            continue
        right += 1
        found.wrong += _json(output) != load.stored(numbers[wf], seq)
    found.lost += len(numbers) * load.steps - right


def _json(output: bytes | None) -> bytes | None:
    return None if output is None else DEFAULT.readable(output)


async def _pages(shard: Shard, conn: Conn, name: str, keys: int) -> AsyncIterator[tuple[Any, ...]]:
    """All rows of a statement whose first `keys` columns are its order, page by page."""
    statement = Statements(_TEXTS, shard.names)[name]
    last: tuple[Any, ...] = (-1,) * keys
    while True:
        with shard.translate():
            rows = await (await conn.execute(statement, (*last, _PAGE), binary=True)).fetchall()
        for row in rows:
            yield row
        if len(rows) < _PAGE:
            return
        last = rows[-1][:keys]


class Watch:
    """Sees from outside how far a run is, so cheaply that it does not matter."""

    def __init__(self, shard: Shard, conn: Conn) -> None:
        self._shard = shard
        self._conn = conn
        self._texts = Statements(_TEXTS, shard.names)

    async def busy(self) -> bool:
        """Whether anything is ready, claimed or suspended."""
        with self._shard.translate():
            row = await (await self._conn.execute(self._texts["busy"])).fetchone()
        return bool(row and row[0])

    async def ended(self) -> int:
        """About how many workflows have ended, as the server's statistics know with some delay."""
        with self._shard.translate():
            cursor = await self._conn.execute(self._texts["written"], (self._shard.config.schema,))
            row = await cursor.fetchone()
        return int(row[0] or 0) if row else 0
