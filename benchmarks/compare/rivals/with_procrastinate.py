"""Procrastinate: a job queue; one or more of its workers in one event loop, on one pool of connections."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import procrastinate
import uvloop
from psycopg_pool import AsyncConnectionPool
from stage import Stage, in_thread, payload_of, serve

IN_A_CALL = 1_000


class Procrastinate:
    """`own_pool`: a pool of the application's, which does not check each connection before its use."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.knobs: dict[str, Any] = stage.work.settings
        self._run = uvloop.run if self.knobs["loop"] == "uvloop" else asyncio.run

    def _app(self) -> procrastinate.App:
        stage, knobs = self.stage, self.knobs
        size = knobs["pool"]
        self._pool = {
            "conninfo": stage.work.dsn,
            "min_size": size,
            "max_size": size,
            "kwargs": {"autocommit": knobs["autocommit"]},
        }
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(**self._pool))

        def ran(payload: str) -> str:
            stage.begin()
            return stage.end(payload)

        async def ran_async(payload: str) -> str:
            return ran(payload)

        self._task: Any = app.task(name="work", queue="bench")(ran_async if knobs["style"] == "async" else ran)
        return app

    async def _open(self, app: procrastinate.App) -> None:
        if not self.knobs["own_pool"]:
            await app.open_async()
            return
        pool = AsyncConnectionPool(**self._pool, open=False)
        await pool.open(wait=True)
        await app.open_async(pool)

    def prepare(self) -> str:
        async def install() -> None:
            app = self._app()
            await self._open(app)
            await app.schema_manager.apply_schema_async()

        if self.stage.work.first:
            self._run(install())
        return version("procrastinate")

    def submit(self) -> None:
        async def defer() -> None:
            app = self._app()
            await self._open(app)
            numbers = self.stage.numbers
            for first in range(0, len(numbers), IN_A_CALL):
                some = numbers[first : first + IN_A_CALL]
                await self._task.batch_defer_async(*({"payload": payload_of(n)} for n in some))

        self._run(defer())

    def run(self) -> None:
        in_thread(lambda: self._run(self._serve()))

    async def _serve(self) -> None:
        app = self._app()
        await self._open(app)
        await asyncio.gather(
            *(
                app.run_worker_async(
                    queues=["bench"],
                    name=f"worker{number}",
                    concurrency=self.knobs["concurrency"],
                    install_signal_handlers=False,
                    listen_notify=False,
                    fetch_job_polling_interval=0.1,
                )
                for number in range(self.knobs["workers"])
            )
        )


if __name__ == "__main__":
    serve(Procrastinate)
