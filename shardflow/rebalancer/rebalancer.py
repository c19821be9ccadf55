"""The rebalancer at work: looks at the cluster, decides, and tells each worker which shards it is wanted on.

It stands on the first shard that answers: whoever is elected on a later one steps aside while somebody is elected on
an earlier one. Two that both decide, or none, harm nothing: a wish opens and closes leases in good order only, and
leases alone say who may write.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from ..core.assignment import assign
from ..core.assignment_model import Limits
from ..core.fleet import Fleet, Report, Step, gather, seen_gone
from ..core.planner import Planner
from ..errors import ShardflowError
from ..model import ClusterConfig
from ..storage import rebalance
from ..storage.rebalance import Note, Term
from ..storage.shard import Shard
from .survey import Survey

log = logging.getLogger("shardflow.rebalancer")

#: Seconds between looks whether a shard before ours has its elected one; more for a shard far down the list.
ASIDE = 2.0
#: Up to so far down the list, whoever stands aside keeps its connection: a new one costs the first shard more than
#: all else that it asks there.
NEAR = 8
#: Seconds before the first of those looks, from and to.
SOMEBODY = (0.3, 0.8)
#: After so many looks at which nothing was to be done, the looks are so many times rarer: where nobody tells of
#: workers that come or go, and where somebody does. Seconds at the least until a look that somebody asks for.
SOON, RESTING, TOLD = 2, 1.5, 2.5
BREATH = 0.25
#: Seconds after a shard was away until it counts as back: workers find out one after the other, and what they hold
#: there is not to be given to those who were first.
SETTLE = 6.0
#: Workers whose facts are compared in a thread, because it takes long enough to be felt in a worker's event loop.
MANY = 64


class Rebalancer:
    """Decides while it holds a seat, which the elections on the shards give and take.

    Arguments: `config`, the cluster's; `name`, of the worker that it is part of; `told`, whether somebody calls
    `look_soon`.
    """

    def __init__(self, config: ClusterConfig, name: str, *, told: bool = True) -> None:
        self.name = name
        self.deciding: str | None = None
        self._config = config
        self._order = [shard.name for shard in config.shards]
        self._survey = Survey([Shard(shard) for shard in config.shards])
        limits = Limits(config.rebalance.min_group, config.rebalance.max_group)
        self._planner = Planner(limits, config.rebalance.moves, config.rebalance.cooldown)
        self._seats: dict[str, Term] = {}
        self._changed = asyncio.Event()
        self._gone: set[str] = set()
        self._doubtful: set[str] = set()
        self._away: dict[str, float] = {}
        self._unrest: float | None = None
        self._quiet_looks = 0
        self._resting = TOLD if told else RESTING
        self._looked_at = 0.0
        self._nudge: asyncio.TimerHandle | None = None
        self._leader = ""

    def look_soon(self) -> None:
        """A worker has come or gone, or is about to."""
        self._quiet_looks = 0
        if self.deciding is not None and self._nudge is None:
            loop = asyncio.get_running_loop()
            self._nudge = loop.call_at(max(loop.time(), self._looked_at + BREATH), self._nudged)

    def _nudged(self) -> None:
        self._nudge = None
        self._changed.set()

    def seat(self, shard: str, term: Term | None) -> None:
        """The election on a shard was won (again), or is not held any more."""
        if term is None:
            if self._seats.pop(shard, None) is not None:
                self._changed.set()
        elif (known := self._seats.get(shard)) is None or known.number != term.number:
            self._seats[shard] = term
            if self.deciding is not None or shard == self._order[0]:
                self._changed.set()
            elif self._nudge is None:
                # Where all workers have come at once, somebody is elected on a shard before this one by then.
                self._nudge = asyncio.get_running_loop().call_later(random.uniform(*SOMEBODY), self._nudged)

    async def run(self) -> None:
        """Decides whenever it is its turn, until cancelled."""
        try:
            while True:
                pause = await self._turn()
                try:
                    async with asyncio.timeout(pause):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
        finally:
            if self._nudge is not None:
                self._nudge.cancel()
            await self._survey.close()

    async def _turn(self) -> float | None:
        """One look; answers how long to wait for the next one, None for as long as there is no seat."""
        if not self._seats:
            await self._stop_deciding()
            return None
        seat = min(self._seats, key=self._order.index)
        term = self._seats[seat].number
        index = self._order.index(seat)
        try:
            if await self._led_before(index):
                if self.deciding == seat:
                    await self._note(seat, term, [Note("aside", "somebody is elected on a shard before this one")])
                if self.deciding is not None or index > NEAR:
                    await self._stop_deciding()
                else:
                    await self._survey.keep(self._leader)
                return max(ASIDE, index / 2)
            await self._look(seat, term)
        except ShardflowError as error:
            log.warning("the rebalancer could not look; it tries again", extra={"error": str(error)})
        except Exception:
            log.exception("the rebalancer failed; it tries again")
        interval = self._config.rebalance.interval
        return interval * self._resting if self._quiet_looks >= SOON else interval

    async def _stop_deciding(self) -> None:
        self.deciding = None
        self._planner.forget()
        self._gone = set()
        await self._survey.close()

    async def _led_before(self, index: int) -> bool:
        for name in self._order[:index]:
            if self._survey.quiet(name):
                continue
            try:
                found = await self._survey.one(name, rebalance.elected, again=True)
            except ShardflowError:
                continue
            if found is not None and not found.vacant and found.holder != self.name:
                self._leader = name
                return True
        return False

    async def _look(self, seat: str, term: int) -> None:
        if self.deciding != seat:
            log.info("elected to rebalance", extra={"shard": seat, "term": term, "worker": self.name})
            await self._note(seat, term, [Note("elected", f"term {term} on shard {seat}", worker=self.name)])
            self.deciding = seat
        reports = await self._survey.ask(rebalance.report)
        now = self._looked_at = asyncio.get_running_loop().time()
        fleet = self._gather(reports, now)
        await self._decide(fleet, now)
        step = self._planner.step(fleet)
        rests = not step.wishes and not step.later and not self._doubtful and self._planner.reached(fleet)
        self._quiet_looks = self._quiet_looks + 1 if rests else 0
        await self._tell(seat, term, fleet, step)
        await self._note_rest(seat, term, fleet, step, now)

    def _gather(self, reports: dict[str, Report], now: float) -> Fleet:
        """The fleet, where a worker counts as dead whose session was seen closed twice in a row, and a shard as back
        when it was not seen away for a while."""
        gone = seen_gone(reports)
        dead, self._gone = gone & self._gone, gone
        self._doubtful = gone - dead
        fleet = gather(self._config.shards, reports, dead)
        self._away |= {shard.name: now for shard in fleet.shards if not shard.reachable}
        self._away = {name: since for name, since in self._away.items() if now - since < SETTLE}
        return gather(self._config.shards, reports, dead, self._away) if self._away else fleet

    async def _decide(self, fleet: Fleet, now: float) -> None:
        if not self._planner.due(fleet, now):
            return
        arguments = (fleet.workers, fleet.shards, fleet.intended, self._planner.limits)
        if len(fleet.workers) >= MANY:
            decision = await asyncio.to_thread(assign, *arguments)
        else:
            decision = assign(*arguments)
        self._planner.take(fleet, decision, now)

    async def _tell(self, seat: str, term: int, fleet: Fleet, step: Step) -> None:
        if not step.wishes:
            return
        homes: dict[str, list[tuple[str, Sequence[str]]]] = {}
        for worker, shards in step.wishes.items():
            homes.setdefault(fleet.rows[worker][0], []).append((worker, sorted(shards)))
        notes = []
        for move in step.moves:
            kind = "move" if move.source and move.target else "open" if move.target else "close"
            notes.append(Note(kind, move.reason, move.worker, move.source, move.target))
            log.info(
                "rebalance",
                extra={
                    "kind": kind,
                    "worker": move.worker,
                    "source": move.source,
                    "target": move.target,
                    "reason": move.reason,
                },
            )
        if notes:
            await self._note(seat, term, notes)
        for home, wishes in homes.items():
            await self._survey.one(home, lambda shard, conn, wishes=wishes: rebalance.wish(shard, conn, wishes))  # type: ignore[misc]

    async def _note(self, seat: str, term: int, notes: Sequence[Note]) -> None:
        await self._survey.one(seat, lambda shard, conn: rebalance.note(shard, conn, self.name, term, notes))

    async def _note_rest(self, seat: str, term: int, fleet: Fleet, step: Step, now: float) -> None:
        """Says in the journal how long it took until nothing was left to do."""
        if step.moves or step.later:
            self._unrest = now if self._unrest is None else self._unrest
        elif self._unrest is not None and self._planner.reached(fleet):
            took = now - self._unrest
            self._unrest = None
            await self._note(seat, term, [Note("rest", f"the wanted leases were told to all within {took:.1f} s")])
