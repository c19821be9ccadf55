"""One running workflow: its code, its place among its checkpoints, and what it waits for.

Guarantee: a step whose checkpoint is there is not run again, and the workflow goes on behind a step only after that
step's checkpoint has committed. A run that was taken from the worker (`close`) writes nothing more.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Any, TypeVar
from weakref import WeakSet

from ..context import current
from ..core.branches import Branch
from ..core.childids import Children
from ..core.codecs import Codecs
from ..core.failure import describe, to_json
from ..definitions import Step, Workflow
from ..errors import NonDeterminism, UsageError
from ..model import Status
from ..storage.leases import Checkpoint, Tries
from .gather import Extra
from .mailbox import Mailbox
from .operations import Anew, Operations
from .sink import Sink
from .steps import Detached, answer, run_plain
from .tasks import branch_here
from .transactions import run_step, run_step_blocking

T = TypeVar("T")

# `value` of an Enum is a call, and this is on every workflow's way.
_SUCCEEDED, _FAILED = Status.SUCCEEDED.value, Status.FAILED.value


class Wait:
    """Something durable that a run waits for: a time of the sink's clock, messages, ends of children; `ready` is done
    when it may look again."""

    __slots__ = ("due", "ids", "ready", "topics")

    def __init__(
        self, ready: asyncio.Future[None], due: float | None, topics: tuple[str, ...], ids: Sequence[str]
    ) -> None:
        self.ready = ready
        self.due = due
        self.topics = topics
        self.ids = ids


class Run(Operations):
    """A claimed workflow in this process.

    Arguments: `sink`, its shard's commit loop; `wf`, its narrow key; `id`; `workflow`, its definition; `input`,
    the encoded arguments; `attempt`, leases that expired under it; `checkpoints`, what is recorded of it, by sequence
    number; `queue`, that it was claimed from; `tries`, its steps that have failed and are to be tried again;
    `options`, of its submission; `generation`, how often it has begun anew.
    """

    __slots__ = (
        "_halt",
        "attempt",
        "blocking",
        "box",
        "branch",
        "broken",
        "busy",
        "checkpoints",
        "closed",
        "generation",
        "id",
        "input",
        "operation",
        "options",
        "queue",
        "sink",
        "starting",
        "task",
        "tasks",
        "thread",
        "timers",
        "tries",
        "unsettled",
        "waits",
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
        tries: dict[int, Tries] | None = None,
        options: Mapping[str, Any] | None = None,
        generation: int = 0,
    ) -> None:
        self.sink = sink
        self.wf = wf
        self.id = id
        self.workflow = workflow
        self.input = input
        self.attempt = attempt
        self.queue = queue or workflow.queue
        self.checkpoints = checkpoints
        self.tries = tries
        self.options = options
        self.generation = generation
        self.starting: list[Children] | None = None
        self.blocking = not workflow.is_async
        self.branch = Branch()
        self.thread: concurrent.futures.Future[Any] | None = None
        self.closed = False
        self.broken: NonDeterminism | None = None
        self.task: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[Any]] | None = None
        self.timers: WeakSet[asyncio.TimerHandle] | None = None
        self.operation: asyncio.Task[Any] | None = None
        self.unsettled: asyncio.Future[None] | None = None
        self.busy = 0
        self.waits: set[Wait] | None = None
        self.box: Mailbox | None = None
        self._halt: threading.Event | None = threading.Event() if self.blocking else None

    @property
    def name(self) -> str:
        return self.workflow.name

    @property
    def codecs(self) -> Codecs:
        return self.workflow.codec.codecs

    def start(self) -> None:
        """Begins in a task of its own."""
        self.task = self.sink.own_task(self._main())

    def close(self) -> None:
        """Takes the run from the worker: it is cancelled where it waits, and writes nothing from now on."""
        self.closed = True
        if self._halt is not None:
            self._halt.set()
        if self.operation is not None:
            self.operation.cancel()
        if self.task is not None:
            self.task.cancel()
        if self.tasks:
            self.end_tasks()

    def end_tasks(self) -> None:
        """Cancels the tasks that the workflow's code has left behind: what they wait for never comes."""
        for task in list(self.tasks or ()):
            task.cancel()

    def anew(self, input: bytes) -> Run:
        """The same workflow, which begins anew with another input."""
        generation, options = self.generation + 1, self.options
        wf, workflow, attempt = self.wf, self.workflow, self.attempt
        return Run(self.sink, wf, self.id, workflow, input, attempt, None, self.queue, None, options, generation)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """A task that the workflow's code has made."""
        if self.tasks is None:
            self.tasks = set()
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _main(self) -> None:
        codec = self.workflow.codec
        try:
            args, kwargs = codec.decode_call(self.input)
            current.set(self)
            if branch_here.get() is not None:  # begun by another workflow's task
                branch_here.set(None)
            if self.blocking:
                value = await self.in_thread(self.workflow.function, args, kwargs)
            else:
                value = await self.workflow.function(*args, **kwargs)
            if self.checkpoints or self.broken:
                self.check_complete()
            output = codec.encode_result(value)
        except Anew as again:
            await self.begin_again(again.input)
        except asyncio.CancelledError as error:
            if not self.closed:  # the workflow's own code raised it
                self.fail(error)
        except BaseException as error:
            self.fail(self.broken or error)
        else:
            self.finish(_SUCCEEDED, output, None)

    def fail(self, error: BaseException) -> None:
        """Ends the workflow with this error."""
        self.finish(_FAILED, None, to_json(describe(error)))

    def finish(self, status: str, output: bytes | None, error: str | None) -> None:
        """Ends the workflow; tasks that it left behind write nothing more."""
        if not self.closed:
            self.sink.finish(self, status, output, error)
            self.closed = True

    async def in_thread(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Runs a plain function in one of the worker's threads."""
        context = copy_context()

        def call() -> Any:
            try:
                return context.run(function, *args, **kwargs)
            except StopIteration as error:  # a future cannot hold it, and would never be done
                raise RuntimeError("StopIteration was raised") from error

        self.thread = self.sink.threads.submit(call)
        return await asyncio.wrap_future(self.thread)

    # -- steps

    def step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """See `context.Runtime`. Number and record are taken at the call: gathered steps keep their order."""
        if self.blocking:
            raise UsageError(
                f"step {step.name!r} is `async def`, but workflow {self.workflow.name!r} is a plain `def`:"
                " make both the same"
            )
        seq = (branch_here.get() or self.branch).next()
        if (self.checkpoints or self.broken) and (recorded := self.recorded(step.name, seq)):
            return self._replayed(step, recorded)
        if step.plain and not self.tries:
            return run_plain(self, step, seq, args, kwargs)
        return run_step(self, step, seq, args, kwargs)

    async def _replayed(self, step: Step[..., Any], recorded: Checkpoint) -> Any:
        self.behind(recorded.at)
        return answer(step, recorded)

    def step_blocking(self, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """See `context.Runtime`."""
        if not self.blocking:
            raise UsageError(
                f"step {step.name!r} is a plain `def` and would stop the event loop in workflow"
                f" {self.workflow.name!r}, which is `async def`: call `await {step.name}.aio(...)`"
            )
        seq = self.branch.next()
        if (self.checkpoints or self.broken) and (recorded := self.recorded(step.name, seq)):
            return answer(step, recorded)
        return run_step_blocking(self, step, seq, args, kwargs)

    # -- what operations stand on

    def number(self) -> int:
        """The number of the step or operation that is called now, see `core.branches`."""
        return (branch_here.get() or self.branch).next()

    def recorded(self, name: str, seq: int) -> Checkpoint | None:
        """The record of what is called now; None where there is none yet. Raises NonDeterminism."""
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

    async def settled(self) -> None:
        """Returns when the recorded values that were asked for so far have committed."""
        if self.unsettled is not None:
            await asyncio.wait([self.unsettled])  # which does not cancel it when the caller is cancelled
        if self.closed:
            raise asyncio.CancelledError

    async def wait(self, due: float | None, topics: tuple[str, ...] = (), ids: Sequence[str] = ()) -> None:
        """Waits durably: until a time of the sink's clock, a message on one of the topics, or the ends of all these
        children. The run may be suspended meanwhile; then this never returns. May return early: look again. Where the
        time has passed already it returns when the shard has said what has arrived until now."""
        if self.closed:  # whoever has swallowed its cancellation takes nothing from the run that goes on elsewhere
            await asyncio.sleep(1.0)
            raise asyncio.CancelledError
        wait = Wait(self.sink.loop.create_future(), due, topics, ids)
        if self.waits is None:
            self.waits = set()
        self.waits.add(wait)
        if topics or ids:
            self.box = self.box or Mailbox()
            if not self.box.covers(topics, ids) or (due is not None and due <= self.sink.time()):
                self.sink.ask_mail(self)
        self.sink.waiting(self)
        try:
            await wait.ready
        finally:
            self.waits.discard(wait)

    def block_on(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """See `context.Runtime`."""
        done: concurrent.futures.Future[T] = concurrent.futures.Future()

        def begin() -> None:
            if self.closed:
                coroutine.close()
                done.set_exception(Detached())
                return
            self.operation = self.sink.loop.create_task(coroutine, context=Context())
            self.operation.add_done_callback(pass_on)

        def pass_on(task: asyncio.Task[T]) -> None:
            failed = Detached() if task.cancelled() else task.exception()
            if failed is None:
                done.set_result(task.result())
            else:
                done.set_exception(failed)

        self.post(begin)
        return done.result()

    def checkpoint_blocking(
        self, seq: int, name: str, attempts: int, output: bytes | None, error: str | None
    ) -> None:
        """Writes a step's outcome from the workflow's thread and waits until it has committed."""
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        extra = Extra(tried=True) if self.tries and seq in self.tries else None

        def write() -> None:
            written = self.sink.checkpoint(self, seq, name, attempts, output, error, extra)
            written.add_done_callback(pass_on)

        def pass_on(written: asyncio.Future[None]) -> None:
            failed = Detached() if written.cancelled() else written.exception()
            if failed is None:
                done.set_result(None)
            else:
                done.set_exception(failed)

        self.post(write)
        done.result()

    def post(self, callback: Callable[[], None]) -> None:
        """Has the worker's loop call it. Raises Detached where the worker has ended."""
        try:
            self.sink.loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed
            raise Detached from None

    def halt(self, seconds: float) -> None:
        """Keeps the workflow's thread waiting, until the run is closed at the latest."""
        assert self._halt is not None
        self._halt.wait(seconds)
