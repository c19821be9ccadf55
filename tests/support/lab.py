"""Clusters for tests: every test gets databases of its own, cloned from a template that holds a whole cluster."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
from psycopg import sql

from shardflow import ClusterConfig, LeaseConfig, PoolConfig, ShardConfig
from shardflow.embedded import Server, Servers
from shardflow.storage import cluster
from support import memory

#: Short, so that a dead worker's lease is not waited for long.
LEASE = LeaseConfig(ttl=5.0, renew=0.5, watch=0.15)
POOL = PoolConfig(timeout=5.0, connect_timeout=3.0)


class Lab:
    """Makes and drops the databases of tests on running servers.

    Arguments: `servers`; shard number k of a cluster lies on server k modulo their number.
    """

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        #: In memory a copy of files is quicker than one through the log; on a disk it waits for two checkpoints.
        self._strategy = sql.SQL("FILE_COPY" if memory.holds(servers) else "WAL_LOG")
        self._templates: dict[tuple[int, int], ClusterConfig] = {}
        self._numbers = itertools.count(1)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="lab")

    def server(self, shard: int) -> Server:
        """The server of shard number `shard`."""
        return self.servers[shard % len(self.servers)]

    def clone(self, shards: int, slots: int, lease: LeaseConfig, pool: PoolConfig) -> ClusterConfig:
        """A new initialised cluster named "test" with shards "s0" and so on."""
        key = (shards, slots)
        if key not in self._templates:
            empty = self.empty(shards, slots)
            in_thread(cluster.init(empty))
            self._templates[key] = empty
        template = self._templates[key]
        return self._configured([database(s) for s in template.shards], slots, lease, pool)

    def empty(self, shards: int, slots: int, lease: LeaseConfig = LEASE, pool: PoolConfig = POOL) -> ClusterConfig:
        """A configuration with new empty databases."""
        return self._configured(["template0"] * shards, slots, lease, pool)

    def _configured(self, templates: list[str], slots: int, lease: LeaseConfig, pool: PoolConfig) -> ClusterConfig:
        names = [f"t{os.getpid()}_{next(self._numbers)}" for _ in templates]
        made = [
            self._pool.submit(self._create, k, name, t)
            for k, (name, t) in enumerate(zip(names, templates, strict=True))
        ]
        for each in made:
            each.result()
        shards = tuple(
            ShardConfig(f"s{k}", self.server(k).dsn.removesuffix("/postgres") + f"/{name}")
            for k, name in enumerate(names)
        )
        return ClusterConfig("test", shards, slots, lease, pool)

    def drop(self, config: ClusterConfig) -> None:
        """Drops the cluster's databases, whoever is connected; those of a server that is down now are left behind.

        It runs beside the next test, which may kill servers and must be the only one that starts them.
        """
        gone = [self._pool.submit(self._drop, k, database(s)) for k, s in enumerate(config.shards)]
        for each in gone:
            each.result()

    def admin(self, shard: int) -> psycopg.Connection[Any]:
        """A connection to the server of a shard, not to the shard's database."""
        return psycopg.connect(self.server(shard).dsn, autocommit=True, connect_timeout=20)

    def _create(self, shard: int, name: str, template: str) -> None:
        with self.admin(shard) as conn:
            conn.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY {}").format(
                    sql.Identifier(name), sql.Identifier(template), self._strategy
                )
            )

    def _drop(self, shard: int, name: str) -> None:
        with contextlib.suppress(psycopg.OperationalError), self.admin(shard) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def database(shard: ShardConfig) -> str:
    """The name of the shard's database."""
    return shard.dsn.rsplit("/", 1)[1]


def with_pool(config: ClusterConfig, **changes: Any) -> ClusterConfig:
    """The same cluster with other pool settings."""
    return replace(config, pool=replace(config.pool, **changes))


def in_thread(coroutine: Any) -> Any:
    """Runs a coroutine to its end in a loop of its own, also where a loop is running already."""
    answers: list[Any] = []

    def run() -> None:
        answers.append(asyncio.run(coroutine))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return answers[0]
