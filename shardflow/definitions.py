"""What a user defines: workflows, steps and transactions, which stay ordinary typed functions, and calls of
workflows.

Called outside a workflow they just run. Called inside one, a step's outcome is checkpointed by the worker.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from .context import current
from .core.codec import CallCodec
from .core.lanes import check_part, versions_of
from .core.options import NONE, Options
from .core.retry import Retry
from .core.routing import check_name
from .errors import UsageError
from .queue import Queue

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

#: Leases that may expire under a workflow before it counts as the one that kills its workers.
MAX_RECOVERIES = 20


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A workflow's call that has not been submitted yet; made by `Workflow.call`, for `submit_many`.

    `workflow` is the definition, or its stored name where the submitting program lacks the code.
    """

    workflow: Workflow[..., Any] | str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Options = NONE

    @property
    def id(self) -> str | None:
        """The id that it is to have; None: one is made."""
        return self.options.id

    def set(self, **options: Any) -> Call[T]:
        """The same call with other options, see `Options`: `checkout.call(o).set(id="order-1", delay=60)`."""
        return Call(self.workflow, self.args, self.kwargs, self.options.changed(**options))


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

    def __init__(self, function: Callable[P, R], name: str, retry: Retry, timeout: float | None = None) -> None:
        super().__init__(function, name)
        self.retry = retry
        self.timeout = timeout
        #: Whether one try is nothing but awaiting the function, see `worker.steps.run_plain`.
        self.plain = self.is_async and timeout is None

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


#: Isolation levels of transactional steps, the default first.
ISOLATIONS = ("read committed", "repeatable read", "serializable")


class Transaction(Step[P, R]):
    """A step that is a transaction on the workflow's shard, which commits together with its checkpoint; made by
    `App.transaction`. Called without its first parameter, the connection."""

    kind = "transaction"

    def __init__(
        self,
        function: Callable[Concatenate[Any, P], R],
        name: str,
        retry: Retry,
        timeout: float | None = None,
        isolation: str = ISOLATIONS[0],
    ) -> None:
        super().__init__(cast("Callable[P, R]", function), name, retry, timeout)
        self.plain = False
        self.connected = function
        self.isolation = isolation

    def on(self, connection: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Just runs the function on this connection, in whatever transaction it has: outside of a workflow, in
        tests."""
        return self.connected(connection, *args, **kwargs)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a workflow: runs in a transaction of its own, with retries. Elsewhere: raises UsageError, see
        `on`."""
        self._check_inside()
        return super().__call__(*args, **kwargs)

    def aio(self: Transaction[P, R], *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Calls a plain `def` one from an `async def` workflow; it runs in a thread. Await the answer."""
        self._check_inside()
        return super().aio(*args, **kwargs)

    def _check_inside(self) -> None:
        if current.get() is None:
            raise UsageError(
                f"transaction {self.name!r} was called outside of a workflow's code, where it has no connection: call"
                f" {self.name}.on(connection, ...)"
            )


class Workflow(_Definition[P, R]):
    """A function that a worker runs to its end, whatever happens on the way; made by `App.workflow`."""

    kind = "workflow"

    def __init__(
        self,
        function: Callable[P, R],
        name: str,
        queue: str | Queue,
        version: str | None = None,
        timeout: float | None = None,
        max_recoveries: int = MAX_RECOVERIES,
        runs: Iterable[str | None] = (),
    ) -> None:
        super().__init__(function, name)
        self.queue = check_part("queue", queue.name if isinstance(queue, Queue) else queue)
        self.priority = queue.priority if isinstance(queue, Queue) else 0
        self.version = None if version is None else check_part("version", version)
        self.runs = versions_of(self.version, runs)
        self.timeout = timeout
        self.max_recoveries = max_recoveries

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Just runs the function, here and now; to make it durable, submit it with a client."""
        return self.function(*args, **kwargs)

    @overload
    def call(self: Workflow[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> Call[T]: ...
    @overload
    def call(self: Workflow[P, T], *args: P.args, **kwargs: P.kwargs) -> Call[T]: ...
    def call(self, *args: Any, **kwargs: Any) -> Call[Any]:
        """This call as a value, to be submitted with others: `client.submit_many(f.call(x) for x in xs)`.

        All arguments are the workflow's own; options of the submission come with `.set(...)`.
        """
        return Call(self, args, kwargs)
