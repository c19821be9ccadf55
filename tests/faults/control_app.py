"""Workers of the tests of control, by fork, see `kill_app`: more workflows, kill points and mutants for it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from faults import kill_app, kill_mutants
from faults.kill_app import app, effect

import shardflow


@app.workflow(queue="kids")
async def waiting(n: int) -> int:
    await shardflow.receive("never")
    return n


@app.workflow
async def busy(count: int, suspended: bool) -> None:
    """Starts children and never ends; in a step, or out of memory."""
    kids = await shardflow.start_many(waiting, range(count))
    if suspended:
        await shardflow.gather(kids)
    await forever()


@app.step
async def forever() -> None:
    await asyncio.Event().wait()


@app.workflow
async def loop(n: int, seen: list[str]) -> list[str]:
    """An effect for each number up to 2, each in a run of its own."""
    seen = [*seen, await effect(str(n))]
    if n < 2:
        shardflow.continue_as_new(n + 1, seen)
    return seen


@app.workflow(max_recoveries=6)
async def killer() -> None:
    await kills()


@app.step
async def kills() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.workflow(max_recoveries=0)
async def neighbour(n: int) -> int:
    await linger()
    await effect(str(n))
    return n


@app.step
async def linger() -> None:
    await asyncio.sleep(0.3)


def together() -> None:
    """Suspects are claimed and begun like others."""
    from shardflow.worker import control

    real = control.ClaimWanted

    def many(number: int, lanes: list[str], most: int, *rest: Any) -> Any:
        return real(number, lanes, 1_000, *rest)

    control.ClaimWanted = many  # type: ignore[misc,assignment]


def cancel_children_later() -> None:
    """The cancels of children are written behind the turn that ends the parent."""
    kill_mutants.in_a_turn_of_its_own("severed")


def forget_later() -> None:
    """What was recorded is forgotten behind the turn in which the workflow begins anew."""
    kill_mutants.in_a_turn_of_its_own("anew")


kill_app.TURNS["ended"] = lambda turn, _, name: any(row[1] == name for row in turn.outcomes)
kill_app.MUTANTS |= {each.__name__: each for each in (cancel_children_later, forget_later, together)}

if __name__ == "__main__":
    kill_app.main()
