"""A cluster on embedded servers, and the configuration file that leads others to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from ..embedded import Servers
from ..model import ClusterConfig, ShardConfig


def describe(servers: Servers, name: str, slots: int) -> ClusterConfig:
    """The cluster that has one shard on each of the servers."""
    return ClusterConfig(name, tuple(ShardConfig(server.name, server.dsn) for server in servers), slots)


def write(config: ClusterConfig, path: Path) -> None:
    """Writes what `shardflow.config.load` reads; for the owner only, because it has passwords."""
    data: dict[str, Any] = {
        "name": config.name,
        "slots": config.slots,
        "shards": [{"name": shard.name, "dsn": shard.dsn.replace("$", "$$")} for shard in config.shards],
    }
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("# Written by shardflow at each start.\n")
        yaml.safe_dump(data, file, sort_keys=False)
    fresh.replace(path)
