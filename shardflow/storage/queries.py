"""What a client asks one shard about many workflows: a part of a list, counts, where some ids are.

An answer is of one moment. What it costs is bounded by what is asked for and by `LOOK`, not by what the shard holds;
only a count reads all that it counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from psycopg import sql as composing

from .. import sql
from ..core.cursor import Part, Positions
from ..core.query import Filters
from ..core.stretch import Row, Stretch, joined, range_of
from ..model import Status, WorkflowInfo
from .arrays import Int8s, Texts
from .shard import Conn, Shard, Statements
from .turn import roll_back

#: Rows that a walk looks at in each range of keys before it answers what it has found.
LOOK = 20_000
#: So many are sorted where no index has them in order.
FEW = 2_000
#: How far the time of a submission may be from the moment at which its key was drawn.
SLACK = timedelta(minutes=1)

_UNLUCKY = frozenset(s for s in Status if s.final) - {Status.SUCCEEDED}
_ENDED = frozenset(s for s in Status if s.final)

Found = Stretch[int]
Answer = tuple[int, datetime, bool]


async def page(
    shard: Shard, conn: Conn, asked: Filters, newest: bool, after: Positions, limit: int
) -> Part[WorkflowInfo]:
    """The next `limit` workflows of each range behind the positions `after`, or fewer after `LOOK` rows."""
    statements = _statements(shard, newest)
    async with _moment(shard, conn):
        async with conn.pipeline():
            await conn.execute(statements["begin"])
            await conn.execute(statements["walking"])
            ranges = await conn.execute(statements["ranges"])
        tops, bounds = await _bounds(conn, statements, asked, await ranges.fetchall())
        for part, (low, high) in list(bounds.items()):
            if part in after:
                bounds[part] = (low, min(high, after[part] - 1)) if newest else (max(low, after[part] + 1), high)
        bounds = {part: (low, high) for part, (low, high) in bounds.items() if low <= high}
        walk = _Walk(conn, statements, asked, bounds, newest, limit)
        found = await walk.found() if bounds else {}
        wfs = [row.wf for stretch in found.values() for row in stretch.rows]
        infos = await _describe(shard, conn, statements, wfs)
    return Part(
        {
            part: Stretch([Row(row.wf, row.at, infos[row.wf]) for row in stretch.rows], stretch.reached)
            for part, stretch in found.items()
        },
        tops,
    )


async def count(shard: Shard, conn: Conn, asked: Filters) -> dict[Status, int]:
    """How many of the workflows asked for are in each of the statuses asked for."""
    statements = _statements(shard, True)
    wanted = asked.statuses or tuple(Status)
    statuses = Texts([status.value for status in wanted])
    async with _moment(shard, conn):
        await conn.execute(statements["begin"])
        if asked.of_submission:
            ranges = await conn.execute(statements["ranges"])
            _, bounds = await _bounds(conn, statements, asked, await ranges.fetchall())
            lows, highs = _columns(bounds)
            parameters = (lows, highs, *([statuses] * 4), *_fits(asked))
            rows = await (await conn.execute(statements["count_some"], parameters)).fetchall()
        else:
            rows = await (await conn.execute(statements["count_all"], [statuses] * 4)).fetchall()
    return dict.fromkeys(wanted, 0) | {Status(status): number for status, number in rows}


async def described(shard: Shard, conn: Conn, wfs: Sequence[int]) -> dict[int, WorkflowInfo]:
    """Those of these workflows that exist, by their keys."""
    statements = _statements(shard, True)
    async with _moment(shard, conn):
        async with conn.pipeline():
            await conn.execute(statements["begin"])
            await conn.execute(statements["walking"])
        return await _describe(shard, conn, statements, wfs)


class _Walk:
    """The search for the rows of one page: by the way that looks at the least for what is asked."""

    def __init__(
        self,
        conn: Conn,
        statements: Statements,
        asked: Filters,
        bounds: Mapping[int, tuple[int, int]],
        newest: bool,
        limit: int,
    ) -> None:
        self._conn = conn
        self._sql = statements
        self._asked = asked
        self._bounds = bounds
        self._newest = newest
        self._limit = limit

    async def found(self) -> dict[int, Found]:
        parts = None
        if self._asked.attributes is not None:
            parts = await self._tagged()
        if parts is None:
            parts = await self._by_status()
        return {
            part: joined(stretches, self._newest).cut(self._limit)
            for part, stretches in parts.items()
            if part in self._bounds
        }

    async def _by_status(self) -> dict[int, list[Found]]:
        wanted = set(self._asked.statuses) or set(Status)
        if wanted == set(Status):
            return await self._along(self._sql["all"])
        ways = []
        if Status.SUCCEEDED in wanted:
            ways.append(await self._along(self._sql["ended"], wanted & _ENDED))
        elif wanted & _UNLUCKY:
            ways.append(await self._along(self._sql["unlucky"], wanted & _UNLUCKY))
        if Status.SUSPENDED in wanted:
            ways.append(await self._along(self._sql["suspended"]))
        if Status.RUNNING in wanted:
            ways.append(self._sorted(await self._ask(self._sql["running"], *_fits(self._asked))))
        if Status.READY in wanted:
            some = await self._ask(self._sql["some_ready"], *_fits(self._asked), FEW + 1)
            ways.append(self._sorted(some) if len(some) <= FEW else await self._ready())
        return _together(ways)

    async def _ready(self) -> dict[int, list[Found]]:
        """A walk for what is ready; where it comes to nothing, it goes on in front of the next one that is ready."""
        found = await self._along(self._sql["ready"])
        for part, stretches in found.items():
            low, high = self._bounds[part]
            for number, stretch in enumerate(stretches):
                if (mark := stretch.reached) is None:
                    continue
                rest = (low, mark.wf - 1) if self._newest else (mark.wf + 1, high)
                await self._conn.execute(self._sql["searching"])
                following = await self._ask(self._sql["next_ready"], *rest)
                await self._conn.execute(self._sql["walking"])
                before = [Row(wf + 1 if self._newest else wf - 1, at, None) for wf, at in following]
                stretches[number] = Stretch(stretch.rows, before[0] if before else None)
        return found

    async def _tagged(self) -> dict[int, list[Found]] | None:
        """All with the attributes, where they are few; None where they are many."""
        await self._conn.execute(self._sql["searching"])
        some = await self._ask(self._sql["some_tagged"], *_fits(self._asked), self._asked.attributes, FEW + 1)
        await self._conn.execute(self._sql["walking"])
        if len(some) > FEW:
            return None
        if self._asked.statuses:
            fitting = [wf for wf, _, fits in some if fits]
            rows = await self._ask(self._sql["describe"], Int8s(fitting), Int8s(fitting))
            right = {row[0] for row in rows if row[4] in self._asked.statuses}
            some = [(wf, at, fits and wf in right) for wf, at, fits in some]
        return self._sorted(some)

    async def _along(self, way: bytes, statuses: Iterable[Status] = ()) -> dict[int, list[Found]]:
        """A walk: its rows, and how far it came where it did not come to the end."""
        lows, highs = _columns(self._bounds)
        given = [Texts(sorted(s.value for s in statuses))] if statuses else []
        limits = (LOOK, LOOK, self._limit + 1)
        rows = await self._ask(way, lows, highs, *given, *_fits(self._asked), *limits)
        found = self._sorted([(wf, at, fits) for wf, at, fits, _ in rows])
        for wf, at, _, number in rows:
            if number == LOOK:
                found.setdefault(range_of(wf), []).append(Stretch((), Row(wf, at, None)))
        return found

    def _sorted(self, rows: Sequence[Answer]) -> dict[int, list[Found]]:
        found: dict[int, list[Row[int]]] = defaultdict(list)
        for wf, at, fits in rows:
            low, high = self._bounds.get(range_of(wf), (1, 0))
            if fits and low <= wf <= high:
                found[range_of(wf)].append(Row(wf, at, wf))
        return {part: [Stretch(each)] for part, each in found.items()}

    async def _ask(self, statement: bytes, *parameters: object) -> list[Any]:
        return await (await self._conn.execute(statement, parameters, binary=True)).fetchall()


@asynccontextmanager
async def _moment(shard: Shard, conn: Conn) -> AsyncIterator[None]:
    """Ends the transaction that the block begins."""
    try:
        with shard.translate():
            yield
            await conn.execute(b"COMMIT")
    except BaseException:
        await roll_back(conn)
        raise


async def _bounds(
    conn: Conn, statements: Statements, asked: Filters, ranges: Sequence[tuple[int, int, int]]
) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    """The last key of each range, and in which stretch of it the submissions asked for are.

    A key that was drawn at a moment is not in front of any that was drawn before: so what was submitted since then is
    behind the last that was submitted earlier. The shard's clock may be out by `SLACK`.
    """
    bounds = {part: (low, high) for part, low, high in ranges}
    if asked.since is not None and bounds:
        edges = await _edges(conn, statements, bounds, asked.since - SLACK)
        bounds = {part: (edges[part], high) for part, (_, high) in bounds.items()}
    if asked.until is not None and bounds:
        edges = await _edges(conn, statements, bounds, asked.until + SLACK)
        bounds = {part: (low, edges[part] - 1) for part, (low, _) in bounds.items()}
    return {part: high for part, _, high in ranges}, bounds


async def _edges(
    conn: Conn, statements: Statements, bounds: Mapping[int, tuple[int, int]], moment: datetime
) -> dict[int, int]:
    rows = await (await conn.execute(statements["edge"], (*_columns(bounds), moment, moment))).fetchall()
    return dict(zip(bounds, (low for (low,) in rows), strict=True))


async def _describe(shard: Shard, conn: Conn, statements: Statements, wfs: Sequence[int]) -> dict[int, WorkflowInfo]:
    rows = await (await conn.execute(statements["describe"], [Int8s(wfs)] * 2, binary=True)).fetchall()
    return {
        wf: WorkflowInfo(id, name, queue, Status(status), shard.name, submitted_at, finished_at, attempt)
        for wf, id, name, queue, status, submitted_at, finished_at, attempt in rows
    }


def _columns(bounds: Mapping[int, tuple[int, int]]) -> tuple[Int8s, Int8s]:
    return Int8s([low for low, _ in bounds.values()]), Int8s([high for _, high in bounds.values()])


def _fits(asked: Filters) -> tuple[object, ...]:
    return asked.name, asked.queue, asked.since, asked.until, asked.attributes


def _together(ways: Iterable[Mapping[int, list[Found]]]) -> dict[int, list[Found]]:
    found: dict[int, list[Found]] = defaultdict(list)
    for way in ways:
        for part, stretches in way.items():
            found[part] += stretches
    return found


def _statements(shard: Shard, newest: bool) -> Statements:
    key = (shard.config.schema, newest)
    if key not in _filled:
        texts = sql.load("query")
        order = composing.SQL("DESC" if newest else "ASC")
        _filled[key] = Statements(texts, shard.names | {"fits": composing.SQL(texts["fits"]), "order": order})
    return _filled[key]


#: By schema and order: the statements, filled in once.
_filled: dict[tuple[str, bool], Statements] = {}
