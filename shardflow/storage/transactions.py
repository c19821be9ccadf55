"""Transactions of users' functions on a shard, each of which commits with the checkpoint of the step that it is.

Guarantee: the function's writes and the checkpoint commit together or not at all, once for each step, and only while
the lease is held. A commit whose answer was lost is looked up before the function runs again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
from psycopg import pq
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from ..errors import ShardflowError, ShardUnavailable
from ..model import PoolConfig
from .leases import Checkpoint
from .lent import LentAsync
from .shard import Shard
from .transaction_talk import READ_COMMITTED, Done, Talk, Work

#: Seconds between looks whether a former transaction of the same step has ended.
FORMER_LOOK = 0.02


class Transactions:
    """The transactions of one worker on one shard, at most `config.max_size` at once; opens connections as needed.

    Arguments: `shard`; `config`, seconds and sizes; `patience`, seconds for the server's answer to what is ours.
    """

    def __init__(self, shard: Shard, config: PoolConfig, patience: float) -> None:
        self.shard = shard
        self.talk = Talk(shard)
        self._config = config
        self._patience = patience
        self._places = asyncio.Semaphore(config.max_size)
        self._opening = asyncio.Lock()
        self._pool: AsyncConnectionPool[LentAsync] | None = None
        self._closing: dict[str, asyncio.Future[Done]] = {}
        self._closed = False

    def closing(self, wf: int) -> asyncio.Future[Done] | None:
        """A commit of the workflow that is under way."""
        here = [closing for step, closing in self._closing.items() if step.startswith(f"{wf}:")]
        return next((closing for closing in here if not closing.done()), None)

    async def close(self) -> None:
        """Closes the connections; those in use when they are given back."""
        async with self._opening:
            self._closed = True
            if self._pool is not None:
                await self._pool.close()

    async def commit(self, work: Work, function: Callable[[Any], Awaitable[bytes]]) -> Done:
        """One try: runs `function` on a connection in a transaction and commits what it writes with what it returns.

        Raises LeaseLost, MapChanged or Conflict (nothing was written), ShardUnavailable (it may have been committed;
        the next try finds that).
        """
        async with self._places:
            conn = await self._connection()
            done: Done | None = None
            try:
                done = await self._try(conn, work, function)
                return done
            finally:
                await self._give_back(conn, done)

    async def fail(self, work: Work, error: str) -> Done:
        """Records that the step has failed for good. Raises as `commit` does."""
        async with self._places:
            conn = await self._connection()
            try:
                recorded = await self._open(conn, work)
                return Done(recorded=recorded) if recorded else await self._close(conn, work, None, error)
            finally:
                await self._give_back(conn, None)

    async def _try(self, conn: LentAsync, work: Work, function: Callable[[Any], Awaitable[bytes]]) -> Done:
        recorded = await self._open(conn, work)
        if recorded is not None:
            return Done(recorded=recorded)
        conn.lent = True
        try:
            output = await function(conn)
            self.talk.status(conn, work)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return self.talk.failed(conn, work, error)
        finally:
            conn.lent = False
        # Not to be interrupted: whoever ends the run may rely on it that nothing is written afterwards.
        closing = self._closing[work.step] = asyncio.ensure_future(self._close(conn, work, output, None))
        try:
            return await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait([closing])
            raise
        finally:
            del self._closing[work.step]

    async def _open(self, conn: LentAsync, work: Work) -> Checkpoint | None:
        """Begins; answers the step's checkpoint where there is one."""
        talk = self.talk
        async with self.shard.deadline(conn, self._patience, "the begin of a transaction"):
            with talk.explained():
                while True:
                    if work.isolation != READ_COMMITTED:  # would count as reading what others write
                        found = await (await conn.execute(*talk.lookup(work))).fetchone()
                        if found is not None:
                            return talk.checkpoint(work, found)
                    async with conn.pipeline():
                        _, taken, *then = [await conn.execute(*ask) for ask in talk.opening(work)]
                    if talk.taken(work, await taken.fetchone()):
                        return talk.checkpoint(work, await then[0].fetchone() if then else None)
                    await conn.execute(b"ROLLBACK")
                    await conn.execute(*talk.end_former(work))
                    await asyncio.sleep(FORMER_LOOK)

    async def _close(self, conn: LentAsync, work: Work, output: bytes | None, error: str | None) -> Done:
        talk = self.talk
        conn.restore()
        try:
            async with self.shard.deadline(conn, self._patience, "the end of a transaction"), conn.pipeline():
                *_, committed, _ = [await conn.execute(*ask) for ask in talk.closing(work, output, error)]
        except psycopg.Error as refusal:
            done = talk.refused(conn, work, refusal)
            if done is not None:
                return done
        else:
            if committed.statusmessage == "COMMIT":
                return Done()
        # Recorded by another transaction; or, where the server has rolled back without a word, not at all.
        with talk.explained():
            await conn.execute(b"ROLLBACK")
            row = await (await conn.execute(*talk.lookup(work))).fetchone()
        if row is None:
            raise ShardUnavailable(f"shard {self.shard.name!r}: the server rolled back", shard=self.shard.name)
        return Done(recorded=talk.checkpoint(work, row))

    # -- connections

    async def _connection(self) -> LentAsync:
        pool = await self._opened()
        with self.shard.translate():
            try:
                return await pool.getconn(self._config.timeout)
            except PoolClosed as error:
                raise ShardUnavailable("the worker leaves the shard", shard=self.shard.name) from error
            except PoolTimeout as error:
                raise ShardUnavailable(
                    f"shard {self.shard.name!r} does not answer: {error}", shard=self.shard.name
                ) from error

    async def _opened(self) -> AsyncConnectionPool[LentAsync]:
        async with self._opening:
            if self._closed:
                raise ShardUnavailable("the worker leaves the shard", shard=self.shard.name)
            if self._pool is None:
                self._pool = AsyncConnectionPool(
                    self.shard.config.dsn,
                    kwargs=self.shard.connect_arguments("transaction", self._config.connect_timeout),
                    connection_class=LentAsync,
                    min_size=0,
                    max_size=self._config.max_size,
                    timeout=self._config.timeout,
                    reconnect_timeout=self._config.timeout,
                    name=f"shardflow transactions {self.shard.name}",
                    open=False,
                )
                await self._pool.open()
            return self._pool

    async def _give_back(self, conn: LentAsync, done: Done | None) -> None:
        """Leaves nothing of the transaction; a connection about which that is not certain is closed."""
        try:
            if not self.talk.clean(conn, done):
                await conn.close()
            elif conn.info.transaction_status != pq.TransactionStatus.IDLE:
                conn.restore()
                async with self.shard.deadline(conn, self._patience, "a rollback"):
                    await conn.rollback()
        except (psycopg.Error, ShardflowError):
            await conn.close()
        finally:
            assert self._pool is not None
            await self._pool.putconn(conn)
