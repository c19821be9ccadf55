"""More than a few at once: what is there already, what meets others, what asks for more; more than a page of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.look import connect, one, rows, until

from shardflow import App, AsyncClient, ClusterConfig, WorkflowConflict
from shardflow.client.control import PAGE
from shardflow.model import Bulk
from shardflow.storage import submissions

app = App("bulks")


@app.workflow
async def work(n: int) -> int:
    return n


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several statements for a bulk."""
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
    assert one(shard_config, "SELECT last_value FROM key") - drawn <= 290 + submissions.FEW


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
