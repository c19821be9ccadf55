"""The demo's own look at the shards, past client and workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from ..model import ClusterConfig
from ..storage import leases, submissions
from ..storage.shard import Conn, Shard

T = TypeVar("T")


class Observer:
    """One connection to each shard, for use as a context; every answer is a mapping by the shard's name."""

    def __init__(self, config: ClusterConfig) -> None:
        self._runner = asyncio.Runner()
        self._shards = [Shard(shard) for shard in config.shards]
        self._conns: list[Conn] = []

    def __enter__(self) -> Self:
        async def connect() -> list[Conn]:
            return [await shard.connect("demo") for shard in self._shards]

        self._conns = self._run(connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def close() -> None:
            await asyncio.gather(*(conn.close() for conn in self._conns), return_exceptions=True)

        self._run(close())
        self._runner.close()

    def ended(self) -> Mapping[str, int]:
        """How many workflows have ended."""
        return {name: ended for name, (ended, _) in self._ask(submissions.progress).items()}

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """How many workflows and checkpoints are where."""
        return self._ask(submissions.counts)

    def leases(self) -> Mapping[str, list[leases.LeaseRow]]:
        """All leases."""
        return self._ask(leases.all_leases)

    def unfinished(self, worker: str) -> int:
        """How many workflows without an outcome the worker's leases hold, on all shards together."""

        async def held(shard: Shard, conn: Conn) -> int:
            rows = [row for row in await leases.all_leases(shard, conn) if row.worker == worker]
            return sum([len(await leases.held(shard, conn, row.lease)) for row in rows])

        return sum(self._ask(held).values())

    def workers(self) -> list[str]:
        """The workers by their leases: one entry for each shard they serve."""
        return [row.worker for rows in self.leases().values() for row in rows]

    def _ask(self, question: Callable[[Shard, Conn], Awaitable[T]]) -> dict[str, T]:
        async def ask() -> dict[str, T]:
            pairs = zip(self._shards, self._conns, strict=True)
            found = await asyncio.gather(*(question(shard, conn) for shard, conn in pairs))
            return {shard.name: answer for shard, answer in zip(self._shards, found, strict=True)}

        return self._run(ask())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(coroutine)
