"""The user's side: an `App` collects workflows and steps, which stay ordinary typed functions.

Called outside a workflow they just run. Called inside one, a step's outcome is checkpointed by the worker.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from .context import current
from .core.codec import CallCodec
from .core.retry import Retry
from .core.routing import check_name
from .core.suggest import did_you_mean
from .errors import InvalidInput, UsageError
from .model import DEFAULT_QUEUE

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ONCE = Retry(attempts=1)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A workflow's call that has not been submitted yet; made by `Workflow.call`, for `submit_many`.

    `workflow` is the definition, or its stored name where the submitting program lacks the code. `id` None: one is
    generated. `queue` None: the workflow's own.
    """

    workflow: Workflow[..., Any] | str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    queue: str | None = None

    def set(self, *, id: str | None = None, queue: str | None = None) -> Call[T]:
        """The same call with another id or queue; None leaves what there is."""
        return replace(self, id=self.id if id is None else id, queue=self.queue if queue is None else queue)


class _Definition(Generic[P, R]):
    """A named function with its codec."""

    kind = ""

    def __init__(self, function: Callable[P, R], name: str) -> None:
        self.function = function
        self.name = check_name(self.kind, name)
        self.is_async = inspect.iscoroutinefunction(function)
        self.codec = CallCodec(function)
        self.__name__ = getattr(function, "__name__", name)
        self.__doc__ = function.__doc__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


class Step(_Definition[P, R]):
    """A function whose outcome is recorded once; made by `App.step`."""

    kind = "step"

    def __init__(self, function: Callable[P, R], name: str, retry: Retry) -> None:
        super().__init__(function, name)
        self.retry = retry

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a workflow: runs under a checkpoint, with retries. Elsewhere: just runs."""
        run = current.get()
        if run is None:
            return self.function(*args, **kwargs)
        if self.is_async:
            return cast(R, run.step(self, args, kwargs))
        return cast(R, run.step_blocking(self, args, kwargs))

    def aio(self: Step[P, R], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Calls a plain `def` step from an `async def` workflow; it runs in a thread. Await the answer."""
        run = current.get()
        if run is not None:
            return run.step(self, args, kwargs)
        return self._alone(*args, **kwargs)

    async def _alone(self, *args: P.args, **kwargs: P.kwargs) -> R:
        value = self.function(*args, **kwargs)
        return cast(R, await value) if inspect.isawaitable(value) else value


class Workflow(_Definition[P, R]):
    """A function that a worker runs to its end, whatever happens on the way; made by `App.workflow`."""

    kind = "workflow"

    def __init__(self, function: Callable[P, R], name: str, queue: str) -> None:
        super().__init__(function, name)
        self.queue = check_name("queue", queue)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Just runs the function, here and now; to make it durable, submit it with a client."""
        return self.function(*args, **kwargs)

    @overload
    def call(self: Workflow[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Call[T]: ...
    @overload
    def call(self: Workflow[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]: ...
    def call(self, *args: Any, **kwargs: Any) -> Call[Any]:
        """This call as a value, to be submitted with others: `client.submit_many(f.call(x) for x in xs)`."""
        return Call(self, args, kwargs)


class App:
    """A collection of workflows and steps that a worker serves.

    Arguments: `name`, shown in logs.
    """

    def __init__(self, name: str = "app") -> None:
        self.name = check_name("app", name)
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.steps: dict[str, Step[..., Any]] = {}

    @overload
    def workflow(self, function: Callable[P, R], /) -> Workflow[P, R]: ...
    @overload
    def workflow(
        self, function: None = None, /, *, name: str | None = None, queue: str = DEFAULT_QUEUE
    ) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
    def workflow(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
    ) -> Any:
        """Makes a function a workflow; used as `@app.workflow` or `@app.workflow(queue="orders")`.

        Arguments: `name`, by which it is stored (default: the function's; changing it strands what is under way);
        `queue`, where its submissions wait. Raises UsageError for a name that is taken.
        """

        def define(function: Callable[..., Any]) -> Workflow[..., Any]:
            made = Workflow(function, name or function.__name__, queue)
            self._add(self.workflows, made)
            return made

        return define if function is None else define(function)

    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(
        self, function: None = None, /, *, name: str | None = None, retry: Retry | None = None
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    def step(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | None = None,
    ) -> Any:
        """Makes a function a step; used as `@app.step` or `@app.step(retry=Retry(attempts=5))`.

        Arguments: `name`, by which its checkpoints are stored and compared on replay (default: the function's);
        `retry`, what to do when it raises (default: fail at once). Raises UsageError for a name that is taken.
        """
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidInput(f"retry must be a shardflow.Retry, not {type(retry).__name__}")

        def define(function: Callable[..., Any]) -> Step[..., Any]:
            made = Step(function, name or function.__name__, retry or _ONCE)
            self._add(self.steps, made)
            return made

        return define if function is None else define(function)

    def _add(self, into: dict[str, Any], made: _Definition[..., Any]) -> None:
        if made.name in into:
            raise UsageError(
                f"app {self.name!r} already has a {made.kind} named {made.name!r}: give one another name"
            )
        into[made.name] = made

    @property
    def queues(self) -> list[str]:
        """The queues that the app's workflows are submitted to."""
        return sorted({w.queue for w in self.workflows.values()} | {DEFAULT_QUEUE})

    def find(self, name: str) -> Workflow[..., Any]:
        """The workflow of that name. Raises UsageError, with the nearest name, where there is none."""
        if name not in self.workflows:
            raise UsageError(
                f"app {self.name!r} has no workflow named {name!r}{did_you_mean(name, list(self.workflows))}"
            )
        return self.workflows[name]
