"""The limits of a shard's queues, as its commit loop minds them: what was claimed under them, when to look again, and
what other shards are asked for when this one's share is used up.

A worker may die between any two statements here: a grant lies at its donor until it has certainly arrived, and
whoever asks next brings it on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from ..core.quota import Need, State, decide, split
from ..delivery.router import Router
from ..errors import ShardflowError
from ..queue import Queue
from ..storage import limits as stored
from ..storage.ending import end
from ..storage.limits import Declared, Grant
from ..storage.shard import Conn, Shard

if TYPE_CHECKING:
    from .run import Run

log = logging.getLogger("shardflow.worker")

#: Seconds between rounds of asking: at first, where something is kept for this shard, and at the most.
FIRST_PAUSE = 0.05
KEPT_PAUSE = 0.03
LONGEST_PAUSE = 0.5
#: Seconds for which a need holds that was not seen again: the queue may have been emptied by others.
FRESH = 2.5
#: Seconds between looks whether a thread that was made for a workflow has begun.
THREAD_LOOK = 0.002


class Limits:
    """The limits on one shard.

    Arguments: `shard`; `shards`, the names of the cluster's; `queues`, with the limits that the app declares;
    `started`, when the worker was started, in µs since 1970; `router`, to the other shards; `look`, called when there
    may be something to claim.
    """

    def __init__(
        self,
        shard: Shard,
        shards: Iterable[str],
        queues: Sequence[Queue],
        started: int,
        router: Router,
        look: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._names = sorted(shards)
        self._queues = queues
        self._started = started
        self._router = router
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._needs: list[Need] = []
        self._asking: asyncio.Task[None] | None = None
        self._begun: dict[int, float] = {}
        self._until = 0.0
        self._paced = True

    async def declare(self, conn: Conn) -> frozenset[str]:
        """Tells the shard what the app declares; answers which queues have limits there."""
        return await stored.declare(self._shard, conn, self._started, self._declared(self._shard.name))

    def _declared(self, shard: str) -> list[Declared]:
        found = []
        for queue in self._queues:
            most, seconds = queue.rate or (None, None)
            assert seconds is None or isinstance(seconds, float)
            part = split(queue.concurrency or 0, self._names, queue.name)[shard]
            found.append(Declared(queue.name, "running", queue.concurrency, None, part))
            part = split(most or 0, self._names, queue.name)[shard]
            found.append(Declared(queue.name, "starts", most, seconds, part))
        return found

    # -- what was claimed

    def claimed(self, batch: int, runs: Sequence[Run]) -> None:
        """These are about to begin; to be called when their tasks were made."""
        if self._paced:
            self._loop.call_soon(self._mark, batch, runs)

    def resumed(self, receipt: int, runs: Sequence[Run]) -> None:
        """The lease is held again, and this is all of it; receipts from now on have higher numbers."""
        self.claimed(-receipt, runs)

    def _mark(self, batch: int, runs: Sequence[Run]) -> None:
        late = [run for run in runs if run.blocking and not _has_begun(run)]
        if late:
            self._loop.call_later(THREAD_LOOK, self._mark, batch, late)
            return
        self._begun[batch] = self._loop.time()
        self._look()

    @property
    def begun(self) -> Sequence[tuple[int, float]]:
        """Batches of which everything has begun, and how many seconds ago, for the next turn."""
        now = self._loop.time()
        return [(batch, now - at) for batch, at in self._begun.items()] if self._begun else ()

    def told(self, begun: Iterable[tuple[int, float]]) -> None:
        """A turn that said so has committed."""
        for batch, _ in begun:
            self._begun.pop(batch, None)

    # -- what the shard says

    def saw(self, states: Sequence[State]) -> None:
        """How it stands after a claim."""
        again, self._needs = decide(states)
        self._paced = any(state.kind == "starts" for state in states)
        self._until = self._loop.time() + FRESH
        if again is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(again, self._look)
        if self._needs and len(self._names) > 1 and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())

    def forget(self) -> None:
        """The lease is not held any more."""
        self._begun.clear()
        self._needs = []
        if self._timer is not None:
            self._timer.cancel()

    async def close(self) -> None:
        """Asks no more."""
        self.forget()
        if self._asking is not None:
            await end([self._asking])

    # -- asking other shards

    async def _ask(self) -> None:
        pause = FIRST_PAUSE
        while self._needs and self._loop.time() < self._until:
            got = kept = False
            for donor in self._donors():
                if not self._needs:
                    return
                try:
                    given, more = await self._ask_one(donor)
                except ShardflowError as error:
                    log.debug(
                        "a shard cannot be asked for its share now", extra={"shard": donor, "error": str(error)}
                    )
                    continue
                got, kept = got or given, kept or more
            if got:
                pause = FIRST_PAUSE
                self._look()
            await asyncio.sleep(KEPT_PAUSE if kept else pause)
            pause = FIRST_PAUSE if got else min(2 * pause, LONGEST_PAUSE)

    def _donors(self) -> list[str]:
        """The others, those behind this one in the order of names first; then this one, for what lies there."""
        place = self._names.index(self._shard.name) + 1
        order = self._names[place:] + self._names[:place]
        return [name for name in order if self._router.healthy(name)]

    async def _ask_one(self, donor: str) -> tuple[bool, bool]:
        own = self._shard.name
        pool = self._router.pool(donor)
        async with pool.connection() as conn:
            needs = self._needs if donor != own else []
            grants, kept = await stored.ask(pool.shard, conn, own, self._started, self._declared(donor), needs)
            got = False
            for grant in grants:
                got = await self._bring(donor, grant) or got
                await stored.arrived(pool.shard, conn, grant)
        return got, kept

    async def _bring(self, donor: str, grant: Grant) -> bool:
        """Brings a grant to its target; answers whether that is this shard."""
        if grant.target not in self._router.pools:
            raise ShardflowError(f"shard {donor!r} has given a share to {grant.target!r}, which is not configured")
        pool = self._router.pool(grant.target)
        async with pool.connection() as conn:
            await stored.accept(pool.shard, conn, donor, grant)
        return grant.target == self._shard.name


def _has_begun(run: Run) -> bool:
    return run.closed or (run.thread is not None and (run.thread.running() or run.thread.done()))
