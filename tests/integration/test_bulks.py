"""More than a few at once: what is there already, what meets others, what asks for more; more than a page of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.look import connect, one, rows, until
from support.work import running

from shardflow import App, AsyncClient, ClusterConfig, ShardUnavailable, WorkflowConflict
from shardflow.client import waiter
from shardflow.client.control import PAGE
from shardflow.core.childids import Children
from shardflow.definitions import Call
from shardflow.delivery import courier
from shardflow.model import Bulk
from shardflow.storage import post, submissions
from shardflow.storage.messages import Letter
from shardflow.storage.shard import Conn, Shard
from shardflow.storage.submissions import Outcome
from shardflow.worker import alarm

app = App("bulks")


@app.workflow
async def work(n: int) -> int:
    return n


@app.workflow
async def text(n: int, size: int) -> str:
    return os.urandom(size // 2).hex()


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several statements for a bulk."""
    monkeypatch.setattr(submissions, "FIRST", 50)
    monkeypatch.setattr(submissions, "PART", 60)


@pytest.fixture
async def client(shard_config: ClusterConfig) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(shard_config) as client:
        yield client


@pytest.mark.parametrize("known", [range(0), range(3), range(40, 60), range(150, 170), range(200)])
async def test_a_bulk_of_which_a_part_is_there_already(
    shard_config: ClusterConfig, client: AsyncClient, known: range
) -> None:
    calls = [work.call(n).set(id=f"w{n}") for n in range(200)]
    first = {h.id: h for h in await client.submit_many([calls[n] for n in known])}
    handles = await client.submit_many([*calls, calls[7], calls[150]])
    assert [h.id for h in handles] == [f"w{n}" for n in range(200)] + ["w7", "w150"]
    assert {h._wf for h in handles if h.id in first} == {h._wf for h in first.values()}
    stored = rows(shard_config, "SELECT wf, id, input FROM workflow")
    assert {id: work.codec.decode_call(input)[0] for _, id, input in stored} == {f"w{n}": (n,) for n in range(200)}
    assert {id: wf for wf, id, _ in stored} == {h.id: h._wf for h in handles}
    assert one(shard_config, "SELECT count(*) FROM ready r JOIN workflow w USING (wf)") == 200
    with pytest.raises(WorkflowConflict, match="'w150'"):
        await client.submit_many([*calls[:150], work.call(0).set(id="w150")])


async def test_a_bulk_of_which_a_part_is_there_begins_again_only_once(
    shard_config: ClusterConfig, client: AsyncClient
) -> None:
    calls = [work.call(n).set(id=f"w{n}") for n in range(290)]
    await client.submit_many(calls[49::60])  # the last one of each statement
    drawn = one(shard_config, "SELECT last_value FROM key")
    await client.submit_many(calls)
    assert one(shard_config, "SELECT last_value FROM key") - drawn <= 290 + submissions.FIRST


async def test_a_bulk_that_meets_another_submission_under_way(
    shard_config: ClusterConfig, client: AsyncClient
) -> None:
    """It becomes known only behind half of the bulk that one of its ids is somebody else's."""
    calls = [work.call(n).set(id=f"w{n}") for n in range(200)]
    await client.submit_many([work.call(150).set(id="model")])
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with connect(shard_config) as other:
        with other.transaction():
            other.execute(
                "INSERT INTO workflow (slot, id, name, queue, input)"
                " SELECT slot, 'w150', name, queue, input FROM workflow WHERE id = 'model'"
            )
            submitting = asyncio.create_task(client.submit_many(calls))
            await until(lambda: one(shard_config, waits))
        handles = await submitting
    assert {h.id: h._wf for h in handles} == dict(
        rows(shard_config, "SELECT id, wf FROM workflow WHERE id <> 'model'")
    )
    assert one(shard_config, "SELECT count(*) FROM ready") == 200, "all but the other one, and the model"


async def test_each_of_a_bulk_has_its_own_options(shard_config: ClusterConfig, client: AsyncClient) -> None:
    calls = [
        work.call(n).set(id=f"w{n}", attributes={"n": n}, delay=1_000.0 * (n + 1), timeout=1e6 + n)
        for n in range(300)
    ]
    calls += [work.call(n).set(id=f"{{k{n}}}/w", key_concurrency=(f"k{n}", 1 + n)) for n in range(300)]
    calls += [work.call(n).set(id=f"a{n}", after=[f"w{n}", f"w{n + 1}"]) for n in range(299)]
    handles = await client.submit_many([*calls[:20], *calls])
    assert len({h._wf for h in handles}) == len(calls)
    again = await client.submit_many(calls)
    assert [h._wf for h in again] == [h._wf for h in handles[20:]]
    counts = {table: one(shard_config, f"SELECT count(*) FROM {table}") for table in ("wait", "keyed", "ready")}
    assert counts == {"wait": 599, "keyed": 300, "ready": 300}
    found = rows(
        shard_config,
        "SELECT w.id, attributes ->> 'n', round(date_part('epoch', wake_at - min(wake_at) OVER ()) / 1000),"
        " options ->> 'timeout' FROM workflow w JOIN wait USING (wf) WHERE w.id LIKE 'w%%'",
    )
    assert sorted(found) == sorted((f"w{n}", str(n), n, str(1e6 + n)) for n in range(300))
    keyed = rows(shard_config, "SELECT w.id, k.key, k.most, k.admitted FROM workflow w JOIN keyed k USING (wf)")
    assert sorted(keyed) == sorted((f"{{k{n}}}/w", f"k{n}", 1 + n, True) for n in range(300))
    assert one(shard_config, "SELECT count(*) FROM ready r JOIN workflow w USING (wf) WHERE w.id LIKE '{k%%'") == 300
    after = rows(
        shard_config, "SELECT key, array_agg(target) FROM outbox WHERE topic = 'shardflow.watch' GROUP BY key"
    )
    assert {key: sorted(targets) for key, targets in after} == {
        f"a{n}": sorted((f"w{n}", f"w{n + 1}")) for n in range(299)
    }
    assert set(rows(shard_config, "SELECT missing FROM wait s JOIN workflow w USING (wf) WHERE w.id LIKE 'a%%'")) == {
        (2,)
    }


@pytest.mark.parametrize("bulk", [1, 3, 200])
async def test_keys_and_times_of_submission_go_up_together(
    shard_config: ClusterConfig, client: AsyncClient, bulk: int
) -> None:
    """Lists look for times by keys: what has waited for its key's lock comes behind what was submitted meanwhile."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    calls = [work.call(n).set(id=f"{{k}}/{n}", key_concurrency=("k", 1_000)) for n in range(bulk)]
    with connect(shard_config) as other:
        with other.transaction():
            other.execute("SELECT lock_keys('{k}')")
            submitting = asyncio.create_task(client.submit_many(calls))
            await until(lambda: one(shard_config, waits))
            await client.submit_many([work.call(0) for _ in range(100)])
        await submitting
    places = [id for (id,) in rows(shard_config, "SELECT id FROM workflow ORDER BY wf")]
    assert places == [id for (id,) in rows(shard_config, "SELECT id FROM workflow ORDER BY submitted_at, wf")]
    assert places[100:] == [call.id for call in calls]


async def test_what_is_done_to_many_goes_on_behind_the_first_page(cluster_config: ClusterConfig) -> None:
    asked: dict[str, Any] = {"attributes": {"of": "b", "at": [1]}, "until": datetime.now(UTC) + timedelta(hours=1)}
    async with AsyncClient(cluster_config) as client:
        count = 2 * PAGE + 3
        await client.submit_many(
            [work.call(n).set(attributes={"of": "ab"[n % 2], "at": [1, 2]}) for n in range(2 * count)]
        )
        for change, status in (
            (client.cancel_many, "cancelled"),
            (client.resume_many, "ready"),
            (client.cancel_many, "cancelled"),
        ):
            assert await change(**asked) == Bulk(count, {})
            assert (await client.count(status=status, **asked)).total == count
        assert await client.cancel_many(status=iter(["ready", "running"])) == Bulk(count, {})
        assert await client.purge_many(**asked) == Bulk(count, {})
        assert await client.resume_many() == Bulk(count, {})
        assert await client.cancel_many() == Bulk(count, {})
        assert await client.purge_many() == Bulk(count, {})
        assert (await client.count()).total == 0


async def test_whoever_waits_is_heard_however_many_wait_before(
    shard_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was asked for is due again before the last ones have been, who were asked for never."""
    monkeypatch.setattr(waiter, "BATCH", 2)
    monkeypatch.setattr(waiter, "BEGIN", 2)
    monkeypatch.setattr(waiter, "MOST", waiter.LEAST)
    sleepers = await client.submit_many([work.call(n).set(delay=3_600) for n in range(1_000)])
    last = await client.submit_many([work.call(n) for n in range(10)])
    async with running(shard_config, app):
        await until(lambda: one(shard_config, "SELECT count(*) FROM outcome") == 10)
        async with asyncio.TaskGroup() as tasks:
            waiting = [tasks.create_task(handle.result()) for handle in sleepers]
            await until(lambda: len(client.waiter("s0")._awaited) == 1_000)
            await asyncio.sleep(0)
            assert await asyncio.gather(*(handle.result(60) for handle in last)) == list(range(10))
            for task in waiting:
                task.cancel()


@pytest.mark.parametrize("most", [1, 3])
async def test_results_come_where_an_answer_with_many_does_not(
    shard_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """They are too large for all of them to arrive in the time that an answer has."""
    real, sizes = waiter.outcomes, list[int]()

    async def slow(shard: Shard, conn: Conn, wfs: Sequence[int]) -> list[Outcome]:
        if len(wfs) > most:
            raise ShardUnavailable("nothing came back in time", shard=shard.name)
        found = await real(shard, conn, wfs)
        sizes.append(len(found))
        return found

    handles = await client.submit_many([text.call(n, 60_000) for n in range(50)])
    async with running(shard_config, app):
        await until(lambda: one(shard_config, "SELECT count(*) FROM outcome") == 50)
    monkeypatch.setattr(waiter, "outcomes", slow)
    monkeypatch.setattr(waiter, "BYTES", 100_000)
    results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert [len(result) for result in results] == [60_000] * 50
    assert max(sizes[1:]) <= 2, "of so many bytes"


async def test_a_result_that_never_comes_keeps_no_other_waiting(
    shard_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = waiter.outcomes
    handles = await client.submit_many([work.call(n) for n in range(50)])
    stuck, *others = handles

    async def asked(shard: Shard, conn: Conn, wfs: Sequence[int]) -> list[Outcome]:
        if stuck._wf in wfs:
            raise ShardUnavailable("nothing came back in time", shard=shard.name)
        return await real(shard, conn, wfs)

    async with running(shard_config, app):
        await until(lambda: one(shard_config, "SELECT count(*) FROM outcome") == 50)
    monkeypatch.setattr(waiter, "outcomes", asked)
    waiting = asyncio.create_task(stuck.result())
    assert await asyncio.gather(*(handle.result(60) for handle in others)) == list(range(1, 50))
    waiting.cancel()


@pytest.mark.parametrize("option", ["key_concurrency", "dedup_key"])
async def test_bulks_with_the_same_keys_do_not_lock_each_other_out(shard_config: ClusterConfig, option: str) -> None:
    def calls(numbers: Sequence[int], of: int) -> list[Call[int]]:
        keys = [f"k{n}-{of // 2}" for n in numbers]
        wanted = [{option: (key, 9) if option == "key_concurrency" else key} for key in keys]
        return [work.call(of).set(id=f"{{{key}}}/{of}", **each) for key, each in zip(keys, wanted, strict=True)]

    shuffled, there = random.Random(5), range(300)
    async with AsyncClient(shard_config) as client:
        for of in range(0, 80, 2):
            pair = (there, there[::-1]) if of % 4 else (shuffled.sample(there, 300), shuffled.sample(there, 300))
            await asyncio.gather(*(client.submit_many(calls(order, of + n)) for n, order in enumerate(pair)))
    # A session tells what it has met when it ends.
    mine = "datname = current_database() AND application_name = 'shardflow client'"
    await until(lambda: one(shard_config, f"SELECT count(*) FROM pg_stat_activity WHERE {mine}") == 0)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    assert one(shard_config, deadlocks) == 0


async def test_ten_thousand_children_with_ids_of_their_own_are_cancelled_with_their_parent(
    shard_config: ClusterConfig, client: AsyncClient
) -> None:
    """What was recorded of their start has a third of a megabyte, and an answer has ten seconds."""
    children = Children("parent/0.", 10_000, tuple(f"child-{n:024d}" if n % 2 else None for n in range(10_000)))
    parent = await client.submit(work, 0, id="parent", delay=3_600)
    with connect(shard_config) as conn:
        conn.execute(
            "INSERT INTO step (wf, seq, name, output) VALUES (%s, 0, 'shardflow.start', %s)",
            (parent._wf, children.to_json()),
        )
        conn.execute(
            "INSERT INTO message (wf, topic, key, value) SELECT %s, 'shardflow.child', unnest(%s::text[]), '1'",
            (parent._wf, list(children.ids[:5_000])),
        )
    assert await client.cancel("parent")
    told = rows(shard_config, "SELECT target FROM outbox WHERE topic = 'shardflow.cancel'")
    assert sorted(target for (target,) in told) == sorted(children.ids[5_000:])


async def test_what_nobody_attends_to_is_taken_over_page_by_page(
    shard_config: ClusterConfig, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the next time that somebody looks."""
    monkeypatch.setattr(post, "PAGE", 10)
    monkeypatch.setattr(alarm, "EVERY", 10_000.0)
    monkeypatch.setattr(alarm, "SELDOM", 10_000.0)
    target = await client.submit(work, 0, id="target", delay=3_600)
    rows(
        shard_config,
        "INSERT INTO outbox (lease, target, topic, key, value)"
        " SELECT 0, %s, 'a', n::text, '1' FROM generate_series(1, 105) n",
        target.id,
    )
    async with running(shard_config, app):
        await until(lambda: one(shard_config, "SELECT count(*) FROM message") == 105)


async def test_letters_for_a_shard_that_is_away_are_given_up_at_their_time(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and not one page after the other."""
    tries = 0

    async def away(*_: object) -> set[str]:
        nonlocal tries
        tries += 1
        raise ShardUnavailable("away", shard="s0")

    monkeypatch.setattr(courier, "BATCH", 1)
    monkeypatch.setattr(courier.Courier, "_hand_over", away)
    async with AsyncClient(shard_config) as client:
        posted = [client.delivery.courier.deliver(Letter(f"w{n}", "a", None, b"1"), timeout=0.5) for n in range(200)]
        answers = await asyncio.gather(*posted, return_exceptions=True)
    assert all(isinstance(answer, ShardUnavailable) for answer in answers)
    assert tries < 50
