"""Hearing the doorbell of a shard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from psycopg import sql

from .shard import Conn, Shard


async def listen(shard: Shard, conn: Conn) -> None:
    """From now on the connection hears the shard's bell; not where a pooler is in between."""
    if not shard.config.pooler:
        with shard.translate():
            await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(shard.bell)))


async def hear(shard: Shard, conn: Conn, seconds: float, rang: Callable[[], None]) -> None:
    """Waits so long, calling `rang` whenever the bell rings. Raises ShardUnavailable when the connection ends."""
    if shard.config.pooler:
        await asyncio.sleep(max(0.0, seconds))
        return
    with shard.translate():
        async for _ in conn.notifies(timeout=max(0.0, seconds)):
            rang()
