"""`benchmarks/scaleout.py`: throughput by the number of shards, beside a straight line through the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import Ink, Line, LinePanel, Lines, Picture, Section, Table
from .files import Result, Unusable
from .words import exact, faults, mappings, need, number, plural, rough, steps_of, whole

_LOADS = {"drained": "all submitted, then drained", "open": "submitted at a steady rate"}
_COLUMNS = (
    ("offered_per_s", "offered/s"),
    ("workflows_per_s", "workflows/s"),
    ("efficiency_percent", "of linear %"),
    ("busy_efficiency_percent", "while all are busy %"),
    ("of_apart_percent", "of clusters apart %"),
    ("result_p50_ms", "result 50 % ms"),
    ("result_p99_ms", "99 % ms"),
    ("server_cpu_percent", "a server's CPU %"),
    ("workers_cpu_percent", "workers' CPU %"),
    ("machine_idle_percent", "machine idle %"),
    ("lost", "lost"),
    ("duplicated", "twice"),
    ("wrong", "wrong"),
)


def section(results: Sequence[Result]) -> Section:
    """A picture for each load of each result; the drained one first."""
    pictures: list[Picture] = []
    for result in results:
        series = result.data.get("series")
        loads = series if isinstance(series, dict) else {"drained": series}
        # Clusters apart are something to compare with, which the table of the drained ones does.
        for load in sorted(loads.keys() - {"apart"}, key=lambda load: (load != "drained", load)):
            points = mappings(loads[load])
            if points:
                name = "scaleout" if load == "drained" else f"scaleout-{load}"
                if any(picture.name == name for picture in pictures):
                    name += f"-{len(pictures) + 1}"
                pictures.append(_picture(name, result, load, sorted(points, key=lambda point: need(point, "shards"))))
    if not pictures:
        raise Unusable("has no series")
    bad = [
        f"{result.path.name}: a run has {key} {exact(count)}"
        for result in results
        for run in result.runs
        for key in ("lost", "duplicated", "wrong", "left")
        if (count := number(run, key))
    ]
    return Section("Scale-out", pictures, results, warnings=[*faults(results), *dict.fromkeys(bad)])


def _picture(name: str, result: Result, load: str, points: Sequence[Mapping[str, Any]]) -> Picture:
    shards = [need(point, "shards") for point in points]
    rates = [need(point, "workflows_per_s") for point in points]
    each = rates[0] / shards[0]
    linear = [count * each for count in shards]
    shares = [rate / straight * 100 for rate, straight in zip(rates, linear, strict=True)]
    low = [number(point, "least_per_s") or rate for point, rate in zip(points, rates, strict=True)]
    high = [number(point, "most_per_s") or rate for point, rate in zip(points, rates, strict=True)]
    ideal = Line("linear", [0.0, *shards], [0.0, *linear], Ink.REFERENCE, dashed=True)
    offered = [number(point, "offered_per_s") for point in points]
    if load != "drained" and all(offered):
        # What is submitted at a given rate cannot show more than that rate.
        ideal = Line("submitted", shards, [rate or 0.0 for rate in offered], Ink.REFERENCE, dashed=True)
        shares = [rate / (wanted or rate) * 100 for rate, wanted in zip(rates, offered, strict=True)]
    labels = [f"{rough(rate)} ({share:.0f} %)" for rate, share in zip(rates[1:], shares[1:], strict=True)]
    lines = [
        ideal,
        Line(
            f"shardflow\n{labels[-1] if labels else rough(rates[0])}",
            shards,
            rates,
            Ink.OURS,
            low,
            high,
            points=True,
            labels=[rough(rates[0]), *labels],
        ),
    ]
    if load != "drained":
        title = f"{_many(shards[-1])} take {rough(rates[-1])} workflows a second at a steady rate"
    elif len(points) > 1:
        title = (
            f"{_many(shards[-1])} do {exact(rates[-1] / rates[0], 1)} times the work of"
            f" {'one' if shards[0] == 1 else exact(shards[0])}: {shares[-1]:.0f} % of linear"
        )
    else:
        title = f"{_many(shards[-1])} do {rough(rates[-1])} workflows a second"
    chart = Lines([LinePanel("workflows/s", lines)], "shards", shards)
    return Picture(name, title, chart, _table(points), _note(result, load))


def _many(count: float) -> str:
    return "One shard" if count == 1 else plural(count, "shard")


def _note(result: Result, load: str) -> str:
    options = result.options
    throttle = str(options.get("throttle") or "")
    share = number(options, "share_of_a_core")
    parts = [_LOADS.get(load, load), steps_of(whole(options, "steps", 1))]
    if share:
        parts.append(f"each server held to {exact(share * 100)} % of a core ({throttle})")
    elif throttle and throttle != "none":
        parts.append(f"servers slowed by {throttle}")
    if runs := whole(options, "runs"):
        parts.append(f"medians of {runs} runs, whiskers their range" if runs > 1 else "one run")
    return "; ".join(parts)


def _table(points: Sequence[Mapping[str, Any]]) -> Table:
    columns = [(key, title) for key, title in _COLUMNS if any(number(point, key) is not None for point in points)]
    rows = [[exact(need(point, "shards")), *(exact(number(point, key), 1) for key, _ in columns)] for point in points]
    return Table(["shards", *(title for _, title in columns)], rows)
