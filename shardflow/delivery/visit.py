"""One errand to one shard, again where the slots turn out to have changed meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..core.slotmap import SlotMap
from ..errors import MapChanged
from ..storage.shard import Conn, Shard
from .router import Router

T = TypeVar("T")

#: Tries with a newer map each; the slots of a shard change seldom.
TRIES = 3

#: What is to be done there: with the shard, a connection for the moment, and the generation to name to it.
Errand = Callable[[Shard, Conn, int], Awaitable[T]]


async def visit(router: Router, where: Callable[[SlotMap], str], errand: Errand[T]) -> T:
    """Does `errand` at the shard that `where` chooses by the slot map.

    Raises ShardUnavailable, MapChanged where the slots keep changing, and what the errand raises.
    """
    slot_map = await router.load()
    for last in (False,) * (TRIES - 1) + (True,):
        pool = router.pool(where(slot_map))
        try:
            generation = await router.generation(slot_map, pool.shard.name)
            async with pool.connection() as conn:
                return await errand(pool.shard, conn, generation)
        except MapChanged:
            slot_map = await router.load(stale=slot_map)
            if last:
                raise
    raise AssertionError("unreachable")
