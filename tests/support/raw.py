"""The storage layer by hand: leases, claims and writes one by one, for scenarios whose order is given."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shardflow import ClusterConfig
from shardflow.core.lowwater import START
from shardflow.core.routing import slot_of
from shardflow.delivery.sender import Item
from shardflow.storage import leases, submissions, turn
from shardflow.storage.shard import Conn, Shard
from shardflow.storage.turn import Claimed, ClaimWanted, Fence, OutcomeRow, Receipt, StepRow, Turn, WaitRow
from support.look import one

INPUT = b'{"args":[]}'


class Hand:
    """A shard and connections to it, opened as needed and closed at the end.

    Arguments: `config`; `number`, the shard's.
    """

    def __init__(self, config: ClusterConfig, number: int = 0) -> None:
        self.config = config
        self.shard = Shard(config.shards[number])
        self.number = number
        self._conns: list[Conn] = []

    async def conn(self, role: str = "hand") -> Conn:
        made = await self.shard.connect(role)
        self._conns.append(made)
        return made

    async def close(self) -> None:
        for conn in self._conns:
            await conn.close()

    @property
    def generation(self) -> int:
        return int(one(self.config, "SELECT generation FROM shard", shard=self.number))

    def news(self, ids: Sequence[str], name: str = "work", queue: str = "default") -> list[Item]:
        return [Item(id, name, queue, slot_of(id, self.config.slots), INPUT) for id in ids]

    async def submit(self, conn: Conn, *ids: str, generation: int | None = None) -> dict[str, int]:
        believed = self.generation if generation is None else generation
        return await submissions.submit(self.shard, conn, believed, self.news(ids))

    async def holder(self, name: str, ttl: float = 60.0, *, writer: bool = True) -> Holder:
        """A lease with its two connections; without `writer` nobody can end the second one, as behind a pooler."""
        keeping, writing = await self.conn(f"keeper {name}"), await self.conn(f"commit {name}")
        pid = writing.info.backend_pid if writer else None
        lease, epoch = await leases.open_lease(self.shard, keeping, name, ttl, pid)
        return Holder(self, keeping, writing, Fence(lease, epoch, self.generation))


@dataclass
class Holder:
    """One worker's side, by hand."""

    hand: Hand
    keeping: Conn
    writing: Conn
    fence: Fence
    batch: int = 0

    async def turn(
        self,
        *,
        steps: Sequence[StepRow] = (),
        outcomes: Sequence[OutcomeRow] = (),
        waits: Sequence[tuple[int, float, int, str]] = (),
        dropped: Sequence[int] = (),
        kept: Receipt | None = None,
        claim: int = 0,
        wake: int = 0,
        queue: str = "default",
    ) -> list[Claimed]:
        wanted = None
        if claim:
            self.batch += 1
            wanted = ClaimWanted(self.batch, [queue], claim, [START])
        asleep: list[WaitRow] = [(*row, 0, None, None) for row in waits]
        what = Turn(steps=steps, outcomes=outcomes, waits=asleep, dropped=dropped, kept=kept, claim=wanted, wake=wake)
        return list((await turn.commit(self.hand.shard, self.writing, self.fence, what)).claimed)

    async def claim(self, count: int = 10) -> list[Claimed]:
        return await self.turn(claim=count)

    async def checkpoints(self, wf: int) -> dict[int, leases.Checkpoint]:
        recorded, _ = await leases.recorded(self.hand.shard, self.writing, [wf])
        return recorded[wf].checkpoints


def step(wf: int, seq: int = 0, output: bytes = b"1", name: str = "step") -> StepRow:
    return (wf, seq, 1, name, output, None)


def done(wf: int, output: bytes = b"1") -> OutcomeRow:
    return (wf, "succeeded", output, None)


@asynccontextmanager
async def by_hand(config: ClusterConfig, number: int = 0) -> AsyncIterator[Hand]:
    hand = Hand(config, number)
    try:
        yield hand
    finally:
        await hand.close()
