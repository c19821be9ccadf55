"""The plans of the statements that run in every turn: they look things up, however much there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from support.lab import LEASE, POOL, in_thread
from support.look import connect
from support.raw import by_hand

from shardflow import ClusterConfig
from shardflow.sql import load
from shardflow.storage.shard import LOOKING_UP

ROWS = 100_000

FILL = f"""
INSERT INTO workflow (wf, slot, id, name, queue, input)
SELECT n, 0, 'w' || n, 'work', 'q' || n %% 3, '[]' FROM generate_series(1, {ROWS}) n;
INSERT INTO ready (seq, wf, priority, queue) SELECT n, n, 0, 'q' || n %% 3 FROM generate_series(1, {ROWS}) n;
INSERT INTO step (wf, seq, name, output) SELECT n, 0, 'step', '1' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO outcome (wf, status) SELECT n, 'succeeded' FROM generate_series(1, {ROWS // 3}, 2) n;
INSERT INTO wait (wf, wake_at, reason)
SELECT n, now() + interval '1 day' + n * interval '1 s', '' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO message (wf, topic, key, value) SELECT n / 100, 't', n, '1' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO outbox (lease, target, topic, key) SELECT 1, 'w' || n, 't', n FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO watcher (wf, topic, id, late, registered_at)
SELECT n, 't', 'w1', n %% 2 = 0, now() - interval '1 hour' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO event (wf, key, value) SELECT n, 'k', '1' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO retry (wf, seq, due_at, attempts, name, error)
SELECT n, 0, now(), 1, 'step', '' FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO schedule (name, slot, spec, zone, workflow, queue, input, pass_time, options, missed, overlap, from_code,
    confirmed_at, decided_to, next_at)
SELECT 's' || n, 0, 'every 1d', 'UTC', 'work', 'q', '[]', false, '{{}}', 'skip', 'allow', n %% 2 = 0, now(), now(),
    CASE WHEN n %% 3 > 0 THEN now() + n * interval '1 s' - interval '200 s' END
FROM generate_series(1, {ROWS // 3}) n;
INSERT INTO tick (schedule, at, try_at) SELECT 's' || n, now(), now() + n * interval '1 s' - interval '200 s'
FROM generate_series(1, {ROWS // 3}) n;
""".replace("%%", "%")

#: Statement, types of its parameters, and values.
STATEMENTS = {
    "turn.claim": (
        "text[], smallint[], bigint[], integer, integer, bigint, bigint, bigint",
        "'{empty,q0,q1}', '{0,-32768,-32768}', '{90000,0,0}', 500, 500, 1, 1, 1000000",
    ),
    "lease.look": ("bigint, integer, float8, boolean, text[]", "1, 1, 10, true, '{empty,q0}'"),
    "turn.wake": ("timestamptz, integer", "NULL, 1000"),
    "turn.mail": (
        "bigint[], bigint[], text[], bigint[], integer, bigint[], text[], bigint",
        "'{1,2,3}', '{1,2,3}', '{t,t,t}', '{0,0,0}', 1000, '{1,2}', '{w1,w2}', 1000000",
    ),
    "turn.adopt": ("bigint, integer, bigint", "2, 1000, 1000000"),
    "turn.overdue": ("", ""),
    "turn.in_time": ("", ""),
    "turn.outbox": ("bigint, bigint, integer, bigint", "1, 0, 1000, 1000000"),
    "turn.tried": ("bigint[], bigint[]", "'{1,2,3}', '{0,0,0}'"),
    "turn.receive": ("bigint[], bigint[]", "'{1,2,3}', '{0,0,0}'"),
    "lease.retries": ("bigint[]", "'{1,2,3}'"),
    "submit.event": ("text, text", "'k', 'w77'"),
    "read.outcomes": ("bigint[]", "(SELECT array_agg(n) FROM generate_series(1, 1000) n)"),
    "read.find": ("text", "'w77'"),
    "read.keys": ("text[]", "'{w1,w2,w3}'"),
    "read.steps": ("text", "'w77'"),
    "submit.existing": ("text[]", "'{w1,w2,w3}'"),
    "lease.load": ("bigint[]", "'{1,2,3}'"),
    "lease.checkpoints": ("bigint[]", "'{1,2,3}'"),
    "schedule.look": ("", ""),
    "schedule.due": ("integer, integer", "180, 100"),
    "schedule.take": ("integer, integer", "15, 500"),
    "schedule.submitted": ("text[], timestamptz[], integer[], text[]", "'{s1,s2}', '{now,now}', '{0,0}', '{a,b}'"),
    "schedule.find": ("integer, text", "180, 's7'"),
    "lease.written": ("bigint, integer, bigint", "1, 0, 1"),
}

#: Small tables: how many rows they have is bounded by the workers and batches, not by the workflows.
SMALL = {"lease", "claim", "cancel", "election"}


@pytest.fixture(scope="module", params=["unanalyzed", "analyzed"])
def filled(lab: Any, request: pytest.FixtureRequest) -> Iterator[ClusterConfig]:
    """A shard with 100,000 ready and many suspended, none of them due; without statistics as right after a burst."""
    config: ClusterConfig = lab.clone(1, 64, LEASE, POOL)
    with connect(config) as conn:
        for table in re.findall(r"INSERT INTO (\w+)", FILL):
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        conn.execute(FILL)
        in_thread(open_lease(config))
        conn.execute("UPDATE lease SET lease = 1")
        conn.execute(
            "INSERT INTO claim (lease, batch, wfs, attempts)"
            " SELECT 1, 99, array_agg(n), array_agg(0) FROM generate_series(1, 1000) n"
        )
        if request.param == "analyzed":
            conn.execute("ANALYZE")
    yield config
    lab.drop(config)


async def open_lease(config: ClusterConfig) -> None:
    async with by_hand(config) as hand:
        await hand.holder("w")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def explained(
    config: ClusterConfig, name: str, generic: bool, values: str = "", *, bulk: bool = False
) -> list[dict[str, Any]]:
    """The nodes of the statement's plan, with what they cost when run; its writes are rolled back."""
    concern, statement = name.split(".")
    text = load(concern)[statement].replace("{schema}", "shardflow").replace("{schema_text}", "'shardflow'")
    number = 0
    while "%s" in text:
        number += 1
        text = text.replace("%s", f"${number}", 1)
    types, usual = (BULKS if bulk else STATEMENTS)[name]
    values = values or usual
    with connect(config) as conn, conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL plan_cache_mode = " + ("force_generic_plan" if generic else "force_custom_plan"))
        conn.execute("SET LOCAL jit = off")
        for setting in re.findall(r"-c (\S+)", LOOKING_UP) if bulk else ():
            conn.execute(f"SET LOCAL {setting}")
        if concern == "turn":  # as the fence does
            conn.execute("SET LOCAL enable_sort = off")
            conn.execute("SET LOCAL enable_bitmapscan = off")
            conn.execute("SET LOCAL enable_seqscan = off")
        conn.execute(f"PREPARE it {f'({types})' if types else ''} AS {text}")
        if "SELECT" in values:
            row = conn.execute(f"SELECT {values}::text").fetchone()
            values = f"'{row[0]}'" if row else ""
        row = conn.execute(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE it {f'({values})' if types else ''}"
        ).fetchone()
        assert row is not None
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        return list(nodes(plan[0]["Plan"]))


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_of_a_turn_reads_a_whole_table(filled: ClusterConfig, name: str, generic: bool) -> None:
    found = explained(filled, name, generic)
    for node in found:
        table = node.get("Relation Name")
        assert node["Node Type"] != "Seq Scan" or table in SMALL, f"{name} reads all of {table}"
        touched = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        assert touched <= 5_000, f"{name}: {node['Node Type']} on {table} touches {touched} rows"
    buffers = found[0]["Shared Hit Blocks"] + found[0]["Shared Read Blocks"]
    assert buffers < 20_000, f"{name} touches {buffers} blocks"


def test_a_claim_uses_the_queue_index_and_sorts_only_what_it_took(filled: ClusterConfig) -> None:
    found = explained(filled, "turn.claim", generic=True)
    scans = [n for n in found if n.get("Relation Name") == "ready"]
    kinds = {n["Node Type"] for n in scans} - {"ModifyTable"}
    assert kinds <= {"Index Scan", "Index Only Scan", "Tid Scan"}, kinds
    assert any(n.get("Index Name") == "ready_pkey" for n in scans)
    for n in found:
        if n["Node Type"] in ("Sort", "Incremental Sort"):
            assert n["Actual Rows"] <= 1_000


def test_a_claim_behind_the_low_water_mark_reads_no_dead_entries(filled: ClusterConfig) -> None:
    """A transaction elsewhere keeps the deleted entries alive; the mark steps over them, the start does not."""
    with connect(filled) as pinned:
        pinned.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        pinned.execute("SELECT count(*) FROM ready")
        try:
            with connect(filled) as conn:
                conn.execute("DELETE FROM ready WHERE queue = 'q2' AND seq < 90000")

            def blocks(mark: int) -> int:
                values = f"'{{q2}}', '{{0}}', '{{{mark}}}', 100, 100, 1, 1, 1000000"
                found = explained(filled, "turn.claim", generic=True, values=values)
                scan = next(n for n in found if n.get("Index Name") == "ready_pkey")
                return int(scan["Shared Hit Blocks"] + scan["Shared Read Blocks"])

            behind, start = blocks(90_000), blocks(0)
        finally:
            pinned.execute("ROLLBACK")
    assert behind * 3 < start, (behind, start)


#: Rows of a bulk that is written.
BULK = 1_000


def array(*values: object) -> str:
    """An array of a bulk's length as SQL; `%` stands for the row's number."""
    each = [str(values[n % len(values)]).replace("%", str(n)) for n in range(BULK)]
    return "'{" + ",".join(each) + "}'"


NEW = [array("new%"), array("work"), array("q1"), array(0), array(0), array(r'"\\x5b5d"')]
NEW_TYPES = "text[], text[], text[], integer[], smallint[], bytea[]"
#: Statement, types, and values for a bulk of 1,000; one of three runs after another one, has a key, is delayed.
BULKS = {
    "submit.insert": (NEW_TYPES, ", ".join(NEW)),
    "submit.submit": (f"bigint, {NEW_TYPES}", ", ".join(["1", *NEW])),
    "submit.insert_more": (
        f"{NEW_TYPES}, text[], text[], float8[], integer[], text[], text[], text[], integer[], text[], text[]",
        ", ".join(
            (
                *NEW,
                array(r'"{\"timeout\": 60}"', "null"),
                array("null"),
                array("null", "null", 60),
                array(1, "null", "null"),
                array("parent%"),
                array("null"),
                array("null", "key%", "null"),
                array("null", 3, "null"),
                array("new%"),
                array("w%"),
            )
        ),
    ),
    "turn.retries": (
        "bigint[], bigint[], integer[], text[], text[], float8[]",
        ", ".join((array("%"), array(1), array(2), array("step"), array("x"), array(1))),
    ),
    "turn.tried": ("bigint[], bigint[]", f"{array('%')}, {array(0)}"),
    "query.describe": ("bigint[]", array("%")),
    "query.held": ("bigint[]", array("%")),
    "turn.receive": ("bigint[], bigint[]", f"{array('%')}, {array(0)}"),
}


@pytest.mark.parametrize(
    ("name", "generic"), [(n, generic) for n in BULKS for generic in (False, True) if generic or "turn" not in n]
)  # the fence has a turn's plans made without a look at the parameters
def test_the_rows_of_a_bulk_are_not_compared_with_each_other(filled: ClusterConfig, name: str, generic: bool) -> None:
    """Our sessions look up row by row, which among the rows themselves would be their number squared."""
    found = explained(filled, name, generic, bulk=True)
    for node in found:
        removed = sum(node.get(f"Rows Removed by {how}", 0) for how in ("Filter", "Join Filter", "Index Recheck"))
        touched = (node["Actual Rows"] + removed) * node["Actual Loops"]
        assert touched <= 3 * BULK, f"{name}: {node['Node Type']} touches {touched} rows for {BULK}"
