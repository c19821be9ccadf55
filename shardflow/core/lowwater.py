"""Where a claim begins to read a queue.

A long transaction elsewhere keeps deleted entries in the index, and each claim would step over all of them again. A
low-water mark lets the next claim begin where the last one ended. It is only a hint: rows may commit behind it (a
lower sequence number that committed later, a more urgent priority), so the start is looked at again whenever a claim
came back short and that was cheap, and at intervals in any case.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Before every row: the least smallint, and no key is below 1.
START = (-32768, 0)

#: Seconds between looks from the start while a backlog is worked off, and how many times its cost a look must wait.
INTERVAL = 0.25
COST_FACTOR = 20.0
#: A look from the start that took less than this many seconds is cheap.
CHEAP = 0.02
#: Of so many looks the cheapest one counts: a server that stalls, or is throttled, may have made the others dear, and
#: what commits behind the mark meanwhile would wait twenty times as long as it stalled.
LOOKS = 3


@dataclass(slots=True)
class LowWater:
    """The mark of one queue, as one claimer remembers it."""

    mark: tuple[int, int] = START
    full: bool = False
    looks: tuple[float, ...] = (0.0,) * LOOKS
    usual: float = 0.0
    looked_at: float = float("-inf")

    @property
    def cost(self) -> float:
        """Seconds that looks from the start lately took longer than claims from the mark do."""
        return max(0.0, min(self.looks) - self.usual)

    def begin(self, now: float) -> tuple[int, int]:
        """The (priority, seq) to read from at `now` (seconds on any steady clock)."""
        rested = now - self.looked_at >= max(INTERVAL, COST_FACTOR * self.cost)
        if rested or (not self.full and self.cost < CHEAP):
            return START
        return self.mark

    def saw(
        self,
        began: tuple[int, int],
        wanted: int,
        got: int,
        last: tuple[int, int] | None,
        now: float,
        took: float,
    ) -> None:
        """Learns from a claim: where it began, rows wanted and got, the last one's place, seconds it took."""
        self.full = got >= wanted
        if began == START:
            self.looked_at = now
            self.looks = (*self.looks[1:], took)
            self.mark = last or self.mark
            return
        # A short turn counts at once and a long one by and by: what other work is in it differs.
        self.usual = took if took < self.usual or not self.usual else self.usual + (took - self.usual) / 8
        if last is not None:
            self.mark = max(self.mark, last)

    def back_to(self, place: tuple[int, int]) -> None:
        """Something came there, which may be behind the mark."""
        self.mark = min(self.mark, place)
