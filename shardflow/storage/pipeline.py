"""Several statements as one round trip, handed to libpq directly.

psycopg's own pipeline costs some 60 µs of the event loop for each statement, and a turn has five to ten of them
(benchmarks/LOG.md). Guarantee: all is handed over before anything is waited for; afterwards the connection is either
ready for the next round trip, with nothing unread, or closed.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg import pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult

from .shard import Conn

T = TypeVar("T")

#: A statement with parameters of these types.
_Key = tuple[bytes, tuple[int, ...]]
#: What parameters are made by while the server is at what it has got.
_Later = Callable[[], Sequence[Any]]
#: Parameters as libpq takes them: values, types, formats.
_Dumped = tuple[Sequence[Any], tuple[int, ...], Sequence[pq.Format]]
#: What is prepared on each connection, with the names that the server has for it, which psycopg gives to nothing.
_prepared: WeakKeyDictionary[Conn, dict[_Key, bytes]] = WeakKeyDictionary()
_names = map(b"shardflow_%d".__mod__, itertools.count())
_numbered: dict[bytes, bytes] = {}

_FINE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
#: The server has not got a statement that was prepared: psycopg, or a pooler, has made the session forget all.
_FORGOTTEN = "26000"
#: What raises the error that since then the schema has changed, so that the answer would have other types of columns.
_CHANGED = ("0A000", "RevalidateCachedQuery")
#: Seconds for telling the server that a round trip was given up.
CANCEL_SECONDS = 2.0


class Reply:
    """What the server answers to one statement; to be read when `run` has returned."""

    __slots__ = ("_conn", "result")

    def __init__(self, conn: Conn) -> None:
        self._conn = conn  # not the pipeline, which has its replies: only the garbage collector would free them
        self.result: PGresult | None = None

    def rows(self, make: Callable[[Sequence[Any]], T]) -> list[T]:
        """The rows, each as `make` makes it of a sequence of its values."""
        assert self.result is not None
        loader = Transformer(self._conn)
        loader.set_pgresult(self.result)
        return loader.load_rows(0, self.result.ntuples, make)

    def one(self) -> tuple[Any, ...]:
        """The only row."""
        (row,) = self.rows(tuple)
        return row

    @property
    def tag(self) -> bytes:
        """The command that was done, as the server names it."""
        assert self.result is not None
        return self.result.command_status or b""


class Pipeline:
    """Statements for one round trip on `conn`, which nobody else uses meanwhile.

    Arguments: `conn`, in autocommit mode; `prepare`, whether its session remembers statements.
    """

    def __init__(self, conn: Conn, *, prepare: bool) -> None:
        self.conn = conn
        self._prepare = prepare
        self._dumper = Transformer(conn)
        self._asked: list[tuple[bytes, _Dumped | _Later, bool, Reply]] = []
        self._new: dict[_Key, bytes] = {}  # what this round trip prepares

    def add(self, statement: bytes, parameters: Sequence[Any] = (), *, binary: bool = False) -> Reply:
        """One more statement, with `%s` for each parameter; `binary`, whether it is answered in the binary format.

        Parameters that cannot be sent fail here, while nothing is on its way.
        """
        reply = Reply(self.conn)
        self._asked.append((statement, self._dump(parameters), binary, reply))
        return reply

    def add_later(self, statement: bytes, make: _Later, *, binary: bool = False) -> Reply:
        """The same with parameters that `make` gives while the server is already at the statements before.

        Where that fails the connection is closed, and nothing was done if the transaction's end is behind it.
        """
        reply = Reply(self.conn)
        self._asked.append((statement, make, binary, reply))
        return reply

    def _dump(self, parameters: Sequence[Any]) -> _Dumped:
        if not parameters:
            return (), (), ()
        dumper = self._dumper
        values = dumper.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        return values, tuple(dumper.types or ()), tuple(dumper.formats or ())

    async def run(self) -> None:
        """Sends all and waits for the answers; afterwards the replies can be read.

        Raises psycopg's error for the first statement that failed, and OperationalError where the connection did.
        What is sent is to be one transaction. Cancelled, it has the server stop and closes the connection.
        """
        async with self.conn.lock:
            try:
                await self._exchange()
            except psycopg.Error as error:
                stale = error.sqlstate == _FORGOTTEN or (error.sqlstate, error.diag.source_function) == _CHANGED
                if not stale or not _prepared.pop(self.conn, None):
                    raise
                # Since a statement has failed nothing was done.
                self._asked.insert(0, (b"ROLLBACK", ((), (), ()), False, Reply(self.conn)))
                await self._exchange()

    async def _exchange(self) -> None:
        pgconn = self.conn.pgconn
        pgconn.enter_pipeline_mode()
        expected: list[Reply | tuple[_Key, bytes]] = []
        self._new.clear()
        try:
            for statement, given, binary, reply in self._asked:
                if callable(given):
                    pgconn.flush()  # as far as it goes without waiting
                    given = self._dump(given())
                self._send(statement, given, binary, expected)
                expected.append(reply)
            pgconn.pipeline_sync()
            results = await _Exchange(pgconn).results()
            pgconn.exit_pipeline_mode()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):  # nobody wants it: the server need not go on
                with suppress(Exception):
                    await self.conn.cancel_safe(timeout=CANCEL_SECONDS)
            pgconn.finish()  # it is not known what the server still does or says
            raise
        known = _prepared.setdefault(self.conn, {})
        for result, what in zip(results, expected, strict=True):
            if result.status not in _FINE:
                raise error_from_result(result, self.conn.info.encoding)
            if isinstance(what, Reply):
                what.result = result
            else:
                known[what[0]] = what[1]

    def _send(
        self, statement: bytes, dumped: _Dumped, binary: bool, expected: list[Reply | tuple[_Key, bytes]]
    ) -> None:
        """Hands one statement over; what is prepared for it is expected first."""
        pgconn, text = self.conn.pgconn, _numbered.get(statement) or _number(statement)
        values, types, formats = dumped
        answered = pq.Format.BINARY if binary else pq.Format.TEXT
        if not self._prepare:
            pgconn.send_query_params(text, values, types, formats, answered)
            return
        key = (statement, types)
        name = _prepared.get(self.conn, {}).get(key) or self._new.get(key)
        if name is None:
            name = self._new[key] = next(_names)
            pgconn.send_prepare(name, text, types)
            expected.append((key, name))
        pgconn.send_query_prepared(name, values, formats, answered)


def _number(statement: bytes) -> bytes:
    """With `$1`, `$2` and so on for each `%s`."""
    parts = re.split(rb"%s", statement)
    text = parts[0] + b"".join(b"$%d" % n + part for n, part in enumerate(parts[1:], 1))
    _numbered[statement] = text
    return text


class _Exchange:
    """The connection's side of a round trip: what is not sent yet, and what has come."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self._descriptor = pgconn.socket
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._results: list[PGresult] = []
        self._writing = False

    async def results(self) -> list[PGresult]:
        """All results up to the end of the pipeline."""
        self._loop.add_reader(self._descriptor, self._attempt, self._read)
        try:
            self._attempt(self._flush)
            await self._over
        finally:
            self._loop.remove_reader(self._descriptor)
            if self._writing:
                self._loop.remove_writer(self._descriptor)
        return self._results

    def _attempt(self, act: Callable[[], None]) -> None:
        if not self._over.done():
            try:
                act()
            except Exception as error:
                self._over.set_exception(error)

    def _flush(self) -> None:
        unsent = bool(self._pgconn.flush())
        if unsent and not self._writing:
            self._loop.add_writer(self._descriptor, self._attempt, self._flush)
        elif self._writing and not unsent:
            self._loop.remove_writer(self._descriptor)
        self._writing = unsent

    def _read(self) -> None:
        pgconn = self._pgconn
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # behind each statement
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError(pgconn.get_error_message())
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                self._over.set_result(None)
                return
            self._results.append(result)
        if self._writing:
            self._flush()  # the server may have waited until somebody read
