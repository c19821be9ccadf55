"""A client's pool of connections to one shard; made at first use, closed with the client."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from ..errors import ShardBusy, UsageError
from ..model import PoolConfig
from . import arrays
from .shard import Conn, Shard


class Pool:
    """Connections to one shard, opened at the first use.

    A connection that the server has closed is noticed before it is used, without a round trip, so that what fails
    on a used one may have been sent, and what fails before was not.
    """

    def __init__(self, shard: Shard, config: PoolConfig) -> None:
        self.shard = shard
        self._config = config
        self._pool: AsyncConnectionPool[Conn] | None = None
        self._opening = asyncio.Lock()
        self._in_use = 0
        self._closed = False

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Conn]:
        """A connection for a moment; waits at most `timeout` seconds for it.

        Raises ShardUnavailable where none could be made, ShardBusy where all are in use, UsageError after `close`.
        """
        pool = await self._opened()
        with self.shard.translate():
            try:
                conn = await pool.getconn(self._config.timeout if timeout is None else timeout)
            except PoolTimeout as error:
                if self._in_use:
                    raise ShardBusy(
                        f"shard {self.shard.name!r}: all {self._in_use} connections are in use (pool.max_size)",
                        shard=self.shard.name,
                    ) from error
                raise
            except PoolClosed as error:  # while this call waited
                raise UsageError("the client is closed") from error
        self._in_use += 1
        try:
            yield conn
        finally:
            self._in_use -= 1
            await pool.putconn(conn)

    async def _opened(self) -> AsyncConnectionPool[Conn]:
        async with self._opening:
            if self._closed:
                raise UsageError("the client is closed")
            if self._pool is None:
                self._pool = await self._open()
            return self._pool

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
        """Closes all connections; those in use when they are given back."""
        async with self._opening:
            self._closed = True
            if self._pool is not None:
                await self._pool.close()


async def _configure(conn: Conn) -> None:
    arrays.register(conn.adapters)


async def _check(conn: AsyncConnection[Any]) -> None:
    """Raises where the server has closed the connection. An idle one has nothing to say but goodbye."""
    said = select.poll()  # select() cannot watch a descriptor above 1023
    said.register(conn.fileno(), select.POLLIN)
    if said.poll(0):
        await AsyncConnectionPool.check_connection(conn)
    if conn.closed:
        raise psycopg.OperationalError("the connection is closed")
