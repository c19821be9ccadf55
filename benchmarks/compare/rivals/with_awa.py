"""awa: a job queue with an engine in Rust and handlers in Python, enqueued by COPY."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvloop
from stage import Stage, in_thread, payload_of, serve

QUEUE = "bench"
IN_A_CALL = 5_000


@dataclass
class BenchJob:
    """The arguments of a job."""

    payload: str


class Awa:
    """`partitions`: physical queues of the one logical queue; `completion_*`: the engine's environment variables."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.knobs: dict[str, Any] = stage.work.settings
        for name in ("completion_batch", "completion_shards"):
            if self.knobs[name] is not None:
                variable = {
                    "completion_batch": "AWA_COMPLETION_BATCH_SIZE",
                    "completion_shards": "AWA_COMPLETION_SHARDS",
                }
                os.environ[variable[name]] = str(self.knobs[name])
        import awa  # reads its environment variables

        self.awa = awa

    def _client(self) -> Any:
        return self.awa.AsyncClient(self.stage.work.dsn, max_connections=self.knobs["connections"])

    def prepare(self) -> str:
        async def migrate() -> None:
            client = self._client()
            await client.migrate()
            await client.install_queue_storage()  # else a first worker would have to choose this storage
            await client.close()

        if self.stage.work.first:
            asyncio.run(migrate())
        return version("awa-pg")

    def _queue(self) -> Any:
        return self.awa.PartitionedQueue(QUEUE, self.knobs["partitions"])

    def submit(self) -> None:
        async def enqueue() -> None:
            client = self._client()
            queue = self._queue()
            numbers = self.stage.numbers
            for first in range(0, len(numbers), IN_A_CALL):
                some = numbers[first : first + IN_A_CALL]
                await client.enqueue_many_copy(
                    [BenchJob(payload_of(n)) for n in some],
                    opts=[queue.route_by_index(n) for n in some],
                    queue_storage_queue_stripe_count=self.knobs["stripes"],
                )
            await client.close()

        asyncio.run(enqueue())

    def run(self) -> None:
        in_thread(lambda: uvloop.run(self._serve()) if self.knobs["loop"] == "uvloop" else asyncio.run(self._serve()))

    async def _serve(self) -> None:
        stage = self.stage
        client = self._client()
        queue = self._queue()

        @client.task(BenchJob, queue=queue.physical_queues[0])  # type: ignore[untyped-decorator, unused-ignore]
        async def work(job: Any) -> None:
            stage.begin()
            stage.end(job.args.payload)

        await client.start(
            queue.queue_configs(
                max_workers_per_partition=self.knobs["max_workers"] // self.knobs["partitions"],
                claim_batch_size=self.knobs["claim_batch"],
                claimers=self.knobs["claimers"],
                deadline_duration_ms=self.knobs["deadline_ms"],
            ),
            poll_interval_ms=self.knobs["poll_ms"],
            queue_storage_queue_stripe_count=self.knobs["stripes"],
        )
        await asyncio.Event().wait()


if __name__ == "__main__":
    serve(Awa)
