"""`shardflow dev`: a cluster on this machine that keeps its data between runs, with workers for an app."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click

from ..demo import local
from ..embedded import Servers, watch
from ..errors import UsageError
from ..storage import cluster
from .loading import load_app
from .output import say
from .serve import Options
from .settings import Command, Settings, pass_settings
from .worker import supervise

SHARDS = 3
SLOTS = 128


@click.command(cls=Command)
@click.argument("target", metavar="MODULE:ATTR")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".shardflow/dev"),
    show_default=True,
    help="Where the data stays between runs.",
)
@click.option("--shards", type=click.IntRange(1, 16), help=f"Servers, one shard on each (default: {SHARDS}).")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Worker processes.")
@click.option("--concurrency", type=click.IntRange(1), metavar="N", help="Workflows at once in a process.")
@click.option(
    "--grace", type=click.FloatRange(0), default=5.0, show_default=True, metavar="SECONDS", help="To drain."
)
@click.option("--reset", is_flag=True, help="Delete the data first.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before it is deleted.")
@pass_settings
def dev(
    settings: Settings,
    target: str,
    directory: Path,
    shards: int | None,
    processes: int,
    concurrency: int | None,
    grace: float,
    reset: bool,
    yes: bool,
) -> None:
    """Run the app MODULE:ATTR, such as shop:app, on Postgres servers of its own.

    The data stays in the directory between runs. Clients find the cluster by the configuration file whose path is
    printed; it is written anew at each start, because ports and passwords may differ. Ctrl-C stops everything.
    """
    settings.log(server=True)
    load_app(target)
    directory = directory.resolve()
    servers = directory / "servers"
    if reset:
        _reset(servers, yes)
    count = _count(servers, shards)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "cluster.yaml"
    say(f"Starting {count} Postgres servers in {servers} ...")
    with _terminable(), Servers(count, directory=servers, keep=True) as running:
        config = local.describe(running, "dev", SLOTS)
        local.write(config, path)
        asyncio.run(cluster.init(config))
        click.echo(f"export SHARDFLOW_CONFIG={path}")
        sys.stdout.flush()
        say(f"The cluster is up; {processes} worker process(es) run {target}. Ctrl-C stops everything.")
        told = replace(settings, config_file=str(path))
        code = supervise(told, target, Options(concurrency=concurrency, grace=grace), processes)
        say("Stopping the servers ...")
    raise SystemExit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM end the block as Ctrl-C does, so that the servers are stopped."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _existing(servers: Path) -> list[Path]:
    """The data directories of an earlier run."""
    away = servers / watch.AWAY
    home = Path(os.readlink(away)) if away.is_symlink() else servers
    return sorted(path for path in home.glob("pg*") if path.is_dir() and path.name[2:].isdigit())


def _count(servers: Path, wanted: int | None) -> int:
    found = len(_existing(servers))
    if wanted is not None and found and wanted != found:
        raise UsageError(f"{servers} has the data of {found} shards, not {wanted}: add --reset to delete it")
    return wanted or found or SHARDS


def _reset(servers: Path, yes: bool) -> None:
    """Deletes the data of earlier runs, if nobody uses it and the user agrees."""
    data = _existing(servers)
    if not data:
        return
    if not yes:
        click.confirm(f"Delete the data of {len(data)} shards in {servers}?", abort=True, err=True)
    with (servers / watch.LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{servers} is in use by another `shardflow dev`: stop that one first") from None
        watch.end_servers(data, fast=False)
        watch.remove(servers, data[0].parent)
