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
#: What is prepared on each connection, with the names that the server has for it, which psycopg gives to nothing.
_prepared: WeakKeyDictionary[Conn, dict[_Key, bytes]] = WeakKeyDictionary()
_names = map(b"shardflow_%d".__mod__, itertools.count())
_numbered: dict[bytes, bytes] = {}

_FINE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)
#: The server has not got a statement that was prepared: psycopg, or a pooler, has made the session forget all.
_FORGOTTEN = "26000"


class Reply:
    """What the server answers to one statement; to be read when `run` has returned."""

    __slots__ = ("_pipeline", "result")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.result: PGresult | None = None

    def rows(self, make: Callable[[Sequence[Any]], T]) -> list[T]:
        """The rows, each as `make` makes it of a sequence of its values."""
        assert self.result is not None
        loader = Transformer(self._pipeline.conn)
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
        self._asked: list[tuple[bytes, Sequence[Any], bool, Reply]] = []

    def add(self, statement: bytes, parameters: Sequence[Any] = (), *, binary: bool = False) -> Reply:
        """One more statement, with `%s` for each parameter; `binary`, whether it is answered in the binary format."""
        reply = Reply(self)
        self._asked.append((statement, parameters, binary, reply))
        return reply

    async def run(self) -> None:
        """Sends all and waits for the answers; afterwards the replies can be read.

        Raises psycopg's error for the first statement that failed, and OperationalError where the connection did.
        What is sent is to be one transaction. Cancelled, it closes the connection.
        """
        async with self.conn.lock:
            try:
                await self._exchange()
            except psycopg.Error as error:
                if error.sqlstate != _FORGOTTEN or not self._prepare:
                    raise
                # Since a statement was missing nothing was done.
                _prepared.pop(self.conn, None)
                self._asked.insert(0, (b"ROLLBACK", (), False, Reply(self)))
                await self._exchange()

    async def _exchange(self) -> None:
        pgconn = self.conn.pgconn
        pgconn.enter_pipeline_mode()
        expected: list[Reply | tuple[_Key, bytes]] = []
        try:
            for statement, parameters, binary, reply in self._asked:
                self._send(statement, parameters, binary, expected)
                expected.append(reply)
            pgconn.pipeline_sync()
            results = await _answers(pgconn)
        except BaseException:
            pgconn.finish()  # it is not known what the server still does or says
            raise
        pgconn.exit_pipeline_mode()
        known = _prepared.setdefault(self.conn, {})
        for result, what in zip(results, expected, strict=True):
            if result.status not in _FINE:
                raise error_from_result(result, self.conn.info.encoding)
            if isinstance(what, Reply):
                what.result = result
            else:
                known[what[0]] = what[1]

    def _send(
        self, statement: bytes, parameters: Sequence[Any], binary: bool, expected: list[Reply | tuple[_Key, bytes]]
    ) -> None:
        """Hands one statement over; what is prepared for it is expected first."""
        pgconn, text = self.conn.pgconn, _numbered.get(statement) or _number(statement)
        values: Sequence[Any] = ()
        types: tuple[int, ...] = ()
        formats: Sequence[pq.Format] = ()
        if parameters:
            dumper = self._dumper
            values = dumper.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
            types, formats = tuple(dumper.types or ()), dumper.formats or ()
        answered = pq.Format.BINARY if binary else pq.Format.TEXT
        if not self._prepare:
            pgconn.send_query_params(text, values, types, formats, answered)
            return
        key = (statement, types)
        if (name := _prepared.get(self.conn, {}).get(key)) is None:
            name = next(_names)
            pgconn.send_prepare(name, text, types)
            expected.append((key, name))
        pgconn.send_query_prepared(name, values, formats, answered)


def _number(statement: bytes) -> bytes:
    """With `$1`, `$2` and so on for each `%s`."""
    parts = re.split(rb"%s", statement)
    text = parts[0] + b"".join(b"$%d" % n + part for n, part in enumerate(parts[1:], 1))
    _numbered[statement] = text
    return text


async def _answers(pgconn: pq.abc.PGconn) -> list[PGresult]:
    """Sends what is not sent yet, and waits for all results up to the end of the pipeline."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    results: list[PGresult] = []
    descriptor, writing = pgconn.socket, False

    def flush() -> None:
        nonlocal writing
        unsent = bool(pgconn.flush())
        if unsent and not writing:
            loop.add_writer(descriptor, step, flush)
        elif writing and not unsent:
            loop.remove_writer(descriptor)
        writing = unsent

    def read() -> None:
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:  # behind each statement
                if pgconn.status == pq.ConnStatus.BAD:
                    raise psycopg.OperationalError(pgconn.get_error_message())
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                over.set_result(None)
                return
            results.append(result)
        if writing:
            flush()  # the server may have waited until somebody read

    def step(what: Callable[[], None]) -> None:
        if over.done():
            return
        try:
            what()
        except Exception as error:
            over.set_exception(error)

    loop.add_reader(descriptor, step, read)
    try:
        step(flush)
        await over
    finally:
        loop.remove_reader(descriptor)
        if writing:
            loop.remove_writer(descriptor)
    return results
