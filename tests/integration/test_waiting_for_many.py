"""Waiting for several workflows on any shards: for all of them, or for the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from support.lab import Lab
from support.look import until
from support.many import closed, ended, fill, in_turns, plain
from support.work import ids_on

from shardflow import (
    AsyncClient,
    ClusterConfig,
    InvalidInput,
    PoolConfig,
    Status,
    WorkflowNotFound,
)
from shardflow.client import gathering

MakeCluster = Callable[..., ClusterConfig]


@pytest.fixture
def three(cluster_config: ClusterConfig) -> ClusterConfig:
    """Three shards with 21 workflows each."""
    in_turns(cluster_config, 21)
    return cluster_config


@pytest.fixture
async def asking(three: ClusterConfig) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(three) as opened:
        yield opened


async def test_wait_ends_when_all_have_ended(asking: AsyncClient, three: ClusterConfig) -> None:
    mine = [ids_on(three, k, 21) for k in range(3)]
    every = [id for part in mine for id in part]
    ended(three, 0, *mine[0])
    only = await asking.wait(every, timeout=0)
    assert set(only.ended) == set(mine[0])
    assert list(only.pending) == mine[1] + mine[2]
    waiting = asyncio.create_task(asking.wait(every, timeout=60))
    ended(three, 1, *mine[1])
    short = await asking.wait(every, timeout=0.5)
    assert not waiting.done()
    assert set(short.ended) == set(mine[0] + mine[1])
    ended(three, 2, *mine[2], status="failed")
    done = await waiting
    assert list(done.ended) == every
    assert not done.pending
    assert {info.status for info in done.ended.values()} == {Status.SUCCEEDED, Status.FAILED}
    for id in (every[0], every[-1]):
        assert done.ended[id] == await asking.info(id)
        assert done.ended[id].finished_at is not None
    assert not any(asking.waiter(f"s{k}")._awaited for k in range(3)), "nobody is waited for any more"


async def test_wait_for_the_first_ends_with_it(asking: AsyncClient, three: ClusterConfig) -> None:
    every = [id for k in range(3) for id in ids_on(three, k, 21)]
    waiting = asyncio.create_task(asking.wait(every, mode="first", timeout=60))
    nothing = await asking.wait(every, mode="first", timeout=0.2)
    assert (dict(nothing.ended), len(nothing.pending)) == ({}, 63)
    ended(three, 2, ids_on(three, 2, 1)[0])
    assert list((await waiting).ended) == ids_on(three, 2, 1)
    assert list((await asking.wait(every, mode="first")).ended) == ids_on(three, 2, 1)
    assert not any(asking.waiter(f"s{k}")._awaited for k in range(3)), "nobody is waited for any more"
    assert (await asking.wait([])).ended == {}


async def test_wait_says_what_is_wrong_with_ids(asking: AsyncClient, three: ClusterConfig) -> None:
    there = ids_on(three, 0, 1)
    for timeout in (0, 30, None):
        with pytest.raises(WorkflowNotFound, match="'nobody'"):
            await asking.wait([*there, "nobody"], timeout=timeout)
    with pytest.raises(InvalidInput, match="several"):
        await asking.wait("w1")
    with pytest.raises(InvalidInput, match="mode"):
        await asking.wait(there, mode="any")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="timeout"):
        await asking.wait(there, timeout=-1)


async def test_wait_names_a_shard_that_is_away_and_goes_on_when_it_is_back(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=2, pool=PoolConfig(timeout=1, connect_timeout=1))
    mine = [ids_on(config, k, 3) for k in range(2)]
    for k in range(2):
        fill(config, k, plain(mine[k]))
        ended(config, k, *mine[k])
    async with AsyncClient(config) as client:
        await client.list()
        async with closed(lab, config, 1):
            for timeout in (0, 2):
                part = await client.wait(mine[0] + mine[1], timeout=timeout)
                assert set(part.ended) == set(mine[0])
                assert list(part.pending) == mine[1]
                assert list(part.unreachable) == ["s1"]
            waiting = asyncio.create_task(client.wait(mine[0] + mine[1], timeout=60))
            await asyncio.wait([waiting], timeout=0.3)
            assert not waiting.done()
        whole = await waiting
        assert set(whole.ended) == {*mine[0], *mine[1]}
        assert not whole.unreachable


async def test_wait_for_thousands(shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "BATCH", 100)
    every = [f"many{n}" for n in range(7_000)]
    fill(shard_config, 0, plain(every))
    async with AsyncClient(shard_config) as client:
        waiting = asyncio.create_task(client.wait(every, timeout=120))
        await until(lambda: len(client.waiter("s0")._awaited) == len(every))
        for at in range(0, 7_000, 500):
            await asyncio.to_thread(ended, shard_config, 0, *every[at : at + 500])
        done = await waiting
        assert list(done.ended) == every
