"""Lists and counts over several shards: each workflow once, in order, and whoever does not answer is named."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.lab import Lab
from support.look import connect, rows, until
from support.many import STATUSES, Made, closed, ended, fill, ids_of, in_turns, pages, plain
from support.work import ids_on, running

from shardflow import (
    App,
    AsyncClient,
    Client,
    ClusterConfig,
    InvalidInput,
    PoolConfig,
    Status,
    UsageError,
)
from shardflow.core.stretch import RANGE_BITS
from shardflow.model import Page
from shardflow.storage import queries

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


async def test_a_list_is_in_the_order_of_submission_over_all_shards(
    asking: AsyncClient, three: ClusterConfig
) -> None:
    by_time = sorted(
        (when, id) for k in range(3) for id, when in rows(three, "SELECT id, submitted_at FROM workflow", shard=k)
    )
    oldest = [id for _, id in by_time]
    whole = await asking.list(limit=100)
    assert ids_of(whole) == oldest[::-1]
    assert (whole.cursor, dict(whole.unreachable)) == (None, {})
    assert {info.shard for info in whole.workflows} == {"s0", "s1", "s2"}
    for limit in (1, 4, 21, 62, 63):
        assert ids_of(*await pages(asking, limit)) == oldest[::-1]
        assert ids_of(*await pages(asking, limit, order="oldest")) == oldest
    assert [len(page.workflows) for page in await pages(asking, 20)] == [20, 20, 20, 3]
    assert len(await pages(asking, 63)) == 1, "no empty page behind the last"


async def test_what_is_submitted_while_pages_are_read_moves_none_of_them(
    asking: AsyncClient, three: ClusterConfig
) -> None:
    before = ids_of(await asking.list(limit=100))
    seen: list[str] = []
    cursor = None
    for n in itertools.count():
        page = await asking.list(limit=5, cursor=cursor)
        seen += ids_of(page)
        cursor = page.cursor
        if cursor is None:
            break
        fill(three, n % 3, plain([f"new{n}"]))
    assert seen == before
    assert len(await pages(asking, 5, order="oldest")) > 13


async def test_a_shard_that_is_away_is_named_and_its_part_follows(make_cluster: MakeCluster, lab: Lab) -> None:
    config = make_cluster(shards=3, pool=PoolConfig(timeout=1, connect_timeout=1))
    for k in range(3):
        fill(config, k, plain(ids_on(config, k, 10)))
    everything = {id for k in range(3) for id in ids_on(config, k, 10)}
    async with AsyncClient(config) as client:
        first = await client.list(limit=4)
        async with closed(lab, config, 1):
            second = await client.list(limit=4, cursor=first.cursor)
            third = await client.list(limit=4, cursor=second.cursor)
            assert list(second.unreachable) == list(third.unreachable) == ["s1"]
            assert "s1" in second.unreachable["s1"]
            numbers = await client.count()
            assert (numbers.total, list(numbers.unreachable)) == (20, ["s1"])
            alone = await pages(client, 7)
            assert set(ids_of(*alone)) == everything - set(ids_on(config, 1, 10))
            assert all(list(page.unreachable) == ["s1"] for page in alone)
        rest = await until(lambda: reached(client, third.cursor))
        seen = ids_of(first, second, third, *rest)
        assert len(seen) == len(set(seen))
        assert set(seen) == everything
        assert (await client.count()).total == 30


async def reached(client: AsyncClient, cursor: str | None) -> list[Page] | None:
    """The rest of a list, once all shards answer."""
    found = [await client.list(limit=4, cursor=cursor)]
    if found[0].unreachable:
        return None
    while found[-1].cursor is not None:
        found.append(await client.list(limit=4, cursor=found[-1].cursor))
    return found


async def test_the_last_page_names_the_shard_that_it_lacks_and_can_be_asked_for_again(
    make_cluster: MakeCluster, lab: Lab
) -> None:
    config = make_cluster(shards=2, pool=PoolConfig(timeout=1, connect_timeout=1))
    for k in range(2):
        fill(config, k, plain(ids_on(config, k, 6)))
    async with AsyncClient(config) as client:
        first = await client.list(limit=3)
        async with closed(lab, config, 1):
            last = await client.list(limit=50, cursor=first.cursor)
            assert (last.cursor, list(last.unreachable)) == (None, ["s1"])

        async def again() -> Page | None:
            page = await client.list(limit=50, cursor=first.cursor)
            return None if page.unreachable else page

        whole = await until(again)
        assert sorted(ids_of(first, whole)) == sorted(ids_on(config, 0, 6) + ids_on(config, 1, 6))


def drawn(config: ClusterConfig, shard: int, count: int, chance: random.Random) -> list[Made]:
    return [
        Made(
            id,
            chance.choice(["ship", "bill", "rare"]) if n % 5 else "ship",
            chance.choice(["default", "orders"]),
            chance.choice([None, None, {"tenant": "a", "tags": ["x"]}, {"tenant": "b", "tags": ["x", "y"]}, {}]),
            chance.choice(STATUSES),
        )
        for n, id in enumerate(ids_on(config, shard, count))
    ]


def asked_for(chance: random.Random) -> dict[str, Any]:
    """Filters of all kinds, at random."""
    asked: dict[str, Any] = {}
    if chance.random() < 0.7:
        asked["status"] = chance.sample(STATUSES, chance.randint(1, len(STATUSES)))
    if chance.random() < 0.3:
        asked["name"] = chance.choice(["ship", "rare", "none"])
    if chance.random() < 0.3:
        asked["queue"] = chance.choice(["default", "orders"])
    if chance.random() < 0.3:
        asked["attributes"] = chance.choice([{"tenant": "a"}, {"tags": ["y"]}, {"tags": ["x"]}, {"tenant": "c"}])
    return asked


def contains(held: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    if held is None:
        return False
    return all(
        set(value) <= set(held.get(key, ())) if isinstance(value, list) else held.get(key) == value
        for key, value in wanted.items()
    )


@pytest.mark.parametrize(("look", "few"), [(20_000, 2_000), (7, 3)], ids=["usual", "everything is much"])
async def test_filters_give_what_a_look_at_every_workflow_gives(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, look: int, few: int
) -> None:
    """Whichever way is taken to find them, and where each step on it ends."""
    monkeypatch.setattr(queries, "LOOK", look)
    monkeypatch.setattr(queries, "FEW", few)
    chance = random.Random(4)
    config = make_cluster(shards=2, slots=16)
    everything: dict[str, tuple[datetime, Made]] = {}
    for k in range(2):
        made = drawn(config, k, 90, chance)
        for at in range(0, len(made), 10):  # each statement at a later time
            fill(config, k, made[at : at + 10])
        times = dict(rows(config, "SELECT id, submitted_at FROM workflow", shard=k))
        everything |= {m.id: (times[m.id], m) for m in made}
    every_time = sorted(when for when, _ in everything.values())
    async with AsyncClient(config) as client:
        for info in (await client.list(limit=1_000)).workflows:
            assert info == await client.info(info.id)
        for _ in range(50):
            asked = asked_for(chance)
            if chance.random() < 0.3:
                asked["since"] = chance.choice(every_time)
            if chance.random() < 0.3:
                asked["until"] = chance.choice(every_time) + timedelta(microseconds=chance.choice([0, 1]))
            right = [
                (when, id)
                for id, (when, m) in everything.items()
                if m.status in asked.get("status", STATUSES)
                and m.name == asked.get("name", m.name)
                and m.queue == asked.get("queue", m.queue)
                and asked.get("since", when) <= when < asked.get("until", when + timedelta(1))
                and ("attributes" not in asked or contains(m.attributes, asked["attributes"]))
            ]
            newest = chance.random() < 0.5
            order = "newest" if newest else "oldest"
            found = ids_of(*await pages(client, chance.choice([3, 10, 50, 500]), order=order, **asked))
            assert found == [id for _, id in sorted(right, reverse=newest)], (asked, order)
            numbers = await client.count(**asked)
            assert numbers.total == len(right), asked
            for status, number in numbers.by_status.items():
                assert number == sum(everything[id][1].status is status for _, id in right)
            assert set(numbers.by_status) == set(asked.get("status", STATUSES))


async def test_workflows_from_another_shards_range_of_keys_are_listed_by_time(shard_config: ClusterConfig) -> None:
    """As when slots have moved here: their keys are higher or lower than all of the shard's own."""
    mine = ids_on(shard_config, 0, 30)
    with connect(shard_config) as conn:
        for n, id in enumerate(mine):
            part = (1, 7, 3)[n % 3]
            conn.execute(
                "INSERT INTO workflow (wf, slot, id, name, queue, input, submitted_at)"
                " VALUES (%s, 0, %s, 'work', 'default', '[]', now() - make_interval(mins => %s))",
                ((part << RANGE_BITS) + 1_000 + n, id, 100 - n),
            )
        conn.execute("INSERT INTO ready (seq, wf, priority, queue) SELECT wf, wf, 0, queue FROM workflow")
    async with AsyncClient(shard_config) as client:
        for limit in (4, 100):
            assert ids_of(*await pages(client, limit)) == mine[::-1]
            assert ids_of(*await pages(client, limit, order="oldest")) == mine
        times = [info.submitted_at for info in (await client.list(order="oldest", limit=100)).workflows]
        assert ids_of(*await pages(client, 4, since=times[5], until=times[20])) == mine[5:20][::-1]
        assert (await client.count(since=times[5], until=times[20])).total == 15


async def test_a_submission_has_the_time_of_its_row_and_not_of_its_transaction(shard_config: ClusterConfig) -> None:
    """Else the edge of a time would be looked for in the wrong place."""
    with connect(shard_config) as conn, conn.transaction():
        conn.execute("SELECT now()")
        await until(lambda: conn.execute("SELECT clock_timestamp() > now() + interval '50 ms'").fetchone() == (True,))
        conn.execute("INSERT INTO workflow (slot, id, name, queue, input) VALUES (0, 'a', 'work', 'default', '[]')")
        answer = conn.execute("SELECT submitted_at > now() + interval '50 ms' FROM workflow").fetchone()
        assert answer == (True,)


async def test_a_workflow_that_was_taken_meanwhile_is_in_one_place(asking: AsyncClient, three: ClusterConfig) -> None:
    """All statements of an answer see one moment: a workflow that goes from ready to ended is listed once."""
    mine = ids_on(three, 0, 21)
    wanted = ["ready", "succeeded", "failed"]

    async def going() -> None:
        for id in mine:
            await asyncio.to_thread(ended, three, 0, id)

    task = asyncio.create_task(going())
    while not task.done():
        page = await asking.list(status=wanted, limit=100)
        assert len(ids_of(page)) == 63
        assert len(set(ids_of(page))) == 63
        assert (await asking.count(status=wanted)).total == 63
    await task
    assert (await asking.count(status="succeeded")).total == 21


async def test_a_cursor_is_checked(asking: AsyncClient) -> None:
    page = await asking.list(status="ready", limit=5)
    assert page.cursor is not None
    assert ids_of(await asking.list(cursor=page.cursor)) == ids_of(
        await asking.list(status="ready", cursor=page.cursor)
    )
    with pytest.raises(InvalidInput, match="other filters"):
        await asking.list(status="failed", cursor=page.cursor)
    with pytest.raises(InvalidInput, match="this is not a cursor"):
        await asking.list(cursor=page.cursor[:-4])
    with pytest.raises(InvalidInput, match="limit must be a number from 1 to 10000"):
        await asking.list(limit=0)
    with pytest.raises(InvalidInput, match="did you mean"):
        await asking.count(status="runing")


async def test_a_closed_client_says_so(three: ClusterConfig) -> None:
    client = AsyncClient(three)
    await client.list()
    await client.close()
    with pytest.raises(UsageError, match="closed"):
        await client.list()


def test_the_synchronous_client_asks_the_same(three: ClusterConfig) -> None:
    with Client(three) as client:
        page = client.list(limit=60)
        rest = client.list(cursor=page.cursor)
        assert len(ids_of(page, rest)) == 63
        assert client.count(status=["ready", "failed"]).by_status == {Status.READY: 63, Status.FAILED: 0}
        ended(three, 0, *ids_on(three, 0, 2))
        assert set(client.wait(ids_on(three, 0, 2), timeout=30).ended) == set(ids_on(three, 0, 2))


async def test_a_submission_is_found_by_its_attributes_and_by_how_it_ended(cluster_config: ClusterConfig) -> None:
    app = App()

    @app.workflow(queue="orders")
    async def checkout(number: int) -> int:
        if number == 3:
            raise ValueError(number)
        return number

    async with AsyncClient(cluster_config) as client, running(cluster_config, app):
        for n in range(6):
            await client.submit(checkout, n, id=f"c{n}", attributes={"tenant": "ab"[n % 2], "of": {"n": n}})
        found = await client.wait([f"c{n}" for n in range(6)], timeout=60)
        assert not found.pending
        assert ids_of(await client.list(attributes={"tenant": "b"}, order="oldest")) == ["c1", "c3", "c5"]
        assert ids_of(await client.list(attributes={"of": {"n": 4}}, queue="orders")) == ["c4"]
        assert ids_of(await client.list(status="failed", name="checkout")) == ["c3"]
        assert (await client.count(attributes={"tenant": "b"}, status="succeeded")).total == 2
