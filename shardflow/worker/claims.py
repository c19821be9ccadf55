"""When and how much a commit loop claims.

A loop that was given all it asked for asks again at once. One that found its queues empty sleeps: it hangs the bell,
looks a few times more (a submit may have committed just before the bell hung), then waits for the bell and looks
only now and then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..core.lanes import queue_of
from ..core.lowwater import START, LowWater
from ..storage.turn import Claimed, ClaimWanted
from .places import Place

#: Seconds until each further look after the bell was hung, and then until the loop looks itself, where the keeper has
#: not looked before; and between looks while nothing can be claimed.
FIRST_LOOKS = (0.004, 0.02, 0.08, 0.3)
OWN_LOOK = 2.0
IDLE_LOOK = 1.0
#: The same where no bell can be heard.
DEAF_LOOK = 0.1
#: Workflows in one claim at the most, and never more than half of the places: while one half is committed the other
#: half runs. More would cost the same each and only delay what waits behind it.
BATCH = 1_000
#: Bytes of inputs in one claim, as far as they are foreseen from those before.
BYTES = 32 << 20
#: Claims of at least this many rows show a busy shard, whose submitters need not ring.
BUSY = 64


class Claims:
    """The claiming side of one shard: wishes, low-water marks, the bell.

    Arguments: `queues`, the worker's; `place`, the shard's part of the worker's places; `deaf`, whether a pooler
    keeps the bell from being heard.
    """

    def __init__(self, queues: Sequence[str], place: Place, *, deaf: bool) -> None:
        self._queues = list(queues)
        self._marks = {queue: LowWater() for queue in queues}
        self._place = place
        self._batch = max(1, min(BATCH, place.total // 2))
        self._deaf = deaf
        self._size = 1.0  # bytes of an input lately
        self._hung = False
        self._settled = 0
        self._empty = False
        self._due = 0.0
        self.limited = False
        self.wanted = True

    @property
    def settled(self) -> bool:
        """Whether the shard is known to be idle, with the bell hung or not to be heard."""
        return self._empty and (self._deaf or (self._hung and self._settled >= len(FIRST_LOOKS)))

    @property
    def rests(self) -> bool:
        """Whether it is settled and waits for the bell, or for others to look."""
        return self.settled and not self._deaf and not self.wanted

    def limits(self, queues: frozenset[str]) -> None:
        """These are the shard's queues that have limits."""
        limited = any(queue_of(lane) in queues for lane in self._queues)
        self.wanted = self.wanted or limited > self.limited
        self.limited = limited

    def look(self) -> None:
        """The queues may have something: the next turn asks."""
        self.wanted = True

    def came_back(self, places: Iterable[tuple[str, int, int]]) -> None:
        """Workflows came to these places, lane, priority and seq, which are their former ones."""
        for lane, priority, seq in places:
            if (mark := self._marks.get(lane)) is not None:
                mark.back_to((priority, seq))
        self.wanted = True

    def look_from_the_start(self) -> None:
        """Something came back to its former place in a queue, which may lie before the marks."""
        self._marks = {queue: LowWater() for queue in self._queues}
        self.wanted = True

    def answered(self) -> None:
        """The claim that was under way is over and what it gave runs: the rest of its places are free again."""
        if self._place.claiming:
            self._place.claiming = 0
            self._place.freed()

    def reset(self) -> None:
        """The connection is new: its session holds no bell, and nothing is known."""
        self.answered()
        self._hung = False
        self._empty = False
        self.wanted = True
        self._marks = {queue: LowWater() for queue in self._queues}

    def wish(self, ending: int, batch: int, now: float, *, anyway: bool) -> ClaimWanted | None:
        """What to claim in this turn, in which `ending` workflows of the shard end.

        `anyway` says that the turn takes place with or without a claim, which makes a look nearly free.
        """
        if not self.wanted and (now < self._due or (self.settled and not anyway)):
            return None
        allowed = min(self._place.allowance(ending), self._batch, max(1, int(BYTES / self._size)))
        if allowed <= 0:
            self._due = now + IDLE_LOOK  # whoever frees a place wakes the loop before
            return None
        self._place.claiming = allowed
        marks = [self._marks[queue].begin(now) for queue in self._queues]
        wish = ClaimWanted(batch, list(self._queues), allowed, marks, self.limited)
        # Another queue is the first next time, so that a backlog in one does not keep the others waiting.
        self._queues.append(self._queues.pop(0))
        return wish

    def bell(self) -> bool | None:
        """Whether this turn is to hang the bell (True) or take it (False)."""
        if self._deaf:
            return None
        if not self._hung and self._empty:
            return True
        if self._hung and self._place.hungry:
            return False
        return None

    def bell_is(self, hung: bool) -> None:
        """The turn with the bell has committed."""
        self._hung = hung
        self._settled = 0

    def got(self, wish: ClaimWanted, rows: Sequence[Claimed], now: float, took: float) -> None:
        """Learns from the answer to a wish: `now` and `took` in seconds of a steady clock."""
        counts: dict[str, tuple[int, tuple[int, int] | None]] = {}
        for row in rows:
            n, last = counts.get(row.queue, (0, None))
            place = (row.priority, row.seq)
            counts[row.queue] = (n + 1, place if last is None or place > last else last)
        if rows:
            sizes = [len(row.input) for row in rows if row.input is not None]
            mean = sum(sizes) / len(sizes)
            self._size = max(1.0, mean, self._size + (mean - self._size) / 8)
        full = len(rows) >= wish.most
        behind = False
        for queue, began in zip(wish.queues, wish.marks, strict=True):
            n, last = counts.get(queue, (0, None))
            if n or not full:  # a full claim may not have come to the queues behind
                self._marks[queue].saw(began, n if full else n + 1, n, last, now, took)
            behind = behind or (began != START and n > 0)
        self._place.served_now()
        self._place.hungry = full or behind or len(rows) >= BUSY
        # With the bell hung long before, a claim that came back short has taken all that there was.
        told = self._hung and self._settled >= len(FIRST_LOOKS) and not (self._place.hungry or wish.limited)
        self._empty = told or not rows
        self.wanted = not self._empty
        if not rows and self._hung:
            self._settled += 1
        self.rest(now)

    def put_off(self, now: float) -> None:
        """The server refused a claim: no other for a while."""
        self.wanted = False
        self._due = now + IDLE_LOOK

    def rest(self, now: float) -> None:
        """Sets the time of the next look of its own accord."""
        settling = self._settled if self._hung else 0
        pause = DEAF_LOOK if self._deaf else FIRST_LOOKS[settling] if settling < len(FIRST_LOOKS) else OWN_LOOK
        self._due = now + pause

    def patience(self, now: float) -> float:
        """Seconds to sleep before that."""
        return max(0.0, self._due - now)
