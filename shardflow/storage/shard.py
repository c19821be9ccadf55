"""A shard as the storage layer sees it: how to connect, its statements with the schema filled in, its errors."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection, IsolationLevel, sql
from psycopg.conninfo import conninfo_to_dict

from .. import sql as statements
from ..errors import ConfigError, LeaseLost, MapChanged, ShardBusy, ShardflowError, ShardReadOnly, ShardUnavailable
from ..model import ShardConfig
from . import arrays
from .deadline import Timer

LEASE_LOST = "SF001"
MAP_CHANGED = "SF002"

#: SQLSTATE classes after which the same transaction may succeed on a later try: connection, state of the transaction
#: (a standby only reads until it is promoted), intervention by an operator, system error; and of a server that
#: is well but busy: rollback (deadlock), resources, locks.
_UNAVAILABLE = ("08", "25", "57", "58")
_BUSY = ("40", "53", "55")
#: A transaction that only reads; no space left.
_NO_WRITES = ("25006", "53100")
_NOT_ALLOWED = ("28", "42")
_UNDEFINED = ("3F000", "42P01", "42883")
#: What a server says that has no timeline to tell, or none for this role.
_UNKNOWN_TIMELINE = ("0A", "42", "55")

#: Seconds that the server gives to a statement.
STATEMENT_SECONDS = 30
#: Roles, by the first word, whose statements may take as long as they need: they build indexes, count or measure.
_UNHURRIED = frozenset({"init", "migrate", "cli", "bench", "demo"})
#: The others look things up, but for users' own statements in a transaction. A plan that was made while a table was
#: nearly empty, or on one that was never analysed, would read all of it, a million times what was asked for. What has
#: to read all, a count, takes this back.
LOOKING_UP = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off"

Conn = AsyncConnection[tuple[Any, ...]]


class Statements:
    """The statements of one file of `shardflow/sql`, for one schema; `statements["name"]`."""

    def __init__(self, texts: Mapping[str, str], names: Mapping[str, sql.Composable]) -> None:
        self._bytes = {name: sql.SQL(text).format(**names).as_bytes(None) for name, text in texts.items()}

    def __getitem__(self, name: str) -> bytes:
        return self._bytes[name]


class Shard:
    """One schema on one server.

    Arguments: `config`, where it is. Opening connections is left to the caller, who closes them.
    """

    def __init__(self, config: ShardConfig) -> None:
        self.config = config
        self.name = config.name
        self.bell = f"bell:{config.schema}"[:63]
        self.names: dict[str, sql.Composable] = {
            "schema": sql.Identifier(config.schema),
            "schema_text": sql.Literal(config.schema),
            "bell_text": sql.Literal(self.bell),
        }
        self._loaded: dict[str, Statements] = {}
        self._wants_primary: bool | None = None

    def statements(self, concern: str) -> Statements:
        """The named statements of `shardflow/sql/<concern>.sql` for this schema."""
        if concern not in self._loaded:
            self._loaded[concern] = Statements(statements.load(concern), self.names)
        return self._loaded[concern]

    def connect_arguments(self, role: str, connect_timeout: float) -> dict[str, Any]:
        """Keyword arguments for psycopg: autocommit, keepalives, and limits so that no dead peer holds a lock.

        What the user's DSN says stays; session settings are left out where a pooler stands in between.
        """
        try:
            given = conninfo_to_dict(self.config.dsn)
        except psycopg.Error as error:
            raise ConfigError(f"shard {self.name!r}: the dsn is not valid: {error}") from error
        wanted: dict[str, Any] = {
            "connect_timeout": max(1, round(connect_timeout)),
            "application_name": f"shardflow {role}",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        }
        if not self.config.pooler:
            wanted["options"] = " ".join(
                (
                    "-c idle_in_transaction_session_timeout=10s -c lock_timeout=10s",
                    *([f"-c statement_timeout={STATEMENT_SECONDS}s"] if role.split()[0] not in _UNHURRIED else []),
                    "-c client_min_messages=warning -c TimeZone=UTC -c jit=off",
                    *([LOOKING_UP] if role.split()[0] not in _UNHURRIED | {"transaction"} else []),
                    # libpq's keepalives are those of our side; these make the server notice that we are gone.
                    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
                    "-c tcp_user_timeout=20s",
                    # The last one wins, so the user's come behind.
                    str(given.pop("options", None) or os.environ.get("PGOPTIONS", "")),
                    # The guards look again after they have waited for a lock, which needs this isolation level;
                    # psycopg reads times in no other style.
                    r"-c default_transaction_isolation=read\ committed -c DateStyle=ISO",
                )
            )
        arguments = {key: value for key, value in wanted.items() if key not in given}
        arguments["autocommit"] = True
        arguments["client_encoding"] = "utf8"  # whatever the role, the database, the dsn or the environment say
        arguments["prepare_threshold"] = None if self.config.pooler else 2
        return arguments

    async def connect(self, role: str, *, connect_timeout: float = 5.0) -> Conn:
        """A new connection in autocommit mode. Raises ShardUnavailable where the server does not answer."""
        with self.translate():
            conn: Conn = await AsyncConnection.connect(
                self.config.dsn, **self.connect_arguments(role, connect_timeout)
            )
        arrays.register(conn.adapters)
        await conn.set_isolation_level(IsolationLevel.READ_COMMITTED)
        return conn

    @asynccontextmanager
    async def deadline(self, conn: Conn, seconds: float, what: str) -> AsyncIterator[None]:
        """Gives the server so many seconds to answer all that the block asks on `conn`; then the connection is cut.

        Raises ShardUnavailable naming `what` was not answered. What the server did of it is unknown then. A block
        that ends in time although the timer has fired keeps its result; its connection is broken.
        """
        timer = Timer(conn, seconds)
        try:
            yield
        except (ShardBusy, ShardReadOnly):  # the server has answered
            raise
        except (psycopg.Error, ShardUnavailable) as error:
            if timer.fired and (not isinstance(error, psycopg.Error) or error.sqlstate is None):
                raise ShardUnavailable(
                    f"shard {self.name!r} does not answer: nothing came back within {seconds:g} s ({what});"
                    " the connection was cut",
                    shard=self.name,
                ) from error
            raise
        finally:
            timer.stop()

    def demoted(self, conn: Conn) -> bool:
        """Whether the dsn asks for a primary and this connection's server has said that it is none now.

        Such a connection is to be closed: a new one finds the new primary. Asks nothing: Postgres reports it with
        its answers.
        """
        if self._wants_primary is None:
            wanted = conninfo_to_dict(self.config.dsn).get("target_session_attrs")
            wanted = wanted or os.environ.get("PGTARGETSESSIONATTRS")
            self._wants_primary = wanted in ("read-write", "primary")
        return self._wants_primary and reads_only(conn)

    async def timeline(self, conn: Conn) -> int:
        """The server's timeline, which every promotion of a standby raises; 0 where the server does not tell.

        Raises ShardUnavailable where it is a standby.
        """
        with self.translate():
            try:
                row = await (await conn.execute(self.statements("cluster")["timeline"])).fetchone()
            except psycopg.Error as error:
                if (error.sqlstate or "")[:2] in _UNKNOWN_TIMELINE:
                    return 0
                raise
        if row is None or row[0] is None:
            raise ShardUnavailable(f"shard {self.name!r}: the server is a standby", shard=self.name)
        return int(row[0], 16)

    @contextmanager
    def translate(self) -> Iterator[None]:
        """Turns psycopg's errors into ours, naming the shard; data errors of a statement pass as they are."""
        try:
            yield
        except psycopg.Error as error:
            raise self.explain(error) from error
        except OSError as error:
            raise ShardUnavailable(f"shard {self.name!r} does not answer: {error}", shard=self.name) from error

    def explain(self, error: psycopg.Error) -> Exception:
        """The exception of our tree that stands for `error`, or `error` itself where it is about the data."""
        state = error.sqlstate or ""
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if state == LEASE_LOST:
            return LeaseLost(f"shard {self.name!r}: {text}")
        if state == MAP_CHANGED:
            return MapChanged(f"shard {self.name!r}: {text}")
        if state in _UNDEFINED:
            return ShardflowError(
                f"shard {self.name!r}: {text}; has the cluster been initialised? Run `shardflow cluster init`"
            )
        if state in _NO_WRITES:
            return ShardReadOnly(f"shard {self.name!r} takes no writes now: {text}", shard=self.name)
        if state[:2] in _BUSY:
            return ShardBusy(f"shard {self.name!r} could not do it now: {text}", shard=self.name)
        if state[:2] in _UNAVAILABLE or (not state and isinstance(error, psycopg.OperationalError)):
            return ShardUnavailable(f"shard {self.name!r} does not answer: {text}", shard=self.name)
        if state[:2] in _NOT_ALLOWED:
            return ShardflowError(f"shard {self.name!r}: the server refuses: {text}")
        return error


def reads_only(conn: Conn) -> bool:
    """Whether the server said with its last answer that it is a standby, or that transactions only read."""
    status = conn.pgconn.parameter_status
    return status(b"in_hot_standby") == b"on" or status(b"default_transaction_read_only") == b"on"
