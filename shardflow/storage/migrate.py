"""Migrations: numbered files, applied per shard under an advisory lock, recorded with a checksum.

A file is one transaction; each of its statements is sent alone, as Citus needs it. A crash leaves a shard between
two files, and the next run goes on from there.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from psycopg import sql as composing

from .. import sql
from ..errors import MigrationError
from ..resources import folder
from .shard import Conn, Shard

_FILE = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file: its statements in order, by name, and the checksum of its text (SHA-256, 16 hex digits)."""

    version: int
    name: str
    checksum: str
    statements: dict[str, str]


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration's state on one shard; `applied_at` is None while it is pending."""

    version: int
    name: str
    applied_at: datetime | None


def read(directory: Path) -> list[Migration]:
    """The migrations of a folder. Raises MigrationError for a file with another name, or a gap in the numbers."""
    found = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE.match(path.name)
        if match is None:
            raise MigrationError(f"{path}: a migration is named like 0001_what_it_does.sql")
        text = path.read_text(encoding="utf-8")
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        found.append(Migration(int(match[1]), match[2], digest, sql.parse(text, path.name)))
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise MigrationError(f"{directory}: the numbers of the migrations are not 1, 2, 3, …")
    return found


@cache
def known() -> list[Migration]:
    """The migrations that this version of shardflow brings."""
    return read(folder("migrations"))


async def up(shard: Shard, conn: Conn, migrations: list[Migration] | None = None) -> list[Migration]:
    """Applies what is not applied yet; answers that. Concurrent runs wait for each other.

    Raises MigrationError where an applied file's text has changed, or the shard is ahead of this code.
    """
    cluster = shard.statements("cluster")
    wanted = known() if migrations is None else migrations
    done = []
    with shard.translate():
        for migration in wanted:
            async with conn.transaction():
                await conn.execute(cluster["lock_shard"])
                if migration is wanted[0]:
                    await conn.execute(cluster["create_schema"])
                    await conn.execute(cluster["create_migrations"])
                if _is_applied(shard, migration, wanted, await _recorded(shard, conn)):
                    continue
                for text in migration.statements.values():
                    await conn.execute(composing.SQL(text).format(**shard.names))
                record = (migration.version, migration.name, migration.checksum)
                await conn.execute(cluster["record_migration"], record)
                done.append(migration)
    return done


def _is_applied(
    shard: Shard,
    migration: Migration,
    wanted: list[Migration],
    recorded: dict[int, tuple[str, str, datetime]],
) -> bool:
    if recorded and max(recorded) > len(wanted):
        raise MigrationError(
            f"shard {shard.name!r} is at migration {max(recorded)}, this code knows {len(wanted)}: upgrade shardflow"
        )
    if migration.version not in recorded:
        return False
    name, checksum, _ = recorded[migration.version]
    if checksum != migration.checksum:
        raise MigrationError(
            f"shard {shard.name!r}: migration {migration.version} ({name}) was applied with another text"
            f" ({checksum} there, {migration.checksum} here): restore the file; write a new one for a change"
        )
    return True


async def _recorded(shard: Shard, conn: Conn) -> dict[int, tuple[str, str, datetime]]:
    rows = await (await conn.execute(shard.statements("cluster")["migrations"])).fetchall()
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


async def status(shard: Shard, conn: Conn) -> list[Applied]:
    """Every known or applied migration of the shard, in order."""
    with shard.translate():
        row = await (
            await conn.execute(shard.statements("cluster")["table_exists"], (shard.config.schema, "migration"))
        ).fetchone()
        recorded = await _recorded(shard, conn) if row and row[0] else {}
    names = {m.version: m.name for m in known()} | {v: r[0] for v, r in recorded.items()}
    return [Applied(v, n, recorded[v][2] if v in recorded else None) for v, n in sorted(names.items())]
