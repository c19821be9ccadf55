"""What is awaited in an `async def` workflow, for workflows that are a plain `def`: the same names, without `await`.

from shardflow import blocking

@app.workflow
def remind(who: str) -> None:
    blocking.sleep(86_400)
    mail(who)
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from . import children, inside
from .context import Runtime, current
from .core.options import seconds_of
from .core.routing import check_id, check_name
from .definitions import Call, Workflow
from .errors import UsageError

T = TypeVar("T")


def sleep(duration: float | timedelta) -> None:
    """See `shardflow.sleep`."""
    seconds = seconds_of("duration", duration)
    run = current.get()
    if run is None:
        time.sleep(seconds)
    else:
        _plain(run, "sleep").block_on(run.sleep(seconds, None))


def sleep_until(when: datetime) -> None:
    """See `shardflow.sleep_until`."""
    until = inside.time_of(when)
    run = current.get()
    if run is None:
        time.sleep(max(0.0, until - datetime.now(UTC).timestamp()))
    else:
        _plain(run, "sleep_until").block_on(run.sleep(None, until))


def receive(topic: str, timeout: float | timedelta | None = None, *, type: Any = Any) -> Any:
    """See `shardflow.receive`."""
    run = _here("receive")
    limit = None if timeout is None else seconds_of("timeout", timeout)
    value = run.block_on(run.receive(topic, limit))
    return None if value is None else run.codecs.decode(value, type, what=f"message on {topic!r}")


def send(id: str, topic: str, value: Any = None, *, key: str | None = None) -> None:
    """See `shardflow.send`."""
    run = _here("send")
    check_id(id)
    if key is not None:
        check_name("key", key)
    run.block_on(run.send(id, topic, run.codecs.encode(value, what=f"message on {topic!r}"), key))


def set_event(key: str, value: Any = None) -> None:
    """See `shardflow.set_event`."""
    run = _here("set_event")
    run.block_on(run.set_event(check_name("event", key), run.codecs.encode(value, what=f"event {key!r}")))


class ChildHandle(Generic[T]):
    """See `shardflow.ChildHandle`."""

    __slots__ = ("_handle", "id")

    def __init__(self, handle: children.ChildHandle[T]) -> None:
        self.id = handle.id
        self._handle = handle

    @property
    def name(self) -> str:
        return self._handle.name

    def result(self) -> T:
        """See `shardflow.ChildHandle.result`."""
        result: T = gather([self])[0]
        return result


def start(workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any) -> ChildHandle[Any]:
    """See `shardflow.start`."""
    run = _here("start")
    colocate = bool(kwargs.pop("colocate", False))
    calls = [children.call_of(workflow, args, kwargs)]
    return ChildHandle(_wait(run, children.started(run, calls, colocate, many=False))[0])


def start_many(
    workflow: Workflow[..., Any] | str | Iterable[Call[Any]],
    items: Iterable[Any] | None = None,
    *,
    colocate: bool = False,
) -> list[ChildHandle[Any]]:
    """See `shardflow.start_many`."""
    run = _here("start_many")
    calls = children.calls_of(workflow, items)
    return [ChildHandle(handle) for handle in _wait(run, children.started(run, calls, colocate, many=True))]


def gather(handles: Iterable[ChildHandle[Any]], *, return_exceptions: bool = False) -> list[Any]:
    """See `shardflow.gather`."""
    run = _here("gather")
    return _wait(run, children.collected(run, [handle._handle for handle in handles], return_exceptions))


def _here(name: str) -> Runtime:
    return _plain(children.workflow_of(name), name)


def _plain(run: Runtime, name: str) -> Runtime:
    if not run.blocking:
        raise UsageError(
            f"blocking.{name}() would stop the event loop in workflow {run.name!r}, which is `async def`:"
            f" call `await shardflow.{name}(...)`"
        )
    return run


def _wait(run: Runtime, answer: Awaitable[T]) -> T:
    async def ask() -> T:
        return await answer

    return run.block_on(ask())
