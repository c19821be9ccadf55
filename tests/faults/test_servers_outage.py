"""A server restarts, only reads, or has no space left: its work waits and ends, the other server's goes on.

`SHARDFLOW_OUTAGE_WORKFLOWS` sets how many workflows are submitted before each fault (default 200).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import get_args

import psycopg
import pytest
from faults import postgres
from faults.postgres import on_tmpfs, read_only, resize
from faults.servers_load import Load, on_servers, under_load
from support.look import assert_i1, until
from support.work import ids_on

from shardflow import ClusterConfig, ShardConfig
from shardflow.embedded import Server, Servers
from shardflow.embedded.server import StopMode
from shardflow.errors import ShardReadOnly
from shardflow.storage.shard import Shard

COUNT = int(os.environ.get("SHARDFLOW_OUTAGE_WORKFLOWS", "200"))


@pytest.fixture
def servers() -> Iterator[Servers]:
    """Two servers of the test's own."""
    settings = {"max_connections": "60", "shared_buffers": "32MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
    with Servers(2, settings=settings) as started:
        yield started


async def goes_on(load: Load, config: ClusterConfig, shard: int, prefix: str) -> None:
    """That shard takes work and ends it now."""
    ids = ids_on(config, shard, 50, prefix)
    await load.submit(ids)
    await load.all_end(ids, seconds=60)


async def drawn(load: Load) -> set[str]:
    """Where ids of the client's choice go; all are taken somewhere."""
    return {(await load.client.submit("nobody's")).shard for _ in range(10)}


async def settled(load: Load, config: ClusterConfig) -> None:
    """All that was acknowledged ends, and the checker has nothing to say."""
    await load.pause()
    await load.all_end()
    assert_i1(config)
    verdict = load.verdict()
    print(verdict)
    assert verdict.clean, verdict


async def test_a_server_that_restarts_under_load_loses_and_repeats_nothing(servers: Servers) -> None:
    config = on_servers(servers)
    async with under_load(config) as load:
        for mode in get_args(StopMode)[1:]:  # "smart" would wait for the workers to leave
            await load.acknowledged(COUNT // 2)
            await load.fault(f"stop-{mode}")
            await asyncio.to_thread(servers[0].stop, mode)
            await goes_on(load, config, 1, f"during-{mode}-")
            await asyncio.to_thread(servers[0].start)
        await load.acknowledged(COUNT // 2, "submits go on")
        await settled(load, config)


async def test_a_server_that_only_reads_for_a_while_loses_and_repeats_nothing(servers: Servers) -> None:
    config = on_servers(servers)
    async with under_load(config) as load:
        await load.acknowledged(COUNT)
        await asyncio.to_thread(read_only, servers[0], True)
        await until(lambda: postgres.ask(servers[0].dsn, "SHOW default_transaction_read_only") == "on")
        await load.fault("read-only")
        await goes_on(load, config, 1, "during-")
        await until(
            lambda: any("takes no writes now" in refusal for refusal in load.refusals), what="the fault is felt"
        )
        assert await drawn(load) == {"s1"}
        await asyncio.to_thread(read_only, servers[0], False)
        await load.acknowledged(COUNT // 2, "submits go on")
        await settled(load, config)


async def test_a_server_whose_disk_is_full_loses_nothing_and_goes_on_when_it_has_space(servers: Servers) -> None:
    config = on_servers(servers)
    with on_tmpfs(servers[0], 300):
        async with under_load(config) as load:
            await load.acknowledged(COUNT)
            log = servers[0].log.stat().st_size
            await load.fault("disk-full")

            def complained(what: bytes) -> bool:
                return any(
                    what in line and b"No space left on device" in line
                    for line in servers[0].log.read_bytes()[log:].splitlines()
                )

            fill(servers[0].data)
            await until(lambda: complained(b"ERROR"), 60, "tables cannot grow")
            await goes_on(load, config, 1, "during-")
            assert "s1" in await drawn(load)  # the other may still have room in its tables' pages
            await asyncio.to_thread(until_crashed, servers[0])
            assert complained(b"PANIC"), "the log cannot grow"
            await goes_on(load, config, 1, "after-the-crash-")
            resize(servers[0], 900)
            await asyncio.to_thread(servers[0].start)  # if it could not even recover
            await load.acknowledged(COUNT // 2, "submits go on")
            await settled(load, config)


@pytest.mark.parametrize("error", [psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.DiskFull])
def test_a_server_that_takes_no_writes_is_told_from_one_that_is_busy_or_away(error: type[psycopg.Error]) -> None:
    explained = Shard(ShardConfig("s0", "")).explain(error("what it says"))
    assert isinstance(explained, ShardReadOnly)
    assert str(explained) == "shard 's0' takes no writes now: what it says"


def until_crashed(server: Server) -> None:
    """Uses up the space that the server's log has in its files."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        for _ in range(100):
            try:
                conn.execute("SELECT pg_logical_emit_message(false, 'space', 'used'), pg_switch_wal()")
            except psycopg.OperationalError:
                return
    raise AssertionError("the log still has space")


def fill(folder: os.PathLike[str]) -> None:
    """Takes all of the disk's space with a file."""
    with open(os.path.join(folder, "ballast"), "wb", buffering=0) as file:
        block = b"\0" * (1 << 20)
        try:
            while file.write(block) == len(block):
                pass
        except OSError:
            pass
