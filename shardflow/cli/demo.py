"""`shardflow demo`: the story of `shardflow.demo`, on this terminal."""

from __future__ import annotations

import signal
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..demo.run import Demo, Report
from ..demo.truth import SUMS
from ..errors import UsageError
from .output import ERROR, emit_json, say
from .settings import Command, Settings, json_option, pass_settings


@click.command(cls=Command)
@click.option("--files", type=click.IntRange(10), metavar="N", help="Index only so many files (default: all).")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order of the files and of the kill.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Keep the servers' data, the ledger and the logs in this new directory.",
)
@json_option
@pass_settings
def demo(settings: Settings, files: int | None, seed: int, keep: Path | None, as_json: bool) -> None:
    """Index Python's standard library on three servers while a worker is killed.

    Three Postgres servers and two worker processes are started for it; one workflow per source file reads, parses
    and summarises. One worker is killed on the way, and no other takes its place: the survivor goes on alone. At the
    end the cluster's index is compared with a direct computation; exits with 1 if anything differs.
    """
    settings.log()
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise UsageError(f"{keep} is not empty: name a new directory")
        keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        keep = keep.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=as_json)
    report = Demo(console, limit=files, seed=seed, folder=keep).run()
    if as_json:
        emit_json(report.data())
    else:
        _summary(console, report)
    for line in report.differences[:20]:
        say(f"Error: {line}")
    if len(report.differences) > 20:
        say(f"Error: and {len(report.differences) - 20} differences more")
    if keep is not None:
        say(f"Kept in {keep}: servers, ledger, logs.")
    if report.differences:
        raise SystemExit(ERROR)


def _summary(console: Console, report: Report) -> None:
    made = Table(title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, side in (("", "left"), ("cluster", "right"), ("directly", "right")):
        made.add_column(name, justify="right" if side == "right" else "left")
    made.add_row("files", str(report.files - report.lost), str(report.files))
    for name in (*SUMS, "not valid Python"):
        made.add_row(name, f"{report.cluster[name]:,}", f"{report.direct[name]:,}")
    made.add_row("equal digests", str(report.digests), str(report.files))
    made.add_row("checkpoints", f"{report.checkpoints:,}", f"{3 * report.files:,}")
    made.add_row("lost", str(report.lost), "0")
    made.add_row("steps run past their checkpoint", str(report.past), "0")
    console.print(made)
    seconds = report.seconds
    took = seconds["index"]
    per_shard = ", ".join(f"{name} {count / took:.0f}/s" for name, count in sorted(report.shards.items()))
    again = f"{report.again} of them again after the kill, which no checkpoint forbade"
    rates = f"{report.files} workflows in {took:.1f} s, {report.files / took:.0f}/s ({per_shard})"
    lines = [
        f"{report.starts:,} step starts in the ledger, {again}.",
        f"{rates}; directly, in one process, {seconds['direct']:.1f} s.",
        "All equal." if not report.differences else f"{len(report.differences)} differences.",
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
