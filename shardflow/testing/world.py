"""What stands for the shards where workflows run inline: their records, their messages, and a clock that jumps.

A run writes here as it writes to a commit loop; a write is visible at once, and the run goes on a turn of the event
loop later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any

from ..app import App
from ..context import clock
from ..core.failure import describe, from_json, to_json
from ..core.topics import CHILD
from ..definitions import Call, Step, Workflow
from ..delivery.submission import untyped
from ..errors import (
    DependencyFailed,
    ShardflowError,
    UsageError,
    WorkflowConflict,
    WorkflowNotFound,
    WorkflowTimeout,
)
from ..model import Status
from ..storage.leases import Checkpoint, Tries
from ..worker.gather import Extra
from ..worker.mailbox import Mailbox
from ..worker.quiet import is_quiet
from ..worker.run import Run
from ..worker.tasks import own_tasks
from .record import Pause, Record
from .run import InlineRun, stand_in

#: Threads at the most; each running workflow that is a plain `def` has one.
THREADS = 500
#: Turns of the event loop in which nothing moves before a workflow with several tasks counts as waiting, at the most.
MOST_TURNS = 50
#: Seconds between looks at workflows that do something real.
LOOK = 0.005


class Stuck(ShardflowError):
    """Nothing can happen any more, and the workflow has not ended."""


class World:
    """Arguments: `app`, for workflows that are started by name; `start`, the time at which the clock stands."""

    jumps = True
    valid_until = float("inf")

    def __init__(self, app: App | None, start: float) -> None:
        self.app = app
        self.now = start
        self.records: dict[str, Record] = {}
        self.fakes: dict[Step[..., Any], Callable[..., Any]] = {}
        self.other: dict[Workflow[..., Any], Callable[..., Any]] = {}
        self.loop = asyncio.get_running_loop()
        self.own_task = own_tasks(self.loop)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="shardflow inline")
        self.delivery: Any = self
        self.moved = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._numbers: dict[str, int] = {}
        self._context: Context = copy_context()
        self._context.run(clock.set, self.time)

    async def close(self) -> None:
        """Ends what runs."""
        for record in self.records.values():
            self._leave(record)
        await self.left()
        self.threads.shutdown(wait=False, cancel_futures=True)

    # -- what runs call: `worker.sink.Sink`

    def time(self) -> float:
        """The clock, in seconds since 1970; it stands between jumps."""
        return self.now

    def server_time(self) -> float:
        return self.now

    def checkpoint(
        self,
        run: Run,
        seq: int,
        name: str,
        attempts: int,
        output: bytes | None,
        error: str | None,
        extra: Extra | None = None,
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self.loop.create_future()
        assert isinstance(run, InlineRun)
        if run.closed:
            future.cancel()
        elif run.verifies:
            run.strays(name)  # and waits for ever
        else:
            record = run.record
            assert seq not in record.checkpoints, f"{record.id}: step {seq} is recorded already"
            if extra is not None and extra.anew:
                record.checkpoints.clear()
                record.tries.clear()
            record.checkpoints[seq] = Checkpoint(seq, name, output, error, attempts, self.now)
            record.tries.pop(seq, None)
            if extra is not None and extra.received is not None:
                record.taken.add(extra.received)
            if extra is not None and extra.event is not None:
                record.events[extra.event[0]] = extra.event[1]
            self.loop.call_soon(_done, future)
        return future

    def tried(self, run: Run, seq: int, name: str, attempts: int, error: str, delay: float) -> None:
        assert isinstance(run, InlineRun)
        if not run.closed and not run.verifies:
            run.record.tries[seq] = Tries(attempts, self.now + delay)

    def finish(self, run: Run, status: str, output: bytes | None, error: str | None) -> None:
        assert isinstance(run, InlineRun)
        if run.verifies:
            run.ended = Status(status), output, error
        else:
            run.record.run = None
            self._end(run.record, Status(status), output, error)
        self.moved.set()

    def begin_anew(self, run: Run, input: bytes) -> None:
        assert isinstance(run, InlineRun)
        run.closed, record = True, run.record
        for task in run.tasks or ():
            task.cancel()
        self.resume(record)
        self.moved.set()

    def waiting(self, run: Run) -> None:
        self._tell(run)
        self.moved.set()

    def ask_mail(self, run: Run) -> None:
        assert isinstance(run, InlineRun)
        box = run.box = run.box or Mailbox()
        box.add(run.record.unread(box.seen))
        box.loaded = True

    # -- what runs call: `delivery.Delivery`

    async def send(self, id: str, topic: str, value: bytes, key: str) -> None:
        """A message. Raises WorkflowNotFound."""
        self.post(self.find(id), topic, key, value)

    async def start(self, parent: str, ids: Sequence[str], calls: Sequence[Call[Any]]) -> None:
        """Children. Raises WorkflowConflict where an id belongs to another workflow."""
        for id, call in zip(ids, calls, strict=True):
            self.submit(call.set(id=id), self.find(parent))

    # -- workflows

    def find(self, id: str) -> Record:
        """The record of the workflow with that id. Raises WorkflowNotFound."""
        if id not in self.records:
            raise WorkflowNotFound(f"no workflow has the id {id!r}", workflow_id=id)
        return self.records[id]

    def submit(
        self, call: Call[Any], parent: Record | None = None, recorded: Mapping[int, Checkpoint] | None = None
    ) -> Record:
        """A new workflow, or the one that was submitted so before. Raises WorkflowConflict, UsageError."""
        options, workflow = call.options, call.workflow
        if options.dedup_key is not None:
            raise UsageError("dedup_key has no meaning inline: test it with a cluster, see `shardflow_cluster`")
        if isinstance(workflow, str):
            if self.app is None:
                raise UsageError(f"to start {workflow!r} by name, give the app: Inline(app)")
            known = (options.version and self.app.runner(workflow, options.version)) or self.app.find(workflow)
            codec = untyped(self.app.codecs)
        else:
            known, codec = workflow, workflow.codec
        input = codec.encode_call(call.args, call.kwargs)
        id = options.id or self._draw(known.name)
        if (former := self.records.get(id)) is not None:
            if former.workflow.name != known.name or former.input != input:
                raise WorkflowConflict(f"the id {id!r} belongs to another workflow", workflow_id=id)
            return former
        limit = options.timeout or known.timeout
        begins = self.now + float(options.delay or 0)  # type: ignore[arg-type]  # a number since it was checked
        after = frozenset(options.after)
        for each in after:
            self.find(each)
        record = self.records[id] = Record(
            len(self.records) + 1,
            id,
            known,
            input,
            options.queue or known.queue,
            {} if known.version is None else {"version": known.version},
            parent,
            begins,
            None if limit is None else self.now + float(limit),  # type: ignore[arg-type]
            after,
            options.on_failure,
        )
        record.checkpoints.update(recorded or {})
        self._begin(record)
        return record

    def _draw(self, name: str) -> str:
        """Ids that are the same in every run of a test."""
        while True:
            self._numbers[name] = self._numbers.get(name, 0) + 1
            if (id := f"{name}-{self._numbers[name]}") not in self.records:
                return id

    def post(
        self, record: Record, topic: str, key: str | None, value: bytes | None, error: str | None = None
    ) -> None:
        """A message arrives."""
        if not record.add(topic, key, value, error):
            return
        if (run := record.run) is not None:
            if run.box is not None and run.box.loaded:
                self.ask_mail(run)
                self._tell(run)
        elif any(record.has_news(pause) for pause in record.pauses):
            self.resume(record)

    def end(self, record: Record, status: Status, failure: BaseException) -> None:
        """Ends a workflow from outside."""
        if not record.status.final:
            self._leave(record)
            record.failure, record.checked = failure, True  # a replay would not end so
            self._end(record, status, None, to_json(describe(failure)))

    def _end(self, record: Record, status: Status, output: bytes | None, error: str | None) -> None:
        record.status, record.output, record.error, record.pauses = status, output, error, []
        if record.parent is not None and not record.parent.status.final:
            self.post(record.parent, CHILD, record.id, output, error)
        for other in list(self.records.values()):
            if other.status is Status.READY and record.id in other.after:
                self._begin(other)
        self.moved.set()

    def _begin(self, record: Record) -> None:
        """Begins it, where nothing stands in the way."""
        ends = [self.records[id] for id in sorted(record.after)]
        if record.on_failure == "fail" and (lost := [e for e in ends if e.status.final and e.error is not None]):
            info = from_json(lost[0].error or "{}")
            what = f"workflow {lost[0].id}, after which it was to run, did not succeed: {info.type}: {info.message}"
            self.end(record, Status.FAILED, DependencyFailed(what, workflow_id=record.id))
        elif record.begins <= self.now and all(each.status.final for each in ends):
            self.resume(record)

    # -- running, suspending, replaying

    def resume(self, record: Record, *, verify: bool = False) -> InlineRun:
        """Runs a workflow from the start over its records."""
        workflow: Workflow[..., Any] = record.workflow
        if (fake := self.other.get(workflow)) is not None:
            workflow = stand_in(workflow, fake)
        run = InlineRun(self, record, workflow, verify)
        if not verify:
            record.status, record.pauses, record.run = Status.RUNNING, [], run
        self._context.copy().run(run.start)
        return run

    def suspend(self, record: Record) -> None:
        """Takes a waiting workflow out of memory."""
        run = record.run
        assert run is not None
        pauses = [Pause(w.due, w.topics, w.ids) for w in run.waits or ()]
        self._leave(record)
        record.status, record.pauses = Status.SUSPENDED, pauses

    def _leave(self, record: Record) -> None:
        if (run := record.run) is not None:
            record.run = None
            self.discard(run)

    def discard(self, run: InlineRun) -> None:
        """Closes a run; see `left`."""
        self._leaving |= {task for task in (run.task, *(run.tasks or ())) if task is not None and not task.done()}
        run.close()

    async def left(self) -> None:
        """Returns when the tasks of runs that were closed have ended, or will not."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=1.0)
            self._leaving.clear()

    def _tell(self, run: Run) -> None:
        """Lets the waits look again that have something to see now."""
        for wait in run.waits or ():
            if wait.ready.done() or ((wait.topics or wait.ids) and not (run.box and run.box.loaded)):
                continue
            box = run.box
            news = box is not None and (box.has(wait.topics) or (bool(wait.ids) and not box.missing(wait.ids)))
            if news or (wait.due is not None and wait.due <= self.now):
                wait.ready.set_result(None)

    # -- the clock

    def next_due(self) -> float | None:
        """The next time that somebody waits for."""
        dues: list[float] = []
        for record in self.records.values():
            if record.status.final:
                continue
            if record.deadline is not None:
                dues.append(record.deadline)
            if record.run is None and record.status is Status.READY and not record.after:
                dues.append(record.begins)
            waits: Iterable[Any] = record.run.waits or () if record.run else record.pauses
            dues += [w.due for w in waits if w.due is not None]
        return min(dues, default=None)

    def jump(self, to: float) -> None:
        """The time is `to` now, where it was less; whoever waits for it goes on."""
        self.now = max(self.now, to)
        for record in list(self.records.values()):
            if record.status.final:
                continue
            if record.deadline is not None and record.deadline <= self.now:
                late = WorkflowTimeout("the workflow was not done within its time", workflow_id=record.id)
                self.end(record, Status.FAILED, late)
            elif record.run is not None:
                self._tell(record.run)
            elif record.status is Status.READY:
                self._begin(record)
            elif any(pause.due is not None and pause.due <= self.now for pause in record.pauses):
                self.resume(record)

    async def still(self, done: Callable[[], bool], extra: InlineRun | None = None) -> None:
        """Returns when `done`, or when nothing goes on any more but waiting for something durable."""
        quiet = 0
        while not done():
            runs = [r.run for r in self.records.values() if r.run is not None] + ([extra] if extra else [])
            if all(run.closed or run.stray or is_quiet(run) for run in runs):
                most = max((len(run.tasks or ()) for run in runs), default=0)
                if quiet > min(MOST_TURNS, 4 + 2 * most):
                    return
                quiet += 1
                await asyncio.sleep(0)
            else:
                quiet = 0
                self.moved.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self.moved.wait()


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
