"""Keeps a worker in the registry, on its home shard, and brings the rebalancer's wishes.

The home is the first shard that answers in an order of the worker's own, so that no server has all of the registry.
Who comes or goes says so on the first shard that answers in the order of the configuration, where the elected one is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import mmh3

from ..errors import ShardflowError
from ..model import LeaseConfig
from ..storage import bell, registry
from ..storage.ending import end
from ..storage.registry import Card, Pulse, Wish
from ..storage.shard import Conn, Shard

log = logging.getLogger("shardflow.worker")

#: Beats between two sweeps of the home shard's registry, and seconds for which a dead worker's row stays there.
SWEEP_EVERY = 60
KEPT = 3600.0
#: Beats without any lease after which the connection is given up between beats: idle workers must not fill a server.
IDLE_BEATS = 30
#: Seconds between the beats of a worker that nobody has told yet which shards to serve.
FRESH = 0.25
#: Seconds to connect.
CONNECT = 3.0


class Registrar:
    """One worker's entry.

    Arguments: `shards`, all of the cluster; `card`, what stays the same; `pulse`, called for what does not, with the
    number of the beat; `config`, whose `renew` is the pause between beats; `wished`, called with each answer.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        config: LeaseConfig,
        card: Card,
        pulse: Callable[[int], Pulse],
        wished: Callable[[Wish], None],
    ) -> None:
        self._homes = sorted(shards, key=lambda s: (mmh3.hash(f"{card.worker}\0{s.name}", signed=False), s.name))
        self._config = config
        self._card = card
        self._pulse = pulse
        self._wished = wished
        self._nudged = asyncio.Event()
        self._beats = 0
        self._idle = 0
        self._home: Shard | None = None
        self._shards = list(shards)
        self._draining: bool | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._pause = FRESH

    def nudge(self) -> None:
        """There is something to say: the next beat comes at once."""
        self._nudged.set()

    async def run(self) -> None:
        """Beats until cancelled, wherever there is a shard that answers."""
        try:
            while True:
                await self._somewhere()
                await asyncio.sleep(min(self._config.watch, 1.0) if self._idle < IDLE_BEATS else self._config.ttl / 3)
        finally:
            await end(self._telling)

    async def _somewhere(self) -> None:
        """Beats on the first home that answers, for as long as it does."""
        for shard in self._homes:
            try:
                await self._at_home(shard)
                return
            except ShardflowError as error:
                log.debug("registry: a shard does not answer", extra={"shard": shard.name, "error": str(error)})
            except Exception:
                log.exception("the registrar failed; it tries again", extra={"shard": shard.name})

    async def leave(self) -> None:
        """Takes the worker off the registry, where that can be done."""
        if self._home is not None:
            with contextlib.suppress(ShardflowError):
                async with (
                    await self._home.connect("registrar", connect_timeout=CONNECT) as conn,
                    self._home.deadline(conn, CONNECT, "leaving the registry"),
                ):
                    await registry.leave(self._home, conn, self._card.worker)

    async def _at_home(self, shard: Shard) -> None:
        """Beats there for as long as it answers; returns when idle, to come again."""
        async with await shard.connect(f"registrar {self._card.worker}", connect_timeout=CONNECT) as conn:
            self._home = shard
            async with shard.deadline(conn, self._config.ttl, "a heartbeat"):
                await registry.stand_in(shard, conn, self._card.worker)
            while True:
                self._nudged.clear()
                await self._beat(shard, conn)
                if self._idle >= IDLE_BEATS:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause):
                        await self._nudged.wait()

    async def _beat(self, shard: Shard, conn: Conn) -> None:
        self._beats += 1
        pulse = self._pulse(self._beats)
        self._pause = min(FRESH, self._config.watch) if pulse.aims is None else self._config.renew
        self._idle = 0 if pulse.held or pulse.aims else self._idle + 1
        async with shard.deadline(conn, self._config.ttl, "a heartbeat"):
            staying = self._idle < IDLE_BEATS
            wish = await registry.beat(shard, conn, self._card, pulse, self._config.ttl, session=staying)
            if self._beats % SWEEP_EVERY == 0:
                await registry.sweep(shard, conn, KEPT)
            news = pulse.draining is not self._draining
            if here := news and shard is self._shards[0]:
                await bell.tell(shard, conn, bell.FLEET)
        self._wished(wish)
        self._draining = pulse.draining
        if news and not here:
            task = asyncio.create_task(self._announce())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _announce(self) -> None:
        """Says that the worker has come, or goes. Nothing depends on it: the elected one looks anyway, if later."""
        for shard in self._shards:
            with contextlib.suppress(ShardflowError):
                async with (
                    await shard.connect("registrar", connect_timeout=CONNECT) as conn,
                    shard.deadline(conn, CONNECT, "news of a worker"),
                ):
                    await bell.tell(shard, conn, bell.FLEET)
                    return
