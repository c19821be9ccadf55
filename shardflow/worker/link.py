"""A worker's bond to one shard: lease, commit loop and keeper, through every loss of connection.

While the shard is away the link tries again with growing pauses, and the worker's other links go on. After a lost
connection the lease is resumed if it is still there, and what it holds is read again; nothing is assumed of a turn
whose answer was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..app import App
from ..core.retry import Retry
from ..errors import LeaseLost, MapChanged, ShardflowError
from ..model import ClusterConfig
from ..storage import bell, cluster, leases
from ..storage.leases import Peer, Resumed
from ..storage.shard import Conn, Shard
from ..storage.turn import Claimed, Fence
from .commit import CommitLoop
from .keeper import Keeper
from .places import Places
from .run import Run

log = logging.getLogger("shardflow.worker")

_BACKOFF = Retry(attempts=2, initial=0.1, factor=2.0, maximum=5.0, jitter=0.3)

#: Seconds before another lease is opened after one was lost, so that losing them again and again costs little.
LOST_PAUSE = 0.1

#: Seconds after which a workflow that this worker has no code for is offered again.
UNKNOWN_DELAY = 15.0


class Link:
    """Serves one shard for a worker.

    Arguments: `shard`; `config`, the cluster's; `app`; `name`, the worker's; `queues` to serve; `places`, the
    worker's; `threads`, for plain `def` functions.
    """

    def __init__(
        self,
        shard: Shard,
        config: ClusterConfig,
        app: App,
        name: str,
        queues: Sequence[str],
        places: Places,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.shard = shard
        self.connected = asyncio.Event()
        self._config = config
        self._app = app
        self._name = name
        self._place = places.add(self._woken)
        self._commit = CommitLoop(shard, queues, self._place, threads, self._begin)
        self._fence: Fence | None = None
        self._failures = 0

    def _woken(self) -> None:
        self._commit.wake()

    def drain(self) -> None:
        """Stops claiming; `serve` ends when every workflow has ended or stopped at a checkpoint."""
        self._commit.drain()

    @property
    def running(self) -> int:
        """Workflows of this shard that run here now."""
        return len(self._commit.runs)

    async def serve(self) -> None:
        """Serves until drained; survives whatever the shard does."""
        while True:
            try:
                await self._session()
                return
            except LeaseLost as error:
                self._lose(error)
                await asyncio.sleep(LOST_PAUSE)
            except MapChanged as error:
                log.warning("the slot map changed", extra={"shard": self.shard.name, "error": str(error)})
            except Exception as error:
                if self._commit.draining and not self._commit.runs:
                    return
                await self._pause(error)

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        pause = _BACKOFF.delay(min(self._failures, 16), random.random())
        extra = {"shard": self.shard.name, "error": str(error), "seconds": round(pause, 2)}
        if isinstance(error, ShardflowError):
            log.warning("shard lost; trying again", extra=extra)
        else:  # a defect, or something never seen: it must not end the service of a shard
            log.error("unexpected error; trying again", extra=extra, exc_info=error)
        await asyncio.sleep(pause)

    async def release(self) -> None:
        """Gives the lease back with what it still holds, and closes what runs."""
        self._commit.abandon()
        self._place.leave()
        if self._fence is None:
            return
        lease, self._fence = self._fence.lease, None
        with contextlib.suppress(ShardflowError):
            async with await self._connect("release") as conn:
                back = await leases.release(self.shard, conn, lease)
                log.info("lease released", extra={"shard": self.shard.name, "lease": lease, "back": back})

    def forsake(self) -> None:
        """Closes what runs and writes nothing more; the lease is left to the peers."""
        self._commit.abandon()
        self._place.leave()

    # -- one session: two connections under one lease

    async def _session(self) -> None:
        async with await self._connect("keeper") as keeping, await self._connect("commit") as writing:
            fence = await self._hold(keeping, writing)
            await bell.listen(self.shard, keeping)
            keeper = Keeper(
                self.shard,
                self._config.lease,
                fence.lease,
                lambda: fence.epoch,
                self._commit.wake,
                self._renewed,
                self._took,
            )
            self._commit.claims.reset()
            self._failures = 0
            self.connected.set()
            try:
                await _first(self._commit.serve(writing, fence), keeper.keep(keeping))
            finally:
                self.connected.clear()
                self._place.away()
            await leases.release(self.shard, writing, fence.lease)
            self._fence = None

    async def _connect(self, role: str) -> Conn:
        return await self.shard.connect(f"{role} {self._name}", connect_timeout=self._config.pool.connect_timeout)

    async def _hold(self, keeping: Conn, writing: Conn) -> Fence:
        """Resumes the lease that there was, or opens a new one."""
        identity = await cluster.expect(self.shard, writing, self._config)
        ttl = self._config.lease.ttl
        began = self._commit.loop.time()
        if self._fence is not None:
            lease = self._fence.lease
            await leases.stand_in(self.shard, keeping, lease)
            doubt = self._commit.doubt
            resumed = await leases.resume(self.shard, writing, lease, ttl, doubt.turn if doubt else None)
            if resumed is not None:
                self._fence = Fence(lease, resumed.epoch, identity.generation)
                self._commit.valid_until = began + ttl
                await self._reconcile(writing, lease, resumed)
                return self._fence
            self._lose(LeaseLost(f"shard {self.shard.name!r}: lease {lease} was ended while the connection was lost"))
        lease, epoch = await leases.open_lease(self.shard, keeping, self._name, ttl, writing.info.backend_pid)
        self._fence = Fence(lease, epoch, identity.generation)
        self._commit.valid_until = began + ttl
        log.info("lease opened", extra={"shard": self.shard.name, "lease": lease})
        return self._fence

    async def _reconcile(self, conn: Conn, lease: int, resumed: Resumed) -> None:
        """After a lost connection: settles the turn in doubt, runs claims that were never seen."""
        commit = self._commit
        held = resumed.held
        by_wf = {h.wf: h for h in held}
        if (doubt := commit.doubt) is not None:
            done = resumed.done
            if done is None:
                done = not any(row[0] in by_wf for row in doubt.turn.waits)
            commit.doubt = None
            if done:
                commit.settle(doubt.gathered)
            else:
                commit.put_back(doubt.gathered)
        rows: dict[int, dict[int, int]] = defaultdict(dict)
        for h in held:
            rows[h.batch][h.wf] = h.attempt
        commit.receipts.replace(rows, resumed.batches)
        suspending = commit.suspending()
        unseen = [h for h in held if h.wf not in commit.runs and h.wf not in suspending]
        log.info(
            "lease resumed",
            extra={
                "shard": self.shard.name,
                "lease": lease,
                "running": len(commit.runs),
                "unseen": len(unseen),
            },
        )
        if unseen and not commit.draining:
            found = await leases.submissions(self.shard, conn, [h.wf for h in unseen])
            claimed = [
                Claimed(s.wf, s.id, s.name, s.input, by_wf[s.wf].attempt, True, s.queue, s.priority, 0) for s in found
            ]
            await self._replay(conn, claimed)

    def _lose(self, error: LeaseLost) -> None:
        log.warning(
            "lease lost: its workflows go on elsewhere, nothing more is written under it",
            extra={"shard": self.shard.name, "error": str(error), "running": len(self._commit.runs)},
        )
        self._commit.abandon()
        self._fence = None

    def _renewed(self, until: float) -> None:
        self._commit.valid_until = until

    def _took(self, peer: Peer, back: int) -> None:
        log.warning(
            "ended the lease of a dead worker",
            extra={
                "shard": self.shard.name,
                "lease": peer.lease,
                "worker": peer.worker,
                "reason": "expired" if peer.expired else "session closed",
                "back": back,
            },
        )
        self._commit.wake()

    # -- beginning what was claimed

    async def _begin(self, conn: Conn, rows: Sequence[Claimed]) -> None:
        """Begins the fresh ones at once and the others with their checkpoints."""
        again = [row for row in rows if row.replay]
        for row in rows if not again else [row for row in rows if not row.replay]:
            self._start(row)
        if again:
            await self._replay(conn, again)

    async def _replay(self, conn: Conn, rows: Sequence[Claimed]) -> None:
        recorded = await leases.checkpoints(self.shard, conn, [row.wf for row in rows])
        for row in rows:
            self._start(row, recorded.get(row.wf))

    def _start(self, row: Claimed, recorded: dict[int, leases.Checkpoint] | None = None) -> None:
        workflow = self._app.workflows.get(row.name)
        if workflow is not None:
            run = Run(self._commit, row.wf, row.id, workflow, row.input, row.attempt, recorded)
            self._commit.start(run)
            return
        log.error(
            "no code for this workflow here: it is offered again later; run a worker whose app has it",
            extra={"workflow": row.id, "workflow_name": row.name, "app": self._app.name, "shard": self.shard.name},
        )
        self._commit.refuse(row.wf, row.attempt, UNKNOWN_DELAY, f"no worker had code for workflow {row.name!r}")


async def _first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs until the first of the coroutines returns or raises; cancels the others."""
    running = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
