"""A process of the bench: a worker, or the floor. Started by `processes`, as `python -m shardflow.bench.child`.

Commands come as lines on stdin, answers go as lines of JSON to stdout. When stdin ends, so does the process: it never
outlives the bench, whatever ends that.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..model import ClusterConfig, LeaseConfig, PoolConfig, RetentionConfig, ShardConfig
from ..resources import folder
from ..worker.worker import Worker, tune_process
from . import workload
from .meters import memory_kb
from .processes import loop_factory

#: Seconds for an orderly end after the bench is gone.
_LAST = 5.0
#: Seconds between looks whether the worker is idle.
_LOOK = 0.01


def main() -> int:
    """Runs what the first line asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout, sys.stderr
    line = sys.stdin.readline()
    if not line:
        return 1
    spec = json.loads(line)
    if "floor" in spec:
        _on_lines(lambda line: None)
        _say(answers, _floor(spec["floor"]))
        return 0
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        served = _Served(answers, spec["timed"])
        runner.run(served.run(_config(spec["config"]), spec["concurrency"], spec["shards"], spec["queues"]))
    return 0


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    print(json.dumps(value), file=answers, flush=True)


def _on_lines(heard: Callable[[str], None]) -> None:
    """Calls `heard` in a thread for each line of stdin, and with "" at its end, soon after which the process ends."""

    def listen() -> None:
        for line in sys.stdin:
            heard(line.strip())
        heard("")
        time.sleep(_LAST)
        os._exit(1)

    threading.Thread(target=listen, name="bench commands", daemon=True).start()


# -- the floor


def _floor(arguments: dict[str, Any]) -> dict[str, Any]:
    path = folder("benchmarks") / "floor.py"
    try:
        answer: dict[str, Any] = load(path).run_floor(arguments.pop("dsn"), **arguments)
    except ImportError as error:
        return {"error": f"{path.name} cannot be loaded: {error}"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return answer


def load(path: Path) -> Any:
    """The module at `path`, which lies outside of the package."""
    spec = importlib.util.spec_from_file_location(f"shardflow_benchmarks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# -- a worker


class _Served:
    """A worker that obeys: "go" connects it, "report" tells what it cost, anything else ends it.

    `timed` says to note when it becomes idle, which costs an idle worker a little CPU.
    """

    def __init__(self, answers: TextIO, timed: bool) -> None:
        self._answers = answers
        self._timed = timed
        self._commands: asyncio.Queue[str] = asyncio.Queue()
        self._connected: tuple[float, float] | None = None
        self._idle: tuple[float, float] | None = None
        self._noted = 0

    async def run(
        self, config: ClusterConfig, concurrency: int | None, shards: list[str] | None, queues: list[str] | None
    ) -> None:
        loop = asyncio.get_running_loop()

        def heard(line: str) -> None:
            try:
                loop.call_soon_threadsafe(self._commands.put_nowait, line)
            except RuntimeError:  # the loop is closed: the process ends anyway
                pass

        _on_lines(heard)
        worker = Worker(config, workload.app, concurrency=concurrency, shards=shards, queues=queues)
        tune_process()
        _say(self._answers, {"ready": True})
        if await self._commands.get() != "go":
            return
        await worker.start()
        await worker.connected()
        self._connected = _now()
        _say(self._answers, {"connected": True})
        looking = asyncio.create_task(self._look(worker)) if self._timed else None
        served = asyncio.create_task(worker.wait())
        while not served.done():
            command = asyncio.create_task(self._commands.get())
            await asyncio.wait((command, served), return_when=asyncio.FIRST_COMPLETED)
            if not command.done():
                command.cancel()
                break
            if command.result() != "report":
                break
            _say(self._answers, await self._report(worker))
        if looking is not None:
            looking.cancel()
        if served.done():
            await served  # it failed: tell why
        await worker.stop(grace=_LAST / 2)
        await asyncio.gather(served, return_exceptions=True)

    async def _look(self, worker: Worker) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            self._note(worker)

    def _note(self, worker: Worker) -> None:
        # What was begun counts too: a short run may lie between two looks.
        if worker.running == 0 and workload.ran.workflows > self._noted:
            self._noted = workload.ran.workflows
            self._idle = _now()

    async def _report(self, worker: Worker) -> dict[str, Any]:
        while True:
            self._note(worker)
            if not worker.running:
                break
            await asyncio.sleep(_LOOK)
        resident, peak = memory_kb()
        now = _now()
        return {
            "connected": self._connected,
            "idle": self._idle,
            "now": now,
            "workflows": workload.ran.workflows,
            "steps": workload.ran.steps,
            "rss_kb": resident,
            "rss_peak_kb": peak,
        }


def _now() -> tuple[float, float]:
    """Seconds of the machine's steady clock, which all processes share, and of CPU of this process."""
    return time.monotonic(), time.process_time()


def _config(raw: dict[str, Any]) -> ClusterConfig:
    return ClusterConfig(
        raw["name"],
        tuple(ShardConfig(**shard) for shard in raw["shards"]),
        raw["slots"],
        LeaseConfig(**raw["lease"]),
        PoolConfig(**raw["pool"]),
        retention=RetentionConfig(**raw.get("retention", {})),
    )


if __name__ == "__main__":
    sys.exit(main())
