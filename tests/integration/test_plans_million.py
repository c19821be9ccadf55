"""The plans of all statements at a million rows: they look things up, however much there is.

Asked in three states: with plans that were made when the tables were empty, on tables that were never analysed, and
on analysed ones; with generic plans, and where the server may choose, with custom ones too. What functions do inside
shows in the server's counters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql as composing
from support.lab import LEASE, POOL, Lab
from support.look import connect
from support.plan_cases import CASES, EACH, ENDED, ONCE, READY, ROWS, RUNNING, SUSPENDED, WHOLE, Case, Where

from shardflow import ClusterConfig
from shardflow.sql import load
from shardflow.storage.shard import Shard

FILES = Path(__file__).parents[2] / "shardflow" / "sql"
ALL = {f"{path.stem}.{name}": text for path in sorted(FILES.glob("*.sql")) for name, text in load(path.stem).items()}

#: What has a row for each worker, batch or queue, and not for each workflow.
SMALL = {
    *("lease", "claim", "cancel", "paused", "worker", "election", "journal", "shard", "slot", "migration"),
    *("quota", "permit", "fresh", "begun", "granted", "accepted", "loose", "retention"),
    "key",
}
#: Where plans are made for the values that are given.
CUSTOM = (Where.WALK, Where.SEARCH)

#: Rows of tables that have one for some workflows only.
MANY = ROWS // 4
FIRST = """
INSERT INTO lease (lease, worker, expires_at, session)
VALUES (1, 'w', now() + interval '1 h', false), (3, 'v', now() - interval '1 h', false);
INSERT INTO schedule (name, slot, spec, zone, workflow, queue, input, pass_time, options, missed, overlap, from_code,
    decided_to)
VALUES ('s0', 0, 'every 1d', 'UTC', 'work', 'q', '[]', false, '{}', 'skip', 'allow', false, now())
"""
FILL = f"""
INSERT INTO workflow (wf, slot, id, name, queue, input, options, attributes)
SELECT n, 0, 'w' || n, 'work', 'q' || n %% 3, '[]', CASE WHEN n %% 100 = 0 THEN '{{"timeout": 60}}'::jsonb END,
    CASE WHEN n %% 10000 = 0 THEN '{{"tenant": "small"}}'::jsonb WHEN n %% 20 = 0 THEN '{{"tenant": "big"}}' END
FROM generate_series(1, {ROWS} + 4 * {EACH}) n;
INSERT INTO ready (seq, wf, priority, queue) SELECT n, n, 0, 'q' || n %% 3 FROM generate_series(1, {ROWS}) n;
INSERT INTO ready (seq, wf, priority, queue) SELECT n, n, 0, 'q' || n %% 3
FROM generate_series({READY} + 1, {READY} + {EACH}) n;
INSERT INTO step (wf, seq, name, output) SELECT n, 0, 'step', '1' FROM generate_series(1, {ROWS}) n;
INSERT INTO step (wf, seq, name, output, error)
SELECT n, s, 'step', '1', CASE WHEN s = 3 THEN '{{}}' END
FROM generate_series({RUNNING} + 1, {ENDED} + {EACH}) n, generate_series(0, 3) s;
INSERT INTO outcome (wf, status)
SELECT n, CASE n %% 10000 WHEN 1 THEN 'failed' WHEN 2 THEN 'dead' ELSE 'succeeded' END
FROM generate_series(1, {ROWS}) n;
INSERT INTO outcome (wf, status) SELECT n, 'failed' FROM generate_series({ENDED} + 1, {ENDED} + {EACH}) n;
INSERT INTO wait (wf, wake_at, reason)
SELECT n, now() + interval '1 day' + n * interval '1 s', '' FROM generate_series(1, {ROWS}) n;
INSERT INTO wait (wf, wake_at, reason, topics) SELECT n, now() + interval '1 day', '', '{{go}}'
FROM generate_series({SUSPENDED} + 1, {SUSPENDED} + {EACH}) n;
INSERT INTO message (wf, topic, key, value) SELECT n / 100, 't', n, '1' FROM generate_series(1, {MANY}) n;
INSERT INTO outbox (lease, target, topic, key)
SELECT CASE n %% 10000 WHEN 1 THEN 0 WHEN 2 THEN 2 ELSE 1 END, 'w' || n, 't', n FROM generate_series(1, {MANY}) n;
INSERT INTO watcher (wf, topic, id, late, registered_at)
SELECT n, 't', 'w1', n %% 2 = 0, now() - interval '1 hour' FROM generate_series(1, {MANY}) n;
INSERT INTO event (wf, key, value) SELECT n, 'k', '1' FROM generate_series(1, {MANY}) n;
INSERT INTO retry (wf, seq, due_at, attempts, name, error)
SELECT n, 0, now(), 1, 'step', '' FROM generate_series(1, {MANY}) n;
INSERT INTO keyed (wf, key, most, priority) SELECT n, 'k' || n / 1000, 1, 0 FROM generate_series(1, {MANY}) n;
INSERT INTO keyed (wf, key, most, priority)
SELECT n, 's' || n, 1, 0 FROM generate_series({SUSPENDED} + 1, {SUSPENDED} + {EACH}) n;
INSERT INTO dedup (key, id) SELECT 'd' || n, 'w' || n FROM generate_series(1, {MANY}) n;
INSERT INTO schedule (name, slot, spec, zone, workflow, queue, input, pass_time, options, missed, overlap, from_code,
    confirmed_at, decided_to, next_at)
SELECT 's' || n, 0, 'every 1d', 'UTC', 'work', 'q', '[]', false, '{{}}', 'skip', 'allow', n %% 2 = 0, now(), now(),
    CASE WHEN n %% 3 > 0 THEN now() + n * interval '1 s' - interval '200 s' END
FROM generate_series(1, {ROWS // 20}) n;
INSERT INTO tick (schedule, at, try_at) SELECT 's' || n, now(), now() + n * interval '1 s' - interval '200 s'
FROM generate_series(1, {ROWS // 20}) n;
INSERT INTO claim (lease, batch, wfs, attempts)
SELECT 1, n / 100, array_agg({RUNNING} + n), array_agg(0::smallint)
FROM generate_series(1, {EACH}) n GROUP BY n / 100;
INSERT INTO cancel (wf) SELECT {RUNNING} + n FROM generate_series(1, 3) n;
INSERT INTO loose (key) SELECT 's' || {SUSPENDED} + n FROM generate_series(1, 3) n;
INSERT INTO quota (queue, kind, declared, most, seconds, base, share)
VALUES ('q0', 'running', 1, 200, NULL, 200, 200), ('q1', 'starts', 1, 200, 10, 200, 200);
INSERT INTO permit (wf, queue) SELECT {RUNNING} + n, 'q0' FROM generate_series(1, 100) n;
INSERT INTO fresh (lease, batch, queue, starts) VALUES (1, 1, 'q1', 10);
""".replace("%%", "%")
GROWING = sorted(set(re.findall(r"INSERT INTO (\w+)", FILL)))

COUNTERS = """
SELECT c.relname, coalesce(t.relname, c.relname), pg_stat_get_xact_numscans(c.oid),
       pg_stat_get_xact_tuples_returned(c.oid)
FROM pg_class c LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid
WHERE c.relnamespace = 'shardflow'::regnamespace AND c.relkind IN ('r', 'i')
"""


class Asker:
    """A session that has statements of one sort prepared. What they do is rolled back.

    Arguments: `config`; `where`, the sort; `mode`, how plans are made where that is not the fence's decision.
    """

    def __init__(self, config: ClusterConfig, where: Where, mode: str = "generic") -> None:
        self.where = where
        self.mode = mode
        self.cases = {name: case for name, case in CASES.items() if case.where is where}
        role = {Where.USER: "transaction", Where.CLI: "cli", Where.BY_INDEX: "cli"}.get(where, "client")
        options = Shard(config.shards[0]).connect_arguments(role, 5.0)["options"]
        self.conn = psycopg.connect(
            config.shards[0].dsn, autocommit=True, options=f"{options} -c search_path=shardflow"
        )
        self.conn.execute(f"SET shardflow.step = 'mine'; SET plan_cache_mode = force_{mode}_plan")
        for name, case in self.cases.items():
            types = f"({case.types})" if case.types else ""
            self.conn.execute(f'PREPARE "{name}" {types} AS {text_of(name, self.conn)}')

    @contextmanager
    def asking(self, name: str) -> Iterator[str]:
        """Settings as they are where the statement runs. Gives the text to execute it."""
        with self.conn.transaction(force_rollback=True):
            if self.where is Where.TURN:
                self.conn.execute("SELECT fence(1::bigint, 1, 1::bigint)")
            elif self.where is Where.BY_INDEX:
                self.conn.execute(load("checkup")["by_index"])
            elif self.where in (Where.WALK, Where.SEARCH):
                self.conn.execute(load("query")["walking"])
                if self.where is Where.SEARCH:
                    self.conn.execute(load("query")["searching"])
            case = self.cases[name]
            yield f'EXECUTE "{name}" ' + (f"({case.values})" if case.types else "")

    def warm_up(self) -> None:
        """Runs all of them, so that the session has their plans."""
        for name in self.cases:
            with self.asking(name) as execute:
                self.conn.execute(execute)

    def faults(self, name: str) -> list[str]:
        """What is wrong with the way in which the statement is answered."""
        case = self.cases[name]
        with self.asking(name) as execute:
            before = self.conn.execute(COUNTERS).fetchall()
            row = self.conn.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {execute}").fetchone()
            assert row is not None
            after = self.conn.execute(COUNTERS).fetchall()
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        found = [fault for node in nodes(plan[0]["Plan"]) for fault in in_plan(node, case)]
        former = {relation: numbers for relation, _, *numbers in before}
        for relation, table, scans, touched in after:
            if relation == table and scans > former[relation][0] and table not in SMALL and not case.samples:
                found.append(f"reads all of {table}")
            if (more := touched - former[relation][1]) > case.most:
                found.append(f"touches {more} of {relation}")
        return found


def text_of(name: str, conn: psycopg.Connection[Any]) -> str:
    concern, statement = name.split(".")
    names: dict[str, composing.Composable] = {
        "schema": composing.Identifier("shardflow"),
        "schema_text": composing.Literal("shardflow"),
        "bell_text": composing.Literal("bell:shardflow"),
        "fits": composing.SQL(load("query")["fits"]),
        "order": composing.SQL("DESC"),
    }
    text = composing.SQL(load(concern)[statement]).format(**names).as_string(conn)
    number = 0
    while "%s" in text:
        number += 1
        text = text.replace("%s", f"${number}", 1)
    return text.replace("%%", "%")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def in_plan(node: dict[str, Any], case: Case) -> Iterator[str]:
    kind, table = node["Node Type"], node.get("Relation Name")
    if kind == "Seq Scan" and table not in SMALL and not table.startswith("pg_"):
        yield f"plans to read all of {table}"
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    touched = (node["Actual Rows"] + removed) * node["Actual Loops"]
    if touched > case.most:
        yield f"{kind} on {table} touches {touched:.0f} rows"


@pytest.fixture(scope="module")
def empty(lab: Lab) -> Iterator[ClusterConfig]:
    """A shard whose tables are never analysed by themselves, and written without a log, which is quicker."""
    config = lab.clone(1, 64, LEASE, POOL)
    with connect(config) as conn:
        for table in ("claim", "tick", *GROWING):
            conn.execute(f"ALTER TABLE {table} SET UNLOGGED")
            conn.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        conn.execute("ALTER TABLE lease SET UNLOGGED")
        conn.execute(FIRST)
    yield config
    lab.drop(config)


@pytest.mark.slow
def test_no_statement_reads_more_where_there_are_a_million_rows(empty: ClusterConfig) -> None:
    state = "with a plan that is older than the rows"
    old = [Asker(empty, where) for where in (Where.TURN, Where.SESSION, Where.USER)]
    for asker in old:
        asker.warm_up()
    with connect(empty) as conn:
        conn.execute(FILL)
    faults = [fault for asker in old for fault in told(state, asker)]
    for state in ("never analysed", "analysed"):
        if state == "analysed":
            with connect(empty) as conn:
                conn.execute("ANALYZE")
        for where in Where:
            faults += told(state, Asker(empty, where, "custom" if where in CUSTOM else "generic"))
        faults += told(state + ", custom", Asker(empty, Where.SESSION, "custom"))
    assert not faults, "\n".join(["", *faults])


def told(state: str, asker: Asker) -> list[str]:
    with asker.conn:
        return [f"{name}, {state}: {fault}" for name in asker.cases for fault in asker.faults(name)]


def test_every_statement_that_reads_tables_is_among_them() -> None:
    reading = {name for name, text in ALL.items() if "{schema}." in text}
    known = [*CASES, *WHOLE, *ONCE]
    assert len(known) == len(set(known))
    assert not reading - set(known), f"say what it is asked, in plan_cases.py: {sorted(reading - set(known))}"
    assert set(known) <= set(ALL)
