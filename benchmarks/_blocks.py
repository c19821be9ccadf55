"""Parts of the documentation that are made from result files, by name. What was not measured is left out."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _promises import Results
from _promises import table as promises

from shardflow.bench.report.charts import Picture
from shardflow.bench.report.words import exact, listed, mappings, need, number, plural, ratio, rough, span, whole

#: Which result files a picture shows.
PICTURES: Mapping[str, Sequence[str]] = {
    "throughput": ("throughput-0", "throughput-1", "throughput-3"),
    "throughput-4096-bytes": ("throughput-4096-0", "throughput-4096-1", "throughput-4096-3"),
    "throughput-retention": ("throughput-retention",),
    "latency": ("latency-10", "latency-100", "latency-500", "latency-1000"),
    "latency-backlog": ("latency-backlog",),
    "compare": ("compare",),
    "compare-3-servers": ("compare-shards",),
    "scaleout": ("scaleout",),
    "soak": ("soak",),
    "horizon": ("horizon",),
    "million": ("million",),
}
_STEPS = (0, 1, 3)
_NONE = "–"

Block = Callable[[Results], str]


def picture(name: str, pictures: Mapping[str, Picture], folder: str, results: Results) -> str:
    """The picture, whose finding is its text, and the commands that measured it."""
    if name not in pictures:
        return ""
    commands = "\n".join(results[each].command for each in PICTURES[name] if each in results)
    title = pictures[name].title.replace("[", "(").replace("]", ")")
    return f"![{title}]({folder}/{name}.png)\n\n```sh\n{commands}\n```"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that say nothing."""
    said = [place for place in range(len(columns)) if any(row[place] != _NONE for row in rows)]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line[place] for place in said)} |" for line in lines) if rows else ""


def paragraph(*sentences: str) -> str:
    """The sentences in lines of a document's length."""
    return "\n".join(textwrap.wrap(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False))


def _throughput(results: Results, before: str) -> list[tuple[int, Mapping[str, Any]]]:
    """Steps and figures."""
    return [(steps, results[f"{before}{steps}"].figures) for steps in _STEPS if f"{before}{steps}" in results]


def _with(figures: Mapping[str, Any], key: str, unit: str) -> str:
    value = number(figures, key)
    return _NONE if value is None else f"{rough(value)}{unit}"


def throughput(results: Results) -> str:
    """The table of the README, and how fast submits are."""
    found = _throughput(results, "throughput-")
    if not found:
        return ""
    first = results[f"throughput-{found[0][0]}"]
    columns = ("steps", "workflows/s", "checkpoints/s", "of the bare loop", "worker CPU", "Postgres CPU")
    rows = [
        [
            str(steps),
            rough(number(figures, "workflows_per_s")),
            rough(number(figures, "steps_per_s")) if steps else _NONE,
            ratio(number(figures, "ratio_to_floor")),
            _with(figures, "worker_cpu_us_per_workflow", " µs"),
            _with(figures, "postgres_cpu_us_per_workflow", " µs"),
        ]
        for steps, figures in found
    ]
    where = f"Postgres {str(first.environment.get('postgres')).split('.')[0]}"
    cpus = plural(number(first.environment, "cpus") or 0, "virtual core")
    tight = listed([ratio(number(figures, "ratio_to_tight_floor")) for _, figures in found])
    submits = rough(statistics.median(need(figures, "submit_per_s") for _, figures in found))
    intro = paragraph(
        f"On {cpus} shared by one worker process and one {where}, durable commits, 100 bytes in and out,",
        f"medians of {whole(first.options, 'runs', 1)}:",
    )
    rest = paragraph(
        f"`submit_many` takes {submits} a second. The bare loop is psycopg's pipeline with Python lists and no",
        "framework (`benchmarks/floor.py`); against the tightest loop that we could write in Python (libpq calls,",
        f"arrays encoded by hand, two transactions in flight) it is {tight}.",
    )
    return f"{intro}\n\n{table(columns, rows)}\n\n{rest}"


def costs(before: str, intro: str) -> Block:
    """What a workflow costs on one shard, of the results whose names begin so."""

    def made(results: Results) -> str:
        columns = [
            "steps",
            "workflows/s",
            "of the bare loop",
            "worker CPU",
            "Postgres CPU, drain",
            "Postgres CPU, submit",
        ]
        columns += ["WAL", "rows", "index entries", "dead rows"]
        rows = [
            [
                str(steps),
                rough(number(figures, "workflows_per_s")),
                ratio(number(figures, "ratio_to_floor")),
                _with(figures, "worker_cpu_us_per_workflow", " µs"),
                _with(figures, "postgres_cpu_us_per_workflow", " µs"),
                _with(figures, "submit_postgres_cpu_us_per_workflow", " µs"),
                exact(number(figures, "wal_bytes_per_workflow"), 0) + " B",
                *(exact(number(figures, f"{key}_per_workflow"), 1) for key in ("rows", "index_entries", "dead_rows")),
            ]
            for steps, figures in _throughput(results, before)
        ]
        return f"{intro}\n\n{table(columns, rows)}" if rows else ""

    return made


def latency(results: Results) -> str:
    """In two sentences."""
    parts = []
    if "latency-100" in results:
        p50, p99 = (rough(need(results["latency-100"].figures, key)) for key in ("p50_ms", "p99_ms"))
        parts.append(
            f"At 100 submits a second, one step, half of the results are in hand {p50} ms after the submit call, and"
            f" 99 % after {p99} ms."
        )
    if "latency-backlog" in results:
        figures, options = results["latency-backlog"].figures, results["latency-backlog"].options
        parts.append(
            f"Beside a backlog of {exact(number(options, 'backlog'))} in another queue, which drains meanwhile at"
            f" {rough(number(figures, 'backlog_claimed_per_s'))} a second, half after"
            f" {rough(number(figures, 'p50_ms'))} and 99 % after {rough(number(figures, 'p99_ms'))} ms."
        )
    return paragraph(*parts)


def latencies(results: Results) -> str:
    """A table over the rates."""
    names = [f"latency-{rate}" for rate in (10, 100, 500, 1000)]
    rows = []
    for name in (*names, "latency-backlog"):
        if name in results:
            options, figures = results[name].options, results[name].figures
            what = rough(number(options, "rate"))
            if backlog := number(options, "backlog"):
                what += f", beside a backlog of {exact(backlog)}"
            keys = ("p50_ms", "p90_ms", "p99_ms", "max_ms", "submit_p50_ms", "count")
            rows.append([what, *(rough(number(figures, key)) for key in keys)])
    return table(("submits/s", "50 %, ms", "90 %", "99 %", "longest", "the submit alone, 50 %", "measured"), rows)


def idle(results: Results) -> str:
    """What a worker with nothing to do costs, and its size."""
    parts = []
    if "latency-100" in results:
        figures = results["latency-100"].figures
        queries, cpu = (exact(number(figures, f"idle_{key}"), 1) for key in ("queries_per_s", "worker_cpu_percent"))
        parts.append(
            f"An idle worker asks a shard {queries} queries a second, heartbeat and rebalancer included, and takes"
            f" {cpu} % of a core."
        )
    if "sleepers" in results:
        found = results["sleepers"]
        count = whole(found.options, "count") or whole(found.figures, "count")
        kinds = [each for each in found.figures.values() if isinstance(each, dict) and "rss_mb_at_all" in each]
        few, many = (rough(max(need(each, f"rss_mb_at_{key}") for each in kinds)) for key in ("a_hundredth", "all"))
        parts.append(
            f"A worker's resident size is {few} MB with {exact(count / 100)} workflows suspended, and {many} MB with"
            f" {exact(count)}."
        )
    return paragraph(*parts)


def scaleout(results: Results) -> str:
    """A table over the shards."""
    series = results["scaleout"].data.get("series") if "scaleout" in results else None
    points = mappings(series.get("drained")) if isinstance(series, dict) else []
    columns = (
        "shards",
        "workflows/s",
        "of linear",
        "while all are busy",
        "a server's CPU, µs a workflow",
        "machine idle",
    )
    rows = [
        [
            exact(need(each, "shards")),
            rough(number(each, "workflows_per_s")),
            f"{exact(number(each, 'efficiency_percent'), 0)} %",
            f"{exact(number(each, 'busy_efficiency_percent'), 0)} %",
            rough(number(each, "server_cpu_us_per_workflow")),
            f"{exact(number(each, 'machine_idle_percent'), 0)} %",
        ]
        for each in points
    ]
    return table(columns, rows)


def retention(results: Results) -> str:
    """Throughput with it and without."""
    if "throughput-retention" not in results:
        return ""
    figures, options = results["throughput-retention"].figures, results["throughput-retention"].options
    deleted = (number(figures, "retention_deleted_per_workflow") or 0) * 100
    return paragraph(
        f"Drained while what ended {exact(number(options, 'retention'))} s ago is deleted:",
        f"{rough(number(figures, 'retention_workflows_per_s'))} workflows a second,",
        f"{ratio(number(figures, 'ratio_with_retention'))} of the",
        f"{rough(number(figures, 'workflows_per_s'))} without;",
        f"{exact(deleted, 0)} % of them were deleted by the end.",
    )


def horizon(results: Results) -> str:
    """In a sentence."""
    if "horizon" not in results:
        return ""
    figures, options = results["horizon"].figures, results["horizon"].options
    return paragraph(
        f"Held open for {span(number(options, 'held_minutes') or 0)}:",
        f"{rough(number(figures, 'pinned_per_s'))} mixed workflows a second beside it,",
        f"{rough(number(figures, 'unpinned_per_s'))} before ({ratio(number(figures, 'pinned_to_unpinned'))};",
        f"{ratio(number(figures, 'pinned_last_fifth_to_unpinned'))} in the last fifth).",
    )


def soak(results: Results) -> str:
    """In a sentence."""
    if "soak" not in results:
        return ""
    figures, options = results["soak"].figures, results["soak"].options
    return paragraph(
        f"{span(number(options, 'minutes') or 0)} of mixed work with retention on:",
        f"{rough(number(figures, 'workflows_per_s'))} workflows a second,",
        f"{exact(number(figures, 'submitted'))} in all, {exact(number(figures, 'lost'))} lost;",
        f"the last tenth at {ratio(number(figures, 'last_to_first'))} of the",
        f"first, size on disk in the second half {ratio(number(figures, 'size_growth'))} of that in the first, the",
        f"worker's memory {rough(number(figures, 'rss_mb_first'))} MB at the beginning and",
        f"{rough(number(figures, 'rss_mb_last'))} MB at the end.",
    )


def arithmetic(results: Results) -> str:
    """The lines of a large cluster that follow from what a workflow of one step costs."""
    if "throughput-1" not in results:
        return ""
    figures = results["throughput-1"].figures
    server = need(figures, "postgres_cpu_us_per_workflow") + need(figures, "submit_postgres_cpu_us_per_workflow")
    wal, worker = need(figures, "wal_bytes_per_workflow"), need(figures, "worker_cpu_us_per_workflow")
    each, all_of_them = rough(1e6 / server), rough(100 / server)
    capacity = (
        f"{rough(server)} µs of Postgres to submit and drain one: with one core for each server {each} a second"
    )
    processes = f"{rough(worker)} µs of Python: 10,000 a second on each of 100 shards keep {rough(worker)} cores busy"
    rows = [
        ("capacity", f"{capacity} each, {all_of_them} million for 100"),
        ("WAL", f"{exact(wal, 0)} bytes: at 10,000 a second and shard {rough(wal / 100)} MB a second and server"),
        ("worker processes", f"{processes}, {rough(worker * 1.5)} processes at two thirds of a core each"),
    ]
    return table(("of workflows with one step", "how much"), rows)


def promised(results: Results) -> str:
    """What must hold, and what was measured."""
    return table(("what", "must be", "is", "kept"), promises(results))


BLOCKS: Mapping[str, Block] = {
    "throughput": throughput,
    "costs": costs("throughput-", "A workflow, with 100 bytes in and out:"),
    "payloads": costs("throughput-4096-", "With 4 KiB of input, of each checkpoint and of the result:"),
    "latency": latency,
    "latencies": latencies,
    "idle": idle,
    "scaleout": scaleout,
    "retention": retention,
    "horizon": horizon,
    "soak": soak,
    "arithmetic": arithmetic,
    "promises": promised,
}
