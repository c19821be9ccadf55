"""`benchmarks/soak.py` and `benchmarks/horizon.py`: throughput, waiting and sizes over time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .charts import Ink, Line, LinePanel, Lines, Picture, Section, Span, Table
from .files import Result, Unusable
from .words import exact, faults, mappings, number, plural, rough, size, span

#: A line has at most so many points; each is the median of those it stands for.
_POINTS = 240
#: What a sample holds: its name here, its name in the file, and how many of the file's make one here.
_FIELDS = (
    ("minutes", "seconds", 60.0),
    ("rate", "workflows_per_s", 1.0),
    ("p50", "probe_p50_ms", 1.0),
    ("p99", "probe_p99_ms", 1.0),
    ("tables", "table_bytes", 1e6),
    ("indexes", "index_bytes", 1e6),
    ("dead", "dead", 1e3),
    ("memory", "rss_mb", 1.0),
)
_PANELS = (
    ("workflows/s", (("rate", "", Ink.OURS),)),
    ("ms from submit to result, of a probe", (("p50", "half within", Ink.OURS), ("p99", "99 % within", Ink.SECOND))),
    ("size on disk, MB", (("tables", "tables", Ink.OURS), ("indexes", "indexes", Ink.SECOND))),
    ("dead rows, thousands", (("dead", "", Ink.OURS),)),
    ("a worker's resident memory, MB", (("memory", "", Ink.OURS),)),
)

Sample = dict[str, float]


def soak(results: Sequence[Result]) -> Section:
    """A picture for each result."""
    pictures = [_soak(_named("soak", place), result) for place, result in enumerate(results)]
    return Section("Endurance", pictures, results, warnings=_warnings(results))


def horizon(results: Sequence[Result]) -> Section:
    """A picture for each result, with the time shaded in which a transaction was held open."""
    pictures = [_horizon(_named("horizon", place), result) for place, result in enumerate(results)]
    return Section("A transaction held open", pictures, results, warnings=_warnings(results))


def _named(name: str, place: int) -> str:
    return name if place == 0 else f"{name}-{place + 1}"


def _warnings(results: Sequence[Result]) -> list[str]:
    failed = [result.path.name for result in results if result.figures.get("passed") is False]
    return [*faults(results), *(f"{name}: its own verdict is that it failed" for name in failed)]


def _soak(name: str, result: Result) -> Picture:
    samples = _samples(result)
    title = f"{span(samples[-1]['minutes'])} of mixed work"
    if (share := number(result.figures, "last_to_first")) is not None:
        title = f"After {title} throughput is at {exact(share * 100, 0)} %"
        if (growth := number(result.figures, "size_growth")) is not None:
            title += f" of what it was, size on disk at {exact(growth * 100, 0)} %"
        else:
            title += " of what it was"
    note = "throughput: the last tenth against the first; size: the largest of the second half against the first"
    return Picture(name, title, _chart(samples), _table(samples), f"{_note(result)}; {note}; after a warm-up")


def _horizon(name: str, result: Result) -> Picture:
    samples = _samples(result)
    spans = _spans(samples)
    held = number(result.options, "held_minutes")
    if held is None:
        held = sum(each.end - each.start for each in spans)
    title = f"A transaction held open for {span(held)}"
    if (share := number(result.figures, "pinned_to_unpinned")) is not None:
        title = (
            f"With a transaction held open for {span(held)} throughput is {exact(share * 100, 0)} % of that without"
        )
    return Picture(name, title, _chart(samples, spans), _table(samples), _note(result))


def _note(result: Result) -> str:
    options = result.options
    age, workers, payload = (number(options, key) for key in ("age", "workers", "payload"))
    rate = options.get("rate")
    parts = [
        "steps, sleeps, messages, children and a limited queue",
        f"{rough(rate)} submits/s" if isinstance(rate, int | float) else str(rate or ""),
        f"deleted {span(age / 60)} after the end" if age else "",
        plural(workers, "worker") if workers else "",
        f"{exact(payload)} bytes in and out" if payload else "",
    ]
    return "; ".join(part for part in parts if part)


def _samples(result: Result) -> list[Sample]:
    found = []
    for raw in mappings(result.data.get("series")):
        values = {name: (number(raw, key), unit) for name, key, unit in _FIELDS}
        sample = {name: value / unit for name, (value, unit) in values.items() if value is not None}
        if "minutes" in sample and "rate" in sample:
            found.append(sample | ({"pinned": 1.0} if raw.get("pinned") is True else {}))
    if not found:
        raise Unusable("has no series of throughput over time")
    return sorted(found, key=lambda sample: sample["minutes"])


def _spans(samples: Sequence[Sample]) -> list[Span]:
    """The stretches in which the samples say that they are pinned."""
    found: list[Span] = []
    start: float | None = None
    for sample in samples:
        if "pinned" in sample and start is None:
            start = sample["minutes"]
        elif "pinned" not in sample and start is not None:
            found.append(Span(start, sample["minutes"], "a transaction is held open"))
            start = None
    if start is not None:
        found.append(Span(start, samples[-1]["minutes"], "a transaction is held open"))
    return found


def _chart(samples: Sequence[Sample], spans: Sequence[Span] = ()) -> Lines:
    panels = []
    for axis, wanted in _PANELS:
        known = [(key, name, ink) for key, name, ink in wanted if any(key in sample for sample in samples)]
        if known:
            panels.append(LinePanel(axis, [_line(samples, key, name, ink) for key, name, ink in known]))
    return Lines(panels, "minutes", spans=spans)


def _line(samples: Sequence[Sample], key: str, name: str, ink: Ink) -> Line:
    points = [(sample["minutes"], sample[key]) for sample in samples if key in sample]
    each = -(-len(points) // _POINTS)
    groups = [points[first : first + each] for first in range(0, len(points), each)]
    xs = [statistics.median(x for x, _ in group) for group in groups]
    ys = [statistics.median(y for _, y in group) for group in groups]
    return Line(name, xs, ys, ink)


def _table(samples: Sequence[Sample]) -> Table:
    """The tenths of the run: medians of throughput and waiting, the most of all else."""
    columns = {"rate": "workflows/s", "p50": "50 % ms", "p99": "99 % ms", "tables": "tables", "indexes": "indexes"}
    columns |= {"dead": "dead rows", "memory": "worker's MB"}
    known = [key for key in columns if any(key in sample for sample in samples)]
    rows, count = [], min(10, len(samples))
    for part in range(count):
        mine = samples[part * len(samples) // count : (part + 1) * len(samples) // count]
        held = "held open" if sum("pinned" in each for each in mine) * 2 > len(mine) else ""
        cells = [_cell(key, [sample[key] for sample in mine if key in sample]) for key in known]
        rows.append([f"{exact(mine[0]['minutes'], 1)} to {exact(mine[-1]['minutes'], 1)}", held, *cells])
    headings = ["minutes", "transaction", *(columns[key] for key in known)]
    if any(row[1] for row in rows):
        return Table(headings, rows, texts=(0, 1))
    return Table([headings[0], *headings[2:]], [[row[0], *row[2:]] for row in rows])


def _cell(key: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    if key in ("tables", "indexes"):
        return size(max(values) * 1e6)
    return exact(max(values) * 1e3, 0) if key == "dead" else rough(_of(key, values))


def _of(key: str, values: Sequence[float]) -> float:
    return max(values) if key == "memory" else statistics.median(values)
