"""The same measurement of shardflow, and of the floor: as `shardflow bench throughput` runs them."""

from __future__ import annotations

from typing import Any

from ground import Databases

from shardflow.bench import throughput
from shardflow.bench.arena import Ground
from shardflow.bench.processes import floor
from shardflow.bench.throughput import ThroughputOptions
from shardflow.model import ClusterConfig, ShardConfig

PAYLOAD = 100
_SHARED = (
    "submit_per_s",
    "worker_cpu_us_per_workflow",
    "postgres_cpu_us_per_workflow",
    "submit_client_cpu_us_per_workflow",
    "submit_postgres_cpu_us_per_workflow",
    "wal_bytes_per_workflow",
    "submit_wal_bytes_per_workflow",
    "worker_max_rss_mb",
)


def play_shardflow(databases: Databases, *, workflows: int, steps: int) -> dict[str, Any]:
    """One worker process for each server; the clock runs from the leases being held to the last worker being idle."""
    shards = tuple(ShardConfig(f"s{number}", dsn) for number, dsn in enumerate(databases.dsns))
    place = Ground(shards, ClusterConfig("bench", shards), databases.servers)
    options = ThroughputOptions(workflows=workflows, steps=steps, payload=PAYLOAD, workers=len(shards))
    found = throughput.drained(options, place, lambda phase, done, of: None)
    return {
        "processes": len(shards),
        "workflows": workflows,
        "seconds": found["seconds"],
        "workflows_per_s": round(workflows / found["seconds"], 1),
        **{name: found[name] for name in _SHARED},
        "finished": found["workflows_found"],
        "steps_found": found["steps_found"],
        "verified": not any(found[fault] for fault in ("lost", "duplicated", "wrong", "left")),
    }


def play_floor(databases: Databases, *, workflows: int, steps: int) -> dict[str, Any]:
    """The bare loop written with psycopg, which counts its own rows."""
    found = floor(databases.dsns[0], workflows=workflows, steps=steps, payload=PAYLOAD, driver="psycopg")
    if "error" in found:
        raise RuntimeError(f"floor: {found['error']}")
    return {
        "workflows": workflows,
        "processes": 1,
        "seconds": round(workflows / found["floor_workflows_per_s"], 3),
        "workflows_per_s": round(found["floor_workflows_per_s"], 1),
        "submit_per_s": found.get("submit_per_s"),
        "worker_cpu_us_per_workflow": found.get("python_cpu_us_per_workflow"),
        "postgres_cpu_us_per_workflow": found.get("postgres_cpu_us_per_workflow"),
        "wal_bytes_per_workflow": found.get("wal_bytes_per_workflow"),
        "verified": True,
    }
