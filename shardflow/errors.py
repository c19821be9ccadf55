"""Every exception shardflow raises, in one tree under `ShardflowError`.

A docstring is its class's default message. `retryable` says whether the same call may succeed later
without any change by the caller.
"""

from __future__ import annotations


class ShardflowError(Exception):
    """Something in shardflow failed."""

    retryable = False

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class ConfigError(ShardflowError):
    """The configuration is not valid."""


class InvalidInput(ShardflowError, ValueError):
    """An argument is not valid."""


class InvalidWorkflowId(InvalidInput):
    """A workflow id must be 1 to 512 bytes of Unicode text without NUL."""


class SerializationError(InvalidInput):
    """A value cannot be turned into the codec's form, or back."""


class UsageError(ShardflowError):
    """shardflow was called in a way that cannot work."""


class ClusterError(ShardflowError):
    """The shards do not form the cluster that the configuration describes."""


class MigrationError(ClusterError):
    """A shard's schema is not at the version this code needs."""


class ShardUnavailable(ShardflowError):
    """A shard does not answer."""

    retryable = True

    def __init__(self, message: str | None = None, *, shard: str = "") -> None:
        super().__init__(message)
        self.shard = shard


class ShardBusy(ShardUnavailable):
    """A shard answers, but could not do this now: no free connection, a deadlock, a lock that is held."""


class ShardReadOnly(ShardUnavailable):
    """A shard answers, but takes no writes now: a standby, one set so by its operator, or one without disk space.

    Nothing was written.
    """


class SubmitUncertain(ShardUnavailable):
    """The connection was lost while a submit was under way: it may have been accepted or not.

    Submit again with the same id: that is safe, because an id runs once.
    """

    def __init__(self, message: str | None = None, *, shard: str = "", ids: tuple[str, ...] = ()) -> None:
        super().__init__(message, shard=shard)
        self.ids = ids


class WorkflowError(ShardflowError):
    """A workflow could not be handled."""

    def __init__(self, message: str | None = None, *, workflow_id: str = "") -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class WorkflowNotFound(WorkflowError):
    """No workflow has this id."""


class WorkflowConflict(WorkflowError):
    """The id already belongs to a workflow with another name or input."""


class WorkflowFailed(WorkflowError):
    """The workflow ended with an error.

    Attributes: `workflow_id`; `type`, the qualified name of the exception's class; `message`; `traceback`, as text.
    """

    def __init__(self, workflow_id: str, type: str, message: str, traceback: str = "") -> None:
        super().__init__(f"workflow {workflow_id!r} failed: {type}: {message}", workflow_id=workflow_id)
        self.type = type
        self.message = message
        self.traceback = traceback


class WorkflowCancelled(WorkflowFailed):
    """The workflow was cancelled.

    Attributes as of WorkflowFailed; `message` is the reason that was given.
    """

    def __init__(self, workflow_id: str, message: str = "", type: str = "", traceback: str = "") -> None:
        super().__init__(workflow_id, type or "shardflow.errors.WorkflowCancelled", message or "cancelled", traceback)


class WorkflowDead(WorkflowFailed):
    """The workflow was given up because its workers died under it.

    Attributes as of WorkflowFailed.
    """


class DependencyFailed(WorkflowError):
    """A workflow that this one was to run after did not succeed."""


class WorkflowTimeout(WorkflowError):
    """The workflow was not done within its time."""


class StepTimeout(ShardflowError, TimeoutError):
    """A try of a step was not done within the step's time.

    Attributes: `step`, its name; `seconds`, the time.
    """

    def __init__(self, step: str, seconds: float) -> None:
        super().__init__(f"step {step!r} was not done within {seconds:g} s")
        self.step = step
        self.seconds = seconds


class StepFailed(ShardflowError):
    """A step failed for good; raised again by a replay in place of the step's own exception.

    Attributes: `step`, its name; `type`, the qualified name of the original class; `message`; `traceback`, as text.
    """

    def __init__(self, step: str, type: str, message: str, traceback: str = "", attempts: int = 1) -> None:
        super().__init__(f"step {step!r} failed after {attempts} attempt(s): {type}: {message}")
        self.step = step
        self.type = type
        self.message = message
        self.traceback = traceback
        self.attempts = attempts


class NonDeterminism(WorkflowError):
    """On replay the workflow's code did something else than its checkpoints say."""


class ScheduleNotFound(ShardflowError):
    """No schedule has this name."""


class ScheduleConflict(ShardflowError):
    """The name already belongs to another schedule."""


class ResultTimeout(ShardflowError, TimeoutError):
    """The workflow did not end within the given time; it goes on."""

    retryable = True


class LeaseLost(ShardflowError):
    """The lease was taken by a peer: nothing of this batch was written."""


class MapChanged(ShardflowError):
    """The shard's slots changed: the caller's slot map is stale and nothing was written."""

    retryable = True


class EmbeddedError(ShardflowError):
    """An embedded Postgres server could not be started or stopped."""
