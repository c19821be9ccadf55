"""What `sleepers.py` runs: workflows that wait."""

from __future__ import annotations

from datetime import UTC, datetime

import shardflow

app = shardflow.App("sleepers")


@app.workflow
async def naps(until: float) -> None:
    await shardflow.sleep_until(datetime.fromtimestamp(until, UTC))


@app.workflow
async def listens() -> str:
    heard: str = await shardflow.receive("go")
    return heard
