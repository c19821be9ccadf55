"""Leases: opened, renewed, resumed, released, and ended by peers, with what they held put back exactly once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.look import assert_all_done, assert_i1, connect, one, rows, terminate, until
from support.raw import by_hand, done, step
from support.work import Gate, running

from shardflow import App, AsyncClient, ClusterConfig, LeaseConfig
from shardflow.core import lowwater
from shardflow.core.lanes import SUSPECT
from shardflow.errors import LeaseLost
from shardflow.storage import leases
from shardflow.storage.leases import Peer
from shardflow.storage.turn import Receipt

MakeCluster = Callable[..., ClusterConfig]

PLACES = "SELECT id, attempt, replay FROM ready JOIN workflow USING (wf) ORDER BY seq"


async def test_a_lease_is_renewed_by_its_epoch_only(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("a", ttl=1.0)
        before = one(shard_config, "SELECT expires_at FROM lease")
        lease, epoch = holder.fence.lease, holder.fence.epoch
        assert (await leases.look(hand.shard, holder.keeping, lease, epoch, ttl=100.0)).held
        assert (one(shard_config, "SELECT expires_at FROM lease") - before).total_seconds() > 90
        renewed = one(shard_config, "SELECT expires_at FROM lease")
        for strange in ((lease, epoch + 1), (lease + 1, epoch)):
            for ttl in (200.0, None):
                assert not (await leases.look(hand.shard, holder.keeping, *strange, ttl=ttl)).held
        assert (await leases.look(hand.shard, holder.keeping, lease, epoch)).held, "it is held without a renewal too"
        assert one(shard_config, "SELECT expires_at FROM lease") == renewed, "it was renewed unasked"


async def test_a_lease_id_is_never_used_again(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        seen = set()
        for _ in range(3):
            holder = await hand.holder("a")
            assert await leases.release(hand.shard, holder.keeping, holder.fence.lease) == 0
            assert await leases.release(hand.shard, holder.keeping, holder.fence.lease) is None
            seen.add(holder.fence.lease)
        assert len(seen) == 3


async def test_only_leases_that_are_dead_are_seen_and_ended(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        own, peer = await hand.holder("own"), await hand.holder("peer")

        async def seen() -> list[Peer]:
            return (await leases.look(hand.shard, own.keeping, own.fence.lease, 1, watch=True)).dead

        assert await seen() == []
        for lie in (Peer(peer.fence.lease, "peer", True, False), Peer(peer.fence.lease, "peer", False, True)):
            assert await leases.expire(hand.shard, own.keeping, lie) is None
        assert one(shard_config, "SELECT count(*) FROM lease") == 2
        rows(shard_config, "UPDATE lease SET expires_at = now() - interval '1 ms' WHERE lease = %s", peer.fence.lease)
        (expired,) = await seen()
        assert (expired.lease, expired.worker, expired.expired, expired.gone) == (
            peer.fence.lease,
            "peer",
            True,
            False,
        )
        # Renewed in the meantime: it lives.
        await leases.look(hand.shard, peer.keeping, peer.fence.lease, peer.fence.epoch, ttl=60)
        assert await leases.expire(hand.shard, own.keeping, expired) is None
        await peer.keeping.close()
        await until(seen)
        (gone,) = await seen()
        assert (gone.expired, gone.gone) == (False, True)
        assert await leases.expire(hand.shard, own.keeping, gone) == 0
        assert await leases.expire(hand.shard, own.keeping, gone) is None
        assert await seen() == []


async def test_expiry_puts_back_what_is_left_once_with_the_attempt_counted(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder, other = await hand.holder("a"), await hand.holder("b")
        await hand.submit(holder.writing, "a", "b", "c", "d")
        claimed = {row.id: row.wf for row in await holder.claim(4)}
        assert list(claimed) == ["a", "b", "c", "d"]
        await holder.turn(steps=[step(claimed["a"])], outcomes=[done(claimed["b"])])
        # "c" leaves its receipt: suspended.
        rest = Receipt(9, [claimed["a"], claimed["d"]], [0, 3])
        await holder.turn(waits=[(claimed["c"], 60.0, 0, "test")], dropped=[1], kept=rest)
        assert_i1(shard_config)
        lost = Peer(holder.fence.lease, "a", True, False)
        rows(shard_config, "UPDATE lease SET expires_at = now() - interval '1 ms' WHERE lease = %s", lost.lease)
        assert await leases.expire(hand.shard, other.keeping, lost) == 2
        assert sorted(rows(shard_config, PLACES)) == [("a", 1, True), ("d", 4, True)]
        assert_i1(shard_config)
        again = await other.claim(10)
        assert [(r.id, r.attempt, r.replay) for r in again] == [("a", 1, True)]
        suspects = await other.turn(claim=10, queue=f"default{SUSPECT}")
        assert [(r.id, r.attempt, r.replay) for r in suspects] == [("d", 4, True)]
        assert list(await other.checkpoints(claimed["a"])) == [0]


async def test_release_leaves_the_attempt_as_it_is(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("a")
        await hand.submit(holder.writing, "a", "b")
        await holder.claim(1)
        assert await leases.release(hand.shard, await hand.conn(), holder.fence.lease) == 1
        assert rows(shard_config, PLACES) == [("a", 0, True), ("b", 0, False)]
        with pytest.raises(LeaseLost):
            await holder.claim(1)


async def test_an_attempt_stops_counting_at_its_limit(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        first = await hand.holder("a")
        await hand.submit(first.writing, "a")
        rows(shard_config, "UPDATE ready SET attempt = 32767")
        await first.claim()
        rows(shard_config, "SELECT end_lease(%s, 1)", first.fence.lease)
        assert rows(shard_config, PLACES) == [("a", 32767, True)]


async def test_a_resume_shuts_the_old_connection_out(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("a", writer=False)
        await hand.submit(holder.writing, "a", "b")
        (row,) = await holder.claim(1)
        resumed = await leases.resume(hand.shard, await hand.conn(), holder.fence.lease, 60)
        assert resumed is not None
        assert resumed.epoch == holder.fence.epoch + 1
        assert [h.wf for h in resumed.held] == [row.wf]
        with pytest.raises(LeaseLost, match="epoch 1 is not held"):
            await holder.turn(steps=[step(row.wf)])
        assert one(shard_config, "SELECT count(*) FROM step") == 0
        holder.fence = replace(holder.fence, epoch=resumed.epoch)
        await holder.turn(steps=[step(row.wf)])
        assert await leases.resume(hand.shard, await hand.conn(), holder.fence.lease + 1, 60) is None


async def test_due_workflows_wake_and_others_do_not(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        holder = await hand.holder("a")
        await hand.submit(holder.writing, *"abc")
        claimed = await holder.claim(3)
        await holder.turn(
            waits=[(r.wf, delay, 7, "w") for r, delay in zip(claimed, (0.0, 0.0, 60.0), strict=True)], dropped=[1]
        )
        assert await holder.turn(wake=1) == []
        assert one(shard_config, "SELECT count(*) FROM ready") == 1
        await holder.turn(wake=10)
        assert sorted(rows(shard_config, PLACES)) == [("a", 7, True), ("b", 7, True)]
        assert rows(shard_config, "SELECT id FROM wait JOIN workflow USING (wf)") == [("c",)]
        assert_i1(shard_config)


# -- whole workers


class Held:
    """A workflow with one step done, held in its second one."""

    def __init__(self) -> None:
        self.app = App()
        self.gate = Gate()
        self.ran: Counter[str] = Counter()

        @self.app.step
        async def early() -> str:
            self.ran["early"] += 1
            return f"early {self.ran['early']}"

        @self.app.step
        async def hold() -> None:
            await self.gate.wait()

        @self.app.workflow
        async def work() -> str:
            answer = await early()
            await hold()
            return answer

        self.work = work


async def test_a_lease_past_its_time_is_ended_by_a_peer(shard_config: ClusterConfig) -> None:
    """The first worker's session lives, so only the clock tells; it cannot renew, because its epoch was changed."""
    held = Held()
    async with AsyncClient(shard_config) as client, running(shard_config, held.app, name="first"):
        handle = await client.submit(held.work)
        await until(lambda: held.gate.arrived == 1)
        async with running(shard_config, held.app, name="second"):
            rows(
                shard_config,
                "UPDATE lease SET expires_at = now() - interval '1 s', epoch = epoch + 1 WHERE worker = 'first'",
            )
            await until(lambda: held.gate.arrived == 2, what="somebody else runs it")
            assert (await handle.info()).attempt == 1
            held.gate.open()
            assert await handle.result(30) == "early 1"
    assert held.ran["early"] == 1


async def test_a_closed_session_is_noticed_long_before_the_lease_would_expire(make_cluster) -> None:  # type: ignore[no-untyped-def]
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=600, renew=100, watch=0.15))
    held = Held()
    async with AsyncClient(config) as client, running(config, held.app, name="first") as first:
        handle = await client.submit(held.work)
        await until(lambda: held.gate.arrived == 1)
        await first.leave()
        async with running(config, held.app, name="second"):
            await until(lambda: held.gate.arrived == 2)
            assert rows(config, "SELECT worker FROM lease") == [("second",)]
            held.gate.open()
            assert await handle.result(30) == "early 1"


async def test_a_worker_whose_lease_was_ended_writes_nothing_under_it_and_goes_on(
    shard_config: ClusterConfig,
) -> None:
    held = Held()
    async with AsyncClient(shard_config) as client, running(shard_config, held.app):
        handle = await client.submit(held.work, id="it")
        await until(lambda: held.gate.arrived == 1)
        (old,) = rows(shard_config, "SELECT lease FROM lease")
        # Held back from being claimed again, so that it is seen who writes.
        with connect(shard_config) as conn, conn.transaction():
            conn.execute("SELECT end_lease(%s, 1)", old)
            conn.execute("UPDATE ready SET queue = 'elsewhere'")
        held.gate.open()
        await until(lambda: rows(shard_config, "SELECT 1 FROM lease WHERE lease <> %s", *old))
        assert rows(shard_config, "SELECT seq FROM step") == [(0,)]
        assert one(shard_config, "SELECT count(*) FROM outcome") == 0
        assert_i1(shard_config)
        rows(shard_config, "UPDATE ready SET queue = 'default'")
        assert await handle.result(30) == "early 1"
    assert held.ran["early"] == 1


async def test_a_worker_that_merely_lost_its_connections_keeps_its_lease(make_cluster) -> None:  # type: ignore[no-untyped-def]
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=30, renew=1, watch=1.0))
    held = Held()
    async with (
        AsyncClient(config) as client,
        running(config, held.app, name="first"),
        running(config, held.app, name="second", queues=["other"]),
    ):
        handle = await client.submit(held.work)
        await until(lambda: held.gate.arrived == 1)
        before = rows(config, "SELECT lease FROM lease ORDER BY lease")
        assert terminate(config, "keeper first") == 1
        await until(lambda: one(config, "SELECT epoch FROM lease WHERE worker = 'first'") == 2)
        held.gate.open()
        assert await handle.result(30) == "early 1"
        assert rows(config, "SELECT lease FROM lease ORDER BY lease") == before
    assert held.gate.arrived == 1
    assert_all_done(config, workflows=1, steps=2)


async def test_peers_pass_over_a_holder_in_the_middle_of_a_batch_until_it_is_over(
    shard_config: ClusterConfig,
) -> None:
    """Nobody waits for the batch's lock, least of all a keeper that has its own lease to renew."""
    async with by_hand(shard_config) as hand:
        holder, other = await hand.holder("a"), await hand.holder("b")
        await hand.submit(holder.writing, "a")
        (row,) = await holder.claim()
        statements = hand.shard.statements("turn")
        fence = holder.fence
        await holder.writing.execute(b"BEGIN")
        await holder.writing.execute(statements["fence"], (fence.lease, fence.epoch, fence.generation))
        rows(shard_config, "UPDATE lease SET expires_at = now() - interval '1 s' WHERE lease = %s", fence.lease)
        peer = Peer(fence.lease, "a", True, False)
        assert await leases.expire(hand.shard, other.keeping, peer) is None
        assert await leases.expire(hand.shard, other.keeping, Peer(fence.lease, "a", False, True)) is None
        await holder.writing.execute(b"ROLLBACK")
        assert await leases.expire(hand.shard, other.keeping, peer) == 1
        assert [r.wf for r in await other.claim()] == [row.wf]


async def test_a_batch_that_never_ends_is_cut_off_when_its_lease_is_long_over(shard_config: ClusterConfig) -> None:
    """Half of a batch that a frozen worker has sent would hold the lease's row for ever."""
    async with by_hand(shard_config) as hand:
        holder, other = await hand.holder("a"), await hand.holder("b")
        await hand.submit(holder.writing, "a")
        (row,) = await holder.claim()
        fence = holder.fence
        await holder.writing.execute(b"BEGIN")
        statement = hand.shard.statements("turn")["fence"]
        await holder.writing.execute(statement, (fence.lease, fence.epoch, fence.generation))
        rows(shard_config, "UPDATE lease SET expires_at = now() - interval '1 s' WHERE lease = %s", fence.lease)
        peer = Peer(fence.lease, "a", True, False)
        assert not await leases.cut_off(hand.shard, other.keeping, peer, 60.0), "it is not late enough"
        assert await leases.cut_off(hand.shard, other.keeping, peer, 0.5)

        pid = holder.writing.info.backend_pid
        await until(lambda: one(shard_config, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", pid) == 0)
        assert await leases.expire(hand.shard, other.keeping, peer) == 1
        assert [r.wf for r in await other.claim()] == [row.wf]


async def test_what_comes_back_from_a_lease_keeps_its_place_before_the_backlog(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        first, second = await hand.holder("first"), await hand.holder("second")
        await hand.submit(first.writing, *(f"w{n:02}" for n in range(30)))
        claimed = [row.id for row in await first.claim(5)]
        assert claimed == [f"w{n:02}" for n in range(5)]
        rows(shard_config, "SELECT end_lease(%s, 1)", first.fence.lease)
        again = await second.claim(7)
        assert [row.id for row in again] == [f"w{n:02}" for n in range(7)]
        assert [row.attempt for row in again] == [1] * 5 + [0] * 2


async def test_a_workflow_under_which_leases_end_again_and_again_goes_to_the_end(shard_config: ClusterConfig) -> None:
    async with by_hand(shard_config) as hand:
        conn = await hand.conn()
        await hand.submit(conn, "deadly", "harmless")
        places = []
        for n in range(5):
            holder = await hand.holder(f"worker-{n}")
            (row,) = await holder.claim(1)
            places.append(row.id)
            rows(shard_config, "SELECT end_lease(%s, 1)", holder.fence.lease)
        assert places == ["deadly"] * 4 + ["harmless"]
        assert_i1(shard_config)


async def test_a_dead_workers_claims_run_before_the_backlog(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the claimer's low-water mark lies behind their places."""
    monkeypatch.setattr(lowwater, "INTERVAL", 1000.0)  # it does not look from the start of its own accord
    config = make_cluster(shards=1, lease=LeaseConfig(ttl=20, renew=0.1, watch=0.05))
    app, order, back = App(), list[str](), asyncio.Event()

    @app.workflow
    async def work(name: str) -> None:
        if len(order) == 100:
            await back.wait()
        order.append(name)

    async with AsyncClient(config) as client, by_hand(config) as hand:
        doomed = await hand.holder("doomed", ttl=0.5)
        await client.submit_many(work.call(f"held-{n}").set(id=f"held-{n}") for n in range(20))
        assert len(await doomed.claim(20)) == 20
        last = await client.submit_many(work.call(f"later-{n}").set(id=f"later-{n}") for n in range(500))
        async with running(config, app, concurrency=2):
            await until(lambda: not rows(config, "SELECT 1 FROM lease WHERE worker = 'doomed'"))
            assert len(order) <= 100
            back.set()
            await last[-1].result(30)
            behind = max(place for place, name in enumerate(order) if name.startswith("held"))
            assert behind < 150, "the backlog went first"
    assert_all_done(config, 520, 0)
