"""Runs the programs of `program.py` as workflows. `program_app.py CONFIG LEDGER LOGS` is a nursery of such
workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from faults.program import Program, mix

import shardflow
from shardflow import Retry

app = shardflow.App("programs")


@app.step
async def step(value: int, number: int) -> int:
    return mix(value, number)


_failed: dict[tuple[str, int], int] = {}


@app.step(retry=Retry(attempts=50, initial=0.01, maximum=0.05))
async def flaky(id: str, value: int, number: int, times: int) -> int:
    """Fails so many times in this process; after a crash it may fail as often again."""
    failed = _failed[id, number] = _failed.get((id, number), 0) + 1
    if failed <= times:
        raise ValueError(f"try {failed}")
    return mix(value, number)


@app.step(retry=Retry(attempts=2, initial=0.01))
async def fails(number: int) -> None:
    raise ValueError(str(number))


@app.workflow
async def run(program: Program, value: int = 1) -> list[Any]:
    return await _run(program, value, "")


@app.workflow
async def bad(number: int) -> None:
    await fails(number)


@app.workflow
async def hopeless() -> None:
    """Waits to be cancelled."""
    await shardflow.set_event("waiting", True)
    await shardflow.receive("never")


@app.workflow
async def mails(id: str, topic: str, count: int) -> None:
    for n in range(count):
        await shardflow.send(id, topic, n)


async def _run(program: Program, value: int, path: str) -> list[Any]:
    answers: list[Any] = []
    for place, (kind, *rest) in enumerate(program):
        here = f"{path}.{place}"
        if kind == "step":
            value = await step(value, rest[0])
            answers.append(value)
        elif kind == "flaky":
            value = await flaky(shardflow.info().id + here, value, rest[0], rest[1])
            answers.append(value)
        elif kind == "fails":
            try:
                await fails(rest[0])
            except shardflow.StepFailed:
                answers.append("failed")
        elif kind == "sleep":
            answers.append(await shardflow.sleep(rest[0]))
        elif kind == "event":
            answers.append(await shardflow.set_event("last", rest[0]))
        elif kind == "timeout":
            answers.append(await shardflow.receive("nobody sends", timeout=rest[0]))
        elif kind == "child":
            answers.append(await (await shardflow.start(run, rest[0], value)).result())
        elif kind == "bad_child":
            try:
                await (await shardflow.start(bad, rest[0])).result()
            except shardflow.WorkflowFailed:
                answers.append("child failed")
        elif kind == "children":
            kids = await shardflow.start_many(run.call(each, value + n) for n, each in enumerate(rest[0]))
            answers.append(await shardflow.gather(kids))
        elif kind == "branches":
            branches = (_run(each, value + n, f"{here}.{n}") for n, each in enumerate(rest[0]))
            answers.append(list(await asyncio.gather(*branches)))
        elif kind == "mail":
            sender = await shardflow.start(mails, shardflow.info().id, here, rest[0])
            answers.append([await shardflow.receive(here) for _ in range(rest[0])])
            await sender.result()
        elif kind == "cancelled":
            child = await shardflow.start(hopeless)
            await shardflow.set_event("cancel " + child.id, True)
            try:
                await child.result()
            except shardflow.WorkflowCancelled:
                answers.append("child cancelled")
        else:
            raise AssertionError(kind)
    return answers


async def serve(config: str, name: str) -> None:
    from shardflow.worker.worker import tune_process

    worker = shardflow.Worker(shardflow.load_config(config), app, name=name, concurrency=50)
    tune_process()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    await worker.start()
    await worker.wait()


if __name__ == "__main__":
    from faults.nursery import _log_to, main

    config, _, logs, *_ = sys.argv[1:]

    def one(name: str) -> None:
        _log_to(Path(logs) / f"{name}.log")
        asyncio.run(serve(config, name))

    main(one)
