"""`shardflow worker`: run workers, and see which ones run."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping

import click

from ..core.fleet import WorkerRow
from ..core.lanes import said
from ..storage import leases, registry
from ..storage.shard import Conn, Shard
from .ask import ask_all
from .loading import load_app
from .output import emit_json, table
from .serve import Options, serve
from .settings import Group, Settings, chosen_shards, json_option, pass_settings
from .supervisor import Supervisor


@click.group(cls=Group)
def worker() -> None:
    """Run workers, and see which ones run."""


@worker.command()
@click.argument("target", metavar="MODULE:ATTR")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    metavar="N",
    help="Workflows at once in a process (default: 1000, or 50 where some are plain `def`).",
)
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Serve only this one; repeatable.")
@click.option(
    "--shard",
    "shards",
    multiple=True,
    metavar="NAME",
    help="Serve this one, and no others than those named so; repeatable (default: those that it is wanted on).",
)
@click.option("--label", "labels", multiple=True, metavar="NAME", help="For shards that ask for it; repeatable.")
@click.option("--max-leases", type=click.IntRange(1), metavar="N", help="Serve at most so many shards (default: 64).")
@click.option("--code-version", metavar="TEXT", help="The app's, shown by `worker list`.")
@click.option("--name", metavar="NAME", help="Shown in the leases (default: host, process id and a number).")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long steps may go on after SIGTERM; what has not ended then goes on elsewhere.",
)
@click.option("--supervisor-fd", type=int, hidden=True)
@pass_settings
def run(
    settings: Settings,
    target: str,
    concurrency: int | None,
    processes: int,
    queues: tuple[str, ...],
    shards: tuple[str, ...],
    labels: tuple[str, ...],
    max_leases: int | None,
    code_version: str | None,
    name: str | None,
    grace: float,
    supervisor_fd: int | None,
) -> None:
    """Run the workflows of the app MODULE:ATTR, such as shop:app, until told to stop.

    SIGTERM or SIGINT drains: nothing more is claimed, steps end, the rest is handed back at a checkpoint. A second
    one leaves at once, as a crash would. With --processes a process that dies is started again.
    """
    settings.log(server=True)
    config = settings.config()
    chosen_shards(config, shards)
    options = Options(concurrency, queues, shards, name, grace, supervisor_fd, labels, max_leases, code_version or "")
    if processes == 1:
        serve(config, lambda: load_app(target), options)
    if name is not None:
        raise click.UsageError("--name is for one process: with --processes each is named by host and process id")
    raise SystemExit(supervise(settings, target, options, processes))


def supervise(settings: Settings, target: str, options: Options, count: int) -> int:
    """Runs `count` worker processes, which log like this one, until told to stop; answers the exit code.

    Arguments: `settings`, which name the configuration's file too; `target`, as MODULE:ATTR; `options`, of each
    process; `count`.
    """
    words = ["worker", "run", "--config", str(settings.path()), "--grace", str(options.grace)]
    words += ["--log-format", settings.log_format] if settings.log_format else []
    words += ["--log-level", settings.log_level] if settings.log_level else []
    words += ["--verbose"] * settings.verbose
    words += [] if options.concurrency is None else ["--concurrency", str(options.concurrency)]
    words += [word for queue in options.queues for word in ("--queue", queue)]
    words += [word for shard in options.shards for word in ("--shard", shard)]
    words += [word for label in options.labels for word in ("--label", label)]
    words += [] if options.max_leases is None else ["--max-leases", str(options.max_leases)]
    words += ["--code-version", options.code_version] if options.code_version else []

    def command(pipe: int) -> list[str]:
        return [sys.executable, "-m", "shardflow.cli", *words, "--supervisor-fd", str(pipe), "--", target]

    async def run() -> int:
        return await Supervisor(command, count, grace=options.grace).run()

    return asyncio.run(run())


@worker.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show every worker: how it is, which shards it serves, aims at and is wanted on.

    States: up; draining; late (it has missed heartbeats); gone (its session is closed, or its time is over);
    unregistered (it holds a lease, and its entry cannot be read now).
    """
    settings.log()
    answers = ask_all(settings.config(), _ask)
    workers = _workers(answers.values)
    if as_json:
        emit_json({"workers": workers, "unreachable": answers.unreachable})
    else:
        columns = (
            "worker",
            "state",
            "serves",
            "aims",
            "queues",
            "running",
            "capacity",
            "claimed",
            "code_version",
            "home",
        )
        table(columns, [[w[column] if w[column] != [] else None for column in columns] for w in workers])
    raise SystemExit(answers.report())


async def _ask(shard: Shard, conn: Conn) -> tuple[list[WorkerRow], list[leases.LeaseRow]]:
    return await registry.workers(shard, conn), await leases.all_leases(shard, conn)


def _workers(answers: Mapping[str, tuple[list[WorkerRow], list[leases.LeaseRow]]]) -> list[dict[str, object]]:
    """One entry per worker, from the registry and from the leases, which may know workers that it does not."""
    rows: dict[str, tuple[str, WorkerRow]] = {}
    held: dict[str, list[tuple[str, leases.LeaseRow]]] = defaultdict(list)
    for shard, (registered, its_leases) in answers.items():
        for row in registered:
            if row.worker not in rows or row.beat > rows[row.worker][1].beat:
                rows[row.worker] = (shard, row)
        for lease in its_leases:
            held[lease.worker].append((shard, lease))
    return [_entry(name, rows.get(name), held[name]) for name in sorted(rows.keys() | held.keys())]


def _entry(
    name: str, found: tuple[str, WorkerRow] | None, held: list[tuple[str, leases.LeaseRow]]
) -> dict[str, object]:
    home, row = found if found is not None else (None, None)
    live = [(shard, lease) for shard, lease in held if not lease.expired]
    lanes = sorted({lane for _, lease in held for lane in lease.queues}) if row is None else row.queues
    return {
        "worker": name,
        "state": _state(row),
        "home": home,
        "serves": [shard for shard, lease in live if lease.claiming],
        "leaving": [shard for shard, lease in live if not lease.claiming],
        "expired": [shard for shard, lease in held if lease.expired],
        "aims": None if row is None else row.aims,
        "wanted": None if row is None else row.wanted,
        "cut_off": [] if row is None else row.cut_off,
        "pinned": None if row is None else row.pinned,
        "queues": [said(lane) for lane in lanes],
        "labels": [] if row is None else row.labels,
        "running": None if row is None else row.running,
        "capacity": None if row is None else row.capacity,
        "claimed": sum(lease.claimed for _, lease in held),
        "host": None if row is None else row.host,
        "pid": None if row is None else row.pid,
        "app": None if row is None else row.app,
        "release": None if row is None else row.release,
        "code_version": None if row is None or not row.code_version else row.code_version,
        "started_at": min(lease.opened_at for _, lease in held) if row is None else row.started_at,
        "seen_at": None if row is None else row.seen_at,
    }


def _state(row: WorkerRow | None) -> str:
    if row is None:
        return "unregistered"
    if row.expired or row.gone:
        return "gone"
    if row.draining:
        return "draining"
    return "late" if row.late else "up"
