"""What `million.py` runs: a workflow that pays, one that waits, one that has nothing to do."""

from __future__ import annotations

import shardflow

app = shardflow.App("million")


@app.step
async def pay(cents: int) -> str:
    return f"paid {cents}"


@app.workflow(queue="backlog")
async def order(cents: int) -> str:
    await shardflow.set_event("state", "paying")
    if cents < 0:
        raise ValueError("nothing to pay")
    return await pay(cents)


@app.workflow(queue="asleep")
async def listens() -> str:
    heard: str = await shardflow.receive("go", type=str)
    return heard


@app.workflow(queue="side")
async def quick(number: int) -> int:
    return number
