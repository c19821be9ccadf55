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
from ..delivery import Delivery
from ..errors import LeaseLost, MapChanged, ShardflowError
from ..model import ClusterConfig
from ..rebalancer import Rebalancer
from ..storage import bell, cluster, leases, rebalance, registry
from ..storage.ending import end
from ..storage.leases import Glance, Peer, Resumed
from ..storage.shard import Conn, Shard
from ..storage.turn import Fence
from .commit import PATIENCE, CommitLoop
from .keeper import Keeper
from .limits import Limits
from .places import Places
from .starter import Starter
from .ticker import Ticker
from .transactions import Kinds

log = logging.getLogger("shardflow.worker")

_BACKOFF = Retry(attempts=2, initial=0.1, factor=2.0, maximum=1.5, jitter=0.3)

#: Seconds before another lease is opened after one was lost, so that losing them again and again costs little.
LOST_PAUSE = 0.1

#: Every so many failures to reach the shard one is a warning, the others are for debugging.
LOUD = 20

#: Seconds for taking a lease up again: it may have to wait for a transaction of the former connection.
HOLD = 30.0

#: Seconds for which an election lasts unrenewed; it is over at once when the lease it stands on has ended.
SEAT = 60.0


class Link:
    """Serves one shard for a worker.

    Arguments: `shard`; `config`, the cluster's; `app`; `name`, the worker's; `lanes` to serve; `places`, the
    worker's; `threads`, for plain `def` functions; `delivery` and `ticker`, the worker's; `seat`, told of each change
    of the election on the shard; `started`, when the worker was started, in µs since 1970.
    """

    def __init__(
        self,
        shard: Shard,
        config: ClusterConfig,
        app: App,
        name: str,
        lanes: Sequence[str],
        places: Places,
        threads: ThreadPoolExecutor,
        delivery: Delivery,
        ticker: Ticker,
        rebalancer: Rebalancer,
        started: int,
    ) -> None:
        self.shard = shard
        self.connected = asyncio.Event()
        self.away_since: float | None = None
        self._config = config
        self._app = app
        self._name = name
        self._lanes = list(lanes)
        self._ticker = ticker
        self._rebalancer = rebalancer
        self._place = places.add(self._woken)
        self._starter = Starter(shard, app)
        patience = min(PATIENCE, config.lease.ttl)
        self._transactions = Kinds(shard, config.pool, patience)
        names = [each.name for each in config.shards]
        self._limits = Limits(shard, names, list(app.limits.values()), started, delivery.router, self._woken)
        self._commit = CommitLoop(
            shard,
            self._lanes,
            self._place,
            threads,
            delivery,
            self._transactions,
            self._starter.begin,
            self._limits,
            patience,
        )
        self._starter.commit = self._commit
        self._fence: Fence | None = None
        self._failures = 0
        self._retiring = False
        self._marked = True
        self._seated = False
        self._stand_at = 0.0
        self._timeline = 0

    def _woken(self) -> None:
        self._commit.wake()

    def drain(self) -> None:
        """Stops claiming; `serve` ends when every workflow has ended or stopped at a checkpoint."""
        self._commit.drain()

    def retire(self) -> None:
        """Steps back as soon as the others on the shard are enough: claims nothing more, and when all that runs here
        has ended, gives the lease back; then `serve` ends."""
        self._retiring = True

    def revive(self) -> None:
        """Goes on claiming after all."""
        self._retiring = False

    @property
    def running(self) -> int:
        """Workflows of this shard that run here now."""
        return len(self._commit.runs)

    async def serve(self) -> None:
        """Serves until drained or retired; survives whatever the shard does."""
        try:
            await self._serve()
        finally:
            await self._transactions.close()

    async def _serve(self) -> None:
        while not (self._retiring and self._fence is None):
            try:
                await self._session()
                return
            except LeaseLost as error:
                self._lose(error)
                await asyncio.sleep(LOST_PAUSE)
            except MapChanged as error:
                log.warning("the slot map changed", extra={"shard": self.shard.name, "error": str(error)})
            except Exception as error:
                if self._commit.leaving and not self._commit.runs:
                    return
                await self._pause(error)

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        pause = _BACKOFF.delay(min(self._failures, 16), random.random())
        extra = {"shard": self.shard.name, "error": str(error), "seconds": round(pause, 2), "tries": self._failures}
        if isinstance(error, ShardflowError):
            log.log(
                logging.WARNING if self._failures % LOUD == 1 else logging.DEBUG,
                "shard lost; trying again",
                extra=extra,
            )
        else:  # a defect, or something never seen: it must not end the service of a shard
            log.error("unexpected error; trying again", extra=extra, exc_info=error)
        await asyncio.sleep(pause)

    async def release(self) -> None:
        """Gives the lease back with what it still holds, and closes what runs."""
        self._commit.abandon()
        self._place.leave()
        await self._limits.close()
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
        if self.away_since is None:
            self.away_since = self._commit.loop.time()
        async with await self._connect("keeper") as keeping, await self._connect("commit") as writing:
            async with self.shard.deadline(keeping, HOLD, "a lease"), self.shard.deadline(writing, HOLD, "a lease"):
                fence = await self._hold(keeping, writing)
                self._commit.claims.limits(await self._limits.declare(keeping))
                await bell.listen(self.shard, keeping)
            keeper = Keeper(
                self.shard,
                self._config.lease,
                fence.lease,
                lambda: fence.epoch,
                lambda: self._commit.rest.lanes,
                self._rang,
                self._renewed,
                self._took,
                self._chore,
                resumed=fence.epoch > 1,
            )
            self._commit.claims.reset()
            self._commit.alarm.look_from_the_start()
            self._failures = 0
            self.away_since = None
            self.connected.set()
            try:
                with bell.near(self.shard, self._commit.wake):
                    await _first(self._commit.serve(writing, fence), keeper.keep(keeping))
            finally:
                self.connected.clear()
                self._place.away()
                self._unseat()
            await leases.release(self.shard, writing, fence.lease)
            self._fence = None

    async def _connect(self, role: str) -> Conn:
        return await self.shard.connect(f"{role} {self._name}", connect_timeout=self._config.pool.connect_timeout)

    async def _hold(self, keeping: Conn, writing: Conn) -> Fence:
        """Resumes the lease that there was, or opens a new one."""
        identity = await cluster.expect(self.shard, writing, self._config)
        ttl = self._config.lease.ttl
        await self._notice_promotion(writing)
        self._commit.clock_is(await leases.clock(self.shard, writing))
        began = self._commit.loop.time()
        if self._fence is not None:
            lease = self._fence.lease
            await leases.stand_in(self.shard, keeping, lease)
            doubt = self._commit.doubt
            self._marked = False  # the answer that said how it is marked may have been lost
            resumed = await leases.resume(self.shard, writing, lease, ttl, doubt.turn if doubt else None)
            if resumed is not None:
                self._fence = Fence(lease, resumed.epoch, identity.generation)
                self._commit.valid_until = began + ttl
                await self._reconcile(writing, lease, resumed)
                return self._fence
            self._lose(LeaseLost(f"shard {self.shard.name!r}: lease {lease} was ended while the connection was lost"))
        writer = writing.info.backend_pid
        lease, epoch = await leases.open_lease(self.shard, keeping, self._name, ttl, writer, self._lanes)
        self._fence = Fence(lease, epoch, identity.generation)
        self._commit.valid_until = began + ttl
        log.info("lease opened", extra={"shard": self.shard.name, "lease": lease})
        return self._fence

    async def _notice_promotion(self, writing: Conn) -> None:
        """A server that was promoted may lack what the former one had acknowledged: nothing in memory counts then."""
        timeline, former = await self.shard.timeline(writing), self._timeline
        if self._fence is not None and timeline != former:
            log.warning(
                "the shard's server was promoted: what was not replicated is lost; starting over from what it has",
                extra={"shard": self.shard.name, "timeline": timeline, "former": former},
            )
            # The lease is left to be ended as a dead one: its number may have been given to a peer meanwhile.
            self._lose(LeaseLost(f"shard {self.shard.name!r}: lease {self._fence.lease} was given by another server"))
        self._timeline = timeline

    async def _chore(self, keeping: Conn, seen: Glance) -> None:
        """Steps back or up where that is wished; stands for election where nobody is elected; tells what was seen."""
        if self._fence is None:
            return
        lease = self._fence.lease
        if self._retiring and not self._commit.closing:
            if await registry.step_back(self.shard, keeping, lease, self._lanes):
                self._commit.close(True)
        elif not self._retiring and (self._commit.closing or not self._marked):
            await registry.step_up(self.shard, keeping, lease)
            self._marked = True
            self._commit.close(False)
        now = self._commit.loop.time()
        if (seen.vacant and not self._commit.leaving) or (self._seated and now >= self._stand_at):
            term = await rebalance.stand(self.shard, keeping, self._name, lease, SEAT)
            self._seated, self._stand_at = term is not None, now + SEAT / 3
            self._rebalancer.seat(self.shard.name, term)
        if not self._commit.leaving:
            self._ticker.saw(self.shard, seen.schedules)
            self._commit.rest.looked(seen.found, seen.due)

    def _unseat(self) -> None:
        """Gives the seat up for now; the next session stands again, as the election waits for its time to be over."""
        if self._seated:
            self._stand_at = 0.0
            self._rebalancer.seat(self.shard.name, None)

    async def _reconcile(self, conn: Conn, lease: int, resumed: Resumed) -> None:
        """After a lost connection: settles the turn in doubt, runs claims that were never seen."""
        commit = self._commit
        held = resumed.held
        by_wf = {h.wf: h for h in held}
        if (doubt := commit.doubt) is not None:
            done = resumed.done
            if done is None:
                # What it suspended may have been ready and claimed in the same turn: then it is suspended again.
                waits = doubt.turn.waits
                done = bool(waits) and not all(row[0] in by_wf for row in waits)
            commit.doubt = None
            if done:
                commit.settle(doubt.gathered)
            else:
                commit.put_back(doubt.gathered)
        for wf in commit.light.taken_back(by_wf.keys()):
            commit.drop(wf)
        if strange := [run.id for wf, run in commit.runs.items() if wf not in by_wf]:
            # Memory and shard have come apart, as after a restore from a backup: only the shard counts.
            raise LeaseLost(f"shard {self.shard.name!r}: lease {lease} does not hold {strange[0]!r}, which runs here")
        rows: dict[int, dict[int, int]] = defaultdict(dict)
        for h in held:
            rows[h.batch][h.wf] = h.attempt
        commit.receipts.replace(rows, resumed.batches)
        commit.relay.behind()
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
            await self._starter.unseen(conn, unseen)
        self._limits.resumed(commit.receipts.number(), list(commit.runs.values()))

    def _lose(self, error: LeaseLost) -> None:
        log.warning(
            "lease lost: its workflows go on elsewhere, nothing more is written under it",
            extra={"shard": self.shard.name, "error": str(error), "running": len(self._commit.runs)},
        )
        self._commit.abandon()
        self._fence = None

    def _renewed(self, until: float, clock: float) -> None:
        self._commit.valid_until = until
        self._commit.clock_is(clock)

    def _rang(self, says: str) -> None:
        if says == bell.FLEET:
            self._rebalancer.look_soon()
        else:
            self._commit.wake()

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
        self._commit.claims.look_from_the_start()
        self._commit.alarm.look_from_the_start()
        self._commit.wake()
        self._rebalancer.look_soon()


async def _first(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs until the first of the coroutines returns or raises; cancels the others."""
    running = [asyncio.ensure_future(each) for each in coroutines]
    try:
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(running)
        for task in running:
            if not task.cancelled():
                task.exception()  # the others' may be the same loss seen twice: one is told
