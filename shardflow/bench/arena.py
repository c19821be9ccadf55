"""Where the bench runs: embedded servers or configured ones, and for each run a cluster in schemas of its own."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .. import config as configuration
from ..embedded import Servers
from ..errors import InvalidInput
from ..model import ClusterConfig, ShardConfig
from ..storage import cluster
from ..storage.shard import Shard, Statements

_TEXTS = {
    "drop": "DROP SCHEMA IF EXISTS {schema} CASCADE",
    "checkpoint": "CHECKPOINT",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """The servers: one shard on each of them per run, and the postmasters' process ids where they are ours."""

    shards: tuple[ShardConfig, ...]
    template: ClusterConfig
    servers: Servers | None

    @property
    def postmasters(self) -> list[int]:
        """Process ids of the embedded servers; empty for configured ones."""
        return [server.pid for server in self.servers] if self.servers is not None else []


@contextmanager
def ground(config: Path | None, shards: int | None, settings: Mapping[str, str]) -> Iterator[Ground]:
    """The servers for a bench.

    Arguments: `config`, the cluster's file (None: embedded servers, which end with the block); `shards`, how many
    (default: 1 embedded one, all that are configured); `settings`, Postgres settings of embedded servers.
    """
    if config is not None:
        if settings:
            raise InvalidInput("settings are for embedded servers only: leave them out, or leave out --config")
        template = configuration.load(config)
        if shards is not None and not 1 <= shards <= len(template.shards):
            raise InvalidInput(f"--shards {shards}: {config} has {len(template.shards)} shard(s)")
        yield Ground(template.shards[:shards], template, None)
        return
    with Servers(shards or 1, settings=settings) as servers:
        made = tuple(ShardConfig(server.name, server.dsn) for server in servers)
        yield Ground(made, ClusterConfig("bench", made), servers)


@asynccontextmanager
async def fresh_cluster(ground: Ground) -> AsyncIterator[ClusterConfig]:
    """A new, empty cluster on the servers; dropped at the end of the block."""
    schema = f"shardflow_bench_{secrets.token_hex(4)}"
    # Equal weights, so that every shard gets its share of the load; no labels, as the bench's workers have none.
    shards = tuple(replace(shard, schema=schema, weight=1.0, labels=()) for shard in ground.shards)
    config = replace(ground.template, name="bench", shards=shards)
    try:
        await cluster.init(config)
        yield config
    finally:
        await asyncio.gather(*(_drop(Shard(shard)) for shard in shards), return_exceptions=True)


async def _drop(shard: Shard) -> None:
    statements = Statements(_TEXTS, shard.names)
    async with await shard.connect("bench") as conn:
        with shard.translate():
            await conn.execute(statements["drop"])


async def quiet(ground: Ground) -> None:
    """Writes out what earlier runs left dirty, where we may, so that this run does not pay for it."""
    for config in ground.shards:
        shard = Shard(config)
        async with await shard.connect("bench") as conn:
            with contextlib.suppress(Exception), shard.translate():
                await conn.execute(Statements(_TEXTS, shard.names)["checkpoint"])
