"""What the shards of a cluster have of a limit between them."""

from __future__ import annotations

from shardflow import ClusterConfig
from support.look import rows, total


def units(config: ClusterConfig, queue: str, kind: str) -> int:
    """The limit as the shards have it between them: their shares and what is on its way."""
    shares = total(config, f"SELECT sum(share) FROM quota WHERE queue = '{queue}' AND kind = '{kind}'")
    accepted = {
        (config.shards[k].name, *row)
        for k in range(len(config.shards))
        for row in rows(
            config, "SELECT donor, number FROM accepted WHERE queue = %s AND kind = %s", queue, kind, shard=k
        )
    }
    under_way = 0
    for k, shard in enumerate(config.shards):
        query = "SELECT target, number, units FROM granted WHERE queue = %s AND kind = %s"
        for target, number, given in rows(config, query, queue, kind, shard=k):
            under_way += given * ((target, shard.name, number) not in accepted)
    return shares + under_way
