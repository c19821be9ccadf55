"""`shardflow rebalancer`: a rebalancer of its own, for clusters whose workers come and go quickly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import click

from ..rebalancer.alone import run_alone
from ..storage.ending import end
from .output import say
from .settings import Group, Settings, pass_settings


@click.group(cls=Group)
def rebalancer() -> None:
    """Run a rebalancer that is not part of a worker."""


@rebalancer.command()
@click.option("--name", metavar="NAME", help="Shown in the journal (default: rebalancer, host and process id).")
@pass_settings
def run(settings: Settings, name: str | None) -> None:
    """Stand for election and decide which worker serves which shard, until told to stop.

    Workers elect one among themselves; this is for those who want it to be a process of its own. As many as you like
    may run: one of them decides, the others stand by.
    """
    settings.log(server=True)
    config = settings.config()
    holder = name or f"rebalancer:{socket.gethostname()}:{os.getpid()}"

    async def main() -> None:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        working = asyncio.create_task(run_alone(config, holder))
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
        await end([working, waiting])
        if not working.cancelled():
            working.result()
        say("Resigned.")

    asyncio.run(main())
