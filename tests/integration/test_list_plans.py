"""The plans of lists: a page reads what it shows, however much there is and whatever the statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from support.lab import LEASE, Lab
from support.look import connect
from support.many import ids_of, pages

from shardflow import AsyncClient, ClusterConfig, PoolConfig
from shardflow.core.query import filters
from shardflow.storage import queries
from shardflow.storage.shard import Shard


class Explaining:
    """A connection that keeps the plan of every query, with what it touched."""

    def __init__(self, conn: Any) -> None:
        self._conn = conn
        self.touched: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)

    async def execute(self, statement: bytes, parameters: Any = None, **options: Any) -> Any:
        if statement.startswith((b"SELECT", b"WITH")) and b"set_config" not in statement:
            explain = b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement
            row = await (await self._conn.execute(explain, parameters)).fetchone()
            self.touched += [(self._what(n), self._rows(n)) for n in self._nodes(row[0][0]["Plan"])]
        return await self._conn.execute(statement, parameters, **options)

    def _nodes(self, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield plan
        for child in plan.get("Plans", []):
            yield from self._nodes(child)

    def _what(self, node: dict[str, Any]) -> str:
        return f"{node['Node Type']} {node.get('Relation Name', '')} {node.get('Index Name', '')}"

    def _rows(self, node: dict[str, Any]) -> int:
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        return int((node["Actual Rows"] + removed) * node["Actual Loops"])


ROWS = 200_000
LARGE = f"""
INSERT INTO workflow (wf, slot, id, name, queue, input, submitted_at, attributes)
SELECT n, 0, 'w' || n, CASE WHEN n %% 50000 = 1 THEN 'rare' ELSE 'work' END, 'q' || n %% 3, '[]',
       '2026-01-01'::timestamptz + n * interval '1 s',
       CASE WHEN n %% 1000 = 0 THEN '{{"tenant": "small"}}'::jsonb WHEN n %% 2 = 0 THEN '{{"tenant": "big"}}' END
FROM generate_series(1, {ROWS}) n;
INSERT INTO outcome (wf, status)
SELECT n, CASE n %% 40000 WHEN 1 THEN 'failed' WHEN 2 THEN 'dead' ELSE 'succeeded' END
FROM generate_series(1, {ROWS}) n WHERE n %% 4 < 3 AND n < {ROWS - 10_000};
INSERT INTO wait (wf, reason) SELECT n, '' FROM generate_series(1, {ROWS}) n WHERE n %% 4 = 3 AND n < {ROWS - 10_000};
INSERT INTO ready (seq, wf, priority, queue)
SELECT n, n, 0, 'q' || n %% 3 FROM generate_series({ROWS - 10_000}, {ROWS}) n;
""".replace("%%", "%")


@pytest.fixture(scope="module", params=["unanalyzed", "analyzed"])
def large(lab: Lab, request: pytest.FixtureRequest) -> Iterator[ClusterConfig]:
    """A shard with many workflows in all places; without statistics as right after a burst."""
    config = lab.clone(1, 64, LEASE, PoolConfig(timeout=60))
    with connect(config) as conn:
        for table in ("workflow", "ready", "outcome", "wait"):
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        conn.execute(LARGE)
        if request.param == "analyzed":
            conn.execute("ANALYZE")
    yield config
    lab.drop(config)


MIDDLE = datetime.fromisoformat("2026-01-02T00:00:00Z")

#: What is asked for, and how many rows a plan node may touch for a first page of 50.
PLANS: list[tuple[dict[str, Any], int]] = [
    ({}, 500),
    ({"status": ["succeeded"]}, 500),
    ({"status": ["failed"]}, 500),
    ({"status": ["failed", "dead", "cancelled"]}, 500),
    ({"status": ["suspended"]}, 500),
    ({"status": ["running"]}, 500),
    ({"status": ["ready"]}, 500),
    ({"status": ["ready", "failed", "suspended"]}, 500),
    ({"queue": "q1"}, 1_000),
    ({"since": MIDDLE}, 500),
    ({"until": MIDDLE}, 500),
    ({"since": MIDDLE, "until": MIDDLE + timedelta(minutes=5)}, 1_000),
    ({"attributes": {"tenant": "small"}}, queries.GLANCE),
    ({"attributes": {"tenant": "none"}}, queries.GLANCE),
    ({"attributes": {"tenant": "big"}}, 500),
    ({"name": "rare"}, queries.LOOK),
    ({"name": "none", "status": ["succeeded"]}, queries.LOOK),
    ({"name": "none", "status": ["suspended"]}, queries.LOOK),
]


@pytest.mark.parametrize(("asked", "most"), PLANS, ids=lambda value: str(value))
@pytest.mark.parametrize("newest", [True, False], ids=["newest", "oldest"])
async def test_a_page_reads_what_it_shows_and_not_the_tables(
    large: ClusterConfig, asked: dict[str, Any], most: int, newest: bool
) -> None:
    names = ("status", "name", "queue", "since", "until", "attributes")
    wanted = filters(*(asked.get(name) for name in names))
    small = ["claim"]
    shard = Shard(large.shards[0])
    async with await shard.connect("cli") as conn:
        explaining = Explaining(conn)
        await queries.page(shard, explaining, wanted, newest, {}, 50)  # type: ignore[arg-type]
    for what, number in explaining.touched:
        assert number <= most, (what, number)
        assert "Seq Scan" not in what or what.split()[2] in small, what


async def test_a_page_of_a_list_shows_what_the_tables_hold(large: ClusterConfig) -> None:
    async with AsyncClient(large) as client:
        assert [w.id for w in (await client.list(name="rare")).workflows] == ["w150001", "w100001", "w50001", "w1"]
        assert [w.id for w in (await client.list(status="dead", order="oldest", limit=2)).workflows] == [
            "w2",
            "w40002",
        ]
        assert len(ids_of(*await pages(client, 10_000, status="failed"))) == 5
        first = (await client.list(status="ready", order="oldest", limit=1)).workflows[0]
        assert first.id == f"w{ROWS - 10_000}"
        assert len(ids_of(*await pages(client, 5_000, status=["ready", "failed"]))) == 10_006
        assert [w.id for w in (await client.list(attributes={"tenant": "small"}, limit=1)).workflows] == [f"w{ROWS}"]
        page = await client.list(since=MIDDLE, order="oldest", limit=1)
        assert page.workflows[0].submitted_at == MIDDLE


async def test_what_has_waited_longest_is_found_behind_all_that_has_ended(
    large: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are too many lanes to walk along each, the walk along the keys does not go past all that has ended:
    it goes on in front of the next one that is ready."""
    monkeypatch.setattr(queries, "LANES", 0)
    shard = Shard(large.shards[0])
    async with await shard.connect("cli") as conn:
        wanted = filters("ready", None, None, None, None, None)
        found = (await queries.page(shard, conn, wanted, False, {}, 50)).stretches[0]
        assert not found.rows
        assert found.reached is not None
        assert found.reached.wf == ROWS - 10_000 - 1
        found = (await queries.page(shard, conn, wanted, False, {0: found.reached.wf}, 50)).stretches[0]
        assert [row.wf for row in found.rows] == list(range(ROWS - 10_000, ROWS - 10_000 + 50))


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_what_is_ready_is_found_by_lanes_as_without_them(
    large: ClusterConfig, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also suspects, whose places in their lane are in another order."""
    few = ROWS - 9_990
    with connect(large) as conn:
        conn.execute("UPDATE ready SET queue = queue || e'\\x1e', seq = 2 * %s - seq WHERE wf < %s", (ROWS, few))
    try:
        async with AsyncClient(large) as client:
            by_lanes = [await client.list(status="ready", order=order, limit=50)]
            by_lanes += await pages(client, 5_000, status="ready", queue="q1", order=order)
            monkeypatch.setattr(queries, "LANES", 0)
            without = [await client.list(status="ready", order=order, limit=50)]
            without += await pages(client, 5_000, status="ready", queue="q1", order=order)
    finally:
        with connect(large) as conn:
            conn.execute("UPDATE ready SET queue = 'q' || wf %% 3, seq = wf WHERE wf < %s", (few,))
    assert ids_of(*by_lanes) == ids_of(*without)
    assert len(ids_of(*by_lanes)) > 3_000


async def test_frequent_attributes_are_found_without_their_index(
    large: ClusterConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncClient(large) as client:
        quickly = await client.list(attributes={"tenant": "big"}, limit=70)
        monkeypatch.setattr(queries, "GLANCE", 10)
        assert ids_of(quickly) == ids_of(await client.list(attributes={"tenant": "big"}, limit=70))
        some = await pages(client, 7, attributes={"tenant": "small"}, status="succeeded")
        monkeypatch.setattr(queries, "GLANCE", 5_000)
        assert ids_of(*some) == ids_of(*await pages(client, 7, attributes={"tenant": "small"}, status="succeeded"))
