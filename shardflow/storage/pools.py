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

from ..errors import ShardBusy, ShardUnavailable, UsageError
from ..model import PoolConfig
from . import arrays
from .deadline import Timer
from .shard import Conn, Shard


class Pool:
    """Connections to one shard, opened at the first use.

    A connection that the server has closed is noticed before it is used, without a round trip, so that what fails
    on a used one may have been sent, and what fails before was not. One that fails, or whose server is no primary
    any more, is not used again.
    """

    def __init__(self, shard: Shard, config: PoolConfig) -> None:
        self.shard = shard
        self._config = config
        self._pool: AsyncConnectionPool[Conn] | None = None
        self._opening = asyncio.Lock()
        self._in_use = 0
        self._closed = False

    @asynccontextmanager
    async def connection(self, timeout: float | None = None, *, answer: float | None = None) -> AsyncIterator[Conn]:
        """A connection for a moment; waits at most `timeout` seconds for it, and `answer` for what is asked on it.

        Both are the pool's timeout by default. Raises ShardUnavailable where none could be made or no answer came,
        ShardBusy where all are in use, UsageError after `close`.
        """
        pool = await self._opened()
        with self.shard.translate():
            try:
                conn = await pool.getconn(self._config.timeout if timeout is None else timeout)
            except PoolTimeout as error:
                if self._in_use >= self._config.max_size:
                    raise ShardBusy(
                        f"shard {self.shard.name!r}: all {self._in_use} connections are in use (pool.max_size)",
                        shard=self.shard.name,
                    ) from error
                raise
            except PoolClosed as error:  # while this call waited
                raise UsageError("the client is closed") from error
        self._in_use += 1
        try:
            async with self.shard.deadline(conn, answer or self._config.timeout, "a client's request"):
                yield conn
        except ShardUnavailable as error:
            if not isinstance(error, ShardBusy):
                await conn.close()
            raise
        finally:
            self._in_use -= 1
            if not conn.closed and self.shard.demoted(conn):
                await conn.close()
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
            check=self._check,
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

    async def _check(self, conn: AsyncConnection[Any]) -> None:
        """Raises where the server has closed the connection. An idle one has nothing to say but goodbye."""
        said = select.poll()  # select() cannot watch a descriptor above 1023
        said.register(conn.fileno(), select.POLLIN)
        if said.poll(0):
            timer = Timer(conn, self._config.connect_timeout)
            try:
                await AsyncConnectionPool.check_connection(conn)
            finally:
                timer.stop()
        if conn.closed:
            raise psycopg.OperationalError("the connection is closed")


async def _configure(conn: Conn) -> None:
    arrays.register(conn.adapters)
