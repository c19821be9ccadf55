"""Absurd: tasks and steps, its schema from absurdctl; its workers in one process, a connection each."""

from __future__ import annotations

import asyncio
import threading
from importlib.metadata import version
from typing import Any

import psycopg
import uvloop
from absurd_sdk import Absurd, AsyncAbsurd
from absurdctl import BUNDLED_SCHEMA_SQL
from stage import Stage, in_thread, payload_of, serve

QUEUE = "bench"
IN_A_TRANSACTION = 500


class AbsurdRival:
    """`workers` of Absurd's workers, synchronous ones in threads, asynchronous ones in one uvloop."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.knobs: dict[str, Any] = stage.work.settings
        self.dsn = stage.work.dsn

    def prepare(self) -> str:
        if self.stage.work.first:
            with psycopg.connect(self.dsn, autocommit=True) as conn:
                conn.execute(BUNDLED_SCHEMA_SQL)  # type: ignore[arg-type, unused-ignore]
            app = Absurd(self.dsn, queue_name=QUEUE)
            app.create_queue()
            app.close()
        return version("absurd-sdk")

    def submit(self) -> None:
        numbers = self.stage.numbers
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            app = Absurd(conn, queue_name=QUEUE)
            for first in range(0, len(numbers), IN_A_TRANSACTION):
                with conn.transaction():
                    for number in numbers[first : first + IN_A_TRANSACTION]:
                        app.spawn("work", payload_of(number), queue=QUEUE)

    def run(self) -> None:
        if self.knobs["style"] == "async":
            in_thread(lambda: uvloop.run(self._serve_async()))
            return
        for _ in range(self.knobs["workers"]):
            in_thread(self._serve)
        assert threading.active_count() > self.knobs["workers"]

    def _options(self) -> dict[str, Any]:
        return {
            "concurrency": self.knobs["concurrency"],
            "batch_size": self.knobs["batch"],
            "poll_interval": self.knobs["poll_interval"],
        }

    def _serve(self) -> None:
        stage = self.stage
        names = [f"step{seq}" for seq in range(stage.work.steps)]
        app = Absurd(self.dsn, queue_name=QUEUE)

        @app.register_task("work")
        def work(payload: Any, ctx: Any) -> str:
            stage.begin()
            for seq, name in enumerate(names):
                ctx.step(name, lambda seq=seq: stage.step(payload, seq))
            return stage.end(payload)

        app.start_worker(**self._options())

    async def _serve_async(self) -> None:
        stage = self.stage
        names = [f"step{seq}" for seq in range(stage.work.steps)]

        async def work(payload: Any, ctx: Any) -> str:
            stage.begin()
            for seq, name in enumerate(names):

                async def step(seq: int = seq) -> str:
                    return stage.step(payload, seq)

                await ctx.step(name, step)
            return stage.end(payload)

        apps = [AsyncAbsurd(self.dsn, queue_name=QUEUE) for _ in range(self.knobs["workers"])]
        for app in apps:
            app.register_task("work")(work)
        await asyncio.gather(*(app.start_worker(**self._options()) for app in apps))


if __name__ == "__main__":
    serve(AbsurdRival)
