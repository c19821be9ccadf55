"""Workers killed and frozen and servers crashed under load, judged from outside by ledger and checker.

`SHARDFLOW_FAULT_WORKFLOWS` sets the number of workflows (default 3000; the figures of record are taken at 30000), by
which the number of faults grows. A failing run prints its seed: `SHARDFLOW_FAULT_SEED` replays its schedule, and
`SHARDFLOW_FAULT_PLAN` one from a file, a fault a line.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import audit, schedule
from faults.feed import Feed
from faults.history import read
from faults.schedule import Kind
from faults.stage import ENDED, LEFT, Stage, stage, until
from faults.storm import LONGEST, Storm
from support.lab import Lab

from shardflow.embedded import Servers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd and /proc")]

COUNT = int(os.environ.get("SHARDFLOW_FAULT_WORKFLOWS", "3000"))
WORKERS = 4
TTL = 2.0


@pytest.fixture(scope="module")
def four() -> Iterator[Lab]:
    """Four servers of this module's own, since tests crash them."""
    settings = {"max_connections": "150", "shared_buffers": "64MB", "recovery_init_sync_method": "syncfs"}
    with Servers(4, settings=settings) as started:
        yield Lab(started)


@contextmanager
def feeding(on: Stage, count: int) -> Iterator[Feed]:
    """Submits so many workflows."""
    with Feed(on.path, on.ledger.address, LONGEST) as feed:
        feed.limit = count
        yield feed
        feed.check()


def storm(on: Stage, count: int, numbers: dict[Kind, int]) -> None:
    """Carries a drawn schedule out and demands a clean verdict."""
    seed = schedule.seed()
    faults = schedule.given() or schedule.plan(
        seed, numbers, workers=WORKERS, servers=len(on.shards), freeze=TTL, down=0.5
    )
    print(f"SHARDFLOW_FAULT_SEED={seed}")
    made = Storm(on, faults, count, WORKERS)
    report = made.run()
    verdict = on.verdict()
    print(f"{count} workflows in {report.seconds:.0f} s, {report}\n{verdict}")
    assert verdict.clean, f"SHARDFLOW_FAULT_SEED={seed}, logs in {on.logs}\n{verdict}"
    assert verdict.accepted == count
    assert verdict.fired == len(faults)
    assert verdict.replays > 0, "no workflow was replayed: the faults hit nothing"


@pytest.mark.timeout(150 + COUNT // 20)
def test_killed_and_frozen_workers_lose_nothing_and_repeat_nothing(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, ttl=TTL) as on:
        storm(on, COUNT, {Kind.KILL_WORKER: COUNT // 300, Kind.FREEZE_WORKER: COUNT // 1000})


@pytest.mark.timeout(150 + COUNT // 20)
def test_crashed_servers_beside_killed_workers_lose_nothing_and_repeat_nothing(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, ttl=TTL) as on:
        numbers = {Kind.KILL_WORKER: 3, Kind.FREEZE_WORKER: 1, Kind.STOP_SERVER: 2, Kind.KILL_SERVER: 2}
        storm(on, COUNT, {kind: number * max(1, COUNT // 3000) for kind, number in numbers.items()})


def test_a_worker_frozen_beyond_its_lease_repeats_nothing_when_it_wakes_up(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, ttl=TTL) as on, feeding(on, 1500) as feed:
        frozen, _ = on.start_worker(), on.start_worker()
        until(lambda: on.held(frozen) >= 50, "the worker to be frozen holds claims")
        on.freeze(frozen)
        held = on.held(frozen)
        assert held > 0, "the fault came after the work was done"
        until(lambda: on.leases(frozen) == 0, "its leases are ended")
        until(lambda: feed.answered == 1500, "its work ends elsewhere")
        frozen.send(signal.SIGCONT)
        until(lambda: on.leases(frozen), "it goes on with new leases")
        verdict = on.verdict()
        assert verdict.clean, verdict
        assert verdict.replays >= held
        assert read(on.ledger.lines()).leases, "the ledger does not tell the leases that steps ran under"


def test_killed_worker_and_killed_server_hold_up_no_other_server(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, shards=3) as on, feeding(on, 1500) as feed:
        doomed, _ = on.start_worker(), on.start_worker()
        until(lambda: on.total(ENDED) >= 150, "a tenth has ended")
        until(lambda: on.held(doomed) >= 50, "the worker to be killed holds claims")
        doomed.kill()
        assert on.held(doomed) > 0, "the fault came after the work was done"
        on.start_worker()
        until(lambda: feed.submitted == 1500, "all are submitted")
        on.server(1).kill()
        until(lambda: on.ask(0, LEFT) == 0 and on.ask(2, LEFT) == 0, "the others' work ends meanwhile")
        on.server(1).start()
        assert until(lambda: on.ask(1, LEFT) is not None, "it is back")
        assert on.ask(1, LEFT), "the fault came after the work was done"
        until(lambda: feed.answered == 1500, "all have ended")
        verdict = on.verdict()
        assert verdict.clean, verdict
        assert verdict.replays > 0


# -- positive controls: a guard is removed, and the same faults must turn the checker red


def test_the_checker_turns_red_when_workflows_go_on_before_the_commit(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, mutants=["acknowledge_before_commit"]) as on, feeding(on, 1500) as feed:
        worker = on.start_worker()
        while feed.answered < 1500 and not on.verdict().repeated:
            done = on.total(ENDED)
            until(lambda before=done: on.total(ENDED) > before, "it goes on")
            worker.kill()
            worker = on.start_worker()
        assert "C" in on.verdict().found, "the mutant was not noticed"


def test_the_checker_turns_red_when_the_fence_is_removed(four: Lab, tmp_path: Path) -> None:
    with stage(four, tmp_path, ttl=TTL) as on:
        for dsn in on.dsns.values():
            audit.remove_fence(dsn)
        with feeding(on, 100_000):
            workers = [on.start_worker(), on.start_worker()]
            for turn in range(10):
                frozen = workers[turn % 2]
                until(lambda held=frozen: on.held(held) >= 50, "the worker to be frozen holds claims")
                on.freeze(frozen)
                until(lambda gone=frozen: on.leases(gone) == 0, "its leases are ended")
                frozen.send(signal.SIGCONT)
                until(lambda back=frozen: on.leases(back), "it goes on with new leases")
                if on.verdict().dead:
                    break
        assert "F" in on.verdict().found, "the mutant was not noticed"
