"""Gives every task that a workflow's code makes its branch at the moment it is made, see `core.branches`.

So the order in which a workflow makes its tasks counts, which its code decides, and not the order in which they call
their first steps, which their pace decides. What a step makes inside is no part of the workflow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any

from ..context import current
from ..core.branches import Branch

#: The branch of the running task; None in a workflow's own one, which has its run's.
branch_here: ContextVar[Branch | None] = ContextVar("shardflow_branch", default=None)


class _Factory:
    """A task factory that numbers, in front of the loop's former one."""

    def __init__(self, former: Any) -> None:
        self.former = former

    def __call__(
        self,
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        context: Context | None = None,
        **more: Any,
    ) -> asyncio.Future[Any]:
        run = current.get()
        if run is not None:
            context = copy_context() if context is None else context
            context.run(branch_here.set, (branch_here.get() or run.branch).child())
        if self.former is None:
            made: asyncio.Future[Any] = asyncio.Task(coro, loop=loop, context=context, **more)
        else:
            if context is not None:
                more["context"] = context
            made = self.former(loop, coro, **more)
        if run is not None:
            run.adopt(made)
        return made


def own_tasks(loop: asyncio.AbstractEventLoop) -> Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]:
    """What makes the workflows' own tasks, which are nobody's branches: past the factory that numbers."""
    factory: Any = loop.get_task_factory()
    if isinstance(factory, _Factory) and factory.former is None:
        return partial(asyncio.Task, loop=loop)
    return loop.create_task


def number_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """From now on the loop's tasks are numbered, and its timers known to the runs that set them; once is enough."""
    former = loop.get_task_factory()
    if not isinstance(former, _Factory):
        factory: Any = _Factory(former)
        loop.set_task_factory(factory)
        # There is no factory for timers, so the loop's own methods are put behind ones that tell the run.
        for name in ("call_at", "call_later"):
            setattr(loop, name, _telling(getattr(loop, name)))


def _telling(set_timer: Callable[..., asyncio.TimerHandle]) -> Callable[..., asyncio.TimerHandle]:
    def telling(when: float, callback: Callable[..., object], *args: Any, **more: Any) -> asyncio.TimerHandle:
        timer = set_timer(when, callback, *args, **more)
        context: Context | None = more.get("context")
        run = current.get() if context is None else context.get(current)
        if run is not None:
            run.set_timer(timer)
        return timer

    return telling
