"""A client's pool of connections to one shard; made at first use, closed with the client."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from ..model import PoolConfig
from . import arrays
from .shard import Conn, Shard


class Pool:
    """Connections to one shard.

    A connection that the server has closed is noticed before it is used, without a round trip, so that what fails
    on a used one may have been sent, and what fails before was not.
    """

    def __init__(self, shard: Shard, config: PoolConfig) -> None:
        self.shard = shard
        self._config = config
        self._pool: AsyncConnectionPool[Conn] | None = None

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Conn]:
        """A connection for a moment; waits at most `timeout` seconds for it. Raises ShardUnavailable."""
        with self.shard.translate():
            if self._pool is None:
                self._pool = await self._open()
            conn = await self._pool.getconn(self._config.timeout if timeout is None else timeout)
        try:
            yield conn
        finally:
            await self._pool.putconn(conn)

    async def _open(self) -> AsyncConnectionPool[Conn]:
        pool: AsyncConnectionPool[Conn] = AsyncConnectionPool(
            self.shard.config.dsn,
            kwargs=self.shard.connect_arguments("client", self._config.connect_timeout),
            configure=_configure,
            check=_check,
            min_size=self._config.min_size,
            max_size=self._config.max_size,
            timeout=self._config.timeout,
            reconnect_timeout=self._config.timeout,
            name=f"shardflow {self.shard.name}",
            open=False,
        )
        await pool.open()
        return pool

    async def close(self) -> None:
        """Closes all connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()


async def _configure(conn: Conn) -> None:
    arrays.register(conn.adapters)


async def _check(conn: AsyncConnection[Any]) -> None:
    """Raises where the server has closed the connection. An idle one has nothing to say but goodbye."""
    readable, _, _ = select.select([conn.fileno()], [], [], 0)
    if readable:
        await AsyncConnectionPool.check_connection(conn)
    if conn.closed:
        raise psycopg.OperationalError("the connection is closed")
