"""What is asked of a filled shard: each operation of `million.py`, as a user or a worker does it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from _million_app import order, quick
from _million_fill import USUAL, Filled, id_of

from shardflow import AsyncClient
from shardflow.core.cursor import Cursor, encode
from shardflow.core.lowwater import START
from shardflow.core.query import filters, order_of
from shardflow.core.stretch import range_of
from shardflow.storage import checkup, leases, turn
from shardflow.storage.shard import Conn, Shard
from shardflow.storage.turn import ClaimWanted, Fence, Receipt, Turn

#: Workflows in one claim, in one submission of many, in one drain.
BATCH = 500
LATE = """
SELECT date_part('epoch', max(o.finished_at) - min(w.submitted_at))
FROM {schema}.workflow w JOIN {schema}.outcome o USING (wf) WHERE w.id = ANY(%s)"""


@dataclass
class Stand:
    """A filled shard with a client that was there before it was filled, and connections as a worker has them."""

    filled: Filled
    client: AsyncClient
    shard: Shard
    keeping: Conn
    writing: Conn
    checking: Conn
    asked: random.Random = field(default_factory=lambda: random.Random(1))
    numbers: dict[str, Iterator[int]] = field(default_factory=dict)
    submitted: int = 0

    def any(self, kind: str) -> str:
        """A workflow of that kind, whichever; the sample, before there are copies."""
        return id_of(kind, self.asked.randint(1, self.filled.rows)) if self.filled.rows else kind

    def next(self, kind: str) -> str:
        """One of that kind that was not asked for yet."""
        if not self.filled.rows:
            return "nobody"
        if kind not in self.numbers:
            numbers = list(range(1, self.filled.rows + 1))
            self.asked.shuffle(numbers)
            self.numbers[kind] = iter(numbers)
        return id_of(kind, next(self.numbers[kind]))

    def fresh(self) -> str:
        self.submitted += 1
        return f"fresh-{self.submitted:012d}"

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Fence]:
        """A lease, whose claims go back at the end."""
        lease, epoch = await leases.open_lease(self.shard, self.keeping, "bench", 600.0, None)
        try:
            yield Fence(lease, epoch, 1)
        finally:
            await leases.release(self.shard, self.keeping, lease)

    async def claim(self, fence: Fence, count: int) -> list[int]:
        """Claims from the head of the backlog."""
        wanted = Turn(claim=ClaimWanted(1, ["backlog"], count, [START]))
        claimed = (await turn.commit(self.shard, self.writing, fence, wanted)).claimed
        if len(claimed) < count:
            raise RuntimeError(f"claimed {len(claimed)} of {count}")
        return [each.wf for each in claimed]


#: Does it once; answers the seconds that it took, where they are not all.
Operation = Callable[[Stand], Awaitable[float | None]]


async def _submit(at: Stand) -> None:
    await at.client.submit(quick, 1, id=at.fresh(), queue="parked", attributes=USUAL)


async def _submit_many(at: Stand) -> None:
    calls = [quick.call(1).set(id=at.fresh(), queue="parked", attributes=USUAL) for _ in range(BATCH)]
    await at.client.submit_many(calls)


async def _again(at: Stand) -> None:
    await at.client.submit(order, 5, id=at.any("ready"))


async def _drain(at: Stand) -> float:
    """A worker does what stands in a queue of its own; timed from the submission to the last end."""
    calls = [quick.call(n).set(id=at.fresh(), attributes=USUAL) for n in range(BATCH)]
    began = time.perf_counter()
    handles = await at.client.submit_many(calls)
    await asyncio.gather(*(handle.result(60) for handle in handles))
    return time.perf_counter() - began


async def _wake(at: Stand) -> float:
    """Several are due at one moment; timed from then to the last end, by the server's clock."""
    calls = [quick.call(n).set(id=at.fresh(), delay=1.0, attributes=USUAL) for n in range(BATCH)]
    handles = await at.client.submit_many(calls)
    await asyncio.gather(*(handle.result(60) for handle in handles))
    query = LATE.replace("{schema}", at.shard.config.schema)
    row = await (await at.checking.execute(query.encode(), ([handle.id for handle in handles],))).fetchone()
    assert row is not None
    return float(row[0]) - 1.0


async def _claim(at: Stand) -> float:
    async with at.lease() as fence:
        began = time.perf_counter()
        await at.claim(fence, BATCH)
        return time.perf_counter() - began


async def _give_back(at: Stand) -> float:
    async with at.lease() as fence:
        await at.claim(fence, 2 * BATCH)
        began = time.perf_counter()
        await leases.release(at.shard, at.keeping, fence.lease)
        return time.perf_counter() - began


async def _resume(at: Stand) -> float:
    async with at.lease() as fence:
        await at.claim(fence, 2 * BATCH)
        began = time.perf_counter()
        resumed = await leases.resume(at.shard, at.writing, fence.lease, 600.0)
        took = time.perf_counter() - began
        assert resumed is not None
        assert len(resumed.held) == 2 * BATCH
        return took


async def _chores(at: Stand) -> float:
    """A turn that claims nothing: it rewrites receipts, wakes, and takes over what others have left."""
    async with at.lease() as fence:
        wfs = await at.claim(fence, 2 * BATCH)
        began = time.perf_counter()
        kept = Receipt(2, wfs, [0] * len(wfs))
        await turn.commit(at.shard, at.writing, fence, Turn(dropped=[1], kept=kept, wake=100, adopt=True, heed=True))
        return time.perf_counter() - began


async def _look(at: Stand) -> None:
    await leases.look(at.shard, at.keeping, 0, 1, ttl=10.0, watch=True, lanes=["side", "nobody"])


async def _doctor(at: Stand) -> None:
    facts = await checkup.examine(at.shard, at.checking)
    assert not facts.unreadable, facts.unreadable


async def _poll(at: Stand) -> None:
    """What a client asks that waits for many, which it has submitted together."""
    first = at.asked.randint(1, max(1, at.filled.rows - BATCH))
    await at.client.wait([id_of("waiting", first + n) for n in range(BATCH)], timeout=0)


async def _send(at: Stand) -> None:
    await at.client.send(at.next("waiting"), "go", "now")


async def _cancel(at: Stand, kind: str) -> None:
    assert await at.client.cancel(at.next(kind))


async def _result(at: Stand) -> None:
    assert await (await at.client.get(at.any("done"), order)).result(60) == "paid 5"


async def _event(at: Stand) -> None:
    assert await at.client.event(at.any("done"), "state") == "paying"


async def _steps(at: Stand) -> None:
    assert await at.client.steps(at.any("done"))


async def _info(at: Stand) -> None:
    await at.client.info(at.any("waiting"))


async def _list(at: Stand, deep: bool, least: int, **asked: Any) -> None:
    """A page of 50: the first one, or one in the midst of what has ended and what waits."""
    asked = {key: at.filled.middle if value == "middle" else value for key, value in asked.items()}
    if deep:
        names = ("status", "name", "queue", "since", "until", "attributes")
        middle_key = at.filled.key("done", at.filled.rows // 2)
        place = Cursor(filters(*(asked.get(n) for n in names)), order_of(asked.get("order", "newest")))
        positions = {range_of(middle_key): middle_key}
        asked["cursor"] = encode(Cursor(place.filters, place.order, positions))
    page = await at.client.list(**asked)
    assert len(page.workflows) >= least, (asked, len(page.workflows))


async def _count(at: Stand, **asked: Any) -> None:
    assert (await at.client.count(**asked)).total >= 0


async def _queues(at: Stand) -> None:
    assert len((await at.client.queues.list()).queues) >= 1


LISTS: dict[str, tuple[int, dict[str, Any]]] = {
    "all": (50, {}),
    "ready": (50, {"status": "ready"}),
    "running": (0, {"status": "running"}),
    "suspended": (50, {"status": "suspended"}),
    "succeeded": (50, {"status": "succeeded"}),
    "failed": (10, {"status": "failed"}),
    "ready or failed": (50, {"status": ["ready", "failed"]}),
    "suspended of a name": (50, {"status": "suspended", "name": "listens"}),
    "ready of a queue": (50, {"status": "ready", "queue": "backlog"}),
    "since": (50, {"since": "middle"}),
    "until": (50, {"until": "middle"}),
    "by frequent attributes": (50, {"attributes": USUAL}),
    "by rare attributes": (5, {"attributes": {"tenant": "rare"}}),
}

OPERATIONS: dict[str, Operation] = {
    "submit": _submit,
    f"submit {BATCH}": _submit_many,
    "submit what is there": _again,
    f"claim {BATCH} of the backlog": _claim,
    f"give {2 * BATCH} claims back": _give_back,
    f"resume a lease of {2 * BATCH}": _resume,
    "a turn's chores": _chores,
    "an idle worker's look": _look,
    "send": _send,
    "cancel one that waits": partial(_cancel, kind="waiting"),
    "cancel one that is ready": partial(_cancel, kind="ready"),
    "result": _result,
    f"poll for {BATCH} results": _poll,
    "event": _event,
    "steps": _steps,
    "info": _info,
    **{
        f"list {name}, {way}{', deep' if deep else ''}": partial(
            _list, deep=deep, least=0 if deep else least, order=way, **asked
        )
        for name, (least, asked) in LISTS.items()
        for way in ("newest", "oldest")
        for deep in ((False, True) if name in ("all", "suspended", "succeeded", "ready") else (False,))
    },
    "count, roughly": partial(_count, exact=False),
    "count what failed, roughly": partial(_count, exact=False, status="failed"),
    "doctor": _doctor,
}
#: With a worker, and not as often.
SERVED: dict[str, Operation] = {f"{BATCH} in a queue beside it": _drain, f"wake {BATCH}": _wake}
#: What reads all that it counts, or all that lies before what it looks for.
LINEAR: dict[str, Operation] = {
    "count": _count,
    "count a name": partial(_count, name="listens"),
    "list a name, behind all others": partial(_list, deep=False, least=50, name="listens", order="newest"),
    "list queues": _queues,
}
