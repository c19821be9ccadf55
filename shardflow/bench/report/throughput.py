"""`bench throughput`: workflows a second by steps, beside the bare loops over the same tables."""

from __future__ import annotations

from collections.abc import Sequence

from .charts import Bar, BarPanel, Bars, Ink, Picture, Row, Section, Table
from .files import Result
from .words import between, exact, faults, listed, need, number, numbers, plural, ratio, reach, rough, steps_of, whole

#: Which figure, its row, the note under it, its colour.
_ROWS = (
    ("workflows_per_s", Row("shardflow", "all submitted, then drained"), Ink.OURS),
    ("retention_workflows_per_s", Row("shardflow, deleting", "drained while retention deletes"), Ink.OURS),
    ("overlapped_workflows_per_s", Row("shardflow, submitting", "submitted while workers drain"), Ink.OURS),
    ("floor_workflows_per_s", Row("bare loop", "psycopg, the same tables, no framework"), Ink.REFERENCE),
    ("tight_floor_workflows_per_s", Row("tightest loop", "libpq, two transactions in flight"), Ink.REFERENCE),
)
_COLUMNS = (
    ("submit_per_s", "submits/s"),
    ("worker_cpu_us_per_workflow", "worker CPU µs"),
    ("postgres_cpu_us_per_workflow", "Postgres CPU µs"),
    ("wal_bytes_per_workflow", "WAL bytes"),
    ("rows_per_workflow", "rows"),
    ("index_entries_per_workflow", "index entries"),
    ("dead_rows_per_workflow", "dead rows"),
)
_USUAL_PAYLOAD = 100


def section(results: Sequence[Result]) -> Section:
    """One picture for each situation (workers, shards, payload …), with a panel for each number of steps."""
    for result in results:
        need(result.figures, "workflows_per_s")
    groups: dict[tuple[int, ...], dict[int, Result]] = {}
    for result in sorted(results, key=lambda result: result.time):
        wanted = [whole(result.options, name) for name in ("workers", "shards", "payload", "concurrency")]
        key = (1 if result.options.get("retention") else 0, *wanted)
        groups.setdefault(key, {})[whole(result.options, "steps", 1)] = result
    pictures: list[Picture] = []
    for order, (key, group) in enumerate(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))):
        by_steps = dict(sorted(group.items()))
        name = "throughput" if order == 0 else _named(key, [picture.name for picture in pictures])
        pictures.append(_picture(name, _situation(key), by_steps))
    return Section("Throughput", pictures, results, warnings=faults(results))


def _named(key: tuple[int, ...], taken: Sequence[str]) -> str:
    """A picture's name by what sets it apart from the usual one, or else by its place."""
    retention, _, _, payload, _ = key
    parts = [f"{payload}-bytes" if payload not in (0, _USUAL_PAYLOAD) else "", "retention" if retention else ""]
    name = "-".join(["throughput", *filter(None, parts)])
    return f"throughput-{len(taken) + 1}" if name == "throughput" or name in taken else name


def _situation(key: tuple[int, ...]) -> str:
    retention, workers, shards, payload, concurrency = key
    parts = [plural(workers, "worker process").replace("processs", "processes") if workers else ""]
    parts.append(plural(shards, "shard") if shards else "")
    parts.append(f"{exact(payload)} bytes in and out" if payload else "")
    parts.append(f"{exact(concurrency)} workflows at once" if concurrency else "")
    parts.append("what has ended is deleted as soon as it may be" if retention else "")
    return ", ".join(part for part in parts if part)


def _picture(name: str, situation: str, group: dict[int, Result]) -> Picture:
    shown = [entry for entry in _ROWS if any(number(each.figures, entry[0]) for each in group.values())]
    panels = [
        BarPanel(steps_of(steps), [_bar(result, key, ink) for key, _, ink in shown])
        for steps, result in group.items()
    ]
    runs = max(len(result.runs) for result in group.values())
    how = f"medians of {runs} runs, whiskers their range" if runs > 1 else "one run"
    return Picture(
        name,
        _title(group),
        Bars([row for _, row, _ in shown], panels, "workflows/s", shared=True),
        _table(group),
        "; ".join(part for part in (situation, how) if part),
    )


def _bar(result: Result, key: str, ink: Ink) -> Bar:
    value = number(result.figures, key)
    if value is None:
        return Bar(None, "not measured")
    low, high = reach(numbers(result.runs, key))
    return Bar(value, rough(value), low, high, ink)


def _title(group: dict[int, Result]) -> str:
    deleting = [share for each in group.values() if (share := number(each.figures, "ratio_with_retention"))]
    if deleting:
        shares = listed([ratio(share) for share in deleting])
        return f"While retention deletes what has ended, throughput is {shares} of that without"
    ratios = {steps: number(result.figures, "ratio_to_floor") for steps, result in group.items()}
    known = {steps: share for steps, share in ratios.items() if share is not None}
    if known:
        shares = listed([ratio(share) for share in known.values()])
        return f"shardflow does {shares} of what a bare loop does, with {_with([*known])}"
    rates = listed([rough(number(result.figures, "workflows_per_s")) for result in group.values()])
    return f"shardflow does {rates} workflows a second, with {_with([*group])}"


def _with(steps: list[int]) -> str:
    if len(steps) == 1:
        return steps_of(steps[0])
    return f"{listed([str(each) for each in steps])} steps"


def _table(group: dict[int, Result]) -> Table:
    columns = ["steps", "workflows/s (runs)", "submitting", "bare loop", "ratio", "tightest loop", "ratio"]
    rows = []
    for steps, result in group.items():
        figures = result.figures
        low, high = reach(numbers(result.runs, "workflows_per_s"))
        rows.append(
            [
                str(steps),
                rough(number(figures, "workflows_per_s")) + between(low, high),
                rough(number(figures, "overlapped_workflows_per_s")),
                rough(number(figures, "floor_workflows_per_s")),
                ratio(number(figures, "ratio_to_floor")),
                rough(number(figures, "tight_floor_workflows_per_s")),
                ratio(number(figures, "ratio_to_tight_floor")),
                *(rough(number(figures, key)) for key, _ in _COLUMNS),
            ]
        )
    return Table([*columns, *(title for _, title in _COLUMNS)], rows)
