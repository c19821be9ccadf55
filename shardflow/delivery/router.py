"""Which shard a workflow id belongs to, and which shards answer.

The map is what the reachable shards say of themselves, and of the others what was last heard; a write that was routed
by a stale one is refused by the shard (`MapChanged`), and the map is asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from ..core.slotmap import SlotMap, merge_views
from ..errors import ClusterError, ShardUnavailable
from ..model import ClusterConfig
from ..storage import cluster
from ..storage.pools import Pool
from ..storage.shard import Shard

#: Seconds for which a shard that did not answer is left alone when ids are drawn; doubled each time, up to the limit.
FIRST_REST = 0.5
LONGEST_REST = 10.0


class Router:
    """The slot map, a pool per shard, and the shards' health.

    Arguments: `config`, the cluster's.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self.pools: Mapping[str, Pool] = {s.name: Pool(Shard(s), config.pool) for s in config.shards}
        self._map: SlotMap | None = None
        self._loading = asyncio.Lock()
        self._down: dict[str, tuple[float, float]] = {}

    async def load(self, *, stale: SlotMap | None = None) -> SlotMap:
        """The slot map; asked for where there is none yet, or the one at hand is `stale`.

        Raises ShardUnavailable where no shard answers, ClusterError where they are not the configured cluster.
        """
        async with self._loading:
            if self._map is None or self._map is stale:
                answers = await cluster.survey(self._config, [pool.shard for pool in self.pools.values()])
                for name, answer in answers.items():
                    if isinstance(answer, ShardUnavailable):
                        self.failed(name)
                merged = merge_views(cluster.heard(answers))
                unknown = set(merged.owners) - set(self.pools)
                if unknown:
                    raise ClusterError(
                        f"the cluster has shards that the configuration lacks: {', '.join(sorted(unknown))}"
                    )
                self._map = merged
            return self._map

    @property
    def known(self) -> SlotMap | None:
        """The slot map as far as it was asked for."""
        return self._map

    def pool(self, shard: str) -> Pool:
        return self.pools[shard]

    async def generation(self, slot_map: SlotMap, shard: str) -> int:
        """The generation to name to the shard; asked of it where it was away when the map was made."""
        if shard in slot_map.generations:
            return slot_map.generations[shard]
        async with self.pool(shard).connection() as conn:
            return (await cluster.expect(self.pool(shard).shard, conn, self._config)).generation

    def failed(self, shard: str) -> None:
        """The shard did not answer."""
        _, rest = self._down.get(shard, (0.0, FIRST_REST / 2))
        rest = min(rest * 2, LONGEST_REST)
        self._down[shard] = (time.monotonic() + rest, rest)

    def answered(self, shard: str) -> None:
        """The shard answered."""
        self._down.pop(shard, None)

    def healthy(self, shard: str) -> bool:
        """Whether the shard answered last time, or has rested long enough to be tried."""
        return shard not in self._down or time.monotonic() >= self._down[shard][0]

    def choice(self, slot_map: SlotMap) -> frozenset[str]:
        """The shards to draw ids for: those that have slots and are healthy; all that have slots where none is."""
        owners = frozenset(slot_map.owners)
        return frozenset(shard for shard in owners if self.healthy(shard)) or owners

    async def close(self) -> None:
        await asyncio.gather(*(pool.close() for pool in self.pools.values()))
