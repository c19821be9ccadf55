"""The synchronous face of `AsyncClient`: the same methods, each one line, over an event loop in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from .. import config as configuration
from ..core.codecs import Codecs
from ..definitions import Call, Workflow
from ..errors import UsageError
from ..model import ClusterConfig, Status, StepInfo, WorkflowInfo
from ..storage.caller import refuse_async
from ..storage.ending import end
from .aio import AsyncClient
from .handle import AsyncHandle
from .sync_control import SyncControls
from .sync_messaging import SyncMessaging
from .sync_queries import SyncQueries
from .sync_schedules import Schedules

T = TypeVar("T")


class _Background:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._door = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="shardflow client", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it there and waits; an interrupt here cancels it there."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise UsageError("the synchronous Client cannot be used inside its own event loop: use AsyncClient")
        with self._door:  # what came in after the last call would never be answered
            if self._closed:
                coroutine.close()
                raise UsageError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise UsageError("the client was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    async def _cancel_others(self) -> None:
        """Ends the calls of other threads, which would otherwise wait for ever."""
        await end(task for task in asyncio.all_tasks() if task is not asyncio.current_task())

    def close(self) -> None:
        """Ends the loop and what is under way in it."""
        with self._door:
            if self._closed:
                return
            self._closed = True
            last = asyncio.run_coroutine_threadsafe(self._cancel_others(), self._loop)
        try:
            last.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Handle(Generic[T]):
    """A submitted workflow; made by `Client.submit`, `submit_many` and `get`. See `AsyncHandle`."""

    def __init__(self, background: _Background, handle: AsyncHandle[T]) -> None:
        self._background = background
        self._handle = handle
        self.id = handle.id
        self.name = handle.name
        self.shard = handle.shard

    def __repr__(self) -> str:
        return f"<Handle {self.name} {self.id!r} on {self.shard}>"

    def result(self, timeout: float | None = None) -> T:
        """See `AsyncHandle.result`."""
        return self._background.run(self._handle.result(timeout))

    def info(self) -> WorkflowInfo:
        """See `AsyncHandle.info`."""
        return self._background.run(self._handle.info())

    def status(self) -> Status:
        """See `AsyncHandle.status`."""
        return self._background.run(self._handle.status())

    def cancel(self, reason: str | None = None) -> bool:
        """See `AsyncHandle.cancel`."""
        return self._background.run(self._handle.cancel(reason))

    def steps(self) -> list[StepInfo]:
        """See `AsyncHandle.steps`."""
        return self._background.run(self._handle.steps())


class Client(SyncQueries, SyncMessaging, SyncControls):
    """Submits workflows and asks for their results; for use in any thread.

    Arguments: `config`, the cluster's (see `from_config` for a file); `codecs`, see `AsyncClient`. Use as `with`, or
    call
    `close`.
    """

    def __init__(self, config: ClusterConfig, *, codecs: Codecs | None = None) -> None:
        self.config = config
        self._background = _Background()
        self._client = AsyncClient(config, codecs=codecs)

    @classmethod
    def from_config(cls, path: str | Path, *, codecs: Codecs | None = None) -> Self:
        """See `AsyncClient.from_config`."""
        return cls(configuration.load(path), codecs=codecs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncClient.close`."""
        if not self._background.closed:
            self._background.run(self._client.close())
            self._background.close()

    @overload
    def submit(self, workflow: Workflow[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> Handle[T]: ...
    @overload
    def submit(self, workflow: Workflow[..., T], /, *args: Any, **kwargs: Any) -> Handle[T]: ...
    @overload
    def submit(self, workflow: str, /, *args: Any, **kwargs: Any) -> Handle[Any]: ...
    def submit(self, workflow: Workflow[..., Any] | str, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """See `AsyncClient.submit`."""
        refuse_async(kwargs.get("connection"))
        return self._held(self._background.run(self._client.submit(workflow, *args, **kwargs)))

    def submit_many(self, calls: Iterable[Call[T]]) -> list[Handle[T]]:
        """See `AsyncClient.submit_many`."""
        return [self._held(handle) for handle in self._background.run(self._client.submit_many(calls))]

    def get(self, id: str, workflow: Workflow[..., Any] | None = None) -> Handle[Any]:
        """See `AsyncClient.get`."""
        return self._held(self._background.run(self._client.get(id, workflow)))

    def info(self, id: str) -> WorkflowInfo:
        """See `AsyncClient.info`."""
        return self._background.run(self._client.info(id))

    def steps(self, id: str) -> list[StepInfo]:
        """See `AsyncClient.steps`."""
        return self._background.run(self._client.steps(id))

    @property
    def schedules(self) -> Schedules:
        """See `AsyncClient.schedules`."""
        return Schedules(self._background.run, self._held, self._client.schedules)

    def _held(self, handle: AsyncHandle[T]) -> Handle[T]:
        return Handle(self._background, handle)
