"""`shardflow worker`: run workers, and see which ones run."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

import click

from ..storage import leases
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
@click.option("--shard", "shards", multiple=True, metavar="NAME", help="Serve only this one; repeatable.")
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
    options = Options(concurrency, queues, shards, name, grace, supervisor_fd)
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

    def command(pipe: int) -> list[str]:
        return [sys.executable, "-m", "shardflow.cli", *words, "--supervisor-fd", str(pipe), "--", target]

    async def run() -> int:
        return await Supervisor(command, count, grace=options.grace).run()

    return asyncio.run(run())


@worker.command(name="list")
@json_option
@pass_settings
def list_(settings: Settings, as_json: bool) -> None:
    """Show every worker that holds a lease, with its shards and what its receipts name."""
    settings.log()
    answers = ask_all(settings.config(), leases.all_leases)
    held: dict[str, list[tuple[str, leases.LeaseRow]]] = defaultdict(list)
    for shard, rows in answers.values.items():
        for row in rows:
            held[row.worker].append((shard, row))
    workers = [
        {
            "worker": name,
            "shards": [shard for shard, _ in rows],
            "since": min(row.opened_at for _, row in rows),
            "claimed": sum(row.claimed for _, row in rows),
            "expired": [shard for shard, row in rows if row.expired],
        }
        for name, rows in sorted(held.items())
    ]
    if as_json:
        emit_json({"workers": workers, "unreachable": answers.unreachable})
    else:
        columns = ("worker", "shards", "since", "claimed", "expired")
        table(columns, [[value if value != [] else None for value in w.values()] for w in workers])
    raise SystemExit(answers.report())
