"""A worker process of the fault tests: `worker_main.py CONFIG LEDGER [mutant]`. Ends with its standard input."""

from __future__ import annotations

import asyncio
import random
import sys

from faults.ledger import STEPS, Ledger

import shardflow

app = shardflow.App("faults")
ledger: Ledger


@app.step
async def advance(id: str, value: int, seq: int) -> int:
    ledger.line("S", id, seq)
    await asyncio.sleep(random.uniform(0.0, 0.02))
    return (value * 31 + seq) % 1_000_003


@app.workflow
async def chain(id: str) -> int:
    ledger.line("R", id)
    value = int.from_bytes(id.encode(), "big") % 1_000_003
    for seq in range(STEPS):
        value = await advance(id, value, seq)
        ledger.line("A", id, seq)
    return value


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


MUTANTS = {"acknowledge_before_commit": acknowledge_before_commit}


async def main(config: str) -> None:
    worker = shardflow.Worker(shardflow.load_config(config), app, concurrency=300)
    await worker.start()
    print("started", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await worker.stop(grace=5)


if __name__ == "__main__":
    ledger = Ledger(sys.argv[2])
    for name in sys.argv[3:]:
        MUTANTS[name]()
    asyncio.run(main(sys.argv[1]))
