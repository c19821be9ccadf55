"""One connection in pipeline mode, binary both ways, and a meter of what it costs the server.

psycopg's list dumpers take 0.2 to 4 microseconds an element; the encoders here take 0.05 to 0.15.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer

try:
    import psutil
except ImportError:  # without it there are no CPU figures
    psutil = None  # type: ignore[assignment]

INT2, INT4, INT8, TEXT = 21, 23, 20, 25
INT4_ARRAY, INT8_ARRAY, TEXT_ARRAY, BYTEA_ARRAY = 1007, 1016, 1009, 1001


# A binary array: dimensions, has-null flag, element oid, length, lower bound; then (size, bytes) an element.
_HEAD = struct.Struct("!iiIii").pack
_EMPTY = struct.Struct("!iiI").pack
_SIZE = struct.Struct("!i").pack


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> struct.Struct:
    return struct.Struct("!" + f"i{code}" * count)


def int_array(values: Sequence[int], *, wide: bool = True) -> bytes:
    """Return ``values`` as a binary ``int8[]`` (``int4[]`` if not ``wide``); NULLs are not supported."""
    oid, size, code = (INT8, 8, "q") if wide else (INT4, 4, "i")
    count = len(values)
    if not count:
        return _EMPTY(0, 0, oid)
    flat = [size] * (2 * count)
    flat[1::2] = values
    return _HEAD(1, 0, oid, count, 1) + _packer(code, count).pack(*flat)


def bytes_array(values: Sequence[bytes], *, oid: int = 17) -> bytes:
    """Return ``values`` as a binary ``bytea[]`` (``text[]`` with ``oid=25``); NULLs are not supported."""
    count = len(values)
    if not count:
        return _EMPTY(0, 0, oid)
    parts: list[bytes] = [b""] * (2 * count)
    parts[0::2] = map(_SIZE, map(len, values))
    parts[1::2] = values
    return _HEAD(1, 0, oid, count, 1) + b"".join(parts)


def text_array(values: Sequence[str]) -> bytes:
    """Return ``values`` as a binary ``text[]`` in UTF-8; NULLs are not supported."""
    return bytes_array([value.encode() for value in values], oid=TEXT)


int8 = struct.Struct("!q").pack
int2 = struct.Struct("!h").pack
int4 = _SIZE


class FloorError(RuntimeError):
    """The floor did not do what it claims to measure."""


class Wire:
    """One connection in libpq's pipeline mode, with prepared statements and binary values both ways."""

    def __init__(
        self,
        dsn: str,
        statements: Mapping[str, tuple[str, Sequence[int]]],
        settings: Sequence[str] = (),
    ) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        for setting in settings:
            self.connection.execute(setting.encode())
        self._pg = self.connection.pgconn
        self._rows = Transformer(self.connection)
        for name, (text, types) in statements.items():
            self._check(self._pg.prepare(name.encode(), text.encode(), types), f"prepare {name}")
        self._pg.enter_pipeline_mode()

    def send(self, name: str, *values: bytes) -> None:
        """Queue one prepared statement with binary parameters."""
        self._pg.send_query_prepared(name.encode(), values, [pq.Format.BINARY] * len(values), pq.Format.BINARY)

    def sync(self) -> None:
        """End the transaction's pipeline and send everything that is queued."""
        self._pg.pipeline_sync()
        self._pg.flush()

    def receive(self, statements: Sequence[str], wanted: str | None = None) -> list[tuple[Any, ...]]:
        """Take the answers to ``statements`` and their sync; return the rows of the statement ``wanted``."""
        rows: list[tuple[Any, ...]] = []
        for name in statements:
            while (answer := self._pg.get_result()) is not None:
                self._check(answer, name)
                if name == wanted:
                    self._rows.set_pgresult(answer)
                    rows = self._rows.load_rows(0, answer.ntuples, tuple)
        answer = self._pg.get_result()
        if answer is None or answer.status != pq.ExecStatus.PIPELINE_SYNC:
            raise FloorError("the pipeline lost step with the server")
        return rows

    def _check(self, answer: Any, name: str) -> None:
        if answer.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise FloorError(f"{name}: {answer.error_message.decode(errors='replace').strip()}")

    def close(self) -> None:
        self.connection.close()


class ServerMeter:
    """CPU seconds of all processes of a local server, and its WAL position."""

    def __init__(self, control: psycopg.Connection[Any]) -> None:
        self._control = control
        self._postmaster: psutil.Process | None = None
        if psutil is None:
            return
        with contextlib.suppress(psutil.Error):
            backend = psutil.Process(control.info.backend_pid)
            parent = backend.parent()
            if parent is not None and "postgres" in backend.name():
                self._postmaster = parent

    def cpu(self) -> float | None:
        """Return user and system seconds of the postmaster's children that live now, or None."""
        if self._postmaster is None:
            return None
        total = 0.0
        for process in self._postmaster.children():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def wal(self) -> int:
        """Return the server's WAL insert position in bytes."""
        row = self._control.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        if row is None:
            raise FloorError("the server did not tell its WAL position")
        return int(row[0])
