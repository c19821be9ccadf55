"""Rows that nobody waits for and the server refuses (suspensions, failed tries, ends of what did not begin,
deletions), children that it refuses, and rows that are there already: each ends its own workflow only."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from support.look import assert_i1, connect, one, rows, terminate, total, until
from support.work import Gate, ids_on, running

import shardflow
from shardflow import App, AsyncClient, ClusterConfig, Retry, WorkflowFailed
from shardflow.storage import leases
from shardflow.worker import control, poison, relay, steps

#: Refuses rows of workflows whose id begins with "bad".
GUARD = """
CREATE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF (SELECT id FROM shardflow.workflow w WHERE w.wf = NEW.wf) LIKE 'bad%%' THEN
        RAISE EXCEPTION 'no bad ones' USING ERRCODE = '23514';
    END IF;
    RETURN NEW;
END $$
"""


def refuse(config: ClusterConfig, table: str, shard: int = 0, when: str = "true") -> None:
    with connect(config, shard) as conn:
        conn.execute(GUARD)
        conn.execute(
            f"CREATE TRIGGER guard BEFORE INSERT ON {table} FOR EACH ROW WHEN ({when})"
            " EXECUTE FUNCTION public.guard()"
        )


def waiting(gate: Gate | None = None) -> App:
    app = App()

    @app.step
    async def pause() -> None:
        if gate is not None:
            await gate.wait()

    @app.step(retry=Retry(attempts=3, initial=0.3, factor=1.0, jitter=0.0))
    async def flaky() -> None:
        if gate is not None:
            await gate.wait()
        raise ValueError("no")

    @app.workflow
    async def waits() -> str:
        await pause()
        return str(await shardflow.receive("go"))

    @app.workflow
    async def tries() -> int:
        try:
            await flaky()
        except shardflow.StepFailed as error:
            return error.attempts
        return 0

    @app.workflow
    async def branches() -> int:
        """One branch's try is refused while the other one is suspended."""
        await asyncio.gather(tries_once(), shardflow.receive("go"))
        return 0

    async def tries_once() -> None:
        await flaky()

    return app


async def refused(handle: Any, what: str) -> None:
    with pytest.raises(WorkflowFailed, match="no bad ones") as failed:
        await handle.result(30)
    assert failed.value.type == "shardflow.errors.Refused"
    assert what in str(failed.value)


@pytest.mark.parametrize("bad", [1, 3])
async def test_a_refused_suspension_ends_its_own_workflow(shard_config: ClusterConfig, bad: int) -> None:
    refuse(shard_config, "wait")
    gate = Gate()
    async with AsyncClient(shard_config) as client, running(shard_config, waiting(gate)):
        ids = [*(f"bad{n}" for n in range(bad)), *(f"w{n}" for n in range(20))]
        handles = {id: await client.submit("waits", id=id) for id in ids}
        await until(lambda: gate.arrived == len(ids))
        lease = one(shard_config, "SELECT lease FROM lease")
        gate.open()
        for n in range(bad):
            await refused(handles[f"bad{n}"], "the workflow's suspension")
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 20)
        assert_i1(shard_config)
        for n in range(20):
            await client.send(f"w{n}", "go", n)
        assert [await handles[f"w{n}"].result(30) for n in range(20)] == [str(n) for n in range(20)]
        assert one(shard_config, "SELECT lease FROM lease") == lease, "the lease was lost over it"
    assert_i1(shard_config)


@pytest.mark.parametrize("long", [False, True])
async def test_a_refused_try_ends_its_own_workflow(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, long: bool
) -> None:
    """Whether the run waits for the next one in memory or is suspended."""
    monkeypatch.setattr(steps, "LONG_PAUSE", 0.1 if long else 10.0)
    refuse(shard_config, "retry")
    gate = Gate()
    async with AsyncClient(shard_config) as client, running(shard_config, waiting(gate)):
        ids = ["bad0", *(f"w{n}" for n in range(10)), "bad1"]
        handles = {id: await client.submit("tries", id=id) for id in ids}
        await until(lambda: gate.arrived == len(ids))
        lease = one(shard_config, "SELECT lease FROM lease")
        gate.open()
        for id in ("bad0", "bad1"):
            await refused(handles[id], "a failed try of step 0 ('flaky')")
        assert [await handles[f"w{n}"].result(30) for n in range(10)] == [3] * 10
        assert one(shard_config, "SELECT lease FROM lease") == lease
        assert one(shard_config, "SELECT count(*) FROM retry") == 0
    assert_i1(shard_config)


async def test_a_refused_try_ends_what_its_branches_do_too(shard_config: ClusterConfig) -> None:
    refuse(shard_config, "retry")
    async with AsyncClient(shard_config) as client, running(shard_config, waiting()):
        await refused(await client.submit("branches", id="bad"), "a failed try")
        await client.send("bad", "go")
        assert one(shard_config, "SELECT count(*) FROM wait") == 0
    assert_i1(shard_config)


async def test_an_entry_that_cannot_be_deleted_stays_and_holds_up_nothing(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(cluster_config) as conn:
        conn.execute(
            "CREATE FUNCTION public.stay() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'it stays' USING ERRCODE = '23514'; END $$"
        )
        conn.execute(
            "CREATE TRIGGER stay BEFORE DELETE ON outbox FOR EACH ROW WHEN (OLD.key = 'stays')"
            " EXECUTE FUNCTION public.stay()"
        )
    *targets, last = ids_on(cluster_config, 1, 11)
    left = "INSERT INTO outbox (lease, target, topic, key, value) VALUES (0, %s, 'go', %s, '1')"
    posted, real = Counter[str | None](), relay.Relay._post

    def post(self: relay.Relay, entry: Any, shard: str) -> None:
        posted[entry.key] += 1
        real(self, entry, shard)

    monkeypatch.setattr(relay.Relay, "_post", post)
    async with AsyncClient(cluster_config) as client, running(cluster_config, waiting()):
        handles = {id: await client.submit("waits", id=id) for id in targets}
        for id in targets:
            rows(cluster_config, left, id, "stays" if id == targets[3] else "k")
        for handle in handles.values():
            assert await handle.result(30) == "1"
        await until(lambda: one(cluster_config, "SELECT count(*) FROM outbox") == 1)
        terminate(cluster_config, "commit")  # the lease is resumed, and its outbox read
        handle = await client.submit("waits", id=last)
        rows(cluster_config, left, last, "k")
        assert await handle.result(30) == "1"
        await until(lambda: one(cluster_config, "SELECT count(*) FROM outbox") == 1)
    assert posted["stays"] == 1


async def test_a_workflow_whose_every_end_is_refused_is_put_aside(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its neighbours begin over once; then it waits by itself."""
    monkeypatch.setattr(control, "ASIDE", 600.0)
    refuse(shard_config, "outcome")
    async with AsyncClient(shard_config) as client, running(shard_config, waiting()):
        await client.submit("tries", id="bad")
        aside = "SELECT count(*) FROM wait WHERE reason = 'the shard refuses its end'"
        await until(lambda: one(shard_config, aside) == 1)
        lease = one(shard_config, "SELECT max(lease) FROM lease")
        assert await (await client.submit("tries", id="w")).result(30) == 3
        assert one(shard_config, "SELECT max(lease) FROM lease") == lease
        assert await client.cancel("w") is False
        assert_i1(shard_config)


async def test_a_refused_end_from_outside_is_put_aside(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ASIDE", 600.0)
    refuse(shard_config, "outcome", when="NEW.status = 'failed'")
    async with AsyncClient(shard_config) as client:
        await client.submit("waits", id="bad", timeout=0.1, delay=0.2)
        async with running(shard_config, waiting()):
            aside = "SELECT count(*) FROM wait WHERE reason = 'the shard refuses its end'"
            await until(lambda: one(shard_config, aside) == 1)
            handle = await client.submit("waits", id="w")
            await client.send("w", "go", 1)
            assert await handle.result(30) == "1"
        assert_i1(shard_config)


async def test_a_refused_child_fails_its_own_parent_only(make_cluster: Any) -> None:
    """Starts of many parents go in one statement; so do messages."""
    config, gate = make_cluster(2), Gate()
    app = App()

    @app.step
    async def pause() -> None:
        await gate.wait()

    @app.workflow
    async def child() -> int:
        return 1

    @app.workflow
    async def parent(id: str) -> int:
        await pause()
        return int(await (await shardflow.start(child.call().set(id=id))).result())

    @app.workflow
    async def cautious(id: str) -> str:
        """What it is told of the error is the same on replay."""
        await pause()
        try:
            await shardflow.start(child.call().set(id=id))
        except shardflow.InvalidInput as error:
            await shardflow.receive("go")
            return str(error)
        return "started"

    with connect(config, 1) as conn:
        conn.execute("ALTER TABLE workflow ADD CONSTRAINT no_bad CHECK (id NOT LIKE 'bad%')")
    good, bad = ids_on(config, 1, 12, "kid"), ids_on(config, 1, 2, "bad")
    here = ids_on(config, 0, 14, "parent")
    async with AsyncClient(config) as client, running(config, app):
        handles = [await client.submit(parent, kid, id=id) for id, kid in zip(here, good, strict=False)]
        failing = await client.submit(parent, bad[0], id=here[12])
        told = await client.submit(cautious, bad[1], id=here[13])
        await until(lambda: gate.arrived == 14)
        gate.open()
        assert [await handle.result(30) for handle in handles] == [1] * 12
        with pytest.raises(WorkflowFailed, match="no_bad"):
            await failing.result(30)
        await until(lambda: total(config, "SELECT count(*) FROM wait") == 1)
        await client.send(told.id, "go")
        assert "shard 's1' refused it" in await told.result(30)


async def test_a_replay_that_does_not_see_its_records_ends_soon(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a defect would be; its neighbours are replayed once, and end well."""
    real, blind = leases.recorded, set[int]()

    async def recorded(*args: Any) -> Any:
        found, clock = await real(*args)
        return {wf: each._replace(checkpoints={}) if wf in blind else each for wf, each in found.items()}, clock

    monkeypatch.setattr(leases, "recorded", recorded)
    gate = Gate()
    async with AsyncClient(shard_config) as client, running(shard_config, waiting(gate)):
        handles = {id: await client.submit("waits", id=id) for id in ("blind", *(f"w{n}" for n in range(5)))}
        gate.open()
        await until(lambda: one(shard_config, "SELECT count(*) FROM wait") == 6)
        blind.add(one(shard_config, "SELECT wf FROM workflow WHERE id = 'blind'"))
        for id in handles:
            await client.send(id, "go", id)
        with pytest.raises(WorkflowFailed, match="recorded already") as failed:
            await handles["blind"].result(60)
        assert failed.value.type == "shardflow.errors.NonDeterminism"
        for n in range(5):
            assert await handles[f"w{n}"].result(30) == f"w{n}"
        assert one(shard_config, "SELECT max(lease) - min(lease) FROM lease") in (0, None)
    assert poison.REPEATS == 2
    assert_i1(shard_config)


async def test_an_entry_that_its_target_refuses_is_tried_again_ever_more_rarely(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tries = make_cluster(2), 0
    real = relay.Relay._post

    def post(self: relay.Relay, entry: Any, shard: str) -> None:
        nonlocal tries
        tries += entry.key == "bad"
        real(self, entry, shard)

    monkeypatch.setattr(relay.Relay, "_post", post)
    monkeypatch.setattr(relay, "AGAIN", 0.05)
    with connect(config, 1) as conn:
        conn.execute("ALTER TABLE message ADD CONSTRAINT no_bad CHECK (key <> 'bad')")
    left = "INSERT INTO outbox (lease, target, topic, key, value) VALUES (0, %s, 'go', %s, '1')"
    there, other = ids_on(config, 1, 2)
    async with AsyncClient(config) as client, running(config, waiting()):
        handle, last = [await client.submit("waits", id=id) for id in (there, other)]
        rows(config, left, there, "bad")
        rows(config, left, there, "good")
        assert await handle.result(30) == "1"
        await until(lambda: tries >= 4)
        rows(config, left, other, "good")
        assert await last.result(30) == "1"
        with connect(config, 1) as conn:
            conn.execute("ALTER TABLE message DROP CONSTRAINT no_bad")
        await until(lambda: one(config, "SELECT count(*) FROM outbox") == 0)
    assert tries <= 12, "it did not become rarer"
