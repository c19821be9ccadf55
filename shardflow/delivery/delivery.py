"""What a worker brings to other shards: children to start, messages, what follows from ends."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from ..core.codec import DEFAULT
from ..core.codecs import Codecs
from ..core.retry import Retry
from ..core.routing import draw_id
from ..core.slotmap import SlotMap
from ..definitions import Call
from ..errors import ShardflowError
from ..model import ClusterConfig
from ..storage import messages
from ..storage.ending import end
from ..storage.messages import Letter
from .courier import Courier
from .router import Router
from .sender import Item, Sender
from .submission import make_item, unpack, untyped

_BACKOFF = Retry(attempts=2, initial=0.1, factor=2.0, maximum=5.0, jitter=0.3)
_random = random.SystemRandom()

#: Submissions, and bytes of their inputs, that go in one bulk statement: where it would be more they go in several.
BATCH = 2_000
BATCH_BYTES = 8 << 20


def drawing(router: Router, slot_map: SlotMap) -> Callable[[], str]:
    """Gives ids that belong to shards that answer."""

    return drawing_from(slot_map, lambda: router.choice(slot_map))


def drawing_from(slot_map: SlotMap, choice: Callable[[], Container[str]]) -> Callable[[], str]:
    """Gives ids that belong to one of the shards in the choice."""

    def draw() -> str:
        among = choice()
        return draw_id(time.time_ns() // 1_000_000, _random.getrandbits, lambda id: slot_map.shard_of(id) in among)

    return draw


class Delivery:
    """Router, sender and courier of one worker or client.

    Arguments: `config`, the cluster's; `codecs`, for the arguments of workflows that are known by name only.
    """

    def __init__(self, config: ClusterConfig, codecs: Codecs = DEFAULT) -> None:
        self.router = Router(config)
        self.sender = Sender(self.router, config)
        self.courier = Courier(self.router, config)
        self._config = config
        self._by_name = untyped(codecs)
        self._gathered: dict[str, list[tuple[list[Item], asyncio.Future[None]]]] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Gives up what is under way and closes the connections."""
        await self.courier.close()
        await end(list(self._sending.values()))
        for waiting in self._gathered.values():
            for _, done in waiting:
                done.cancel()
        await self.router.close()

    async def send(self, id: str, topic: str, value: bytes, key: str) -> None:
        """A message; returns when it has arrived, however long its shard is away. Raises WorkflowNotFound."""
        await self.courier.deliver(Letter(id, topic, key, value))

    async def start(self, parent: str, ids: Sequence[str], calls: Sequence[Call[Any]]) -> None:
        """Starts children; returns when all are there, however long a shard is away. Raises WorkflowConflict where
        one of the ids belongs to another workflow."""
        slots, limits, by_name = self._config.slots, self._config.payload, self._by_name
        items = [
            make_item(
                call.set(id=id) if call.id != id else call, slots, None, parent=parent, by_name=by_name, limits=limits
            )
            for id, call in zip(ids, calls, strict=True)
        ]
        await self.submit(items)

    async def submit(self, items: Sequence[Item]) -> None:
        """Submits with given ids; what is asked for while a bulk is under way to a shard goes with its next one."""
        tries = 0
        while True:
            try:
                slot_map = await self.router.load()
                parts: dict[str, list[Item]] = {}
                for item in items:
                    parts.setdefault(slot_map.owners[item.slot], []).append(item)
                await asyncio.gather(
                    *(self._gather(shard, bulk) for shard, part in parts.items() for bulk in _bulks(part))
                )
                return
            except ShardflowError as error:
                if not error.retryable:
                    raise
                tries += 1
                await asyncio.sleep(_BACKOFF.delay(min(tries, 8), random.random()))

    def relay(self, packed: bytes) -> asyncio.Future[None]:
        """A submission that was left in an outbox, see `submission.pack`; the future is done when it is there."""
        return asyncio.ensure_future(self.submit([unpack(packed)]))

    def _gather(self, shard: str, items: list[Item]) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gathered.setdefault(shard, []).append((items, done))
        sending = self._sending.get(shard)
        if sending is None or sending.done():
            self._sending[shard] = asyncio.create_task(self._send(shard))
        return done

    async def _send(self, shard: str) -> None:
        waiting = self._gathered[shard]
        while waiting:
            batch = [waiting.pop(0)]
            rows, size = len(batch[0][0]), _size(batch[0][0])
            while waiting and rows + len(waiting[0][0]) <= BATCH and size + _size(waiting[0][0]) <= BATCH_BYTES:
                rows, size = rows + len(waiting[0][0]), size + _size(waiting[0][0])
                batch.append(waiting.pop(0))
            try:
                await self._send_batch(shard, batch)
            finally:
                for _, done in batch:  # where this was cancelled
                    done.cancel()

    async def _send_batch(self, shard: str, batch: Sequence[tuple[list[Item], asyncio.Future[None]]]) -> None:
        """One bulk; where something in it is not accepted, one by one, so that it costs nobody else: a repetition is
        harmless."""
        try:
            await self.sender.send([item for items, _ in batch for item in items])
        except Exception as error:
            for_all = isinstance(error, ShardflowError) and error.retryable
            for items, done in batch:
                if for_all or len(batch) == 1:
                    _answer(done, messages.refusal(shard, error))
                else:
                    await self._send_batch(shard, [(items, done)])
        else:
            for _, done in batch:
                _answer(done, None)


def _size(items: Sequence[Item]) -> int:
    return sum(len(item.input) for item in items)


def _bulks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """The items in parts that a server takes in one statement."""
    bulk: list[Item] = []
    size = 0
    for item in items:
        if bulk and (len(bulk) >= BATCH or size + len(item.input) > BATCH_BYTES):
            yield bulk
            bulk, size = [], 0
        bulk.append(item)
        size += len(item.input)
    if bulk:
        yield bulk


def _answer(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
