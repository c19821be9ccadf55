"""Workflows that a workflow starts: its children.

Their ids derive from the parent's id and the place in its code, so that a start which is repeated after a crash
starts the same ones. They may be on any shard; their ends reach the parent as messages, so awaiting them costs no
memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from .context import Runtime, current
from .core.codecs import Codecs
from .definitions import Call, Workflow
from .errors import InvalidInput, UsageError
from .inside import awaiting

T = TypeVar("T")


class ChildHandle(Generic[T]):
    """A child that was started; made by `start` and `start_many`.

    Attributes: `id`; `name`, the workflow's.
    """

    __slots__ = ("_workflow", "id")

    def __init__(self, id: str, workflow: Workflow[..., Any] | str) -> None:
        self.id = id
        self._workflow = workflow

    @property
    def name(self) -> str:
        return self._workflow if isinstance(self._workflow, str) else self._workflow.name

    def __repr__(self) -> str:
        return f"<ChildHandle {self.name} {self.id!r}>"

    def result(self) -> Awaitable[T]:
        """Waits durably for the child's end; answers its result. Await the answer.

        Raises WorkflowFailed where it ended with an error, WorkflowCancelled where it was cancelled.
        """
        return _first(gather([self]))

    def decoded(self, output: bytes | None, codecs: Codecs) -> Any:
        """The result out of its stored form; `codecs` read that of a workflow known by name only."""
        data = output or b"null"
        if isinstance(self._workflow, str):
            return codecs.decode(data, what=f"result of workflow {self.id!r}")
        return self._workflow.codec.decode_result(data)


async def _first(answers: Awaitable[list[Any]]) -> Any:
    return (await answers)[0]


def start(
    workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any
) -> Awaitable[ChildHandle[Any]]:
    """Starts a child; returns when its shard has it. Await the answer.

    Arguments: `workflow`, its definition, its stored name, or a call with options, such as
    `ship.call(item).set(priority=5)`; its own arguments; `colocate=True` puts it onto the parent's shard.
    Raises WorkflowConflict where an id that was given belongs to another workflow, UsageError outside of a workflow.
    """
    colocate = bool(kwargs.pop("colocate", False))
    return _one(started(inside("start"), [call_of(workflow, args, kwargs)], colocate, many=False))


async def _one(answers: Awaitable[list[ChildHandle[Any]]]) -> ChildHandle[Any]:
    return (await answers)[0]


def start_many(
    workflow: Workflow[..., Any] | str | Iterable[Call[Any]],
    items: Iterable[Any] | None = None,
    *,
    colocate: bool = False,
) -> Awaitable[list[ChildHandle[Any]]]:
    """Starts many children at once: a workflow for each of the items, which is its only argument, or calls. Await the
    answer.

    See `start`; `start_many(ship, order.items)`, `start_many(ship.call(i, 1).set(priority=5) for i in order.items)`.
    """
    return started(inside("start_many"), calls_of(workflow, items), colocate, many=True)


def gather(handles: Iterable[ChildHandle[Any]], *, return_exceptions: bool = False) -> Awaitable[list[Any]]:
    """Waits durably until all of these children have ended; answers their results in order. Await the answer.

    When all have ended, the error of the first that failed is raised; with `return_exceptions` errors stand in their
    places.
    """
    return collected(inside("gather"), list(handles), return_exceptions)


def inside(name: str) -> Runtime:
    """The run of the `async def` workflow that calls. Raises UsageError."""
    return awaiting(workflow_of(name), name)


def workflow_of(name: str) -> Runtime:
    """The run of the workflow that calls. Raises UsageError."""
    run = current.get()
    if run is None:
        raise UsageError(f"{name}() belongs into a workflow's code: it was called in a step or outside of a workflow")
    return run


def call_of(workflow: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
    """A call, from what `start` takes."""
    if isinstance(workflow, Call):
        if args or kwargs:
            raise InvalidInput("a call has its arguments already")
        return workflow
    if not isinstance(workflow, (Workflow, str)):
        raise InvalidInput(
            "start takes a workflow (a function with @app.workflow), its name or a call, not"
            f" {type(workflow).__name__}"
        )
    return Call(workflow, args, kwargs)


def calls_of(workflow: Any, items: Iterable[Any] | None) -> list[Call[Any]]:
    """Calls, from what `start_many` takes."""
    if items is not None:
        return [call_of(workflow, (item,), {}) for item in items]
    if isinstance(workflow, (Workflow, str)) or not isinstance(workflow, Iterable):
        raise InvalidInput("start_many takes a workflow and its items, or calls")
    return [call_of(call, (), {}) for call in workflow]


def started(
    run: Runtime, calls: Sequence[Call[Any]], colocate: bool, *, many: bool
) -> Awaitable[list[ChildHandle[Any]]]:
    """Starts them."""
    for call in calls:
        if call.options.after or call.options.dedup_key is not None:
            raise InvalidInput("a child cannot have `after` or `dedup_key`")
    return _handles(run.start_children(calls, colocate=colocate, many=many), calls)


async def _handles(ids: Awaitable[Sequence[str]], calls: Sequence[Call[Any]]) -> list[ChildHandle[Any]]:
    return [ChildHandle(id, call.workflow) for id, call in zip(await ids, calls, strict=True)]


async def collected(run: Runtime, handles: list[ChildHandle[Any]], return_exceptions: bool) -> list[Any]:
    """Their results."""
    if not handles:
        return []
    ends = await run.ends([handle.id for handle in handles])
    if not return_exceptions:
        for _, failed in ends:
            if failed is not None:
                raise failed
    return [
        handle.decoded(output, run.codecs) if failed is None else failed
        for handle, (output, failed) in zip(handles, ends, strict=True)
    ]
