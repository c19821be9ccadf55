"""The power of a server is cut: what was acknowledged is there afterwards; without fsync it is not, and that is seen.

`SHARDFLOW_POWER_WORKFLOWS` sets how many workflows are submitted before the cut (default 400).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from faults.postgres import Power, on_ext4
from faults.servers_load import on_servers, under_load
from support.look import assert_i1

from shardflow import ClusterConfig
from shardflow.embedded import Servers
from shardflow.errors import EmbeddedError

COUNT = int(os.environ.get("SHARDFLOW_POWER_WORKFLOWS", "400"))


@contextmanager
def powered(folder: Path, fsync: str) -> Iterator[tuple[ClusterConfig, Power]]:
    """A cluster on one server that has a disk of its own."""
    settings = {"max_connections": "60", "shared_buffers": "32MB", "max_wal_size": "256MB", "fsync": fsync}
    with Servers(1, settings=settings) as servers, on_ext4(servers[0], folder / "disk") as power:
        config = on_servers(servers)
        power.settle()
        yield config, power


async def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with powered(tmp_path, "on") as (config, power):
        async with under_load(config) as load:
            await load.acknowledged(COUNT)
            await load.fault("power-cut")
            await asyncio.to_thread(power.cut)
            await asyncio.to_thread(power.back)
            await load.acknowledged(COUNT // 4, "submits go on")
            await load.pause()
            await load.all_end()
            assert_i1(config)
            verdict = load.verdict()
            print(f"fsync=on: {verdict}")
            assert verdict.clean, verdict


async def test_without_fsync_the_same_power_cut_turns_the_checker_red(tmp_path: Path) -> None:
    """The positive control: the cut is real, and what it loses is seen."""
    with powered(tmp_path, "off") as (config, power):
        async with under_load(config) as load:
            power.settle()
            await load.acknowledged(COUNT)
            await load.pause()
            await load.all_end()
        assert load.verdict().clean
        await asyncio.to_thread(power.cut)
        try:
            await asyncio.to_thread(power.back)
            print(f"fsync=off: {load.verdict()}")
            assert load.verdict().lost, "nothing was lost: the power was not cut"
        except (EmbeddedError, psycopg.Error) as error:
            print(f"fsync=off: not even the tables are left: {error}")
