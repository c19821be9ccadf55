"""A run of limited queues with worker processes, some of them killed, and what the ledger says of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from faults import limits_main
from faults.ledger import LedgerProcess, start_ledger
from support.look import total, until

from shardflow import AsyncClient, ClusterConfig

TESTS = Path(limits_main.__file__).resolve().parents[1]


@dataclass
class Told:
    """What the ledger says: `spans`, of the held queue, from begin to end; `begins`, of the paced one.

    A span that has not ended lasts until its worker is gone, or for ever.
    """

    spans: list[tuple[float, float]] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)

    def most_at_once(self) -> int:
        """The most spans at any moment."""
        now = most = 0
        for _, step in sorted([(a, 1) for a, _ in self.spans] + [(b, -1) for _, b in self.spans]):
            now += step
            most = max(most, now)
        return most

    def most_within(self, seconds: float) -> int:
        """The most begins in any span of so many seconds."""
        first = most = 0
        self.begins.sort()
        for last, at in enumerate(self.begins):
            while self.begins[first] <= at - seconds:
                first += 1
            most = max(most, last - first + 1)
        return most

    def held(self, since: float, until: float) -> float:
        """How many spans there were on average between two times."""
        return sum(max(0.0, min(b, until) - max(a, since)) for a, b in self.spans) / (until - since)

    def paced(self, since: float, until: float, burst: int = 100) -> float:
        """How many began in a second between two times, taken over whole bursts."""
        begins = [at for at in self.begins if since <= at < until]
        bursts = (len(begins) - 1) // burst
        return bursts * burst / (begins[bursts * burst] - begins[0]) if bursts > 0 else 0.0


def read(lines: Iterator[str]) -> Told:
    """Reads a ledger to its end."""
    told = Told()
    running: dict[tuple[str, str], float] = {}
    gone: dict[str, float] = {}
    for line in lines:
        kind, *words = line.split()
        at = float(words[-1])
        if kind == "begin" and words[0] == "paced":
            told.begins.append(at)
        elif kind == "begin":
            running[words[1], words[2]] = at
        elif kind == "end" and words[0] == "held":
            told.spans.append((running.pop((words[1], words[2])), at))
        elif kind == "dead":
            gone[words[0]] = at  # what the worker said before that may stand behind it: it did not wait for an answer
    told.spans += [(begun, gone.get(worker, float("inf"))) for (_, worker), begun in running.items()]
    return told


class Rig:
    """Worker processes of a cluster and their ledger."""

    def __init__(
        self, config: ClusterConfig, folder: Path, ledger: LedgerProcess, mutants: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.workers: list[tuple[str, subprocess.Popen[str]]] = []
        self._folder = folder
        self._mutants = mutants
        self._number = 0
        self._path = folder / "cluster.yaml"
        lease, pool = config.lease, config.pool
        file = {
            "name": config.name,
            "slots": config.slots,
            "shards": [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards],
            "lease": {"ttl": lease.ttl, "renew": lease.renew, "watch": lease.watch},
            "pool": {"timeout": pool.timeout, "connect_timeout": pool.connect_timeout},
        }
        self._path.write_text(yaml.safe_dump(file))

    def start(self) -> None:
        """One more worker; returns before it serves."""
        self._number += 1
        name = f"w{self._number}"
        command = [sys.executable, "-m", "faults.limits_main", self._path, self.ledger.address, name, *self._mutants]
        with (self._folder / f"{name}.log").open("w") as log:
            made = subprocess.Popen(
                list(map(str, command)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"},
            )
        self.workers.append((name, made))

    def connected(self) -> None:
        """Waits until the last one serves."""
        stdout = self.workers[-1][1].stdout
        assert stdout is not None
        assert stdout.readline() == "connected\n", "the worker did not start"

    def kill(self) -> None:
        """SIGKILL for the one that was started first."""
        name, process = self.workers.pop(0)
        process.kill()
        process.communicate()
        self.ledger.write("dead", name, time.monotonic())

    def end(self) -> None:
        """Ends all workers in good order."""
        for _, process in self.workers:
            process.communicate(timeout=60)  # which closes their standard input
            assert process.returncode == 0

    def close(self) -> None:
        for _, process in self.workers:
            process.kill()
            process.communicate()


@contextmanager
def rig(config: ClusterConfig, folder: Path, mutants: Sequence[str] = ()) -> Iterator[Rig]:
    """No workers yet; at the end all are killed."""
    with ExitStack() as stack:
        ledger = stack.enter_context(start_ledger(folder / "ledger"))
        made = Rig(config, folder, ledger, mutants)
        stack.callback(made.close)
        yield made


async def submit(config: ClusterConfig, held: int, seconds: float, paced: int, ids: Sequence[str] = ()) -> None:
    """So many workflows for each of the two queues, over all shards; those of the first one may have given ids."""
    async with AsyncClient(config) as client:
        names = ids or [f"h{n}" for n in range(held)]
        calls = [limits_main.hold.call(name, seconds) for name in names]
        if ids:
            calls = [call.set(id=id) for call, id in zip(calls, ids, strict=True)]
        await client.submit_many([*calls, *(limits_main.pace.call(f"p{n}") for n in range(paced))])


async def pass_time(seconds: float) -> float:
    """Lets the workers work for so long; answers when that was over. Nothing waits for luck here: it is the run."""
    await asyncio.sleep(seconds)
    return time.monotonic()


async def ended(rig: Rig, seconds: float) -> Told:
    """Waits until nothing is left, and ends the workers, who see to it that all they have said is written; answers
    what that is."""
    left = "SELECT (SELECT count(*) FROM workflow) - (SELECT count(*) FROM outcome)"
    await until(lambda: total(rig.config, left) == 0, seconds)
    await asyncio.to_thread(rig.end)
    return read(rig.ledger.lines())
