"""What a workflow's code may ask for beside its steps. What would differ from run to run is recorded, so that a
replay gets it again; what waits long waits without the worker.

Inside a step, and outside of any workflow, the clock, random numbers and `sleep` are the ordinary ones. What is
awaited here has its twin for workflows that are a plain `def` in `shardflow.blocking`.
"""

from __future__ import annotations

import asyncio
import json
import random as _random
import uuid as _uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn, TypeVar

from .context import Runtime, clock, current
from .core.options import MAX_SECONDS, seconds_of
from .core.routing import check_id, check_name
from .errors import InvalidInput, UsageError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Info:
    """The workflow that asks: its `id`, `name` and `queue`; `attempt`, how often a worker has failed under it."""

    id: str
    name: str
    queue: str
    attempt: int


def now() -> datetime:
    """The time by the worker's clock, with the time zone UTC; the same on every replay."""
    return _recorded(
        "now", lambda: datetime.fromtimestamp(clock.get()(), UTC), datetime.isoformat, datetime.fromisoformat
    )


def uuid4() -> _uuid.UUID:
    """A random UUID; the same on every replay, so it can be the idempotency key of what a step does."""
    return _recorded("uuid4", _uuid.uuid4, str, _uuid.UUID)


def random() -> float:
    """A random number in [0, 1); the same on every replay. Not for secrets."""
    return _recorded("random", _random.random, float, float)


def info() -> Info:
    """About the workflow that asks. Nothing of it is recorded: `attempt` grows. Raises UsageError outside of one."""
    run = current.get()
    if run is None:
        raise UsageError("info() tells about the workflow that calls it: call it in a workflow's code, not in a step")
    return Info(run.id, run.name, run.queue, run.attempt)


def sleep(duration: float | timedelta) -> Awaitable[None]:
    """Waits durably: a workflow that sleeps longer than a second leaves the worker's memory, and a restart does not
    begin the time anew. The time is the shard's clock. Await the answer.

    Arguments: `duration`, seconds or timedelta. Raises InvalidInput.
    """
    seconds = seconds_of("duration", duration)
    run = current.get()
    return asyncio.sleep(seconds) if run is None else awaiting(run, "sleep").sleep(seconds, None)


def sleep_until(when: datetime) -> Awaitable[None]:
    """Waits durably until a time, see `sleep`; not at all where it has passed.

    Arguments: `when`, with a time zone. Raises InvalidInput.
    """
    until = time_of(when)
    run = current.get()
    if run is None:
        return asyncio.sleep(max(0.0, until - datetime.now(UTC).timestamp()))
    return awaiting(run, "sleep_until").sleep(None, until)


def receive(topic: str, timeout: float | timedelta | None = None, *, type: Any = Any) -> Awaitable[Any]:
    """Waits durably for the next message on a topic; answers its value, or None when the time is over. Await the
    answer.

    Arguments: `topic`; `timeout`, seconds or timedelta from the first call on (None: for ever; 0: only what has
    arrived);
    `type`, an annotation by which the value is typed. Messages of one sender come in the order in which they were
    sent, each is received once. Raises UsageError outside of a workflow.
    """
    run = awaiting(_workflow("receive"), "receive")
    limit = None if timeout is None else seconds_of("timeout", timeout)
    return _received(run, run.receive(topic, limit), topic, type)


async def _received(run: Runtime, message: Awaitable[bytes | None], topic: str, type: Any) -> Any:
    value = await message
    return None if value is None else run.codecs.decode(value, type, what=f"message on {topic!r}")


def send(id: str, topic: str, value: Any = None, *, key: str | None = None) -> Awaitable[None]:
    """Sends a message to the workflow with that id, wherever it is, exactly once. Await the answer.

    Arguments: `id`; `topic`; `value`, of a kind that can be stored; `key`: of messages with the same key on the topic
    the receiver gets one. Raises WorkflowNotFound where no workflow has the id, UsageError outside of a workflow,
    where
    `client.send` is for that.
    """
    run = awaiting(_workflow("send"), "send")
    check_id(id)
    if key is not None:
        check_name("key", key)
    return run.send(id, topic, run.codecs.encode(value, what=f"message on {topic!r}"), key)


def set_event(key: str, value: Any = None) -> Awaitable[None]:
    """Sets a value that others read with `client.event(id, key)`, while the workflow runs and after. Await the
    answer."""
    run = awaiting(_workflow("set_event"), "set_event")
    return run.set_event(check_name("event", key), run.codecs.encode(value, what=f"event {key!r}"))


def continue_as_new(*args: Any, **kwargs: Any) -> NoReturn:
    """Ends this run of the workflow's code and begins it anew, under the same id with these arguments: for workflows
    that go on for ever. Never returns; not awaited.

    What was recorded is forgotten in the same transaction. Messages that were not received stay, events too; children
    go on, and their ends are not heard any more. The time limit goes on as well. Raises UsageError outside of a
    workflow, SerializationError.
    """
    _workflow("continue_as_new").continue_as_new(args, kwargs)


def awaiting(run: Runtime, name: str) -> Runtime:
    """The run, of an `async def` workflow. Raises UsageError in a plain one, where nothing can be awaited."""
    if run.blocking:
        raise UsageError(
            f"{name}() is to be awaited, but workflow {run.name!r} is a plain `def`: call shardflow.blocking.{name}()"
        )
    return run


def time_of(when: object) -> float:
    """Seconds since 1970. Raises InvalidInput for anything but a datetime with a time zone."""
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise InvalidInput(f"a time must be a datetime with a time zone, such as datetime.now(UTC), not {when!r}")
    return min(when.timestamp(), MAX_SECONDS)


def _workflow(name: str) -> Runtime:
    run = current.get()
    if run is None:
        raise UsageError(f"{name}() belongs into a workflow's code: it was called in a step or outside of a workflow")
    return run


def _recorded(name: str, make: Callable[[], T], plain: Callable[[T], object], back: Callable[..., T]) -> T:
    run = current.get()
    if run is None:
        return make()
    output = run.value(f"shardflow.{name}", lambda: json.dumps(plain(make())).encode())
    return back(json.loads(output))
