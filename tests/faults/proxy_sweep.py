"""A fault at each message in turn: what the sweeps have in common. Work, workers behind a proxy, and a trap.

All cases share one audited shard and one ledger, so that one verdict judges them all in the end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from faults.nursery import Nursery, Process
from faults.proxy import Act, Proxy, Trap, cut
from faults.proxy_link import Link, Way
from faults.proxy_wire import Message
from faults.stage import ENDED, Stage, stage, until
from faults.worker_main import chain
from support.lab import Lab

import shardflow

#: Workflows of a case, of three steps each.
COUNT = 4
#: Cases in a row that came too late, after which a sweep over all messages is over.
ENOUGH = 3


@dataclass(frozen=True)
class Point:
    """A message of a commit loop's connection: its number, from 1, of those of its way and kinds ("" for all)."""

    way: Way
    number: int
    kinds: str = ""

    def counts(self, message: Message) -> bool:
        return not self.kinds or message.kind in self.kinds

    def __str__(self) -> str:
        return f"message {self.number} {self.way.value} {self.kinds}".strip()


class Sweep:
    """A shard behind a proxy.

    Attributes: `on`, the stage, whose own workers connect directly; `proxy`; `cases` so far, and how many of them had
    a fault that `hit` while work was left.
    """

    count = COUNT

    def __init__(self, on: Stage, proxy: Proxy, through: Nursery, client: shardflow.Client) -> None:
        self.on = on
        self.proxy = proxy
        self.cases = 0
        self.hit = 0
        self._through = through
        self._client = client
        self._workers = 0

    def submit(self, count: int = COUNT, longest: float = 0.0) -> str:
        """Submits a case's workflows; answers the prefix of their ids."""
        self.cases += 1
        ids = [f"case{self.cases}-{n}" for n in range(count)]
        for id in ids:
            self.on.ledger.write("intend", id)
        self._client.submit_many(chain.call(id, longest).set(id=id) for id in ids)
        for id in ids:
            self.on.ledger.write("accept", id)
        return f"case{self.cases}-"

    def ended(self, prefix: str) -> int:
        query = "SELECT count(*) FROM shardflow.outcome JOIN shardflow.workflow USING (wf) WHERE id LIKE %s"
        return self.on.ask(0, query, prefix + "%") or 0

    def outcomes(self) -> int:
        return self.on.ask(0, ENDED) or 0

    def held(self, worker: Process) -> int:
        """Workflows without an outcome that the worker's lease holds."""
        return self.on.held(worker)

    def next_name(self) -> str:
        return f"p{self._workers + 1:04}"

    def worker(self) -> Process:
        """A new worker process behind the proxy, under the name that `next_name` told."""
        self._workers += 1
        return self._through.worker(f"p{self._workers:04}")

    def bury(self, worker: Process) -> None:
        """Kills the worker and gives back what is known of it: a sweep has more workers than a process has files."""
        worker.kill()
        for nursery in (self._through, self.on._nursery):
            if worker in nursery.processes:
                nursery.processes.remove(worker)
        worker.close()

    def trap(self, point: Point, act: Act) -> Trap:
        """Sets a trap for the commit loop of the next worker."""
        name = f"shardflow commit {self.next_name()}"
        return self.proxy.trap(Trap(point.way, point.number, act, name, where=point.counts))

    def messages(self, way: Way, kinds: str = "") -> int:
        """How many messages a whole case takes on the commit loop's connection, from its log-in on."""
        prefix = self.submit(self.count)
        trap = self.trap(Point(way, 0, kinds), cut)
        worker = self.worker()
        until(lambda: self.ended(prefix) == self.count, "a case without any fault ends")
        self.bury(worker)
        return trap.seen

    def kill_at(self, point: Point) -> bool:
        """Kills a worker at a message of its commit loop, lets another end the work. Whether that came in time."""
        prefix = self.submit(self.count)
        doomed: list[Process] = []
        known, done, guard = threading.Event(), threading.Event(), threading.Lock()

        def act(link: Link) -> None:
            assert known.wait(60)
            with guard:  # once it is buried, its descriptor may be another process's
                for worker in doomed:
                    worker.send(signal.SIGKILL)
            link.cut()
            done.set()

        trap = self.trap(point, act)
        doomed.append(self.worker())
        known.set()
        until(lambda: trap.fired.is_set() or self.ended(prefix) == self.count, f"{prefix}: {point}")
        hit = trap.fired.is_set()
        assert not hit or done.wait(60)
        left = self.count - self.ended(prefix) if hit else 0
        with guard:
            worker = doomed.pop()
        self.bury(worker)
        if hit:
            successor = self.on.start_worker()
            until(lambda: self.ended(prefix) == self.count, f"{prefix}: the successor ends it, {point}")
            self.bury(successor)
        return self._judge(left, f"kill at {point}")

    def spoil_at(self, point: Point, act: Act, again: int = 0) -> bool:
        """Does `act` to the commit loop's connection at a message; the same worker has to end the work.

        `again`: once more at so many messages later, which may be in the middle of the resume.
        """
        prefix = self.submit(self.count)
        later = [replace(point, number=point.number + again)] if again else []
        traps = [self.trap(each, act) for each in [point, *later]]
        worker = self.worker()
        until(lambda: traps[0].fired.is_set() or self.ended(prefix) == self.count, f"{prefix}: {point}")
        left = self.count - self.ended(prefix) if traps[0].fired.is_set() else 0
        until(lambda: self.ended(prefix) == self.count, f"{prefix}: the worker ends it, {point}")
        self.bury(worker)
        return self._judge(left, f"{act.__name__} at {point}")

    def _judge(self, left: int, fault: str) -> bool:
        if left <= 0:
            return False
        self.hit += 1
        self.on.ledger.write("plan", self.cases, fault)
        self.on.ledger.write("fire", self.cases, left)
        return True

    def over(self, points: Iterable[Point], case: Callable[[Point], bool]) -> float:
        """Runs a case for each point until they come too late; answers the share of those that hit."""
        hits: list[bool] = []
        for point in points:
            hits.append(case(point))
            if not any(hits[-ENOUGH:]):
                break
        return sum(hits) / len(hits)


def spread(messages: int, cases: int) -> list[int]:
    """So many numbers at the most, evenly from the first message to where most of the work is done."""
    last = max(1, round(0.8 * messages))
    return sorted({1 + round(k * (last - 1) / max(1, cases - 1)) for k in range(cases)})


@contextmanager
def sweeping(lab: Lab, folder: Path, ttl: float = 2.0, mutants: Sequence[str] = ()) -> Iterator[Sweep]:
    """A stage of one shard with a proxy in front, for workers of `Sweep.worker`; `mutants` as of `worker_main`."""
    with ExitStack() as stack:
        on = stack.enter_context(stage(lab, folder, shards=1, ttl=ttl))
        proxy = stack.enter_context(Proxy(on.server(0).port))
        file = yaml.safe_load(on.path.read_text())
        file["shards"][0]["dsn"] = proxy.dsn(file["shards"][0]["dsn"])
        path = folder / "through.yaml"
        path.write_text(yaml.safe_dump(file))
        through = Nursery(path, on.ledger.address, folder, mutants, 100)
        stack.callback(through.close)
        client = stack.enter_context(shardflow.Client(on.config))
        yield Sweep(on, proxy, through, client)
