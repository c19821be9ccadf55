"""What a fault run plays on: a cluster on servers of its own, worker processes, the ledger; and looks at all of them.

The looks go to the tables directly. One that a server cannot answer at the moment answers None.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import yaml
from faults import audit, checker
from faults.checker import Verdict
from faults.ledger import LedgerProcess, start_ledger
from faults.nursery import Nursery, Process
from support.lab import Lab

from shardflow import ClusterConfig, LeaseConfig, PoolConfig
from shardflow.embedded import Server

#: Workflows in the receipts of the leases of one worker that have not ended.
HELD = (
    "SELECT count(*) FROM shardflow.claim c JOIN shardflow.lease l USING (lease), unnest(c.wfs) u (wf)"
    " WHERE l.worker = %s AND NOT EXISTS (SELECT FROM shardflow.outcome o WHERE o.wf = u.wf)"
)
LEASES = "SELECT count(*) FROM shardflow.lease WHERE worker = %s"
ENDED = "SELECT count(*) FROM shardflow.outcome"
LEFT = "SELECT (SELECT count(*) FROM shardflow.workflow) - (SELECT count(*) FROM shardflow.outcome)"


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Polls until the condition answers something true, which is returned; for code without an event loop."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.005)
    return answer


class Stage:
    """A cluster of `len(config.shards)` shards, each on a server of its own.

    Attributes: `path` of the cluster's file; `ledger`; `logs`, the folder of the workers' logs.
    """

    def __init__(
        self, lab: Lab, config: ClusterConfig, folder: Path, ledger: LedgerProcess, nursery: Nursery
    ) -> None:
        self.config = config
        self.ledger = ledger
        self.logs = folder
        self.path = folder / "cluster.yaml"
        self._lab = lab
        self._nursery = nursery
        self._number = 0
        self._conns: dict[int, psycopg.Connection[Any]] = {}

    @property
    def shards(self) -> range:
        return range(len(self.config.shards))

    def server(self, shard: int) -> Server:
        return self._lab.server(shard)

    def start_worker(self) -> Process:
        """A new worker process under a new name."""
        self._number += 1
        return self._nursery.worker(f"w{self._number}")

    def ask(self, shard: int, query: str, *parameters: object) -> int | None:
        """The number that a query answers; None where the server cannot be asked."""
        with suppress(psycopg.OperationalError):
            if shard not in self._conns:
                self._conns[shard] = psycopg.connect(
                    self.config.shards[shard].dsn, autocommit=True, connect_timeout=20
                )
            row = self._conns[shard].execute(query, parameters).fetchone()
            assert row is not None
            return int(row[0])
        if shard in self._conns:
            self._conns.pop(shard).close()
        return None

    def total(self, query: str, *parameters: object) -> int:
        """The sum over the shards that answer."""
        return sum(self.ask(shard, query, *parameters) or 0 for shard in self.shards)

    def held(self, worker: Process) -> int:
        """Workflows without an outcome that the worker's leases hold, on the shards that answer."""
        return self.total(HELD, worker.name)

    def leases(self, worker: Process) -> int | None:
        """The worker's leases; None while a shard does not answer."""
        numbers = [self.ask(shard, LEASES, worker.name) for shard in self.shards]
        return None if None in numbers else sum(n for n in numbers if n)

    def freeze(self, worker: Process) -> None:
        """Stops the worker between two callbacks of its event loop, see `worker_main`; `SIGCONT` wakes it up."""
        worker.send(signal.SIGUSR1)
        until(lambda: worker.stopped or not worker.alive, f"{worker.name} is frozen")

    def verdict(self) -> Verdict:
        """What the checker says of it all."""
        return checker.check(self.ledger.lines(), self.dsns, audited=True)

    @property
    def dsns(self) -> dict[str, str]:
        return {shard.name: shard.dsn for shard in self.config.shards}

    def close(self) -> None:
        for conn in self._conns.values():
            conn.close()


@contextmanager
def stage(
    lab: Lab, folder: Path, *, shards: int = 4, ttl: float = 2.0, mutants: Sequence[str] = (), concurrency: int = 100
) -> Iterator[Stage]:
    """A new audited cluster on the lab's servers; at the end every worker is killed and the databases are dropped."""
    lease, pool = LeaseConfig(ttl, ttl / 8, 0.15), PoolConfig(timeout=5.0, connect_timeout=3.0)
    with ExitStack() as stack:
        config = lab.clone(shards, 64, lease, pool)
        stack.callback(lab.drop, config)
        for shard in config.shards:
            audit.install(shard.dsn)
        file = {
            "name": config.name,
            "slots": config.slots,
            "shards": [{"name": shard.name, "dsn": shard.dsn} for shard in config.shards],
            "lease": {"ttl": lease.ttl, "renew": lease.renew, "watch": lease.watch},
            "pool": {"timeout": pool.timeout, "connect_timeout": pool.connect_timeout},
        }
        path = folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(file))
        ledger = stack.enter_context(start_ledger(folder / "ledger"))
        nursery = Nursery(path, ledger.address, folder, mutants, concurrency)
        stack.callback(nursery.close)
        made = Stage(lab, config, folder, ledger, nursery)
        stack.callback(made.close)
        yield made
