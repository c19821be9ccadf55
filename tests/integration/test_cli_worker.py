"""`shardflow worker run` and `shardflow dev` as processes: draining, leaving at once, and the supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.look import one, rows

from shardflow import Client, ClusterConfig, Status
from shardflow.embedded import watch
from shardflow.embedded.watch import is_alive

MODULE = """
import time
from pathlib import Path
import shardflow

app = shardflow.App("cli")

@app.step
def hold(name: str) -> str:
    Path(name + ".began").touch()
    while not Path(name + ".go").exists():
        time.sleep(0.005)
    return name

@app.step
def after(name: str) -> str:
    return name + " after"

@app.workflow
def held(name: str) -> str:
    return after(hold(name))

@app.workflow
def quick(value: int) -> int:
    return value + 1
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Polls until the condition answers something true, which is returned."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return answer


class Process:
    """`shardflow` with some words, in a folder, in a session of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self._log = folder / f"log-{time.monotonic_ns()}"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "shardflow.cli", *words],
                cwd=folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def said(self, text: str) -> bool:
        return text in self.log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: int, *, group: bool = False) -> None:
        if group:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.log}") from None

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `shardflow` processes in a folder with the module `shop`; they end with the test."""
    (tmp_path / "shop.py").write_text(MODULE)
    started: list[Process] = []

    def start(*words: str) -> Process:
        started.append(Process(tmp_path, *words))
        return started[-1]

    yield start
    for process in started:
        process.end()
    away = tmp_path / ".shardflow" / "dev" / "servers" / watch.AWAY
    if away.is_symlink():  # where the servers' user cannot enter the test's folder
        until(lambda: not list(away.glob("pg*/postmaster.pid")), "the servers end")
        shutil.rmtree(away.resolve())


@pytest.fixture
def config(shard_config: ClusterConfig, tmp_path: Path) -> ClusterConfig:
    """A cluster of one shard, described by `shardflow.yaml` in the folder."""
    data = {"name": shard_config.name, "slots": shard_config.slots, "lease": asdict(shard_config.lease)}
    shards = [{"name": s.name, "dsn": s.dsn} for s in shard_config.shards]
    (tmp_path / "shardflow.yaml").write_text(yaml.safe_dump(data | {"shards": shards}))
    return shard_config


def leases(config: ClusterConfig) -> list[str]:
    return [row[0] for row in rows(config, "SELECT worker FROM lease ORDER BY lease")]


def pids(config: ClusterConfig) -> set[int]:
    return {int(name.split(":")[1]) for name in leases(config)}


def began(folder: Path, name: str) -> Callable[[], bool]:
    return (folder / f"{name}.began").exists


def test_sigterm_drains_at_a_checkpoint(config: ClusterConfig, start: Start, tmp_path: Path) -> None:
    worker = start("worker", "run", "shop:app", "--name", "w", "--log-format", "json")
    with Client(config) as client:
        assert client.submit("quick", 1).result(30) == 2
        handle = client.submit("held", "x", id="x")
        until(began(tmp_path, "x"), "the step begins")
        worker.signal(signal.SIGTERM)
        until(lambda: worker.said('"message": "worker stops"'), "it drains")
        (tmp_path / "x.go").touch()
        assert worker.wait() == 0, worker.log
        assert leases(config) == []
        assert handle.status() is Status.READY
        assert [step.name for step in handle.steps()] == ["hold"]
        assert handle.info().attempt == 0
        start("worker", "run", "shop:app")
        assert handle.result(30) == "x after"


def test_a_grace_period_that_is_over_hands_back_a_step_under_way(
    config: ClusterConfig, start: Start, tmp_path: Path
) -> None:
    worker = start("worker", "run", "shop:app", "--grace", "0.1")
    with Client(config) as client:
        handle = client.submit("held", "x", id="x")
        until(began(tmp_path, "x"), "the step begins")
        worker.signal(signal.SIGINT)
        assert worker.wait() == 0, worker.log
        assert leases(config) == []
        assert handle.status() is Status.READY
        assert handle.steps() == []


def test_a_second_sigterm_leaves_at_once(config: ClusterConfig, start: Start, tmp_path: Path) -> None:
    worker = start("worker", "run", "shop:app", "--name", "w")
    with Client(config) as client:
        client.submit("held", "x", id="x")
        until(began(tmp_path, "x"), "the step begins")
        worker.signal(signal.SIGTERM)
        until(lambda: worker.said("worker stops"), "it drains")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1, worker.log
    assert leases(config) == ["w"]


@pytest.mark.parametrize("more", [(), ("--processes", "2")], ids=["one", "supervised"])
@pytest.mark.parametrize(
    ("target", "complaint"), [("shpo:app", 'did you mean "shop"'), ("shop:ap", 'did you mean "app"')]
)
def test_an_app_that_is_not_there_is_wrong_usage(
    config: ClusterConfig, start: Start, target: str, complaint: str, more: tuple[str, ...]
) -> None:
    worker = start("worker", "run", target, *more)
    assert worker.wait() == 2
    assert complaint in worker.log
    assert "Traceback" not in worker.log


def test_the_supervisor_replaces_a_killed_process_and_they_end_with_it(config: ClusterConfig, start: Start) -> None:
    supervisor = start("worker", "run", "shop:app", "--processes", "2")
    first = until(lambda: len(pids(config)) == 2 and pids(config), "two workers")
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    second = until(lambda: victim not in pids(config) and len(pids(config)) == 2 and pids(config), "another one")
    assert len(second & first) == 1
    assert supervisor.said("worker process ended; another is started")
    with Client(config) as client:
        assert client.submit("quick", 1).result(30) == 2

    supervisor.signal(signal.SIGKILL)
    until(lambda: not any(map(is_alive, second)), "the workers end too")
    assert leases(config) == []  # they drained
    assert supervisor.wait() == -signal.SIGKILL


def test_a_signal_to_the_whole_group_drains_supervised_workers(
    config: ClusterConfig, start: Start, tmp_path: Path
) -> None:
    supervisor = start("worker", "run", "shop:app", "--processes", "2")
    until(lambda: len(pids(config)) == 2, "two workers")
    with Client(config) as client:
        handle = client.submit("held", "x", id="x")
        until(began(tmp_path, "x"), "the step begins")
        supervisor.signal(signal.SIGINT, group=True)
        until(lambda: supervisor.log.count("worker stops") == 2, "both drain")
        (tmp_path / "x.go").touch()
        assert supervisor.wait() == 0, supervisor.log
        assert [step.name for step in handle.steps()] == ["hold"]
    assert leases(config) == []


def test_a_second_signal_ends_supervised_workers_at_once(config: ClusterConfig, start: Start, tmp_path: Path) -> None:
    supervisor = start("worker", "run", "shop:app", "--processes", "2")
    workers = until(lambda: len(pids(config)) == 2 and pids(config), "two workers")
    with Client(config) as client:
        client.submit("held", "x", id="x")
        until(began(tmp_path, "x"), "the step begins")
        supervisor.signal(signal.SIGTERM)
        until(lambda: supervisor.log.count("worker stops") == 2, "both drain")
        supervisor.signal(signal.SIGTERM)
        assert supervisor.wait(30) == 1, supervisor.log
    assert not any(map(is_alive, workers))
    assert one(config, "SELECT count(*) FROM outcome") == 0


def test_status_is_watched_until_interrupted(config: ClusterConfig, start: Start) -> None:
    watching = start("cluster", "status", "--watch", "--interval", "0.1", "--json")
    until(lambda: watching.log.count("\n") >= 3, "three looks")
    watching.signal(signal.SIGINT)
    assert watching.wait() == 0, watching.log
    assert {json.loads(line)["shards"][0]["shard"] for line in watching.log.splitlines()} == {"s0"}


def test_dev_keeps_its_data_between_runs(start: Start, tmp_path: Path) -> None:
    path = tmp_path / ".shardflow" / "dev" / "cluster.yaml"
    words = ("dev", "shop:app", "--shards", "2")
    for run in (1, 2):
        dev = start(*words)
        until(lambda dev=dev: dev.said(f"export SHARDFLOW_CONFIG={path}\n"), "the cluster is up")
        assert path.stat().st_mode & 0o777 == 0o600
        with Client.from_config(path) as client:
            if run == 1:
                assert client.submit("quick", 1, id="a").result(30) == 2
            assert client.info("a").status is Status.SUCCEEDED
            assert client.submit("quick", 1, id=f"b{run}").result(60) == 2, "the worker has started"
        refused = start("dev", "shop:app", "--reset", "--yes")
        assert refused.wait() == 1
        assert refused.said("is in use")
        dev.signal(signal.SIGINT, group=True)
        assert dev.wait() == 0, dev.log
    other = start("dev", "shop:app", "--shards", "3")
    assert other.wait() == 1
    assert other.said("has the data of 2 shards, not 3: add --reset")
    fresh = start(*words, "--reset", "--yes")
    until(lambda: fresh.said("export SHARDFLOW_CONFIG"), "the cluster is up")
    with Client.from_config(path) as client:
        assert client.submit("quick", 5, id="a").result(30) == 6
    fresh.signal(signal.SIGTERM)
    assert fresh.wait() == 0, fresh.log
