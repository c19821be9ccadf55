"""How fast workflows that ended long ago are deleted.

Deleting takes a tenth of a shard's time as long as that suffices, and more the later it is, so that tables stay
bounded at any load. Batches are sized by what they take, so that none is long.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Ends that one batch looks at, at the least, at the beginning and at the most.
LEAST, FIRST, MOST = 1, 200, 5_000
#: Seconds that a batch is to take.
AIM = 0.05
#: The part of the time that deleting takes, at the least and at the most.
SHARE, MOST_SHARE = 0.1, 0.8
#: The part of an age for which a quick pass lets what ends late come in, and after which a thorough one comes.
SLACK, THOROUGH = 0.05, 0.1
#: Seconds between passes, at the least and at the most; and between thorough ones at the least.
SOONEST, LATEST, SELDOM = 1.0, 60.0, 60.0
#: A thorough pass comes no sooner than after so many times what the last one took.
REST = 20.0


@dataclass(slots=True)
class Pace:
    """The pace at which those of one age, in seconds, are deleted on one shard.

    Attributes: `size`, ends that the next batch looks at.
    """

    age: float
    size: int = FIRST

    def pause(self, took: float, seen: int, overdue: float | None) -> float:
        """Seconds to wait after a batch.

        Arguments: seconds that it took; how many ends it has looked at; by how many seconds the oldest of those
        deleted was overdue, None where none was.
        """
        if took > AIM * 2:
            self.size = max(LEAST, int(self.size * max(0.25, AIM / took)))
        elif took < AIM and seen >= self.size:
            self.size = min(MOST, self.size * 2 if took < AIM / 2 else self.size + self.size // 4 + 1)
        share = share_of(self.age, overdue)
        return took * (1 - share) / share

    def failed(self) -> None:
        """The server gave a batch up: it was too long."""
        self.size = max(LEAST, self.size // 8)

    @property
    def between(self) -> float:
        """Seconds between two passes."""
        return min(LATEST, max(SOONEST, self.age / 100))

    def thorough_again(self, took: float) -> float:
        """Seconds after a thorough pass, which took so many, until the next one."""
        return max(SELDOM, self.age * THOROUGH, took * REST)


def share_of(age: float, overdue: float | None) -> float:
    """The part of the time to take, where workflows of that age are overdue by so much.

    What a pass finds may have waited for the slack, and for the pass before.
    """
    if overdue is None:
        return SHARE
    usual = age * SLACK + 2 * SOONEST
    return min(MOST_SHARE, SHARE * max(1.0, (overdue - age * SLACK) / usual))
