"""Numbers and circumstances in words, and figures out of results whatever else is in them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .files import Result, Unusable

#: What a benchmark counts that must be zero.
FAULTS = {
    "lost": "lost",
    "duplicated": "there twice",
    "wrong": "wrong",
    "failed": "failed",
    "left": "left behind",
    "left_over": "left over",
    "errors": "errors",
}
_NONE = "–"


def number(figures: Mapping[str, Any], *keys: str) -> float | None:
    """The first of these figures that is a number; None without any."""
    for key in keys:
        value = figures.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def need(figures: Mapping[str, Any], *keys: str) -> float:
    """The same. Raises Unusable without any."""
    value = number(figures, *keys)
    if value is None:
        raise Unusable(f"has no figure {' or '.join(keys)}")
    return value


def whole(figures: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A figure as a whole number."""
    value = number(figures, key)
    return default if value is None else round(value)


def numbers(runs: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """This figure of all runs that have it."""
    return [value for run in runs if (value := number(run, key)) is not None]


def reach(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The lowest and the highest of several; nothing of less than two."""
    return (min(values), max(values)) if len(values) > 1 else (None, None)


def median(values: Sequence[float]) -> float | None:
    """The median; None of none."""
    return statistics.median(values) if values else None


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """The objects in a list; nothing of anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


# -- as text


def rough(value: float | None) -> str:
    """Three significant digits, with separators: 27,819 is "27,800"."""
    if value is None:
        return _NONE
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    shown = round(value, digits)
    return f"{shown:,.0f}" if digits <= 0 else f"{shown:,.{digits}f}".rstrip("0").rstrip(".")


def ratio(value: float | None) -> str:
    """A ratio to two decimals."""
    return _NONE if value is None else f"{value:.2f}"


def exact(value: float | None, digits: int = 2) -> str:
    """The number with separators and at most so many decimals."""
    if value is None:
        return _NONE
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def between(low: float | None, high: float | None) -> str:
    """A range behind a figure; empty without one."""
    return f" ({rough(low)} to {rough(high)})" if low is not None and high is not None and high > low else ""


def plural(count: float, what: str) -> str:
    """ "1 shard", "8 shards"."""
    return f"{exact(count)} {what}{'' if count == 1 else 's'}"


def steps_of(count: int) -> str:
    """How many steps, as it stands over bars."""
    return "no steps" if count == 0 else plural(count, "step")


def listed(items: Sequence[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def span(minutes: float) -> str:
    """A length of time: "40 seconds", "5 minutes", "2 hours"."""
    if minutes < 2:
        return plural(round(minutes * 60), "second")
    return plural(round(minutes), "minute") if minutes < 120 else plural(round(minutes / 60, 1), "hour")


def size(count: float | None) -> str:
    """Bytes in the unit that fits."""
    if count is None:
        return _NONE
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1000:
            return f"{rough(count)} {unit}"
        count /= 1000
    return f"{rough(count)} GB"


def machine(result: Result) -> str:
    """The machine and the versions, in one line."""
    place = result.environment
    cpus = number(place, "cpus")
    model = str(place.get("cpu_model") or "").replace("(R)", "").replace("(TM)", "")
    parts = [
        (plural(cpus, "CPU") + (f" ({model})" if model else "")) if cpus else None,
        f"Postgres {place['postgres']}" if place.get("postgres") else None,
        f"Python {place['python']}" if place.get("python") else None,
        str(place["system"]) if place.get("system") else None,
    ]
    return ", ".join(part for part in parts if part)


def durability(result: Result) -> str:
    """Whether commits were durable; empty where nobody says."""
    settings = result.environment.get("postgres_settings")
    if not isinstance(settings, dict) or not settings:
        return ""
    on = settings.get("fsync") == "on" and settings.get("synchronous_commit") in ("on", "remote_apply")
    return "durable commits" if on else "commits NOT durable"


def faults(results: Iterable[Result]) -> list[str]:
    """A warning for each result that says that something went wrong."""
    found = []
    for result in results:
        counts = {name: number(result.figures, key) for key, name in FAULTS.items()}
        bad = [f"{exact(count)} {name}" for name, count in counts.items() if count]
        if bad or result.figures.get("verified") is False:
            found.append(f"{result.path.name}: {', '.join(bad) or 'not verified'}")
    return found
