"""Workers in their groups: registered, told, adopting what is left alone, and leaving without disturbing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from support.group import away, groups, nobody_decides, registered, wish, working
from support.lab import Lab
from support.look import assert_all_done, assert_i1, one, rows, terminate, until
from support.raw import Hand, by_hand
from support.work import Gate, ids_on, running

import shardflow.worker.registrar
from shardflow import AsyncClient, ClusterConfig, Status, Worker
from shardflow.storage import bell, leases, registry
from shardflow.storage.registry import Card, Pulse, Wish
from shardflow.storage.shard import Conn, Shard
from shardflow.worker.registrar import Registrar

MakeCluster = Callable[..., ClusterConfig]

CARD = Card("w", "host", 7, "app", "0.1.0", "v1", 100, 8, ["default"], ["big"], False)
PULSE = Pulse(False, 1, 0, ["s0"], ["s0"], [], 0)

__all__ = ["nobody_decides"]


async def beat(hand: Hand, card: Card = CARD, ttl: float = 60.0, **changes: Any) -> Wish:
    async with await hand.shard.connect("registrar") as conn:
        return await registry.beat(hand.shard, conn, card, replace(PULSE, **changes), ttl, session=False)


def tell(config: ClusterConfig, *shards: str) -> None:
    rows(config, "UPDATE worker SET wanted = %s, decision = decision + 1", list(shards))


@pytest.fixture
def backs(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The answers to all that wanted to step back."""
    answers: list[bool] = []
    real = registry.step_back

    async def counting(*arguments: Any) -> bool:
        answers.append(await real(*arguments))
        return answers[-1]

    monkeypatch.setattr(registry, "step_back", counting)
    return answers


# -- the registry


async def test_a_worker_is_registered_while_it_lives_and_not_after_it_has_stopped(
    shard_config: ClusterConfig,
) -> None:
    options: dict[str, Any] = {"labels": ["big"], "max_leases": 3, "code_version": "v9", "concurrency": 11}
    async with running(shard_config, working(), name="w", **options):
        await until(lambda: registered(shard_config)["w"][1]["held"] == ["s0"])
        row = registered(shard_config)["w"][1]
        assert {key: row[key] for key in ("labels", "max_leases", "code_version", "capacity", "queues", "aims")} == {
            "labels": ["big"],
            "max_leases": 3,
            "code_version": "v9",
            "capacity": 11,
            "queues": ["default"],
            "aims": ["s0"],
        }
        assert row["session"]
        beats = row["beat"]
        await until(lambda: registered(shard_config)["w"][1]["beat"] > beats + 1)
    assert registered(shard_config) == {}


async def test_a_draining_worker_says_so_while_it_drains(shard_config: ClusterConfig) -> None:
    gate = Gate()
    async with AsyncClient(shard_config) as client, running(shard_config, working(gate), name="w") as worker:
        await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        stopping = asyncio.ensure_future(worker.stop(grace=60))
        await until(lambda: registered(shard_config)["w"][1]["draining"])
        gate.open()
        await stopping


async def test_a_wish_waits_until_it_is_read_and_is_numbered(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        assert await beat(hand) == Wish(None, 0, 1)
        tell(shard_config, "s1")
        assert await beat(hand, beat=2) == Wish(frozenset({"s1"}), 1, 1)
        assert await beat(hand, beat=3, obeyed=1) == Wish(frozenset({"s1"}), 1, 1)
        assert await beat(hand, replace(CARD, worker="v")) == Wish(None, 0, 2)


@pytest.mark.parametrize("change", [{"host": "other"}, {"pid": 8}, {}], ids=["host", "pid", "beats from 1 again"])
async def test_another_process_of_the_same_name_takes_the_row_over_but_not_the_wish(
    shard_config: ClusterConfig, change: dict[str, Any]
) -> None:
    async with by_hand(shard_config) as hand:
        await beat(hand, beat=50)
        for _ in range(7):
            tell(shard_config, "s1")
        since = registered(shard_config)["w"][1]["started_at"]
        card = replace(CARD, queues=["new"], code_version="v2", capacity=5, labels=[], max_leases=1, **change)
        number = 51 if change else 1
        assert await beat(hand, card, beat=number, aims=None) == Wish(None, 0, 1)
        row = registered(shard_config)["w"][1]
        assert row["started_at"] > since
        assert {k: row[k] for k in ("queues", "code_version", "capacity", "labels", "max_leases", "pid", "host")} == {
            "queues": ["new"],
            "code_version": "v2",
            "capacity": 5,
            "labels": [],
            "max_leases": 1,
            "pid": card.pid,
            "host": card.host,
        }


async def test_a_worker_that_comes_back_to_a_home_is_not_told_what_it_was_told_there_before(
    shard_config: ClusterConfig,
) -> None:
    async with by_hand(shard_config) as hand:
        await beat(hand)
        tell(shard_config, "s1")
        await beat(hand, beat=2, obeyed=1)
        # elsewhere it has obeyed up to number 5 meanwhile
        assert await beat(hand, beat=90, obeyed=5) == Wish(None, 5, 1)
        tell(shard_config, "s2")
        assert await beat(hand, beat=91, obeyed=5) == Wish(frozenset({"s2"}), 6, 1)


async def test_numbers_go_on_at_a_new_home(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        assert await beat(hand, beat=40, obeyed=3) == Wish(None, 3, 1)
        tell(shard_config, "s1")
        assert await beat(hand, beat=41, obeyed=3) == Wish(frozenset({"s1"}), 4, 1)


async def test_a_worker_whose_home_goes_away_registers_elsewhere(
    lab: Lab, make_cluster: MakeCluster, nobody_decides: None
) -> None:
    config = make_cluster(shards=2)
    async with running(config, working(), name="w") as worker:
        home, row = await until(lambda: registered(config).get("w"))
        await wish(config, "w", ["s0"])
        with away(lab, config, home):
            there = f"SELECT beat FROM worker WHERE beat > {row['beat']}"
            await until(lambda: rows(config, there, shard=1 - home))
            query = "UPDATE worker SET wanted = ARRAY['s1'], decision = decision + 1"
            rows(config, query, shard=1 - home)  # its number is the one that was obeyed last at the former home
            await until(lambda: worker._aims == {"s1"})
        assert registered(config)["w"][0] == 1 - home
        await until(lambda: worker.serves == ["s1"] or "s1" in worker.serves)


async def test_rows_of_the_dead_are_swept(shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shardflow.worker.registrar, "SWEEP_EVERY", 2)
    monkeypatch.setattr(shardflow.worker.registrar, "KEPT", 0.2)
    async with by_hand(shard_config) as hand, running(shard_config, working(), name="alive"):
        await beat(hand, replace(CARD, worker="dead"), ttl=0.01)
        await beat(hand, replace(CARD, worker="late"), ttl=100)
        await until(lambda: "dead" not in registered(shard_config))
        assert registered(shard_config).keys() == {"alive", "late"}


async def test_behind_a_pooler_only_time_tells_who_is_registered(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=1)
    pooled = replace(config, shards=(replace(config.shards[0], pooler=True),))
    async with running(pooled, working(), name="w", connected=False):
        await until(lambda: registered(config).get("w"))
        row = registered(config)["w"][1]
        assert not row["session"]
        async with by_hand(config) as hand, await hand.shard.connect("look") as conn:
            (seen,) = await registry.workers(hand.shard, conn)
            assert (seen.gone, seen.expired, seen.late) == (False, False, False)
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
        here = f"{locks} AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        await until(lambda: one(config, here) == 0)  # a turn has one of its own for a moment


async def test_whose_session_is_closed_is_gone_though_its_time_is_not_over(shard_config: ClusterConfig) -> None:
    async def look(hand: Hand) -> dict[str, bool]:
        async with await hand.shard.connect("look") as conn:
            return {row.worker: row.gone for row in await registry.workers(hand.shard, conn)}

    async with by_hand(shard_config) as hand, running(shard_config, working(), name="w") as worker:
        await until(lambda: registered(shard_config).get("w"))
        assert await look(hand) == {"w": False}
        await worker.leave()
        await until(lambda: look_gone(shard_config))
        assert await look(hand) == {"w": True}


def look_gone(config: ClusterConfig) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'shardflow registrar%%'"
    return bool(one(config, query + " AND datname = current_database()") == 0)


# -- stepping back


async def test_of_two_who_step_back_at_once_one_stays(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        a, b = await hand.holder("a"), await hand.holder("b")
        rows(shard_config, "UPDATE lease SET queues = ARRAY['default']")
        for _ in range(25):
            answers = await asyncio.gather(
                *(registry.step_back(hand.shard, h.keeping, h.fence.lease, ["default"]) for h in (a, b))
            )
            assert sum(answers) <= 1
            assert len(groups(shard_config)["s0"]) == 2 - sum(answers)
            for h in (a, b):
                await registry.step_up(hand.shard, h.keeping, h.fence.lease)


async def test_nobody_waits_for_one_who_froze_while_it_stepped_back(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        frozen, other = await hand.holder("frozen"), await hand.holder("other")
        async with frozen.keeping.transaction():
            await frozen.keeping.execute(hand.shard.statements("registry")["lock_group"])
            step = registry.step_back(hand.shard, other.keeping, other.fence.lease, ["default"])
            assert await asyncio.wait_for(step, 8) is False  # it would wait longer for a lock
        assert await registry.step_back(hand.shard, other.keeping, other.fence.lease, ["default"]) is True


@pytest.mark.parametrize(
    ("others", "own", "may"),
    [
        ([["x"]], ["x"], True),
        ([["y"]], ["x"], False),
        ([["x"], ["y"]], ["x", "y"], True),
        ([["x"], ["x"]], ["x", "y"], False),
        ([[]], ["x", "y"], True),
        ([], ["x"], False),
    ],
)
async def test_each_queue_keeps_a_claimer(
    shard_config: ClusterConfig, others: list[list[str]], own: list[str], may: bool
) -> None:
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        for n, queues in enumerate(others):
            await leases.open_lease(hand.shard, await hand.conn(), f"o{n}", 60, queues=queues)
        lease, _ = await leases.open_lease(hand.shard, conn, "w", 60, queues=own)
        assert await registry.step_back(hand.shard, conn, lease, own) is may
        assert ("w" in groups(shard_config)["s0"]) is not may


@pytest.mark.parametrize("how", ["expired", "gone", "steps back"])
async def test_who_is_dead_or_leaves_does_not_count_as_another_claimer(shard_config: ClusterConfig, how: str) -> None:
    async with by_hand(shard_config) as hand:
        conn, other = await hand.conn(), await hand.conn()
        theirs, _ = await leases.open_lease(hand.shard, other, "o", 60, queues=["x"])
        lease, _ = await leases.open_lease(hand.shard, conn, "w", 60, queues=["x"])
        if how == "expired":
            rows(shard_config, "UPDATE lease SET expires_at = clock_timestamp() WHERE lease = %s", theirs)
        elif how == "gone":
            await other.close()
            await until(lambda: one(shard_config, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") <= 1)
        else:
            rows(shard_config, "UPDATE lease SET claiming = false WHERE lease = %s", theirs)
        assert await registry.claimers(hand.shard, conn, lease) == {}
        assert not await registry.step_back(hand.shard, conn, lease, ["x"])


async def test_the_last_claimer_stays_until_another_one_comes(
    shard_config: ClusterConfig, nobody_decides: None, backs: list[bool]
) -> None:
    config = shard_config
    async with AsyncClient(config) as client, running(config, working(), name="w") as worker:
        await wish(config, "w", [])
        await until(lambda: len(backs) >= 3)
        assert not any(backs)
        assert groups(config) == {"s0": ["w"]}
        assert await (await client.submit("work", 1)).result(30) == 1
        async with running(config, working(), name="v"):
            await until(lambda: groups(config) == {"s0": ["v"]} and worker.serves == [])
            assert await (await client.submit("work", 2)).result(30) == 2
            await until(lambda: registered(config)["w"][1]["held"] == [])


async def test_a_worker_that_retires_ends_what_it_runs_and_claims_nothing_more(
    shard_config: ClusterConfig, nobody_decides: None
) -> None:
    config, gate, seen = shard_config, Gate(), list[str]()
    async with AsyncClient(config) as client, running(config, working(gate, seen, "w"), name="w") as worker:
        handle = await client.submit("holds", id="held")
        await until(lambda: gate.arrived == 1)
        async with running(config, working(None, seen, "v"), name="v"):
            await wish(config, "w", [])
            await until(lambda: groups(config, claiming=False) == {"s0": ["w"]})
            # What was claimed with its last turn ends; from then on all goes to the other one.
            await until(lambda: worker.running == 1)
            seen.clear()
            handles = await client.submit_many(client_calls(client, 40))
            assert sorted([await h.result(30) for h in handles]) == list(range(40))
            assert seen == ["v"] * 40
            assert await handle.status() is Status.RUNNING
            assert worker.serves == ["s0"]
            gate.open()
            assert await handle.result(30) == "held"
            await until(lambda: worker.serves == [])
            await until(lambda: one(config, "SELECT count(*) FROM lease WHERE worker = 'w'") == 0)
            assert gate.arrived == 1  # not replayed
            assert (await handle.info()).attempt == 0
            assert_i1(config)


def client_calls(client: AsyncClient, count: int) -> Any:
    work = working().workflows["work"]
    return (work.call(n) for n in range(count))


async def test_a_worker_that_is_wanted_again_while_it_retires_goes_on(
    shard_config: ClusterConfig, nobody_decides: None
) -> None:
    config, gate = shard_config, Gate()
    async with AsyncClient(config) as client, running(config, working(gate), name="w") as worker:
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        lease = one(config, "SELECT lease FROM lease WHERE worker = 'w'")
        async with running(config, working(), name="v"):
            await wish(config, "w", [])
            await until(lambda: groups(config, claiming=False) == {"s0": ["w"]})
            await wish(config, "w", ["s0"])
            await until(lambda: groups(config) == {"s0": ["v", "w"]})
        assert await (await client.submit("work", 1)).result(30) == 1
        gate.open()
        assert await handle.result(30) == "held"
        assert gate.arrived == 1
        assert rows(config, "SELECT lease FROM lease WHERE worker = 'w'") == [(lease,)]
        assert worker.serves == ["s0"]


async def test_who_steps_back_steps_up_again_when_the_others_have_died(
    shard_config: ClusterConfig, nobody_decides: None
) -> None:
    """It is the only one left, and what it runs may take for days."""
    config, gate = shard_config, Gate()
    async with AsyncClient(config) as client, running(config, working(gate), name="w"):
        handle = await client.submit("holds")
        await until(lambda: gate.arrived == 1)
        async with running(config, working(), name="v") as other:
            await wish(config, "w", [])
            await until(lambda: groups(config, claiming=False) == {"s0": ["w"]})
            await other.leave()
            assert await (await client.submit("work", 1)).result(30) == 1
        gate.open()
        assert await handle.result(30) == "held"
        assert gate.arrived == 1


async def test_a_lease_that_is_resumed_says_again_whether_it_claims(
    shard_config: ClusterConfig, nobody_decides: None
) -> None:
    """The answer to stepping back may have been lost with the connection."""
    config = shard_config
    async with running(config, working(), name="w"):
        rows(config, "UPDATE lease SET claiming = false")
        terminate(config, "keeper w")
        await until(lambda: one(config, "SELECT epoch FROM lease") == 2)
        await until(lambda: groups(config) == {"s0": ["w"]})


async def test_a_refusal_to_step_back_says_that_the_lease_claims(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        alone = await hand.holder("alone")
        rows(shard_config, "UPDATE lease SET claiming = false")
        assert not await registry.step_back(hand.shard, alone.keeping, alone.fence.lease, ["default"])
        assert groups(shard_config) == {"s0": ["alone"]}


async def test_a_worker_holds_what_it_has_until_it_holds_what_it_is_wanted_on(
    lab: Lab, make_cluster: MakeCluster, nobody_decides: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=2)
    async with running(config, working(), name="v"), running(config, working(), name="w") as worker:
        await wish(config, "w", ["s0"])
        await until(lambda: worker.serves == ["s0"])
        with away(lab, config, 1):
            home, _ = await until(lambda: at_home(config, "w", 0))
            rows(config, "UPDATE worker SET wanted = ARRAY['s1'], decision = decision + 1 WHERE worker = 'w'")
            await until(lambda: worker._aims == {"s1"})
            tried = worker._links["s1"]
            await until(lambda: tried._failures >= 2 or tried.connected.is_set())
            assert not worker._links["s0"]._retiring
            assert "w" in groups(config, only=[home])["s0"]
        await until(lambda: worker.serves == ["s1"])


def at_home(config: ClusterConfig, name: str, shard: int) -> tuple[int, bool] | None:
    found = rows(config, "SELECT expires_at > clock_timestamp() FROM worker WHERE worker = %s", name, shard=shard)
    return (shard, True) if found and found[0][0] else None


async def test_a_worker_does_not_wait_for_ever_for_a_shard_that_it_cannot_reach(
    lab: Lab, make_cluster: MakeCluster, nobody_decides: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, gives up what it is not wanted on, and serves the shard when it is back."""
    monkeypatch.setattr("shardflow.worker.worker.CUT_OFF", 0.3)
    config = make_cluster(shards=3)
    async with running(config, working(), name="v"), running(config, working(), name="w") as worker:
        await wish(config, "w", ["s0"])
        await until(lambda: worker.serves == ["s0"])
        with away(lab, config, 2):
            home = (await until(lambda: at_home(config, "w", 0) or at_home(config, "w", 1)))[0]
            query = "UPDATE worker SET wanted = ARRAY['s1', 's2'], decision = decision + 1 WHERE worker = 'w'"
            rows(config, query, shard=home)
            await until(lambda: worker.serves == ["s1"])
            await until(lambda: rows(config, "SELECT 1 FROM worker WHERE 's2' = ANY (cut_off)", shard=home))
        await until(lambda: worker.serves == ["s1", "s2"])
        await until(
            lambda: not rows(config, "SELECT 1 FROM worker WHERE worker = 'w' AND 's2' = ANY (cut_off)", shard=home)
        )


async def test_a_link_that_never_held_a_lease_ends_as_soon_as_it_is_not_wanted(
    lab: Lab, make_cluster: MakeCluster, nobody_decides: None
) -> None:
    config = make_cluster(shards=2)
    with away(lab, config, 1):
        async with running(config, working(), name="w", connected=False) as worker:
            await wish_at(config, "w", ["s0", "s1"], 0)
            connected = asyncio.ensure_future(worker.connected())
            await until(lambda: worker._links["s1"]._failures >= 1)
            await wish_at(config, "w", ["s0"], 0)
            await until(lambda: "s1" not in worker._links)
            await asyncio.wait_for(connected, 30)  # does not wait for what is not wanted any more


async def wish_at(config: ClusterConfig, name: str, shards: list[str], home: int) -> None:
    await until(lambda: at_home(config, name, home))
    told = "UPDATE worker SET wanted = %s, decision = decision + 1 WHERE worker = %s RETURNING decision"
    ((number,),) = rows(config, told, shards, name, shard=home)
    await until(lambda: one(config, "SELECT obeyed FROM worker WHERE worker = %s", name, shard=home) >= number)


# -- which shards a worker serves by itself


async def test_shards_that_are_left_alone_are_adopted_where_nobody_decides(
    make_cluster: MakeCluster, nobody_decides: None
) -> None:
    config = make_cluster(shards=3)
    async with AsyncClient(config) as client, AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(config, working(), name="w0"))
        second = await stack.enter_async_context(running(config, working(), name="w1"))
        assert groups(config) == {f"s{k}": ["w0", "w1"] for k in range(3)}
        third = await stack.enter_async_context(running(config, working(), name="w2", connected=False))
        await until(lambda: registered(config).get("w2"))
        assert third.serves == []  # enough are there, and nobody tells it
        await first.leave()
        await second.leave()
        await until(lambda: third.serves == ["s0", "s1", "s2"])
        ids = [id for k in range(3) for id in ids_on(config, k, 2)]
        handles = [await client.submit("work", 1, id=id) for id in ids]
        assert [await h.result(30) for h in handles] == [1] * 6


async def test_a_queue_that_nobody_serves_is_adopted_by_one_who_does(
    make_cluster: MakeCluster, nobody_decides: None
) -> None:
    config = make_cluster(shards=2)
    app = working()

    @app.workflow(queue="mail")
    async def letter() -> str:
        return "sent"

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(config))
        for n in range(2):
            await stack.enter_async_context(running(config, app, name=f"d{n}", queues=["default"]))
        mail = await stack.enter_async_context(running(config, app, name="m", queues=["mail"]))
        assert mail.serves == ["s0", "s1"]
        await wish(config, "m", ["s0"])
        await until(lambda: registered(config)["m"][1]["aims"] == ["s0"])
        handles = [await client.submit("letter", id=ids_on(config, k, 1)[0]) for k in range(2)]
        assert [await h.result(30) for h in handles] == ["sent", "sent"]
        assert "m" in groups(config)["s1"]  # the only one for that queue


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Connections that are opened: the shard, and what for."""
    made: list[tuple[str, str]] = []
    real = Shard.connect

    async def counting(self: Shard, role: str, **more: Any) -> Conn:
        made.append((self.name, role.split()[0]))
        return await real(self, role, **more)

    monkeypatch.setattr(Shard, "connect", counting)
    return made


async def test_a_worker_that_starts_looks_at_each_shard_on_one_connection(
    make_cluster: MakeCluster, nobody_decides: None, connects: list[tuple[str, str]]
) -> None:
    worker = Worker(make_cluster(shards=2), working(), name="w")
    await worker.start()
    assert sorted(connects) == [("s0", "survey"), ("s1", "survey")]
    await worker.connected()
    assert worker.serves == ["s0", "s1"]
    await worker.stop()


@pytest.mark.parametrize("home", ["s0", "s1"])
async def test_who_comes_says_so_on_the_first_shard_over_the_connection_that_it_has_there(
    make_cluster: MakeCluster, nobody_decides: None, connects: list[tuple[str, str]], home: str
) -> None:
    config = make_cluster(shards=2)
    first = Shard(config.shards[0])
    shards = [Shard(shard) for shard in config.shards]

    def lives(name: str) -> bool:
        card = replace(CARD, worker=name)
        return Registrar(shards, config.lease, card, lambda _: PULSE, lambda _: None)._homes[0].name == home

    at_home = next(name for n in range(100) if lives(name := f"w{n}"))
    heard: list[str] = []
    async with await first.connect("test") as conn:
        await bell.listen(first, conn)
        async with running(config, working(), name=at_home):
            until = asyncio.get_running_loop().time() + 30
            while bell.FLEET not in heard and asyncio.get_running_loop().time() < until:
                await bell.hear(first, conn, 0.1, heard.append)
            assert bell.FLEET in heard
            assert connects.count(("s0", "registrar")) == 1
            assert connects.count(("s1", "registrar")) == (home == "s1")


async def test_a_worker_has_as_many_leases_as_it_may_at_the_most(
    make_cluster: MakeCluster, nobody_decides: None
) -> None:
    config = make_cluster(shards=3)
    async with running(config, working(), name="w", max_leases=2) as worker:
        assert len(worker.serves) == 2
        (left,) = {"s0", "s1", "s2"} - set(worker.serves)
        looks: list[str] = []
        found = worker._scout._found

        def counting(shard: str) -> None:
            looks.append(shard)
            found(shard)

        worker._scout._found = counting
        await until(lambda: len(looks) >= 2)
        assert set(looks) == {left}
        assert left not in worker._links


async def test_only_workers_with_a_shards_labels_serve_it(make_cluster: MakeCluster, nobody_decides: None) -> None:
    plain = make_cluster(shards=2)
    config = replace(plain, shards=(plain.shards[0], replace(plain.shards[1], labels=("big",))))
    async with (
        running(config, working(), name="small") as small,
        running(config, working(), name="large", labels=["big", "other"]) as large,
    ):
        assert (small.serves, large.serves) == (["s0"], ["s0", "s1"])
        await wish(config, "small", ["s0", "s1"])  # from a rebalancer whose configuration knows no labels
        await until(lambda: registered(config)["small"][1]["cut_off"] == ["s1"])
        assert registered(config)["small"][1]["aims"] == ["s0"]


async def test_a_pinned_worker_serves_what_it_was_given(make_cluster: MakeCluster, nobody_decides: None) -> None:
    config = make_cluster(shards=2)
    async with running(config, working(), name="w", shards=["s1"]) as worker:
        home, row = await until(lambda: registered(config).get("w"))
        assert row["pinned"]
        rows(config, "UPDATE worker SET wanted = ARRAY['s0'], decision = 1", shard=home)
        beat = registered(config)["w"][1]["beat"]
        await until(lambda: registered(config)["w"][1]["beat"] > beat + 2)
        assert registered(config)["w"][1]["obeyed"] == 0
        assert worker.serves == ["s1"]
        assert groups(config) == {"s0": [], "s1": ["w"]}  # s0 is left alone, and stays so


async def test_what_fails_in_a_chore_is_not_silent(shard_config: ClusterConfig) -> None:
    async with running(shard_config, working()) as worker:
        for chore in worker._chores:
            assert not chore.done()
        broken = worker._registrar._pulse

        def pulse(beat: int) -> Pulse:
            raise ZeroDivisionError

        worker._registrar._pulse = pulse
        beats = worker._registrar._beats
        await until(lambda: worker._registrar._beats > beats + 1)  # it tries again
        worker._registrar._pulse = broken
        before = registered(shard_config)[worker.name][1]["beat"]
        await until(lambda: registered(shard_config)[worker.name][1]["beat"] > before)
        assert not worker._ended.is_set()


async def test_two_that_decide_the_opposite_harm_nothing(
    make_cluster: MakeCluster, nobody_decides: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=2)
    app = working()
    swaps = opened = 0
    real = leases.open_lease

    async def opening(*arguments: Any, **options: Any) -> tuple[int, int]:
        nonlocal opened
        opened += 1
        return await real(*arguments, **options)

    monkeypatch.setattr(leases, "open_lease", opening)

    async def decide(homes: dict[Worker, int], wanted: tuple[str, str]) -> None:
        nonlocal swaps
        query = "UPDATE worker SET wanted = %s, decision = decision + 1 WHERE worker = %s RETURNING decision"
        while True:
            for (worker, home), shard in zip(homes.items(), wanted, strict=True):
                number = one(config, query, [shard], worker.name, shard=home)
                await until(lambda worker=worker, number=number: worker._obeyed >= number)
            swaps += 1

    async with (
        AsyncClient(config) as client,
        running(config, app, name="w") as first,
        running(config, app, name="v") as second,
    ):
        await until(lambda: len(registered(config)) == 2)
        homes = {worker: registered(config)[worker.name][0] for worker in (first, second)}
        deciding = [asyncio.ensure_future(decide(homes, wanted)) for wanted in (("s0", "s1"), ("s1", "s0"))]
        done = 0
        while done < 100 or swaps < 6 or opened < 4:
            handles = await client.submit_many(app.workflows["work"].call(n) for n in range(20))
            assert [await h.result(30) for h in handles] == list(range(20))
            done += 20
        for each in deciding:
            assert not each.done()
            each.cancel()
        await asyncio.wait(deciding)
        assert_all_done(config, done, done)
        assert_i1(config)
