"""Connections that are open and say nothing, or late: the work goes on, and nothing is locked for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from faults.nursery import Process
from faults.proxy import Trap, silence
from faults.proxy_link import Flow, Way
from faults.proxy_sweep import Sweep, sweeping
from faults.proxy_wire import Message
from faults.stage import LEFT, until
from support.lab import Lab

TTL = 2.0
#: Seconds beyond the lease's time within which a silent connection must have been given up and its locks be gone.
SLACK = 8.0
#: Workflows of three steps of up to so many seconds: twice what a worker has places for.
COUNT = 200
LONGEST = 0.8

OPEN = (
    "SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'shardflow commit%' AND xact_start IS NOT NULL"
)


@pytest.fixture
def sweep(lab: Lab, tmp_path: Path) -> Iterator[Sweep]:
    with sweeping(lab, tmp_path, ttl=TTL) as made:
        yield made


class Watcher:
    """Looks for the longest transaction of a commit loop, which locks its lease's row, in a thread; seconds."""

    def __init__(self, dsn: str) -> None:
        self.longest = 0.0
        self._dsn = dsn
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            while not self._ends.wait(0.05):
                self.longest = max([self.longest, *(row[1] for row in conn.execute(OPEN).fetchall())])


def in_a_batch(behind: int = 3) -> Callable[[Message], bool]:
    """Counts the messages after which the server has done so many statements of a batch, with more to come.

    Of a turn these are BEGIN, the fence, and what comes third.
    """
    done = 0

    def where(message: Message) -> bool:
        nonlocal done
        done = 0 if message.kind in "SQ" else done + (message.kind == "E")
        return message.kind == "E" and done == behind

    return where


@contextmanager
def at_work(sweep: Sweep) -> Iterator[Process]:
    """A worker behind the proxy in the middle of work; at the end all of it must have ended as it should."""
    name = sweep.next_name()
    worker = sweep.worker()
    until(lambda: f"shardflow commit {name}" in sweep.proxy.names(), "the worker is connected")
    prefix = sweep.submit(COUNT, LONGEST)
    until(lambda: sweep.ended(prefix) > COUNT // 20, "the work is under way")
    assert sweep.held(worker) > 0
    assert sweep.on.ask(0, LEFT) > COUNT // 2
    yield worker
    until(lambda: sweep.ended(prefix) == COUNT, "all work ends", 60)
    verdict = sweep.on.verdict()
    print(verdict)
    assert verdict.clean, f"logs in {sweep.on.logs}\n{verdict}"


def bond(sweep: Sweep, worker: Process) -> tuple[int | None, int | None]:
    """The worker's lease and its epoch, which a resume raises."""
    ask = "SELECT {} FROM shardflow.lease WHERE worker = %s UNION ALL SELECT 0 LIMIT 1"
    return sweep.on.ask(0, ask.format("lease"), worker.name), sweep.on.ask(0, ask.format("epoch"), worker.name)


@contextmanager
def silent(sweep: Sweep, *, peer: bool) -> Iterator[Process]:
    """A worker at work, in the block one of its connections falls silent. It must notice soon, and lock nothing."""
    with Watcher(sweep.on.dsns["s0"]) as watcher, at_work(sweep) as worker:
        if peer:
            on = sweep.on.start_worker()
            until(lambda: sweep.on.leases(on) == 1, "the peer serves, too")
        before = bond(sweep, worker)
        yield worker
        began = time.monotonic()
        until(lambda: bond(sweep, worker) != before, "the worker has given its connections up")
        noticed = time.monotonic() - began
    print(f"noticed after {noticed:.1f} s, the longest transaction took {watcher.longest:.1f} s")
    assert noticed < TTL + SLACK
    assert watcher.longest < TTL + SLACK


@pytest.mark.parametrize("peer", [True, False], ids=["with a peer", "alone"])
def test_half_a_batch_and_then_silence_locks_nothing_for_long(sweep: Sweep, peer: bool) -> None:
    """Only the commit loop's connection is silent: the lease goes on. The server waits for the rest of the batch,
    with the lease's row locked, and no timeout of its own ends that."""
    with silent(sweep, peer=peer) as worker:
        trap = sweep.proxy.trap(Trap(Way.UP, 1, silence, f"shardflow commit {worker.name}", False, in_a_batch()))
        assert trap.fired.wait(60)


@pytest.mark.parametrize(
    ("way", "roles", "peer"),
    [
        (Way.UP, ("keeper", "commit"), False),
        (Way.DOWN, ("keeper", "commit"), True),
        (Way.DOWN, ("keeper",), False),
        (Way.DOWN, ("commit",), False),
    ],
    ids=["sent", "answered, with a peer", "the keeper's", "the commit loop's"],
)
def test_a_half_open_worker_goes_on(sweep: Sweep, way: Way, roles: tuple[str, ...], peer: bool) -> None:
    """All that is sent one way over connections that are there is lost; new ones are well."""
    with silent(sweep, peer=peer) as worker:
        names = [f"shardflow {role} {worker.name}" for role in roles]
        for name in names:
            sweep.proxy.set(way, Flow.DROP, name=name)
        for name in names:
            until(lambda name=name: sweep.proxy.lost(name), f"{name} is silent")
        sweep.proxy.heal()


def test_a_parted_network_that_heals(sweep: Sweep) -> None:
    """Nothing comes through for longer than the lease lasts, and then all that was sent meanwhile."""
    with at_work(sweep) as worker:
        sweep.on.start_worker()
        for way in Way:
            sweep.proxy.set(way, Flow.HOLD)
        assert sweep.held(worker) > 0
        until(lambda: sweep.on.leases(worker) == 0, "its lease is ended")
        assert sweep.on.total(LEFT) > 0
        sweep.proxy.heal()
        until(lambda: sweep.on.leases(worker) == 1, "it goes on with another lease")


def test_a_door_that_is_shut_for_a_while(sweep: Sweep) -> None:
    """All connections are reset, and for a while none can be made."""
    with at_work(sweep) as worker:
        before = bond(sweep, worker)
        sweep.proxy.refuse()
        assert sweep.proxy.reset() > 0
        until(lambda: not sweep.proxy.names(), "it has no connection left")
        sweep.proxy.accept()
        until(lambda: bond(sweep, worker) != before, "it goes on")


def test_late_messages_change_nothing(sweep: Sweep) -> None:
    """50 ms each way."""
    for way in Way:
        sweep.proxy.set(way, delay=0.05)
    with at_work(sweep) as worker:
        before = bond(sweep, worker)
        until(lambda: sweep.on.total(LEFT) == 0, "all work ends")
        assert bond(sweep, worker) == before, "the lease was lost, or its connection"
