"""The user's side: an `App` collects workflows and steps, which stay ordinary typed functions.

Called outside a workflow they just run. Called inside one, a step's outcome is checkpointed by the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from .core.codec import CallCodec
from .core.codecs import Codecs
from .core.lanes import lane_of
from .core.options import NONE, Options, seconds_of
from .core.retry import Retry
from .core.routing import check_name
from .core.schedule import Definition
from .core.schedule import define as make_schedule
from .core.suggest import did_you_mean
from .definitions import ISOLATIONS, MAX_RECOVERIES, Step, Transaction, Workflow, _Definition
from .errors import InvalidInput, UsageError
from .model import DEFAULT_QUEUE
from .queue import Queue

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ONCE = Retry(attempts=1)


class App:
    """A collection of workflows and steps that a worker serves.

    Arguments: `name`, shown in logs; `codecs`, how values are stored (default: JSON; more can be added to
    `app.codecs`).
    """

    def __init__(self, name: str = "app", *, codecs: Codecs | None = None) -> None:
        self.name = check_name("app", name)
        self.codecs = Codecs() if codecs is None else codecs
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self._by_version: dict[tuple[str, str | None], Workflow[..., Any]] = {}
        self.steps: dict[str, Step[..., Any]] = {}
        self.schedules: dict[str, Definition] = {}
        self.limits: dict[str, Queue] = {}

    @overload
    def workflow(self, function: Callable[P, R], /) -> Workflow[P, R]: ...
    @overload
    def workflow(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str | Queue = DEFAULT_QUEUE,
        version: str | None = None,
        runs: Iterable[str | None] = (),
        timeout: float | timedelta | None = None,
        max_recoveries: int = MAX_RECOVERIES,
    ) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
    def workflow(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str | Queue = DEFAULT_QUEUE,
        version: str | None = None,
        runs: Iterable[str | None] = (),
        timeout: float | timedelta | None = None,
        max_recoveries: int = MAX_RECOVERIES,
    ) -> Any:
        """Makes a function a workflow; used as `@app.workflow` or `@app.workflow(queue="orders")`.

        Arguments: `name`, by which it is stored (default: the function's; changing it strands what is under way);
        `queue`, where its submissions wait, or a `Queue` with its limits; `version` of the code: only workers with
        the same one run what was submitted with it; `runs`: other versions whose submissions this code runs too, None
        for those without one. Several versions of a name may stand side by side in an app; the one defined last is
        the current one, which
        `app.workflows` has. `timeout`, seconds or timedelta from the submission until it is ended as failed;
        `max_recoveries`, how often a worker may die under it before it is ended as dead. Raises UsageError for a name
        that is taken.
        """
        limit = None if timeout is None else seconds_of("timeout", timeout)
        if isinstance(max_recoveries, bool) or not isinstance(max_recoveries, int) or max_recoveries < 0:
            raise InvalidInput(f"max_recoveries must be a whole number from 0, not {max_recoveries!r}")

        def define(function: Callable[..., Any]) -> Workflow[..., Any]:
            made = Workflow(function, name or function.__name__, queue, version, limit, max_recoveries, runs)
            self._add_version(made)
            if isinstance(queue, Queue):
                self.queue(queue)
            return made

        return define if function is None else define(function)

    @overload
    def step(self, function: Callable[P, R], /) -> Step[P, R]: ...
    @overload
    def step(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | timedelta | None = None,
    ) -> Callable[[Callable[P, R]], Step[P, R]]: ...
    def step(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Makes a function a step; used as `@app.step` or `@app.step(retry=Retry(attempts=5))`.

        Arguments: `name`, by which its checkpoints are stored and compared on replay (default: the function's);
        `retry`, what to do when it raises (default: fail at once); `timeout`, seconds or timedelta for each try,
        which then counts as failed with StepTimeout: an `async def` step is cancelled, a plain one's thread goes on,
        and what it returns is thrown away. Raises UsageError for a name that is taken.
        """
        limit = None if timeout is None else seconds_of("timeout", timeout)
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidInput(f"retry must be a shardflow.Retry, not {type(retry).__name__}")

        def define(function: Callable[..., Any]) -> Step[..., Any]:
            made = Step(function, name or function.__name__, retry or _ONCE, limit)
            self._add(self.steps, made)
            return made

        return define if function is None else define(function)

    @overload
    def transaction(self, function: Callable[Concatenate[Any, P], R], /) -> Transaction[P, R]: ...
    @overload
    def transaction(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | timedelta | None = None,
        isolation: str = ISOLATIONS[0],
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Transaction[P, R]]: ...
    def transaction(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: float | timedelta | None = None,
        isolation: str = ISOLATIONS[0],
    ) -> Any:
        """Makes a function a transaction on the workflow's shard: what it writes there and its checkpoint commit
        together, exactly once. Its first parameter is the connection, psycopg's AsyncConnection for an `async def`
        and Connection for a plain one; it is called without.

        Arguments: `name`, `retry`, `timeout` as of `step`; `isolation`: "read committed", "repeatable read" or
        "serializable". Collisions with other transactions are tried again without counting. Raises UsageError for a
        name that is taken.
        """
        limit = None if timeout is None else seconds_of("timeout", timeout)
        if retry is not None and not isinstance(retry, Retry):
            raise InvalidInput(f"retry must be a shardflow.Retry, not {type(retry).__name__}")
        if isolation not in ISOLATIONS:
            raise InvalidInput(
                f"isolation must be one of {', '.join(ISOLATIONS)}, not {isolation!r}"
                f"{did_you_mean(str(isolation), ISOLATIONS)}"
            )

        def define(function: Callable[..., Any]) -> Transaction[..., Any]:
            made = Transaction(function, name or function.__name__, retry or _ONCE, limit, isolation)
            self._add(self.steps, made)
            return made

        return define if function is None else define(function)

    def schedule(
        self,
        when: str | timedelta | float,
        /,
        *,
        tz: str = "UTC",
        name: str | None = None,
        args: Sequence[Any] = (),
        missed: str = "skip",
        overlap: str = "allow",
        options: Options = NONE,
    ) -> Callable[[Workflow[P, R]], Workflow[P, R]]:
        """Runs a workflow again and again; used above its `@app.workflow`, as in `@app.schedule("*/5 * * * *")`.

        Arguments: `when`, a cron expression, or an interval as "every 90s", timedelta or seconds; `tz`, the time zone
        whose clock a cron expression means; `name` (default: the workflow's); `args` for the workflow, which gets the
        tick's time before them where it cannot be called without; `missed`, what becomes of ticks at which no worker
        was there: "skip", "latest" (the last of them) or "all"; `overlap`: "allow", or "skip" a tick while the
        workflow of the one before has not ended; `options` of the submissions. Raises InvalidInput, UsageError.
        """

        def define(made: Workflow[P, R]) -> Workflow[P, R]:
            if not isinstance(made, Workflow) or self._by_version.get((made.name, made.version)) is not made:
                raise UsageError("@app.schedule(...) goes above the @app.workflow of the same app")
            known = options.changed(version=options.version or made.version, timeout=options.timeout or made.timeout)
            called = made.name if name is None else name
            found = make_schedule(called, when, tz, made.name, made.queue, made.codec, args, known, missed, overlap)
            if found.name in self.schedules:
                raise UsageError(
                    f"app {self.name!r} already has a schedule named {found.name!r}: give one another name"
                )
            self.schedules[found.name] = found
            return made

        return define

    def queue(self, queue: Queue | str, /, **limits: Any) -> Queue:
        """Declares a queue with its limits, also one that only other programs submit to; see `Queue`.

        Raises UsageError where the app has declared it otherwise.
        """
        made = queue if isinstance(queue, Queue) else Queue(queue, **limits)
        if self.limits.setdefault(made.name, made) != made:
            raise UsageError(
                f"app {self.name!r} has declared the queue {made.name!r} with other limits: declare it once"
            )
        return made

    def _add(self, into: dict[str, Any], made: _Definition[..., Any]) -> None:
        if made.name in into:
            raise UsageError(
                f"app {self.name!r} already has a {made.kind} named {made.name!r}: give one another name"
            )
        made.codec = CallCodec(made.function, codecs=self.codecs)
        into[made.name] = made

    def _add_version(self, made: Workflow[..., Any]) -> None:
        for version in made.runs:
            if (other := self._by_version.get((made.name, version))) is not None:
                what = "no version" if version is None else f"version {version!r}"
                raise UsageError(
                    f"app {self.name!r} already has a workflow named {made.name!r} that runs {what}:"
                    f" {other.function.__qualname__}: give one another name or version"
                )
        self.workflows.pop(made.name, None)
        self._add(self.workflows, made)
        self._by_version.update(((made.name, version), made) for version in made.runs)

    @property
    def definitions(self) -> list[Workflow[..., Any]]:
        """All of its workflows, with every version of each."""
        return list(dict.fromkeys(self._by_version.values()))

    @property
    def queues(self) -> list[str]:
        """The queues that the app's workflows are submitted to."""
        scheduled = {schedule.queue for schedule in self.schedules.values()}
        return sorted({w.queue for w in self.definitions} | {DEFAULT_QUEUE} | scheduled | self.limits.keys())

    def lanes(self, queues: Iterable[str]) -> list[str]:
        """What to dequeue from to serve these queues: in each of them, the versions that this app's workflows run."""
        versions = sorted({version for _, version in self._by_version}, key=lambda v: (v is not None, v))
        return [lane_of(queue, version) for queue in queues for version in versions]

    def runner(self, name: str, version: str | None) -> Workflow[..., Any] | None:
        """The code that runs what was submitted under that name with that version; None where there is none."""
        return self._by_version.get((name, version))

    def find(self, name: str) -> Workflow[..., Any]:
        """The current version of the workflow of that name. Raises UsageError, with the nearest name, where there is
        none."""
        if name not in self.workflows:
            raise UsageError(
                f"app {self.name!r} has no workflow named {name!r}{did_you_mean(name, list(self.workflows))}"
            )
        return self.workflows[name]
