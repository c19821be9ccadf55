"""Ends a wait for a server that keeps its connection open and says nothing: frozen, or behind a half-open link.

libpq waits for ever there. The timer shuts the socket down instead, so that the wait ends in an ordinary error.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from typing import Any

import psycopg
from psycopg import AsyncConnection, BaseConnection

#: Seconds more for an answer that has arrived and was not read yet, because this process was busy or frozen itself.
GRACE = 1.0


class Timer:
    """Shuts a connection's socket down after `seconds`, unless it is stopped before.

    The connection's own idea of its socket is asked for at that moment, in the thread that uses it, so a descriptor
    that was closed and given to somebody else meanwhile is never touched.
    """

    __slots__ = ("_conn", "_handle", "_loop", "fired")

    def __init__(self, conn: AsyncConnection[Any], seconds: float) -> None:
        self.fired = False
        self._conn = conn
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(seconds, self._due, GRACE)

    def stop(self) -> None:
        """The answer is there, or nobody waits for it any more."""
        self._handle.cancel()

    def _due(self, grace: float) -> None:
        if grace and _has_news(self._conn):
            self._handle = self._loop.call_later(grace, self._due, 0.0)
        else:
            self.fired = True
            cut(self._conn)


def cut(conn: BaseConnection[Any]) -> None:
    """Shuts the connection's socket down: whoever waits for it gets an error at once. Harmless on a closed one."""
    try:
        mine = socket.socket(fileno=os.dup(conn.fileno()))
    except (psycopg.Error, OSError):
        return  # libpq has closed it
    with mine:
        try:
            mine.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was quicker


def _has_news(conn: AsyncConnection[Any]) -> bool:
    """Whether something has come that was not read yet."""
    try:
        said = select.poll()
        said.register(conn.fileno(), select.POLLIN)
        return bool(said.poll(0))
    except (psycopg.Error, OSError):
        return False
