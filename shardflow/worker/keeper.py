"""Keeps a lease on a connection of its own: renews it, hears the bell, and ends the leases of dead peers.

One query a period asks all of it. The connection's session stands for the worker's life: when it closes, peers may
take what the lease holds.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence

from ..errors import LeaseLost, ShardUnavailable
from ..model import LeaseConfig
from ..storage import leases
from ..storage.bell import hear
from ..storage.leases import Glance, Peer
from ..storage.shard import Conn, Shard

log = logging.getLogger("shardflow.worker")

#: How often in a row a peer's session must be seen closed before its lease is ended, and how soon the second look
#: comes: a worker that merely lost its connection has this moment to come back.
SEEN_GONE = 2
LOOK_AGAIN = 0.4
#: Seconds after this worker's own connection was lost in which closed sessions of peers do not count: where the
#: server had gone away, all of them were closed, and come back one after the other.
PATIENCE = 2.5
#: Seconds beyond its time after which the transaction that keeps a lease from being ended is cut off.
LATE = 0.5


class Keeper:
    """One lease, kept.

    Arguments: `shard`; `config`, seconds; `lease`, its id; `epoch`, as the link knows it now (a call, since a resume
    changes it); `lanes`, called for those into which a look is to look as well; `rang`, called with what the bell
    says when it rings; `renewed`, called with the time of the event loop's clock until which the lease surely lasts,
    and the server's clock; `took`, called with (peer, workflows put back) after a takeover; `chore`, done at every
    look at the peers, with the connection and what was seen; `resumed`, whether the lease is older than the
    connection.
    """

    def __init__(
        self,
        shard: Shard,
        config: LeaseConfig,
        lease: int,
        epoch: Callable[[], int],
        lanes: Callable[[], Sequence[str] | None],
        rang: Callable[[str], None],
        renewed: Callable[[float, float], None],
        took: Callable[[Peer, int], None],
        chore: Callable[[Conn, Glance], Awaitable[None]],
        *,
        resumed: bool = False,
    ) -> None:
        self._shard = shard
        self._config = config
        self._lease = lease
        self._epoch = epoch
        self._lanes = lanes
        self._rang = rang
        self._renewed = renewed
        self._took = took
        self._chore = chore
        self._gone: dict[int, int] = {}
        self._held_up = False
        self._patient_until = asyncio.get_running_loop().time() + (PATIENCE if resumed else 0.0)

    async def keep(self, conn: Conn) -> None:
        """Runs until cancelled. Raises LeaseLost when the lease is gone, ShardUnavailable with the connection."""
        loop = asyncio.get_running_loop()
        renew_at = watch_at = loop.time()
        while True:
            now = loop.time()
            watch = now >= watch_at
            # Nearly due goes along with a look.
            renew = now >= renew_at - (self._config.watch / 2 if watch else 0.0)
            if renew or watch:
                async with self._shard.deadline(conn, self._config.ttl, "keeping the lease"):
                    seen = await self._look(conn, renew=renew, watch=watch)
                    if renew:
                        renew_at = loop.time() + self._config.renew
                    if watch:
                        await self._see(conn, seen)
                        soon = LOOK_AGAIN if self._gone or self._held_up else math.inf
                        watch_at = loop.time() + min(self._config.watch, soon)
            await hear(self._shard, conn, min(renew_at, watch_at) - loop.time(), self._rang)

    async def _look(self, conn: Conn, *, renew: bool, watch: bool) -> Glance:
        """The one query of a period."""
        began, ttl = asyncio.get_running_loop().time(), self._config.ttl
        seen = await leases.look(
            self._shard,
            conn,
            self._lease,
            self._epoch(),
            ttl=ttl if renew else None,
            watch=watch,
            lanes=self._lanes() if watch else None,
        )
        if not seen.held:
            raise LeaseLost(f"shard {self._shard.name!r}: lease {self._lease} was ended by a peer")
        if renew:
            # Counted from before the request, so that by our clock it ends no later than by the server's.
            self._renewed(began + ttl, seen.clock.timestamp())
        return seen

    async def _see(self, conn: Conn, glance: Glance) -> None:
        """Ends the leases of dead peers."""
        patient = asyncio.get_running_loop().time() < self._patient_until
        seen = {p.lease: self._gone.get(p.lease, 0) + 1 for p in glance.dead if p.gone and not patient}
        self._held_up = False
        for peer in glance.dead:
            if peer.expired or seen.get(peer.lease, 0) >= SEEN_GONE:
                seen.pop(peer.lease, None)
                try:
                    back = await leases.expire(self._shard, conn, peer)
                except ShardUnavailable:
                    if conn.closed:
                        raise
                    self._held_up = True
                    continue  # its batch in flight holds the lease's row: the next look tries again
                if back is not None:
                    self._took(peer, back)
                    continue
                self._held_up = self._held_up or peer.expired
                if peer.expired and await leases.cut_off(self._shard, conn, peer, LATE):
                    log.warning(
                        "cut off a connection that kept a dead worker's lease from being ended",
                        extra={"shard": self._shard.name, "lease": peer.lease, "worker": peer.worker},
                    )
        self._gone = seen
        await self._chore(conn, glance)
