"""The demo's story: servers, workers, work, a SIGKILL, and whether the cluster got it right nevertheless."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ..client.sync import Client, Handle
from ..embedded import Servers
from ..errors import ShardflowError, WorkflowFailed
from ..model import ClusterConfig
from ..storage import cluster
from . import ledger, local, truth
from .app import ROOT, Record, index
from .observe import Observer
from .show import Show
from .workers import WorkerProcess

SHARDS = 3
SLOTS = 96
WORKERS = 2
#: Workflows at once in a worker. Parsing is bound by the processor, so more of them would only wait for each other.
CONCURRENCY = 8
#: The share of all steps that have started when the worker is killed, drawn from this range.
KILL_AT = (0.25, 0.45)
#: Seconds for the workers to begin, for all workflows to end, and for the surviving worker to stop.
START, LIMIT, DRAIN = 60.0, 600.0, 30.0


class DemoFailed(ShardflowError):
    """The demo could not be carried through."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The kill: `held`, workflows without an outcome that the worker held; `left`, those of the whole cluster."""

    worker: str
    pid: int
    signal: int
    at: float
    held: int
    left: int


@dataclass(slots=True)
class Report:
    """What happened, for the summary: seconds by phase, and all in which the cluster was wrong."""

    files: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)
    fault: Fault | None = None
    recovered: float | None = None
    cluster: dict[str, int] = field(default_factory=dict)
    direct: dict[str, int] = field(default_factory=dict)
    digests: int = 0
    lost: int = 0
    checkpoints: int = 0
    starts: int = 0
    again: int = 0
    past: int = 0
    differences: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[phase] = time.monotonic() - began

    def data(self) -> dict[str, Any]:
        """For JSON."""
        killed = None
        if self.fault is not None:
            killed = {"worker": self.fault.worker, "held": self.fault.held, "left": self.fault.left}
            killed["recovered_s"] = None if self.recovered is None else round(self.recovered, 2)
        return {
            "files": self.files,
            "seconds": {phase: round(seconds, 2) for phase, seconds in self.seconds.items()},
            "workflows_per_s": round(self.files / self.seconds["index"], 1),
            "shards": self.shards,
            "killed": killed,
            "cluster": self.cluster,
            "direct": self.direct,
            "equal_digests": self.digests,
            "lost": self.lost,
            "checkpoints": self.checkpoints,
            "step_starts": self.starts,
            "started_again": self.again,
            "run_past_checkpoint": self.past,
            "differences": self.differences,
        }


class Demo:
    """One run.

    Arguments: `console` to talk to; `limit`, no more files than these (None: all); `seed`, of the order and the kill;
    `folder`, for servers, ledger and logs, kept at the end (None: a temporary one).
    """

    def __init__(self, console: Console, *, limit: int | None, seed: int, folder: Path | None) -> None:
        self._console = console
        self._random = random.Random(seed)
        self._limit = limit
        self._seed = seed
        self._kept = folder
        self._folder = Path()
        self._report = Report()

    def run(self) -> Report:
        """Tells the story. Whatever ends it, no process is left, and no file but those to keep."""
        report = self._report
        files = truth.find_files(ROOT, self._limit, self._seed)
        if not files:
            raise DemoFailed(f"there are no Python source files in {ROOT}")
        report.files = len(files)
        version = ".".join(map(str, sys.version_info[:3]))
        self._say(f"Indexing {len(files)} files of Python {version}'s standard library: read, parse, summarise.")
        with ExitStack() as stack:
            self._folder = self._kept or Path(tempfile.mkdtemp(prefix="shardflow-demo-"))
            if self._kept is None:
                stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            with report.timed("servers"):
                servers = self._servers()
                stack.enter_context(servers)
            self._say(f"{len(servers)} Postgres servers are up, {report.seconds['servers']:.1f} s.")
            config = local.describe(servers, "demo", SLOTS)
            asyncio.run(cluster.init(config))
            observer = stack.enter_context(Observer(config))
            evidence = self._index(config, observer, files, stack)
        with report.timed("direct"):
            direct = {file: truth.compute(ROOT, file) for file in files}
        self._judge(direct, evidence)
        return report

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _servers(self) -> Servers:
        if self._kept is None:
            return Servers(SHARDS)
        return Servers(SHARDS, directory=self._kept / "servers", keep=True)

    # -- the work and the fault

    def _index(self, config: ClusterConfig, observer: Observer, files: list[str], stack: ExitStack) -> truth.Evidence:
        report = self._report
        with report.timed("workers"):
            workers = self._workers(config, observer, stack)
        told = " and ".join(f"{worker.name} (process {worker.pid})" for worker in workers)
        self._say(f"{told} hold leases on all {SHARDS} shards, {report.seconds['workers']:.1f} s.")
        client = stack.enter_context(Client(config))
        with report.timed("index"):
            with report.timed("submit"):
                handles = client.submit_many(index.call(file).set(id=file) for file in files)
            report.shards = dict(Counter(handle.shard for handle in handles))
            rate = len(handles) / report.seconds["submit"]
            self._say(f"{len(handles)} workflows submitted in {report.seconds['submit']:.2f} s, {rate:.0f}/s.")
            survivors = self._watch(observer, workers)
        with report.timed("results"):
            records, failures = _results(handles)
        for worker in survivors:
            if (code := worker.stop(DRAIN)) != 0:
                report.differences.append(f"{worker.name} did not stop in good order, but with {code}")
        left = sum(len(rows) for rows in observer.leases().values())
        if left:
            report.differences.append(f"{left} leases are left after the workers stopped")
        lines = ledger.read(self._folder / "ledger")
        return truth.Evidence(records, failures, observer.counts(), report.shards, ledger.audit(lines, files))

    def _workers(self, config: ClusterConfig, observer: Observer, stack: ExitStack) -> list[WorkerProcess]:
        path = self._folder / "cluster.yaml"
        local.write(config, path)
        workers = []
        for number in range(1, WORKERS + 1):
            worker = WorkerProcess(f"worker-{number}", path, self._folder, CONCURRENCY)
            stack.callback(worker.stop, 5.0)
            workers.append(worker)
        deadline = time.monotonic() + START
        while len(observer.workers()) < WORKERS * SHARDS:
            _check_alive(workers)
            if time.monotonic() > deadline:
                raise DemoFailed(f"the workers hold no leases after {START:.0f} s:\n{workers[0].last_words()}")
            time.sleep(0.05)
        return workers

    def _watch(self, observer: Observer, workers: list[WorkerProcess]) -> list[WorkerProcess]:
        """Shows the progress, kills a worker on the way, returns the others when every workflow has ended."""
        report = self._report
        victim = self._random.choice(workers)
        survivors = [worker for worker in workers if worker is not victim]
        kill_at = self._random.uniform(*KILL_AT) * report.files * len(ledger.STEPS)
        started = _Started(self._folder / "ledger")
        deadline = time.monotonic() + LIMIT
        with Show(self._console, report.shards) as show:
            while True:
                ended = observer.ended()
                show.update({shard: ended[shard] for shard in report.shards})
                if sum(ended.values()) >= report.files:
                    return survivors if report.fault else workers
                if report.fault is None and started.count() >= kill_at:
                    report.fault = self._strike(victim, observer, show)
                if report.fault and report.recovered is None and victim.name not in observer.workers():
                    report.recovered = time.monotonic() - report.fault.at
                    show.say(f"  Its leases were ended and its workflows went on, {report.recovered:.1f} s later.")
                _check_alive(survivors if report.fault else workers)
                if time.monotonic() > deadline:
                    raise DemoFailed(
                        f"{report.files - sum(ended.values())} workflows have not ended in {LIMIT:.0f} s"
                    )
                time.sleep(0.1 if report.fault else 0.01)

    def _strike(self, victim: WorkerProcess, observer: Observer, show: Show) -> Fault | None:
        """Kills the worker if it holds unfinished work: it is frozen first, so that it cannot finish meanwhile."""
        victim.freeze()
        held = observer.unfinished(victim.name)
        if not held:
            victim.thaw()
            return None
        victim.kill()
        at = time.monotonic()
        left = self._report.files - sum(observer.ended().values())
        show.say(f"  {victim.name} killed by SIGKILL; it held {held} unfinished workflows of {left} in all.")
        return Fault(victim.name, victim.pid, -(victim.code or 0), at, held, left)

    # -- the verdict

    def _judge(self, direct: dict[str, Record], evidence: truth.Evidence) -> None:
        report = self._report
        fault = report.fault
        if fault is None or fault.signal != signal.SIGKILL or not fault.left:
            report.differences.append("no worker was killed while work was left: this run proves nothing")
        report.differences += truth.differences(direct, evidence)
        report.cluster = truth.sums(list(evidence.records.values()))
        report.direct = truth.sums(list(direct.values()))
        report.digests = sum(
            file in evidence.records and evidence.records[file].content.sha256 == record.content.sha256
            for file, record in direct.items()
        )
        report.lost = len(direct.keys() - evidence.records.keys())
        report.checkpoints = sum(counts["steps"] for counts in evidence.counts.values())
        audit = evidence.audit
        report.starts, report.again, report.past = audit.starts, audit.again, len(audit.past)


class _Started:
    """How many steps the ledger says have started; reads only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._count = 0

    def count(self) -> int:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            self._count += new.count(b"\n")
        return self._count


def _check_alive(workers: list[WorkerProcess]) -> None:
    for worker in workers:
        if worker.code is not None:
            raise DemoFailed(f"{worker.name} ended with {worker.code}; the end of its log:\n{worker.last_words()}")


def _results(handles: list[Handle[Record]]) -> tuple[dict[str, Record], dict[str, str]]:
    records, failures = {}, {}
    for handle in handles:
        try:
            records[handle.id] = handle.result(30)
        except WorkflowFailed as error:
            failures[handle.id] = f"{error.type}: {error.message}"
    return records, failures
