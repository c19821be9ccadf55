"""What each rival's process has in common: its orders on stdin, its answers on stdout, the load, and the counts.

Only the standard library is imported, so that the process measures the rival alone. The first line says what to run,
then come "submit", "run" and "report"; when stdin ends, so does the process.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

#: Bytes of each input, checkpoint and result as JSON text.
SIZE = 100
_FILL = "".join(f"{n * 2_654_435_761 & 0xFFFFFFFF:08x}" for n in range(64))


@dataclass(frozen=True)
class Work:
    """So many workflows of so many steps, for the processes at one or several servers.

    `dsn`: the database of this process as a libpq URI. `settings`: the rival's knobs. `tally`: a file with a byte for
    each workflow. `process`: this one's place among the `processes` at its server, of which the first submits.
    """

    dsn: str
    workflows: int
    steps: int
    settings: dict[str, Any]
    tally: str
    process: int = 0
    processes: int = 1
    shard: int = 0
    shards: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that makes the schema and submits."""
        return self.process == 0

    @property
    def numbers(self) -> list[int]:
        """Those of the workflows that a client who hashes their ids sends to this server."""
        everything = range(self.workflows)
        if self.shards == 1:
            return list(everything)
        return [n for n in everything if zlib.crc32(id_of(n).encode()) % self.shards == self.shard]


def id_of(number: int) -> str:
    """The id of a workflow, for rivals that let the client choose one."""
    return f"bench-{number:010d}"


def payload_of(number: int) -> str:
    """The input of a workflow: its number, then digits that compress badly."""
    return f"{number:010d}{_FILL[number * 7 % 256 :]}{_FILL}"[: SIZE - 2]


def result_of(payload: str, seq: int) -> str:
    """What step `seq` gives for that input; the workflow itself: seq -1."""
    return f"{seq:+04d}:{zlib.crc32(payload.encode(), seq & 0xFFFF):08x}:{payload}"[: SIZE - 2]


class Stage:
    """Counts what this process runs, from whatever threads, and notes when it began."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.numbers = work.numbers
        with open(work.tally, "r+b") as file:
            self._tally = mmap.mmap(file.fileno(), 0)
        self.first: tuple[float, float] | None = None
        self._ended = itertools.count(1)
        self._stepped = itertools.count(1)

    def begin(self) -> None:
        """To be called when a workflow's code begins."""
        if self.first is None:
            self.first = now()

    def step(self, payload: str, seq: int) -> str:
        """A step's work."""
        next(self._stepped)
        return result_of(payload, seq)

    def end(self, payload: str) -> str:
        """The workflow's own result; to be called when its code ends."""
        next(self._ended)
        self._tally[int(payload[:10])] = 1
        return result_of(payload, -1)

    def counts(self) -> dict[str, int]:
        """How many workflows and steps this process has run. To be asked once, when all is over."""
        return {"workflows": next(self._ended) - 1, "steps": next(self._stepped) - 1}


def now() -> tuple[float, float]:
    """Seconds of the machine's steady clock, which all processes share, and of CPU of this process."""
    return time.monotonic(), time.process_time()


class Rival(Protocol):
    """What a rival's module provides. `run` returns when the worker runs, which ends with the process."""

    def prepare(self) -> str:
        """Makes the schema, in the first process, and gets ready; the rival's version."""

    def submit(self) -> None:
        """Submits everything, and returns when it is durable."""

    def run(self) -> None:
        """Starts the worker."""


def in_thread(run: Callable[[], object]) -> None:
    """Runs the worker beside the thread that listens; the process ends with it where it fails."""

    def guarded() -> None:
        try:
            run()
        except BaseException as error:
            _say({"error": f"{type(error).__name__}: {error}"})
            sys.stderr.flush()
            os._exit(1)

    threading.Thread(target=guarded, name="worker", daemon=True).start()


def serve(rival: Callable[[Stage], Rival]) -> None:
    """Obeys the process' parent until its report has been given."""
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(heard,), daemon=True).start()
    stage = Stage(Work(**json.loads(heard.get())))
    try:
        _obey(rival(stage), stage, heard)
    except Exception as error:
        _say({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os._exit(0)  # whatever threads the rival still has


def _obey(player: Rival, stage: Stage, heard: queue.SimpleQueue[str]) -> None:
    _say({"version": player.prepare()})
    while (order := heard.get()) != "report":
        began, cpu_began = now()
        if order == "submit":
            player.submit()
            ended, cpu_ended = now()
            _say({"seconds": ended - began, "cpu": cpu_ended - cpu_began})
        else:
            player.run()
            _say({"running": True})
    _say({"first": stage.first, "now": now(), **stage.counts(), "rss_mb": _peak()})


_answers = os.fdopen(os.dup(1), "w")


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=_answers, flush=True)


def _listen(heard: queue.SimpleQueue[str]) -> None:
    os.dup2(2, 1)  # what a rival prints must not get among the answers
    for line in sys.stdin:
        heard.put(line.strip())
    os._exit(1)


def _peak() -> float | None:
    try:
        with open("/proc/self/status") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
    except OSError:
        return None
    return round(int(lines["VmHWM"].split()[0]) / 1024, 1)
