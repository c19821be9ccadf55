"""Connections that end at any moment, and commits whose answer is lost: nothing is assumed, lost or done twice."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.look import assert_all_done, assert_i1, connect, one, rows, terminate, until
from support.work import Gate, running

import shardflow.storage.submissions
import shardflow.storage.turn
import shardflow.storage.turn as turns
import shardflow.worker.link
import shardflow.worker.starter
from shardflow import (
    App,
    AsyncClient,
    ClusterConfig,
    LeaseConfig,
    PoolConfig,
    ShardUnavailable,
    SubmitUncertain,
    Worker,
)
from shardflow.storage import leases

MakeCluster = Callable[..., ClusterConfig]
#: Long enough that no lease is ended in these tests: what is lost is the connection alone.
PATIENT = LeaseConfig(ttl=60, renew=1, watch=5)


class Tally:
    """Workflows of three steps that count every execution of each."""

    def __init__(self) -> None:
        self.app = App()
        self.ran: Counter[tuple[int, int]] = Counter()

        @self.app.step
        async def add(x: int, n: int) -> int:
            self.ran[x, n] += 1
            await asyncio.sleep(0.002)
            return x + n

        @self.app.workflow
        async def work(x: int) -> int:
            for n in range(3):
                x = await add(x, n)
            return x

        self.work = work


@pytest.mark.parametrize("role", ["commit", "keeper", ""])
@pytest.mark.parametrize("seed", [1, 2])
async def test_connections_killed_at_random_moments_lose_and_repeat_nothing(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, seed: int, role: str
) -> None:
    config, tally, chance = make_cluster(shards=1, lease=PATIENT), Tally(), random.Random(seed)
    monkeypatch.setattr(shardflow.worker.link, "_BACKOFF", shardflow.Retry(attempts=2, initial=0.01, maximum=0.05))
    count = 400
    async with AsyncClient(config) as client, running(config, tally.app, concurrency=12):
        handles = await client.submit_many(tally.work.call(100 * n).set(id=f"w{n}") for n in range(count))
        results = asyncio.gather(*(h.result(60) for h in handles))
        (lease,) = rows(config, "SELECT lease FROM lease")
        killed = 0
        for _ in range(12):
            await asyncio.sleep(chance.uniform(0.02, 0.12))
            killed += 0 if results.done() else terminate(config, role)
        assert await results == [100 * n + 3 for n in range(count)]
        assert killed >= 3, "the work was over before anything was killed"
        await until(lambda: one(config, "SELECT max(epoch) FROM lease") > 1)
        assert rows(config, "SELECT lease FROM lease") == [lease], "the lease was lost instead of resumed"
        assert_i1(config)
    assert_all_done(config, workflows=count, steps=3 * count)
    assert set(tally.ran.values()) == {1}, "a step ran again though its workflow was in memory"
    assert len(tally.ran) == 3 * count


class Lossy:
    """Stands before a storage function and loses the answers to some of its calls.

    Arguments: `real`; `lose`, which calls (by their number, from 1, and arguments); `committed`, whether the call
    takes place all the same; `kill`, whether the connection is closed, too.
    """

    def __init__(self, real: Any, lose: Callable[..., bool], committed: bool) -> None:
        self._real = real
        self._lose = lose
        self._committed = committed
        self.calls = 0
        self.lost = 0

    async def __call__(self, shard: Any, conn: Any, *rest: Any) -> Any:
        self.calls += 1
        if not self._lose(self.calls, *rest):
            return await self._real(shard, conn, *rest)
        self.lost += 1
        if self._committed:
            await self._real(shard, conn, *rest)
        await conn.close()
        raise ShardUnavailable("the answer is lost", shard=shard.name)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_turn_whose_answer_is_lost_is_looked_up(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    config, tally = make_cluster(shards=1, lease=PATIENT), Tally()
    monkeypatch.setattr(shardflow.worker.link, "_BACKOFF", shardflow.Retry(attempts=2, initial=0.01, maximum=0.05))
    lossy = Lossy(shardflow.storage.turn.commit, lambda n, *_: n % 3 == 0, committed)
    monkeypatch.setattr(shardflow.storage.turn, "commit", lossy)
    async with AsyncClient(config) as client, running(config, tally.app, concurrency=20):
        handles = await client.submit_many(tally.work.call(100 * n) for n in range(100))
        assert await asyncio.gather(*(h.result(60) for h in handles)) == [100 * n + 3 for n in range(100)]
        assert one(config, "SELECT count(*) FROM lease") == 1
    assert lossy.lost > 5
    assert set(tally.ran.values()) == {1}
    assert_all_done(config, workflows=100, steps=300)


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("what", ["steps", "outcomes", "claim"])
async def test_each_kind_of_write_survives_the_loss_of_its_answer(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, what: str, committed: bool
) -> None:
    config, tally = make_cluster(shards=1, lease=PATIENT), Tally()
    lost: list[bool] = []

    def lose(_: int, fence: Any, turn: Any) -> bool:
        rather = bool(getattr(turn, what)) and one(config, "SELECT count(*) FROM workflow") > 0 and not lost
        lost.extend([True] * rather)
        return rather

    monkeypatch.setattr(shardflow.storage.turn, "commit", Lossy(shardflow.storage.turn.commit, lose, committed))
    async with AsyncClient(config) as client, running(config, tally.app):
        handle = await client.submit(tally.work, 0)
        assert await handle.result(30) == 3
        await until(lambda: rows(config, "SELECT epoch FROM lease") == [(2,)])
    assert lost
    assert set(tally.ran.values()) == {1}
    assert_all_done(config, workflows=1, steps=3)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_suspension_whose_answer_is_lost_is_looked_up(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """Of workflows that the worker has no code for: they are in no run, only in the turn."""
    config, app, lost = make_cluster(shards=1, lease=PATIENT), App(), list[bool]()
    monkeypatch.setattr(shardflow.worker.starter, "UNKNOWN_DELAY", 60.0)

    @app.workflow
    async def known() -> str:
        return "known"

    def lose(_: int, fence: Any, turn: Any) -> bool:
        rather = bool(turn.waits) and not lost
        lost.extend([True] * rather)
        return rather

    monkeypatch.setattr(shardflow.storage.turn, "commit", Lossy(shardflow.storage.turn.commit, lose, committed))
    async with AsyncClient(config) as client, running(config, app):
        for n in range(3):
            await client.submit("unknown", id=f"u{n}")
        await until(lambda: one(config, "SELECT count(*) FROM wait") == 3)
        assert await (await client.submit(known)).result(30) == "known"
        assert_i1(config)
        assert one(config, "SELECT max(epoch) FROM lease") == 2, "it never came to rest"
    assert lost


async def test_claims_that_the_worker_never_saw_are_run(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a claim of many, some of which have checkpoints already, is lost."""
    config, tally = make_cluster(shards=1, lease=PATIENT), Tally()
    gate = Gate()
    held = App()

    @held.step
    async def add(x: int, n: int) -> int:
        if n == 1:
            await gate.wait()
        return x + n + 1000

    @held.workflow(name="work")
    async def work(x: int) -> int:
        return await add(await add(x, 0), 1)

    async with AsyncClient(config) as client:
        handles = await client.submit_many(tally.work.call(0).set(id=f"w{n}") for n in range(10))
        async with running(config, held) as first:
            await until(lambda: gate.arrived == 10)
            await first.stop(grace=0)
        handles += await client.submit_many(tally.work.call(0).set(id=f"x{n}") for n in range(10))
        lost: list[bool] = []

        def lose(_: int, fence: Any, turn: Any) -> bool:
            rather = turn.claim is not None and not lost
            lost.extend([True] * rather)
            return rather

        monkeypatch.setattr(shardflow.storage.turn, "commit", Lossy(shardflow.storage.turn.commit, lose, True))
        async with running(config, tally.app):
            results = await asyncio.gather(*(h.result(30) for h in handles))
    assert results == [1003] * 10 + [3] * 10
    assert tally.ran == Counter({(1000, 1): 10, (1001, 2): 10, (0, 0): 10, (0, 1): 10, (1, 2): 10})
    assert_all_done(config, workflows=20, steps=60)


# -- the client


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("committed", [True, False])
async def test_a_submit_whose_answer_is_lost_is_submitted_once(
    cluster_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, committed: bool, given: bool
) -> None:
    tally = Tally()
    real = shardflow.storage.submissions.submit
    lossy = Lossy(real, lambda n, *_: n % 2 == 1, committed)
    monkeypatch.setattr(shardflow.storage.submissions, "submit", lossy)
    async with AsyncClient(cluster_config) as client:
        handles = [await client.submit(tally.work, n, id=f"w{n}" if given else None) for n in range(10)]
        many = await client.submit_many(
            tally.work.call(n).set(id=f"m{n}") if given else tally.work.call(n) for n in range(100)
        )
        assert lossy.lost >= 10
        async with running(cluster_config, tally.app):
            results = await asyncio.gather(*(h.result(30) for h in [*handles, *many]))
    assert results == [n + 3 for n in [*range(10), *range(100)]]
    assert_all_done(cluster_config, workflows=110, steps=330)


async def test_a_submit_that_stays_in_doubt_says_which_ids(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_cluster(shards=1, pool=PoolConfig(timeout=2, connect_timeout=5))
    lossy = Lossy(shardflow.storage.submissions.submit, lambda *_: True, True)
    with monkeypatch.context() as patch:
        patch.setattr(shardflow.storage.submissions, "submit", lossy)
        async with AsyncClient(config) as client:
            with pytest.raises(SubmitUncertain, match="'it', may have been accepted") as doubt:
                await client.submit("work", 1, id="it")
    assert doubt.value.ids == ("it",)
    assert doubt.value.shard == "s0"
    assert doubt.value.retryable
    async with AsyncClient(config) as client:
        assert (await client.submit("work", 1, id="it")).id == "it"
    assert one(config, "SELECT count(*) FROM workflow") == 1


async def test_a_client_whose_connection_is_killed_at_the_commit_submits_once(shard_config: ClusterConfig) -> None:
    """A deferred trigger ends the backend in the middle of COMMIT, three times."""
    with connect(shard_config) as conn:
        conn.execute("CREATE SEQUENCE public.boom")
        conn.execute(
            "CREATE FUNCTION public.boom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " IF nextval('public.boom') <= 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;"
            " RETURN NULL; END $$"
        )
        conn.execute(
            "CREATE CONSTRAINT TRIGGER boom AFTER INSERT ON workflow DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION public.boom()"
        )
    async with AsyncClient(shard_config) as client:
        handle = await client.submit("work", 1)
        assert one(shard_config, "SELECT last_value FROM public.boom") >= 4
        assert rows(shard_config, "SELECT id FROM workflow") == [(handle.id,)]
        assert one(shard_config, "SELECT count(*) FROM ready") == 1


async def test_idle_connections_that_the_server_closed_are_not_used(shard_config: ClusterConfig) -> None:
    """Noticed before anything is sent, so that nothing is in doubt."""
    async with AsyncClient(shard_config) as client:
        for n in range(3):
            await client.submit("work", n, id=f"w{n}")
            assert terminate(shard_config, "client") >= 1
        assert one(shard_config, "SELECT count(*) FROM workflow") == 3


async def test_waiting_for_a_result_survives_lost_connections(shard_config: ClusterConfig) -> None:
    app, gate = App(), Gate()

    @app.workflow
    async def work() -> str:
        await gate.wait()
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work)
        waiting = asyncio.ensure_future(handle.result(30))
        for _ in range(2):
            await until(lambda: terminate(shard_config, "client"))
        gate.open()
        assert await waiting == "done"


async def test_a_lease_ended_right_after_its_resume_acknowledges_nothing_of_a_peer(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter-example of docs/model.md: a peer records the step of the turn in doubt with a value of its own.

    Looked up after the resume's transaction, that checkpoint would be taken for the worker's own.
    """
    config = make_cluster(shards=1)
    values, seconds = itertools.count(1), list[int]()
    hold = asyncio.Event()
    app = App("peer")

    @app.step
    async def draw() -> int:
        return next(values)

    @app.step
    async def use(value: int) -> int:
        seconds.append(value)
        await hold.wait()
        return value

    @app.workflow
    async def work() -> int:
        return await use(await draw())

    commit, resume = turns.commit, leases.resume
    lost, peers = list[bool](), list[Worker]()

    async def lossy(shard: Any, conn: Any, fence: Any, turn: Any) -> Any:
        if turn.steps and not lost:
            lost.append(True)
            await conn.close()
            raise ShardUnavailable("the turn never reached the server", shard=shard.name)
        return await commit(shard, conn, fence, turn)

    async def overtaken(shard: Any, conn: Any, lease: int, *rest: Any) -> Any:
        found = await resume(shard, conn, lease, *rest)
        rows(config, "SELECT end_lease(%s, 1)", lease)
        peers.append(Worker(config, app, name="peer"))
        await peers[0].start()
        await until(lambda: one(config, "SELECT count(*) FROM step") == 1)
        return found

    monkeypatch.setattr(turns, "commit", lossy)
    monkeypatch.setattr(leases, "resume", overtaken)
    async with AsyncClient(config) as client:
        worker = Worker(config, app, name="first")
        await worker.start()
        handle = await client.submit(work, id="w")
        await until(lambda: one(config, "SELECT count(*) FROM lease") == 2 and len(seconds) >= 1)
        hold.set()
        recorded = await handle.result(30)
        await worker.stop(grace=1)
        await peers[0].stop(grace=1)
    assert seconds == [recorded], "a value that is recorded nowhere was acknowledged"
