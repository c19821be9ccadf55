"""Transactional steps: the user's writes on the shard and the checkpoint commit together."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, Connection
from support.look import one, rows
from support.work import running

from shardflow import App, AsyncClient, ClusterConfig, Retry, StepFailed, WorkflowFailed


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
