"""The synchronous face of `Queries`: the same methods, each one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from ..model import Counts, Page, Waited
from .queries import Mode, Statuses

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .sync import _Background


class SyncQueries:
    """The part of the client that asks about many workflows."""

    _background: _Background
    _client: AsyncClient

    def list(
        self,
        *,
        status: Statuses = None,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        order: Literal["newest", "oldest"] = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """See `AsyncClient.list`."""
        return self._background.run(
            self._client.list(
                status=status,
                name=name,
                queue=queue,
                since=since,
                until=until,
                attributes=attributes,
                order=order,
                limit=limit,
                cursor=cursor,
            )
        )

    def count(
        self,
        *,
        status: Statuses = None,
        name: str | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        attributes: Mapping[str, Any] | None = None,
        exact: bool = True,
    ) -> Counts:
        """See `AsyncClient.count`."""
        return self._background.run(
            self._client.count(
                status=status,
                name=name,
                queue=queue,
                since=since,
                until=until,
                attributes=attributes,
                exact=exact,
            )
        )

    def wait(self, ids: Iterable[str], *, timeout: float | None = None, mode: Mode = "all") -> Waited:
        """See `AsyncClient.wait`."""
        return self._background.run(self._client.wait(ids, timeout=timeout, mode=mode))
