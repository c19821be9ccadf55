"""The same as `transactions` for plain `def` functions, each in a thread of its own while it lasts."""

from __future__ import annotations

import asyncio
import enum
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import psycopg
from psycopg import pq
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from ..errors import ShardflowError, ShardUnavailable, StepTimeout
from ..model import PoolConfig
from .deadline import cut
from .leases import Checkpoint
from .lent import Lent
from .shard import Shard
from .transaction_talk import READ_COMMITTED, Done, Talk, Work
from .transactions import FORMER_LOOK

#: Seconds between looks at how late a thread is.
LOOK = 0.1


class _Phase(enum.Enum):
    """Where a transaction is."""

    OPENING = enum.auto()
    FUNCTION = enum.auto()
    CLOSING = enum.auto()


class _Watch:
    """Watches over a thread's connection from outside: a thread cannot be stopped, but its connection can be cut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conn: Lent | None = None
        self._phase = _Phase.OPENING
        self._due = 0.0
        self._given_up = False

    def enter(self, conn: Lent, phase: _Phase, seconds: float | None) -> None:
        """The thread begins a phase, which may take so long. Raises ShardUnavailable where nobody waits any more."""
        with self._lock:
            if self._given_up:
                raise ShardUnavailable("nobody waits for this transaction any more")
            self._conn, self._phase = conn, phase
            self._due = time.monotonic() + (1e9 if seconds is None else seconds)

    def leave(self) -> None:
        with self._lock:
            self._conn = None

    def late(self) -> _Phase | None:
        """The phase that has taken too long; its connection is cut now."""
        with self._lock:
            if self._conn is None or time.monotonic() < self._due:
                return None
            cut(self._conn)
            self._given_up = self._phase is _Phase.FUNCTION
            return self._phase

    def give_up(self) -> bool:
        """Nobody waits any more: cuts the connection, unless the commit is under way. Whether it did."""
        with self._lock:
            if self._phase is _Phase.CLOSING:
                return False
            self._given_up = True
            if self._conn is not None:
                cut(self._conn)
            return True


class PlainTransactions:
    """At most `config.max_size` threads with a connection each; arguments as of `Transactions`."""

    def __init__(self, shard: Shard, config: PoolConfig, patience: float) -> None:
        self.shard = shard
        self.talk = Talk(shard)
        self._config = config
        self._patience = patience
        self._threads: ThreadPoolExecutor | None = None
        self._pool: ConnectionPool[Lent] | None = None
        self._under_way: dict[str, tuple[_Watch, asyncio.Future[Done]]] = {}
        self._door = threading.Lock()
        self._closed = False

    def closing(self, wf: int) -> asyncio.Future[Done] | None:
        """A commit of the workflow that is under way; where there is none, none begins any more."""
        here = [each for step, each in self._under_way.items() if step.startswith(f"{wf}:")]
        return next((done for watch, done in here if not done.done() and not watch.give_up()), None)

    async def close(self) -> None:
        """Closes the connections; those in use when their functions return."""
        with self._door:
            self._closed = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            await asyncio.to_thread(self._pool.close, 1.0)

    async def commit(self, work: Work, function: Callable[[Any], bytes], timeout: float | None) -> Done:
        """See `Transactions.commit`. The function may take `timeout` seconds; then the try has failed with
        StepTimeout, and whatever its thread still does is in vain."""
        if self._closed:
            raise ShardUnavailable("the worker leaves the shard", shard=self.shard.name)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._config.max_size, thread_name_prefix="shardflow transaction")
        watch = _Watch()
        thread = self._threads.submit(copy_context().run, self._run, watch, work, function, timeout)
        done = asyncio.wrap_future(thread)
        self._under_way[work.step] = watch, done
        try:
            while not (await asyncio.wait([done], timeout=LOOK))[0]:
                if watch.late() is _Phase.FUNCTION:
                    done.add_done_callback(_ignore)
                    return Done(failure=StepTimeout(work.name, timeout or 0.0))
        except asyncio.CancelledError:
            if not thread.cancel() and not watch.give_up():
                await asyncio.wait([done])
            done.add_done_callback(_ignore)
            raise
        finally:
            del self._under_way[work.step]
        return done.result()

    def _run(self, watch: _Watch, work: Work, function: Callable[[Any], bytes], timeout: float | None) -> Done:
        conn = self._connection()
        done: Done | None = None
        try:
            done = self._try(conn, watch, work, function, timeout)
            return done
        finally:
            watch.leave()
            self._give_back(conn, done)

    def _try(
        self, conn: Lent, watch: _Watch, work: Work, function: Callable[[Any], bytes], timeout: float | None
    ) -> Done:
        watch.enter(conn, _Phase.OPENING, self._patience)
        recorded = self._open(conn, work)
        if recorded is not None:
            return Done(recorded=recorded)
        watch.enter(conn, _Phase.FUNCTION, timeout)
        conn.lent = True
        try:
            output = function(conn)
            self.talk.status(conn, work)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            return self.talk.failed(conn, work, error)
        finally:
            conn.lent = False
        watch.enter(conn, _Phase.CLOSING, self._patience)
        return self._close(conn, work, output)

    def _open(self, conn: Lent, work: Work) -> Checkpoint | None:
        talk = self.talk
        with talk.explained():
            while True:
                if work.isolation != READ_COMMITTED:
                    found = conn.execute(*talk.lookup(work)).fetchone()
                    if found is not None:
                        return talk.checkpoint(work, found)
                with conn.pipeline():
                    _, taken, *then = [conn.execute(*ask) for ask in talk.opening(work)]
                if talk.taken(work, taken.fetchone()):
                    return talk.checkpoint(work, then[0].fetchone() if then else None)
                conn.execute(b"ROLLBACK")
                conn.execute(*talk.end_former(work))
                time.sleep(FORMER_LOOK)

    def _close(self, conn: Lent, work: Work, output: bytes) -> Done:
        talk = self.talk
        conn.restore()
        try:
            with conn.pipeline():
                *_, committed, _ = [conn.execute(*ask) for ask in talk.closing(work, output, None)]
        except psycopg.Error as refusal:
            done = talk.refused(conn, work, refusal)
            if done is not None:
                return done
        else:
            if committed.statusmessage == "COMMIT":
                return Done()
        with talk.explained():
            conn.execute(b"ROLLBACK")
            row = conn.execute(*talk.lookup(work)).fetchone()
        if row is None:
            raise ShardUnavailable(f"shard {self.shard.name!r}: the server rolled back", shard=self.shard.name)
        return Done(recorded=talk.checkpoint(work, row))

    # -- connections

    def _connection(self) -> Lent:
        pool = self._opened()
        with self.shard.translate():
            try:
                return pool.getconn(self._config.timeout)
            except PoolClosed as error:
                raise ShardUnavailable("the worker leaves the shard", shard=self.shard.name) from error
            except PoolTimeout as error:
                raise ShardUnavailable(
                    f"shard {self.shard.name!r} does not answer: {error}", shard=self.shard.name
                ) from error

    def _opened(self) -> ConnectionPool[Lent]:
        with self._door:
            if self._closed:
                raise ShardUnavailable("the worker leaves the shard", shard=self.shard.name)
            if self._pool is None:
                self._pool = ConnectionPool(
                    self.shard.config.dsn,
                    kwargs=self.shard.connect_arguments("transaction", self._config.connect_timeout),
                    connection_class=Lent,
                    min_size=0,
                    max_size=self._config.max_size,
                    timeout=self._config.timeout,
                    reconnect_timeout=self._config.timeout,
                    num_workers=1,
                    name=f"shardflow plain transactions {self.shard.name}",
                    open=False,
                )
                self._pool.open()
            return self._pool

    def _give_back(self, conn: Lent, done: Done | None) -> None:
        try:
            if not self.talk.clean(conn, done):
                conn.close()
            elif conn.info.transaction_status != pq.TransactionStatus.IDLE:
                conn.restore()
                conn.rollback()
        except (psycopg.Error, ShardflowError):
            conn.close()
        finally:
            assert self._pool is not None
            self._pool.putconn(conn)


def _ignore(done: asyncio.Future[Done]) -> None:
    if not done.cancelled():
        done.exception()
