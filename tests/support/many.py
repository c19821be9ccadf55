"""Many workflows at once, written into shards as they are anywhere on their way; and how lists of them are read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from shardflow import AsyncClient, ClusterConfig, Status
from shardflow.model import Page
from support.lab import Lab, database
from support.look import connect
from support.work import ids_on

STATUSES = tuple(Status)

FILL = """
WITH given AS (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
               AS given (id, name, queue, attributes, status)), made AS (
    INSERT INTO workflow (slot, id, name, queue, input, attributes)
    SELECT 0, id, name, queue, '[]', attributes::jsonb FROM given RETURNING wf, id
), placed AS (SELECT m.wf, g.queue, g.status FROM made m JOIN given g USING (id)), ready AS (
    INSERT INTO ready (seq, wf, priority, queue) SELECT wf, wf, 0, queue FROM placed WHERE status = 'ready'
), waiting AS (
    INSERT INTO wait (wf, reason, attempt) SELECT wf, 'test', 2 FROM placed WHERE status = 'suspended'
), ended AS (
    INSERT INTO outcome (wf, status) SELECT wf, status FROM placed
    WHERE status NOT IN ('ready', 'running', 'suspended')
)
SELECT wf FROM placed WHERE status = 'running'
"""

HOLD = """
WITH holder AS (
    INSERT INTO lease (worker, expires_at, session) VALUES ('w', now() + interval '1 h', false) RETURNING lease
)
INSERT INTO claim (lease, batch, wfs, attempts) SELECT lease, 1, %s::bigint[], array_fill(1::smallint, %s) FROM holder
"""

END = """
WITH gone AS (
    DELETE FROM ready USING workflow w WHERE ready.wf = w.wf AND w.id = ANY(%s) RETURNING ready.wf
)
INSERT INTO outcome (wf, status) SELECT wf, %s FROM gone
"""


@dataclass
class Made:
    """A workflow as a test has made it."""

    id: str
    name: str
    queue: str
    attributes: dict[str, Any] | None
    status: Status


def fill(config: ClusterConfig, shard: int, made: list[Made]) -> None:
    """Writes workflows into a shard, in this order, each of them where its status says."""
    columns: list[list[Any]] = [
        [m.id for m in made],
        [m.name for m in made],
        [m.queue for m in made],
        [None if m.attributes is None else json.dumps(m.attributes) for m in made],
        [m.status.value for m in made],
    ]
    with connect(config, shard) as conn:
        running = [row[0] for row in conn.execute(FILL, columns).fetchall()]
        if running:
            conn.execute(HOLD, (running, [len(running)]))


def ended(config: ClusterConfig, shard: int, *ids: str, status: str = "succeeded") -> None:
    """Ends ready workflows as a worker would."""
    with connect(config, shard) as conn:
        conn.execute(END, (list(ids), status))


def plain(ids: list[str], status: Status = Status.READY) -> list[Made]:
    return [Made(id, "work", "default", None, status) for id in ids]


async def pages(client: AsyncClient, limit: int, **asked: Any) -> list[Page]:
    """All pages of a list."""
    found = [await client.list(limit=limit, **asked)]
    while found[-1].cursor is not None:
        assert len(found) < 10_000
        found.append(await client.list(limit=limit, cursor=found[-1].cursor, **asked))
    return found


def ids_of(*found: Page) -> list[str]:
    return [info.id for page in found for info in page.workflows]


@asynccontextmanager
async def closed(lab: Lab, config: ClusterConfig, shard: int) -> AsyncIterator[None]:
    """The shard's database takes no connection and has lost those it had."""
    name = database(config.shards[shard])

    def allow(answer: bool) -> None:
        with lab.admin(shard) as conn:
            conn.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS {answer}')
            if not answer:
                conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    allow(False)
    try:
        yield
    finally:
        allow(True)


def in_turns(config: ClusterConfig, each: int) -> list[list[str]]:
    """So many ready workflows on every shard, a few here and a few there; answers their ids, per shard."""
    mine = [ids_on(config, k, each) for k in range(len(config.shards))]
    for n in range(0, each, 3):
        for k in range(len(config.shards)):
            fill(config, k, plain(mine[k][n : n + 3]))
    return mine
