"""When a commit loop is to look for suspended workflows whose time has come, and for what nobody attends to.

A long transaction elsewhere keeps deleted rows in the way of such looks. So a look begins shortly before where the
last one ended, one from the start is repeated the more seldom the longer it takes, and so are the chores.
"""

from __future__ import annotations

import asyncio
import math
from datetime import datetime, timedelta

#: Seconds between looks while busy: others may have suspended something that is due soon.
EVERY = 0.5
#: Seconds until the next one's time where none is known.
FAR = 3600.0
#: How many times as long as it took must lie between two, and the seconds after which that does not matter.
COST_FACTOR = 50.0
SELDOM = 10.0
#: Seconds that what is left over may take where it goes on at once.
CHEAP = 0.05
#: Seconds of the server's clock by which a look overlaps the last one: who suspended something that was due at once
#: may have committed it after that look.
OVERLAP = 1.0


class Pace:
    """How often something is done: every half second, but not for more than a fiftieth of the time, unless that were
    less than every ten seconds. What took long only once does not count: the server may have stood still."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._took = self._before = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time; `now` in seconds of any steady clock."""
        return now - self._at >= max(EVERY, min(SELDOM, COST_FACTOR * min(self._took, self._before)))

    def done(self, now: float, took: float) -> None:
        """It was done and took so many seconds."""
        self._at, self._took, self._before = now, took, self._took


class Alarm:
    """One shard's.

    Arguments: `loop`, whose clock is meant.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._looked_at = 0.0
        self._due_at = 0.0
        self._told = math.inf
        self._wanted = True
        self._found = self._behind = False
        self._mark: datetime | None = None
        self._whole = Pace()
        self._chores = Pace()

    def due_in(self, seconds: float | None) -> None:
        """A workflow is suspended now, for so many seconds, or without a time."""
        if seconds is not None:
            self._told = min(self._told, self._loop.time() + max(0.0, seconds))
            self._due_at = min(self._due_at, self._told)

    def since(self, now: float) -> datetime | None:
        """From which time of the server's clock on to look, None: from the start. What this worker suspended is never
        before it; what others did is where their transaction lasted for long, or the clock was set back, and waits
        for a look from the start."""
        return None if self._behind or self._whole.due(now) else self._mark

    def looked(
        self, since: datetime | None, upto: datetime, seconds: float | None, *, more: bool, took: float
    ) -> None:
        """A look from `since` on has woken all, or as many as it may where there is `more`, up to a time of the
        server's clock; it took so many seconds, and says when the next one's time comes. What has become known since
        it was asked for is not forgotten."""
        self._due_at = min(self._told, self._loop.time() + (FAR if seconds is None else max(0.0, seconds)))
        self._wanted = self._wanted or more
        if not more:
            self._mark = upto - timedelta(seconds=OVERLAP)
            if since is None:
                self._behind = False
                self._whole.done(self._loop.time(), took)

    def hint(self, seconds: float | None, *, more: bool) -> None:
        """Somebody who looked a moment ago, from the start, says so: what has become known since is not forgotten."""
        self.due_in(seconds)
        self._behind = self._behind or (seconds is not None and seconds <= -OVERLAP)
        self._wanted = self._wanted or more
        self._found = self._found or more

    def look_from_the_start(self) -> None:
        """The next look begins anew: the connection is new, and perhaps the server, with another clock."""
        self._mark = None
        self._whole = Pace()
        self._wanted = True

    def patience(self, now: float) -> float:
        """Seconds to sleep until the next one's time."""
        return max(0.001, self._due_at - now)

    def goes_off(self, now: float) -> bool:
        """Whether somebody's time has come, as far as is known; the next turn looks then."""
        if now < self._due_at:
            return False
        self._due_at = now + EVERY
        self._wanted = True
        return True

    def rings(self, now: float) -> bool:
        """Whether a turn that takes place now is to look; it is taken to do so."""
        if not self._wanted and now - self._looked_at < EVERY:
            return False
        self._wanted = False
        self._told = math.inf
        self._looked_at = now
        return True

    def chores(self, now: float) -> bool:
        """Whether that turn is to look for what nobody attends to."""
        return self._found or self._chores.due(now)

    def chores_done(self, took: float, *, more: bool = False) -> bool:
        """A turn has, which took so many seconds for it. Whether the next one is to go on at once, as there is `more`
        and it was cheap."""
        self._found = more and took < CHEAP
        self._wanted = self._wanted or self._found
        self._chores.done(self._loop.time(), took)
        return self._found
