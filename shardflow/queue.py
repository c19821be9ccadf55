"""A queue with its limits, as an app declares it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta

from .core.routing import check_name
from .errors import InvalidInput

#: Units of a limit at the most.
MOST = 1_000_000


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue and what holds for it in the whole cluster.

    Arguments: `name`; `concurrency`, how many of its workflows run at once at the most, where suspended ones do not
    count; `rate`, (n, seconds or timedelta): at most n of them begin in any span of so many seconds, where one that
    is claimed again after it was suspended or its worker died begins again; `priority` of submissions that name none,
    the least first. What the worker says that was started last holds. Raises InvalidInput.
    """

    name: str
    concurrency: int | None = None
    rate: tuple[int, float | timedelta] | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        check_name("queue", self.name)
        if any(mark in self.name for mark in "\x1d\x1e\x1f"):
            raise InvalidInput(f"the queue {self.name!r} contains a control character that is not allowed in it")
        if self.concurrency is not None:
            _check("concurrency", self.concurrency)
        if self.rate is not None:
            if not isinstance(self.rate, tuple) or len(self.rate) != 2:
                raise InvalidInput(f"rate must be a number and seconds, such as (100, 1), not {self.rate!r}")
            _check("the first of rate", self.rate[0])
            seconds = self.rate[1].total_seconds() if isinstance(self.rate[1], timedelta) else self.rate[1]
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
                raise InvalidInput(f"the second of rate must be seconds or a timedelta, not {seconds!r}")
            if not 0.01 <= seconds <= 366 * 86400:
                raise InvalidInput(f"the second of rate must be 0.01 seconds to 366 days, not {seconds!r}")
            object.__setattr__(self, "rate", (self.rate[0], float(seconds)))
        if (
            isinstance(self.priority, bool)
            or not isinstance(self.priority, int)
            or not -32768 <= self.priority <= 32767
        ):
            raise InvalidInput(
                f"priority must be an integer from -32768 to 32767, the least first, not {self.priority!r}"
            )


def _check(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise InvalidInput(f"{what} must be a whole number from 1 to {MOST:,}, not {value!r}")
