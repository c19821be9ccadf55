"""The workflows that a worker may run at once, shared fairly among its shards."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable

from ..core.capacity import divide


class Place:
    """One shard's part of the worker's places.

    `running` is kept by the shard's commit loop; `claiming` are the places promised to a claim that is under way;
    `hungry` says that the shard's queue has more than it could take; `refused`, that it was given no place; `absent`,
    that the shard does not answer, so that what runs for it cannot end and must not keep the others' places.
    """

    def __init__(self, places: Places, wake: Callable[[], None]) -> None:
        self._places = places
        self.total = places.total
        self._wake = wake
        self.running = 0
        self.claiming = 0
        self.hungry = False
        self.refused = False
        self.absent = False
        self.served = 0

    @property
    def taken(self) -> int:
        """Places that nobody else can have now."""
        return self.running + self.claiming

    def allowance(self, ending: int) -> int:
        """How many workflows this shard may claim now, when `ending` of its own end in the same transaction."""
        self.absent = False
        return self._places.allowance(self, ending)

    @property
    def taken_up(self) -> bool:
        """Whether there was no place for this shard when it asked last."""
        return self.refused or self.running >= self.total

    def served_now(self) -> None:
        """This shard has claimed: the others come first when places are short."""
        self.served = self._places.tick()

    def freed(self) -> None:
        """Places became free: shards that were refused may look again."""
        self._places.wake_refused(self)

    def left(self, thread: concurrent.futures.Future[object] | None, loop: asyncio.AbstractEventLoop) -> None:
        """A workflow runs here no more. Its thread, if it has one, cannot be stopped: the place is free when that has
        ended."""
        if thread is None or thread.done():
            self.running -= 1
        else:
            thread.add_done_callback(lambda _: self._soon(loop))

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._vacate)
        except RuntimeError:
            pass  # the loop is closed: the worker has ended

    def _vacate(self) -> None:
        self.running -= 1
        self.freed()
        self._wake()

    def leave(self) -> None:
        """Gives the part up for good."""
        self._places.remove(self)

    def away(self) -> None:
        """The shard does not answer now: the others may have all places, until it asks for some again."""
        self.absent = True
        self.claiming = 0
        self.hungry = self.refused = False
        self.freed()

    def wake(self) -> None:
        self._wake()  # it stays refused until it has asked again, so that nobody takes the place before


class Places:
    """`total` places, divided evenly among the shards that want them; a shard alone may have them all."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._parts: list[Place] = []
        self._clock = 0

    def add(self, wake: Callable[[], None]) -> Place:
        """A part for one more shard; `wake` is called when it was refused places and some became free."""
        part = Place(self, wake)
        self._parts.append(part)
        return part

    def remove(self, part: Place) -> None:
        if part in self._parts:
            self._parts.remove(part)
            self.wake_refused(part)

    def tick(self) -> int:
        self._clock += 1
        return self._clock

    def allowance(self, asking: Place, ending: int) -> int:
        if len(self._parts) == 1:
            return max(0, self.total - asking.running + ending)
        present = [part for part in self._parts if not part.absent]
        order = sorted(present, key=lambda part: part.served)
        wants = [self.total if part is asking or part.hungry or part.refused else part.taken for part in order]
        share = divide(self.total, wants)[order.index(asking)]
        free = self.total - sum(part.taken for part in present) + ending
        allowed = max(0, min(share - asking.running + ending, free))
        asking.refused = allowed == 0
        return allowed

    def wake_refused(self, by: Place) -> None:
        for part in self._parts:
            if part is not by and part.refused:
                part.wake()
