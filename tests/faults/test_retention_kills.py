"""Workers killed while they delete old workflows: each workflow is there whole or gone, and another one goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from support.look import assert_i1, connect, one, rows, until
from support.work import running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig

MakeCluster = Callable[..., ClusterConfig]

TESTS = Path(__file__).resolve().parents[1]
COUNT = 700

app = App("retention")


@app.step
async def echo(n: int) -> int:
    return n


@app.workflow
async def work(n: int) -> int:
    await shardflow.set_event("n", n)
    return await echo(n)


#: What is not as it should be, whenever one looks.
HALVES = """
SELECT (SELECT count(*) FROM workflow w WHERE NOT EXISTS (SELECT FROM outcome o WHERE o.wf = w.wf)),
       (SELECT count(*) FROM outcome o WHERE NOT EXISTS (SELECT FROM workflow w WHERE o.wf = w.wf)),
       2 * (SELECT count(*) FROM workflow) - (SELECT count(*) FROM step),
       (SELECT count(*) FROM workflow) - (SELECT count(*) FROM event),
       (SELECT count(*) FROM workflow) + (SELECT sum(deleted) FROM retention) - %s
"""


@contextmanager
def process(config: ClusterConfig, folder: Path, *orders: str) -> Iterator[subprocess.Popen[bytes]]:
    path = folder / "cluster.yaml"
    shards = [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards]
    file = {"name": config.name, "slots": config.slots, "shards": shards, "retention": {"succeeded": "1h"}}
    path.write_text(yaml.safe_dump(file))
    command = [sys.executable, str(TESTS / "faults" / "retention_main.py"), str(path), *orders]
    made = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(TESTS)})
    try:
        yield made
    finally:
        assert made.stdin is not None
        made.stdin.close()
        made.wait(60)


async def filled(config: ClusterConfig) -> None:
    """Workflows that ended two hours ago."""
    async with AsyncClient(config) as client, running(config, app):
        handles = await client.submit_many(work.call(n) for n in range(COUNT))
        await asyncio.gather(*(handle.result(60) for handle in handles))
        await until(lambda: one(config, "SELECT count(*) FROM claim") == 0)
    with connect(config) as conn:
        conn.execute("UPDATE workflow SET submitted_at = submitted_at - interval '2 h'")
        conn.execute("UPDATE outcome SET finished_at = finished_at - interval '2 h'")


async def killed(config: ClusterConfig, folder: Path, *orders: str) -> tuple[int, ...]:
    """A worker dies of it; answers what is wrong then."""
    await filled(config)
    with process(config, folder, *orders) as victim:
        await until(lambda: victim.poll() is not None, 60, "the worker dies")
        assert victim.returncode == -signal.SIGKILL
    await until(
        lambda: one(config, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardflow client'") == 0
    )
    assert 0 < one(config, "SELECT count(*) FROM workflow") < COUNT
    return tuple(int(value) for value in rows(config, HALVES, COUNT)[0])


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_whoever_dies_has_deleted_whole_workflows_and_another_one_goes_on(
    make_cluster: MakeCluster, tmp_path: Path, moment: str
) -> None:
    config = make_cluster(shards=1)
    assert await killed(config, tmp_path, moment) == (0, 0, 0, 0, 0)
    held = one(config, "SELECT held_until > clock_timestamp() FROM retention WHERE status = 'succeeded'")
    assert held  # until then nobody else is at it
    rows(config, "UPDATE retention SET held_until = now()")
    with process(config, tmp_path):
        await until(lambda: one(config, "SELECT count(*) FROM workflow") == 0)
        await until(lambda: rows(config, HALVES, COUNT) == [(0, 0, 0, 0, 0)])
    assert_i1(config)


async def test_red_where_something_of_a_workflow_stays(make_cluster: MakeCluster, tmp_path: Path) -> None:
    config = make_cluster(shards=1)
    text = one(config, "SELECT pg_get_functiondef('forget'::regproc)")
    spoilt = text.replace('DELETE FROM "shardflow".step s WHERE s.wf = ANY(gone);', "")
    assert spoilt != text
    rows(config, spoilt)
    assert (await killed(config, tmp_path, "after"))[2] < 0


async def test_parents_have_all_results_while_children_are_deleted_as_soon_as_they_have_ended(
    make_cluster: MakeCluster,
) -> None:
    config = make_cluster(shards=3)
    families = App("families")
    ended = asyncio.Event()

    @families.workflow
    async def child(n: int) -> int:
        return n

    @families.workflow
    async def late(n: int) -> int:
        return n

    @families.workflow
    async def parent(n: int) -> int:
        children = await shardflow.start_many(child, range(n, n + 5))
        await shardflow.sleep(1.1)  # it is suspended, and runs over its checkpoints
        return sum(await shardflow.gather(children))

    async def delete(client: AsyncClient) -> int:
        count = 0
        while not ended.is_set():
            count += (await client.purge_many(name="child")).count
        return count

    async with AsyncClient(config) as client, running(config, families):
        deleting = asyncio.create_task(delete(client))
        handles = await client.submit_many(parent.call(n) for n in range(60))
        for n, handle in enumerate(handles):
            assert await handle.result(60) == 5 * n + 10
        ended.set()
        assert await deleting > 0
        assert (await client.purge_many(name="child")).unreachable == {}
        assert (await client.count(name="child")).total == 0
    assert_i1(config)
