"""Looks at the shards that a worker does not serve, so that none is left alone when nobody decides.

Many workers look at many shards: each at few, in random order, at a pace that falls with their number.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from ..errors import ShardflowError, ShardUnavailable
from ..model import ClusterConfig
from ..storage import cluster, registry
from ..storage.ending import end
from ..storage.shard import Conn, Shard

log = logging.getLogger("shardflow.worker")

#: Seconds between looks, at least; more where more than this many workers have their home on one shard.
PACE = 0.5
CROWD = 2
#: Looks at once.
AT_ONCE = 4
#: Seconds for one look, and before a shard that did not answer is looked at again.
PATIENCE = 2.0
AGAIN = 3.0


class Scout:
    """Looks, and says what is short of workers.

    Arguments: `config`; `lanes`, the worker's; `unserved`, called for the shards to look at; `found`, called with
    the name of a shard where one of the lanes has no claimer.
    """

    def __init__(
        self,
        config: ClusterConfig,
        lanes: Sequence[str],
        unserved: Callable[[], Sequence[Shard]],
        found: Callable[[str], None],
    ) -> None:
        self.neighbours = 1
        self._config = config
        self._lanes = list(lanes)
        self._unserved = unserved
        self._found = found
        self._away: dict[str, float] = {}
        self._looks: dict[str, asyncio.Task[None]] = {}

    @property
    def away(self) -> set[str]:
        """Shards that did not answer the last look, or are not what they should be."""
        return set(self._away)

    async def first(self, shards: Sequence[Shard], level: int) -> list[str]:
        """Those of the shards where one of the lanes has fewer than `level` claimers, in random order.

        Raises what `cluster.heard` raises.
        """
        found: list[str] = []

        async def look(shard: Shard, conn: Conn) -> None:
            if self._fewer(await registry.claimers(shard, conn), level):
                found.append(shard.name)

        answers = await cluster.survey(self._config, shards, look)
        cluster.heard(answers)
        now = asyncio.get_running_loop().time()
        self._away = {name: now + AGAIN for name, answer in answers.items() if isinstance(answer, ShardflowError)}
        random.shuffle(found)
        return found

    async def run(self) -> None:
        """Looks until cancelled."""
        try:
            while True:
                await asyncio.sleep(max(PACE, PACE * self.neighbours / CROWD) * random.uniform(0.8, 1.2))
                now = asyncio.get_running_loop().time()
                names = [s for s in self._unserved() if s.name not in self._looks]
                ready = [s for s in names if self._away.get(s.name, 0.0) <= now]
                if ready and len(self._looks) < AT_ONCE:
                    shard = random.choice(ready)
                    task = asyncio.create_task(self._look(shard))
                    self._looks[shard.name] = task
                    task.add_done_callback(lambda _, name=shard.name: self._looks.pop(name, None))  # type: ignore[misc]
        finally:
            await end(list(self._looks.values()))

    async def _look(self, shard: Shard) -> None:
        try:
            async with (
                await shard.connect("scout", connect_timeout=PATIENCE) as conn,
                shard.deadline(conn, PATIENCE, "a scout's look"),
            ):
                await cluster.expect(shard, conn, self._config)
                claimers = await registry.claimers(shard, conn)
        except ShardflowError as error:
            self._away[shard.name] = asyncio.get_running_loop().time() + AGAIN
            if not isinstance(error, ShardUnavailable):
                log.warning("a shard cannot be served", extra={"shard": shard.name, "error": str(error)})
            return
        except Exception:
            log.exception("a look at a shard failed", extra={"shard": shard.name})
            return
        self._away.pop(shard.name, None)
        if self._fewer(claimers, 1):
            self._found(shard.name)

    def _fewer(self, claimers: dict[str, int], level: int) -> bool:
        """Whether one of the lanes has fewer claimers than that."""
        unknown = claimers.get("", 0)
        return any(claimers.get(lane, 0) + unknown < level for lane in self._lanes)
