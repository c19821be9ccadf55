"""What a run costs, read from /proc and from the servers; and what machine it ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from ..model import ClusterConfig
from ..storage.shard import Conn, Shard, Statements

_SETTINGS = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_compression",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
)
_TEXTS = {
    "wal": "SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint",
    "settings": "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name",
    "version": "SHOW server_version",
    "has_statements": "SELECT to_regclass('pg_stat_statements') IS NOT NULL",
    "statements": "SELECT sum(calls)::bigint FROM pg_stat_statements WHERE dbid ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())",
    "flush": "SELECT 0 FROM pg_stat_force_next_flush()",
    "rows": "SELECT coalesce(sum(n_tup_ins), 0)::bigint, coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint,"
    " coalesce(sum((n_tup_ins + n_tup_upd - n_tup_hot_upd) * (SELECT count(*) FROM pg_index i"
    " WHERE i.indrelid = t.relid AND i.indpred IS NULL)), 0)::bigint,"
    " coalesce(sum(n_tup_ins) FILTER (WHERE relname = 'outcome'), 0)::bigint"
    " FROM pg_stat_user_tables t WHERE schemaname = %s AND relname = ANY(%s)",
    "transactions": "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()",
}

#: The tables on a plain workflow's way.
_TABLES = ["workflow", "ready", "claim", "step", "outcome"]
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def server_cpu(postmasters: Sequence[int]) -> float | None:
    """CPU seconds of these servers so far: of the living processes and of those that have ended.

    None without a server of ours, or where there is no /proc.
    """
    if not postmasters or not Path("/proc/self/stat").exists():
        return None
    wanted = set(postmasters)
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(entry.name)) is not None:
            if int(entry.name) in wanted:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) in wanted:
                total += sum(map(int, fields[11:13]))
    return total / _TICK


def _stat(pid: str) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name: state, parent, and so on (proc(5))."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def memory_kb() -> tuple[int | None, int | None]:
    """This process's resident size, now and at the most, in kB; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None, None
    found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return int(found["VmRSS"].split()[0]), int(found["VmHWM"].split()[0])


async def _number(shard: Shard, conn: Conn, name: str) -> int:
    with shard.translate():
        row = await (await conn.execute(Statements(_TEXTS, shard.names)[name])).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


async def wal_bytes(config: ClusterConfig) -> int:
    """Bytes of WAL written so far, over all shards' servers, each once."""
    total = 0
    for shard in {s.dsn: Shard(s) for s in config.shards}.values():
        async with await shard.connect("bench") as conn:
            total += await _number(shard, conn, "wal")
    return total


@dataclass(frozen=True, slots=True)
class Written:
    """Rows that were inserted, rows that updates and deletes left dead, entries of indexes (of those without a
    condition: plain work has no place in the others), and ends among the rows."""

    rows: int = 0
    dead: int = 0
    index_entries: int = 0
    ends: int = 0


async def written(config: ClusterConfig) -> Written:
    """What plain workflows have written on all shards so far, as the servers' statistics know with some delay."""
    total = Written()
    for shard in map(Shard, config.shards):
        async with await shard.connect("bench") as conn:
            with shard.translate():
                cursor = await conn.execute(Statements(_TEXTS, shard.names)["rows"], (shard.config.schema, _TABLES))
                row = await cursor.fetchone() or (0, 0, 0, 0)
        total = Written(*(old + int(new) for old, new in zip(astuple(total), row, strict=True)))
    return total


class QueryMeter:
    """Counts what one shard's database is asked, without counting itself.

    From `pg_stat_statements` where it is there, else transactions: an idle worker's queries are one each.
    """

    def __init__(self, shard: Shard, conn: Conn, statements: bool) -> None:
        self._shard = shard
        self._conn = conn
        self._own = 0
        self.source = "pg_stat_statements" if statements else "pg_stat_database"

    @classmethod
    async def on(cls, shard: Shard, conn: Conn) -> QueryMeter:
        """A meter on this connection."""
        return cls(shard, conn, bool(await _number(shard, conn, "has_statements")))

    async def read(self) -> int:
        """Queries so far. A server's counters lag by up to a second."""
        by_statements = self.source == "pg_stat_statements"
        if not by_statements:
            # Its own two are counted when they have ended: the flush now, the reading at the next flush.
            await _number(self._shard, self._conn, "flush")
            self._own += 1
        value = await _number(self._shard, self._conn, "statements" if by_statements else "transactions") - self._own
        self._own += 1
        return value


async def environment(config: ClusterConfig) -> dict[str, Any]:
    """The machine, the versions and the settings that the figures depend on."""
    shard = Shard(config.shards[0])
    texts = Statements(_TEXTS, shard.names)
    async with await shard.connect("bench") as conn:
        with shard.translate():
            version = await (await conn.execute(texts["version"])).fetchone()
            settings = await (await conn.execute(texts["settings"], (list(_SETTINGS),))).fetchall()
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_model": _cpu_model(),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "postgres": version[0] if version else None,
        "postgres_settings": dict(settings),
        "python": platform.python_version(),
        "psycopg": metadata.version("psycopg"),
        "psycopg_implementation": import_module("psycopg.pq").__impl__,
        "uvloop": _installed("uvloop"),
        "shardflow": metadata.version("shardflow"),
    }


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return models[0] if models else platform.machine()
