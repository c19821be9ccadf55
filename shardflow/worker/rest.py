"""How a commit loop with nothing to do rests, and what ends its rest.

The bell and the alarm wake it. For what neither tells, the keeper's look asks too while the loop rests; where that
does not come, or the bell cannot be heard, the loop looks itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import shardflow.storage.turn as turns

from ..storage import leases
from ..storage.shard import Conn
from .alarm import Alarm, Pace
from .claims import IDLE_LOOK

if TYPE_CHECKING:
    from .commit import CommitLoop

#: A suspended workflow that is due within so many seconds ends the rest, so that the alarm is set anew.
SOON = 3.0


class Rest:
    """One commit loop's.

    Arguments: `commit`, the loop; `awake`, set when there is something to do; `alarm`, the loop's; `lanes` that the
    worker serves; `patience`, seconds for an answer.
    """

    def __init__(
        self, commit: CommitLoop, awake: asyncio.Event, alarm: Alarm, lanes: Sequence[str], patience: float
    ) -> None:
        self._commit = commit
        self._awake = awake
        self._alarm = alarm
        self._lanes = list(lanes)
        self._patience = patience
        self._pace = Pace()
        self._asked = 0.0

    @property
    def lanes(self) -> Sequence[str] | None:
        """What the keeper's look is to ask for; None while the loop does not rest, or looks itself. Nor where such
        looks take long, as a long transaction keeps what was claimed from being removed: then the bell has to do."""
        commit = self._commit
        if commit.leaving or not commit.claims.rests or not self._pace.due(commit.loop.time()):
            return None
        self._asked = commit.loop.time()
        return [*self._lanes, *commit.control.lanes]

    def looked(self, found: bool | None, due: float | None) -> None:
        """A look has found that there may be something to do, or when there will be; None: it was not asked."""
        if found is None:
            return
        now = self._commit.loop.time()
        self._pace.done(now, now - self._asked)
        self._alarm.hint(due, more=found)
        self._commit.claims.rest(now)
        if found:
            self._commit.wake()
        elif due is not None and due < SOON:
            self._awake.set()

    async def sleep(self, conn: Conn) -> None:
        """Returns when there may be something to do, or when it is time to ask anew."""
        commit = self._commit
        self._awake.clear()
        now = commit.loop.time()
        patience = IDLE_LOOK if commit.leaving else commit.claims.patience(now)
        if not commit.leaving:
            patience = min(patience, self._alarm.patience(now))
        patience = min(patience, commit.control.patience(now))
        try:
            # Not wait_for, which before Python 3.12 can swallow a cancellation.
            async with asyncio.timeout(patience):
                await self._awake.wait()
        except TimeoutError:
            await self._overslept(conn, commit.loop.time())

    async def _overslept(self, conn: Conn, now: float) -> None:
        """Nobody woke it: what its own looks are due for."""
        commit = self._commit
        if commit.control.due(now):
            async with commit.shard.deadline(conn, self._patience, "a look at what is to be cancelled"):
                commit.control.heed(await turns.cancelled(commit.shard, conn))
        if commit.leaving:
            return
        if self._alarm.goes_off(now):  # somebody's time has come
            commit.claims.look()
        elif commit.claims.settled and not commit.claims.patience(now) and (fence := commit.fence) is not None:
            if not self._pace.due(now):
                commit.claims.rest(now)
                return
            self._asked = now
            lanes = [*self._lanes, *commit.control.lanes]
            async with commit.shard.deadline(conn, self._patience, "a look at the queues"):
                seen = await leases.look(commit.shard, conn, fence.lease, fence.epoch, lanes=lanes)
            self.looked(seen.found, seen.due)
