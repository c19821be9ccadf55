"""Runs workflows in this process, with no database: what a test calls.

Guarantee: the worker's own code runs them, so steps, retries, messages, children and replays do what they do there;
what is stored goes through the same codecs. Only time is another: it stands, and jumps to the next moment that
somebody waits for while a result is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Self, TypeVar, cast, overload

from ..app import App
from ..children import call_of
from ..client.aio import OPTION_NAMES
from ..core.codec import DEFAULT
from ..core.codecs import Codecs
from ..core.failure import from_json, to_json
from ..core.options import seconds_of
from ..core.routing import check_name
from ..core.topics import check_topic
from ..definitions import Call, Step, Workflow
from ..errors import (
    InvalidInput,
    NonDeterminism,
    ResultTimeout,
    UsageError,
    WorkflowCancelled,
    WorkflowFailed,
)
from ..model import Status, StepInfo
from ..storage.leases import Checkpoint
from ..worker.tasks import number_tasks
from .record import Record
from .replay import verify
from .world import Stuck, World

T = TypeVar("T")

#: Jumps of the clock for one result; a workflow that needs more never ends, as far as a test can tell.
MOST_JUMPS = 100_000


class InlineHandle(Generic[T]):
    """A workflow that was started inline; made by `Inline.start`.

    Attribute: `id`.
    """

    def __init__(self, env: Inline, id: str) -> None:
        self.id = id
        self._env = env

    def __repr__(self) -> str:
        return f"<InlineHandle {self.id!r}>"

    @property
    def status(self) -> Status:
        """Where the workflow is."""
        return self._env._world.find(self.id).status

    async def result(self, within: float | timedelta | None = None) -> T:
        """Lets time jump until the workflow ends; answers its result. See `Inline.result`."""
        return cast(T, await self._env.result(self.id, within))


class Inline:
    """Where workflows run inline; to be used as `async with Inline(app) as env`, in one event loop.

    Arguments: `app`, needed for workflows that are known by name only; `start`, the time at which the clock stands
    (default: now); `replay`: whether each workflow that waits is taken out of memory and replayed when it goes on,
    and once more after its end, so that code that depends on something unrecorded is found.
    """

    def __init__(self, app: App | None = None, *, start: datetime | None = None, replay: bool = True) -> None:
        if start is not None and start.tzinfo is None:
            raise InvalidInput("start must be a datetime with a time zone, such as datetime(2030, 1, 1, tzinfo=UTC)")
        self._app = app
        self._start = (start or datetime.now(UTC)).timestamp()
        self._replay = replay
        self._codecs: Codecs = app.codecs if app is not None else DEFAULT

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._factory = loop.get_task_factory()
        number_tasks(loop)
        self._world = World(self._app, self._start)
        self._turn = asyncio.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._world.close()
        asyncio.get_running_loop().set_task_factory(self._factory)

    # -- what stands in

    @overload
    def fake(self, made: Step[..., Any], function: Callable[..., Any]) -> None: ...
    @overload
    def fake(self, made: Workflow[..., Any], function: Callable[..., Any]) -> None: ...
    def fake(self, made: Any, function: Callable[..., Any]) -> None:
        """From now on the function is called in place of a step, or of a workflow.

        It gets the arguments; what it returns or raises counts as the step's: retried, recorded, and converted as the
        step's annotations say. It may be `async def`, a lambda or a mock.
        """
        if isinstance(made, Step):
            self._world.fakes[made] = function
        elif isinstance(made, Workflow):
            self._world.other[made] = function
        else:
            raise InvalidInput(f"fake takes a step or a workflow, not {type(made).__name__}")

    # -- workflows

    async def run(self, workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any) -> Any:
        """Starts a workflow and answers its result, see `start` and `result`."""
        return await (await self.start(workflow, *args, **kwargs)).result()

    @overload
    async def start(
        self, workflow: Workflow[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any
    ) -> InlineHandle[T]: ...
    @overload
    async def start(
        self, workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any
    ) -> InlineHandle[Any]: ...
    async def start(
        self, workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any
    ) -> InlineHandle[Any]:
        """Starts a workflow, which runs while the test waits for anything; time does not go on by itself.

        Arguments: `workflow`, its definition, its name, or a call, as `checkout.call(order)`; its own arguments; and
        options, as of `client.submit`. Without an id it gets the name and a number: "checkout-1". Queues, priorities
        and limits mean nothing here. Raises UsageError for a `dedup_key`.
        """
        options = {name: kwargs.pop(name) for name in OPTION_NAMES & kwargs.keys()}
        call = call_of(workflow, args, kwargs)
        return InlineHandle(self, self._world.submit(call.set(**options) if options else call).id)

    async def restore(
        self, steps: Iterable[StepInfo], workflow: Workflow[..., Any] | Call[Any] | str, /, *args: Any, **kwargs: Any
    ) -> InlineHandle[Any]:
        """Starts a workflow that has these records already, so that it goes on behind them: what was recorded under
        other code, or elsewhere, meets this code.

        Arguments: `steps`, as `Inline.steps` and `client.steps` give them, all or the first of them; the others as of
        `start`. It should have the id that it had.
        """
        call = call_of(workflow, args, kwargs)
        found = {
            each.seq: Checkpoint(
                each.seq,
                each.name,
                each.output,
                None if each.error is None else to_json(each.error),
                each.attempts,
                each.finished_at.timestamp(),
            )
            for each in steps
        }
        self._world.now = max([self._world.now, *(each.at for each in found.values())])
        return InlineHandle(self, self._world.submit(call, recorded=found).id)

    async def result(self, id: str, within: float | timedelta | None = None) -> Any:
        """Lets time jump from one moment that is waited for to the next until the workflow ends; answers its result.

        Arguments: `within`, seconds or timedelta of that time. Raises WorkflowFailed (its cause is the exception
        itself), WorkflowCancelled, NonDeterminism where a replay did something else, ResultTimeout, Stuck where
        nothing can happen any more.
        """
        record = self._world.find(id)
        until = None if within is None else self._world.now + seconds_of("within", within)
        if not await self._go(lambda: record.status.final, until):
            if until is not None:
                raise ResultTimeout(
                    f"workflow {id!r} has not ended within {within}: it waits for {record.waits_for()}"
                )
            raise Stuck(f"workflow {id!r} cannot go on: it waits for {record.waits_for()}")
        if self._replay:
            async with self._turn:
                for each in [r for r in self._world.records.values() if r.status.final and not r.checked]:
                    if not isinstance(each.failure, NonDeterminism):
                        await verify(self._world, each)
        return _outcome(record)

    async def cancel(self, id: str, reason: str = "") -> None:
        """Cancels a workflow that has not ended, and its children."""
        record = self._world.find(id)
        for child in [r for r in self._world.records.values() if r.parent is record]:
            await self.cancel(child.id, reason)
        self._world.end(record, Status.CANCELLED, WorkflowCancelled(id, reason))
        await self._world.left()

    async def replay(self, id: str) -> None:
        """Replays a workflow from the start over its records. Raises NonDeterminism where it does something else.

        One that has not ended goes on from there.
        """
        await self.settle()
        record = self._world.find(id)
        async with self._turn:
            if record.status.final:
                await verify(self._world, record)
                return
            if record.run is not None:
                self._world.suspend(record)
                await self._world.left()
            if record.pauses:
                self._world.resume(record)
        await self.settle()
        if isinstance(record.failure, NonDeterminism):
            raise record.failure

    # -- messages, events, records

    async def send(self, id: str, topic: str, value: Any = None, *, key: str | None = None) -> None:
        """Sends a message, as `client.send`. Raises WorkflowNotFound."""
        record = self._world.find(id)
        data = self._codecs.encode(value, what=f"message on {topic!r}")
        self._world.post(record, check_topic(topic), key, data)

    async def event(self, id: str, key: str, *, type: Any = Any) -> Any:
        """The value of an event when nothing goes on any more without time; None where it was not set."""
        await self.settle()
        value = self._world.find(id).events.get(check_name("event", key))
        return None if value is None else self._codecs.decode(value, type, what=f"event {key!r}")

    async def status(self, id: str) -> Status:
        """Where the workflow is when nothing goes on any more without time."""
        await self.settle()
        return self._world.find(id).status

    def steps(self, id: str) -> list[StepInfo]:
        """What is recorded of the workflow so far, in order."""
        return [
            StepInfo(
                seq,
                each.name,
                datetime.fromtimestamp(each.at, UTC),
                each.attempts,
                each.output,
                None if each.error is None else from_json(each.error),
            )
            for seq, each in sorted(self._world.find(id).checkpoints.items())
        ]

    # -- time

    def now(self) -> datetime:
        """The time by the clock that jumps."""
        return datetime.fromtimestamp(self._world.now, UTC)

    async def settle(self) -> None:
        """Returns when everything has gone as far as it can without time."""
        async with self._turn:
            await self._world.still(lambda: False)
            await self._suspend(self._world.records.values())

    async def advance(self, duration: float | timedelta) -> None:
        """Lets so much time pass, seconds or timedelta, and all happen that is due in it, in order."""
        until = self._world.now + seconds_of("duration", duration)
        await self._go(lambda: False, until)

    async def _go(self, done: Callable[[], bool], until: float | None) -> bool:
        """Lets time pass until `done`, or `until`; answers whether it is done."""
        async with self._turn:
            world = self._world
            for _ in range(MOST_JUMPS):
                await world.still(done)
                if done():
                    return True
                await self._suspend(world.records.values())
                due = world.next_due()
                if due is None or (until is not None and due > until):
                    if until is not None:
                        world.jump(until)
                        await world.still(done)
                    return done()
                world.jump(due)
        raise Stuck(f"the clock has jumped {MOST_JUMPS:,} times, and nothing has ended")

    async def _suspend(self, records: Iterable[Record]) -> None:
        if self._replay:
            for record in records:
                if record.run is not None:
                    self._world.suspend(record)
            await self._world.left()


def run_inline(workflow: Workflow[..., Any] | Call[Any], /, *args: Any, **kwargs: Any) -> Any:
    """Runs a workflow to its end in this process and answers its result; for tests that are not `async`.

    See `Inline`, which can do more. Raises what `Inline.result` does.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UsageError("run_inline() is for code without an event loop: use `async with Inline() as env` here")

    async def main() -> Any:
        async with Inline() as env:
            return await env.run(workflow, *args, **kwargs)

    return asyncio.run(main())


def _outcome(record: Record) -> Any:
    if record.status is Status.SUCCEEDED:
        return record.workflow.codec.decode_result(record.output or b"null")
    if isinstance(record.failure, NonDeterminism):
        raise record.failure
    info = from_json(record.error or "{}")
    if record.status is Status.CANCELLED:
        raise WorkflowCancelled(record.id, info.message)
    raise WorkflowFailed(record.id, info.type, info.message, info.traceback) from record.failure
