"""Storage layouts side by side: what a workflow costs in CPU, WAL, rows, index entries and dead tuples.

Every run has fresh tables without autovacuum, and the loop of ``floor.py``; the vacuum that a layout makes
necessary is run and measured at the end. Variants take turns within a round, so that a neighbour's load falls
on all of them; the median of the rounds is reported. Compare within one run, not between machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _layouts_load import payloads
from _layouts_sql import Layout
from _layouts_variants import CLAIMS, LAYOUTS, TEXT_KEYS, WIDE, D
from _layouts_wire import FloorError, ServerMeter
from floor import Drain, open_wire, prepared_schema, server, submit, verify

SCHEMA = "shardflow_layouts"
SERVER_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
STAT_SECONDS = 10.0
ROWS = """
SELECT coalesce(sum(n_tup_ins), 0)::bigint,
       coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint,
       coalesce(sum((n_tup_ins + n_tup_upd - n_tup_hot_upd) * whole + n_tup_ins * partial), 0)::bigint
FROM pg_stat_user_tables AS t
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE indpred IS NULL) AS whole, count(indpred) AS partial
    FROM pg_index WHERE indrelid = t.relid) AS i
WHERE schemaname = %s"""
SIZE = """
SELECT sum(pg_total_relation_size(c.oid))::bigint
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE nspname = %s AND relkind = 'r'"""
TABLES = """
SELECT format('%%I.%%I', nspname, relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace
WHERE nspname = %s AND relkind = 'r' ORDER BY 1"""


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure: a layout under a load, with its knobs."""

    group: str
    layout: Layout
    workflows: int
    steps: int = 0
    payload: int = 100
    kind: str = "json"
    batch: int = 500
    pinned: bool = False
    mark: bool = True
    storage: str = "EXTENDED"
    ids: str = "ordered"


STORAGES = {
    "EXTENDED": (),
    "EXTERNAL": ("ALTER {column} SET STORAGE EXTERNAL",),
    "MAIN": ("ALTER {column} SET STORAGE MAIN",),
    "EXTENDED lz4": ("ALTER {column} SET COMPRESSION lz4",),
    "EXTERNAL inline to 8 kB": ("ALTER {column} SET STORAGE EXTERNAL", "SET (toast_tuple_target = 8160)"),
}
PAYLOAD_COLUMNS = (("workflow", "input"), ("step", "output"), ("outcome", "output"))


def settle(control: psycopg.Connection[Any], case: Case) -> None:
    """Switch autovacuum off, set the payload's storage, and start from a checkpoint where we may."""
    for (table,) in control.execute(TABLES, (SCHEMA,)).fetchall():
        control.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)".encode())
    for action in STORAGES[case.storage]:
        for table, column in PAYLOAD_COLUMNS:
            statement = f"ALTER TABLE {SCHEMA}.{table} {action}".replace("{column}", column)
            control.execute(statement.encode())
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
        control.execute("CHECKPOINT")


@contextlib.contextmanager
def pinned_horizon(dsn: str, wanted: bool) -> Iterator[None]:
    """Hold a snapshot open, so that no dead row or index entry can be skipped cheaply or removed."""
    if not wanted:
        yield
        return
    with psycopg.connect(dsn) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.execute("SELECT count(*) FROM pg_class")
        yield
        holder.rollback()


def rows_written(control: psycopg.Connection[Any], at_least: int) -> tuple[int, int, int]:
    """Return rows inserted, rows made dead, and index entries, once the statistics have arrived.

    A row is taken to enter each partial index once in its life, and each other index at its insert and at
    every update that is not heap-only.
    """
    until = time.monotonic() + STAT_SECONDS
    while True:
        row = control.execute(ROWS, (SCHEMA,)).fetchone()
        if row is None or (row[0] < at_least and time.monotonic() > until):
            raise FloorError("the server's row statistics did not arrive")
        if row[0] >= at_least:
            return int(row[0]), int(row[1]), int(row[2])
        time.sleep(0.05)


def measure(dsn: str, case: Case) -> dict[str, Any]:
    """Submit, drain, verify and vacuum one case; return its figures per workflow."""
    bodies = payloads(case.payload, kind=case.kind)
    with prepared_schema(dsn, case.layout, SCHEMA) as control:
        settle(control, case)
        meter = ServerMeter(control)
        wire = open_wire(dsn, case.layout, SCHEMA)
        try:
            points = [(meter.cpu(), meter.wal())]
            submit_seconds = submit(wire, case.workflows, bodies, case.ids)
            points.append((meter.cpu(), meter.wal()))
            with pinned_horizon(dsn, case.pinned):
                drain = Drain(wire, case.layout, case.steps, bodies, case.batch, mark=case.mark)
                started = time.perf_counter()
                drain.run()
                seconds = time.perf_counter() - started
                points.append((meter.cpu(), meter.wal()))
            wire.connection.pgconn.exit_pipeline_mode()
            wire.connection.execute("SELECT pg_stat_force_next_flush()")
        finally:
            wire.close()
        verify(control, case.layout, SCHEMA, case.workflows, case.steps)
        inserted, dead, entries = rows_written(control, case.workflows * (1 + case.steps))
        row = control.execute(SIZE, (SCHEMA,)).fetchone()
        size = int(row[0]) if row else 0
        before = (meter.cpu(), meter.wal())
        for (table,) in control.execute(TABLES, (SCHEMA,)).fetchall():
            control.execute(f"VACUUM {table}".encode())
        points += [before, (meter.cpu(), meter.wal())]
    figures: dict[str, Any] = {
        "drain_per_s": round(case.workflows / seconds),
        "last_fifth_per_s": last_fifth(drain),
        "submit_per_s": round(case.workflows / submit_seconds),
        "inserted": round(inserted / case.workflows, 3),
        "dead": round(dead / case.workflows, 3),
        "index_entries": round(entries / case.workflows, 3),
        "size_bytes": round(size / case.workflows),
    }
    for name, start, end in (("submit", 0, 1), ("drain", 1, 2), ("vacuum", 3, 4)):
        (cpu, wal), (cpu_end, wal_end) = points[start], points[end]
        figures[f"{name}_wal_bytes"] = round((wal_end - wal) / case.workflows)
        if cpu is not None and cpu_end is not None:
            figures[f"{name}_cpu_us"] = round((cpu_end - cpu) / case.workflows * 1e6, 2)
    return figures


def last_fifth(drain: Drain) -> int:
    """Return the rate at which the last fifth of the workflows was claimed."""
    total = drain.claimed
    first_at, first = next(point for point in drain.progress if point[1] >= total * 0.8)
    last_at, last = drain.progress[-1]
    return round((last - first) / (last_at - first_at)) if last > first else 0


def cases(workflows: int, quick: bool) -> list[Case]:
    """Return what is measured, in groups."""
    small = [100] if quick else [100, 4096]
    matrix = [
        Case("matrix", layout, workflows if payload < 1000 else workflows // 4, steps, payload)
        for payload in small
        for steps in ((0, 1) if quick else (0, 1, 3))
        for layout in LAYOUTS
    ]
    claims = [Case("claim", layout, workflows) for layout in CLAIMS]
    keys = [
        Case("keys", layout, workflows * (1 if quick else 5), steps, ids=ids)
        for ids in ("ordered", "uuid")
        for steps in (0, 1, 3)
        for layout in (D, TEXT_KEYS)
    ]
    pinned = [
        Case("pinned", layout, workflows * (1 if quick else 5), pinned=held, mark=mark)
        for layout in (WIDE, D, TEXT_KEYS)
        for held, mark in ((False, False), (False, True), (True, False), (True, True))
    ]
    storage = [
        Case("storage", D, workflows // 4, 1, 4096, kind, storage=name)
        for kind in ("json", "random")
        for name in STORAGES
    ]
    return matrix + keys + claims + pinned + storage


def run(dsn: str, wanted: Sequence[Case], rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure every case once a round, taking turns; return one record a case with the medians."""
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in wanted}
    refused: set[Case] = set()
    for number in range(rounds):
        for case in wanted:
            if case in refused:
                continue
            try:
                found[case].append(measure(dsn, case))
            except psycopg.errors.FeatureNotSupported:
                refused.add(case)
        say(f"round {number + 1} of {rounds} done")
    return [describe(case, figures) for case, figures in found.items() if figures]


def describe(case: Case, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the case and the median of each of its figures, with the range of the drain rate."""
    record: dict[str, Any] = {
        "group": case.group,
        "layout": case.layout.name,
        "workflows": case.workflows,
        "steps": case.steps,
        "payload": case.payload,
        "kind": case.kind,
        "batch": case.batch,
        "pinned": case.pinned,
        "mark": case.mark,
        "storage": case.storage,
        "ids": case.ids,
        "rounds": len(figures),
    }
    for name in figures[0]:
        record[name] = statistics.median(each[name] for each in figures)
    rates = [each["drain_per_s"] for each in figures]
    return record | {"drain_per_s_range": [min(rates), max(rates)]}


COLUMNS = {
    "matrix": "layout payload steps drain_per_s submit_per_s submit_cpu_us drain_cpu_us vacuum_cpu_us "
    "submit_wal_bytes drain_wal_bytes vacuum_wal_bytes inserted index_entries dead size_bytes",
    "keys": "layout ids steps drain_per_s submit_per_s submit_cpu_us drain_cpu_us vacuum_cpu_us "
    "submit_wal_bytes drain_wal_bytes size_bytes",
    "claim": "layout drain_per_s drain_per_s_range drain_cpu_us drain_wal_bytes",
    "pinned": "layout workflows pinned mark drain_per_s last_fifth_per_s drain_cpu_us",
    "storage": "storage kind drain_per_s submit_per_s submit_cpu_us drain_cpu_us submit_wal_bytes "
    "drain_wal_bytes size_bytes",
}


def table(records: list[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return ``records`` as a Markdown table."""
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(record.get(column, "")) for column in columns) for record in records]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "–".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.1f}" if value % 1 else f"{value:.0f}"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(description="Compare storage layouts on one Postgres.")
    parser.add_argument("--dsn", help="a server to use; without it an embedded one is started")
    parser.add_argument("--workflows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case; medians are reported")
    parser.add_argument("--group", action="append", choices=list(COLUMNS), help="only this group (repeatable)")
    parser.add_argument("--quick", action="store_true", help="one round of fewer and smaller cases")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args(arguments)
    groups = options.group or list(COLUMNS)
    workflows = min(options.workflows, 5_000) if options.quick else options.workflows
    wanted = [case for case in cases(workflows, options.quick) if case.group in groups]
    with server(options.dsn, SERVER_SETTINGS) as dsn:
        with psycopg.connect(dsn) as control:
            version = control.info.parameter_status("server_version")
        records = run(dsn, wanted, 1 if options.quick else options.rounds, lambda text: print(text, file=sys.stderr))
    print(f"Postgres {version}")
    for group in groups:
        print(f"\n{group}\n")
        print(table([record for record in records if record["group"] == group], COLUMNS[group].split()))
    if options.json is not None:
        options.json.write_text(json.dumps({"server_version": version, "records": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
