"""A rebalancer without a worker: `shardflow rebalancer run`.

It stands for election on the first shard that answers, and keeps it as long as it renews it.
"""

from __future__ import annotations

import asyncio
import logging

from ..errors import ShardflowError
from ..model import ClusterConfig
from ..storage import cluster, rebalance
from ..storage.ending import end
from ..storage.shard import Shard
from .rebalancer import Rebalancer
from .survey import Survey

log = logging.getLogger("shardflow.rebalancer")


async def run_alone(config: ClusterConfig, name: str) -> None:
    """Stands and decides until cancelled, then resigns.

    Raises ClusterError where a shard that answers is not part of the cluster, ShardUnavailable where none answers.
    """
    shards = [Shard(shard) for shard in config.shards]
    cluster.heard(await cluster.survey(config, shards))
    rebalancer = Rebalancer(config, name, told=False)
    survey = Survey(shards)
    working = asyncio.create_task(rebalancer.run())
    held: str | None = None
    try:
        while True:
            held = await _stand(config, rebalancer, survey, held)
            done, _ = await asyncio.wait([working], timeout=min(1.0, config.lease.renew))
            for task in done:
                task.result()
    finally:
        await end([working])
        if held is not None:
            try:
                await survey.one(held, lambda shard, conn: rebalance.resign(shard, conn, name))
            except ShardflowError:
                pass
        await survey.close()


async def _stand(config: ClusterConfig, rebalancer: Rebalancer, survey: Survey, held: str | None) -> str | None:
    """Takes or renews the seat on the first shard that answers; answers which one is held."""
    for shard in config.shards:
        if survey.quiet(shard.name):
            continue
        try:
            term = await survey.one(
                shard.name, lambda s, conn: rebalance.stand(s, conn, rebalancer.name, None, config.lease.ttl)
            )
        except ShardflowError as error:
            log.warning("a shard does not answer", extra={"shard": shard.name, "error": str(error)})
            rebalancer.seat(shard.name, None)
            continue
        if held is not None and held != shard.name:
            rebalancer.seat(held, None)
        rebalancer.seat(shard.name, term)
        return shard.name if term is not None else None
    return None
