"""Real Postgres servers for the tests that ask for them: one set per process, and databases of its own per test."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from support import memory
from support.lab import LEASE, POOL, Lab

from shardflow import AsyncClient, ClusterConfig, LeaseConfig, PoolConfig
from shardflow.embedded import Servers
from shardflow.resources import folder

MakeCluster = Callable[..., ClusterConfig]

# On a slow or busy machine properties hold as well.
settings.register_profile("any pace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any pace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that at the end no process works on one while the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What was collected stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Three servers with the embedded defaults: durable, fsync on."""
    settings = {"max_connections": "100", "shared_buffers": "64MB"}
    if sys.platform == "linux":
        settings["recovery_init_sync_method"] = "syncfs"  # quick recovery, however many databases tests have left
    with memory.servers(3, settings) as started:
        yield started


@pytest.fixture(scope="session")
def lab(servers: Servers) -> Lab:
    return Lab(servers)


@pytest.fixture(scope="session")
def sweeper() -> Iterator[ThreadPoolExecutor]:
    """Drops databases behind the tests' back: a drop waits for a checkpoint."""
    with ThreadPoolExecutor(1, thread_name_prefix="sweeper") as pool:
        yield pool


@pytest.fixture
def make_cluster(lab: Lab, sweeper: ThreadPoolExecutor) -> Iterator[MakeCluster]:
    """Makes clusters "test" of shards "s0", "s1", …, dropped after the test.

    Arguments: `shards`, `slots`; `lease`, `pool`, the configuration's; `init=False` for empty databases.
    """
    made: list[ClusterConfig] = []

    def make(
        shards: int = 3,
        slots: int = 64,
        *,
        lease: LeaseConfig = LEASE,
        pool: PoolConfig = POOL,
        init: bool = True,
    ) -> ClusterConfig:
        config = lab.clone(shards, slots, lease, pool) if init else lab.empty(shards, slots, lease, pool)
        made.append(config)
        return config

    yield make
    for server in lab.servers:
        server.start()  # a test may have left it down
    swept: list[Future[None]] = [sweeper.submit(lab.drop, config) for config in made]
    for each in swept:
        each.add_done_callback(lambda done: done.result())


@pytest.fixture
def cluster_config(make_cluster: MakeCluster) -> ClusterConfig:
    """A cluster of three shards on three servers."""
    return make_cluster()


@pytest.fixture
def shard_config(make_cluster: MakeCluster) -> ClusterConfig:
    """A cluster of one shard."""
    return make_cluster(shards=1)


@pytest.fixture
async def client(cluster_config: ClusterConfig) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(cluster_config) as opened:
        yield opened


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(str(folder("benchmarks")))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load
