"""PgQueuer: a job queue; one or more of its queue managers in the process, a connection each."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import asyncpg
import psycopg
import uvloop
from pgqueuer.db import AsyncpgDriver, PsycopgDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries
from stage import Stage, in_thread, payload_of, serve

ENTRYPOINT = "work"
IN_A_CALL = 1_000


class PgQueuer:
    """`driver` is asyncpg's or psycopg's, `loop` asyncio's or uvloop's."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.knobs: dict[str, Any] = stage.work.settings
        self._run = uvloop.run if self.knobs["loop"] == "uvloop" else asyncio.run

    async def _queries(self) -> Queries:
        if self.knobs["driver"] == "asyncpg":
            return Queries(AsyncpgDriver(await asyncpg.connect(self.stage.work.dsn)))
        return Queries(PsycopgDriver(await psycopg.AsyncConnection.connect(self.stage.work.dsn, autocommit=True)))

    def prepare(self) -> str:
        async def install() -> None:
            await (await self._queries()).install()

        if self.stage.work.first:
            self._run(install())
        return version("pgqueuer")

    def submit(self) -> None:
        async def enqueue() -> None:
            queries = await self._queries()
            numbers = self.stage.numbers
            for first in range(0, len(numbers), IN_A_CALL):
                payloads: list[bytes | None] = [payload_of(n).encode() for n in numbers[first : first + IN_A_CALL]]
                await queries.enqueue([ENTRYPOINT] * len(payloads), payloads, [0] * len(payloads))

        self._run(enqueue())

    def run(self) -> None:
        in_thread(lambda: self._run(self._serve()))

    async def _serve(self) -> None:
        stage = self.stage

        async def work(job: Job) -> None:
            stage.begin()
            assert job.payload is not None
            stage.end(job.payload.decode())

        managers = [QueueManager(await self._queries()) for _ in range(self.knobs["managers"])]
        for manager in managers:
            manager.entrypoint(ENTRYPOINT)(work)
        await asyncio.gather(
            *(
                manager.run(batch_size=self.knobs["batch"], max_concurrent_tasks=self.knobs["max_concurrent"])
                for manager in managers
            )
        )


if __name__ == "__main__":
    serve(PgQueuer)
