"""What a client holds of a submitted workflow."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ..definitions import Workflow
from ..errors import InvalidInput, ResultTimeout, WorkflowCancelled, WorkflowDead, WorkflowFailed
from ..model import Status, StepInfo, WorkflowInfo

if TYPE_CHECKING:
    from .aio import AsyncClient

T = TypeVar("T")


class AsyncHandle(Generic[T]):
    """A submitted workflow; made by `AsyncClient.submit`, `submit_many` and `get`.

    Attributes: `id`; `name`, the workflow's; `shard`, the name of the one that holds it.
    """

    def __init__(
        self,
        client: AsyncClient,
        id: str,
        wf: int,
        shard: str,
        name: str,
        workflow: Workflow[..., Any] | None,
        submitted: float | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.shard = shard
        self._client = client
        self._wf = wf
        self._workflow = workflow
        self._submitted = submitted  # by the event loop's clock

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.id!r} on {self.shard}>"

    async def result(self, timeout: float | None = None) -> T:
        """Waits for the workflow's end and returns its result, typed by its annotation.

        Arguments: `timeout` in seconds (None: for ever). Raises WorkflowFailed where it ended with an error
        (WorkflowCancelled and WorkflowDead are kinds of it),
        ResultTimeout where it has not ended in time: it goes on, and can be asked again; WorkflowNotFound where its
        shard has lost it, which a failover to a standby that was behind can do.
        """
        if timeout is not None and timeout < 0:
            raise InvalidInput(f"timeout must be 0 or more seconds, or None, not {timeout!r}")
        try:
            if timeout == 0:
                outcome = await self._client.waiter(self.shard).now(self.id, self._wf)
            else:
                async with asyncio.timeout(timeout):
                    waiter = self._client.waiter(self.shard)
                    outcome = await waiter.outcome(self.id, self._wf, self.name, self._submitted)
        except TimeoutError:
            raise ResultTimeout(f"workflow {self.id!r} has not ended within {timeout} s; it goes on") from None
        if outcome.status is not Status.SUCCEEDED:
            error = outcome.error
            if error is None:
                raise WorkflowFailed(self.id, outcome.status.value, "no error was recorded")
            if outcome.status is Status.CANCELLED:
                raise WorkflowCancelled(self.id, error.message)
            kind = WorkflowDead if outcome.status is Status.DEAD else WorkflowFailed
            raise kind(self.id, error.type, error.message, error.traceback)
        output = outcome.output or b"null"
        limits = self._client.config.payload
        if self._workflow is None:
            what = f"result of workflow {self.id!r}"
            return cast(T, self._client.codecs.decode(output, what=what, limits=limits))
        return cast(T, self._workflow.codec.decode_result(output, limits=limits))

    async def info(self) -> WorkflowInfo:
        """Where the workflow is, and since when."""
        return await self._client.info(self.id)

    async def status(self) -> Status:
        """Where the workflow is."""
        return (await self.info()).status

    async def cancel(self, reason: str | None = None) -> bool:
        """Cancels the workflow, see `AsyncClient.cancel`."""
        return await self._client.cancel(self.id, reason)

    async def steps(self) -> list[StepInfo]:
        """Its checkpoints so far, in order."""
        return await self._client.steps(self.id)
