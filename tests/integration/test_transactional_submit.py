"""Submitting and sending in a transaction of the caller's own."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
import pytest
from conftest import MakeCluster
from psycopg import AsyncConnection, IsolationLevel
from support.look import assert_i1, one, rows, total, until
from support.work import ids_on, running

import shardflow
from shardflow import App, AsyncClient, Client, ClusterConfig, ClusterError, InvalidInput, UsageError
from shardflow.core.routing import slot_of
from shardflow.errors import MapChanged

app = App()


@app.workflow
async def greet(name: str) -> str:
    return f"hello {name}"


@app.workflow
async def listen() -> object:
    return await shardflow.receive("n", timeout=20)


THERE = "SELECT count(*) FROM workflow"


async def open_to(config: ClusterConfig, shard: int = 0) -> AsyncConnection[Any]:
    return await AsyncConnection.connect(config.shards[shard].dsn)


async def test_on_the_connections_shard_it_is_part_of_the_transaction(cluster_config: ClusterConfig) -> None:
    id = ids_on(cluster_config, 0, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await conn.execute("CREATE TABLE paid (name text)")
        await conn.execute("INSERT INTO paid VALUES ('ann')")
        handle = await client.submit(greet, "ann", id=id, connection=conn)
        assert total(cluster_config, THERE) == 0, "it was seen before the commit"
        waiting = asyncio.create_task(handle.result(30))
        await conn.commit()
        assert one(cluster_config, THERE) == 1
        assert total(cluster_config, "SELECT count(*) FROM outbox") == 0
        async with running(cluster_config, app):
            assert await waiting == "hello ann"
        assert rows(cluster_config, "SELECT w.xmin::text FROM workflow w") == rows(
            cluster_config, "SELECT xmin::text FROM public.paid"
        )


async def test_a_rollback_takes_it_back(cluster_config: ClusterConfig) -> None:
    here, there = ids_on(cluster_config, 0, 1)[0], ids_on(cluster_config, 1, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        handles = [await client.submit(greet, "ann", id=id, connection=conn) for id in (here, there)]
        await conn.rollback()
        for handle in handles:
            with pytest.raises(shardflow.ResultTimeout, match="has not committed"):
                await handle.result(0)
    assert total(cluster_config, THERE) == 0
    assert total(cluster_config, "SELECT count(*) FROM outbox") == 0


async def test_to_another_shard_it_goes_through_the_outbox(cluster_config: ClusterConfig) -> None:
    ids = [*ids_on(cluster_config, 1, 2), *ids_on(cluster_config, 2, 2)]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        handles = [
            await client.submit(greet, "ann", id=id, priority=3, attributes={"a": 1}, connection=conn) for id in ids
        ]
        await conn.commit()
        assert total(cluster_config, THERE) == 0
        assert one(cluster_config, "SELECT count(*) FROM outbox WHERE lease = 0") == 4
        async with running(cluster_config, app):
            assert [await handle.result(30) for handle in handles] == ["hello ann"] * 4
            await until(lambda: total(cluster_config, "SELECT count(*) FROM outbox") == 0)
        assert [h.shard for h in handles] == ["s1", "s1", "s2", "s2"]
        assert rows(cluster_config, "SELECT priority, attributes FROM workflow", shard=1) == [(3, {"a": 1})] * 2
    assert_i1(cluster_config)


async def test_ids_that_are_made_belong_to_the_connections_shard(cluster_config: ClusterConfig) -> None:
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config, 2) as conn:
        for _ in range(5):
            assert (await client.submit(greet, "ann", connection=conn)).shard == "s2"
        await conn.commit()
    assert one(cluster_config, THERE, shard=2) == 5


def test_the_synchronous_client_and_a_plain_connection(cluster_config: ClusterConfig) -> None:
    here, there = ids_on(cluster_config, 0, 1)[0], ids_on(cluster_config, 1, 1)[0]
    with Client(cluster_config) as client, psycopg.connect(cluster_config.shards[0].dsn, autocommit=True) as conn:
        with conn.transaction():
            client.submit(greet, "ann", id=here, connection=conn)
            client.submit(greet, "ann", id=there, connection=conn)
            assert total(cluster_config, THERE) == 0
        assert one(cluster_config, THERE) == 1
        assert one(cluster_config, "SELECT count(*) FROM outbox") == 1


async def test_the_same_id_again_and_a_conflict(cluster_config: ClusterConfig) -> None:
    here = ids_on(cluster_config, 0, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        first = await client.submit(greet, "ann", id=here)
        again = await client.submit(greet, "ann", id=here, connection=conn)
        assert again._wf == first._wf
        with pytest.raises(shardflow.WorkflowConflict, match="another input"):
            await client.submit(greet, "bob", id=here, connection=conn)
        await conn.execute("SELECT 1")  # the transaction goes on
        await conn.commit()
    assert total(cluster_config, THERE) == 1


async def test_a_conflict_behind_the_relay_is_logged_and_ends(
    cluster_config: ClusterConfig, caplog: pytest.LogCaptureFixture
) -> None:
    there = ids_on(cluster_config, 1, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await client.submit(greet, "ann", id=there)
        await client.submit(greet, "bob", id=there, connection=conn)
        await conn.commit()
        with caplog.at_level(logging.ERROR, "shardflow.worker"):
            async with running(cluster_config, app):
                await until(lambda: total(cluster_config, "SELECT count(*) FROM outbox") == 0)
                assert await (await client.get(there, greet)).result(30) == "hello ann"
    assert [r.message for r in caplog.records if "dropped" in r.message]


async def test_connections_that_cannot_serve(cluster_config: ClusterConfig, make_cluster: MakeCluster) -> None:
    other = make_cluster(shards=1, init=False)
    async with AsyncClient(cluster_config) as client:
        with pytest.raises(InvalidInput, match=r"psycopg\.Connection"):
            await client.submit(greet, "ann", connection=42)
        async with await open_to(cluster_config) as conn:
            await conn.set_autocommit(True)
            with pytest.raises(UsageError, match=r"autocommit mode and no transaction"):
                await client.submit(greet, "ann", connection=conn)
            async with conn.transaction():
                await client.submit(greet, "ann", connection=conn)
            await conn.set_autocommit(False)
            with pytest.raises(psycopg.Error):
                await conn.execute("SELECT 1/0")
            with pytest.raises(UsageError, match="roll it back"):
                await client.submit(greet, "ann", connection=conn)
        with pytest.raises(UsageError, match="closed"):
            await client.submit(greet, "ann", connection=conn)
        async with await open_to(other) as conn:
            with pytest.raises(ClusterError, match="holds no shard of this cluster"):
                await client.submit(greet, "ann", connection=conn)
    assert total(cluster_config, THERE) == 1
    with Client(cluster_config) as client_, pytest.raises(InvalidInput, match="event loop"):
        client_.submit(greet, "ann", connection=await open_to(cluster_config))


async def test_another_cluster_of_the_same_name_is_not_taken_for_this_one(make_cluster: MakeCluster) -> None:
    one_, two = make_cluster(shards=1, init=False), make_cluster(shards=1, init=False)
    from shardflow.storage import cluster

    await cluster.init(one_)
    await cluster.init(two)
    async with AsyncClient(one_) as client, await open_to(two) as conn:
        with pytest.raises(ClusterError, match="holds no shard of this cluster"):
            await client.submit(greet, "ann", connection=conn)
    assert one(two, THERE) == 0


def give_away(config: ClusterConfig, id: str) -> None:
    """Shard 1 has the slot of this id now, which was shard 0's."""
    slot = slot_of(id, config.slots)
    rows(config, "UPDATE slot SET state = 'moved', shard = 's1' WHERE slot = %s", slot, shard=0)
    rows(config, "UPDATE slot SET state = 'active', shard = 's1' WHERE slot = %s", slot, shard=1)
    for shard in (0, 1):
        rows(config, "UPDATE shard SET generation = generation + 1", shard=shard)


async def test_a_slot_that_has_moved_is_left_to_the_relay(cluster_config: ClusterConfig) -> None:
    first, second = ids_on(cluster_config, 0, 2)
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await client.submit(greet, "ann", id=first)  # the client's map is of before
        give_away(cluster_config, second)
        handle = await client.submit(greet, "ann", id=second, connection=conn)
        await conn.commit()
        assert one(cluster_config, "SELECT count(*) FROM outbox") == 1
        async with running(cluster_config, app):
            await until(lambda: one(cluster_config, THERE + " WHERE id = %s", second, shard=1))
            assert await (await AsyncClient(cluster_config).get(second, greet)).result(30) == "hello ann"
    assert handle.id == second
    assert one(cluster_config, THERE) == 1


async def test_the_slots_stay_until_the_transaction_ends(cluster_config: ClusterConfig) -> None:
    id = ids_on(cluster_config, 0, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await client.submit(greet, "ann", id=id, connection=conn)
        lock = "SELECT pg_try_advisory_xact_lock(hashtextextended('shardflow:map', 0))"
        assert not one(cluster_config, lock)
        await conn.commit()
        assert one(cluster_config, lock)


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
async def test_a_snapshot_from_before_the_slots_changed(cluster_config: ClusterConfig, level: IsolationLevel) -> None:
    id = ids_on(cluster_config, 0, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await conn.set_isolation_level(level)
        await conn.execute("SELECT 1")
        await client.delivery.router.load()
        give_away(cluster_config, id)
        with pytest.raises(MapChanged, match="roll back and begin anew"):
            await client.submit(greet, "ann", id=id, connection=conn)
        await conn.rollback()
        await client.submit(greet, "ann", id=id, connection=conn)
        await conn.commit()
    assert total(cluster_config, THERE) == 0
    assert one(cluster_config, "SELECT count(*) FROM outbox") == 1


async def test_what_is_run_after_others_needs_them_to_be_there(cluster_config: ClusterConfig) -> None:
    here, there = ids_on(cluster_config, 0, 3), ids_on(cluster_config, 1, 2)
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await client.submit(greet, "a", id=there[0])
        await client.submit(greet, "b", id=here[0], connection=conn)
        await client.submit(greet, "c", id=there[1], connection=conn)
        last = await client.submit(greet, "d", id=here[1], after=[here[0], there[0]], connection=conn)
        with pytest.raises(shardflow.WorkflowNotFound, match=there[1]):  # it is on its way only
            await client.submit(greet, "e", id=here[2], after=[there[1]], connection=conn)
        await conn.commit()
        async with running(cluster_config, app):
            assert await last.result(30) == "hello d"


async def test_messages_in_a_transaction(cluster_config: ClusterConfig) -> None:
    here, there = ids_on(cluster_config, 0, 1)[0], ids_on(cluster_config, 1, 1)[0]
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        handles = [await client.submit(listen, id=id) for id in (here, there)]
        for id in (here, there):
            await client.send(id, "n", "lost", connection=conn)
        await conn.rollback()
        for id in (here, there):
            await client.send(id, "n", "kept", connection=conn)
        assert total(cluster_config, "SELECT count(*) FROM message") == 0
        with pytest.raises(shardflow.WorkflowNotFound, match="nobody"):
            await client.send(f"nobody{{{here}}}", "n", 1, connection=conn)
        await conn.commit()
        async with running(cluster_config, app):
            assert [await handle.result(30) for handle in handles] == ["kept", "kept"]
    with Client(cluster_config) as plain, psycopg.connect(cluster_config.shards[0].dsn) as conn_:
        plain.send(here, "n", "again", connection=conn_)
        conn_.commit()
    assert one(cluster_config, "SELECT count(*) FROM message WHERE NOT taken") == 1


async def test_a_role_without_rights_is_told_so(cluster_config: ClusterConfig) -> None:
    async with AsyncClient(cluster_config) as client, await open_to(cluster_config) as conn:
        await conn.execute("CREATE ROLE nobody_special")
        await conn.execute("SET LOCAL ROLE nobody_special")
        with pytest.raises(shardflow.ShardflowError, match="may not use the schema 'shardflow'"):
            await client.submit(greet, "ann", connection=conn)
        await conn.execute("SELECT 1")  # the transaction has not failed
