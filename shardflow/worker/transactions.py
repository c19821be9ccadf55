"""What a transactional step does when it is called in a workflow: its tries, its commit, its answer on replay.

It ends with its own commit, beside the turns of the commit loop; what is asked of the loop is the fence. Losing the
connection, the lease's epoch or a race with other transactions costs no try of the user's `Retry`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..context import current
from ..core.failure import describe, to_json
from ..core.retry import Retry
from ..definitions import Step, Transaction
from ..errors import LeaseLost, MapChanged, NonDeterminism, ShardUnavailable, StepFailed, StepTimeout
from ..model import PoolConfig
from ..storage.leases import Checkpoint
from ..storage.plain_transactions import PlainTransactions
from ..storage.shard import Shard
from ..storage.transaction_talk import Conflict, ConnectionLost, Done, Work
from ..storage.transactions import Transactions
from ..storage.turn import Fence
from . import steps
from .steps import STALE_LOOK, again, answer, failed, pause

if TYPE_CHECKING:
    from .run import Run

_BACKOFF = Retry(attempts=2, initial=0.05, factor=2.0, maximum=2.0, jitter=0.5)
_AT_ONCE = Retry(attempts=2, initial=0.002, factor=2.0, maximum=0.2, jitter=1.0)

#: Collisions with other transactions, and connections lost while the function ran, after which that counts as the
#: function's failure.
CONFLICTS = 8
LOSSES = 5

Go = Callable[[Fence], Awaitable[Done]]


class Kinds:
    """A worker's transactions on one shard: of `async def` functions, and of plain ones."""

    def __init__(self, shard: Shard, config: PoolConfig, patience: float) -> None:
        self.aio = Transactions(shard, config, patience)
        self.plain = PlainTransactions(shard, config, patience)

    def closing(self, wf: int) -> asyncio.Future[Done] | None:
        """A commit of the workflow that is under way, and comes before the workflow's end; see `worker.control`."""
        return self.aio.closing(wf) or self.plain.closing(wf)

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(self.aio.close(), self.plain.close())


class Fenced(Protocol):
    """What a run's sink has for transactions: the fence of the commit loop, and where they run."""

    fence: Fence | None
    transactions: Kinds

    def passed(self, run: Run) -> None:
        """A checkpoint of the run has committed beside the turns; it is closed where it is to stop at one."""

    def wake(self) -> None:
        """There may be something for a turn to do."""


def run_step(
    run: Run, step: Step[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Coroutine[Any, Any, Any]:
    """Runs a step of either kind in an `async def` workflow."""
    if isinstance(step, Transaction):
        return _run(run, step, seq, args, kwargs)
    return steps.run_step(run, step, seq, args, kwargs)


def run_step_blocking(
    run: Run, step: Step[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The same in a plain `def` workflow."""
    if isinstance(step, Transaction):
        return run.block_on(_run(run, step, seq, args, kwargs))
    return steps.run_step_blocking(run, step, seq, args, kwargs)


async def _run(
    run: Run, step: Transaction[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Runs a transactional step until it has committed or failed for good, which is checkpointed too."""
    attempts = 0
    if run.tries and (before := run.tries.get(seq)):
        attempts = before.attempts
        await pause(run, before.due - run.sink.server_time())
    run.busy += 1
    inside = current.set(None)  # what is made from here on is no part of the workflow
    try:
        if run.unsettled is not None:
            await run.settled()
        while True:
            attempts += 1
            value, done = await _attempt(run, step, seq, attempts, args, kwargs)
            if done.failure is not None:
                error = to_json(describe(done.failure))
                if again(step, attempts, done.failure):
                    delay = failed(run, step, seq, attempts, error)
                    run.busy -= 1
                    try:
                        await pause(run, delay)
                    finally:
                        run.busy += 1
                    continue
                ended = await _fail(run, step, seq, attempts, error)
                if ended.recorded is None:
                    _passed(run)
                    info = describe(done.failure)
                    raise StepFailed(step.name, info.type, info.message, info.traceback, attempts) from done.failure
                done = ended
            _passed(run)
            return value if done.recorded is None else _found(run, step, done.recorded)
    finally:
        current.reset(inside)
        run.busy -= 1


async def _attempt(
    run: Run, step: Transaction[..., Any], seq: int, attempts: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, Done]:
    """One try; answers what the function returned, as a replay gives it, and how the try ended."""
    value: Any = None

    async def call(conn: Any) -> bytes:
        nonlocal value
        if step.timeout is None:
            value = await step.connected(conn, *args, **kwargs)
        else:
            try:
                async with asyncio.timeout(step.timeout) as limit:
                    value = await step.connected(conn, *args, **kwargs)
            except TimeoutError as error:
                if limit.expired():
                    raise StepTimeout(step.name, step.timeout) from error
                raise
        output, value = step.codec.roundtrip_result(value)
        if run.closed:  # whatever the function made of its cancellation
            raise asyncio.CancelledError
        return output

    def call_plain(conn: Any) -> bytes:
        nonlocal value
        output, value = step.codec.roundtrip_result(step.connected(conn, *args, **kwargs))
        return output

    async def go(fence: Fence) -> Done:
        work = _work(run, step, seq, attempts, fence)
        if step.is_async:
            return await run.sink.transactions.aio.commit(work, call)
        return await run.sink.transactions.plain.commit(work, call_plain, step.timeout)

    done = await _until_known(run, go)
    return value, done


async def _fail(run: Run, step: Transaction[..., Any], seq: int, attempts: int, error: str) -> Done:
    """Records that the step has failed for good."""

    async def go(fence: Fence) -> Done:
        work = _work(run, step, seq, attempts, fence, "read committed")
        return await run.sink.transactions.aio.fail(work, error)

    return await _until_known(run, go)


async def _until_known(run: Run, go: Go) -> Done:
    """Tries until it is known what became of it, by a lease that is held."""
    sink = run.sink
    conflicts = tries = lost = 0
    while True:
        while sink.time() > sink.valid_until and not run.closed:  # noqa: ASYNC110  # rare
            await asyncio.sleep(STALE_LOOK)
        fence = sink.fence
        if run.closed or fence is None:
            raise asyncio.CancelledError
        try:
            return await go(fence)
        except Conflict as error:
            conflicts += 1
            if conflicts >= CONFLICTS:
                return Done(failure=error.__cause__ or error)
            await asyncio.sleep(_AT_ONCE.delay(min(conflicts, 8), random.random()))
        except (LeaseLost, MapChanged):
            # The loop finds the same, and either gives the run up or names a new fence.
            while sink.fence == fence and not run.closed:
                sink.wake()
                await asyncio.sleep(STALE_LOOK)
        except ShardUnavailable as error:
            tries += 1
            lost += isinstance(error, ConnectionLost)
            if lost >= LOSSES:
                return Done(failure=error.__cause__ or error)
            await asyncio.sleep(_BACKOFF.delay(min(tries, 8), random.random()))


def _work(
    run: Run, step: Transaction[..., Any], seq: int, attempts: int, fence: Fence, isolation: str | None = None
) -> Work:
    tried = run.tries is not None and seq in run.tries
    return Work(fence, run.wf, seq, step.name, attempts, isolation or step.isolation, tried)


def _passed(run: Run) -> None:
    """The step's checkpoint is there: the run goes on, unless it is to stop at one."""
    run.sink.passed(run)
    if run.closed:
        raise asyncio.CancelledError


def _found(run: Run, step: Transaction[..., Any], recorded: Checkpoint) -> Any:
    if recorded.name != step.name:
        run.broken = NonDeterminism(
            f"workflow {run.id!r}: step {recorded.seq} is {step.name!r} now, but {recorded.name!r} is recorded: its"
            " code has changed or depends on something that is not recorded",
            workflow_id=run.id,
        )
        raise run.broken
    return answer(step, recorded)
