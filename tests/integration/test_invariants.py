"""Invariants I1 to I5 of the design: a scenario for each, and for each guard a mutant under which it fails.

A scenario fixes its interleaving by explicit connections and locks. A mutant takes one guard away, in the database or
in the code, and the scenario must then end in an AssertionError: a test that cannot fail proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.look import assert_i1, blocked_or_done, connect, one, rows, terminate, until
from support.raw import Hand, by_hand, done, step
from support.work import Gate, running

import shardflow.storage.submissions as submissions
import shardflow.storage.turn as turns
import shardflow.worker.commit
from shardflow import App, AsyncClient, ClusterConfig
from shardflow.errors import LeaseLost, MapChanged
from shardflow.sql import load
from shardflow.storage import leases, migrate
from shardflow.storage.shard import Shard
from shardflow.storage.turn import Receipt, Refused
from shardflow.worker.receipts import Receipts

Scenario = Callable[[ClusterConfig], Awaitable[None]]
Mutate = Callable[[ClusterConfig, pytest.MonkeyPatch], None]


# -- the scenarios


async def i1_churn(config: ClusterConfig) -> None:
    """I1: claims, ends, suspensions, wakings, an expiry and a release; every workflow is always in one place."""
    async with by_hand(config) as hand:
        first, second = await hand.holder("first"), await hand.holder("second")
        await hand.submit(first.writing, *(f"w{n}" for n in range(30)))
        assert_i1(config)
        await hand.submit(first.writing, "w0", "w1", "new")
        assert_i1(config)
        one_ = [row.wf for row in await first.claim(8)]
        two = [row.wf for row in await first.claim(8)]
        other = [row.wf for row in await second.claim(8)]
        assert_i1(config)
        assert len({*one_, *two, *other}) == 24, "a workflow was claimed twice"
        await first.turn(steps=[step(wf) for wf in one_], outcomes=[done(wf) for wf in two[:3]])
        assert_i1(config)
        # Two leave their receipt for `wait`; the rest of it is written anew.
        await first.turn(
            waits=[(wf, 0.0, 0, "test") for wf in one_[:2]], dropped=[1], kept=Receipt(3, one_[2:], [0] * 6)
        )
        assert_i1(config)
        await second.turn(wake=1)
        assert_i1(config)
        await second.turn(outcomes=[done(wf) for wf in other], dropped=[1])
        assert_i1(config)
        rows(config, "UPDATE lease SET expires_at = now() - interval '1 s' WHERE worker = 'first'")
        (dead,) = (await leases.look(hand.shard, second.keeping, second.fence.lease, 1, watch=True)).dead
        await leases.expire(hand.shard, second.keeping, dead)
        assert_i1(config)
        assert one(config, "SELECT count(*) FROM lease") == 1
        again = await second.claim(100)
        await second.turn(wake=10)
        again += await second.claim(100)
        assert_i1(config)
        assert len(again) == 31 - len(other) - 3, "a workflow was lost"
        await second.turn(outcomes=[done(row.wf) for row in again[:5]])
        await leases.release(hand.shard, second.keeping, second.fence.lease)
        assert_i1(config)
        assert one(config, "SELECT count(*) FROM ready") == len(again) - 5


async def i1_worker(config: ClusterConfig) -> None:
    """I1 with a whole worker: workflows without code are suspended out of receipts that name others too."""
    app, gate = App(), Gate()

    @app.workflow
    async def known() -> None:
        await gate.wait()

    async with AsyncClient(config) as client, running(config, app):
        handles = await client.submit_many(
            client_call for n in range(5) for client_call in (known.call(), unknown_call(n))
        )
        await until(lambda: gate.arrived == 5)
        await until(lambda: one(config, "SELECT count(*) FROM wait") == 5)
        assert_i1(config)
        gate.open()
        await asyncio.gather(*(h.result(30) for h in handles[::2]))
        assert_i1(config)


def unknown_call(n: int) -> Any:
    from shardflow.definitions import Call

    return Call("unknown").set(id=f"unknown{n}")


async def i2_late_write(config: ClusterConfig) -> None:
    """I2: a worker whose lease was expired, and does not know, writes nothing."""
    async with by_hand(config) as hand:
        late, peer = await hand.holder("late"), await hand.holder("peer")
        await hand.submit(late.writing, "it")
        (row,) = await late.claim()
        rows(config, "SELECT end_lease(%s, 1)", late.fence.lease)
        (again,) = await peer.claim()
        assert again.wf == row.wf
        for write in ({"steps": [step(row.wf)]}, {"outcomes": [done(row.wf)]}, {"waits": [(row.wf, 1.0, 0, "")]}):
            with contextlib.suppress(LeaseLost, Refused):
                await late.turn(**write)
        for table in ("step", "outcome", "wait"):
            found = one(config, f"SELECT count(*) FROM {table}")
            assert found == 0, f"a worker without a lease wrote into {table}"


async def i2_in_flight(config: ClusterConfig) -> None:
    """I2: a batch is in flight when the lease expires. Whoever claims next sees its checkpoint, or it is refused."""
    async with by_hand(config) as hand:
        late, peer = await hand.holder("late"), await hand.holder("peer")
        await hand.submit(late.writing, "it")
        (row,) = await late.claim()
        statements, fence = hand.shard.statements("turn"), late.fence
        await late.writing.execute(b"BEGIN")
        await late.writing.execute(statements["fence"], (fence.lease, fence.epoch, fence.generation))
        await late.writing.execute(
            "INSERT INTO shardflow.step (wf, seq, name, output) VALUES (%s, 0, 'step', '1')", (row.wf,)
        )
        rows(config, "UPDATE lease SET expires_at = now() - interval '1 s' WHERE lease = %s", fence.lease)
        statement = "SELECT shardflow.end_lease(%s, 1)"
        ending = asyncio.ensure_future(peer.keeping.execute(statement, (fence.lease,)))
        waits = await blocked_or_done(config, ending)
        if waits:
            await late.writing.execute(b"COMMIT")
        await asyncio.wait_for(ending, 30)
        claimed = await peer.claim()
        assert [r.wf for r in claimed] == [row.wf], "the claim was not put back once"
        seen = await peer.checkpoints(row.wf)
        if not waits:
            await late.writing.execute(b"COMMIT")
        after = await peer.checkpoints(row.wf)
        assert seen.keys() == after.keys(), "a checkpoint appeared behind the back of the next holder"


async def i2_resume_in_flight(config: ClusterConfig) -> None:
    """I2: a worker resumes its lease while its old connection's batch is in flight; its look-up then is final."""
    async with by_hand(config) as hand:
        holder = await hand.holder("a", writer=False)
        await hand.submit(holder.writing, "it")
        (row,) = await holder.claim()
        statements, fence = hand.shard.statements("turn"), holder.fence
        await holder.writing.execute(b"BEGIN")
        await holder.writing.execute(statements["fence"], (fence.lease, fence.epoch, fence.generation))
        await holder.writing.execute(
            "INSERT INTO shardflow.step (wf, seq, name, output) VALUES (%s, 0, 'step', '1')", (row.wf,)
        )
        fresh = await hand.conn("commit a again")
        resuming = asyncio.ensure_future(leases.resume(hand.shard, fresh, fence.lease, 60))
        waits = await blocked_or_done(config, resuming)
        if waits:
            await holder.writing.execute(b"COMMIT")
        await asyncio.wait_for(resuming, 30)
        turn = turns.Turn(steps=[step(row.wf)])
        answer = await turns.written(hand.shard, fresh, turn)
        if not waits:
            await holder.writing.execute(b"COMMIT")
        assert answer == await turns.written(hand.shard, fresh, turn), "a batch committed after it was looked up"


async def i2_old_connection(config: ClusterConfig) -> None:
    """I2: what the old connection sends after the lease was resumed is refused."""
    async with by_hand(config) as hand:
        holder = await hand.holder("a", writer=False)
        await hand.submit(holder.writing, "it")
        (row,) = await holder.claim()
        await leases.resume(hand.shard, await hand.conn(), holder.fence.lease, 60)
        with contextlib.suppress(LeaseLost):
            await holder.turn(steps=[step(row.wf)])
        assert one(config, "SELECT count(*) FROM step") == 0, "the shut out connection wrote"


async def i3_stale_map(config: ClusterConfig) -> None:
    """I3: a write that names an old generation is refused, of a client and of a worker."""
    async with by_hand(config) as hand:
        holder = await hand.holder("a")
        await hand.submit(holder.writing, "before")
        (row,) = await holder.claim()
        old = hand.generation
        rows(config, "UPDATE shard SET generation = generation + 1")
        client = await hand.conn("client")
        with contextlib.suppress(MapChanged):
            await hand.submit(client, "after", generation=old)
        with contextlib.suppress(MapChanged):
            await holder.turn(outcomes=[done(row.wf)])
        assert rows(config, "SELECT id FROM workflow") == [("before",)], "a stale client's write was taken"
        assert one(config, "SELECT count(*) FROM outcome") == 0, "a stale worker's write was taken"


async def i3_write_during_a_change(config: ClusterConfig) -> None:
    """I3: while the slots change, writers wait; then they find that their map is stale."""
    async with by_hand(config) as hand:
        mover, client = await hand.conn("mover"), await hand.conn("client")
        old = hand.generation
        cluster = hand.shard.statements("cluster")
        await mover.execute(b"BEGIN")
        await mover.execute(cluster["lock_map"])
        await mover.execute("UPDATE shardflow.shard SET generation = generation + 1")
        writing = asyncio.ensure_future(hand.submit(client, "it", generation=old))
        waits = await blocked_or_done(config, writing)
        await mover.execute(b"COMMIT")
        with contextlib.suppress(MapChanged):
            await asyncio.wait_for(writing, 30)
        assert one(config, "SELECT count(*) FROM workflow") == 0, "a slot that moved away was written to"
        assert waits


async def i3_change_during_a_write(config: ClusterConfig) -> None:
    """I3: a change of the slots waits for the writers under way."""
    async with by_hand(config) as hand:
        mover, client = await hand.conn("mover"), await hand.conn("client")
        await client.execute(b"BEGIN")
        await client.execute(hand.shard.statements("submit")["admit"], (hand.generation,))
        await mover.execute(b"BEGIN")
        changing = asyncio.ensure_future(mover.execute(hand.shard.statements("cluster")["lock_map"]))
        waits = await blocked_or_done(config, changing)
        await client.execute(b"COMMIT")
        await asyncio.wait_for(changing, 30)
        await mover.execute(b"COMMIT")
        assert waits, "the slots changed under a writer's feet"


async def i4_second_checkpoint(config: ClusterConfig) -> None:
    """I4: of two outcomes for one step the first stays, and every replay gets that one."""
    async with by_hand(config) as hand:
        holder = await hand.holder("a")
        await hand.submit(holder.writing, "it")
        (row,) = await holder.claim()
        await holder.turn(steps=[step(row.wf, 0, b'"first"')])
        with contextlib.suppress(Refused):
            await holder.turn(steps=[step(row.wf, 0, b'"second"')])
        assert rows(config, "SELECT output FROM step") == [(b'"first"',)], "a step has two outcomes"
        await holder.turn(outcomes=[done(row.wf, b'"first"')])
        with contextlib.suppress(Refused):
            await holder.turn(outcomes=[done(row.wf, b'"second"')])
        assert rows(config, "SELECT output FROM outcome") == [(b'"first"',)], "a workflow ended twice"


async def i4_replay(config: ClusterConfig) -> None:
    """I4: the next worker takes a step's outcome from its checkpoint and does not run it."""
    app, gate, drawn = App(), Gate(), list[int]()

    @app.step
    async def draw() -> int:
        drawn.append(len(drawn) + 1)
        return drawn[-1]

    @app.step
    async def hold() -> None:
        await gate.wait()

    @app.workflow
    async def work() -> int:
        number = await draw()
        await hold()
        return number

    async with AsyncClient(config) as client, running(config, app) as first:
        handle = await client.submit(work)
        await until(lambda: gate.arrived == 1)
        await first.leave()
        async with running(config, app):
            await until(lambda: gate.arrived == 2 or len(drawn) > 1)
            assert drawn == [1], "a step with a checkpoint ran again"
            gate.open()
            assert await handle.result(30) == 1


async def i4_acknowledged_after_commit(config: ClusterConfig) -> None:
    """I4: a workflow goes on behind a step only when the step's checkpoint can be seen by others."""
    app, seen = App(), list[int]()

    @app.step
    async def first() -> None: ...

    @app.step
    async def second() -> None:
        seen.append(one(config, "SELECT count(*) FROM step"))

    @app.workflow
    async def work() -> None:
        await first()
        await second()

    async with AsyncClient(config) as client, running(config, app):
        await (await client.submit(work)).result(30)
    assert seen == [1], "the workflow went on before the commit"


async def i5_same_id(config: ClusterConfig) -> None:
    """I5: an id that is submitted twice, one after the other or at once, is one workflow that runs once."""
    app, ran = App(), Counter[int]()

    @app.workflow
    async def work(x: int) -> int:
        ran[x] += 1
        return x

    async with AsyncClient(config) as client, AsyncClient(config) as other:
        await client.submit(work, 0, id="0")
        await other.submit(work, 0, id="0")
        await asyncio.gather(*((client, other)[n % 2].submit(work, 1, id="1") for n in range(10)))
        found = rows(config, "SELECT id, count(*) FROM workflow GROUP BY id ORDER BY id")
        assert found == [("0", 1), ("1", 1)], "an id was accepted twice"
        async with running(config, app):
            await until(lambda: one(config, "SELECT count(*) FROM outcome") >= 2)
            await until(lambda: one(config, "SELECT count(*) FROM ready") == 0)
    assert ran == {0: 1, 1: 1}


async def i5_same_id_in_flight(config: ClusterConfig) -> None:
    """I5: the first submit of an id has not committed when the second one comes."""
    async with by_hand(config) as hand:
        slow, fast = await hand.conn("slow"), await hand.conn("fast")
        await slow.execute(b"BEGIN")
        await slow.execute(
            "WITH made AS (INSERT INTO shardflow.workflow (id, name, queue, slot, input)"
            " VALUES ('it', 'work', 'default', 1, '[]') RETURNING wf)"
            " INSERT INTO shardflow.ready (seq, wf, priority, queue) SELECT wf, wf, 0, 'default' FROM made"
        )
        second = asyncio.ensure_future(hand.submit(fast, "it"))
        await blocked_or_done(config, second)
        await slow.execute(b"COMMIT")
        made = await asyncio.wait_for(second, 30)
        assert one(config, "SELECT count(*) FROM workflow") == 1, "an id was accepted twice"
        assert made == {}, "both believe to be the first"


async def i5_acknowledged_is_durable(config: ClusterConfig) -> None:
    """I5: once `submit` has returned, whatever becomes of the client and its connections, the workflow is there."""
    async with AsyncClient(config) as client:
        handles = [await client.submit("work", 1, id="one")]
        terminate(config, "client")
        handles += await client.submit_many([unknown_call(0), unknown_call(1)])
        terminate(config, "client")
        await until(lambda: not terminate(config, "client"))
        stored = {row[0] for row in rows(config, "SELECT id FROM workflow JOIN ready USING (wf)")}
        assert stored == {h.id for h in handles}, "an acknowledged submit is lost"


# -- the mutants


def function(name: str, change: Callable[[str], str]) -> Mutate:
    """Replaces a function of the schema by a changed text of itself."""

    def mutate(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        text = next(m.statements[name] for m in migrate.known() if name in m.statements)
        changed = change(text)
        assert changed != text, "the mutant is no mutant"
        with connect(config) as conn:
            text = changed.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
            for key, value in Shard(config.shards[0]).names.items():
                text = text.replace("{" + key + "}", value.as_string(conn))
            conn.execute(text)

    return mutate


def without(pattern: str) -> Callable[[str], str]:
    """Takes what the pattern matches out of a text."""
    return lambda text: re.sub(pattern, "", text, flags=re.DOTALL)


def replaced(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


def empty_body(text: str) -> str:
    return re.sub(r"\nBEGIN\n.*\nEND\n", "\nBEGIN\n    RETURN;\nEND\n", text, flags=re.DOTALL)


def ddl(*statements: str) -> Mutate:
    def mutate(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        with connect(config) as conn:
            for statement in statements:
                conn.execute(statement)

    return mutate


def statement(concern: str, name: str, change: Callable[[str], str]) -> Mutate:
    """Changes a statement of `shardflow/sql`."""

    def mutate(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = dict(load(concern))
        changed = change(texts[name])
        assert changed != texts[name], "the mutant is no mutant"
        texts[name] = changed
        monkeypatch.setattr(
            "shardflow.storage.shard.statements.load", lambda asked: texts if asked == concern else load(asked)
        )

    return mutate


def both(*mutations: Mutate) -> Mutate:
    def mutate(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        for each in mutations:
            each(config, monkeypatch)

    return mutate


def no_receipts_settled(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended workflows stay in their receipts."""
    settle = Receipts.settle
    monkeypatch.setattr(Receipts, "settle", lambda self, leaving: settle(self, ()))


def no_checkpoints_read(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(shard: Any, conn: Any, wfs: Any) -> tuple[dict[int, Any], float]:
        return {}, 0.0

    monkeypatch.setattr(leases, "recorded", nothing)


def settled_before_commit(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit loop lets the runs go on before it has committed."""
    commit_loop = shardflow.worker.commit.CommitLoop
    commit = commit_loop._commit

    async def hasty(self: Any, conn: Any, fence: Any, gathered: Any, turn: Any) -> None:
        self.settle(gathered)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await commit(self, conn, fence, gathered, turn)

    monkeypatch.setattr(commit_loop, "_commit", hasty)


def acknowledged_before_commit(config: ClusterConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's transaction is left open when submit returns; its commit would come later."""

    async def hasty(shard: Any, conn: Any, generation: int, new: Any, *rest: Any) -> dict[str, int]:
        with shard.translate():
            await conn.execute(b"BEGIN")
            made = {}
            for n in new:
                cursor = await conn.execute(
                    "INSERT INTO shardflow.workflow (id, name, queue, slot, input) VALUES (%s, %s, %s, %s, %s)"
                    " RETURNING wf",
                    (n.id, n.name, n.queue, n.slot, n.input),
                )
                made[n.id] = (await cursor.fetchone())[0]
        return made

    monkeypatch.setattr(submissions, "submit", hasty)


def ready_again(text: str) -> str:
    again = text.replace("DO NOTHING", "DO UPDATE SET name = excluded.name")
    return again.replace("SELECT wf, wf, priority", "SELECT nextval('{schema}.key'), wf, priority")


LOOKED_UP = replaced(
    "ON CONFLICT (id) DO NOTHING", "WHERE NOT EXISTS (SELECT FROM {schema}.workflow w WHERE w.id = given.id)"
)
MUTANTS: dict[str, tuple[Scenario, Mutate]] = {
    # I1: one place
    "I1 end_lease puts nothing back": (
        i1_churn,
        function("end_lease", replaced("WHERE NOT EXISTS (", "WHERE false AND NOT EXISTS (")),
    ),
    "I1 end_lease puts ended ones back": (
        i1_churn,
        function("end_lease", without(r"\n +WHERE NOT EXISTS [^\n;]*")),
    ),
    "I1 end_lease puts back twice": (
        i1_churn,
        function("end_lease", replaced("FROM held h JOIN", "FROM generate_series(1, 2), held h JOIN")),
    ),
    "I1 end_lease leaves the claims": (
        i1_churn,
        both(
            ddl("ALTER TABLE claim DROP CONSTRAINT claim_lease_fkey"),
            function(
                "end_lease",
                lambda text: text.replace(
                    "DELETE FROM {schema}.claim WHERE lease = gone RETURNING wfs, attempts",
                    "SELECT wfs, attempts FROM {schema}.claim WHERE lease = gone",
                ).replace("DELETE FROM {schema}.lease WHERE lease = gone;", ""),
            ),
        ),
    ),
    "I1 a claim without a receipt": (
        i1_churn,
        statement("turn", "claim", replaced("HAVING count(*) > 0", "HAVING count(*) < 0")),
    ),
    "I1 a claim that takes nothing away": (
        i1_churn,
        statement(
            "turn",
            "claim",
            lambda text: text.replace("DELETE FROM {schema}.ready", "SELECT * FROM {schema}.ready", 1).replace(
                "    RETURNING wf, attempt, replay, queue, priority, seq\n", ""
            ),
        ),
    ),
    "I1 a receipt is not rewritten": (
        i1_churn,
        statement(
            "turn",
            "keep_claim",
            replaced(
                "VALUES (%s, %s, %s, %s)", "SELECT * FROM (VALUES (%s::bigint, %s::bigint, %s, %s)) v WHERE false"
            ),
        ),
    ),
    "I1 a receipt is not dropped": (
        i1_churn,
        statement("turn", "drop_claims", replaced("batch = ANY(%s)", "batch = ANY(%s) AND false")),
    ),
    "I1 waking leaves the row": (
        i1_churn,
        statement(
            "turn",
            "wake",
            lambda text: re.sub(
                r"WITH due AS \(.*?\n\), woken",
                "WITH due AS (SELECT wf, attempt FROM {schema}.wait"
                " WHERE wake_at >= coalesce(%s::timestamptz, '-infinity') AND wake_at <= now() LIMIT %s), woken",
                text,
                flags=re.DOTALL,
            ),
        ),
    ),
    "I1 a submit of a known id makes it ready again": (
        i1_churn,
        both(statement("submit", "insert", ready_again), statement("submit", "submit", ready_again)),
    ),
    "I1 the worker leaves suspended ones in its receipts": (i1_worker, no_receipts_settled),
    # I2: the fence
    "I2 no fence at all (late write)": (i2_late_write, function("fence", empty_body)),
    "I2 no fence at all (in flight)": (i2_in_flight, function("fence", empty_body)),
    "I2 no fence at all (resume)": (i2_resume_in_flight, function("fence", empty_body)),
    "I2 no fence at all (old connection)": (i2_old_connection, function("fence", empty_body)),
    "I2 the fence takes no lock": (i2_in_flight, function("fence", without(" FOR KEY SHARE"))),
    "I2 the fence takes no lock (resume)": (i2_resume_in_flight, function("fence", without(" FOR KEY SHARE"))),
    "I2 the fence ignores the epoch": (
        i2_old_connection,
        function("fence", replaced("IF present IS DISTINCT FROM held_epoch", "IF present IS NULL")),
    ),
    "I2 end_lease does not wait": (
        i2_in_flight,
        both(
            ddl("ALTER TABLE claim DROP CONSTRAINT claim_lease_fkey"),
            function(
                "end_lease",
                lambda text: text.replace(" FOR UPDATE", "").replace(
                    "DELETE FROM {schema}.lease WHERE lease = gone;", ""
                ),
            ),
        ),
    ),
    "I2 resume does not wait": (i2_resume_in_flight, statement("lease", "settle", without(" FOR UPDATE"))),
    "I2 resume keeps the epoch": (
        i2_old_connection,
        statement("lease", "resume", replaced("epoch = epoch + 1", "epoch = epoch")),
    ),
    # I3: the generation
    "I3 admit does nothing": (i3_stale_map, function("admit", empty_body)),
    "I3 admit does nothing (during a change)": (i3_write_during_a_change, function("admit", empty_body)),
    "I3 admit takes no lock": (
        i3_write_during_a_change,
        function("admit", without(r"    PERFORM pg_advisory_xact_lock_shared[^\n]*\n")),
    ),
    "I3 admit takes no lock (change)": (
        i3_change_during_a_write,
        function("admit", without(r"    PERFORM pg_advisory_xact_lock_shared[^\n]*\n")),
    ),
    "I3 admit asks before it waits": (
        i3_write_during_a_change,
        function(
            "admit",
            lambda text: re.sub(
                r"(    PERFORM pg_advisory[^\n]*\n)(    SELECT generation[^\n]*\n)", r"\2\1", text, flags=re.DOTALL
            ),
        ),
    ),
    "I3 a change takes no lock": (
        i3_change_during_a_write,
        statement("cluster", "lock_map", lambda _: "SELECT 1"),
    ),
    "I3 the fence does not admit": (i3_stale_map, function("fence", without(r"    PERFORM [^\n]*admit[^\n]*\n"))),
    # I4: written once
    "I4 no key on checkpoints": (i4_second_checkpoint, ddl("ALTER TABLE step DROP CONSTRAINT step_pkey")),
    "I4 no key on outcomes": (i4_second_checkpoint, ddl("ALTER TABLE outcome DROP CONSTRAINT outcome_pkey")),
    "I4 the last checkpoint wins": (
        i4_second_checkpoint,
        statement(
            "turn", "steps", lambda text: text + " ON CONFLICT (wf, seq) DO UPDATE SET output = excluded.output"
        ),
    ),
    "I4 checkpoints are not read": (i4_replay, no_checkpoints_read),
    "I4 what is put back is not replayed": (
        i4_replay,
        function("end_lease", replaced("b.attempt, true, b.queue", "b.attempt, false, b.queue")),
    ),
    "I4 acknowledged before the commit": (i4_acknowledged_after_commit, settled_before_commit),
    # I5: submitted once, never lost
    "I5 ids are not unique": (
        i5_same_id,
        both(
            ddl("ALTER TABLE workflow DROP CONSTRAINT workflow_id_key"),
            statement("submit", "insert", without(r"\n    ON CONFLICT \(id\) DO NOTHING")),
            statement("submit", "submit", without(r"\n    ON CONFLICT \(id\) DO NOTHING")),
        ),
    ),
    "I5 ids are looked up instead of unique": (
        i5_same_id_in_flight,
        both(
            ddl("ALTER TABLE workflow DROP CONSTRAINT workflow_id_key"),
            statement("submit", "insert", LOOKED_UP),
            statement("submit", "submit", LOOKED_UP),
        ),
    ),
    "I5 acknowledged before the commit": (i5_acknowledged_is_durable, acknowledged_before_commit),
}

SCENARIOS = list(dict.fromkeys(scenario for scenario, _ in MUTANTS.values()))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_invariant_holds(shard_config: ClusterConfig, scenario: Scenario) -> None:
    await scenario(shard_config)


@pytest.mark.parametrize("name", MUTANTS)
async def test_the_invariant_fails_without_its_guard(
    shard_config: ClusterConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scenario, mutate = MUTANTS[name]
    mutate(shard_config, monkeypatch)
    with pytest.raises(AssertionError) as failed:
        await scenario(shard_config)
    assert "not within" not in str(failed.value), "the mutant only timed out"


def test_every_scenario_has_a_mutant() -> None:
    written = {value for name, value in globals().items() if re.match(r"i\d_", name)}
    assert written == set(SCENARIOS)


# -- the same, through the public faces


async def test_a_client_with_a_stale_map_asks_again_and_succeeds(shard_config: ClusterConfig) -> None:
    app = App()

    @app.workflow
    async def work(x: int) -> int:
        return x

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        assert await (await client.submit(work, 1)).result(30) == 1
        with connect(shard_config) as conn, conn.transaction():
            conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('shardflow:map', 0))")
            conn.execute("UPDATE shard SET generation = generation + 1")
        handles = await client.submit_many(work.call(n) for n in range(10))
        assert [await h.result(30) for h in handles] == list(range(10))


async def test_a_worker_with_a_stale_map_goes_on_with_what_it_ran(shard_config: ClusterConfig) -> None:
    app, gate, ran = App(), Gate(), Counter[str]()

    @app.step
    async def early() -> None:
        ran["early"] += 1

    @app.workflow
    async def work() -> str:
        await early()
        await gate.wait()
        ran["late"] += 1
        await early()
        return "done"

    async with AsyncClient(shard_config) as client, running(shard_config, app):
        handle = await client.submit(work)
        await until(lambda: gate.arrived)
        rows(shard_config, "UPDATE shard SET generation = generation + 1")
        gate.open()
        assert await handle.result(30) == "done"
        assert one(shard_config, "SELECT count(*) FROM lease") == 1
    assert ran == {"early": 2, "late": 1}


async def test_the_bell_and_the_locks_of_two_schemas_in_one_database_are_apart(shard_config: ClusterConfig) -> None:
    """The map lock of another shard in the same database keeps nobody waiting."""
    async with by_hand(shard_config) as hand:
        await wait_free(hand)


async def wait_free(hand: Hand) -> None:
    other = await hand.conn("other shard")
    await other.execute(b"BEGIN")
    await other.execute("SELECT pg_advisory_xact_lock(hashtextextended('elsewhere:map', 0))")
    made = await asyncio.wait_for(hand.submit(await hand.conn("client"), "it"), 30)
    assert list(made) == ["it"]
    await other.execute(b"COMMIT")
