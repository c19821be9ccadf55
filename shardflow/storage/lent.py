"""Connections that are lent to a user's function, which may do with them what it likes but end its transaction."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.rows import tuple_row

from ..errors import UsageError


def _refuse(what: str) -> UsageError:
    return UsageError(
        f"conn.{what}() is not for the function of a transaction: shardflow commits when it returns, together with"
        " the checkpoint, and rolls back when it raises; for a part that may be undone use conn.transaction()"
    )


class LentAsync(AsyncConnection[Any]):
    """For `async def` functions; while `lent`, its transaction is not the borrower's to end."""

    lent = False

    def restore(self) -> None:
        """Takes back what the borrower may have set on this object."""
        self.row_factory, self.cursor_factory = tuple_row, AsyncCursor

    async def commit(self) -> None:
        if self.lent:
            raise _refuse("commit")
        await super().commit()

    async def rollback(self) -> None:
        if self.lent:
            raise _refuse("rollback")
        await super().rollback()

    async def close(self) -> None:
        if self.lent:
            raise _refuse("close")
        await super().close()


class Lent(Connection[Any]):
    """For plain `def` functions."""

    lent = False

    def restore(self) -> None:
        """See `LentAsync`."""
        self.row_factory, self.cursor_factory = tuple_row, Cursor

    def commit(self) -> None:
        if self.lent:
            raise _refuse("commit")
        super().commit()

    def rollback(self) -> None:
        if self.lent:
            raise _refuse("rollback")
        super().rollback()

    def close(self) -> None:
        if self.lent:
            raise _refuse("close")
        super().close()
