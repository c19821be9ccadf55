"""Work for the tests of server faults, and its ledger: what was acknowledged, begun, checkpointed and answered.

No process dies in these tests but servers, so the ledger's lines are memory of the test's own process; `ledger.py`
tells what they mean, and `checker.py` judges them by the tables.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from faults import audit
from faults.checker import STEPS, Verdict, check
from faults.worker_main import lease_of
from support.lab import in_thread
from support.look import connect, until
from support.work import running

from shardflow import App, AsyncClient, ClusterConfig, LeaseConfig, PoolConfig, ShardConfig, ShardUnavailable
from shardflow.client.handle import AsyncHandle
from shardflow.context import current
from shardflow.embedded import Server
from shardflow.storage import cluster

BATCH = 10


@dataclass
class Witness:
    """The ledger's lines in the order of what happened, and what was acknowledged in the order of the submits."""

    lines: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    ended: set[str] = field(default_factory=set)

    def line(self, *words: object) -> None:
        self.lines.append(" ".join(map(str, words)))


#: Attempt, lease and worker of the workflow that runs.
holder: ContextVar[tuple[int, int | str, str]] = ContextVar("holder")


def chains(witness: Witness, pause: float = 0.01) -> App:
    """An app whose workflow `chain` makes STEPS steps, each of up to `pause` seconds."""
    app = App("load")

    @app.step
    async def advance(id: str, value: int, seq: int) -> int:
        witness.line("start", id, seq, *holder.get())
        await asyncio.sleep(random.uniform(0, pause))
        return (value * 31 + seq) % 1_000_003

    @app.workflow
    async def chain(id: str) -> int:
        run = current.get()
        assert run is not None
        holder.set((run.attempt, lease_of(run), "here"))
        witness.line("begin", id, *holder.get())
        value = int.from_bytes(id.encode(), "big") % 1_000_003
        for seq in range(STEPS):
            value = await advance(id, value, seq)
            witness.line("record", id, seq, value, "here")
        witness.ended.add(id)
        return value

    return app


class Load:
    """Two workers, a client, and a submitter that goes on whatever the servers do, until it is paused."""

    def __init__(self, config: ClusterConfig, client: AsyncClient, app: App, witness: Witness) -> None:
        self.config = config
        self.client = client
        self.witness = witness
        self.handles: dict[str, AsyncHandle[int]] = {}
        self.refusals: list[str] = []
        self.app = app
        self._numbers = itertools.count()
        self._faults = itertools.count(1)
        self._going = asyncio.Event()
        self._idle = asyncio.Event()

    async def submit_on(self, every: float) -> None:
        """Batches, one after the other; one that failed is submitted again with the same ids."""
        while True:
            self._idle.set()
            await self._going.wait()
            self._idle.clear()
            ids = [f"w{next(self._numbers)}" for _ in range(BATCH)]
            while True:
                try:
                    await self.submit(ids)
                    break
                except ShardUnavailable as error:
                    self.refusals.append(str(error))
                    if not self._going.is_set():
                        break  # never acknowledged
                    await asyncio.sleep(0.02)
            await asyncio.sleep(every)

    async def submit(self, ids: Iterable[str]) -> None:
        """One batch; what is acknowledged is noted."""
        chain = self.app.workflows["chain"]
        for handle in await self.client.submit_many(chain.call(id).set(id=id) for id in ids):
            self.handles[handle.id] = handle
            self.witness.acknowledged.append(handle.id)
            self.witness.line("accept", handle.id)

    def go(self) -> None:
        self._going.set()

    async def pause(self) -> None:
        """No more submits; returns when none is under way."""
        self._going.clear()
        await asyncio.wait_for(self._idle.wait(), 60)

    async def acknowledged(self, more: int, what: str = "submits are acknowledged") -> None:
        """Waits until so many more have been acknowledged."""
        wanted = len(self.witness.acknowledged) + more
        await until(lambda: len(self.witness.acknowledged) >= wanted, 60, what)

    async def all_end(self, ids: Iterable[str] | None = None, seconds: float = 90) -> None:
        """Waits until each of these (default: all that was acknowledged) has ended, and notes its result."""
        wanted = list(self.witness.acknowledged if ids is None else ids)
        results = await asyncio.gather(*(self.handles[id].result(seconds) for id in wanted))
        for id, result in zip(wanted, results, strict=True):
            self.witness.line("result", id, result)

    async def fault(self, what: str, shard: int = 0) -> None:
        """Notes that a fault hits that shard now, and how much work it has left."""
        left = await asyncio.to_thread(unfinished, self.config, shard)
        number = next(self._faults)
        self.witness.line("plan", number, what)
        self.witness.line("fire", number, left)

    def verdict(self, lines: Sequence[str] | None = None) -> Verdict:
        """The checker's, over these lines (default: all)."""
        dsns = {shard.name: shard.dsn for shard in self.config.shards}
        return check(self.witness.lines if lines is None else lines, dsns, audited=True)


@asynccontextmanager
async def under_load(
    config: ClusterConfig, *, concurrency: int = 60, pause: float = 0.01, every: float = 0.0
) -> AsyncIterator[Load]:
    """A cluster at work: two workers and a submitter that has begun."""
    for shard in config.shards:
        await asyncio.to_thread(audit.install, shard.dsn)
    witness = Witness()
    app = chains(witness, pause)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(AsyncClient(config))
        for number in range(2):
            await stack.enter_async_context(running(config, app, name=f"w{number}", concurrency=concurrency))
        load = Load(config, client, app, witness)
        submitter = asyncio.create_task(load.submit_on(every))
        load.go()
        try:
            yield load
        finally:
            submitter.cancel()
            await asyncio.gather(submitter, return_exceptions=True)


def on_servers(servers: Iterable[Server], ttl: float = 3.0) -> ClusterConfig:
    """A new cluster with a shard on each of these servers."""
    shards = tuple(ShardConfig(f"s{number}", server.dsn) for number, server in enumerate(servers))
    lease = LeaseConfig(ttl=ttl, renew=ttl / 6, watch=0.2)
    config = ClusterConfig("test", shards, 64, lease, PoolConfig(timeout=3.0, connect_timeout=2.0))
    in_thread(cluster.init(config))
    return config


def unfinished(config: ClusterConfig, shard: int = 0) -> int:
    """How many workflows the shard has that have not ended."""
    query = "SELECT (SELECT count(*) FROM workflow) - (SELECT count(*) FROM outcome)"
    with connect(config, shard) as conn:
        row = conn.execute(query).fetchone()
        assert row is not None
        return int(row[0])


def present(config: ClusterConfig, shard: int = 0) -> set[str]:
    """The ids that the shard has."""
    with connect(config, shard) as conn:
        return {row[0] for row in conn.execute("SELECT id FROM workflow").fetchall()}
