"""`shardflow run`: runs an example on servers of its own, and ends with it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from ..app import App
from ..client.sync import Client
from ..demo import local
from ..embedded import Servers
from ..errors import UsageError
from ..model import ClusterConfig
from ..storage import cluster
from ..worker.worker import Worker
from .output import say
from .settings import Command, Settings, pass_settings


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--shards", type=click.IntRange(1, 16), default=2, show_default=True, help="Servers, a shard on each.")
@pass_settings
def run(settings: Settings, file: Path, shards: int) -> None:
    """Run an example program on Postgres servers of its own.

    FILE defines `app` and `main(client)`. Nothing stays behind. The examples of docs/guide.md are such programs.
    """
    settings.log()
    module = load(file)
    say(f"Starting {shards} Postgres servers ...")
    with tempfile.TemporaryDirectory(prefix="shardflow-run-") as folder, Servers(shards) as servers:
        config = local.describe(servers, "run", 64)
        asyncio.run(cluster.init(config))
        path = Path(folder) / "cluster.yaml"
        local.write(config, path)
        os.environ["SHARDFLOW_CONFIG"] = str(path)
        play(module, config)


def load(file: Path) -> ModuleType:
    """The program as a module. Raises UsageError where it lacks `app` or `main`."""
    name = f"shardflow_run_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UsageError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    if not isinstance(getattr(module, "app", None), App) or not callable(getattr(module, "main", None)):
        raise UsageError(f"{file} has to define `app`, a shardflow.App, and `main`, which is called with a client")
    return module


def play(module: Any, config: ClusterConfig) -> None:
    """Calls the program's `main` with a client, beside a worker for its `app`."""
    with _working(config, module.app), Client(config, codecs=module.app.codecs) as client:
        module.main(client)


@contextmanager
def _working(config: ClusterConfig, app: App) -> Iterator[None]:
    """A worker in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="shardflow run", daemon=True)
    thread.start()

    async def begin() -> Worker:
        worker = Worker(config, app)
        await worker.start()
        await worker.connected()
        return worker

    worker = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(worker.stop(grace=0.5), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
