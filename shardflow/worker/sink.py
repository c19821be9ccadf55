"""Where a run's writes go, as the run sees it: the commit loop of its shard, or the world of `shardflow.testing`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from .gather import Extra
from .transactions import Fenced

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from ..delivery import Delivery
    from .run import Run


class Sink(Fenced, Protocol):
    """Where a run's writes go: the commit loop of its shard."""

    loop: asyncio.AbstractEventLoop
    own_task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]  # see `tasks.own_tasks`
    threads: ThreadPoolExecutor
    delivery: Delivery
    valid_until: float  # the time of that clock until which the lease surely lasts
    jumps: bool  # whether that clock jumps to the next time that is waited for

    def checkpoint(
        self,
        run: Run,
        seq: int,
        name: str,
        attempts: int,
        output: bytes | None,
        error: str | None,
        extra: Extra | None = None,
    ) -> asyncio.Future[None]:
        """Writes a step's outcome; the future is done when it has committed."""

    def tried(self, run: Run, seq: int, name: str, attempts: int, error: str, delay: float) -> None:
        """Records that a step has failed and is tried again after `delay` seconds."""

    def finish(self, run: Run, status: str, output: bytes | None, error: str | None) -> None:
        """Writes the workflow's end."""

    def begin_anew(self, run: Run, input: bytes) -> None:
        """Begins the workflow with another input; that it does is recorded."""

    def waiting(self, run: Run) -> None:
        """The run waits for something durable: it may be suspended, if nothing else goes on in it."""

    def ask_mail(self, run: Run) -> None:
        """Reads what has arrived for the run."""

    def time(self) -> float:
        """The clock by which runs wait, in seconds: the event loop's, as a rule."""

    def server_time(self) -> float:
        """The shard's clock, in seconds since 1970; rather a little late."""
