"""`shardflow bench throughput`, `latency` and `report`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..bench import results
from ..bench.latency import LatencyOptions, run_latency
from ..bench.throughput import Progress as Report
from ..bench.throughput import ThroughputOptions, run_throughput
from ..bench.workload import LEAST_PAYLOAD, LEAST_RESULT
from .bench_report import report as report_command
from .output import ERROR, emit_json, say, table
from .settings import Group, Settings, json_option, pass_settings

_THROUGHPUT = {
    "workflows_per_s": "workflows/s, drained",
    "overlapped_workflows_per_s": "workflows/s, submitted meanwhile",
    "steps_per_s": "steps/s",
    "submit_per_s": "submits/s",
    "floor_workflows_per_s": "floor, workflows/s",
    "ratio_to_floor": "ratio to the floor",
    "tight_floor_workflows_per_s": "floor without psycopg, workflows/s",
    "ratio_to_tight_floor": "ratio to that",
    "worker_cpu_us_per_workflow": "worker CPU, µs a workflow",
    "postgres_cpu_us_per_workflow": "Postgres CPU, µs a workflow",
    "submit_client_cpu_us_per_workflow": "submit: client CPU, µs a workflow",
    "submit_postgres_cpu_us_per_workflow": "submit: Postgres CPU, µs a workflow",
    "wal_bytes_per_workflow": "WAL bytes a workflow",
    "rows_per_workflow": "rows written a workflow",
    "index_entries_per_workflow": "index entries a workflow",
    "dead_rows_per_workflow": "dead rows a workflow",
    "retention_workflows_per_s": "with retention, workflows/s, drained",
    "ratio_with_retention": "ratio to that without",
    "retention_deleted_per_workflow": "deleted by then, of one",
    "worker_max_rss_mb": "worker's largest size, MB",
    "lost": "lost",
    "duplicated": "duplicated",
    "wrong": "wrong results",
    "left": "left behind in the queues",
}
_LATENCY = {
    "p50_ms": "median, ms",
    "p90_ms": "90 %, ms",
    "p99_ms": "99 %, ms",
    "max_ms": "longest, ms",
    "submit_p50_ms": "submit alone: median, ms",
    "submit_p99_ms": "submit alone: 99 %, ms",
    "count": "results",
    "backlog_claimed_per_s": "the backlog, claims/s",
    "errors": "errors",
    "idle_queries_per_s": "idle: queries/s on a shard",
    "idle_worker_cpu_percent": "idle: worker CPU, %",
    "worker_max_rss_mb": "worker's largest size, MB",
}


@click.group(cls=Group)
def bench() -> None:
    """Measure throughput and latency: on embedded servers, or with --config on yours.

    Only the option counts here, not SHARDFLOW_CONFIG or a default file. Each run has schemas of its own
    (shardflow_bench_…, shardflow_floor), which are dropped at its end.
    """


def _shared(command: Any) -> Any:
    """The options of both measurements."""
    for option in (
        json_option,
        click.option(
            "--out",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Also write the figures to this file, for `bench report`.",
        ),
        click.option(
            "--set",
            "server_settings",
            multiple=True,
            metavar="NAME=VALUE",
            help="A Postgres setting of the embedded servers; repeatable.",
        ),
        click.option(
            "--payload",
            type=click.IntRange(LEAST_PAYLOAD),
            default=100,
            show_default=True,
            help="Bytes of each input.",
        ),
        click.option("--concurrency", type=click.IntRange(1), help="Workflows at once in each worker."),
        click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes."),
        click.option("--shards", type=click.IntRange(1), help="Shards (default: 1 embedded, all configured)."),
    ):
        command = option(command)
    return command


bench.add_command(report_command)


@bench.command()
@click.option("--workflows", type=click.IntRange(1), default=20_000, show_default=True, help="How many.")
@click.option("--steps", type=click.IntRange(0, 30_000), default=1, show_default=True, help="Steps of each.")
@click.option(
    "--result",
    type=click.IntRange(LEAST_RESULT),
    help="Bytes of each checkpoint and result (default: the payload's, as the floor writes).",
)
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Runs; medians are reported.")
@click.option("--floor/--no-floor", default=True, help="Also measure the bare loop on the first server.")
@click.option("--overlapped/--no-overlapped", default=True, help="Also submit while the workers drain.")
@click.option(
    "--retention",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Also drain while what ended so long ago is deleted.",
)
@_shared
@pass_settings
def throughput(
    shared: Settings, /, as_json: bool, out: Path | None, server_settings: Sequence[str], **options: Any
) -> None:
    """Workflows a second: all submitted and then drained, and submitted meanwhile.

    Every workflow and checkpoint is looked up afterwards; the exit code is 1 if anything is lost, there twice, or
    wrong.
    """
    shared.log()
    with _progress() as report:
        figures = run_throughput(
            ThroughputOptions(config=_config(shared), settings=_settings(server_settings), **options), report
        )
    _warn(figures)
    _show(figures, _THROUGHPUT, as_json)
    _keep(figures, "throughput", out)
    if not figures["verified"]:
        raise SystemExit(ERROR)


@bench.command()
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=100.0, show_default=True, help="Submits a second."
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="How long.")
@click.option("--steps", type=click.IntRange(0, 30_000), default=1, show_default=True, help="Steps of each.")
@click.option("--even", is_flag=True, help="Submit at even distances instead of random (Poisson) ones.")
@click.option(
    "--idle",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds of idling to measure; 0 for none.",
)
@click.option(
    "--backlog",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Workflows of another queue that drain meanwhile.",
)
@_shared
@pass_settings
def latency(
    shared: Settings, /, as_json: bool, out: Path | None, server_settings: Sequence[str], **options: Any
) -> None:
    """Milliseconds from the submit call to the result in hand, at a fixed rate; and what idling costs."""
    shared.log()
    with _progress() as report:
        figures = run_latency(
            LatencyOptions(config=_config(shared), settings=_settings(server_settings), **options), report
        )
    _show(figures, _LATENCY, as_json)
    _keep(figures, "latency", out)
    if figures["errors"]:
        raise SystemExit(ERROR)


def _config(shared: Settings) -> Path | None:
    return Path(shared.config_file) if shared.config_file else None


def _settings(given: Sequence[str]) -> dict[str, str]:
    settings = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{item!r} is not NAME=VALUE", param_hint="--set")
        settings[name.strip()] = value.strip()
    return settings


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda phase, done, of: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=5) as bar:
        task, last = bar.add_task("starting", total=None), ""

        def report(phase: str, done: int, of: int) -> None:
            nonlocal last
            if phase != last:
                bar.reset(task)
                last = phase
            bar.update(task, description=phase, completed=done, total=of or None)

        yield report


def _warn(figures: Mapping[str, Any]) -> None:
    for reason in dict.fromkeys(run["floor_error"] for run in figures["runs"] if "floor_error" in run):
        say(f"the floor was not measured: {reason}")


def _keep(figures: Mapping[str, Any], benchmark: str, out: Path | None) -> None:
    if out is None:
        return
    try:
        results.write(out, benchmark, results.parts(figures))
    except OSError as error:
        raise click.FileError(str(out), error.strerror) from error


def _show(figures: Mapping[str, Any], rows: Mapping[str, str], as_json: bool) -> None:
    if as_json:
        emit_json(figures)
        return
    options, place = figures["options"], figures["environment"]
    shown = [(title, figures[key]) for key, title in rows.items() if figures.get(key) is not None]
    table(("figure", "value"), [(title, f"{value:,}") for title, value in shown])
    say(
        f"Postgres {place['postgres']}, Python {place['python']}, {place['cpus']} CPUs ({place['cpu_model']});"
        f" {options['shards']} shard(s), {options['workers']} worker(s)"
    )
