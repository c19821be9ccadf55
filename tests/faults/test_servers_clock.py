"""A server's clock jumps by an hour, forth and back, while work runs: leases may be lost, nothing else is.

`SHARDFLOW_CLOCK_WORKFLOWS` sets how many workflows are submitted between two jumps (default 150).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from faults import postgres
from faults.postgres import Clock
from faults.servers_load import on_servers, under_load
from support.look import assert_i1, rows, until

from shardflow.embedded import Servers

COUNT = int(os.environ.get("SHARDFLOW_CLOCK_WORKFLOWS", "150"))
HOUR = 3600.0


@pytest.fixture
def clock() -> Iterator[Clock]:
    """In a folder that the servers' account can read."""
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Clock(Path(folder) / "clock")


def offset(dsn: str) -> float:
    """How far the server's clock is from ours, in seconds."""
    return float(postgres.ask(dsn, "SELECT extract(epoch FROM clock_timestamp())")) - time.time()


async def test_a_clock_that_jumps_by_an_hour_loses_and_repeats_nothing(clock: Clock) -> None:
    settings = {"max_connections": "60", "shared_buffers": "32MB"}
    with Servers(1, settings=settings, binaries=clock.binaries) as servers:
        dsn = servers[0].dsn
        config = on_servers(servers)
        async with under_load(config, pause=0.03) as load:
            seen: set[int] = set()
            for jump in (HOUR, -HOUR, 0.0):
                await load.acknowledged(COUNT)
                seen |= {lease for (lease,) in rows(config, "SELECT lease FROM lease")}
                await load.fault(f"clock-{jump:+g}")
                clock.shift(jump)
                await until(lambda jump=jump: abs(offset(dsn) - jump) < 60, 30, "the clock has jumped")
            await load.acknowledged(COUNT, "the work goes on")
            await load.pause()
            await load.all_end()
            seen |= {lease for (lease,) in rows(config, "SELECT lease FROM lease")}
            assert_i1(config)
            verdict = load.verdict()
            print(f"{verdict}; {len(seen)} leases seen")
            assert verdict.clean, verdict
