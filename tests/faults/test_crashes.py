"""Two of everything at once: workers and servers killed under load, judged from outside by the ledger.

`SHARDFLOW_CRASH_WORKFLOWS` sets the number of workflows (default 3000; the figure of record is taken at 50000).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import yaml
from faults import worker_main
from faults.ledger import Verdict, check, expected, read_ledger

import shardflow
from shardflow.embedded import Servers
from shardflow.storage import cluster

TOP = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("SHARDFLOW_CRASH_WORKFLOWS", "3000"))


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


@dataclass
class Stage:
    """Three servers, a cluster, worker processes and a ledger."""

    servers: Servers
    config: Path
    ledger: Path
    mutants: list[str] = field(default_factory=list)
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start_worker(self) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, worker_main.__file__, str(self.config), str(self.ledger), *self.mutants],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TOP,
            env={**os.environ, "PYTHONPATH": str(TOP / "tests")},
        )
        self.workers.append(worker)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "started\n"
        return worker

    def ask(self, server: int, query: str) -> int:
        with psycopg.connect(self.servers[server].dsn) as conn:
            row = conn.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    def ended(self) -> int:
        return sum(self.ask(i, "SELECT count(*) FROM shardflow.outcome") for i in range(len(self.servers)))

    def claims_of(self, worker: subprocess.Popen[str]) -> int:
        query = (
            "SELECT count(*) FROM shardflow.claim c JOIN shardflow.lease l USING (lease), unnest(c.wfs) u (wf)"
            f" WHERE l.worker LIKE '%:{worker.pid}:%'"
            " AND NOT EXISTS (SELECT FROM shardflow.outcome o WHERE o.wf = u.wf)"
        )
        return sum(self.ask(i, query) for i in range(len(self.servers)))

    def leases_of(self, worker: subprocess.Popen[str]) -> int:
        query = f"SELECT count(*) FROM shardflow.lease WHERE worker LIKE '%:{worker.pid}:%'"
        return sum(self.ask(i, query) for i in range(len(self.servers)))

    def verdict(self, acknowledged: set[str]) -> Verdict:
        with self.ledger.open() as lines:
            return check(lines, acknowledged, {server.name: server.dsn for server in self.servers})


@contextmanager
def stage(tmp_path: Path, mutants: list[str] | None = None, ttl: float = 4) -> Iterator[Stage]:
    with ExitStack() as stack:
        servers = stack.enter_context(Servers(3))
        path = tmp_path / "cluster.yaml"
        shards = [{"name": server.name, "dsn": server.dsn} for server in servers]
        path.write_text(yaml.safe_dump({"name": "faults", "slots": 64, "shards": shards, "lease": {"ttl": ttl}}))
        asyncio.run(cluster.init(shardflow.load_config(path)))
        made = Stage(servers, path, tmp_path / "ledger", mutants or [])
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.kill()
                worker.wait()


def test_killed_worker_and_killed_server_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    with stage(tmp_path) as on, shardflow.Client.from_config(on.config) as client:
        acknowledged: set[str] = set()

        def submit(first: int, last: int) -> None:
            calls = [worker_main.chain.call(f"run-{i}").set(id=f"run-{i}") for i in range(first, last)]
            acknowledged.update(handle.id for handle in client.submit_many(calls))

        doomed, _ = on.start_worker(), on.start_worker()
        submit(0, COUNT // 3)
        until(lambda: on.ended() >= COUNT // 10, "a tenth has ended")
        submit(COUNT // 3, 2 * COUNT // 3)
        until(lambda: on.claims_of(doomed) >= 50, "the worker to be killed holds claims")
        doomed.kill()
        doomed.wait()
        assert on.claims_of(doomed) > 0, "the fault came after the work was done"
        on.start_worker()

        until(lambda: on.ended() >= COUNT // 2, "half has ended")
        submit(2 * COUNT // 3, COUNT)
        left = on.ask(
            1, "SELECT (SELECT count(*) FROM shardflow.workflow) - (SELECT count(*) FROM shardflow.outcome)"
        )
        assert left > 0, "the fault came after the work was done"
        on.servers[1].kill()
        others = [on.ask(i, "SELECT count(*) FROM shardflow.outcome") for i in (0, 2)]
        until(lambda: on.ask(0, "SELECT count(*) FROM shardflow.ready") == 0, "the others go on meanwhile")
        on.servers[1].start()

        until(lambda: on.ended() >= COUNT, "all have ended", 60 + COUNT / 300)
        assert [on.ask(i, "SELECT count(*) FROM shardflow.outcome") for i in (0, 2)] >= others
        verdict = on.verdict(acknowledged)
        print(f"{COUNT} workflows, {verdict.starts} step starts, {verdict.replays} replays: {verdict}")
        assert verdict.clean, verdict
        assert len(acknowledged) == COUNT
        assert verdict.replays > 0, "no workflow was replayed: the faults hit nothing"


def test_a_worker_frozen_beyond_its_lease_repeats_nothing_when_it_wakes_up(tmp_path: Path) -> None:
    with stage(tmp_path, ttl=2) as on, shardflow.Client.from_config(on.config) as client:
        frozen, _ = on.start_worker(), on.start_worker()
        calls = [worker_main.chain.call(f"run-{i}").set(id=f"run-{i}") for i in range(1500)]
        acknowledged = {handle.id for handle in client.submit_many(calls)}
        until(lambda: on.claims_of(frozen) >= 50, "the worker to be frozen holds claims")
        frozen.send_signal(signal.SIGSTOP)
        held = on.claims_of(frozen)
        assert held > 0, "the fault came after the work was done"
        until(lambda: on.leases_of(frozen) == 0, "its leases are ended")
        until(lambda: on.ended() == 1500, "its work ends elsewhere")
        frozen.send_signal(signal.SIGCONT)
        until(lambda: on.leases_of(frozen) == len(on.servers), "it goes on with new leases")
        verdict = on.verdict(acknowledged)
        assert verdict.clean, verdict
        assert verdict.replays >= held


def test_the_ledger_turns_red_when_workflows_go_on_before_the_commit(tmp_path: Path) -> None:
    """The positive control: with this guard removed, the same fault must be noticed."""
    with stage(tmp_path, ["acknowledge_before_commit"]) as on, shardflow.Client.from_config(on.config) as client:
        on.start_worker()
        calls = [worker_main.chain.call(f"run-{i}").set(id=f"run-{i}") for i in range(1500)]
        acknowledged = {handle.id for handle in client.submit_many(calls)}
        done = 0
        while done < 1500 and not on.verdict(acknowledged).repeated:
            until(lambda done=done: on.ended() > done, "it goes on")
            on.workers[-1].kill()
            on.workers[-1].wait()
            on.start_worker()
            done = on.ended()
        assert on.verdict(acknowledged).repeated, "the mutant was not noticed"


def test_the_checker_sees_a_step_that_starts_after_its_acknowledgement() -> None:
    verdict = Verdict()
    read_ledger(["R a - 1", "S a 0 1", "A a 0 1", "S a 1 1", "R a - 2", "S a 1 2", "A a 1 2"], verdict)
    assert verdict.clean
    assert (verdict.starts, verdict.replays) == (3, 1)
    read_ledger(["S b 0 1", "A b 0 1", "S b 0 2"], verdict)
    assert verdict.repeated == ["b step 0"]


def test_expected_results_differ_between_workflows() -> None:
    assert len({expected(f"run-{i}") for i in range(100)}) > 90
