"""What runs in the timed scenarios; every step start goes to a journal, one per process, with the time of day.

`SHARDFLOW_TIMING_JOURNAL` names the journals' folder. Lines: `A - - TIME`, the app
was loaded; `B ID - TIME`, the workflow's code begins; `S ID SEQ TIME`, a step starts. What was written outlives its
process.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import shardflow

app = shardflow.App("timing")

#: Seconds of one step of `paced`, and its steps.
PACE = 0.05
STEPS = 3

_folder = os.environ.get("SHARDFLOW_TIMING_JOURNAL")
_file = -1


def _write(kind: str, id: str, seq: int | str = "-") -> None:
    global _file
    if _folder is None:
        return
    if _file < 0:
        _file = os.open(Path(_folder) / str(os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_file, f"{kind} {id} {seq} {time.time():.6f}\n".encode())


_write("A", "-")


@app.step
async def touch(id: str) -> str:
    _write("S", id, 0)
    return id


@app.step
async def linger(id: str, seq: int) -> int:
    _write("S", id, seq)
    await asyncio.sleep(PACE)
    return seq


@app.workflow
async def brief(id: str) -> str:
    """One step that does nothing."""
    _write("B", id)
    return await touch(id)


@app.workflow
async def paced(id: str) -> str:
    """Three steps that take a while."""
    _write("B", id)
    for seq in range(STEPS):
        await linger(id, seq)
    return id
