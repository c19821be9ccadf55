"""What a step does when it is called in a workflow: its tries, its checkpoint, its answer on replay."""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import threading
from collections.abc import Mapping
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from ..context import current
from ..core.failure import describe, from_json, to_json
from ..core.options import MAX_SECONDS
from ..definitions import Step
from ..errors import SerializationError, StepFailed, StepTimeout
from ..storage.leases import Checkpoint, Tries
from .gather import Extra

if TYPE_CHECKING:
    from .run import Run

#: Seconds between looks whether a lease that was not renewed in time is held after all. Until that is known no step
#: begins: a worker that was frozen or cut off would run what its peers have run already.
STALE_LOOK = 0.05

#: A pause before the next try that is longer than so many seconds suspends the workflow.
LONG_PAUSE = 3.0


class Detached(BaseException):
    """Ends the thread of a workflow that this worker must not go on with. Not an error of the workflow."""


def answer(step: Step[..., Any], recorded: Checkpoint) -> Any:
    """What a recorded step gives: its value, or StepFailed."""
    if recorded.error is not None:
        info = from_json(recorded.error)
        raise StepFailed(step.name, info.type, info.message, info.traceback, recorded.attempts)
    return step.codec.decode_result(recorded.output or b"null")


async def run_plain(
    run: Run, step: Step[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """`run_step` for what most calls are: the first try of an `async def` step without a time limit. Anything else
    that turns up is left to it."""
    sink = run.sink
    if run.unsettled is not None or run.closed or sink.time() > sink.valid_until:
        return await run_step(run, step, seq, args, kwargs)
    run.busy += 1
    try:
        inside = current.set(None)
        failure = None
        try:
            value = await step.function(*args, **kwargs)
            output, value = step.codec.roundtrip_result(value)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failure = error
        finally:
            current.reset(inside)
        if failure is None:
            await sink.checkpoint(run, seq, step.name, 1, output, None)
            return value
    finally:
        run.busy -= 1
    return await run_step(run, step, seq, args, kwargs, failure)


async def run_step(
    run: Run,
    step: Step[..., Any],
    seq: int,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    failure: BaseException | None = None,
) -> Any:
    """Runs a step of an `async def` workflow until it succeeds or has failed for good; both are checkpointed.

    `failure`: how the first try has failed that `run_plain` has made.
    """
    attempts = 0 if failure is None else 1
    sink = run.sink
    if run.tries and (before := run.tries.get(seq)):
        attempts = before.attempts
        await pause(run, before.due - sink.server_time())
    run.busy += 1
    try:
        if run.unsettled is not None:
            await run.settled()
        while True:
            if failure is None:
                while sink.time() > sink.valid_until and not run.closed:  # noqa: ASYNC110  # rare
                    await asyncio.sleep(STALE_LOOK)
                if run.closed:  # whatever the workflow's code makes of its cancellation, it runs no step here
                    raise asyncio.CancelledError
                attempts += 1
                inside = current.set(None)
                try:
                    if step.timeout is not None:
                        value = await _timed(run, step, args, kwargs, step.timeout)
                    elif step.is_async:
                        value = await step.function(*args, **kwargs)
                    else:
                        value = await run.in_thread(step.function, args, kwargs)
                    output, value = step.codec.roundtrip_result(value)
                except (Exception, SystemExit, KeyboardInterrupt) as error:  # the latter two would end the event loop
                    failure = error
                finally:
                    current.reset(inside)
            extra = Extra(tried=True) if run.tries and seq in run.tries else None
            if failure is None:
                await sink.checkpoint(run, seq, step.name, attempts, output, None, extra)
                return value
            info = describe(failure)
            if not again(step, attempts, failure):
                await sink.checkpoint(run, seq, step.name, attempts, None, to_json(info), extra)
                raise StepFailed(step.name, info.type, info.message, info.traceback, attempts) from failure
            failure = None
            delay = failed(run, step, seq, attempts, to_json(info))
            run.busy -= 1
            try:
                await pause(run, delay)
            finally:
                run.busy += 1
    finally:
        run.busy -= 1


def run_step_blocking(
    run: Run, step: Step[..., Any], seq: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The same for a workflow that is a plain `def`, in its own thread."""
    attempts = 0
    sink = run.sink
    if run.tries and (before := run.tries.get(seq)):
        attempts = before.attempts
        _pause_blocking(run, before.due - sink.server_time())
    while True:
        while sink.time() > sink.valid_until and not run.closed:
            run.halt(STALE_LOOK)
        if run.closed:
            raise Detached
        attempts += 1
        inside = current.set(None)
        failure: BaseException | None = None
        try:
            if step.timeout is not None:
                value = _timed_blocking(run, step, args, kwargs, step.timeout)
            else:
                value = step.function(*args, **kwargs)
            output, value = step.codec.roundtrip_result(value)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            failure = error
        finally:
            current.reset(inside)
        if failure is None:
            run.checkpoint_blocking(seq, step.name, attempts, output, None)
            return value
        info = describe(failure)
        if not again(step, attempts, failure):
            run.checkpoint_blocking(seq, step.name, attempts, None, to_json(info))
            raise StepFailed(step.name, info.type, info.message, info.traceback, attempts) from failure
        delay = min(step.retry.delay(attempts, random.random()), MAX_SECONDS)
        run.tries = run.tries or {}
        run.tries[seq] = Tries(attempts, 0.0)
        run.post(partial(sink.tried, run, seq, step.name, attempts, to_json(info), delay))
        _pause_blocking(run, delay)


def failed(run: Run, step: Step[..., Any], seq: int, attempts: int, error: str) -> float:
    """Records a failed try; answers the seconds until the next one."""
    delay = min(step.retry.delay(attempts, random.random()), MAX_SECONDS)
    run.tries = run.tries or {}
    run.tries[seq] = Tries(attempts, 0.0)
    run.sink.tried(run, seq, step.name, attempts, error, delay)
    return delay


async def pause(run: Run, seconds: float) -> None:
    due = run.sink.time() + seconds
    while (left := due - run.sink.time()) > 0:
        if seconds > LONG_PAUSE or run.sink.jumps:
            await run.wait(due)
        else:
            run.busy += 1
            try:
                await asyncio.sleep(left)
            finally:
                run.busy -= 1


def _pause_blocking(run: Run, seconds: float) -> None:
    if seconds > LONG_PAUSE or run.sink.jumps:
        run.block_on(pause(run, seconds))
    else:
        run.halt(seconds)


async def _timed(
    run: Run, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], seconds: float
) -> Any:
    """One try, limited. A thread cannot be stopped: a plain function's goes on, and what it gives counts for
    nothing."""
    try:
        async with asyncio.timeout(seconds) as limit:
            if step.is_async:
                return await step.function(*args, **kwargs)
            return await run.in_thread(step.function, args, kwargs)
    except TimeoutError as error:
        if limit.expired():
            raise StepTimeout(step.name, seconds) from error
        raise


def _timed_blocking(
    run: Run, step: Step[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], seconds: float
) -> Any:
    """The same in a thread of its own: the worker's may all be taken by workflows that wait for such a step."""
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    context = copy_context()

    def call() -> None:
        try:
            done.set_result(context.run(step.function, *args, **kwargs))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=call, name=f"shardflow step {step.name}", daemon=True).start()
    if concurrent.futures.wait([done], seconds).not_done:
        raise StepTimeout(step.name, seconds)
    return done.result()


def again(step: Step[..., Any], attempts: int, failure: BaseException) -> bool:
    return not isinstance(failure, SerializationError) and step.retry.may_retry(attempts, failure)
