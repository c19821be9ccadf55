"""A worker that deletes what is old, and dies of it: `retention_main.py CONFIG [before|after]`.

It kills itself with the second batch in which workflows are deleted: before its commit, or when that is answered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import shardflow
from shardflow.storage import retention

app = shardflow.App("retention")


@app.workflow
async def nothing() -> None:
    pass


def die_at(moment: str) -> None:
    real, made, found = retention.delete, retention.Batch, 0

    def batch(*row: Any) -> retention.Batch:
        nonlocal found
        answer = made(*row)
        found += answer.gone > 0
        if moment == "before" and found == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    async def delete(*args: Any, **more: Any) -> retention.Batch | None:
        answer = await real(*args, **more)
        if moment == "after" and found == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    retention.Batch, retention.delete = batch, delete  # type: ignore[assignment,misc]


async def serve(config: str) -> None:
    worker = shardflow.Worker(shardflow.load_config(config), app)
    await worker.start()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.stop(grace=1)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        die_at(sys.argv[2])
    asyncio.run(serve(sys.argv[1]))
