"""A workflow's run inline: the worker's own, which writes into a `World`, with fakes in place of steps.

Guarantee: a run that only verifies calls no step's function and changes no record.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, cast

from ..definitions import Step, Transaction, Workflow
from ..errors import NonDeterminism, UsageError
from ..model import Status
from ..worker.operations import beginning
from ..worker.run import Run
from ..worker.sink import Sink
from ..worker.steps import Detached
from .record import Record

if TYPE_CHECKING:
    from .world import World


class InlineRun(Run):
    """Arguments: `world`; `record`, the workflow's; `workflow`, its definition or a fake; `verifies`: whether it is
    a replay of a workflow that has ended, of which `ended` says what came out, and `stray` what was new."""

    __slots__ = ("ended", "record", "stray", "verifies", "world")

    def __init__(self, world: World, record: Record, workflow: Workflow[..., Any], verifies: bool) -> None:
        self.world = world
        self.record = record
        self.verifies = verifies
        self.stray = ""
        self.ended: tuple[Status, bytes | None, str | None] | None = None
        checkpoints = dict(record.checkpoints)
        generation, input = beginning(record.input, checkpoints)
        super().__init__(
            cast(Sink, world),  # but for what a database is needed for
            record.wf,
            record.id,
            workflow,
            input,
            0,
            checkpoints,
            record.queue,
            dict(record.tries),
            dict(record.options),
            generation,
        )

    def close(self) -> None:
        """See `Run`; tasks that its code made are cancelled too: no process ends here that would take them along."""
        super().close()
        for task in list(self.tasks or ()):
            task.cancel()

    def fail(self, error: BaseException) -> None:
        """See `Run`."""
        if not self.closed and not self.verifies:
            self.record.failure = error
        super().fail(error)

    def step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """See `Run`."""
        return super().step(self._stand_in(step), args, kwargs)

    def step_blocking(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `Run`."""
        return super().step_blocking(self._stand_in(step), args, kwargs)

    def value(self, name: str, make: Callable[[], bytes]) -> bytes:
        """See `Run`."""
        if not self.verifies:
            return super().value(name, make)

        def new() -> bytes:
            self.strays(name)
            self.broken = NonDeterminism(f"{name}() is called on replay only")
            raise self.broken

        return super().value(name, new)

    def strays(self, name: str) -> None:
        """Notes what a replay does that the workflow had not done."""
        self.stray = self.stray or name

    def _stand_in(self, step: Step[..., Any]) -> Step[..., Any]:
        fake = self.world.fakes.get(step)
        if fake is None and isinstance(step, Transaction):
            raise UsageError(f"transaction {step.name!r} needs a database: give another function, env.fake(...)")
        if self.verifies:
            fake = self._never(step.name)
        other: Step[..., Any] = step if fake is None else stand_in(step, fake)
        return other

    def _never(self, name: str) -> Callable[..., Any]:
        async def never(*args: Any, **kwargs: Any) -> Any:
            self.strays(name)
            await asyncio.get_running_loop().create_future()

        def never_blocking(*args: Any, **kwargs: Any) -> Any:
            self.strays(name)
            raise Detached

        return never_blocking if self.blocking else never


def stand_in(made: Any, fake: Callable[..., Any]) -> Any:
    """A step or workflow with another function, which is called as the real one is."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        value = fake(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    other = copy.copy(made)
    if isinstance(made, Transaction):
        other.__class__ = Step
    other.function = call if made.is_async or inspect.iscoroutinefunction(fake) else fake
    other.is_async = made.is_async or inspect.iscoroutinefunction(fake)
    return other
