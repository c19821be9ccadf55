"""Worker groups as the shards show them, wishes by hand, and shards that go away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg import sql

import shardflow.rebalancer.rebalancer
import shardflow.rebalancer.survey
import shardflow.worker.link
from shardflow import App, ClusterConfig
from shardflow.core.retry import Retry
from shardflow.model import RebalanceConfig
from shardflow.rebalancer import Rebalancer
from shardflow.worker import worker
from support.lab import Lab, database
from support.look import connect, until
from support.work import Gate


def quick(config: ClusterConfig, **changes: Any) -> ClusterConfig:
    """The same cluster, rebalanced without much waiting."""
    return replace(config, rebalance=RebalanceConfig(**{"interval": 0.1, "cooldown": 0.2} | changes))


def working(gate: Gate | None = None, seen: list[str] | None = None, by: str = "") -> App:
    """An app whose workflow `holds` waits at the gate in a step, and whose `work` says in `seen` who ran it."""
    app = App()

    @app.step
    async def hold() -> None:
        if gate is not None:
            await gate.wait()

    @app.workflow
    async def holds() -> str:
        await hold()
        return "held"

    @app.step
    async def note() -> None:
        if seen is not None:
            seen.append(by)

    @app.workflow
    async def work(x: int) -> int:
        await note()
        return x

    return app


_eyes: dict[str, psycopg.Connection[Any]] = {}


def peek(config: ClusterConfig, query: str, *parameters: Any, shard: int = 0) -> list[tuple[Any, ...]]:
    """Like `look.rows`, on a connection that stays: what is looked at again and again is to cost little."""
    for dsn in _eyes.keys() - {each.dsn for each in config.shards}:
        _eyes.pop(dsn).close()
    for new in (False, True):
        conn = _eyes.pop(config.shards[shard].dsn, None)
        if conn is None or conn.closed or new:
            conn = connect(config, shard)
        try:
            cursor = conn.execute(query, parameters)
            found = cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            conn.close()
            if new:
                raise
        else:
            _eyes[config.shards[shard].dsn] = conn
            return found
    raise AssertionError("unreachable")


def groups(
    config: ClusterConfig, *, claiming: bool = True, only: Collection[int] | None = None
) -> dict[str, list[str]]:
    """Shard → workers with a live lease that claims (or does not)."""
    query = "SELECT worker FROM lease WHERE claiming = %s AND expires_at > clock_timestamp() ORDER BY worker"
    return {
        shard.name: [row[0] for row in peek(config, query, claiming, shard=k)]
        for k, shard in enumerate(config.shards)
        if only is None or k in only
    }


def registered(config: ClusterConfig) -> dict[str, tuple[int, dict[str, Any]]]:
    """Worker → number of its home, and its row there; of two rows the one with more beats."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for k in range(len(config.shards)):
        for (row,) in peek(config, "SELECT to_jsonb(w) FROM worker w", shard=k):
            if row["worker"] not in found or row["beat"] > found[row["worker"]][1]["beat"]:
                found[row["worker"]] = (k, row)
    return found


async def wish(config: ClusterConfig, name: str, shards: Collection[str]) -> None:
    """Tells a worker what a rebalancer would, and waits until it has read it."""
    told = "UPDATE worker SET wanted = %s, decision = decision + 1 WHERE worker = %s RETURNING decision"
    home, _ = await until(lambda: registered(config).get(name), what=f"{name} is registered")
    ((number,),) = peek(config, told, list(shards), name, shard=home)
    await until(lambda: registered(config)[name][1]["obeyed"] >= number, what=f"{name} obeys")


def journal(config: ClusterConfig, *kinds: str, shard: int = 0) -> list[tuple[Any, ...]]:
    """(kind, worker, source, target, rebalancer) of the entries of these kinds (none: all), the oldest first."""
    query = "SELECT kind, worker, source, target, rebalancer FROM journal ORDER BY entry"
    return [row for row in peek(config, query, shard=shard) if not kinds or row[0] in kinds]


def elected(config: ClusterConfig, shard: int = 0) -> str | None:
    """Who is elected on the shard now."""
    query = (
        "SELECT holder FROM election e WHERE expires_at > clock_timestamp()"
        " AND (lease IS NULL OR EXISTS (SELECT FROM lease l WHERE l.lease = e.lease))"
    )
    found = peek(config, query, shard=shard)
    return found[0][0] if found else None


@pytest.fixture
def nobody_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker's rebalancer ever does anything."""

    async def idle(self: Rebalancer) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Rebalancer, "run", idle)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that went away are missed, and looked at again, sooner."""
    monkeypatch.setattr(shardflow.rebalancer.survey, "AGAIN", 0.3)
    monkeypatch.setattr(shardflow.rebalancer.rebalancer, "ASIDE", 0.2)
    monkeypatch.setattr(shardflow.rebalancer.rebalancer, "SETTLE", 1.0)
    monkeypatch.setattr(shardflow.worker.link, "_BACKOFF", Retry(attempts=2, initial=0.1, maximum=0.3))
    monkeypatch.setattr(worker, "CUT_OFF", 0.3)
    monkeypatch.setattr("shardflow.worker.scout.AGAIN", 0.3)
    monkeypatch.setattr("shardflow.worker.scout.PACE", 0.1)


@contextmanager
def away(lab: Lab, config: ClusterConfig, shard: int) -> Iterator[None]:
    """Meanwhile the shard's server lets nobody into the database; those who were in are out."""
    name = database(config.shards[shard])
    with lab.admin(shard) as conn:

        def allow(allowed: bool) -> None:
            conn.execute(
                sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), sql.Literal(allowed))
            )

        allow(False)
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            yield
        finally:
            allow(True)
