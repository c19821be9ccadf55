"""What a workflow's code can ask for beside steps: sleep, messages, events, children. All of it is recorded or
derived from what is, so that a replay gets it again; what waits long waits without the worker.

Each operation takes its numbers at the call and gives a coroutine; `block_on` runs one for a workflow with a thread
of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from ..context import current
from ..core.branches import CALL_BITS, passed
from ..core.childids import Children
from ..core.failure import describe, from_json, to_json
from ..core.topics import check_topic
from ..definitions import Call
from ..errors import (
    InvalidInput,
    InvalidWorkflowId,
    NonDeterminism,
    SerializationError,
    ShardflowError,
    UsageError,
    WorkflowCancelled,
    WorkflowConflict,
    WorkflowFailed,
    WorkflowNotFound,
)
from ..storage.leases import Checkpoint
from .gather import Extra
from .mailbox import Mailbox
from .tasks import branch_here

if TYPE_CHECKING:
    from .run import Run

#: The name of the checkpoint by which a workflow begins anew.
CONTINUED = "shardflow.continue"

#: Errors of operations that a replay raises again as what they were.
_KNOWN: dict[str, type[ShardflowError]] = {
    kind.__name__: kind
    for kind in (WorkflowNotFound, WorkflowConflict, SerializationError, InvalidWorkflowId, InvalidInput)
}


class Anew(BaseException):
    """Ends the code of a workflow that is to begin anew with this input. Not an error of the workflow."""

    def __init__(self, input: bytes) -> None:
        super().__init__()
        self.input = input


class Operations:
    """The operations of a `Run`, which is the only class derived from it."""

    __slots__ = ()
    box: Mailbox | None
    starting: list[Children] | None
    timers: WeakSet[asyncio.TimerHandle] | None

    # -- values that are recorded

    def value(self: Run, name: str, make: Callable[[], bytes]) -> bytes:  # type: ignore[misc]
        """See `context.Runtime`.

        In an `async def` workflow the record goes along with the next turn: whatever follows from it can only commit
        with it or after it, and what acts outside, a step, waits for it.
        """
        if not self.blocking and not _in_loop(self.sink.loop):
            raise UsageError(f"{name}() was called in a thread of an `async def` workflow: call it in the workflow")
        seq = self.number()
        if (recorded := self.recorded(name, seq)) is not None:
            self.behind(recorded.at)
            return recorded.output or b"null"
        output = make()
        if self.blocking:
            self.checkpoint_blocking(seq, name, 1, output, None)
        else:
            self.unsettled = self.sink.checkpoint(self, seq, name, 1, output, None)
        return output

    # -- time

    def sleep(self: Run, seconds: float | None, until: float | None) -> Coroutine[Any, Any, None]:  # type: ignore[misc]
        """See `context.Runtime`."""
        seq = self.number()
        return self._sleep(seq, self.recorded("shardflow.sleep", seq), seconds, until)

    async def _sleep(  # type: ignore[misc]
        self: Run, seq: int, recorded: Checkpoint | None, seconds: float | None, until: float | None
    ) -> None:
        if recorded is None:
            asked = {"until": until} if seconds is None else {"seconds": seconds}
            await self.write(seq, "shardflow.sleep", json.dumps(asked).encode())
            left = (until or 0.0) - self.sink.server_time() if seconds is None else seconds
        else:
            asked = json.loads(recorded.output or b"{}")
            until = asked.get("until", recorded.at + asked.get("seconds", 0.0))
            left = until - self.sink.server_time()
        await self.rest(left)
        if recorded is not None:
            self.behind(max(recorded.at, until or 0.0))

    def set_timer(self: Run, timer: asyncio.TimerHandle) -> None:  # type: ignore[misc]
        """See `context.Runtime`."""
        if self.timers is None:
            self.timers = WeakSet()
        self.timers.add(timer)

    async def rest(self: Run, seconds: float) -> None:  # type: ignore[misc]
        """Waits durably for so many seconds from now."""
        due = self.sink.time() + seconds
        while self.sink.time() < due:
            await self.wait(due)

    # -- versions of the code

    def patched(self: Run, id: str, deprecated: bool) -> bool:  # type: ignore[misc]
        """See `context.Runtime`."""
        name = f"shardflow.patch.{id}"
        branch = branch_here.get() or self.branch
        recorded = self.checkpoints.get(branch.peek()) if self.checkpoints else None
        if recorded is None or recorded.name != name:
            left = [(seq, each.at) for seq, each in (self.checkpoints or {}).items()]
            left += [(seq, each.due) for seq, each in (self.tries or {}).items()]
            if deprecated or passed(branch, left):
                return False  # and no number is taken: those of a run that began under the old code must stay
        self.value(name, lambda: b"null")
        return True

    def behind(self: Run, at: float) -> None:  # type: ignore[misc]
        """A recorded answer of that time was given to the running task."""
        branch = branch_here.get() or self.branch
        branch.at = max(branch.at, at)

    # -- messages and events

    def receive(self: Run, topic: str, timeout: float | None) -> Coroutine[Any, Any, bytes | None]:  # type: ignore[misc]
        """See `context.Runtime`."""
        check_topic(topic)
        seq = self.number()
        timer = self.number() if timeout is not None else 0
        recorded = self.recorded(f"shardflow.receive.{topic}", seq)
        timed = self.recorded("shardflow.timer", timer) if timeout is not None else None
        return self._receive(seq, topic, recorded, timer, timeout, timed)

    async def _receive(  # type: ignore[misc]
        self: Run,
        seq: int,
        topic: str,
        recorded: Checkpoint | None,
        timer: int,
        timeout: float | None,
        timed: Checkpoint | None,
    ) -> bytes | None:
        box = self.box = self.box or Mailbox()  # which says later that there may be something to forget
        if recorded is not None:
            self.behind(recorded.at)
            return recorded.output
        due = None
        if timed is not None:
            due = self.sink.time() + timed.at + (timeout or 0.0) - self.sink.server_time()
        elif timeout is not None and timeout <= 0:
            due = -math.inf
        over = False
        while True:
            message = box.take(topic)
            if message is not None:
                value = message.value or b"null"
                await self.write(seq, f"shardflow.receive.{topic}", value, extra=Extra(received=message.seq))
                return value
            if due is None and timeout is not None:
                await self.write(timer, "shardflow.timer", json.dumps({"seconds": timeout}).encode())
                due = self.sink.time() + timeout
            elif over:
                await self.write(seq, f"shardflow.receive.{topic}", None)
                return None
            over = due is not None and self.sink.time() >= due  # then one more look, at what has arrived until now
            await self.wait(due, (topic,))

    def send(  # type: ignore[misc]
        self: Run, id: str, topic: str, value: bytes, key: str | None
    ) -> Coroutine[Any, Any, None]:
        """See `context.Runtime`."""
        check_topic(topic)
        seq = self.number()
        return self._send(seq, self.recorded(f"shardflow.send.{topic}", seq), id, topic, value, key)

    async def _send(  # type: ignore[misc]
        self: Run, seq: int, recorded: Checkpoint | None, id: str, topic: str, value: bytes, key: str | None
    ) -> None:
        if recorded is None:
            # The key makes a repetition after a crash harmless.
            key = key or f"{self.id}\x1f{f'{self.generation}.' if self.generation else ''}{seq}"
            await self.once(seq, f"shardflow.send.{topic}", self.sink.delivery.send(id, topic, value, key))
        elif recorded.error is not None:
            raise _error(recorded.error)

    def set_event(self: Run, key: str, value: bytes) -> Coroutine[Any, Any, None]:  # type: ignore[misc]
        """See `context.Runtime`."""
        seq = self.number()
        return self._set_event(seq, self.recorded(f"shardflow.set_event.{key}", seq), key, value)

    async def _set_event(self: Run, seq: int, recorded: Checkpoint | None, key: str, value: bytes) -> None:  # type: ignore[misc]
        if recorded is None:
            await self.write(seq, f"shardflow.set_event.{key}", b"null", extra=Extra(event=(key, value)))

    # -- children

    def start_children(  # type: ignore[misc]
        self: Run, calls: Sequence[Call[Any]], *, colocate: bool, many: bool
    ) -> Coroutine[Any, Any, Sequence[str]]:
        """See `context.Runtime`."""
        seq = self.number()
        recorded = self.recorded("shardflow.start", seq)
        given = [call.options.id for call in calls]
        names = [call.workflow if isinstance(call.workflow, str) else call.workflow.name for call in calls]
        children = Children.of(self.id, seq, given, colocate, many, self.generation, names)
        return self._start(seq, recorded, children, calls)

    async def _start(  # type: ignore[misc]
        self: Run, seq: int, recorded: Checkpoint | None, children: Children, calls: Sequence[Call[Any]]
    ) -> Sequence[str]:
        if recorded is None:
            if self.starting is None:
                self.starting = []
            self.starting.append(children)
            try:
                started = self.sink.delivery.start(self.id, children.ids, calls)
                await self.once(seq, "shardflow.start", started, children.to_json())
            finally:
                self.starting.remove(children)
            return children.ids
        if recorded.error is not None:
            raise _error(recorded.error)
        known = Children.from_json(recorded.output or b"{}")
        if not known.alike(children):
            self.broken = broken = NonDeterminism(
                f"workflow {self.id!r}: step {seq} starts {children.what} now, but {known.what} are recorded: its"
                " code has changed or depends on something that is not recorded",
                workflow_id=self.id,
            )
            raise broken
        self.behind(recorded.at)
        return known.ids

    async def ends(self: Run, ids: Sequence[str]) -> list[tuple[bytes | None, BaseException | None]]:  # type: ignore[misc]
        """See `context.Runtime`. Not recorded: a child ends once, and its end stays here as a message."""
        each = list(dict.fromkeys(ids))  # a child's end arrives once, however often it is asked for
        while self.box is None or self.box.missing(each):
            await self.wait(None, (), each)
        found: list[tuple[bytes | None, BaseException | None]] = []
        for id in ids:
            message = self.box.end(id)
            assert message is not None
            failed = None if message.error is None else failure_of(id, message.error)
            found.append((message.value, failed))
        self.box.had(each)
        return found

    # -- a new beginning

    def continue_as_new(self: Run, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NoReturn:  # type: ignore[misc]
        """See `context.Runtime`."""
        raise Anew(self.workflow.codec.encode_call(args, kwargs))

    async def begin_again(self: Run, input: bytes) -> None:  # type: ignore[misc]
        """Records that the workflow begins anew, which forgets all that was recorded before, and begins."""
        try:
            self.check_complete()
        except NonDeterminism as error:
            self.fail(error)
            return
        await self.sink.checkpoint(self, -self.generation - 1, CONTINUED, 1, input, None, Extra(anew=True))
        self.sink.begin_anew(self, input)

    def check_complete(self: Run) -> None:  # type: ignore[misc]
        """Raises NonDeterminism where something is recorded that the code, which has ended, did not do."""
        left_over = self.checkpoints
        if left_over and self.tasks:  # a task that was left behind did what is recorded of it at its own pace
            left_over = {seq: each for seq, each in left_over.items() if not seq >> CALL_BITS}
        if left_over:
            seq, left = min(left_over.items())
            self.broken = self.broken or NonDeterminism(
                f"workflow {self.id!r} ended before step {seq} ({left.name!r}), which is recorded: its code has"
                " changed or depends on something that is not recorded",
                workflow_id=self.id,
            )
        if self.broken is not None:
            raise self.broken

    # -- what they share

    async def write(  # type: ignore[misc]
        self: Run, seq: int, name: str, output: bytes | None, error: str | None = None, extra: Extra | None = None
    ) -> None:
        """A checkpoint; returns when it has committed."""
        self.busy += 1
        try:
            await self.sink.checkpoint(self, seq, name, 1, output, error, extra)
        finally:
            self.busy -= 1

    async def once(self: Run, seq: int, name: str, effect: Awaitable[Any], output: bytes = b"null") -> None:  # type: ignore[misc]
        """An effect elsewhere that may safely be repeated, then its checkpoint. An error of ours that no later try
        would mend is recorded too, and raised."""
        self.busy += 1
        outside = current.set(None)  # tasks that are made on the way are none of the workflow's
        try:
            await self.settled()
            await effect
        except ShardflowError as error:
            if not error.retryable and not isinstance(error, UsageError):
                await self.sink.checkpoint(self, seq, name, 1, None, to_json(describe(error)), None)
            raise
        else:
            await self.sink.checkpoint(self, seq, name, 1, output, None, None)
        finally:
            current.reset(outside)
            self.busy -= 1


def beginning(input: bytes, checkpoints: dict[int, Checkpoint] | None) -> tuple[int, bytes]:
    """How often the workflow has begun anew, as the checkpoint before its first one says; and its present input."""
    if not checkpoints or (first := min(checkpoints)) >= 0:
        return 0, input
    record = checkpoints.pop(first)
    return -first, input if record.output is None else record.output


def failure_of(id: str, error: str) -> WorkflowFailed:
    """The exception for a workflow that ended with this error, JSON text."""
    info = from_json(error)
    if info.type == "shardflow.errors.WorkflowCancelled":
        return WorkflowCancelled(id, info.message)
    return WorkflowFailed(id, info.type, info.message, info.traceback)


def _error(text: str) -> Exception:
    info = from_json(text)
    kind = _KNOWN.get(info.type.rpartition(".")[2])
    return kind(info.message) if kind is not None else ShardflowError(f"{info.type}: {info.message}")


def _in_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
