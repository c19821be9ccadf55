"""The bench's processes: workers and the floor, each with a pipe by which it learns that the bench has ended."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from ..errors import ShardflowError
from ..model import ClusterConfig

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
FLOOR_SECONDS = 3600.0


class BenchFailed(ShardflowError):
    """The bench could not be completed."""


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class Child:
    """A process of the bench; ended at the end of the block. `spec` is its first line."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "shardflow.bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._heard = b""
        self.tell(json.dumps(spec))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def tell(self, line: str) -> None:
        """Sends a command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise self._lost() from None

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next answer. Raises BenchFailed where it ends or is silent for so long."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                raise BenchFailed(f"process {self.pid} of the bench did not answer within {seconds:.0f} s")
            got = os.read(pipe, 65536)
            if not got:
                raise self._lost()
            self._heard += got
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self) -> BenchFailed:
        code = self._process.wait(_STOP_SECONDS)
        return BenchFailed(f"process {self.pid} of the bench ended with code {code}; its messages are on stderr")

    def end(self) -> None:
        """Closes the pipe, by which it ends; returns when it has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(frozen=True, slots=True)
class Served:
    """What a worker tells of its time: (steady clock, CPU) in seconds when it held its leases, when it last became
    idle (None: it had nothing to do), and now; what it ran; its resident size in kB, now and at the most."""

    connected: tuple[float, float]
    idle: tuple[float, float] | None
    now: tuple[float, float]
    workflows: int
    steps: int
    rss_kb: int | None
    rss_peak_kb: int | None


class Workers:
    """Worker processes that have loaded their code and wait for `go`."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children]

    def go(self) -> None:
        """Lets all connect; returns when each holds its leases."""
        for child in self._children:
            child.tell("go")
        for child in self._children:
            child.hear(_START_SECONDS)

    def check(self) -> None:
        """Raises BenchFailed where one has ended."""
        for child in self._children:
            if child.ended:
                child.hear(0)

    def report(self) -> list[Served]:
        """What each tells, when it is idle."""
        for child in self._children:
            child.tell("report")
        return [Served(**_pairs(child.hear(_START_SECONDS))) for child in self._children]


def _pairs(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in answer.items()}


@contextmanager
def workers(
    config: ClusterConfig,
    count: int,
    concurrency: int | None,
    *,
    timed: bool,
    shards: Sequence[Sequence[str]] | None = None,
    queues: Sequence[str] | None = None,
) -> Iterator[Workers]:
    """`count` worker processes for the block, ready to `go`; `timed`: they note when they become idle; `shards`: the
    names of those that each of them serves (None: those that it is wanted on); `queues`, that all of them serve."""
    with ExitStack() as stack:
        spec = {"config": asdict(config), "concurrency": concurrency, "timed": timed, "queues": queues}
        own: Sequence[Sequence[str] | None] = shards or [None] * count
        children = [stack.enter_context(Child({**spec, "shards": own[number]})) for number in range(count)]
        for child in children:
            child.hear(_START_SECONDS)
        yield Workers(children)


def floor(dsn: str, **arguments: Any) -> dict[str, Any]:
    """Runs `benchmarks/floor.py` in a process of its own; its figures, or {"error": ...}."""
    with Child({"floor": {"dsn": dsn, **arguments}}) as child:
        return child.hear(FLOOR_SECONDS)
