"""DBOS: workflows and steps, enqueued by its client in transactions of many, or started directly."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version
from typing import Any

import sqlalchemy
import uvloop
from dbos import DBOS, DBOSClient, DBOSConfig, SetWorkflowID
from stage import Stage, id_of, in_thread, payload_of, serve

QUEUE = "bench"
IN_A_TRANSACTION = 500


class Dbos:
    """One executor. `direct`: so many threads or tasks of the worker call the workflows, and there is no queue."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.knobs: dict[str, Any] = stage.work.settings
        self.url = stage.work.dsn.replace("postgresql://", "postgresql+psycopg://", 1)

    def prepare(self) -> str:
        knobs = self.knobs
        if knobs["switch_interval"] is not None:
            sys.setswitchinterval(knobs["switch_interval"])
        if knobs["loop"] == "uvloop":
            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        if self.stage.work.first:
            # A worker looks for new queues once a second: with the queue there beforehand, all of them begin at once.
            self._launch()
            DBOS.register_queue(
                QUEUE, worker_concurrency=knobs["worker_concurrency"], polling_interval_sec=knobs["polling_interval"]
            )
            DBOS.destroy()
        return version("dbos")

    def _launch(self) -> None:
        knobs = self.knobs
        config: DBOSConfig = {
            "name": "bench",
            "system_database_url": self.url,
            "log_level": "ERROR",
            "sys_db_pool_size": knobs["pool"],
            "use_listen_notify": knobs["listen_notify"],
            "max_executor_threads": knobs["threads"],
            "application_version": "1",
            "executor_id": f"worker{self.stage.work.process}",
            "db_engine_kwargs": {"pool_pre_ping": knobs["pre_ping"]},
        }
        DBOS(config=config)
        self._workflow = self._async_workflow() if knobs["style"] == "async" else self._sync_workflow()
        DBOS.launch()

    def _sync_workflow(self) -> Any:
        stage = self.stage
        count = stage.work.steps

        @DBOS.step()
        def step(payload: str, seq: int) -> str:
            return stage.step(payload, seq)

        @DBOS.workflow(name="work")
        def work(payload: str) -> str:
            stage.begin()
            for seq in range(count):
                step(payload, seq)
            return stage.end(payload)

        return work

    def _async_workflow(self) -> Any:
        stage = self.stage
        count = stage.work.steps

        @DBOS.step()
        async def step(payload: str, seq: int) -> str:
            return stage.step(payload, seq)

        @DBOS.workflow(name="work")
        async def work(payload: str) -> str:
            stage.begin()
            for seq in range(count):
                await step(payload, seq)
            return stage.end(payload)

        return work

    def submit(self) -> None:
        if self.knobs["direct"]:
            return
        engine = sqlalchemy.create_engine(self.url)
        client = DBOSClient(system_database_url=self.url)
        numbers = self.stage.numbers
        for first in range(0, len(numbers), IN_A_TRANSACTION):
            with engine.begin() as conn:
                for number in numbers[first : first + IN_A_TRANSACTION]:
                    options: Any = {"queue_name": QUEUE, "workflow_name": "work", "workflow_id": id_of(number)}
                    client.enqueue_in_transaction(conn, options, payload_of(number))
        client.destroy()
        engine.dispose()

    def run(self) -> None:
        self._launch()
        if self.knobs["direct"]:
            self._call_all()

    def _call_all(self) -> None:
        work = self.stage.work
        numbers = iter(self.stage.numbers[work.process :: work.processes])

        def call() -> None:
            for number in iter(lambda: next(numbers, None), None):
                with SetWorkflowID(id_of(number)):
                    self._workflow(payload_of(number))

        async def call_async() -> None:
            for number in numbers:
                with SetWorkflowID(id_of(number)):
                    await self._workflow(payload_of(number))

        async def gather() -> None:
            await asyncio.gather(*(call_async() for _ in range(self.knobs["direct"])))

        if self.knobs["style"] == "async":
            in_thread(lambda: asyncio.run(gather()))
            return
        for _ in range(self.knobs["direct"]):
            in_thread(call)


if __name__ == "__main__":
    serve(Dbos)
