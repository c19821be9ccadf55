"""When a failed step or workflow is tried again, and after how long.

The waits grow exponentially up to a cap, and jitter only ever shortens them: no wait exceeds `maximum`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shardflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Retry:
    """How often, and at which distance, something that fails is tried.

    `attempts`: how many tries in all, the first included (1: never again). `initial`: seconds to wait after
    the first failure. `factor`: by how much each wait is longer than the one before, at least 1. `maximum`:
    seconds, the longest wait. `jitter`: 0 to 1, the share of a wait that is random. `stop_on`: classes of
    exceptions that are never tried again. Raises `InvalidInput` for anything else.

    Source of exponential backoff with jitter: M. Brooker, "Exponential Backoff And Jitter" (AWS, 2015).
    """

    attempts: int = 3
    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.2
    stop_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not _is_int(self.attempts) or self.attempts < 1:
            raise InvalidInput(
                f"Retry.attempts, the first try included, must be an integer >= 1, not {self.attempts!r}"
            )
        _check_number("initial", self.initial, 0.0, math.inf, "seconds, 0 or more")
        _check_number("factor", self.factor, 1.0, math.inf, "a number of at least 1")
        _check_number("maximum", self.maximum, 0.0, math.inf, "seconds, 0 or more")
        _check_number("jitter", self.jitter, 0.0, 1.0, "a number from 0 to 1")
        if self.maximum < self.initial:
            raise InvalidInput(f"Retry.maximum ({self.maximum:g} s) is less than Retry.initial ({self.initial:g} s)")
        if not _is_tuple_of_exceptions(self.stop_on):
            raise InvalidInput(
                f"Retry.stop_on must be a tuple of exception classes: (ValueError,), not {self.stop_on!r}"
            )

    def delay(self, failed_attempts: int, random: float) -> float:
        """Seconds to wait after `failed_attempts` (1 or more) tries have failed.

        `random` is uniform in [0, 1). The result lies in the interval from `(1 - jitter) * d` to `d`, where d
        is `min(maximum, initial * factor ** (failed_attempts - 1))`.
        """
        try:
            full = min(self.maximum, self.initial * self.factor ** (failed_attempts - 1))
        except OverflowError:
            full = self.maximum if self.initial else 0.0
        return full * (1.0 - self.jitter * random)

    def may_retry(self, failed_attempts: int, error: BaseException) -> bool:
        """Whether to try again after `failed_attempts` (1 or more) tries, the last of which ended in `error`.

        Never for a `stop_on` exception, nor for one that is no `Exception` (a cancellation, an exit).
        """
        return (
            failed_attempts < self.attempts and isinstance(error, Exception) and not isinstance(error, self.stop_on)
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_number(name: str, value: object, least: float, most: float, wanted: str) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not least <= value <= most
    ):
        raise InvalidInput(f"Retry.{name} must be {wanted}, not {value!r}")


def _is_tuple_of_exceptions(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(c, type) and issubclass(c, BaseException) for c in value)
