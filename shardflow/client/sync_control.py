"""The synchronous face of `Controls` and `AsyncQueues`: the same methods, each one line."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..model import Bulk, QueueList
from .control import FINAL, RESUMABLE, UNFINISHED
from .handle import AsyncHandle
from .queries import Statuses
from .queues import AsyncQueues

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .sync import Handle, _Background


class Queues:
    """Shows queues, pauses and resumes them; `Client.queues`. See `AsyncQueues`."""

    def __init__(self, background: _Background, queues: AsyncQueues) -> None:
        self._background = background
        self._queues = queues

    def pause(self, queue: str) -> Bulk:
        """See `AsyncQueues.pause`."""
        return self._background.run(self._queues.pause(queue))

    def resume(self, queue: str) -> Bulk:
        """See `AsyncQueues.resume`."""
        return self._background.run(self._queues.resume(queue))

    def list(self) -> QueueList:
        """See `AsyncQueues.list`."""
        return self._background.run(self._queues.list())


class SyncControls:
    """The part of the client that ends workflows and begins them again."""

    _background: _Background
    _client: AsyncClient

    def _held(self, handle: AsyncHandle[Any]) -> Handle[Any]:
        raise NotImplementedError

    def cancel(self, id: str, reason: str | None = None) -> bool:
        """See `AsyncClient.cancel`."""
        return self._background.run(self._client.cancel(id, reason))

    def resume(self, id: str) -> bool:
        """See `AsyncClient.resume`."""
        return self._background.run(self._client.resume(id))

    def restart(self, id: str) -> bool:
        """See `AsyncClient.restart`."""
        return self._background.run(self._client.restart(id))

    def fork(self, id: str, from_step: int = 0, *, new_id: str | None = None) -> Handle[Any]:
        """See `AsyncClient.fork`."""
        return self._held(self._background.run(self._client.fork(id, from_step, new_id=new_id)))

    def purge(self, id: str) -> bool:
        """See `AsyncClient.purge`."""
        return self._background.run(self._client.purge(id))

    def cancel_many(
        self,
        *,
        status: Statuses = UNFINISHED,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """See `AsyncClient.cancel_many`."""
        return self._background.run(
            self._client.cancel_many(
                status=status,
                name=name,
                queue=queue,
                since=since,
                until=until,
                attributes=attributes,
                reason=reason,
            )
        )

    def resume_many(
        self,
        *,
        status: Statuses = RESUMABLE,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Bulk:
        """See `AsyncClient.resume_many`."""
        return self._background.run(
            self._client.resume_many(
                status=status, name=name, queue=queue, since=since, until=until, attributes=attributes
            )
        )

    def purge_many(
        self,
        *,
        older_than: timedelta | float = 0.0,
        status: Statuses = FINAL,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Bulk:
        """See `AsyncClient.purge_many`."""
        return self._background.run(
            self._client.purge_many(
                older_than=older_than,
                status=status,
                name=name,
                queue=queue,
                since=since,
                until=until,
                attributes=attributes,
            )
        )

    @property
    def queues(self) -> Queues:
        """See `AsyncClient.queues`."""
        return Queues(self._background, self._client.queues)
