"""When a commit loop is to look for suspended workflows whose time has come."""

from __future__ import annotations

import asyncio

#: Seconds between looks while busy: others may have suspended something that is due soon.
EVERY = 0.5
#: Seconds until the next one's time where none is known.
FAR = 3600.0


class Alarm:
    """One shard's.

    Arguments: `loop`, whose clock is meant.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._looked_at = 0.0
        self._due_at = 0.0
        self._wanted = True

    def due_in(self, seconds: float | None) -> None:
        """A workflow is suspended now, for so many seconds, or without a time."""
        if seconds is not None:
            self._due_at = min(self._due_at, self._loop.time() + max(0.0, seconds))

    def next_is(self, seconds: float | None, *, more: bool) -> None:
        """The shard says when the next one's time comes, and whether there may be more to do at once."""
        self._due_at = self._loop.time() + (FAR if seconds is None else max(0.0, seconds))
        self._wanted = more

    def hint(self, seconds: float | None, *, more: bool) -> None:
        """The same, from somebody who looked a moment ago: what has become known since is not forgotten."""
        self.due_in(seconds)
        self._wanted = self._wanted or more

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
        self._looked_at = now
        return True
