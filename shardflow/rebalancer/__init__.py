"""Who serves which shard: elected among the workers, decided from what the shards report, told as wishes."""

from .rebalancer import Rebalancer

__all__ = ["Rebalancer"]
