"""A worker of the fault tests: `worker_main.py CONFIG LEDGER NAME [mutant …]`. Ends with its standard input.

SIGUSR1 freezes it as SIGSTOP would, but between two callbacks of its event loop: a worker that is frozen between its
look at the lease and the call of the step makes that call when it wakes up, and no checkpoint can prevent that.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from contextvars import ContextVar

from faults import booking
from faults.ledger import Ledger

import shardflow
from shardflow.context import current

STEPS = 3

app = shardflow.App("faults")
ledger: Ledger
name = ""
#: Attempt, lease and worker of the workflow that runs, for the ledger.
holder: ContextVar[tuple[int, int | str, str]] = ContextVar("holder")


@app.step
async def advance(id: str, value: int, seq: int, longest: float) -> int:
    await ledger.line("start", id, seq, *holder.get())
    await asyncio.sleep(random.uniform(0.0, longest))
    return (value * 31 + seq) % 1_000_003


@app.workflow
async def chain(id: str, longest: float = 0.02) -> int:
    """Three steps of up to `longest` seconds each."""
    run = current.get()
    assert run is not None
    holder.set((run.attempt, lease_of(run), name))
    await ledger.line("begin", id, *holder.get())
    value = int.from_bytes(id.encode(), "big") % 1_000_003
    for seq in range(STEPS):
        value = await advance(id, value, seq, longest)
        await ledger.line("record", id, seq, value, name)
    return value


def lease_of(run: object) -> int | str:
    """The lease that a run is under; it is the link's that began it. A dash where it cannot be told."""
    try:
        return int(run.sink.fence.lease)  # type: ignore[attr-defined]
    except AttributeError:
        return "-"


def acknowledge_before_commit() -> None:
    """Mutant: a workflow goes on before its checkpoint has committed."""
    from shardflow.worker.commit import CommitLoop

    original = CommitLoop.checkpoint

    def checkpoint(self: CommitLoop, *args: object) -> asyncio.Future[None]:
        original(self, *args)  # type: ignore[arg-type]
        done: asyncio.Future[None] = self.loop.create_future()
        done.set_result(None)
        return done

    CommitLoop.checkpoint = checkpoint  # type: ignore[method-assign,assignment]


books = booking.define(app)

MUTANTS = {"acknowledge_before_commit": acknowledge_before_commit, **booking.MUTANTS}


async def serve(
    config: str, address: str, called: str, mutants: Sequence[str] = (), concurrency: int = 100, forever: bool = False
) -> None:
    """Works until the standard input ends, then drains; or `forever`."""
    global ledger, name
    ledger, name = Ledger(address), called
    for mutant in mutants:
        MUTANTS[mutant]()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, os.kill, os.getpid(), signal.SIGSTOP)
    worker = shardflow.Worker(shardflow.load_config(config), app, concurrency=concurrency, name=called)
    await worker.start()
    if forever:
        await worker.wait()
    print("started", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    await worker.stop(grace=5)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
