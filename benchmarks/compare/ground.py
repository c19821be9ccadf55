"""The servers that all share, a fresh database for each measurement, and what the servers tell of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from shardflow.bench.meters import server_cpu
from shardflow.embedded import Servers


@dataclass(frozen=True)
class Databases:
    """A database of the same name on each server."""

    servers: Servers
    dsns: tuple[str, ...]

    @property
    def postmasters(self) -> list[int]:
        return [server.pid for server in self.servers]

    def cpu(self) -> float:
        """CPU seconds of the servers so far."""
        return server_cpu(self.postmasters) or 0.0

    def wal(self) -> int:
        """Bytes of WAL that the servers have written so far."""
        return self.total("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint")

    def size(self) -> int:
        """Bytes on disk."""
        return self.total("SELECT pg_database_size(current_database())")

    def total(self, query: str) -> int:
        """The sum of what a query answers on each server."""
        found = 0
        for dsn in self.dsns:
            with psycopg.connect(dsn, autocommit=True) as conn:
                row = conn.execute(query.encode()).fetchone()
                found += int(row[0]) if row and row[0] is not None else 0
        return found


@contextmanager
def servers(count: int, settings: Mapping[str, str]) -> Iterator[Servers]:
    """So many embedded servers for the block."""
    with Servers(count, settings=dict(settings)) as found:
        yield found


@contextmanager
def fresh(found: Servers) -> Iterator[Databases]:
    """A new database on each server, dropped at the end of the block; what earlier ones left dirty is written out."""
    name = f"compare_{secrets.token_hex(4)}"
    with ExitStack() as stack:
        for server in found:
            _administer(
                server.dsn, [sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)), sql.SQL("CHECKPOINT")]
            )
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            stack.callback(_administer, server.dsn, [drop])
        yield Databases(found, tuple(_named(server.dsn, name) for server in found))


def _administer(dsn: str, statements: Sequence[sql.SQL | sql.Composed]) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def _named(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))
