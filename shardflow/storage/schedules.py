"""Schedules and their ticks on the shard that a schedule's name belongs to.

That a tick is to run is committed before anybody submits it, and is forgotten after that is known to be done.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any

from ..core.schedule import Definition, Due
from ..errors import ScheduleConflict
from ..model import ScheduleInfo
from .shard import Conn, Shard

#: Seconds after which a schedule from code counts as gone from it, if no worker has said in them that it has it.
STALE = 180.0


@dataclass(frozen=True, slots=True)
class Look:
    """The shard's clock; when a schedule is to be looked at next, and when a tick may be taken."""

    now: datetime
    schedule_at: datetime | None
    tick_at: datetime | None

    @property
    def due(self) -> bool:
        """Whether there is something to do now."""
        return any(at is not None and at <= self.now for at in (self.schedule_at, self.tick_at))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A schedule to be looked at. `stale`: no worker has it in its code; `busy`: ticks of it are not submitted."""

    name: str
    spec: str
    zone: str
    missed: str
    overlap: str
    decided_to: datetime
    now: datetime
    stale: bool
    busy: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """A tick to submit. `tries` is the taker's token, `last_id` the workflow of the newest submitted tick."""

    at: datetime
    tries: int
    last_id: str | None
    definition: Definition


@dataclass(frozen=True, slots=True)
class Stored:
    """A schedule as it is found before a change, and the transaction's time."""

    definition: Definition
    paused: bool
    from_code: bool
    started_at: datetime | None
    confirmed_at: datetime
    decided_to: datetime
    next_at: datetime | None
    now: datetime

    @property
    def stale(self) -> bool:
        return self.from_code and (self.now - self.confirmed_at).total_seconds() > STALE


async def look(shard: Shard, conn: Conn) -> Look:
    """Whether there is anything to do, and when."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("schedule")["look"])).fetchone()
    assert row is not None
    return Look(*row)


async def decide(
    shard: Shard, conn: Conn, generation: int, choose: Callable[[Candidate], Due], limit: int = 100
) -> int:
    """Has `choose` decide the schedules that are to be looked at now; commits that. Answers how many there were."""
    sql = shard.statements("schedule")
    with shard.translate():
        async with _writing(shard, conn, generation):
            rows = await (await conn.execute(sql["due"], (STALE, limit))).fetchall()
            if not rows:
                return 0
            found = [(row[0], choose(Candidate(*row))) for row in rows]
            ticks = [(name, tick) for name, due in found for tick in due.ticks]
            if ticks:
                await conn.execute(sql["add_ticks"], _columns(ticks))
            await conn.execute(sql["decided"], _columns([(n, due.decided_to, due.next_at) for n, due in found]))
            return len(found)


async def take(shard: Shard, conn: Conn, generation: int, hold: float, limit: int = 500) -> list[Taken]:
    """Takes ticks that are to be submitted, in order; nobody else takes them for `hold` seconds."""
    with shard.translate():
        async with _writing(shard, conn, generation):
            cursor = await conn.execute(shard.statements("schedule")["take"], (hold, limit))
            return [Taken(row[0], row[1], row[2], Definition(*row[3:])) for row in await cursor.fetchall()]


async def submitted(shard: Shard, conn: Conn, generation: int, ticks: Sequence[tuple[Taken, str]]) -> None:
    """Forgets ticks whose workflows, of these ids, are there."""
    rows = [(taken.definition.name, taken.at, taken.tries, id) for taken, id in ticks]
    with shard.translate():
        async with _writing(shard, conn, generation):
            await conn.execute(shard.statements("schedule")["submitted"], _columns(rows))


async def skipped(shard: Shard, conn: Conn, generation: int, taken: Taken) -> None:
    """Forgets a tick that is not to run."""
    with shard.translate():
        async with _writing(shard, conn, generation):
            token = (taken.definition.name, taken.at, taken.tries)
            await conn.execute(shard.statements("schedule")["skipped"], token)


async def put_off(shard: Shard, conn: Conn, generation: int, ticks: Sequence[tuple[Taken, float]]) -> None:
    """Ticks that could not be submitted may be taken again after so many seconds."""
    with shard.translate():
        async with _writing(shard, conn, generation):
            for taken, seconds in ticks:
                token = (seconds, taken.definition.name, taken.at, taken.tries)
                await conn.execute(shard.statements("schedule")["put_off"], token)


async def ended(shard: Shard, conn: Conn, id: str) -> bool:
    """Whether the workflow of this id has ended, or is not there any more."""
    with shard.translate():
        row = await (await conn.execute(shard.statements("schedule")["ended"], (id, id))).fetchone()
    return bool(row and row[0])


async def confirmed(
    shard: Shard, conn: Conn, definitions: Sequence[Definition], started_at: datetime, seconds: float
) -> set[str]:
    """The names of those that are stored as they are, and that a worker started no earlier has confirmed just now."""
    wanted = {made.name: made for made in definitions}
    with shard.translate():
        cursor = await conn.execute(shard.statements("schedule")["confirmed"], (list(wanted), started_at, seconds))
        return {row[0] for row in await cursor.fetchall() if Definition(*row) == wanted[row[0]]}


async def register(
    shard: Shard, conn: Conn, generation: int, slot: int, definition: Definition, started_at: datetime
) -> str | None:
    """A worker, started at that time, has the schedule in its code; answers what that changed, None for nothing.

    Of two definitions that of the process started last stands, until no worker has said for a while that it has it:
    so versions of the code do not fight, and what a restart of an old one does passes. Raises ScheduleConflict where
    it was made by a client.
    """
    with shard.translate():
        async with _writing(shard, conn, generation):
            if await _insert(shard, conn, slot, definition, False, started_at):
                return "made"
            stored = await _locked(shard, conn, definition.name)
            if stored is None:  # deleted meanwhile: the next call makes it
                return None
            if not stored.from_code:
                raise ScheduleConflict(
                    f"the schedule {definition.name!r} of the app was made by a client before: delete that one, or"
                    " give this one another name"
                )
            if stored.definition == definition:
                await conn.execute(shard.statements("schedule")["confirm"], (started_at, definition.name))
                return None
            if stored.started_at is not None and started_at <= stored.started_at and not stored.stale:
                return None
            await _replace(shard, conn, definition, stored, started_at)
            return "changed"


async def create(
    shard: Shard, conn: Conn, generation: int, slot: int, definition: Definition, *, paused: bool, replacing: bool
) -> None:
    """Makes a schedule, or changes the one there is where that is wanted; the same again changes nothing.

    Raises ScheduleConflict where there is another one of that name.
    """
    with shard.translate():
        async with _writing(shard, conn, generation):
            if await _insert(shard, conn, slot, definition, paused, None):
                return
            stored = await _locked(shard, conn, definition.name)
            if stored is None:
                raise ScheduleConflict(f"the schedule {definition.name!r} is being deleted: try again")
            if stored.from_code:
                raise ScheduleConflict(
                    f"the schedule {definition.name!r} is from an app's code: change it there, or use another name"
                )
            if stored.definition == definition:
                return
            if not replacing:
                raise ScheduleConflict(
                    f"there is another schedule {definition.name!r}: replace it (replace=True), or use another name"
                )
            await _replace(shard, conn, definition, stored, None)


async def set_paused(shard: Shard, conn: Conn, generation: int, name: str, paused: bool) -> bool:
    """Pauses a schedule, or lets it go on with its next tick; whether there is one of that name."""
    with shard.translate():
        async with _writing(shard, conn, generation):
            stored = await _locked(shard, conn, name)
            if stored is None:
                return False
            if stored.paused != paused:
                following = None if paused else stored.definition.timing.after(stored.now)
                change = (paused, max(stored.now, stored.decided_to), following, name)
                await conn.execute(shard.statements("schedule")["pause"], change)
            return True


async def delete(shard: Shard, conn: Conn, generation: int, name: str) -> bool:
    """Deletes a schedule with its ticks that are not submitted yet; whether there was one of that name.

    Raises ScheduleConflict for one that a worker has in its code, and would make again.
    """
    with shard.translate():
        async with _writing(shard, conn, generation):
            stored = await _locked(shard, conn, name)
            if stored is None:
                return False
            if stored.from_code and not stored.stale:
                raise ScheduleConflict(
                    f"the schedule {name!r} is in the code of workers that run: take it out there, or pause it"
                )
            await conn.execute(shard.statements("schedule")["delete"], (name,))
            return True


async def find(shard: Shard, conn: Conn, name: str) -> tuple[Definition, ScheduleInfo, datetime] | None:
    """A schedule, and the shard's time; None where there is none of that name."""
    rows = await _list(shard, conn, name)
    return rows[0] if rows else None


async def all_schedules(shard: Shard, conn: Conn) -> list[ScheduleInfo]:
    """The shard's schedules in the order of their names."""
    return [info for _, info, _ in await _list(shard, conn, None)]


async def _list(shard: Shard, conn: Conn, name: str | None) -> list[tuple[Definition, ScheduleInfo, datetime]]:
    with shard.translate():
        sql = shard.statements("schedule")
        asked = (sql["list"], (STALE,)) if name is None else (sql["find"], (STALE, name))
        rows = await (await conn.execute(*asked)).fetchall()
    found = []
    for row in rows:
        made = Definition(*row[:10])
        paused, from_code, stale, created_at, next_at, last_at, last_id, waiting, now = row[10:]
        info = ScheduleInfo(
            made.name,
            made.spec,
            made.zone,
            made.workflow,
            made.queue,
            made.input,
            made.missed,
            made.overlap,
            "paused" if paused else "no code" if stale else "active" if next_at is not None else "ended",
            from_code,
            shard.name,
            created_at,
            next_at,
            last_at,
            last_id,
            waiting,
        )
        found.append((made, info, now))
    return found


@asynccontextmanager
async def _writing(shard: Shard, conn: Conn, generation: int) -> AsyncIterator[None]:
    """A transaction that the shard refuses where its slots are not those that the caller believes in."""
    async with conn.transaction():
        await conn.execute(shard.statements("submit")["admit"], (generation,))
        yield


async def _insert(
    shard: Shard, conn: Conn, slot: int, definition: Definition, paused: bool, started_at: datetime | None
) -> bool:
    """Whether it was new."""
    sql = shard.statements("schedule")
    row = await (await conn.execute(sql["clock"])).fetchone()
    assert row is not None
    name, *rest = astuple(definition)
    next_at = None if paused else definition.timing.after(row[0])
    values = (name, slot, *rest, paused, started_at is not None, started_at, next_at)
    return await (await conn.execute(sql["insert"], values)).fetchone() is not None


async def _locked(shard: Shard, conn: Conn, name: str) -> Stored | None:
    row = await (await conn.execute(shard.statements("schedule")["locked"], (name,))).fetchone()
    return None if row is None else Stored(Definition(name, *row[:9]), *row[9:])


async def _replace(
    shard: Shard, conn: Conn, definition: Definition, stored: Stored, started_at: datetime | None
) -> None:
    """Another rule counts from now on; with the same rule nothing that is due gets lost."""
    name, *rest = astuple(definition)
    same = (definition.spec, definition.zone) == (stored.definition.spec, stored.definition.zone)
    decided_to = stored.decided_to if same else max(stored.now, stored.decided_to)
    following = None if stored.paused else definition.timing.after(decided_to)
    values = (*rest, started_at, decided_to, following, name)
    await conn.execute(shard.statements("schedule")["replace"], values)


def _columns(rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))
