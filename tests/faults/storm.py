"""A fault run: work, workers, and a schedule of faults that is carried out while there is work; then the checker.

Every fault is carried out at its share of the work, on its target or the next one that has work, and behind it one
looks whether work was left. Where it hit nothing it is repeated; only what hit is told to the ledger.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from faults.feed import Feed
from faults.nursery import Process
from faults.schedule import Fault, Kind
from faults.stage import ENDED, LEFT, Stage, until

#: Workflows in the cluster at a time, beyond those that the next fault waits for.
WINDOW = 400
#: Workflows given at a time to a fault that finds no work.
MORE = 100
#: Seconds of one step at the most.
LONGEST = 0.05
#: Seconds without any progress after which a run has failed.
STUCK = 45.0
#: Seconds between two looks at the work.
LOOK = 0.01


@dataclass
class Frozen:
    """A frozen worker: its place, until when at least, the fault's number, and what it held."""

    place: int
    until: float
    number: int
    held: int


@dataclass
class Report:
    """How a run went: faults carried out by kind, those that hit nothing and were repeated, seconds."""

    fired: dict[Kind, int] = field(default_factory=dict)
    missed: int = 0
    seconds: float = 0.0
    retried: int = 0


class Storm:
    """Carries out a schedule.

    Arguments: `stage`; `faults` in order; `total`, workflows; `workers` at a time.
    """

    def __init__(self, stage: Stage, faults: Sequence[Fault], total: int, workers: int) -> None:
        self.stage = stage
        self.report = Report()
        self._faults = faults
        self._due = deque(enumerate(faults))
        self._total = total
        self._extra = 0
        self._places: list[Process] = [stage.start_worker() for _ in range(workers)]
        self._frozen: Frozen | None = None
        self._ended = 0
        self._moved = time.monotonic()

    def run(self) -> Report:
        """Returns when all workflows have ended; the checker tells whether all faults were carried out until then.
        Raises AssertionError with what is known where it gets stuck."""
        began = time.monotonic()
        for number, fault in enumerate(self._faults):
            self.stage.ledger.write("plan", number, fault)
        with Feed(self.stage.path, self.stage.ledger.address, LONGEST) as feed:
            while feed.answered < self._total or self._frozen:
                feed.check()
                self._look()
                self._thaw()
                if self._due and self._ended >= self._due[0][1].at * self._total:
                    self._carry_out(feed)
                goal = self._due[0][1].at * self._total + WINDOW + self._extra if self._due else self._total
                feed.limit = max(feed.limit, min(self._total, int(goal)))
                time.sleep(LOOK)
            self.report.retried = feed.retried
        self.report.seconds = time.monotonic() - began
        return self.report

    def _look(self) -> None:
        ended = self.stage.total(ENDED)
        if ended != self._ended:
            self._ended, self._moved = ended, time.monotonic()
        for place, worker in enumerate(self._places):
            if not worker.alive:
                raise AssertionError(f"worker {worker.name} in place {place} has ended by itself: {self.stage.logs}")
        if time.monotonic() > self._moved + STUCK:
            raise AssertionError(
                f"nothing has ended for {STUCK:g} s: {ended} of {self._total}; due {list(self._due)[:1]}, frozen"
                f" {self._frozen}, ledger and logs in {self.stage.logs}\n{self.stage.verdict()}"
            )

    # -- faults

    def _carry_out(self, feed: Feed) -> None:
        number, fault = self._due[0]
        if fault.kind is Kind.FREEZE_WORKER and self._frozen is not None:
            return  # one at a time
        if fault.kind is Kind.KILL_WORKER:
            left = self._kill(fault)
        elif fault.kind is Kind.FREEZE_WORKER:
            left = self._freeze(number, fault)
        else:
            left = self._take_down(fault)
        if left is None:
            # Nobody has anything to do: a little more work, when all that was allowed is nearly done.
            if feed.submitted >= feed.limit and feed.submitted - self._ended < MORE:
                self._extra += MORE
            return
        if left == 0:
            self.report.missed += 1
            return
        self._due.popleft()
        self._extra = 0
        if fault.kind is not Kind.FREEZE_WORKER:
            self._fired(number, left)

    def _fired(self, number: int, left: int) -> None:
        self.stage.ledger.write("fire", number, left)
        kind = self._faults[number].kind
        self.report.fired[kind] = self.report.fired.get(kind, 0) + 1

    def _target(self, fault: Fault) -> int | None:
        """The fault's place, or the first behind it whose worker holds work and is not frozen."""
        for step in range(len(self._places)):
            place = (fault.target + step) % len(self._places)
            frozen = self._frozen is not None and self._frozen.place == place
            if not frozen and self.stage.held(self._places[place]):
                return place
        return None

    def _kill(self, fault: Fault) -> int | None:
        place = self._target(fault)
        if place is None:
            return None
        worker = self._places[place]
        worker.kill()
        left = self.stage.held(worker)
        self._places[place] = self.stage.start_worker()
        return left

    def _freeze(self, number: int, fault: Fault) -> int | None:
        place = self._target(fault)
        if place is None:
            return None
        worker = self._places[place]
        self.stage.freeze(worker)
        left = self.stage.held(worker)
        if left:
            self._frozen = Frozen(place, time.monotonic() + fault.seconds, number, left)
        else:
            worker.send(signal.SIGCONT)
        return left

    def _thaw(self) -> None:
        """Wakes the frozen worker when its time is over and its peers have ended its leases."""
        frozen = self._frozen
        if frozen is None or time.monotonic() < frozen.until:
            return
        worker = self._places[frozen.place]
        if self.stage.leases(worker) == 0:
            worker.send(signal.SIGCONT)
            self._fired(frozen.number, frozen.held)
            self._frozen = None

    def _take_down(self, fault: Fault) -> int | None:
        """Hits the fault's server, or the first behind it that has work."""
        number = len(self.stage.shards)
        shards = [(fault.target + step) % number for step in range(number)]
        shard = next((shard for shard in shards if self.stage.ask(shard, LEFT)), None)
        if shard is None:
            return None
        server = self.stage.server(shard)
        if fault.kind is Kind.STOP_SERVER:
            server.stop("immediate")
        else:
            server.kill()
        time.sleep(fault.seconds)  # so long it is away
        server.start()
        until(lambda: self.stage.ask(shard, LEFT) is not None, f"{server.name} is back")
        return self.stage.ask(shard, LEFT) or 0
