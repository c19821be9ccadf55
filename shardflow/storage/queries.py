"""What a client asks one shard about many workflows: a part of a list, counts, where some ids are.

An answer is of one moment. What it costs is bounded by what is asked for and by `LOOK`, not by what the shard holds;
only an exact count reads all that it counts.
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
from ..core.lanes import SUSPECT, queue_of
from ..core.query import Filters
from ..core.stretch import Row, Stretch, joined, range_of
from ..model import Status, WorkflowInfo
from .arrays import Int2s, Int8s, Texts
from .shard import Conn, Shard, Statements
from .turn import roll_back

#: Rows that a walk looks at in each range of keys before it answers what it has found.
LOOK = 20_000
#: So many are sorted where no index has them in order.
FEW = 2_000
#: So many lanes and priorities are walked along one by one.
LANES = 100
#: Rows that are looked at for attributes which many have, before they are looked up in their index.
GLANCE = 2_000
#: A rough count is exact up to this.
COUNTED = 10_000
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


async def count(shard: Shard, conn: Conn, asked: Filters) -> tuple[dict[Status, int], frozenset[Status]]:
    """How many of the workflows asked for are in each of the statuses asked for, exactly; no status is rough."""
    statements = _statements(shard, True)
    wanted = asked.statuses or tuple(Status)
    statuses = Texts([status.value for status in wanted])
    async with _moment(shard, conn):
        async with conn.pipeline():
            await conn.execute(statements["begin"])
            await conn.execute(statements["counting"])
        if asked.of_submission:
            ranges = await conn.execute(statements["ranges"])
            _, bounds = await _bounds(conn, statements, asked, await ranges.fetchall())
            lows, highs = _columns(bounds)
            parameters = (lows, highs, *([statuses] * 4), *_fits(asked))
            rows = await (await conn.execute(statements["count_some"], parameters)).fetchall()
        else:
            rows = await (await conn.execute(statements["count_all"], [statuses] * 4)).fetchall()
    return dict.fromkeys(wanted, 0) | {Status(status): number for status, number in rows}, frozenset()


async def count_roughly(
    shard: Shard, conn: Conn, statuses: Sequence[Status]
) -> tuple[dict[Status, int], frozenset[Status]]:
    """How many workflows are in each of these statuses (none: all); and which of the numbers are rough.

    They are where there are more than `COUNTED`: then the server's statistics say how many.
    """
    statements = _statements(shard, True)
    wanted = statuses or tuple(Status)
    async with _moment(shard, conn):
        async with conn.pipeline():
            await conn.execute(statements["begin"])
            await conn.execute(statements["walking"])
            places = await conn.execute(statements["count_up_to"], [COUNTED] * 4)
            running = await conn.execute(statements["count_all"], [Texts([Status.RUNNING.value])] * 4)
        found = {place: (counted, known) for place, counted, known in await places.fetchall()}
        numbers = {Status(status): number for status, number in await running.fetchall()}
    rough = {place for place, (counted, _) in found.items() if counted >= COUNTED}
    sizes = {
        place: max(counted, known or 0) if place in rough else counted for place, (counted, known) in found.items()
    }
    sizes["succeeded"] = max(0, sizes["ended"] - sum(sizes[status.value] for status in _UNLUCKY))
    if "ended" in rough:
        rough.add("succeeded")
    numbers |= {status: sizes[status.value] for status in wanted if status.value in sizes}
    return {status: numbers[status] for status in wanted}, frozenset(s for s in wanted if s.value in rough)


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
        self._look = LOOK

    async def found(self) -> dict[int, Found]:
        parts = None
        if self._asked.attributes is not None:
            parts = await self._glance()
            if parts is None:
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
            ways.append(await self._along(self._sql["ended"], _texts(wanted & _ENDED)))
        elif wanted & _UNLUCKY:
            ways.append(await self._along(self._sql["unlucky"], _texts(wanted & _UNLUCKY)))
        if Status.SUSPENDED in wanted:
            ways.append(await self._along(self._sql["suspended"]))
        if Status.RUNNING in wanted:
            ways.append(self._sorted(await self._ask(self._sql["running"], *_fits(self._asked))))
        if Status.READY in wanted:
            in_lanes = await self._in_lanes()
            ways.append(await self._anywhere() if in_lanes is None else in_lanes)
        return _together(ways)

    async def _in_lanes(self) -> dict[int, list[Found]] | None:
        """A walk along each lane; None where there are too many of them, or of suspects, which are in no order."""
        lanes = await self._ask(self._sql["lanes"], LANES + 1)
        if len(lanes) > LANES:
            return None
        if self._asked.queue is not None:
            lanes = [place for place in lanes if queue_of(place[0]) == self._asked.queue]
        usual, suspect = _lanes(lanes, suspects=False), _lanes(lanes, suspects=True)
        some = await self._ask(self._sql["suspects"], *_fits(self._asked), *suspect, FEW + 1)
        if len(some) > FEW:
            return None
        return _together([self._sorted(some), await self._along(self._sql["ready_in"], *usual)])

    async def _anywhere(self) -> dict[int, list[Found]]:
        some = await self._ask(self._sql["some_ready"], *_fits(self._asked), FEW + 1)
        return self._sorted(some) if len(some) <= FEW else await self._ready()

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

    async def _glance(self) -> dict[int, list[Found]] | None:
        """A short walk for attributes that many have; None where it does not find enough."""
        self._look = GLANCE
        parts = await self._by_status()
        self._look = LOOK
        whole = {part: joined(parts.get(part, ()), self._newest) for part in self._bounds}
        enough = all(found.reached is None or len(found.rows) >= self._limit for found in whole.values())
        return parts if enough else None

    async def _tagged(self) -> dict[int, list[Found]] | None:
        """All with the attributes, where they are few; None where they are many."""
        await self._conn.execute(self._sql["searching"])
        some = await self._ask(self._sql["some_tagged"], *_fits(self._asked), self._asked.attributes, FEW + 1)
        await self._conn.execute(self._sql["walking"])
        if len(some) > FEW:
            return None
        if self._asked.statuses:
            fitting = [wf for wf, _, fits in some if fits]
            rows = await _placed(self._conn, self._sql, fitting)
            right = {row[0] for row in rows if row[4] in self._asked.statuses}
            some = [(wf, at, fits and wf in right) for wf, at, fits in some]
        return self._sorted(some)

    async def _along(self, way: bytes, *given: object) -> dict[int, list[Found]]:
        """A walk: its rows, and how far it came where it did not come to the end."""
        lows, highs = _columns(self._bounds)
        limits = (self._look, self._look, self._limit + 1)
        rows = await self._ask(way, lows, highs, *given, *_fits(self._asked), *limits)
        found = self._sorted([(wf, at, fits) for wf, at, fits, _ in rows])
        for wf, at, _, number in rows:
            if number == self._look:
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
    rows = await _placed(conn, statements, wfs)
    return {
        wf: WorkflowInfo(id, name, queue, Status(status), shard.name, submitted_at, finished_at, attempt)
        for wf, id, name, queue, status, submitted_at, finished_at, attempt in rows
    }


async def _placed(conn: Conn, statements: Statements, wfs: Sequence[int]) -> list[tuple[Any, ...]]:
    """The rows of `describe`, each with its status. Receipts are joined here: the server's plans in this transaction
    would compare each of them with each workflow."""
    keys = (Int8s(wfs),)
    async with conn.pipeline():
        described = await conn.execute(statements["describe"], keys, binary=True)
        claimed = await conn.execute(statements["held"], keys, binary=True)
    rows = await described.fetchall()
    held: dict[int, int] = dict(await claimed.fetchall())
    return [
        (
            *row[:4],
            row[4] or (Status.RUNNING if row[0] in held else Status.READY),
            *row[5:7],
            held.get(row[0], row[7]),
        )
        for row in rows
    ]


def _columns(bounds: Mapping[int, tuple[int, int]]) -> tuple[Int8s, Int8s]:
    return Int8s([low for low, _ in bounds.values()]), Int8s([high for _, high in bounds.values()])


def _fits(asked: Filters) -> tuple[object, ...]:
    return asked.name, asked.queue, asked.since, asked.until, asked.attributes


def _texts(statuses: Iterable[Status]) -> Texts:
    return Texts(sorted(status.value for status in statuses))


def _lanes(places: Sequence[tuple[str, int]], *, suspects: bool) -> tuple[Texts, Int2s]:
    """The names and priorities of those that are, or are not, lanes of suspects."""
    of_them = [place for place in places if place[0].endswith(SUSPECT) is suspects]
    return Texts([lane for lane, _ in of_them]), Int2s([priority for _, priority in of_them])


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
