"""A primary dies for good and its standby takes over: what the standby had is kept, and the cluster goes on.

`SHARDFLOW_FAILOVER_WORKFLOWS` sets how many workflows are submitted around each failover (default 600).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults import postgres
from faults.checker import recompute
from faults.postgres import either, make_standby, promote, read_only, stall_replication, synchronous
from faults.servers_load import present, under_load
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.lab import in_thread
from support.look import assert_i1, connect, rows, until
from support.work import running

from shardflow import App, AsyncClient, ClusterConfig, ShardConfig, ShardUnavailable, WorkflowNotFound, load_config
from shardflow.client import waiter
from shardflow.core.redact import redact_dsn
from shardflow.embedded import Server, Servers
from shardflow.storage import cluster
from shardflow.storage.shard import Shard

COUNT = int(os.environ.get("SHARDFLOW_FAILOVER_WORKFLOWS", "600"))
#: The sender is frozen on purpose; neither side is to give up on the other for that.
SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "64MB",
    "wal_sender_timeout": "0",
    "wal_receiver_timeout": "0",
}


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and its streaming standby."""
    with Servers(2, settings=SETTINGS) as servers:
        make_standby(servers[0], servers[1])
        yield servers[0], servers[1]


@pytest.fixture
def failing_over(pair: tuple[Server, Server], tmp_path: Path) -> ClusterConfig:
    """A cluster of one shard, whose DSN names both."""
    path = tmp_path / "cluster.yaml"
    path.write_text(
        f"name: test\nslots: 64\nshards: [{{name: s0, dsn: {either(*pair)!r}}}]\n"
        "lease: {ttl: 3, renew: 0.5, watch: 0.2}\npool: {timeout: 4, connect_timeout: 3}\n"
    )
    config = load_config(path)
    in_thread(cluster.init(config))
    return config


@pytest.fixture
def doubling() -> App:
    app = App("load")

    @app.workflow
    async def work(x: int) -> int:
        return 2 * x

    return app


def in_step(primary: Server) -> bool:
    """Whether the standby has replayed all that the primary has written."""
    query = "SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication"
    return bool(postgres.ask(primary.dsn, query))


async def fail_over(primary: Server, standby: Server) -> None:
    """The primary is killed and never comes back."""
    await asyncio.to_thread(primary.kill)
    await asyncio.to_thread(promote, standby)


async def test_with_a_synchronous_standby_nothing_acknowledged_is_lost(
    pair: tuple[Server, Server], failing_over: ClusterConfig
) -> None:
    primary, standby = pair
    await asyncio.to_thread(synchronous, primary, True)
    async with under_load(failing_over) as load:
        await load.acknowledged(COUNT // 2)
        await load.fault("failover")
        await fail_over(primary, standby)
        await load.acknowledged(COUNT // 2, "submits go on after the failover")
        await load.pause()
        missing = set(load.witness.acknowledged) - present(failing_over)
        assert not missing, f"{len(missing)} acknowledged submits are lost, the first: {sorted(missing)[0]}"
        await load.all_end()
        assert_i1(failing_over)
        verdict = load.verdict()
        print(verdict)
        assert verdict.clean, verdict


async def test_with_an_asynchronous_standby_the_loss_is_what_was_not_replicated_and_all_else_ends(
    pair: tuple[Server, Server], failing_over: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter, "CHECK_EVERY", 1.0)
    primary, standby = pair
    async with under_load(failing_over, pause=0.02) as load:
        witness = load.witness
        await load.acknowledged(COUNT // 3)
        await load.pause()
        await until(lambda: in_step(primary))
        kept = list(witness.acknowledged)
        stall_replication(primary)
        stalled = len(witness.lines)
        load.go()
        await load.acknowledged(COUNT // 3, "the primary goes on alone")
        await load.pause()
        lost = witness.acknowledged[len(kept) :]
        open_ = [id for id in lost if id not in witness.ended]
        waiting = [asyncio.create_task(load.handles[id].result(60)) for id in open_]
        await load.fault("failover")
        fault = [line for line in witness.lines if line.startswith(("plan", "fire"))]
        await asyncio.to_thread(primary.kill)
        for _ in range(100):
            await asyncio.sleep(0)  # what it had answered is read
        failed = len(witness.lines)
        await asyncio.to_thread(promote, standby)

        survived = present(failing_over)
        assert survived == set(kept), "the loss is what was acknowledged and not replicated, no more and no less"
        load.go()
        await load.acknowledged(COUNT // 3, "the cluster goes on")
        await load.pause()
        after = witness.acknowledged[len(kept) + len(lost) :]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        told = [error for error in outcomes if isinstance(error, WorkflowNotFound)]
        for id, outcome in zip(open_, outcomes, strict=True):  # some ended before the fault
            assert outcome == recompute(id)[1] or (isinstance(outcome, WorkflowNotFound) and repr(id) in str(outcome))
        await load.all_end(kept + after)
        assert_i1(failing_over)
        verdict = load.verdict()
        missing = {text.split()[0] for text in verdict.lost if text.endswith("has not ended")}
        assert missing == set(lost), "the checker sees the loss"
        # What the old primary said after the stall it said for nothing; all else must hold.
        true = [*witness.lines[:stalled], *fault, *witness.lines[failed:]]
        verdict = load.verdict(true)
        print(f"{len(kept)} kept, {len(lost)} lost of which {len(told)} were waited for, {len(after)} after")
        print(verdict)
        assert verdict.clean, verdict


async def test_a_shard_with_two_hosts_is_found_where_it_can_be_written(
    pair: tuple[Server, Server], failing_over: ClusterConfig
) -> None:
    primary, standby = pair
    given = conninfo_to_dict(either(primary, standby))
    for dsn in (either(primary, standby), either(standby, primary), make_conninfo(**given)):
        shard = Shard(replace(failing_over.shards[0], dsn=dsn))
        async with await shard.connect("commit") as conn:
            assert conn.info.port == primary.port, "the standby is passed over"
            assert await shard.timeline(conn) == 1
            assert not shard.demoted(conn)
    reading = Shard(replace(failing_over.shards[0], dsn=standby.dsn))
    async with await reading.connect("commit") as conn:
        with pytest.raises(ShardUnavailable, match="standby"):
            await reading.timeline(conn)
    await fail_over(primary, standby)
    async with await shard.connect("commit") as conn:
        assert conn.info.port == standby.port
        assert await shard.timeline(conn) == 2
    for dsn in (failing_over.shards[0].dsn, shard.config.dsn):
        shown = redact_dsn(dsn)
        assert given["password"] not in shown
        assert "***" in shown
        assert str(standby.port) in shown


async def test_who_submits_and_who_only_waits_leave_a_primary_that_became_read_only(
    pair: tuple[Server, Server], failing_over: ClusterConfig, doubling: App
) -> None:
    """The old primary lives on; who only waits for a result gets no error there, and would wait for ever."""
    primary, standby = pair
    async with AsyncClient(failing_over) as client, AsyncClient(failing_over) as reader:
        await client.submit("work", 1, id="one")
        waiting = asyncio.create_task((await reader.get("one")).result(100))
        await until(lambda: reader.waiter("s0")._awaited)
        await until(lambda: in_step(primary))
        await asyncio.to_thread(read_only, primary, True)
        await asyncio.to_thread(promote, standby)
        second = await client.submit("work", 2, id="two")
        assert present(replace(failing_over, shards=(ShardConfig("s0", standby.dsn),))) == {"one", "two"}
        async with running(failing_over, doubling):
            assert await waiting == 2
            assert await second.result(30) == 4


async def test_a_session_that_only_reads_is_not_used_again(shard_config: ClusterConfig) -> None:
    """As behind an address that moves to the new primary: only a new connection goes there."""
    quick = replace(shard_config, pool=replace(shard_config.pool, timeout=1.0, max_size=1))
    database = shard_config.shards[0].dsn.rsplit("/", 1)[1]
    async with AsyncClient(quick) as client:
        with connect(quick) as conn:
            conn.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = on')
            with pytest.raises(ShardUnavailable, match="takes no writes now"):
                await client.submit("work", 1, id="one")
            conn.execute("SET default_transaction_read_only = off")
            conn.execute(f'ALTER DATABASE "{database}" RESET default_transaction_read_only')
        assert (await client.submit("work", 1, id="one")).shard == "s0"


async def test_a_key_that_stands_for_another_workflow_gives_nobody_a_wrong_result(
    shard_config: ClusterConfig, doubling: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover that lost a workflow: the server gives its key to the next one."""
    monkeypatch.setattr(waiter, "CHECK_EVERY", 2.0)
    async with AsyncClient(shard_config) as client:
        lost = await client.submit("work", 1, id="lost")
        waiting = asyncio.create_task(lost.result(100))
        await until(lambda: client.waiter("s0")._awaited)
        rows(shard_config, "UPDATE workflow SET id = 'next' WHERE id = 'lost'")
        async with running(shard_config, doubling):
            assert await (await client.get("next")).result(30) == 2
            for answer in (waiting, lost.result(timeout=0)):
                with pytest.raises(WorkflowNotFound, match="'lost' is not there") as error:
                    await answer
                assert error.value.workflow_id == "lost"


async def test_who_waits_for_a_lost_workflow_gets_the_result_of_its_second_submit(
    shard_config: ClusterConfig, doubling: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter, "CHECK_EVERY", 0.5)
    async with AsyncClient(shard_config) as client, AsyncClient(shard_config) as other:
        first = await client.submit("work", 1, id="one")
        waiting = asyncio.create_task(first.result(100))
        await until(lambda: client.waiter("s0")._awaited)
        with connect(shard_config) as conn, conn.transaction():
            conn.execute("UPDATE workflow SET wf = wf + 1000")
            conn.execute("UPDATE ready SET wf = wf + 1000, seq = seq + 1000")
        assert (await other.get("one")).id == "one"
        async with running(shard_config, doubling):
            assert await waiting == 2
            assert await first.result(timeout=0) == 2
