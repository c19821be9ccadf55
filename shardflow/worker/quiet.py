"""Whether nothing goes on in a run but waiting for something durable, so that it can be suspended.

A task of the workflow's code may wait for a task or lock of its own, which follows the others; if it waits for
anything else, a timer of asyncio's or a socket, it is not durable, and only this process can end the wait.
"""

from __future__ import annotations

import asyncio
import asyncio.locks
import asyncio.queues
import asyncio.taskgroups
import asyncio.tasks
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Run

_SYNCHRONISERS = frozenset({asyncio.locks.__file__, asyncio.queues.__file__, asyncio.taskgroups.__file__})
#: Functions of asyncio.tasks that wait for other tasks, and for nothing else.
_JOINS = frozenset({"_wait", "_wait_for_one"})
_GATHERING: Any = asyncio.tasks._GatheringFuture  # type: ignore[attr-defined]


def is_quiet(run: Run) -> bool:
    """Whether every task of the run's code is blocked, and some of them on something durable."""
    if run.busy or not run.waits or (run.unsettled is not None and not run.unsettled.done()):
        return False
    if any(wait.ready.done() for wait in run.waits):
        return False
    if run.timers and any(not timer.cancelled() and timer.when() > run.sink.loop.time() for timer in run.timers):
        return False  # a limit around something durable: only this process can keep it
    if run.blocking:
        return True
    durable = {wait.ready for wait in run.waits}
    return all(_rests(task, durable) for task in _tasks(run))


def alone(run: Run) -> bool:
    """Whether the workflow has but one task, so that nothing can be on its way between two of them."""
    return run.blocking or not run.tasks


def _tasks(run: Run) -> Iterator[asyncio.Task[Any]]:
    if run.task is not None:
        yield run.task
    yield from run.tasks or ()


def _rests(task: asyncio.Task[Any], durable: set[asyncio.Future[None]]) -> bool:
    future: Any = getattr(task, "_fut_waiter", None)
    if future is None or future.done():  # it is about to run
        return task.done()
    if future in durable or isinstance(future, (asyncio.Task, _GATHERING)):
        return True
    code = _innermost(task.get_coro())
    if code is None:
        return False
    return code.co_filename in _SYNCHRONISERS or (
        code.co_filename == asyncio.tasks.__file__ and code.co_name in _JOINS
    )


def _innermost(awaiting: Any) -> Any:
    """The code of the coroutine at the end of the chain of awaits."""
    code = None
    while awaiting is not None:
        code = getattr(awaiting, "cr_code", None) or getattr(awaiting, "ag_code", None) or code
        following = getattr(awaiting, "cr_await", None)
        if following is None or not hasattr(following, "cr_await"):
            return code
        awaiting = following
    return code
