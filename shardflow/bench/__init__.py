"""Measures a cluster: `throughput`, with its floor and a check of every row, and `latency`, with the cost of idling.

Every run has schemas of its own, which are dropped at its end; nothing else on a server is touched.
"""

from shardflow.bench.latency import LatencyOptions, run_latency
from shardflow.bench.throughput import ThroughputOptions, run_throughput

__all__ = ["LatencyOptions", "ThroughputOptions", "run_latency", "run_throughput"]
