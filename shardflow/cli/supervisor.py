"""Keeps a number of processes of one command running.

One that dies is started again, with growing pauses. A signal is passed on once, through a pipe to each process; the
pipe's end tells them when the supervisor itself was killed, and they drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Sequence

from ..core.retry import Retry
from .output import ERROR, OK, USAGE
from .serve import LEAVE

log = logging.getLogger("shardflow.cli")

_BACKOFF = Retry(attempts=2, initial=0.2, factor=2.0, maximum=30.0, jitter=0.2)
#: Seconds after which a process counts as well started, so that its end begins the pauses anew.
SETTLED = 30.0
#: Seconds beyond the grace period, or after being told to leave, until a process is killed.
LATE = 10.0
LEAVING = 2.0


class Supervisor:
    """Runs `count` processes of one command.

    Arguments: `command`, which makes it of the number of the pipe's descriptor; `count`; `grace`, seconds that a
    process may take to drain.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], count: int, *, grace: float) -> None:
        self._command = command
        self._count = count
        self._grace = grace
        self._stopping = asyncio.Event()
        self._pipes: dict[int, int] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._signals = 0
        self._code = OK

    async def run(self) -> int:
        """Runs until told to stop by SIGTERM or SIGINT; answers the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        keeping = [asyncio.create_task(self._keep(number)) for number in range(1, self._count + 1)]
        ending = asyncio.create_task(self._enforce())
        await asyncio.gather(*keeping)
        ending.cancel()
        return self._code

    def stop(self) -> None:
        """Every process drains, and is not started again."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._tell(b"q")

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals == 1:
            self.stop()
        elif self._signals == 2:
            self._code = ERROR
            self._tell(LEAVE)
            asyncio.get_running_loop().call_later(LEAVING, self._kill)

    async def _enforce(self) -> None:
        await self._stopping.wait()
        await asyncio.sleep(self._grace + LATE)
        self._kill()

    def _tell(self, word: bytes) -> None:
        for pipe in self._pipes.values():
            try:
                os.write(pipe, word)
            except BrokenPipeError:
                pass  # it is gone already

    def _kill(self) -> None:
        for process in self._processes.values():
            process.kill()

    async def _keep(self, number: int) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            pid, code = await self._once(number)
            if self._stopping.is_set():
                self._code = self._code or (ERROR if code else OK)
                return
            if code == USAGE:  # it said why, and another would say the same
                self._code = USAGE
                self.stop()
                return
            failures = 1 if time.monotonic() - began >= SETTLED else failures + 1
            pause = _BACKOFF.delay(min(failures, 16), random.random())
            log.warning(
                "worker process ended; another is started",
                extra={"number": number, "pid": pid, "exit": code, "seconds": round(pause, 2)},
            )
            try:
                await asyncio.wait_for(self._stopping.wait(), pause)
            except TimeoutError:
                pass

    async def _once(self, number: int) -> tuple[int, int]:
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command(reading),
                pass_fds=(reading,),
                stdin=asyncio.subprocess.DEVNULL,
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._pipes[number], self._processes[number] = writing, process
        if self._stopping.is_set():
            os.write(writing, b"q" if self._signals < 2 else LEAVE)
        log.info("worker process started", extra={"number": number, "pid": process.pid})
        try:
            return process.pid, await process.wait()
        finally:
            del self._pipes[number], self._processes[number]
            os.close(writing)
