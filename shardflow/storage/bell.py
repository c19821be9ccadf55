"""The doorbell of a shard: hearing it, and ringing it for those who watch over the cluster's workers.

Submits ring it for work, see `submit.ring`. Who serves the shard in the same process need not wait for that.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from psycopg import sql

from .shard import Conn, Shard

#: What the bell says when a worker has come or goes; for work it says nothing.
FLEET = "fleet"

_near: defaultdict[tuple[str, str], list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]]] = defaultdict(list)


@contextmanager
def near(shard: Shard, rang: Callable[[], None]) -> Iterator[None]:
    """Within the block `rang` is called, in this event loop, when something was submitted to the shard in this
    process."""
    place = _near[shard.config.dsn, shard.config.schema]
    entry = (asyncio.get_running_loop(), rang)
    place.append(entry)
    try:
        yield
    finally:
        place.remove(entry)


def ring_near(shard: Shard) -> None:
    """Something was submitted to the shard; may be called in any thread."""
    for loop, rang in list(_near.get((shard.config.dsn, shard.config.schema), ())):
        with suppress(RuntimeError):  # that loop is closed
            loop.call_soon_threadsafe(rang)


async def listen(shard: Shard, conn: Conn) -> None:
    """From now on the connection hears the shard's bell; not where a pooler is in between."""
    if not shard.config.pooler:
        with shard.translate():
            await conn.execute(sql.SQL("LISTEN {}").format(sql.Identifier(shard.bell)))


async def hear(shard: Shard, conn: Conn, seconds: float, rang: Callable[[str], None]) -> None:
    """Waits so long, calling `rang` with what the bell says whenever it rings. Raises ShardUnavailable when the
    connection ends."""
    if shard.config.pooler:
        await asyncio.sleep(max(0.0, seconds))
        return
    with shard.translate():
        async for heard in conn.notifies(timeout=max(0.0, seconds)):
            rang(heard.payload)


async def tell(shard: Shard, conn: Conn, what: str) -> None:
    """Rings the bell and says so."""
    with shard.translate():
        await conn.execute(shard.statements("registry")["tell"], (what,))
