"""Transactional steps: the user's writes on the shard and the checkpoint commit together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection, errors
from support.lab import with_pool
from support.look import blocked_or_done, connect, one, rows, until
from support.raw import Hand, Holder, by_hand, step
from support.work import Gate, running

from shardflow import App, AsyncClient, ClusterConfig, InvalidInput, Retry, StepFailed, UsageError, WorkflowFailed
from shardflow.errors import LeaseLost, MapChanged, ShardUnavailable
from shardflow.storage import leases
from shardflow.storage.transaction_talk import Conflict, Done, Work
from shardflow.storage.transactions import Transactions


@pytest.fixture
def bank(shard_config: ClusterConfig) -> ClusterConfig:
    """A shard with a table of the user's in the role's own schema."""
    with psycopg.connect(shard_config.shards[0].dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE account (name text PRIMARY KEY, cents integer NOT NULL CHECK (cents >= 0))")
        conn.execute(
            "CREATE TABLE entry (account text REFERENCES account DEFERRABLE INITIALLY DEFERRED, cents integer)"
        )
        conn.execute("INSERT INTO account SELECT 'a' || n, 1000 FROM generate_series(0, 9) n")
    return shard_config


def cents(config: ClusterConfig, name: str = "a0") -> int:
    return int(one(config, "SELECT cents FROM public.account WHERE name = %s", name))


UPDATE = "UPDATE account SET cents = cents - %s WHERE name = %s RETURNING cents"


async def test_writes_and_checkpoint_commit_together(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def debit(conn: AsyncConnection[Any], name: str, by: int) -> int:
        assert type(conn).__mro__[1] is AsyncConnection
        row = await (await conn.execute(UPDATE, (by, name))).fetchone()
        assert row is not None
        return int(row[0])

    @app.workflow
    async def pay(name: str, by: int) -> list[int]:
        return [await debit(name, by), await debit(name, by=by)]

    async with AsyncClient(bank) as client, running(bank, app):
        assert await (await client.submit(pay, "a0", 100)).result(30) == [900, 800]
    assert cents(bank) == 800
    xmins = rows(bank, "SELECT s.xmin::text FROM step s ORDER BY seq")
    assert xmins[1:] == rows(bank, "SELECT xmin::text FROM public.account WHERE name = 'a0'")


async def test_plain_functions_in_plain_and_in_async_workflows(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    def debit(conn: Connection[Any], name: str, by: int) -> int:
        assert type(conn).__mro__[1] is Connection
        row = conn.execute(UPDATE, (by, name)).fetchone()
        assert row is not None
        return int(row[0])

    @app.workflow
    def plain(name: str) -> list[int]:
        return [debit(name, 1), debit(name, 2)]

    @app.workflow
    async def fancy(name: str) -> list[int]:
        return sorted(await asyncio.gather(debit.aio(name, 1), debit.aio(name, 1)))

    async with AsyncClient(bank) as client, running(bank, app):
        assert await (await client.submit(plain, "a0")).result(30) == [999, 997]
        assert await (await client.submit(fancy, "a1")).result(30) == [998, 999]


async def test_a_failure_leaves_nothing_and_is_checkpointed(bank: ClusterConfig) -> None:
    app = App()
    tries = []

    @app.transaction(retry=Retry(attempts=3, initial=0.01))
    async def overdraw(conn: AsyncConnection[Any]) -> None:
        tries.append(1)
        await conn.execute("UPDATE account SET cents = cents + 5 WHERE name = 'a0'")
        await conn.execute(UPDATE, (2000, "a0"))

    @app.workflow
    async def pay() -> str:
        try:
            await overdraw()
        except StepFailed as error:
            return f"{error.type} {error.attempts}"
        return "paid"

    async with AsyncClient(bank) as client, running(bank, app):
        assert await (await client.submit(pay)).result(30) == "psycopg.errors.CheckViolation 3"
    assert len(tries) == 3
    assert cents(bank) == 1000
    assert rows(bank, "SELECT attempts, error IS NOT NULL FROM step") == [(3, True)]


async def test_a_deferred_constraint_is_the_functions_failure(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def book(conn: AsyncConnection[Any]) -> None:
        await conn.execute("INSERT INTO entry VALUES ('nobody', 1)")

    @app.workflow
    async def pay() -> None:
        await book()

    async with AsyncClient(bank) as client, running(bank, app):
        with pytest.raises(WorkflowFailed, match="ForeignKeyViolation"):
            await (await client.submit(pay)).result(30)
    assert one(bank, "SELECT count(*) FROM public.entry") == 0


async def test_the_fences_planner_settings_are_not_for_the_users_triggers(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def book(conn: AsyncConnection[Any]) -> None:
        await conn.execute("INSERT INTO entry VALUES ('a0', 1)")

    @app.workflow
    async def pay() -> None:
        await book()

    with psycopg.connect(bank.shards[0].dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE seen (setting text)")
        conn.execute("""
            CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO public.seen VALUES (current_setting('enable_seqscan'));
                RETURN NULL;
            END $$
            """)
        conn.execute("""
            CREATE CONSTRAINT TRIGGER looks AFTER INSERT ON entry DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION look()
            """)
    async with AsyncClient(bank) as client, running(bank, app):
        await (await client.submit(pay)).result(30)
    assert rows(bank, "SELECT setting FROM public.seen") == [("on",)]


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_collisions_are_tried_again_without_counting(bank: ClusterConfig, isolation: str) -> None:
    app = App()

    @app.transaction(isolation=isolation)
    async def bump(conn: AsyncConnection[Any]) -> str:
        row = await (await conn.execute("SELECT cents FROM account WHERE name = 'a0'")).fetchone()
        assert row is not None
        await conn.execute("UPDATE account SET cents = %s WHERE name = 'a0'", (row[0] + 1,))
        level = await (await conn.execute("SHOW transaction_isolation")).fetchone()
        assert level is not None
        return str(level[0])

    @app.workflow
    async def work() -> str:
        return await bump()

    async with AsyncClient(bank) as client, running(bank, app):
        handles = await client.submit_many(work.call() for _ in range(5))
        assert {await handle.result(30) for handle in handles} == {isolation}
    assert cents(bank) == 1005
    assert one(bank, "SELECT max(attempts) FROM step") == 1


async def test_a_deadlock_is_tried_again_without_counting(bank: ClusterConfig) -> None:
    app = App()
    both = asyncio.Barrier(2)
    tries = []

    @app.transaction
    async def move(conn: AsyncConnection[Any], one: str, two: str) -> None:
        await conn.execute(UPDATE, (1, one))
        tries.append(1)
        if len(tries) <= 2:
            await both.wait()
        await conn.execute(UPDATE, (1, two))

    @app.workflow
    async def work(one: str, two: str) -> None:
        await move(one, two)

    async with AsyncClient(bank) as client, running(bank, app):
        handles = [await client.submit(work, "a0", "a1"), await client.submit(work, "a1", "a0")]
        for handle in handles:
            await handle.result(30)
    assert len(tries) >= 3
    assert (cents(bank, "a0"), cents(bank, "a1")) == (998, 998)
    assert one(bank, "SELECT max(attempts) FROM step") == 1


@pytest.mark.parametrize("what", ["commit", "rollback", "close"])
async def test_the_end_of_the_transaction_is_not_the_functions(bank: ClusterConfig, what: str) -> None:
    app = App()

    @app.transaction
    async def debit(conn: AsyncConnection[Any]) -> None:
        await conn.execute(UPDATE, (1, "a0"))
        await getattr(conn, what)()

    @app.transaction
    def plain(conn: Connection[Any]) -> None:
        conn.execute(UPDATE, (1, "a0"))
        getattr(conn, what)()

    @app.workflow
    async def pay() -> list[str]:
        found = []
        for call in (debit, plain.aio):
            try:
                await call()
            except StepFailed as error:
                found.append(error.message)
        return found

    async with AsyncClient(bank) as client, running(bank, app):
        for message in await (await client.submit(pay)).result(30):
            assert f"conn.{what}() is not for the function of a transaction" in message
    assert cents(bank) == 1000


SET = "SET work_mem = '1MB'"


@pytest.mark.parametrize("ending", [["COMMIT"], ["COMMIT", SET], ["COMMIT", SET, "BEGIN"], ["ROLLBACK", "BEGIN"]])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_function_that_ends_the_transaction_by_sql_is_found_out(
    bank: ClusterConfig, ending: list[str], kind: str
) -> None:
    app = App()

    @app.transaction
    async def debit(conn: AsyncConnection[Any]) -> str:
        for statement in ending:
            await conn.execute(statement)
        return ""

    @app.transaction
    def debit_plain(conn: Connection[Any]) -> str:
        for statement in ending:
            conn.execute(statement)
        return ""

    @app.transaction
    async def look(conn: AsyncConnection[Any]) -> str:
        row = await (await conn.execute("SHOW work_mem")).fetchone()
        assert row is not None
        return str(row[0])

    @app.transaction
    def look_plain(conn: Connection[Any]) -> str:
        row = conn.execute("SHOW work_mem").fetchone()
        assert row is not None
        return str(row[0])

    @app.workflow
    async def pay() -> list[str]:
        first, then = (debit, look) if kind == "async" else (debit_plain.aio, look_plain.aio)
        before = await then()
        try:
            await first()
        except StepFailed as error:
            return [error.message, before, await then()]
        return []

    async with AsyncClient(bank) as client, running(with_pool(bank, max_size=1), app):
        message, before, after = await (await client.submit(pay)).result(30)
    assert "has ended its transaction itself" in message
    assert before == after
    assert rows(bank, "SELECT error IS NOT NULL FROM step ORDER BY seq") == [(False,), (True,), (False,)]


async def test_savepoints_are_the_functions_and_a_swallowed_error_is_none(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def partly(conn: AsyncConnection[Any]) -> None:
        await conn.execute(UPDATE, (1, "a0"))
        with pytest.raises(errors.CheckViolation):
            async with conn.transaction():
                await conn.execute(UPDATE, (5000, "a0"))

    @app.transaction
    async def careless(conn: AsyncConnection[Any]) -> None:
        with pytest.raises(errors.CheckViolation):
            await conn.execute(UPDATE, (5000, "a0"))

    @app.workflow
    async def pay() -> str:
        await partly()
        try:
            await careless()
        except StepFailed as error:
            return error.message
        return ""

    async with AsyncClient(bank) as client, running(bank, app):
        assert "put what may fail into `with conn.transaction():`" in await (await client.submit(pay)).result(30)
    assert cents(bank) == 999


async def test_a_timeout_ends_a_try(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction(timeout=0.2)
    async def slow(conn: AsyncConnection[Any]) -> None:
        await conn.execute(UPDATE, (1, "a0"))
        await conn.execute("SELECT pg_sleep(20)")

    @app.transaction(timeout=0.2)
    def slow_plain(conn: Connection[Any]) -> None:
        conn.execute(UPDATE, (1, "a0"))
        conn.execute("SELECT pg_sleep(20)")

    @app.workflow
    async def pay() -> list[str]:
        found = []
        for call in (slow, slow_plain.aio):
            try:
                await call()
            except StepFailed as error:
                found.append(error.type)
        return found

    async with AsyncClient(bank) as client, running(bank, app):
        assert await (await client.submit(pay)).result(15) == ["shardflow.errors.StepTimeout"] * 2
    assert cents(bank) == 1000


async def test_what_the_session_was_set_to_does_not_outlast_the_transaction(bank: ClusterConfig) -> None:
    app = App()
    asked = "SELECT current_setting('search_path'), current_setting('enable_seqscan'), current_setting('work_mem')"

    @app.transaction
    async def ask(conn: AsyncConnection[Any], fail: bool) -> list[str]:
        answer = await (await conn.execute(asked)).fetchone()
        await conn.execute("SET search_path = nowhere")
        await conn.execute("SET work_mem = '1MB'")
        conn.row_factory = psycopg.rows.dict_row
        if fail:
            raise ValueError
        return list(answer or [])

    @app.workflow
    async def work() -> list[list[str]]:
        found = []
        for n in range(6):
            try:
                found.append(await ask(n % 3 == 1))
            except StepFailed:
                pass
        return found

    with psycopg.connect(bank.shards[0].dsn) as conn:
        row = conn.execute(asked).fetchone()
    assert row is not None
    async with AsyncClient(bank) as client, running(bank, app):
        assert await (await client.submit(work)).result(30) == [list(row)] * 4


async def test_more_workflows_than_connections(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def debit(conn: AsyncConnection[Any], name: str) -> None:
        await conn.execute(UPDATE, (1, name))

    @app.transaction
    def debit_plain(conn: Connection[Any], name: str) -> None:
        conn.execute(UPDATE, (1, name))

    @app.workflow
    async def pay(name: str) -> None:
        await debit(name)
        await debit_plain.aio(name)

    @app.workflow
    def pay_plain(name: str) -> None:
        debit_plain(name)

    config = with_pool(bank, max_size=2)
    async with AsyncClient(bank) as client, running(config, app, concurrency=100):
        calls = [pay.call(f"a{n % 10}") for n in range(100)] + [pay_plain.call(f"a{n % 10}") for n in range(100)]
        for handle in await client.submit_many(calls):
            await handle.result(60)
        sessions = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()"
        )
        assert one(bank, sessions, "shardflow transaction%") <= 4
    assert [cents(bank, f"a{n}") for n in range(10)] == [970] * 10


async def test_a_session_that_was_ended_for_its_idleness_counts_as_a_failure(bank: ClusterConfig) -> None:
    dsn = bank.shards[0].dsn + "?options=-c%20idle_in_transaction_session_timeout%3D100ms"
    config = replace(bank, shards=(replace(bank.shards[0], dsn=dsn),))
    app = App()
    tries = []

    @app.transaction(retry=Retry(attempts=2, initial=0.01))
    async def dawdle(conn: AsyncConnection[Any]) -> None:
        tries.append(conn.info.backend_pid)
        await conn.execute(UPDATE, (1, "a0"))
        await until(lambda: one(bank, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", tries[-1]) == 0)
        await conn.execute("SELECT 1")

    @app.workflow
    async def pay() -> None:
        await dawdle()

    async with AsyncClient(bank) as client, running(config, app):
        with pytest.raises(WorkflowFailed, match="IdleInTransactionSessionTimeout"):
            await (await client.submit(pay)).result(30)
    assert len(tries) == 2
    assert cents(bank) == 1000


async def test_draining_stops_behind_a_transaction(bank: ClusterConfig) -> None:
    app = App()
    gate, runs = Gate(), []

    @app.transaction
    async def debit(conn: AsyncConnection[Any], n: int) -> int:
        await conn.execute(UPDATE, (1, "a0"))
        runs.append(n)
        if n == 0:
            await gate.wait()
        return n

    @app.workflow
    async def pay() -> list[int]:
        return [await debit(n) for n in range(3)]

    async with AsyncClient(bank) as client:
        async with running(bank, app) as worker:
            handle = await client.submit(pay)
            await until(lambda: gate.arrived == 1)
            stopping = asyncio.create_task(worker.stop(grace=20))
            await until(lambda: worker._draining)
            gate.open()
            await stopping
        assert runs == [0]
        assert one(bank, "SELECT count(*) FROM step") == 1
        async with running(bank, app):
            assert await handle.result(30) == [0, 1, 2]
    assert runs == [0, 1, 2]
    assert cents(bank) == 997


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_cancellation_comes_behind_a_commit_that_is_under_way(bank: ClusterConfig, kind: str) -> None:
    app = App()

    @app.transaction
    async def book(conn: AsyncConnection[Any]) -> None:
        await conn.execute("INSERT INTO entry VALUES ('a0', 1)")

    @app.transaction
    def book_plain(conn: Connection[Any]) -> None:
        conn.execute("INSERT INTO entry VALUES ('a0', 1)")

    @app.workflow
    async def pay() -> None:
        await (book() if kind == "async" else book_plain.aio())

    @app.workflow
    async def other() -> None: ...

    with psycopg.connect(bank.shards[0].dsn, autocommit=True) as conn:
        conn.execute("""
            CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock(42);
                RETURN NULL;
            END $$
            """)
        conn.execute("""
            CREATE CONSTRAINT TRIGGER stops AFTER INSERT ON entry DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION stop()
            """)
    with connect(bank) as blocker:
        blocker.execute("SELECT pg_advisory_lock(42)")
        async with AsyncClient(bank) as client, running(bank, app) as worker:
            handle = await client.submit(pay)
            waiting = asyncio.create_task(handle.result(30))
            assert await blocked_or_done(bank, waiting)
            await client.cancel(handle.id)
            await until(lambda: worker._links["s0"]._commit.control._asked)
            await (await client.submit(other)).result(30)  # so a turn has passed since
            assert one(bank, "SELECT count(*) FROM outcome JOIN workflow USING (wf) WHERE name = 'pay'") == 0
            blocker.execute("SELECT pg_advisory_unlock(42)")
            with pytest.raises(WorkflowFailed):
                await waiting
    assert one(bank, "SELECT count(*) FROM step") == one(bank, "SELECT count(*) FROM public.entry") == 1


async def test_outside_of_a_workflow(bank: ClusterConfig) -> None:
    app = App()

    @app.transaction
    async def debit(conn: AsyncConnection[Any], by: int) -> None:
        await conn.execute(UPDATE, (by, "a0"))

    with pytest.raises(UsageError, match=r"debit\.on\(connection"):
        await debit(1)
    async with await AsyncConnection.connect(bank.shards[0].dsn) as conn:
        await debit.on(conn, 1)
    assert cents(bank) == 999
    with pytest.raises(UsageError, match="already has a transaction named 'debit'"):
        app.transaction(name="debit")(lambda conn: None)
    with pytest.raises(InvalidInput, match="did you mean"):
        app.transaction(isolation="serialisable")


# -- by hand: what a try does while the world changes


ISOLATIONS = ["read committed", "repeatable read", "serializable"]


@asynccontextmanager
async def alone(config: ClusterConfig, isolation: str) -> AsyncIterator[tuple[Hand, Holder, Transactions, Work]]:
    """A lease that claims one workflow, and a try of its step 0."""
    async with by_hand(config) as hand:
        await hand.submit(await hand.conn(), "w")
        holder = await hand.holder("h")
        (claimed,) = await holder.claim()
        transactions = Transactions(hand.shard, config.pool, 5.0)
        try:
            yield hand, holder, transactions, Work(holder.fence, claimed.wf, 0, "debit", 1, isolation)
        finally:
            await transactions.close()


def debiting(then: Callable[[], Any] | None = None) -> Callable[[Any], Any]:
    async def function(conn: AsyncConnection[Any]) -> bytes:
        await conn.execute(UPDATE, (1, "a0"))
        answer = then() if then is not None else None
        if asyncio.iscoroutine(answer):
            await answer
        return b"1"

    return function


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_step_is_done_once(bank: ClusterConfig, isolation: str) -> None:
    async with alone(bank, isolation) as (_, _, transactions, work):
        assert await transactions.commit(work, debiting()) == Done()
        again = await transactions.commit(work, debiting())
        assert again.recorded is not None
        assert (again.recorded.name, again.recorded.output) == ("debit", b"1")
        failed = await transactions.fail(work, "{}")
        assert failed.recorded == again.recorded
    assert cents(bank) == 999


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_step_that_was_recorded_while_the_function_ran(bank: ClusterConfig, isolation: str) -> None:
    async with alone(bank, isolation) as (_, holder, transactions, work):
        done = await transactions.commit(work, debiting(lambda: holder.turn(steps=[step(work.wf, output=b"7")])))
        assert done.recorded is not None
        assert done.recorded.output == b"7"
    assert cents(bank) == 1000


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("SELECT end_lease(lease, 1) FROM lease", LeaseLost),
        ("UPDATE lease SET epoch = epoch + 1", LeaseLost),
        ("INSERT INTO outcome (wf, status) SELECT wf, 'cancelled' FROM workflow", LeaseLost),
        ("UPDATE shard SET generation = generation + 1", MapChanged),
    ],
    ids=["lease", "epoch", "outcome", "slots"],
)
async def test_what_a_transaction_believed_is_checked_at_its_end(
    bank: ClusterConfig, change: str, error: type[Exception]
) -> None:
    async with alone(bank, "read committed") as (_, _, transactions, work):
        with pytest.raises(error):
            await transactions.commit(work, debiting(lambda: rows(bank, change)))
    assert cents(bank) == 1000
    assert one(bank, "SELECT count(*) FROM step") == 0


@pytest.mark.parametrize("isolation", ISOLATIONS[1:])
async def test_slots_that_change_under_an_old_snapshot(bank: ClusterConfig, isolation: str) -> None:
    async with alone(bank, isolation) as (_, _, transactions, work):
        with pytest.raises(Conflict):
            await transactions.commit(
                work, debiting(lambda: rows(bank, "UPDATE shard SET generation = generation + 1"))
            )
        with pytest.raises(MapChanged):
            await transactions.commit(work, debiting())
    assert cents(bank) == 1000


@pytest.mark.parametrize("isolation", ISOLATIONS[1:])
async def test_a_lease_that_ends_or_is_renewed_under_an_old_snapshot(bank: ClusterConfig, isolation: str) -> None:
    async with alone(bank, isolation) as (hand, holder, transactions, work):
        keeping, lease = await hand.conn(), holder.fence.lease
        other = replace(work, seq=1)
        renewed = debiting(lambda: leases.look(hand.shard, keeping, lease, 1, ttl=60.0))
        assert await transactions.commit(work, renewed) == Done()
        with pytest.raises(Conflict):
            await transactions.commit(other, debiting(lambda: leases.release(hand.shard, keeping, lease)))
        with pytest.raises(LeaseLost):
            await transactions.commit(other, debiting())
    assert cents(bank) == 999


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_commit_that_stops_half_way_is_cut_off_when_the_lease_is_over(
    bank: ClusterConfig, isolation: str
) -> None:
    async with alone(bank, isolation) as (hand, holder, transactions, work):
        await holder.writing.close()  # it is not the one that keeps the lease
        keeping, half = await hand.conn(), await hand.conn("transaction")
        lease = holder.fence.lease
        peer = leases.Peer(lease, "h", True, False)
        for ask in [*transactions.talk.opening(work), *transactions.talk.closing(work, b"1", None)[:-2]]:
            await half.execute(*ask)
        rows(bank, "UPDATE lease SET expires_at = now() - interval '1 s'")
        assert await leases.expire(hand.shard, keeping, peer) is None, "the transaction does not keep its lease"
        assert not await leases.cut_off(hand.shard, keeping, peer, 5.0)
        assert await leases.cut_off(hand.shard, keeping, peer, 0.5)
        await until(lambda: leases.expire(hand.shard, keeping, peer))
    assert one(bank, "SELECT count(*) FROM step") == 0


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_a_former_transaction_of_the_step_is_ended(bank: ClusterConfig, isolation: str) -> None:
    async with alone(bank, isolation) as (hand, _, transactions, work):
        inside = Gate()
        frozen = asyncio.create_task(transactions.commit(work, debiting(inside.wait)))
        await until(lambda: inside.arrived)
        after = Transactions(hand.shard, bank.pool, 5.0)
        try:
            assert await after.commit(work, debiting()) == Done()
        finally:
            inside.open()
            await after.close()
        with pytest.raises(ShardUnavailable):
            await frozen
    assert cents(bank) == 999


async def test_a_holder_without_its_lease_ends_nobodys_transaction(bank: ClusterConfig) -> None:
    async with alone(bank, "read committed") as (_, _, transactions, work):
        zombie = replace(work, fence=replace(work.fence, lease=work.fence.lease - 1))

        async def wake_up() -> None:
            with pytest.raises(LeaseLost):
                await transactions.commit(zombie, debiting())

        assert await transactions.commit(work, debiting(wake_up)) == Done()
    assert cents(bank) == 999


async def test_a_cancelled_try_writes_nothing_and_a_commit_under_way_is_waited_for(bank: ClusterConfig) -> None:
    async with alone(bank, "read committed") as (_, _, transactions, work):
        inside = Gate()
        trying = asyncio.create_task(transactions.commit(work, debiting(inside.wait)))
        await until(lambda: inside.arrived)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert cents(bank) == 1000
        with connect(bank) as blocker:
            blocker.execute("BEGIN")
            blocker.execute("SELECT FROM lease FOR UPDATE")  # the commit waits for it at the fence
            trying = asyncio.create_task(transactions.commit(work, debiting()))
            assert await blocked_or_done(bank, trying)
            trying.cancel()
            await asyncio.sleep(0)
            assert not trying.done()
            blocker.execute("ROLLBACK")
            with pytest.raises(asyncio.CancelledError):
                await trying
    assert cents(bank) == 999
