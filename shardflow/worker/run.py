"""One running workflow: its code, its place among its checkpoints, and what its steps do.

Guarantee: a step whose checkpoint is there is not run again, and the workflow goes on behind a step only after that
step's checkpoint has committed. A run that was taken from the worker (`close`) writes nothing more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol

from ..app import Step, Workflow
from ..context import current
from ..core.branches import Branch
from ..core.failure import describe, from_json, to_json
from ..errors import NonDeterminism, SerializationError, StepFailed, UsageError
from ..model import Status
from ..storage.leases import Checkpoint
from .tasks import branch_here

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


#: Seconds between looks whether a lease that was not renewed in time is held after all. Until that is known no step
#: begins: a worker that was frozen or cut off would run what its peers have run already.
STALE_LOOK = 0.05


class Detached(BaseException):
    """Ends the thread of a workflow that this worker must not go on with. Not an error of the workflow."""


class Sink(Protocol):
    """Where a run's writes go: the commit loop of its shard."""

    loop: asyncio.AbstractEventLoop
    threads: ThreadPoolExecutor
    valid_until: float  # the time of the loop's clock until which the lease surely lasts

    def checkpoint(
        self, run: Run, seq: int, name: str, attempts: int, output: bytes | None, error: str | None
    ) -> asyncio.Future[None]:
        """Writes a step's outcome; the future is done when it has committed."""

    def finish(self, run: Run, status: Status, output: bytes | None, error: str | None) -> None:
        """Writes the workflow's end."""


class Run:
    """A claimed workflow in this process.

    Arguments: `sink`, its shard's commit loop; `wf`, its narrow key; `id`; `workflow`, its definition; `input`,
    the encoded arguments; `attempt`, leases that expired under it; `checkpoints`, what is recorded of it, by sequence
    number; `queue`, that it was claimed from.
    """

    __slots__ = (
        "_halt",
        "attempt",
        "blocking",
        "branch",
        "broken",
        "checkpoints",
        "closed",
        "id",
        "input",
        "queue",
        "sink",
        "task",
        "thread",
        "unsettled",
        "wf",
        "workflow",
    )

    def __init__(
        self,
        sink: Sink,
        wf: int,
        id: str,
        workflow: Workflow[..., Any],
        input: bytes,
        attempt: int,
        checkpoints: dict[int, Checkpoint] | None,
        queue: str = "",
    ) -> None:
        self.sink = sink
        self.wf = wf
        self.id = id
        self.workflow = workflow
        self.input = input
        self.attempt = attempt
        self.queue = queue or workflow.queue
        self.checkpoints = checkpoints
        self.blocking = not workflow.is_async
        self.branch = Branch()
        self.thread: concurrent.futures.Future[Any] | None = None
        self.closed = False
        self.broken: NonDeterminism | None = None
        self.task: asyncio.Task[None] | None = None
        self.unsettled: asyncio.Future[None] | None = None
        self._halt: threading.Event | None = threading.Event() if self.blocking else None

    @property
    def name(self) -> str:
        return self.workflow.name

    def start(self) -> None:
        """Begins in a task of its own."""
        self.task = self.sink.loop.create_task(self._main())

    def close(self) -> None:
        """Takes the run from the worker: it is cancelled where it waits, and writes nothing from now on."""
        self.closed = True
        if self._halt is not None:
            self._halt.set()
        if self.task is not None:
            self.task.cancel()

    async def _main(self) -> None:
        codec = self.workflow.codec
        try:
            args, kwargs = codec.decode_call(self.input)
            current.set(self)
            branch_here.set(self.branch)
            if self.blocking:
                value = await self._in_thread(self.workflow.function, args, kwargs)
            else:
                value = await self.workflow.function(*args, **kwargs)
            if self.checkpoints:
                seq, left = min(self.checkpoints.items())
                self.broken = self.broken or NonDeterminism(
                    f"workflow {self.id!r} ended before step {seq} ({left.name!r}), which is recorded: its code has"
                    " changed or depends on something that is not recorded",
                    workflow_id=self.id,
                )
            if self.broken is not None:
                raise self.broken
            output = codec.encode_result(value)
        except asyncio.CancelledError as error:
            if not self.closed:  # the workflow's own code raised it
                self._fail(error)
        except BaseException as error:
            self._fail(self.broken or error)
        else:
            self._finish(Status.SUCCEEDED, output, None)

    def _fail(self, error: BaseException) -> None:
        self._finish(Status.FAILED, None, to_json(describe(error)))

    def _finish(self, status: Status, output: bytes | None, error: str | None) -> None:
        if not self.closed:
            self.sink.finish(self, status, output, error)
            self.closed = True  # tasks that the workflow left behind write nothing more

    async def _in_thread(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        context = copy_context()

        def call() -> Any:
            try:
                return context.run(function, *args, **kwargs)
            except StopIteration as error:  # a future cannot hold it, and would never be done
                raise RuntimeError("StopIteration was raised") from error

        self.thread = self.sink.threads.submit(call)
        return await asyncio.wrap_future(self.thread)

    # -- values that are recorded

    def value(self, name: str, make: Callable[[], bytes]) -> bytes:
        """See `context.Runtime`.

        In an `async def` workflow the record goes along with the next turn: whatever follows from it can only commit
        with it or after it, and what acts outside, a step, waits for it.
        """
        if not self.blocking and not _in_loop(self.sink.loop):
            raise UsageError(f"{name}() was called in a thread of an `async def` workflow: call it in the workflow")
        seq = self._number()
        if (self.checkpoints or self.broken) and (recorded := self._recorded(name, seq)):
            return recorded.output or b"null"
        output = make()
        if self.blocking:
            self._checkpoint_blocking(seq, name, 1, output, None)
        else:
            self.unsettled = self.sink.checkpoint(self, seq, name, 1, output, None)
        return output

    # -- steps of an `async def` workflow

    def step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """See `context.Runtime`. Number and record are taken at the call: gathered steps keep their order."""
        if self.blocking:
            raise UsageError(
                f"step {step.name!r} is `async def`, but workflow {self.workflow.name!r} is a plain `def`:"
                " make both the same"
            )
        seq = self._number()
        if (self.checkpoints or self.broken) and (recorded := self._recorded(step.name, seq)):
            return self._replayed(step, recorded)
        return self._step(step, seq, args, kwargs)

    def _number(self) -> int:
        """The number of the step that is called now, see `core.branches`."""
        return (branch_here.get() or self.branch).next()

    async def _replayed(self, step: Step[..., Any], recorded: Checkpoint) -> Any:
        return self._answer(step, recorded)

    async def _step(self, step: Step[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        attempts = 0
        if self.unsettled is not None:
            await asyncio.wait([self.unsettled])  # which does not cancel it when this step is cancelled
        while True:
            while self.sink.loop.time() > self.sink.valid_until and not self.closed:  # noqa: ASYNC110  # rare
                await asyncio.sleep(STALE_LOOK)
            if self.closed:  # whatever the workflow's code makes of its cancellation, it runs no step here
                raise asyncio.CancelledError
            attempts += 1
            inside = current.set(None)
            failure: BaseException | None = None
            try:
                if step.is_async:
                    value = await step.function(*args, **kwargs)
                else:
                    value = await self._in_thread(step.function, args, kwargs)
                output, value = step.codec.roundtrip_result(value)
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # the latter two would end the event loop
                failure = error
            finally:
                current.reset(inside)
            if failure is None:
                await self.sink.checkpoint(self, seq, step.name, attempts, output, None)
                return value
            if not _again(step, attempts, failure):
                info = describe(failure)
                await self.sink.checkpoint(self, seq, step.name, attempts, None, to_json(info))
                raise StepFailed(step.name, info.type, info.message, info.traceback, attempts) from failure
            await asyncio.sleep(step.retry.delay(attempts, random.random()))

    # -- steps of a plain `def` workflow, in its own thread

    def step_blocking(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `context.Runtime`."""
        if not self.blocking:
            raise UsageError(
                f"step {step.name!r} is a plain `def` and would stop the event loop in workflow"
                f" {self.workflow.name!r}, which is `async def`: call `await {step.name}.aio(...)`"
            )
        seq = self.branch.next()
        if (self.checkpoints or self.broken) and (recorded := self._recorded(step.name, seq)):
            return self._answer(step, recorded)
        attempts = 0
        while True:
            assert self._halt is not None
            while self.sink.loop.time() > self.sink.valid_until and not self.closed:
                self._halt.wait(STALE_LOOK)
            if self.closed:
                raise Detached
            attempts += 1
            inside = current.set(None)
            failure: BaseException | None = None
            try:
                value = step.function(*args, **kwargs)
                output, value = step.codec.roundtrip_result(value)
            except (Exception, SystemExit, KeyboardInterrupt) as error:
                failure = error
            finally:
                current.reset(inside)
            if failure is None:
                self._checkpoint_blocking(seq, step.name, attempts, output, None)
                return value
            if not _again(step, attempts, failure):
                info = describe(failure)
                self._checkpoint_blocking(seq, step.name, attempts, None, to_json(info))
                raise StepFailed(step.name, info.type, info.message, info.traceback, attempts) from failure
            self._halt.wait(step.retry.delay(attempts, random.random()))

    def _checkpoint_blocking(
        self, seq: int, name: str, attempts: int, output: bytes | None, error: str | None
    ) -> None:
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def post() -> None:
            written = self.sink.checkpoint(self, seq, name, attempts, output, error)
            written.add_done_callback(pass_on)

        def pass_on(written: asyncio.Future[None]) -> None:
            failed = Detached() if written.cancelled() else written.exception()
            if failed is None:
                done.set_result(None)
            else:
                done.set_exception(failed)

        try:
            self.sink.loop.call_soon_threadsafe(post)
        except RuntimeError:  # the loop is closed: the worker has ended
            raise Detached from None
        done.result()

    # -- replay

    def _recorded(self, name: str, seq: int) -> Checkpoint | None:
        if self.broken is not None:
            raise self.broken
        recorded = self.checkpoints.pop(seq, None) if self.checkpoints else None
        if recorded is not None and recorded.name != name:
            self.broken = NonDeterminism(
                f"workflow {self.id!r}: step {seq} is {name!r} now, but {recorded.name!r} is recorded: its code"
                " has changed or depends on something that is not recorded",
                workflow_id=self.id,
            )
            raise self.broken
        return recorded

    @staticmethod
    def _answer(step: Step[..., Any], recorded: Checkpoint) -> Any:
        if recorded.error is not None:
            info = from_json(recorded.error)
            raise StepFailed(step.name, info.type, info.message, info.traceback, recorded.attempts)
        return step.codec.decode_result(recorded.output or b"null")


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _again(step: Step[..., Any], attempts: int, failure: BaseException) -> bool:
    return not isinstance(failure, SerializationError) and step.retry.may_retry(attempts, failure)
