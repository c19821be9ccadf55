"""The client: submits workflows to the shards their ids belong to, and waits for results."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from .. import config as configuration
from ..app import Call, Workflow
from ..core.codec import CallCodec
from ..core.routing import check_id, check_name, draw_id, slot_of
from ..errors import InvalidInput, WorkflowNotFound
from ..model import DEFAULT_QUEUE, ClusterConfig, StepInfo, WorkflowInfo
from ..storage import submissions
from .handle import AsyncHandle
from .router import Router
from .sender import Item, Sender
from .waiter import Waiter

T = TypeVar("T")

_random = random.SystemRandom()


class AsyncClient:
    """Submits workflows and asks for their results; for use in one event loop.

    Arguments: `config`, the cluster's (see `from_config` for a file). Use as `async with`, or call `close`.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._router = Router(config)
        self._sender = Sender(self._router, config)
        self._waiters: dict[str, Waiter] = {}

    @classmethod
    def from_config(cls, path: str | Path) -> Self:
        """A client for the cluster that the YAML file describes. Raises ConfigError."""
        return cls(configuration.load(path))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; whoever waits for a result is cancelled."""
        await asyncio.gather(*(waiter.close() for waiter in self._waiters.values()))
        await self._router.close()

    @overload
    async def submit(
        self,
        workflow: Workflow[..., Coroutine[Any, Any, T]],
        /,
        *args: Any,
        id: str | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> AsyncHandle[T]: ...
    @overload
    async def submit(
        self,
        workflow: Workflow[..., T],
        /,
        *args: Any,
        id: str | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> AsyncHandle[T]: ...
    @overload
    async def submit(
        self, workflow: str, /, *args: Any, id: str | None = None, queue: str | None = None, **kwargs: Any
    ) -> AsyncHandle[Any]: ...
    async def submit(
        self,
        workflow: Workflow[..., Any] | str,
        /,
        *args: Any,
        id: str | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> AsyncHandle[Any]:
        """Makes a workflow durable; returns when its shard has committed it.

        Arguments: `workflow`, the function or its stored name; its own arguments; `id`, the idempotency key
        (default: a new one, on a shard that answers); `queue` (default: the workflow's).
        The same id again gives the first one's handle. Raises WorkflowConflict where that had another name or input,
        InvalidInput for what cannot be submitted, ShardUnavailable where the id's shard does not answer,
        SubmitUncertain where the connection was lost on the way (submit again with the same id).
        """
        call: Call[Any] = Call(workflow, args, kwargs, id, queue)
        return (await self._submit([call]))[0]

    async def submit_many(self, calls: Iterable[Call[T]]) -> list[AsyncHandle[T]]:
        """Submits many calls, one bulk statement per shard; returns their handles in order.

        Arguments: `calls`, such as `(checkout.call(o).set(id=f"order-{o.id}") for o in orders)`. Each shard's part is
        one transaction; after an error, which names the shard and the ids, submit the whole again with the same ids.
        """
        return await self._submit(list(calls))

    async def get(self, id: str, workflow: Workflow[..., Any] | None = None) -> AsyncHandle[Any]:
        """The handle of a workflow that was submitted before.

        Arguments: `id`; `workflow`, by whose annotation the result is typed. Raises WorkflowNotFound.
        """
        key, info = await self._find(id)
        return AsyncHandle(self, id, key, info.shard, info.name, workflow)

    async def info(self, id: str) -> WorkflowInfo:
        """Where a workflow is, and since when. Raises WorkflowNotFound."""
        return (await self._find(id))[1]

    async def steps(self, id: str) -> list[StepInfo]:
        """A workflow's checkpoints so far, in order. Raises WorkflowNotFound."""
        _, info = await self._find(id)
        pool = self._router.pool(info.shard)
        async with pool.connection() as conn:
            return await submissions.steps(pool.shard, conn, id)

    async def _find(self, id: str) -> tuple[int, WorkflowInfo]:
        check_id(id)
        shard = (await self._router.load()).shard_of(id)
        pool = self._router.pool(shard)
        async with pool.connection() as conn:
            found = await submissions.find(pool.shard, conn, id)
        if found is None:
            raise WorkflowNotFound(f"no workflow has the id {id!r} (looked on shard {shard!r})", workflow_id=id)
        return found

    def waiter(self, shard: str) -> Waiter:
        """What awaits the results of one shard."""
        if shard not in self._waiters:
            self._waiters[shard] = Waiter(self._router.pool(shard))
        return self._waiters[shard]

    async def _submit(self, calls: list[Call[Any]]) -> list[AsyncHandle[Any]]:
        if not calls:
            return []
        slot_map = await self._router.load()

        def draw() -> str:
            choice = self._router.choice(slot_map)
            return draw_id(
                time.time_ns() // 1_000_000, _random.getrandbits, lambda id: slot_map.shard_of(id) in choice
            )

        items = []
        for call in calls:
            name, queue, codec = _described(call)
            given = call.id is not None
            id = check_id(call.id) if given else draw()
            payload = codec.encode_call(call.args, call.kwargs)
            items.append(Item(id, name, queue, slot_of(id, slot_map.slots), payload, None if given else draw))
        await self._sender.send(items)
        return [
            AsyncHandle(
                self, i.id, i.wf, i.shard, i.name, call.workflow if isinstance(call.workflow, Workflow) else None
            )
            for i, call in zip(items, calls, strict=True)
        ]


class _Untyped:
    """Stands for the function of a workflow that is known by name only."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


_UNTYPED = CallCodec(_Untyped())


def _described(call: Call[Any]) -> tuple[str, str, CallCodec]:
    workflow = call.workflow
    if isinstance(workflow, Workflow):
        return (
            workflow.name,
            workflow.queue if call.queue is None else check_name("queue", call.queue),
            workflow.codec,
        )
    if isinstance(workflow, str):
        queue = DEFAULT_QUEUE if call.queue is None else check_name("queue", call.queue)
        return check_name("workflow", workflow), queue, _UNTYPED
    raise InvalidInput(
        f"submit takes a workflow (a function with @app.workflow) or its name, not {type(workflow).__name__}"
    )
