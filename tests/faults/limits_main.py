"""A worker of the tests of limits: `limits_main.py CONFIG LEDGER NAME`. Ends with its standard input.

The times in its lines are of the clock that all processes of the machine share.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextvars import Context

from faults.ledger import Ledger

import shardflow

# The lines:
#   begin QUEUE ID WORKER SECONDS    the code of a workflow of that queue begins
#   end QUEUE ID WORKER SECONDS      it is at its end
#   dead WORKER SECONDS              that worker is gone

HELD = shardflow.Queue("held", concurrency=10)
PACED = shardflow.Queue("paced", rate=(100, 1))

app = shardflow.App("limits")
ledger: Ledger
name = ""
waited: set[asyncio.Task[None]] = set()


def say(*words: object) -> asyncio.Task[None]:
    """A line with the time; done when it is on disk."""
    line = ledger.line(*words, name, time.monotonic())
    # In a context of its own: tasks of a workflow are cancelled when that ends, and the line with them.
    said = asyncio.get_running_loop().create_task(line, context=Context())
    waited.add(said)
    said.add_done_callback(waited.discard)
    return said


@app.workflow(queue=HELD)
async def hold(id: str, seconds: float) -> None:
    begun = say("begin", "held", id)
    await asyncio.sleep(seconds)
    await asyncio.wait([begun, say("end", "held", id)])  # so a workflow that has ended is known to the ledger


@app.workflow(queue=PACED)
async def pace(id: str) -> None:
    await asyncio.wait([say("begin", "paced", id)])


def begin_at_once() -> None:
    """Mutant: starts count from the claim, not from when they took place."""
    from shardflow.worker.limits import Limits

    def claimed(self: Limits, batch: int, runs: object) -> None:
        self._begun[batch] = self._loop.time() - 0.05

    Limits.claimed = claimed  # type: ignore[method-assign]


MUTANTS = {"begin_at_once": begin_at_once}


async def serve(config: str, address: str, called: str, *mutants: str) -> None:
    """Works until the standard input ends."""
    global ledger, name
    ledger, name = Ledger(address), called
    for mutant in mutants:
        MUTANTS[mutant]()
    worker = shardflow.Worker(shardflow.load_config(config), app, concurrency=100, name=called)
    await worker.start()
    await worker.connected()
    print("connected", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.stop(grace=5)
    while waited:
        await asyncio.wait(waited)


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
