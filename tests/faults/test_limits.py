"""Limits of queues on three shards with four workers, some of them killed: the ledger says what began and ended when.

`SHARDFLOW_LIMIT_SECONDS` sets how long the quiet part and the part with kills last (default 6 each),
`SHARDFLOW_LIMIT_USED` which part of the limits must be used in the quiet one.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import MakeCluster
from faults.limits_rig import ended, pass_time, read, rig, submit
from support.look import assert_i1, total
from support.shares import units
from support.work import ids_on

from shardflow import LeaseConfig

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SHARDFLOW_LIMIT_SECONDS", "6"))
HOLD = 1.0
#: The part of the limits that must be used in the quiet time: not much, as the machine may have other things to do. A
#: run by itself has 0.95 and more.
USED = float(os.environ.get("SHARDFLOW_LIMIT_USED", "0.3"))


async def test_limits_are_used_and_never_exceeded_while_workers_die(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    config = make_cluster(shards=3, lease=LeaseConfig(ttl=2.0, renew=0.25, watch=0.15))
    with rig(config, tmp_path) as workers:
        held, paced = int(10 * 2 * SECONDS / HOLD), int(100 * 2 * SECONDS)
        for _ in range(4):
            workers.start()
        workers.connected()
        await submit(config, held, HOLD, paced)
        since = await pass_time(1.5)
        until = await pass_time(SECONDS - 1.5)
        for _ in range(3):
            workers.kill()
            workers.start()
            await pass_time(SECONDS / 4)
        over = await pass_time(0)
        told = await ended(workers, 60)
        print(
            f"held: {told.held(since, until):.2f} of 10, {told.held(until, over):.2f} while workers died;"
            f" paced: {told.paced(since, until):.1f} of 100, {told.paced(until, over):.1f} while workers died"
        )
        assert told.most_at_once() == 10
        assert told.most_within(1.0) <= 100
        assert len(told.begins) >= paced
        assert told.held(since, until) >= USED * 10
        assert told.paced(since, until) >= USED * 100
        assert total(config, "SELECT count(*) FROM permit") == 0
        assert (units(config, "held", "running"), units(config, "paced", "starts")) == (10, 100)
        assert_i1(config)


async def test_shares_that_move_while_workers_die_are_neither_lost_nor_doubled(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    """The backlog is on one shard after the other, so the whole limit moves each time."""
    config = make_cluster(shards=3, lease=LeaseConfig(ttl=2.0, renew=0.25, watch=0.15))
    with rig(config, tmp_path) as workers:
        for _ in range(3):
            workers.start()
        workers.connected()
        for turn in range(6):
            await submit(config, 40, 0.05, 0, ids_on(config, turn % 3, 40, f"t{turn}-"))
            await pass_time(0.15)
            workers.kill()
            workers.start()
        assert (await ended(workers, 60)).most_at_once() <= 10
        assert units(config, "held", "running") == 10
        assert_i1(config)


async def test_the_ledger_sees_starts_that_count_too_early(make_cluster: MakeCluster, tmp_path: Path) -> None:
    config = make_cluster(shards=3)
    with rig(config, tmp_path, ["begin_at_once"]) as workers:
        workers.start()
        workers.connected()
        await submit(config, 0, HOLD, 400)
        assert (await ended(workers, 60)).most_within(1.0) > 100


def test_what_a_worker_said_last_may_stand_behind_its_death() -> None:
    lines = ["begin held a w1 1", "begin held b w1 2", "dead w1 4", "end held b w1 3", "begin held c w1 3.5"]
    lines += ["begin held c w2 5", "end held c w2 6"]
    assert sorted(read(iter(lines)).spans) == [(1, 4), (2, 3), (3.5, 4), (5, 6)]
    assert read(iter([*lines, "begin held d w2 7"])).spans[-1] == (7, float("inf"))
