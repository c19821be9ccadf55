"""The submitter of a fault run, in a thread: keeps as much work in the cluster as it is told, and awaits each result.

What it means to submit, what was acknowledged and what it was answered goes to the ledger.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from faults.ledger import Ledger
from faults.worker_main import chain

import shardflow
from shardflow.errors import ShardflowError, WorkflowFailed

#: Workflows to one submit at the most.
CHUNK = 100
#: Seconds between looks whether there is more to submit, and before a failed submit is tried again.
LOOK = 0.01
AGAIN = 0.1


class Feed:
    """Submits `chain` under the ids `run-0` and so on.

    Arguments: `config`, the cluster's file; `address`, the ledger's socket; `longest`, seconds that a step lasts at
    the most. Attributes: `limit`, how many to submit, to be raised by whoever likes; `submitted`; `answered`;
    `retried`, submits that were sent again.
    """

    def __init__(self, config: Path, address: Path, longest: float) -> None:
        self.limit = self.submitted = self.answered = self.retried = 0
        self._config = config
        self._address = address
        self._longest = longest
        self._ends = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed")

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True
        self._thread.join()

    def check(self) -> None:
        """Raises what the thread failed with."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._error = error

    async def _main(self) -> None:
        ledger = Ledger(self._address)
        waiting: set[asyncio.Task[None]] = set()
        async with shardflow.AsyncClient.from_config(self._config) as client:
            while not self._ends:
                number = min(CHUNK, self.limit - self.submitted)
                if number <= 0:
                    await asyncio.sleep(LOOK)
                    continue
                ids = [f"run-{i}" for i in range(self.submitted, self.submitted + number)]
                await asyncio.gather(*(ledger.line("intend", id) for id in ids))
                handles = await self._submit(client, ids)
                await asyncio.gather(*(ledger.line("accept", id) for id in ids))
                self.submitted += number
                for handle in handles:
                    task = asyncio.create_task(self._await(ledger, handle))
                    waiting.add(task)
                    task.add_done_callback(waiting.discard)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        ledger.close()

    async def _submit(self, client: shardflow.AsyncClient, ids: list[str]) -> list[Any]:
        while True:
            try:
                return await client.submit_many(chain.call(id, self._longest).set(id=id) for id in ids)
            except ShardflowError:  # some shard is away: the same ids again are harmless
                self.retried += 1
                if self._ends:
                    raise
                await asyncio.sleep(AGAIN)

    async def _await(self, ledger: Ledger, handle: Any) -> None:
        while True:
            try:
                value = await handle.result()
            except WorkflowFailed:
                value = "failed"
            except ShardflowError:
                await asyncio.sleep(AGAIN)
                continue
            await ledger.line("result", handle.id, value)
            self.answered += 1
            return
