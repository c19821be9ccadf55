"""Random programs over three shards, while workers are killed: each gives what it gives in memory without crashes.

`SHARDFLOW_PROGRAMS` sets how many (default 200; 2000 for the figures of record).
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from faults.nursery import Nursery, Process
from faults.program import Program, evaluate, programs, size
from faults.program_app import run
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.lab import POOL, Lab
from support.look import assert_i1, connect, one, rows

from shardflow import AsyncClient, ClusterConfig, LeaseConfig, ResultTimeout

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")]

COUNT = int(os.environ.get("SHARDFLOW_PROGRAMS", "200"))
BATCH = 50
WORKERS = 3
#: Seconds from one kill to the next.
KILL_EVERY = (0.2, 1.5)
#: Kills in one batch at the most: it has to come to its end.
KILLS = 6


class Crew:
    """Worker processes of which one is killed now and then, and replaced at once."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self._number = 0
        self._there: list[Process] = [self._new() for _ in range(WORKERS)]
        self.kills = 0

    def _new(self) -> Process:
        self._number += 1
        return self._nursery.worker(f"p{self._number}")

    async def kill(self, seed: int) -> None:
        """Kills now and then."""
        dice = random.Random(seed)
        for _ in range(KILLS):
            await asyncio.sleep(dice.uniform(*KILL_EVERY))
            self._there.pop(dice.randrange(WORKERS)).kill()
            self._there.append(self._new())
            self.kills += 1


@pytest.fixture(scope="module")
def stand(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ClusterConfig, Crew]]:
    config = lab.clone(3, 64, LeaseConfig(ttl=3.0, renew=0.4, watch=0.15), POOL)
    folder = tmp_path_factory.mktemp("programs")
    path = folder / "cluster.yaml"
    shards = [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards]
    lease = {"ttl": 3.0, "renew": 0.4, "watch": 0.15}
    path.write_text(yaml.safe_dump({"name": config.name, "slots": config.slots, "shards": shards, "lease": lease}))
    nursery = Nursery(path, folder / "none", folder, (), 50, "faults.program_app")
    try:
        yield config, Crew(nursery)
    finally:
        nursery.close()
        lab.drop(config)


async def cancel_hopeless(client: AsyncClient, config: ClusterConfig) -> None:
    """Cancels the children that wait for it, as soon as their parents wait for their ends."""
    done: set[str] = set()
    conns = [connect(config, k) for k in range(len(config.shards))]
    try:
        while True:
            for conn in conns:
                for (key,) in conn.execute("SELECT key FROM event WHERE key LIKE 'cancel %'").fetchall():
                    if key not in done:
                        await client.cancel(key.removeprefix("cancel "))
                        done.add(key)
            await asyncio.sleep(0.1)
    finally:
        for conn in conns:
            conn.close()


def stuck(config: ClusterConfig) -> list[Any]:
    """The workflows that have not ended, and where they are."""
    query = """
        SELECT w.id, w.name, to_jsonb(s) AS wait, r.wf AS ready,
            (SELECT max(lease) FROM claim c WHERE w.wf = ANY(c.wfs)),
            (SELECT jsonb_agg(jsonb_build_array(topic, key, taken)) FROM message m WHERE m.wf = w.wf),
            (SELECT jsonb_agg(jsonb_build_array(seq, name)) FROM step p WHERE p.wf = w.wf)
        FROM workflow w LEFT JOIN wait s USING (wf) LEFT JOIN ready r USING (wf)
        WHERE NOT EXISTS (SELECT FROM outcome o WHERE o.wf = w.wf)"""
    return [(k, *row) for k in range(len(config.shards)) for row in rows(config, query, shard=k)]


async def play(config: ClusterConfig, crew: Crew, batch: list[Program], seed: int) -> int:
    """Runs the programs under kills; answers how many kills there were."""
    before = crew.kills
    async with AsyncClient(config) as client:
        handles = await client.submit_many(run.call(each) for each in batch)
        chores = [asyncio.create_task(crew.kill(seed)), asyncio.create_task(cancel_hopeless(client, config))]
        try:
            found: list[Any] = await asyncio.gather(*(handle.result(100) for handle in handles))
        except ResultTimeout:
            pytest.fail(f"not done, seed {seed}: {stuck(config)}")
        finally:
            for chore in chores:
                chore.cancel()
            await asyncio.gather(*chores, return_exceptions=True)
    wrong = [(each, answer) for each, answer in zip(batch, found, strict=True) if answer != evaluate(each)]
    assert not wrong, f"{len(wrong)} of {len(batch)} differ; the first: {wrong[0][0]} gave {wrong[0][1]}, seed {seed}"
    return crew.kills - before


@pytest.mark.timeout(200 + COUNT)
def test_programs_under_crashes_give_what_they_give_in_memory(stand: tuple[ClusterConfig, Crew]) -> None:
    config, crew = stand
    ran = kills = operations = 0

    @settings(
        max_examples=1 + max(1, COUNT // BATCH),  # the first one is the least of all
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(programs, min_size=BATCH, max_size=BATCH), st.integers(0, 2**32))
    def crash(batch: list[Program], seed: int) -> None:
        nonlocal ran, kills, operations
        kills += asyncio.run(play(config, crew, batch, seed))
        ran += len(batch)
        operations += sum(map(size, batch))

    crash()
    print(f"{ran} programs of {operations} operations, {kills} kills")
    assert kills > 0, "nothing was killed: nothing is shown"
    for k in range(len(config.shards)):
        assert one(config, "SELECT count(*) FROM workflow WHERE wf NOT IN (SELECT wf FROM outcome)", shard=k) == 0
        assert one(config, "SELECT count(*) FROM retry", shard=k) == 0
    assert_i1(config)
