"""What ended long ago is deleted, whole; what somebody may still need is not."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from conftest import MakeCluster
from support.lab import Lab
from support.look import assert_i1, connect, one, rows, total, until
from support.raw import Hand
from support.work import Gate, ids_on, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, RetentionConfig, Status
from shardflow.storage import retention

#: Whatever is recorded of workflows, by the table.
RECORDS = ("workflow", "outcome", "step", "event", "message", "retry", "cancel")
HOUR = 3600.0

app = App()
gate = Gate()


@app.step
async def note(text: str) -> str:
    return text


@app.workflow
async def work(text: str) -> str:
    if text == "fails":
        raise ValueError(text)
    await shardflow.set_event("seen", text)
    return await note(text)


@app.workflow
async def waits() -> str:
    heard: str = await shardflow.receive("go")
    return heard


@app.workflow
async def parent() -> str:
    child = await shardflow.start(work.call("child").set(id="{p}/child"))
    heard = await shardflow.receive("go")
    return f"{heard} {await child.result()}"


def keeping(config: ClusterConfig, **ages: float) -> ClusterConfig:
    return replace(config, retention=RetentionConfig(**ages))


def age(config: ClusterConfig, seconds: float, where: str = "true", shard: int = 0) -> None:
    """Makes workflows older than they are."""
    with connect(config, shard) as conn:
        conn.execute(
            f"UPDATE workflow SET submitted_at = submitted_at - %s * interval '1 s' WHERE {where}", (seconds,)
        )
        old = f"wf IN (SELECT wf FROM workflow WHERE {where})"
        conn.execute(f"UPDATE outcome SET finished_at = finished_at - %s * interval '1 s' WHERE {old}", (seconds,))


def look_thoroughly(config: ClusterConfig, shard: int = 0) -> None:
    rows(
        config, "UPDATE retention SET thorough_at = '-infinity', holder = NULL, held_until = '-infinity'", shard=shard
    )


def recorded(config: ClusterConfig, wf: int, shard: int = 0) -> dict[str, int]:
    """How many rows of each table are about it."""
    found = {t: one(config, f"SELECT count(*) FROM {t} WHERE wf = %s", wf, shard=shard) for t in RECORDS}
    return {table: number for table, number in found.items() if number}


def ids(config: ClusterConfig, shard: int = 0) -> list[str]:
    return [row[0] for row in rows(config, "SELECT id FROM workflow ORDER BY wf", shard=shard)]


async def test_each_kind_of_end_is_kept_as_long_as_it_is_to_be(shard_config: ClusterConfig) -> None:
    config = keeping(shard_config, succeeded=HOUR, failed=5 * HOUR, dead=HOUR)
    async with AsyncClient(config) as client:
        async with running(shard_config, app):
            for name in ("ancient", "old", "young"):  # keys and times go up together
                for text in ("well", "fails"):
                    handle = await client.submit(work, text, id=f"{name} {text}")
                    await until(lambda handle=handle: _ended(handle))
                waiting = await client.submit(waits, id=f"{name} waits")
                await client.send(waiting.id, "unheard", 1)
                await client.cancel((await client.submit(waits, id=f"{name} cancelled")).id)
                await client.submit(work, "lost", id=f"{name} dead", queue="nobody's")
            suspended = "SELECT count(*) FROM wait"
            await until(lambda: one(config, suspended) == 3)
            await until(lambda: one(config, "SELECT count(*) FROM outcome WHERE status = 'cancelled'") == 3)
        wf = {row[1]: row[0] for row in rows(config, "SELECT wf, id FROM workflow")}
        rows(config, "DELETE FROM ready")
        rows(config, "INSERT INTO outcome (wf, status) SELECT wf, 'dead' FROM workflow WHERE queue <> 'default'")
        age(config, 2 * HOUR, "id ~ '^old'")
        age(config, 9 * HOUR, "id ~ '^ancient'")
        gone = {"old well", "old dead", "ancient well", "ancient fails", "ancient dead"}
        async with running(config, app):
            await until(lambda: set(wf) - set(ids(config)) >= gone)
            await until(lambda: one(config, "SELECT count(*) FROM retention WHERE thorough_at > now()") == 3)
        assert set(wf) - set(ids(config)) == gone
        assert {i for i in wf if not recorded(config, wf[i])} == gone
        assert recorded(config, wf["young well"]) == {"workflow": 1, "outcome": 1, "step": 2, "event": 1}
        assert dict(rows(config, "SELECT status, deleted FROM retention")) == {
            "succeeded": 2,
            "failed": 1,
            "cancelled": 0,
            "dead": 2,
        }
        assert_i1(config)


async def _ended(handle: Any) -> bool:
    return bool((await handle.info()).status.final)


async def test_nothing_is_deleted_where_nothing_is_said(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work, "well", id="w")
        await handle.result(30)
        age(shard_config, 1e9)
        await until(
            lambda: one(shard_config, "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        )
        assert one(shard_config, "SELECT count(*) FROM retention WHERE holder IS NOT NULL") == 0
        assert await handle.result(0) == "well"


async def test_what_is_deleted_is_unknown_and_its_id_is_free(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work, "first", id="w")
        assert await handle.result(30) == "first"
        assert await client.purge("w")
        for ask in (
            client.purge("w"),
            client.resume("w"),
            client.restart("w"),
            client.cancel("w"),
            client.fork("w"),
            client.steps("w"),
            client.info("w"),
            client.send("w", "go", 1),
            client.event("w", "seen", timeout=0),
        ):
            with pytest.raises(shardflow.WorkflowNotFound):
                await ask
        with pytest.raises(shardflow.WorkflowNotFound, match="was deleted"):
            await handle.result(0)
        assert (await client.list()).workflows == ()
        again = await client.submit(work, "second", id="w")  # another input is no conflict
        assert await again.result(30) == "second"
        with pytest.raises(shardflow.WorkflowNotFound):  # the key is another one, the id the same
            await client.steps("v")
        assert await handle.result(0) == "second"


async def test_what_has_not_ended_cannot_be_deleted(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            handle = await client.submit(waits, id="suspended")
            await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 1)
            await client.submit(work, "x", id="ready", queue="nobody's")
            assert not await client.purge("suspended")
            assert not await client.purge("ready")
            assert (await client.purge_many()).count == 0
            assert_i1(shard_config)
            await client.send("suspended", "go", "on")
            assert await handle.result(30) == "on"
            assert (await client.purge_many()).count == 1
        assert ids(shard_config) == ["ready"]


async def test_many_are_deleted_by_filter_and_age(cluster_config: ClusterConfig) -> None:
    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        handles = await client.submit_many(
            work.call(str(n)).set(id=f"w{n}", attributes={"n": n % 2}) for n in range(60)
        )
        await asyncio.gather(*(handle.result(30) for handle in handles))
        for shard in range(3):
            age(cluster_config, 2 * HOUR, "substring(id FROM 2)::integer < 30", shard)
        assert (await client.purge_many(older_than=timedelta(hours=1), attributes={"n": 1})).count == 15
        assert (await client.purge_many(older_than=HOUR, status=Status.FAILED)).count == 0
        assert (await client.purge_many(older_than=HOUR)).count == 15
        assert total(cluster_config, "SELECT count(*) FROM workflow") == 30
        for wrong in (-1, float("nan"), True, "1h"):
            with pytest.raises(shardflow.InvalidInput, match="older_than"):
                await client.purge_many(older_than=wrong)  # type: ignore[arg-type]
        assert (await client.purge_many(name="work")).count == 30
        assert total(cluster_config, "SELECT count(*) FROM step") == 0


async def ended_by_hand(hand: Hand, *names: str) -> dict[str, int]:
    """Workflows that have ended, and that nothing names."""
    made = await hand.submit(await hand.conn(), *names)
    with connect(hand.config) as conn:
        conn.execute("DELETE FROM ready")
        conn.execute(
            "INSERT INTO outcome (wf, status) SELECT unnest(%s::bigint[]), 'succeeded'", (list(made.values()),)
        )
        conn.execute("INSERT INTO step (wf, seq, name) SELECT unnest(%s::bigint[]), 0, 's'", (list(made.values()),))
    return made


@pytest.fixture
async def hand(shard_config: ClusterConfig) -> Any:
    made = Hand(shard_config)
    yield made
    await made.close()


def forget(conn: Any, wfs: list[int], status: str | None = None) -> set[int]:
    conn.execute("SET lock_timeout = '5s'")  # it waits for nobody
    return set(conn.execute("SELECT forget(%s, %s, now() + interval '1 d')", (wfs, status)).fetchone()[0])


async def test_what_somebody_needs_is_passed_over(hand: Hand) -> None:
    made = await ended_by_hand(hand, "claimed", "watched", "moved", "frozen", "locked", "lost", "done")
    every = list(made.values())
    assert one(hand.config, "SELECT count(DISTINCT slot) FROM workflow") == len(made)  # each has one reason alone
    with connect(hand.config) as conn, connect(hand.config) as other:
        conn.execute("INSERT INTO lease (worker, session, expires_at) VALUES ('w', false, now())")
        conn.execute(
            "INSERT INTO claim SELECT lease, 1, ARRAY[%s::bigint], ARRAY[0::smallint] FROM lease", (made["claimed"],)
        )
        conn.execute("INSERT INTO watcher (wf, topic, id) VALUES (%s, 'shardflow.after', 'x')", (made["watched"],))
        for name in ("moved", "frozen"):
            place = "(SELECT slot FROM workflow WHERE id = %s)"
            conn.execute(f"UPDATE slot SET state = %s WHERE slot = {place}", (name, name))
        conn.execute("DELETE FROM outcome WHERE wf = %s", (made["lost"],))  # it runs again
        with other.transaction():
            other.execute("SELECT FROM workflow WHERE id = 'locked' FOR NO KEY UPDATE")
            assert forget(conn, every, "failed") == set()
            assert forget(conn, every) == {made["done"]}
        conn.execute("DELETE FROM claim")
        conn.execute("DELETE FROM watcher")
        conn.execute("UPDATE slot SET state = 'active'")
        assert forget(conn, every) == set(every) - {made["done"], made["lost"]}
        assert recorded(hand.config, made["lost"]) == {"workflow": 1, "step": 1}
        assert one(hand.config, "SELECT count(*) FROM step") == 1


async def test_a_workflow_that_goes_on_while_it_is_to_be_deleted_goes_on(hand: Hand) -> None:
    """The deletion has found it, waits for the server, and comes when it has been resumed."""
    made = await ended_by_hand(hand, "w")
    rows(hand.config, "UPDATE outcome SET status = 'failed'")
    with connect(hand.config) as conn, connect(hand.config) as other:
        other.execute("BEGIN")
        other.execute("SELECT resume(ARRAY['w'], false)")
        assert forget(conn, [made["w"]]) == set()
        other.execute("COMMIT")
        assert forget(conn, [made["w"]]) == set()
    assert_i1(hand.config)
    assert one(hand.config, "SELECT count(*) FROM ready") == 1


async def test_a_purge_takes_the_workflow_out_of_its_receipt(hand: Hand) -> None:
    made = await hand.submit(await hand.conn(), "a", "b")
    holder = await hand.holder("worker")
    await holder.claim(10)
    rows(hand.config, "INSERT INTO outcome (wf, status) VALUES (%s, 'succeeded')", made["a"])
    generation = hand.generation
    conn = await hand.conn()
    assert await retention.purge(hand.shard, conn, generation, ["a", "b", "c"], 0.0) == {"a": True, "b": False}
    assert rows(hand.config, "SELECT wfs, attempts FROM claim") == [([made["b"]], [0])]
    assert_i1(hand.config)


async def test_one_at_a_time_until_its_time_is_over(hand: Hand) -> None:
    await ended_by_hand(hand, *(f"w{n}" for n in range(10)))
    shard, conn = hand.shard, await hand.conn()
    first = await retention.take(shard, conn, "one", Status.SUCCEEDED)
    assert first is not None
    assert (first.front, first.thorough) == (0, True)
    assert await retention.take(shard, conn, "two", Status.SUCCEEDED) is None
    assert await retention.take(shard, conn, "two", Status.FAILED) is not None
    assert await retention.take(shard, conn, "one", Status.SUCCEEDED) == first
    rows(hand.config, "UPDATE retention SET held_until = now()")
    assert await retention.take(shard, conn, "two", Status.SUCCEEDED) == first

    async def delete(worker: str, most: int) -> retention.Batch | None:
        span = (0, first.end - 1)
        return await retention.delete(
            shard, conn, hand.generation, worker, Status.SUCCEEDED, 0.0, span, most, 10.0, front=True
        )

    assert await delete("one", 3) is None
    done = await delete("two", 4)
    assert done is not None
    assert (done.seen, done.gone) == (4, 4)
    assert one(hand.config, "SELECT front FROM retention WHERE status = 'succeeded'") == done.last
    assert await delete("two", 9) is not None
    assert one(hand.config, "SELECT count(*) FROM workflow") == 0
    assert one(hand.config, "SELECT front FROM retention WHERE status = 'succeeded'") == first.end - 1
    with pytest.raises(shardflow.errors.MapChanged):
        await retention.delete(
            shard, conn, hand.generation + 1, "two", Status.SUCCEEDED, 0.0, (0, 1), 1, 10.0, front=True
        )


async def test_the_edge_of_an_age_is_found(hand: Hand) -> None:
    made = await hand.submit(await hand.conn(), *(f"w{n}" for n in range(100)))
    keys = sorted(made.values())
    conn = await hand.conn()
    assert await retention.edge(hand.shard, conn, 1, HOUR) < keys[0]
    rows(hand.config, "UPDATE workflow SET submitted_at = submitted_at - interval '2 h' WHERE wf <= %s", keys[40])
    assert await retention.edge(hand.shard, conn, 1, HOUR) == keys[40]
    assert await retention.edge(hand.shard, conn, keys[20], HOUR) == keys[40]
    assert await retention.edge(hand.shard, conn, keys[60], HOUR) == keys[60] - 1
    assert await retention.edge(hand.shard, conn, 1, 0.0) >= keys[-1]


async def test_what_ends_late_and_what_was_passed_over_goes_with_a_thorough_look(shard_config: ClusterConfig) -> None:
    config = keeping(shard_config, succeeded=HOUR)
    async with AsyncClient(config) as client, running(config, app):
        late = await client.submit(waits, id="late")
        await (await client.submit(work, "x", id="old")).result(30)
        age(config, 2 * HOUR)
        await until(lambda: ids(config) == ["late"])
        await until(lambda: one(config, "SELECT thorough_at > now() FROM retention WHERE status = 'succeeded'"))
        await client.send("late", "go", "now")
        assert await late.result(30) == "now"
        age(config, 2 * HOUR)
        look_thoroughly(config)
        await until(lambda: ids(config) == [])


async def test_slots_that_came_from_another_shard_are_looked_at(shard_config: ClusterConfig) -> None:
    config = keeping(shard_config, succeeded=HOUR)
    async with AsyncClient(config) as client:
        async with running(shard_config, app):
            for n in range(3):
                await (await client.submit(work, "x", id=f"w{n}")).result(30)
        for table in RECORDS:
            rows(config, f"UPDATE {table} SET wf = wf + (3::bigint << 44)")
        age(config, 2 * HOUR)
        async with running(config, app):
            await until(lambda: ids(config) == [])
    assert total(config, "SELECT count(*) FROM step") == 0


async def test_a_parent_has_the_result_of_a_child_that_is_gone(shard_config: ClusterConfig) -> None:
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            handle = await client.submit(parent, id="{p}")
            delivered = "SELECT count(*) FROM message WHERE topic = 'shardflow.child'"
            await until(lambda: one(shard_config, delivered) == 1)
            assert await client.purge("{p}/child")
        async with running(shard_config, app):  # the parent runs over its checkpoints
            await client.send("{p}", "go", "then")
            assert await handle.result(30) == "then child"
        assert ids(shard_config) == ["{p}"]


async def test_a_parent_hears_of_an_end_that_was_delivered_after_the_child_was_gone(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=2)
    elsewhere = ids_on(config, 1, 1, "child")[0]
    app = App()

    @app.workflow
    async def child() -> str:
        await shardflow.receive("end")
        return "ended"

    @app.workflow
    async def far_parent() -> str:
        return await (await shardflow.start(child.call().set(id=elsewhere))).result()

    async with AsyncClient(config) as client, running(config, app):
        handle = await client.submit(far_parent, id=ids_on(config, 0, 1)[0])
        await until(lambda: total(config, "SELECT count(*) FROM wait") == 2)
        lab.server(0).stop()
        await client.send(elsewhere, "end", None)
        await until(lambda: one(config, "SELECT count(*) FROM outbox", shard=1) == 1)
        assert await client.purge(elsewhere)
        assert one(config, "SELECT count(*) FROM workflow", shard=1) == 0
        lab.server(0).start()
        assert await handle.result(60) == "ended"
        await until(lambda: one(config, "SELECT count(*) FROM outbox", shard=1) == 0)


async def test_nothing_can_run_after_one_that_is_gone(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardflow.worker.relay.PATIENCE", 0.0)
    async with AsyncClient(shard_config) as client:
        async with running(shard_config, app):
            await (await client.submit(work, "x", id="first")).result(30)
        handle = await client.submit(work, "y", after="first")
        runs = await client.submit(work, "z", after="first", on_failure="run")
        assert await client.purge("first")  # nobody has registered there yet
        with pytest.raises(shardflow.WorkflowNotFound, match="submit it first"):
            await client.submit(work, "y", after="first")
        async with running(shard_config, app):
            with pytest.raises(shardflow.WorkflowFailed, match="no workflow has the id 'first'"):
                await handle.result(30)
            assert await runs.result(30) == "z"


async def test_a_message_to_one_that_is_being_deleted_waits_and_finds_nobody(hand: Hand) -> None:
    made = await ended_by_hand(hand, "w")
    async with AsyncClient(hand.config) as client:
        with connect(hand.config) as conn:
            conn.execute("BEGIN")
            assert forget(conn, [made["w"]]) == {made["w"]}
            sending = asyncio.create_task(client.send("w", "go", 1))
            submitting = asyncio.create_task(client.submit(work, "again", id="w"))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            await until(lambda: one(hand.config, waiting) == 2)
            conn.execute("COMMIT")
        again = await submitting
        try:
            await sending  # after the new one was there, or before
        except shardflow.WorkflowNotFound:
            pass
        async with running(hand.config, app):
            assert await again.result(30) == "again"
    assert one(hand.config, "SELECT count(*) FROM message WHERE wf NOT IN (SELECT wf FROM workflow)") == 0
