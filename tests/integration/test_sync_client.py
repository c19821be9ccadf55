"""The synchronous client: the same methods as the asynchronous one, and the same answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.look import assert_all_done
from support.work import running

from shardflow import (
    App,
    AsyncClient,
    AsyncHandle,
    Client,
    ClusterConfig,
    Handle,
    ResultTimeout,
    Status,
    UsageError,
    WorkflowConflict,
    WorkflowFailed,
    WorkflowNotFound,
)

#: Of the asynchronous client's public names, what is only for its handles.
INTERNAL = {"waiter"}


def public(kind: type) -> dict[str, Any]:
    """The methods that users call, with what corresponds between the faces set equal."""
    return {
        name: value
        for name, value in inspect.getmembers(kind)
        if not name.startswith("_") and name not in INTERNAL and callable(value)
    }


def signature(function: Callable[..., Any]) -> list[tuple[str, Any, Any, str]]:
    answer = [
        (p.name, p.kind, p.default, str(p.annotation).replace("Async", ""))
        for p in inspect.signature(function).parameters.values()
    ]
    returns = str(inspect.signature(function).return_annotation).replace("Async", "")
    return [*answer, ("return", None, None, returns)]


@pytest.mark.parametrize(("asynchronous", "synchronous"), [(AsyncClient, Client), (AsyncHandle, Handle)])
def test_both_faces_have_the_same_methods_and_signatures(asynchronous: type, synchronous: type) -> None:
    ours, theirs = public(asynchronous), public(synchronous)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 4
    for name in ours:
        assert signature(ours[name]) == signature(theirs[name]), name
        if not inspect.ismethod(ours[name]):  # a class method, such as from_config, is plain in both
            assert inspect.iscoroutinefunction(ours[name]), name
        assert not inspect.iscoroutinefunction(theirs[name]), name
        assert inspect.getdoc(theirs[name]), name


def test_both_clients_are_context_managers_of_their_kind() -> None:
    assert {"__enter__", "__exit__"} <= set(dir(Client))
    assert {"__aenter__", "__aexit__"} <= set(dir(AsyncClient))


def test_both_handles_have_the_same_attributes(cluster_config: ClusterConfig) -> None:
    with Client(cluster_config) as client:
        handle = client.submit("anything", 1, id="it")
        inner = handle._handle
        shown = {name: value for name, value in vars(inner).items() if not name.startswith("_")}
        assert shown == {name: value for name, value in vars(handle).items() if not name.startswith("_")}
        assert repr(handle) == repr(inner).replace("AsyncHandle", "Handle")


app = App("sync")


@app.step
def half(x: int) -> float:
    return x / 2


@app.workflow
def halve(x: int) -> float:
    return half(x)


@app.workflow
async def fail(text: str) -> None:
    raise LookupError(text)


@contextmanager
def worker_in_thread(config: ClusterConfig) -> Iterator[None]:
    """A worker in a loop of its own, as a synchronous program would see it: elsewhere."""
    started, stop, failure = threading.Event(), threading.Event(), list[BaseException]()

    async def serve() -> None:
        async with running(config, app):
            started.set()
            await asyncio.to_thread(stop.wait)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failure.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(60)
        yield
    finally:
        stop.set()
        thread.join()
    assert not failure


def test_the_round_trip_without_asyncio(cluster_config: ClusterConfig) -> None:
    with worker_in_thread(cluster_config), Client(cluster_config) as client:
        handle = client.submit(halve, 5, id="five")
        assert handle.result(30) == 2.5
        assert handle.status() is Status.SUCCEEDED
        assert handle.info().shard == handle.shard
        assert [s.output for s in handle.steps()] == [b"2.5"]
        assert client.submit(halve, 5, id="five").id == client.get("five").id == "five"
        assert client.get("five", halve).result(0.5) == 2.5
        assert client.info("five").name == "halve"
        assert len(client.steps("five")) == 1
        many = client.submit_many(halve.call(n) for n in range(200))
        assert [h.result(30) for h in many] == [n / 2 for n in range(200)]
        with pytest.raises(WorkflowConflict):
            client.submit(halve, 6, id="five")
        with pytest.raises(WorkflowNotFound):
            client.get("six")
        with pytest.raises(WorkflowFailed, match="LookupError: gone"):
            client.submit(fail, "gone").result(30)
        with pytest.raises(ResultTimeout):
            client.submit(halve, 1, queue="nobody serves this").result(0.05)


def test_one_client_serves_many_threads(cluster_config: ClusterConfig) -> None:
    with worker_in_thread(cluster_config), Client(cluster_config) as client, ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda n: client.submit(halve, n % 20, id=f"n{n % 20}").result(30), range(100))
        assert list(answers) == [n % 20 / 2 for n in range(100)]
    assert_all_done(cluster_config, workflows=20, steps=20)


def test_a_client_is_made_from_a_configuration_file(cluster_config: ClusterConfig, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    shards = [{"name": s.name, "dsn": s.dsn} for s in cluster_config.shards]
    path.write_text(json.dumps({"name": "test", "slots": cluster_config.slots, "shards": shards}))
    with Client.from_config(path) as client:
        assert client.submit(halve, 1, id="a").shard in {"s0", "s1", "s2"}


def test_closing_twice_is_harmless_and_using_a_closed_client_is_not(cluster_config: ClusterConfig) -> None:
    with Client(cluster_config) as client:
        client.submit(halve, 1, id="a")
        client.close()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.submit(halve, 1, id="a")


def test_a_client_that_never_connected_closes(cluster_config: ClusterConfig) -> None:
    Client(cluster_config).close()
