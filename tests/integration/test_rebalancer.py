"""The rebalancer at work: elected, deciding, at rest, and replaced; whatever becomes of workers and shards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.group import away, elected, groups, impatient, journal, quick, registered, working
from support.lab import Lab
from support.look import assert_all_done, assert_i1, blocked_or_done, one, rows, terminate, until
from support.raw import by_hand
from support.work import Gate, ids_on, running

from shardflow import AsyncClient, ClusterConfig, LeaseConfig, Worker
from shardflow.rebalancer import Rebalancer
from shardflow.rebalancer.alone import run_alone
from shardflow.storage import leases, rebalance, registry
from shardflow.storage.ending import end
from shardflow.storage.registry import Card, Pulse
from shardflow.storage.shard import Shard

MakeCluster = Callable[..., ClusterConfig]

__all__ = ["impatient"]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who has looked at the cluster, look by look."""
    done: list[str] = []
    real = Rebalancer._look

    async def counting(self: Rebalancer, *arguments: Any) -> None:
        await real(self, *arguments)
        done.append(self.name)

    monkeypatch.setattr(Rebalancer, "_look", counting)
    return done


@asynccontextmanager
async def crew(config: ClusterConfig, count: int, *, connected: bool = True) -> AsyncIterator[list[Worker]]:
    """Workers "w0" and so on, all at once."""
    workers = [Worker(config, working(), name=f"w{n}") for n in range(count)]
    try:
        await asyncio.gather(*(worker.start() for worker in workers))
        if connected:
            await asyncio.wait_for(asyncio.gather(*(worker.connected() for worker in workers)), 60)
        yield workers
    finally:
        await asyncio.gather(*(worker.stop(grace=0.5) for worker in workers))


async def even(config: ClusterConfig, *sizes: int, without: tuple[str, ...] = ()) -> None:
    """Waits until the groups have these sizes, in any order, and every worker is registered with what it holds."""

    def settled() -> bool:
        found = groups(config)
        held = {name: sorted(row["held"]) for name, (_, row) in registered(config).items() if name not in without}
        aims = {
            name: sorted(row["aims"] or []) for name, (_, row) in registered(config).items() if name not in without
        }
        serves = {name: sorted(s for s, workers in found.items() if name in workers) for name in held}
        return sorted(len(workers) for workers in found.values()) == sorted(sizes) and held == serves == aims

    await until(settled, what=f"groups of {sizes}")


async def rest(config: ClusterConfig, looks: list[str], count: int = 4) -> None:
    """So many looks that decide nothing. What was under way before may still come to its end first."""

    def entries() -> int:
        return sum(len(journal(config, shard=k)) for k in range(len(config.shards)))

    for _ in range(20):
        before, already = entries(), len(looks)
        await until(lambda already=already: len(looks) >= already + count, what="looks")
        if entries() == before:
            return
    raise AssertionError(f"no rest: {journal(config)[-12:]}")


# -- balance and rest


async def test_workers_share_the_shards_evenly_and_rest(make_cluster: MakeCluster, looks: list[str]) -> None:
    config = quick(make_cluster(shards=3))
    async with AsyncClient(config) as client, crew(config, 6) as workers:
        await even(config, 2, 2, 2)
        assert [len(worker.serves) for worker in workers] == [1] * 6
        await rest(config, looks)
        assert len({name for name in looks[-4:]}) == 1
        handles = await client.submit_many(working().workflows["work"].call(n) for n in range(300))
        assert [await h.result(30) for h in handles] == list(range(300))
        await rest(config, looks)
        assert_all_done(config, 300, 300)


async def test_one_who_joins_is_told_and_one_who_leaves_is_replaced(
    make_cluster: MakeCluster, looks: list[str]
) -> None:
    config = quick(make_cluster(shards=2))
    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(crew(config, 4))
        await even(config, 2, 2)
        await rest(config, looks)
        joined = await stack.enter_async_context(running(config, working(), name="joins"))
        assert len(joined.serves) == 1
        assert registered(config)["joins"][1]["decision"] == 1
        assert [e[1:4] for e in journal(config, "open")][-1] == ("joins", None, joined.serves[0])
        await even(config, 3, 2)
        await rest(config, looks)
        before = len(journal(config, "open", "move"))
        (small,) = [name for name, group in groups(config).items() if len(group) == 2]
        leaver = next(worker for worker in workers if worker.serves == [small] and worker.name != elected(config))
        await leaver.leave()
        await even(config, 2, 2, without=(leaver.name,))
        ((_, _, source, target, _),) = journal(config, "open", "move")[before:]
        assert target == small
        assert source is not None


async def test_one_who_drains_is_replaced(make_cluster: MakeCluster, looks: list[str]) -> None:
    config, gate = quick(make_cluster(shards=2), min_group=1), Gate()
    async with AsyncClient(config) as client, AsyncExitStack() as stack:
        drained = await stack.enter_async_context(running(config, working(gate), name="d"))
        for k in range(2):
            await client.submit("holds", id=ids_on(config, k, 1)[0])
        await until(lambda: gate.arrived == 2)
        other = await stack.enter_async_context(running(config, working(Gate()), name="o"))
        await until(lambda: sorted(len(g) for g in groups(config).values()) == [1, 1])
        stopping = asyncio.ensure_future(drained.stop(grace=60))
        await until(lambda: other.serves == ["s0", "s1"])  # before the other has ended
        assert not stopping.done()
        gate.open()
        await stopping
        assert_i1(config)


async def test_pinned_workers_count_and_stay(make_cluster: MakeCluster, looks: list[str]) -> None:
    config = quick(make_cluster(shards=2), min_group=1)
    async with AsyncExitStack() as stack:
        pinned = [
            await stack.enter_async_context(running(config, working(), name=f"p{n}", shards=["s0"])) for n in range(2)
        ]
        free = [await stack.enter_async_context(running(config, working(), name=f"w{n}")) for n in range(2)]
        await until(lambda: groups(config) == {"s0": ["p0", "p1"], "s1": ["w0", "w1"]})
        await rest(config, looks)
        assert [worker.serves for worker in (*pinned, *free)] == [["s0"]] * 2 + [["s1"]] * 2
        assert not any(
            e[1] in ("p0", "p1") for k in range(2) for e in journal(config, "open", "close", "move", shard=k)
        )


async def test_labels_and_most_leases_are_respected(make_cluster: MakeCluster, looks: list[str]) -> None:
    plain = quick(make_cluster(shards=3))
    big = replace(plain.shards[2], labels=("big",))
    config = replace(plain, shards=(*plain.shards[:2], big))
    async with AsyncExitStack() as stack:
        small = [
            await stack.enter_async_context(running(config, working(), name=f"w{n}", max_leases=1)) for n in range(3)
        ]
        large = [
            await stack.enter_async_context(running(config, working(), name=f"b{n}", labels=["big"]))
            for n in range(2)
        ]
        await until(lambda: all(len(group) == 2 for group in groups(config).values()))
        await rest(config, looks)
        assert groups(config)["s2"] == ["b0", "b1"]
        assert [len(worker.serves) for worker in small] == [1, 1, 1]
        assert sorted(len(worker.serves) for worker in large) == [1, 2]


async def test_each_queue_of_each_shard_is_covered(make_cluster: MakeCluster, looks: list[str]) -> None:
    config = quick(make_cluster(shards=2), min_group=1)
    app = working()

    @app.workflow(queue="mail")
    async def letter() -> str:
        return "sent"

    async with AsyncClient(config) as client, AsyncExitStack() as stack:
        for n in range(2):
            await stack.enter_async_context(running(config, app, name=f"d{n}", queues=["default"]))
            await stack.enter_async_context(running(config, app, name=f"m{n}", queues=["mail"]))
        await until(lambda: all({w[0] for w in group} == {"d", "m"} for group in groups(config).values()))
        await rest(config, looks)
        assert all({w[0] for w in group} == {"d", "m"} for group in groups(config).values())
        for k in range(2):
            ids = ids_on(config, k, 2)
            assert await (await client.submit("letter", id=ids[0])).result(30) == "sent"
            assert await (await client.submit("work", 3, id=ids[1])).result(30) == 3


async def test_a_workflow_that_runs_is_not_disturbed_when_its_worker_is_wanted_elsewhere(
    make_cluster: MakeCluster, looks: list[str]
) -> None:
    config, gate = quick(make_cluster(shards=2), min_group=1), Gate()
    async with AsyncClient(config) as client, running(config, working(gate), name="first") as first:
        handles = [await client.submit("holds", id=ids_on(config, k, 1)[0]) for k in range(2)]
        await until(lambda: gate.arrived == 2)
        async with running(config, working(), name="second") as second:
            await until(lambda: groups(config, claiming=False)[second.serves[0]] == ["first"])
            assert first.serves == ["s0", "s1"]
            assert first.running == 2
            gate.open()
            assert [await h.result(30) for h in handles] == ["held", "held"]
            await until(lambda: len(first.serves) == 1)
            assert gate.arrived == 2
            assert {(await h.info()).attempt for h in handles} == {0}
            await rest(config, looks)


async def test_workers_of_an_earlier_version_are_left_alone_and_count(
    make_cluster: MakeCluster, looks: list[str]
) -> None:
    """They have no row in the registry, and say nothing of queues in their leases."""
    config = quick(make_cluster(shards=2), min_group=1)
    async with AsyncExitStack() as stack:
        hand = await stack.enter_async_context(by_hand(config))
        old = await hand.holder("old")
        worker = await stack.enter_async_context(running(config, working(), name="w"))
        await until(lambda: worker.serves == ["s1"])
        await rest(config, looks)
        assert groups(config) == {"s0": ["old"], "s1": ["w"]}
        await old.keeping.close()
        await until(lambda: worker.serves == ["s0", "s1"])


async def test_behind_a_pooler_leases_are_balanced_as_well(make_cluster: MakeCluster, looks: list[str]) -> None:
    plain = make_cluster(shards=2, lease=LeaseConfig(3, 0.3, 0.1))
    config = quick(replace(plain, shards=tuple(replace(s, pooler=True) for s in plain.shards)))
    async with crew(config, 4) as workers:
        await even(config, 2, 2)
        await rest(config, looks)
        dead = next(worker for worker in workers if worker.name != elected(config))
        await dead.leave()
        await even(config, 2, 2, without=(dead.name,))


async def test_a_worker_whose_configuration_lacks_a_shard_is_not_told_for_ever(
    make_cluster: MakeCluster, looks: list[str]
) -> None:
    """Half of the workers know the new shard already; the other half cannot be wanted there."""
    config = quick(make_cluster(shards=2))
    before = replace(config, shards=config.shards[:1])
    async with AsyncExitStack() as stack:
        for n in range(2):
            await stack.enter_async_context(running(config, working(), name=f"new{n}"))
        for n in range(3):
            await stack.enter_async_context(running(before, working(), name=f"old{n}"))
        for _ in range(2):  # whoever is elected, with the one configuration or the other
            await until(lambda: groups(config)["s1"] == ["new0", "new1"] and len(groups(config)["s0"]) >= 2)
            await rest(config, looks)
            assert groups(config)["s1"] == ["new0", "new1"]
            rows(config, "UPDATE election SET holder = 'nobody', expires_at = clock_timestamp()")


# -- election


async def test_one_is_elected_and_when_it_is_gone_another_one(make_cluster: MakeCluster, looks: list[str]) -> None:
    config = quick(make_cluster(shards=2))
    async with crew(config, 3) as workers:
        leader = await until(lambda: elected(config))
        await until(lambda: leader in [entry[1] for entry in journal(config, "elected")])
        await next(worker for worker in workers if worker.name == leader).leave()
        second = await until(lambda: (found := elected(config)) != leader and found)
        looks.clear()
        await until(lambda: second in looks)
        await until(lambda: [e[1] for e in journal(config, "elected")][-2:] == [leader, second])
        await next(worker for worker in workers if worker.name == second).stop()
        third = await until(lambda: (found := elected(config)) not in (leader, second) and found)
        await until(lambda: third in looks)
        assert one(config, "SELECT term FROM election") == 3


async def test_who_is_elected_stays_so_when_it_only_lost_its_connection(
    make_cluster: MakeCluster, looks: list[str]
) -> None:
    config = quick(make_cluster(shards=1, lease=LeaseConfig(30, 5, 0.1)))
    async with crew(config, 1):
        leader = await until(lambda: elected(config))
        await until(lambda: looks)
        terminate(config, f"keeper {leader}")
        await until(lambda: one(config, "SELECT max(epoch) FROM lease") == 2)
        looks.clear()
        await until(lambda: looks)
        assert looks[0] == leader
        assert one(config, "SELECT term FROM election") == 1


async def test_who_decides_on_a_later_shard_steps_aside_for_one_on_an_earlier(
    lab: Lab, make_cluster: MakeCluster, looks: list[str], impatient: None
) -> None:
    config = quick(make_cluster(shards=3))
    async with crew(config, 3, connected=False):
        await until(lambda: elected(config) and looks)
        with away(lab, config, 0):
            looks.clear()
            await until(lambda: looks.count(elected(config, 1)) >= 2, what="somebody is elected on s1 and decides")
            assert journal(config, "elected", shard=1)
        await until(lambda: len(looks) > 4 and set(looks[-4:]) == {elected(config, 0)}, what="only one decides")


async def test_who_stands_aside_keeps_its_connection_and_notices_when_that_was_cut(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2)
    first = Shard(config.shards[0])
    async with await first.connect("other") as conn:
        term = await rebalance.stand(first, conn, "other", None, 60.0)
    assert term is not None
    rebalancer = Rebalancer(config, "r")
    rebalancer.seat("s1", term)
    backends = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE %s"
    try:
        seen = []
        for _ in range(3):
            await rebalancer._turn()
            seen += rows(config, backends, "%rebalancer%")
        assert len(seen) == 3
        assert len(set(seen)) == 1
        terminate(config, "rebalancer")
        await rebalancer._turn()
        assert rebalancer.deciding is None
        assert set(rows(config, backends, "%rebalancer%")) - set(seen)
    finally:
        await rebalancer._survey.close()


async def test_who_stands_aside_keeps_no_connection_but_to_where_somebody_is_elected(
    make_cluster: MakeCluster,
) -> None:
    config = make_cluster(shards=3)
    shards = [Shard(shard) for shard in config.shards]
    rebalancer = Rebalancer(config, "r")
    async with await shards[2].connect("other") as conn:
        term = await rebalance.stand(shards[2], conn, "r", None, 60.0)
    rebalancer.seat("s2", term)
    try:
        for led in (1, 0):
            async with await shards[led].connect("other") as conn:
                assert await rebalance.stand(shards[led], conn, "other", None, 60.0)
            await rebalancer._turn()
            assert (rebalancer.deciding, list(rebalancer._survey._conns)) == (None, [f"s{led}"])
    finally:
        await rebalancer._survey.close()
        if rebalancer._nudge is not None:
            rebalancer._nudge.cancel()


async def test_a_seat_on_the_first_shard_is_taken_at_once_and_another_one_soon(make_cluster: MakeCluster) -> None:
    config = make_cluster(shards=2)
    rebalancer = Rebalancer(config, "r")
    term = rebalance.Term(1, datetime.now(UTC))
    rebalancer.seat("s1", term)
    assert not rebalancer._changed.is_set()
    await asyncio.wait_for(rebalancer._changed.wait(), 20)
    rebalancer.seat("s1", None)
    rebalancer._changed.clear()
    rebalancer.seat("s1", term)
    rebalancer.seat("s0", term)
    assert rebalancer._changed.is_set()
    assert rebalancer._nudge is not None
    rebalancer._nudge.cancel()


async def test_a_shard_that_was_away_for_a_moment_moves_nothing(
    lab: Lab, make_cluster: MakeCluster, looks: list[str], impatient: None
) -> None:
    config = quick(make_cluster(shards=3))
    async with crew(config, 6):
        await even(config, 2, 2, 2)
        await rest(config, looks)
        last = {name: worker for name, (_, worker) in registered(config).items()}
        before = len(journal(config, "open", "close", "move"))
        group = groups(config)["s2"]
        with away(lab, config, 2):
            looks.clear()
            await until(lambda: len(looks) >= 6)
            await until(
                lambda: all("s2" in found(config, name)["cut_off"] for name in last), what="all say that s2 is away"
            )
        await until(lambda: groups(config)["s2"] == group)
        await rest(config, looks)
        assert journal(config, "open", "close", "move")[before:] == []


def found(config: ClusterConfig, name: str) -> dict[str, Any]:
    """The worker's newest row on the first two shards."""
    query = "SELECT to_jsonb(w) FROM worker w WHERE worker = %s"
    both = [row for k in range(2) for (row,) in rows(config, query, name, shard=k)]
    return max(both, key=lambda row: row["beat"], default={"cut_off": []})


async def test_two_that_both_believe_themselves_elected_agree(make_cluster: MakeCluster, looks: list[str]) -> None:
    """They see the same and decide the same: nothing goes to and fro."""
    config = quick(make_cluster(shards=3))
    async with AsyncExitStack() as stack:
        impostor = Rebalancer(config, "impostor")
        impostor.seat("s0", rebalance.Term(99, None))  # type: ignore[arg-type]
        deciding = asyncio.create_task(impostor.run())
        stack.push_async_callback(end, [deciding])
        await stack.enter_async_context(crew(config, 6))
        await even(config, 2, 2, 2)
        await rest(config, looks, 8)
        assert len(set(looks[-8:])) == 2


async def test_what_fails_in_a_look_is_tried_again(
    make_cluster: MakeCluster, looks: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = quick(make_cluster(shards=1))
    real = rebalance.report
    failures: list[Exception] = []

    async def failing(shard: Any, conn: Any) -> rebalance.Report:
        if len(failures) < 2:
            failures.append(ZeroDivisionError())
            raise failures[-1]
        return await real(shard, conn)

    async with crew(config, 2):
        await until(lambda: looks)
        monkeypatch.setattr("shardflow.rebalancer.survey.AGAIN", 0.1)
        monkeypatch.setattr("shardflow.storage.rebalance.report", failing)
        await until(lambda: len(failures) == 2)
        seen = len(looks)
        await until(lambda: len(looks) > seen + 2)
        assert groups(config) == {"s0": ["w0", "w1"]}


async def test_whose_session_is_seen_closed_twice_in_a_row_does_not_count(shard_config: ClusterConfig) -> None:
    rebalancer = Rebalancer(shard_config, "r")
    async with by_hand(shard_config) as hand:
        card = Card("w", "host", 1, "app", "0.1.0", "", 100, 8, ["default"], [], False)
        conn = await hand.conn("registrar")
        await registry.beat(hand.shard, conn, card, Pulse(False, 1, 0, [], [], [], 0), 60, session=True)

        async def there() -> bool:
            report = await rebalance.report(hand.shard, await hand.conn())
            return bool(rebalancer._gather({"s0": report}, 0.0).workers)

        assert await there()
        assert not await there()
        await registry.stand_in(hand.shard, conn, "w")
        assert await there()
        await conn.close()
        await until(lambda: gone(shard_config))
        assert await there()
        await registry.stand_in(hand.shard, await hand.conn("registrar"), "w")
        assert await there()
        assert await there()


def gone(config: ClusterConfig) -> bool:
    locks = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database WHERE locktype = 'advisory'"
    return bool(one(config, f"{locks} AND datname = current_database()") == 0)


async def test_an_election_is_won_where_it_is_vacant(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        conn, holder = await hand.conn(), await hand.holder("a")
        lease = holder.fence.lease

        async def stand(name: str, lease: int | None = None, ttl: float = 60.0) -> int | None:
            term = await rebalance.stand(hand.shard, conn, name, lease, ttl)
            return term and term.number

        assert await stand("a", lease) == 1
        assert await stand("b") is None
        assert await stand("a", lease) == 1  # renewed
        assert await leases.release(hand.shard, conn, lease) == 0
        assert elected(shard_config) is None
        assert await stand("b", ttl=0.01) == 2  # the lease that a stood on has ended
        await until(lambda: elected(shard_config) is None)
        assert await stand("c") == 3  # its time is over
        await rebalance.resign(hand.shard, conn, "b")
        assert elected(shard_config) == "c"
        await rebalance.resign(hand.shard, conn, "c")
        assert await stand("d") == 4
        await rebalance.resign(hand.shard, conn, "d")
        second = await hand.conn()
        async with conn.transaction():  # two at once: the second one waits for the first
            assert await stand("e") == 5
            standing = asyncio.ensure_future(rebalance.stand(hand.shard, second, "f", None, 60.0))
            assert await blocked_or_done(shard_config, standing)
        assert await standing is None
        assert elected(shard_config) == "e"


# -- a rebalancer of its own


async def test_a_rebalancer_alone_decides_where_nobody_else_does_and_resigns(
    make_cluster: MakeCluster, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(make_cluster(shards=2))
    alone = asyncio.create_task(run_alone(config, "alone"))
    await until(lambda: elected(config) == "alone")
    async with crew(config, 4):
        await even(config, 2, 2)
        await rest(config, looks)
        assert set(looks) == {"alone"}
        other = asyncio.create_task(run_alone(config, "other"))
        await end([alone])
        await until(lambda: elected(config) not in (None, "alone"))
        await until(lambda: looks[-1] != "alone")
        await end([other])
    assert one(config, "SELECT holder FROM election") != "alone"


async def test_a_rebalancer_alone_goes_where_a_shard_answers(
    lab: Lab, make_cluster: MakeCluster, looks: list[str], impatient: None
) -> None:
    config = quick(make_cluster(shards=2, lease=LeaseConfig(3, 0.2, 0.1)))
    alone = asyncio.create_task(run_alone(config, "alone"))
    try:
        await until(lambda: elected(config) == "alone")
        with away(lab, config, 0):
            await until(lambda: elected(config, 1) == "alone")
            looks.clear()
            await until(lambda: looks)
        await until(lambda: elected(config, 1) is None and elected(config) == "alone")
        looks.clear()
        await until(lambda: looks)
    finally:
        await end([alone])
    assert elected(config) is None


@asynccontextmanager
async def process(folder: Path, config: ClusterConfig, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`shardflow` with these words; killed at the end if it still runs."""
    data = {"name": config.name, "slots": config.slots, "lease": asdict(config.lease)}
    data |= {"rebalance": asdict(config.rebalance), "shards": [{"name": s.name, "dsn": s.dsn} for s in config.shards]}
    (folder / "shardflow.yaml").write_text(yaml.safe_dump(data))
    (folder / "shop.py").write_text(
        "import shardflow\napp = shardflow.App()\n@app.workflow\nasync def work(x: int) -> int:\n    return x\n"
    )
    command = (os.sys.executable, "-m", "shardflow.cli", *words, "--config", str(folder / "shardflow.yaml"))
    with (folder / "log").open("ab") as log:
        made = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
    try:
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            made.kill()
        await made.wait()


async def test_a_rebalancer_process_is_elected_and_resigns_when_told_to_stop(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    config = quick(make_cluster(shards=1, lease=LeaseConfig(100, 0.5, 0.15)))  # nobody waits until its time is over
    async with process(tmp_path, config, "rebalancer", "run", "--name", "alone") as alone:
        await until(lambda: elected(config) == "alone")
        async with crew(config, 2):
            await until(lambda: groups(config) == {"s0": ["w0", "w1"]})
            assert elected(config) == "alone"
            alone.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(alone.wait(), 60) == 0
            await until(lambda: elected(config) in ("w0", "w1"), 30)
    assert "Resigned." in (tmp_path / "log").read_text()


async def test_when_the_elected_process_freezes_another_one_decides_until_it_is_back(
    make_cluster: MakeCluster, tmp_path: Path, looks: list[str]
) -> None:
    config = quick(make_cluster(shards=2, lease=LeaseConfig(3, 0.3, 0.1)))
    async with process(tmp_path, config, "worker", "run", "shop:app", "--name", "frozen") as frozen:
        await until(lambda: elected(config) == "frozen")
        async with AsyncClient(config) as client, crew(config, 2) as workers:
            os.kill(frozen.pid, signal.SIGSTOP)
            await until(lambda: elected(config) in ("w0", "w1"))
            await until(lambda: looks)
            await until(lambda: all(worker.serves == ["s0", "s1"] for worker in workers))
            os.kill(frozen.pid, signal.SIGCONT)
            await until(lambda: "frozen" in str(groups(config)))  # told anew, with a new lease
            assert elected(config) in ("w0", "w1")
            handles = await client.submit_many(working().workflows["work"].call(n) for n in range(20))
            assert sorted([await h.result(30) for h in handles]) == list(range(20))
