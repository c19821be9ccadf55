"""One worker process from its start to its end.

The first SIGTERM or SIGINT drains, a second one leaves at once. A process of a supervisor also drains when the
supervisor is gone, however it died: the end of their pipe tells. The process ends without waiting for threads, in
which steps may still run that were cut off by the grace period.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from ..app import App
from ..errors import InvalidInput, ShardflowError, UsageError
from ..model import ClusterConfig
from ..worker.worker import MAX_LEASES, Worker, tune_process
from .output import ERROR, OK, USAGE, exit_code, say

log = logging.getLogger("shardflow.cli")

#: What a supervisor writes into the pipe of a process that is to leave at once; anything else, and the end, drains.
LEAVE = b"x"


@dataclass(frozen=True, slots=True)
class Options:
    """How to run a worker; see `Worker`. `grace` in seconds; `supervisor` is the pipe's descriptor, or None."""

    concurrency: int | None = None
    queues: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    name: str | None = None
    grace: float = 30.0
    supervisor: int | None = None
    labels: tuple[str, ...] = ()
    max_leases: int | None = None
    code_version: str = ""


def serve(config: ClusterConfig, load: Callable[[], App], options: Options) -> NoReturn:
    """Runs a worker for the app that `load` gives until it is told to stop; ends the process.

    Exits with 0 after a drain, with 1 when it left at once or failed, with 2 where app or options cannot work. What
    `load` raises is raised.
    """
    stop = _Stop(options.supervisor)
    app = load()

    async def run() -> NoReturn:
        code = ERROR
        try:
            worker = Worker(
                config,
                app,
                concurrency=options.concurrency,
                queues=options.queues or None,
                shards=options.shards or None,
                name=options.name,
                labels=options.labels,
                max_leases=options.max_leases or MAX_LEASES,
                code_version=options.code_version,
            )
            code = await _work(worker, stop, options.grace)
        except ShardflowError as error:
            say(f"Error: {error}")
            code = USAGE if isinstance(error, (InvalidInput, UsageError)) else exit_code(error)
        except BaseException:
            log.exception("the worker failed")
        _end(code)

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run())
    raise AssertionError("unreachable")


async def _work(worker: Worker, stop: _Stop, grace: float) -> int:
    tune_process()
    wanted = asyncio.create_task(stop.wanted())
    starting = asyncio.create_task(worker.start())
    await asyncio.wait([wanted, starting], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        return OK
    starting.result()
    working = asyncio.create_task(worker.wait())
    await asyncio.wait([wanted, working], return_when=asyncio.FIRST_COMPLETED)
    code = OK
    if working.done():
        log.error("the worker failed; it gives back what it holds", exc_info=working.exception())
        code = ERROR
    await worker.stop(grace)
    return code


class _Stop:
    """What asks the process to stop: signals, which also come through while the event loop is busy, and a pipe."""

    def __init__(self, supervisor: int | None) -> None:
        self._asked = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None
        self._supervised = supervisor is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        if supervisor is not None:
            threading.Thread(target=self._obey, args=(supervisor,), name="supervisor", daemon=True).start()

    async def wanted(self) -> None:
        """Waits until the worker is to drain."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        if self._asked.is_set():
            self._event.set()
        await self._event.wait()

    def _ask(self) -> None:
        self._asked.set()
        if self._loop is not None and self._event is not None:
            self._loop.call_soon_threadsafe(self._event.set)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # A signal to the whole group, or to all of a service's processes, reaches a supervised one twice.
        if self._asked.is_set() and not self._supervised:
            _end(ERROR)
        self._ask()

    def _obey(self, pipe: int) -> None:
        while word := os.read(pipe, 1):
            if word == LEAVE:
                _end(ERROR)
            self._ask()
        self._ask()


def _end(code: int) -> NoReturn:
    """Ends the process now; what is printed is flushed unless that takes long."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(0.5)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
