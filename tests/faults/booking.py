"""Workflows of transactional steps for the fault tests, and what goes wrong without each guard."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import AsyncConnection

import shardflow
from shardflow import App

STEPS = 2

#: What the functions write; a second effect of the same step is a second row.
TABLES = (
    "CREATE TABLE effect (id text NOT NULL, seq integer NOT NULL)",
    "CREATE TABLE tally (n bigint NOT NULL)",
    "INSERT INTO tally VALUES (0)",
)


def make_tables(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in TABLES:
            conn.execute(statement)


def define(app: App) -> shardflow.Workflow[[str], Any]:
    @app.transaction
    async def book(conn: AsyncConnection[Any], id: str, seq: int) -> int:
        await conn.execute("INSERT INTO effect VALUES (%s, %s)", (id, seq))
        row = await (await conn.execute("UPDATE tally SET n = n + 1 RETURNING n")).fetchone()
        assert row is not None
        return int(row[0])

    @app.workflow
    async def books(id: str) -> list[int]:
        """Transactions one after the other, and the numbers that they gave."""
        return [await book(id, seq) for seq in range(STEPS)]

    return books


def checkpoint_after_commit() -> None:
    """Mutant: the function's writes commit first, then the checkpoint."""
    from shardflow.storage.transaction_talk import Talk

    original = Talk.closing

    def closing(self: Talk, work: Any, output: bytes | None, error: str | None) -> Any:
        begin, take, *_ = self.opening(work)
        return [(b"COMMIT", ()), begin, take, *original(self, work, output, error)]

    Talk.closing = closing  # type: ignore[method-assign]


def forget_what_is_recorded() -> None:
    """Mutant: a commit whose answer was lost counts as none, and a second checkpoint is no error."""
    from shardflow.storage.transaction_talk import Talk

    original = Talk.closing

    def closing(self: Talk, work: Any, output: bytes | None, error: str | None) -> Any:
        return [
            (ask[0] + b" ON CONFLICT DO NOTHING" if b"INSERT INTO" in ask[0] else ask[0], ask[1])
            for ask in original(self, work, output, error)
        ]

    Talk.closing = closing  # type: ignore[method-assign]
    Talk.checkpoint = lambda self, work, row: None  # type: ignore[method-assign,assignment]


def relay_under_new_ids() -> None:
    """Mutant: what is relayed again is another workflow."""
    from shardflow.delivery import delivery

    original = delivery.unpack
    delivery.unpack = lambda packed: replace(original(packed), id=original(packed).id + uuid.uuid4().hex[:4])


def delete_before_delivery() -> None:
    """Mutant: an entry of the outbox counts as delivered when its delivery begins."""
    from shardflow.worker.relay import Relay

    original = Relay._post

    def post(self: Relay, entry: Any, *rest: Any) -> None:
        self._relayed([entry.entry])
        original(self, entry, *rest)

    Relay._post = post  # type: ignore[method-assign]


MUTANTS = {
    each.__name__: each
    for each in (checkpoint_after_commit, forget_what_is_recorded, relay_under_new_ids, delete_before_delivery)
}
